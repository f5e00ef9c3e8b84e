"""`TaskDataset`: a task of this package as a video data set of VLMEvalKit, with the same questions and scores.

A question has the same key in both harnesses (task, split, doc id), the same text, and the same seed, so that a policy
writes the same trajectory, and `apr compare` joins the arms of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd  # type: ignore[import-untyped]
from vlmeval.dataset.video_base import VideoBaseDataset
from vlmeval.smp import LMUDataRoot, dump, get_intermediate_file_path, load

from apr_plugin.errors import AprError, told
from apr_plugin.harnesses.media import media_ref, nothing
from apr_plugin.harnesses.readers import read
from apr_plugin.harnesses.vlmeval.asked import DATASETS, Asked, build
from apr_plugin.harnesses.vlmeval.frames import save_frames
from apr_plugin.harnesses.vlmeval.message import Heard, mark
from apr_plugin.harnesses.vlmeval.session import Truths
from apr_plugin.harnesses.vlmeval.task_files import TaskFile, read_task
from apr_plugin.loop.question import MediaRef
from apr_plugin.loop.text import printable
from apr_plugin.runs.truths import DocKey
from apr_plugin.scoring.text import NO_ANSWER
from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.tasks.common.rows import unreadable


class TaskDataset(VideoBaseDataset):  # type: ignore[misc]
    """A task of this package.

    Args:
        dataset: The task's name, `apr_…`.
        nframe: Frames that VLMEvalKit cuts for models that take no video; it needs a number.
        fps: Frames a second, in place of `nframe`.
        limit: Only the first questions.

    Raises:
        AprError: there is no such task, or its annotations can't be read.
    """

    TYPE = "Video-Task"
    INFER_FAIL_MARKERS = (*VideoBaseDataset.__dict__.get("INFER_FAIL_MARKERS", ()), NO_ANSWER)

    def __init__(self, dataset: str, nframe: int = 1, fps: float = -1, limit: int | None = None) -> None:
        self.task: TaskFile = read_task(dataset)
        documents = self.task.documents()
        self.documents: list[dict[str, Any]] = [
            dict(documents[at]) for at in range(len(documents) if limit is None else min(limit, len(documents)))
        ]
        self._source = sources().get(dataset)
        # The base class reads a table from a file and downloads; this is what it leaves behind.
        self.dataset_name = dataset
        self.data = self._table()
        self.videos = sorted(set(self.data["video"]))
        self.data_root = ""
        self.pack = False
        self.nframe = 0 if fps > 0 else nframe
        self.fps = fps if fps > 0 else -1
        self.split_frame = True
        self.frame_root = str(Path(LMUDataRoot()) / "images" / dataset)
        DATASETS[dataset] = self

    def __getstate__(self) -> dict[str, Any]:
        """Without the task's functions, for VLMEvalKit's own processes; they are imported again there."""
        return {**vars(self), "task": self.task.name, "_source": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self.task, self._source = read_task(state["task"]), sources().get(state["task"])

    @classmethod
    def supported_datasets(cls) -> list[str]:
        """None by themselves: each task is registered under its own name."""
        return []

    def prepare_dataset(self, dataset: str) -> NoReturn:
        """Refuse: the documents come from the task."""
        raise NotImplementedError

    def _table(self) -> Any:
        """What VLMEvalKit keeps of each row beside the prediction."""
        rows = [
            {
                "index": at,
                "video": self._first_path(document),
                "question": printable(self._prompt(document)),
                "answer": printable(str(self.task.doc_to_target(document))),
            }
            for at, document in enumerate(self.documents)
        ]
        return pd.DataFrame(rows)

    def build_prompt(self, line: Any, video_llm: bool = False) -> list[dict[str, Any]]:
        """The message of a row: its videos, then the prompt of the task. A missing file is the model's to report."""
        index = int(line) if isinstance(line, int) else int(line["index"])
        document = self.documents[index]
        refs = self._refs(document)
        if video_llm:
            media = [{"type": "video", "value": ref.path} for ref in refs]
        else:
            frames = [save_frames(ref.path, Path(self.frame_root), self.nframe, self.fps) for ref in refs]
            media = [{"type": "image", "value": path} for paths in frames for path in paths]
        message = [*media, {"type": "text", "value": self._prompt(document)}]
        return mark(message, dataset=self.dataset_name, index=str(index))

    def key(self, index: str) -> tuple[str, str, str]:
        """The same as under lmms-eval."""
        return self.task.name, self.task.split, index

    def asked(self, index: str, heard: Heard) -> Asked:
        """The question of a document, by the reader that lmms-eval's model uses too."""
        document = self.documents[int(index)]
        name, reading = read(self.task.name, document, self._prompt(document))
        truth = None if self._source is None else self._source.truth(document)
        task, split, doc_id = self.key(index)
        return build(
            reading,
            heard,
            task=task,
            split=split,
            doc_id=doc_id,
            reader=name,
            videos=self._refs(document),
            evidence=() if truth is None else truth.spans(),
            truths=Truths(self.dataset_name, self.truths),
        )

    def row(self, index: str) -> dict[str, Any]:
        """What the samples say of a document besides its score: the right answer, the duration group, the video."""
        document = self.documents[int(index)]
        buckets = document.get("apr_buckets") or [None]
        target = self.task.doc_to_target(document)
        return {"target": target, "bucket": buckets[0], "video": self._first_path(document)}

    def score(self, index: str, prediction: str) -> float | None:
        """Nothing: `evaluate` writes every score."""
        return None

    def truths(self) -> dict[DocKey, Truth]:
        """What is right, as the task says it."""
        if self._source is None:
            return {}
        truths = {self.key(str(at)): self._source.truth(document) for at, document in enumerate(self.documents)}
        return {key: truth for key, truth in truths.items() if truth is not None}

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> dict[str, float]:
        """Score the answers with the task's own function, and aggregate them as its YAML file says.

        The scores of single questions go to `…_score`, the figures to `…_rating.json`. A question without an answer
        counts as wrong.
        """
        predictions = read_predictions(eval_file)
        scored = [
            dict(self.task.process_results(document, [predictions.get(str(at), NO_ANSWER)]))
            for at, document in enumerate(self.documents)
        ]
        rows = [
            {"index": at, "prediction": predictions.get(str(at), NO_ANSWER), "metrics": json.dumps(_plain(one))}
            | {"score": one.get("score")}
            for at, one in enumerate(scored)
        ]
        figures = self.task.aggregated(scored)
        dump(pd.DataFrame(rows), get_intermediate_file_path(eval_file, "_score"))
        dump(figures, get_intermediate_file_path(eval_file, "_rating", "json"))
        return figures

    @classmethod
    def report_primary_metric(cls, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
        """`score`, which every task has."""
        return {"score": metrics["score"]} if metrics and "score" in metrics else {}

    def _prompt(self, document: Mapping[str, Any]) -> str:
        return str(self.task.prompt(document))

    def _first_path(self, document: Mapping[str, Any]) -> str:
        refs = self._refs(document)
        return refs[0].path if refs else ""

    def _refs(self, document: Mapping[str, Any]) -> tuple[MediaRef, ...]:
        """The videos of a document; where it can't be read, a reference that says why, as under lmms-eval."""
        try:
            if (why := unreadable(document)) is not None:
                raise AprError(f"this row of the data set can't be read: {why}")
            return tuple(media_ref(item) for item in self.task.doc_to_visual(document))
        except Exception as error:  # noqa: BLE001 - a row comes from others and can raise anything
            return (nothing("media", error),)


def read_predictions(eval_file: str) -> dict[str, str]:
    """The answers by index, as they were written: a table of text alone must not become numbers."""
    if eval_file.endswith((".tsv", ".csv")):
        table = pd.read_csv(
            eval_file, sep="\t" if eval_file.endswith(".tsv") else ",", dtype=str, keep_default_na=False
        )
    else:
        table = load(eval_file)
    found = {}
    for index, prediction in zip(table["index"], table["prediction"], strict=True):
        found[str(index)] = NO_ANSWER if pd.isna(prediction) else str(prediction)
    return found


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a result, and what else JSON can hold."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        try:
            found[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            found[name] = told(TypeError(type(value).__name__))
    return found
