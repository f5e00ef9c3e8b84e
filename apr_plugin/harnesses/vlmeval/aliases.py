"""Aliases of VLMEvalKit's video data sets: `Video-MME_agent` is `Video-MME` as model `apr` needs it.

A class of our own is made from each of VLMEvalKit's (`VideoMMEAgent`), which names the row in its messages. So the
model knows which question it is asked, and a question that a class can't build fails alone: in VLMEvalKit's API mode
it would make the run wait for ever. The name ends with `_subs` where subtitles are shown.
"""

from __future__ import annotations

import importlib
import inspect
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from apr_plugin.errors import told
from apr_plugin.harnesses.vlmeval.asked import DATASETS, Asked, build, whole_prompt
from apr_plugin.harnesses.vlmeval.host import Host
from apr_plugin.harnesses.vlmeval.message import Heard, mark
from apr_plugin.harnesses.vlmeval.video_sets import SETS, UNKNOWN, VideoSet, bucket_of, read_row
from apr_plugin.loop.question import MediaRef, SubtitlesRef
from apr_plugin.runs.truths import DocKey
from apr_plugin.scoring.text import NO_ANSWER
from apr_plugin.scoring.truth import Truth

AGENT = "_agent"
"""The ending of an alias."""

SUBTITLES = "_subs"
"""What follows it where subtitles are shown."""

_CLASS = "Agent"

_CHANCE = threading.Lock()
"""Held while a class builds a message: some draw the wording at random, which has to depend on the row alone."""


class AgentDataset:
    """What a class of ours adds to one of VLMEvalKit's video data sets.

    Args:
        apr_alias: The name under which VLMEvalKit knows it.
        apr_subtitles: Whether subtitles are shown in the looks that they belong to.
        apr_limit: Only the first rows.
        options: What the class itself takes.
    """

    INFER_FAIL_MARKERS: tuple[str, ...] = ("Failed to obtain answer", NO_ANSWER)
    """What VLMEvalKit counts as a question without an answer in its report."""

    data: Any
    data_root: str
    dataset_name: str

    def __init__(
        self, *, apr_alias: str, apr_subtitles: bool = False, apr_limit: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.apr_alias = apr_alias
        self.apr_subtitles = apr_subtitles
        if apr_limit is not None:
            self.data = self.data.iloc[:apr_limit].copy()
        # VLMEvalKit drops its table after an evaluation.
        self.apr_rows: dict[str, dict[str, Any]] = {str(row["index"]): row for row in self.data.to_dict("records")}
        DATASETS[apr_alias] = self

    @property
    def apr_task(self) -> str:
        """The name of the data set in the keys of its questions."""
        return self.dataset_name + (SUBTITLES if self.apr_subtitles else "")

    def build_prompt(self, line: Any, video_llm: bool = False, **options: Any) -> list[dict[str, Any]]:
        """The class's own message, with the name of the row; a row that it can't build is named with the reason."""
        row = self.data.iloc[line] if isinstance(line, int) else line
        index, names = str(row["index"]), {"dataset": self.apr_alias}
        with _CHANCE:
            state = random.getstate()
            random.seed(f"{self.dataset_name}:{index}")
            try:
                message = super().build_prompt(line, video_llm, **options)  # type: ignore[misc]
                fault = "" if message else "the data set leaves this row out"
            except Exception as error:  # noqa: BLE001 - a class of others, on rows of others
                message, fault = None, told(error)
            finally:
                random.setstate(state)
        return mark(message, **names, index=index, **({"fault": fault} if fault else {}))

    def key(self, index: str) -> tuple[str, str, str]:
        """Task, split and doc id of a row; VLMEvalKit has no splits."""
        return self.apr_task, "", index

    def asked(self, index: str, heard: Heard) -> Asked:
        """The question of a row."""
        row = self.apr_rows[index]
        name, reading = read_row(self._class_of(row), row, whole_prompt(heard))
        task, split, doc_id = self.key(index)
        videos = [self._with_subtitles(MediaRef(path=path), row) for path in heard.films]
        return build(reading, heard, task=task, split=split, doc_id=doc_id, reader=name, videos=videos)

    def row(self, index: str) -> dict[str, Any]:
        """What the samples say of a row besides its score: the right answer, the duration group, the video."""
        row = self.apr_rows[index]
        target = row.get("answer", row.get("correct_choice"))
        return {"target": target, "bucket": bucket_of(self.known(row), row), "video": row.get("video")}

    def score(self, index: str, prediction: str) -> float | None:
        """The score of one answer, where VLMEvalKit has a function for it and writes none; else `None`."""
        row = self.apr_rows[index]
        scorer = self.known(row).score
        return None if scorer is None else scorer(row, prediction)

    def truths(self) -> dict[DocKey, Truth]:
        """None: VLMEvalKit's columns of answers have no common form."""
        return {}

    def known(self, row: Mapping[str, Any]) -> VideoSet:
        """What is known of the class that a row comes from."""
        return SETS.get(self._class_of(row), UNKNOWN)

    def _class_of(self, row: Mapping[str, Any]) -> str:
        """The class of a row: of several data sets in one, that of its own."""
        inner = getattr(self, "dataset_map", {}).get(row.get("SUB_DATASET"))
        return type(inner).__name__ if inner is not None else type(self).__name__.removesuffix(_CLASS)

    def _with_subtitles(self, ref: MediaRef, row: Mapping[str, Any]) -> MediaRef:
        """The video with the file of its subtitles, if they are to be shown and are there."""
        wanted = self.known(row).subtitles if self.apr_subtitles else None
        path = wanted.file(self.data_root, row) if wanted is not None else None
        if wanted is None or path is None:
            return ref
        return ref.model_copy(update={"subtitles": SubtitlesRef(path=str(path), from_s=wanted.begin_s(row))})


@dataclass(frozen=True)
class Alias:
    """One data set under our name."""

    kind: type
    """VLMEvalKit's class."""
    dataset: str
    """The name by which the class knows it."""
    options: Mapping[str, Any]
    """Options of the class that choose the questions."""
    known: VideoSet
    """What is known of the class."""
    subtitles: bool = False
    """Whether subtitles are shown."""

    @property
    def several(self) -> bool:
        """Whether it is several data sets in one."""
        return any(base.__name__ == "ConcatVideoDataset" for base in self.kind.__mro__)


def add_aliases(host: Host, limit: int | None = None) -> dict[str, Alias]:
    """Register an alias for every video data set, and a second one for those with subtitles.

    Args:
        host: VLMEvalKit.
        limit: Only the first rows of each.

    Returns:
        What each alias stands for; those that the agent can't answer (`VideoSet.state`) are not registered.
    """
    found = aliases(host)
    for name, alias in found.items():
        if alias.known.state == "no":
            continue
        frames = {"nframe": 1, "fps": -1}  # some classes fail without a number; for this model they cut no frames
        parameters = inspect.signature(alias.kind.__init__).parameters  # type: ignore[misc]
        host.video_datasets[name] = partial(
            derived(alias.kind),
            dataset=alias.dataset,
            apr_alias=name,
            apr_subtitles=alias.subtitles,
            apr_limit=limit,
            **{key: value for key, value in frames.items() if key in parameters},
            **alias.options,
        )
    return found


_OPTIONS = ("subset", "subset_name", "skip_EgoExo4D")
"""Options of VLMEvalKit's short names that choose questions; the others choose frames."""

_ALWAYS: Mapping[str, Mapping[str, Any]] = {"AVSpeakerBench": {"use_audio": True}}
"""Class -> options that give the agent the video with its sound."""


def aliases(host: Host) -> dict[str, Alias]:
    """What each alias stands for, by its name."""
    found: dict[str, Alias] = {}
    for stem, kind, dataset, options in _bases(host):
        known = SETS.get(kind.__name__, UNKNOWN)
        options = {**_ALWAYS.get(kind.__name__, {}), **options}
        for subtitles in (False, True) if known.subtitles is not None else (False,):
            name = f"{stem}{AGENT}{SUBTITLES if subtitles else ''}"
            found.setdefault(name, Alias(kind, dataset, options, known, subtitles))
    return found


def _bases(host: Host) -> Iterator[tuple[str, type, str, dict[str, Any]]]:
    """Every video data set: a name for it, its class, the class's name for it, and options that choose questions."""
    for name, maker in list(host.video_datasets.items()):
        kind, given = getattr(maker, "func", None), getattr(maker, "keywords", {})
        if not isinstance(kind, type) or kind.__module__.startswith("apr_plugin.") or "dataset" not in given:
            continue
        options = {key: value for key, value in given.items() if key in _OPTIONS}
        stem = given["dataset"]
        if options:  # several sets of questions have one name: the short name without its frames tells them apart
            parts = [part for part in name.split("_") if not part.endswith(("frame", "fps")) and part[:5] != "limit"]
            stem = "_".join(parts)
        yield stem, kind, given["dataset"], options
    for kind in importlib.import_module("vlmeval.dataset").VIDEO_DATASET:
        if "supported_datasets" in vars(kind):
            for stem in kind.supported_datasets():
                yield stem, kind, stem, {}


def derived(kind: type) -> type:
    """Our class for one of VLMEvalKit's, as an attribute of this module, where pickle finds it."""
    name = f"{kind.__name__}{_CLASS}"
    if name not in globals():
        globals()[name] = type(name, (AgentDataset, kind), {"__module__": __name__, "__doc__": kind.__doc__})
    made: type = globals()[name]
    return made


def __getattr__(name: str) -> type:
    """A class of ours that another process has made, when it is unpickled here."""
    kind = getattr(importlib.import_module("vlmeval.dataset"), name.removesuffix(_CLASS), None)
    if name.startswith("_") or not name.endswith(_CLASS) or not isinstance(kind, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return derived(kind)
