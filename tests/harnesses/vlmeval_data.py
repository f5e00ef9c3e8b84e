"""Small local copies of VLMEvalKit's video data sets, in the schema that its own classes write and read.

`make(folder)` writes tables, videos and subtitles. `use(folder)` puts them in the place of the downloads: of a class,
only `prepare_dataset` is replaced; what builds its prompts and scores its answers is VLMEvalKit's own.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_testing import make_video_file

COLOURS = ("red", "green", "blue", "black")

SRT = """\
1
00:00:00,500 --> 00:00:01,500
the first <i>words</i>

2
00:00:04,000 --> 00:00:05,000
the last words
"""

ANSWERS: dict[str, str | None] = {
    "film one": "B",
    "film two": "C",
    "film three": None,
    "In which parts of the video": "[[1.0, 3.0]]",
    "stroke": "[[1.0, 3.0], [4.0, 5.0]]",
}
"""What the policy `knows` says: right, wrong, and not at all; the right answer of the third question is A."""

SAYS_B = "says_b"
"""A model of VLMEvalKit's own kind, which takes pictures and always answers B."""

QUESTIONS = (("one", 1), ("two", 0), ("three", 0))
"""Name of a question, and the index of its right option."""

SPANS = "[[1.0, 3.0]]"


def make(folder: Path) -> Path:
    """Write everything; a video of 6 s with sound for each question."""
    film = make_video_file(folder / "film.mp4", frames=60, sound_s=6.0)

    def place(*paths: str) -> None:
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(film, folder / path)

    def asked(name: str) -> str:
        return f"What colour has film {name}?"

    mme = []
    for at, (name, right) in enumerate(QUESTIONS):
        place(f"mme/video/{name}.mp4")
        mme.append(
            {
                "index": at,
                "video": name,
                "video_path": f"./video/{name}.mp4",
                "duration": "short",
                "domain": "Knowledge",
                "candidates": [f"{letter}. {colour}" for letter, colour in zip("ABCD", COLOURS, strict=True)],
                "sub_category": "Law",
                "task_type": "Counting Problem",
                "subtitle_path": f"./subtitle/{name}.srt",
                "question": asked(name),
                "answer": "ABCD"[right],
            }
        )
    # VLMEvalKit can't build this row: it evaluates the column as Python.
    mme.append(mme[-1] | {"index": 3, "video": "broken", "candidates": "[unreadable", "answer": "A"})
    (folder / "mme/subtitle").mkdir()
    for name in ("one", "two"):
        (folder / f"mme/subtitle/{name}.srt").write_text(SRT)
    _table(folder / "mme/Video-MME.tsv", mme)

    lvb = []
    for at, (name, right) in enumerate(QUESTIONS):
        place(f"lvb/videos/{name}.mp4")
        (folder / "lvb/subtitles").mkdir(exist_ok=True)
        words = [{"start": "00:01:00.500", "end": "00:01:01.500", "line": "the first words"}]
        (folder / f"lvb/subtitles/{name}.json").write_text(json.dumps(words))
        lvb.append(
            {
                "index": at,
                "id": f"{name}_0",
                "video": name,
                "video_id": name,
                "video_path": f"./videos/{name}.mp4",
                "subtitle_path": f"{name}.json",
                "starting_timestamp_for_subtitles": 60.0,
                "duration": 6.0,
                "duration_group": 15,
                "question_category": "S2E",
                "question": asked(name),
                "candidates": list(COLOURS),
                "correct_choice": right,
            }
        )
    lvb.append(lvb[0] | {"index": 3, "video_path": "./videos/missing.mp4", "correct_choice": 0})
    _table(folder / "lvb/LongVideoBench.tsv", lvb)

    mlvu = []
    for at, (name, right) in enumerate(QUESTIONS):
        place(f"mlvu/MLVU/video/1_plotQA/{name}.mp4")
        mlvu.append(
            {
                "task_type": "plotQA",
                "prefix": "./MLVU/video/1_plotQA",
                "duration": 6.0,
                "video": f"{name}.mp4",
                "question": asked(name),
                "answer": COLOURS[right],
                "candidates": list(COLOURS),
                "index": at,
            }
        )
    _table(folder / "mlvu/MLVU_MCQ.tsv", mlvu)

    cg = []
    for mode in ("long_acc", "clue_acc", "miou"):
        for qid, (name, right) in enumerate(QUESTIONS):
            place(f"cg/cg_videos_720p/{name}.mp4", f"cg/cg_clue_videos/{qid}.mp4")
            cg.append(
                {
                    "index": len(cg),
                    "video_uid": name,
                    "video": f"cg_videos_720p/{name}.mp4",
                    "duration": 6.0,
                    "domain": "News",
                    "choices": list(COLOURS),
                    "sub_category": "Time Cognition",
                    "subtitle_path": "",
                    "question": asked(name),
                    "answer": SPANS if mode == "miou" else "ABCD"[right],
                    "task_mode": mode,
                    "clue_intervals": SPANS if mode == "clue_acc" else "",
                    "qid": qid,
                    "clue_video_path": f"cg_clue_videos/{qid}.mp4" if mode == "clue_acc" else "",
                }
            )
    _table(folder / "cg/CG-Bench_MCQ_Grounding_Mini.tsv", cg)

    place("omtg/videos/one.mp4")
    omtg = [
        {
            "index": 0,
            "video": "one.mp4",
            "question": "Find every stroke of the bell. Answer with start and end in seconds.",
            "answer": "1.0 - 3.0 seconds, 4.0 - 5.0 seconds",
        }
    ]
    _table(folder / "omtg/OMTGBench.tsv", omtg)
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    return folder


def use(folder: Path) -> None:
    """Point VLMEvalKit's classes at the local copies, and register the policy `knows`."""
    import vlmeval.dataset as sets

    from apr_plugin.policies import POLICIES

    POLICIES["knows"] = "task_testing:Knows"

    from vlmeval.config import supported_VLM
    from vlmeval.vlm.base import BaseModel

    class SaysB(BaseModel):  # type: ignore[misc]
        def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
            pictures = [part["value"] for part in message if part["type"] == "image"]
            assert len(pictures) == 8 and all(Path(place).is_file() for place in pictures)
            return "B"

    supported_VLM[SAYS_B] = SaysB

    from vlmeval.inference_api import APIEvalPipeline

    save = APIEvalPipeline._save_checkpoint

    def lose(self: Any, dataset: str, result: dict[str, Any]) -> None:
        """Fail for one question, as on a full disk."""
        if dataset == "MLVU_MCQ_agent" and result["index"] == "1":
            raise OSError("No space left on device")
        save(self, dataset, result)

    APIEvalPipeline._save_checkpoint = lose

    def local(name: str, root: str, file: str) -> None:
        found = {"root": str(folder / root), "data_file": str(folder / file)}
        getattr(sets, name).prepare_dataset = lambda self, *more, **named: dict(found)

    local("VideoMME", "mme", "mme/Video-MME.tsv")
    local("LongVideoBench", "lvb", "lvb/LongVideoBench.tsv")
    local("MLVU_MCQ", "mlvu", "mlvu/MLVU_MCQ.tsv")
    local("CGBench_MCQ_Grounding_Mini", "cg", "cg/CG-Bench_MCQ_Grounding_Mini.tsv")
    local("OMTGBench", "omtg/videos", "omtg/OMTGBench.tsv")


def _table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "<run_path>":  # the setup of an order of `vlmeval_warm`
    use(Path(os.environ["VLMEVAL_TEST_DATA"]))
