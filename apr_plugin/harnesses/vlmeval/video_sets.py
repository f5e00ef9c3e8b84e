"""What is known of each of VLMEvalKit's video data sets.

That is whether the agent can answer it, how a row is read, and how it is scored. The keys are the names of its classes.
`docs/vlmeval.md` has this table; `tests/harnesses/test_vlmeval_sets.py` compares both, and checks that every video
class of the installed VLMEvalKit is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apr_plugin.harnesses.readers import DocError, Reading, read_prompt
from apr_plugin.harnesses.vlmeval.row_readers import (
    LABELLED,
    UNLABELLED,
    Row,
    RowReader,
    read_av_counting,
    read_cgbench,
    read_count,
    read_embedded,
    read_holmes,
    read_lines,
    read_mmmu,
    read_revsi,
    read_spans,
    read_sti,
    read_tempcompass,
    read_vsi,
    read_yes_no,
)
from apr_plugin.tasks.common.buckets import Bins

State = Literal["works", "note", "no"]

Checked = Literal["end to end", "prompt and scorer", "source read"]
"""`end to end`: a run on local data of its schema. `prompt and scorer`: its class built the message and scored the
answers on a made row. `source read`: neither was run."""


@dataclass(frozen=True)
class Subtitles:
    """Where a data set keeps the subtitles of a row's video."""

    path: str
    """Below the data folder; `{…}` are columns."""

    starts_at: str = ""
    """The column with the second of the subtitles at which the video begins."""

    def file(self, root: str, row: Mapping[str, Any]) -> Path | None:
        """The file of a row, inside the data folder; `None` if there is none."""
        try:
            path = (Path(root) / self.path.format_map(row)).resolve()
        except (KeyError, ValueError, OSError):
            return None
        inside = path.is_relative_to(Path(root).resolve())
        return path if inside and path.is_file() else None

    def begin_s(self, row: Mapping[str, Any]) -> float:
        """The second of the subtitles at which the video of a row begins."""
        try:
            found = float(row.get(self.starts_at, 0.0)) if self.starts_at else 0.0
        except (TypeError, ValueError):
            return 0.0
        return found if math.isfinite(found) else 0.0


@dataclass(frozen=True)
class VideoSet:
    """One class of VLMEvalKit."""

    title: str
    """The benchmark's name."""

    state: State = "works"
    """`works`; `note`: with a limit that the note names; `no`: not, and the note says why."""

    note: str = ""
    """What a user should know."""

    read: RowReader = read_prompt
    """Reads a row."""

    checked: Checked = "source read"
    """How that was found out."""

    judged: bool = False
    """Whether its scorer needs a language model; of the others, exact matching reads the answers that come back."""

    bucket: str = ""
    """The column with the name of a question's duration group."""

    bins: Bins | None = None
    """The duration groups by the column `duration`, in seconds, where there is no such column."""

    score: Callable[[Row, str], float] | None = None
    """Scores one answer with VLMEvalKit's own function, where it reports figures of the whole data set alone."""

    subtitles: Subtitles | None = None
    """Where its subtitles are, if it has some."""


_MLVU = Bins.of_minutes(0, 5, 10, 20, 60, 120, math.inf)
_CG = Bins.of_minutes(0, 10, 20, 30, 40, 50, 60, math.inf)

_JUDGE = "scored by a language model (`--judge`)"
_DECODES = "VLMEvalKit decodes a frame of each video with decord"
_STORES = f"{_DECODES} and stores it"
_LEFT_OUT = "its figures leave out rows without an answer; `apr` counts them as wrong"
_CUT = "VLMEvalKit cuts the clip with moviepy 1.0.3, which has to be installed"

SETS: Mapping[str, VideoSet] = {
    "VideoMME": VideoSet(
        "Video-MME",
        read=LABELLED("candidates"),
        bucket="duration",
        subtitles=Subtitles("{subtitle_path}"),
        checked="end to end",
    ),
    "VideoMMEv2": VideoSet(
        "Video-MME-v2",
        "note",
        "VLMEvalKit opens each video with decord; it scores groups of four, so `--limit` has to be a multiple of 4",
        read=read_lines,
        checked="prompt and scorer",
    ),
    "LongVideoBench": VideoSet(
        "LongVideoBench",
        "note",
        _DECODES,
        read=UNLABELLED("candidates"),
        bucket="duration_group",
        subtitles=Subtitles("subtitles/{subtitle_path}", "starting_timestamp_for_subtitles"),
        checked="end to end",
    ),
    "MLVU_MCQ": VideoSet("MLVU, multiple choice", read=UNLABELLED("candidates"), bins=_MLVU, checked="end to end"),
    "MLVU_OpenEnded": VideoSet("MLVU, generation", "note", _JUDGE, judged=True),
    "MLVU": VideoSet("MLVU, both", "note", f"half of it is {_JUDGE}; `MLVU_MCQ_agent` is not", judged=True),
    "MVBench": VideoSet("MVBench", "note", _CUT, read=UNLABELLED("candidates")),
    "MVBench_MP4": VideoSet("MVBench, MP4 files", read=UNLABELLED("candidates"), checked="prompt and scorer"),
    "MVTamperBench": VideoSet("MVTamperBench", "note", _CUT, read=UNLABELLED("candidates")),
    "TempCompass": VideoSet("TempCompass, all", "note", f"its captions are {_JUDGE}", judged=True),
    "TempCompass_MCQ": VideoSet("TempCompass, multiple choice", read=read_tempcompass, checked="prompt and scorer"),
    "TempCompass_YorN": VideoSet("TempCompass, yes or no", read=read_yes_no, checked="prompt and scorer"),
    "TempCompass_Captioning": VideoSet("TempCompass, captions", "note", _JUDGE, judged=True),
    "CGBench_MCQ_Grounding_Mini": VideoSet(
        "CG-Bench, mini",
        "note",
        _LEFT_OUT,
        read=read_cgbench,
        bins=_CG,
        subtitles=Subtitles("{subtitle_path}"),
        checked="end to end",
    ),
    "CGBench_MCQ_Grounding": VideoSet(
        "CG-Bench", "note", _LEFT_OUT, read=read_cgbench, bins=_CG, subtitles=Subtitles("{subtitle_path}")
    ),
    "CGBench_OpenEnded_Mini": VideoSet("CG-Bench, open-ended, mini", "note", f"{_JUDGE} that sees frames", judged=True),
    "CGBench_OpenEnded": VideoSet("CG-Bench, open-ended", "note", f"{_JUDGE} that sees frames", judged=True),
    "WorldSense": VideoSet(
        "WorldSense",
        "note",
        _STORES,
        read=LABELLED("candidates"),
        subtitles=Subtitles("{subtitle_path}"),
        checked="prompt and scorer",
    ),
    "Video_Holmes": VideoSet("Video-Holmes", "note", _STORES, read=read_holmes, checked="prompt and scorer"),
    "VideoTT": VideoSet(
        "Video-TT",
        "note",
        f"{_STORES}; with `--limit` its figures fail unless every capability occurs",
        checked="prompt and scorer",
    ),
    "OMTGBench": VideoSet(
        "OMTG-Bench", read=read_spans, score=lambda row, prediction: _omtg(row, prediction), checked="end to end"
    ),
    "CGAVCounting": VideoSet(
        "CG-AV-Counting",
        "note",
        "VLMEvalKit's own scoring of it fails (it calls the scorer of CG-Bench); `--mode infer` writes the answers",
        read=read_av_counting,
        checked="prompt and scorer",
    ),
    "VideoMMMU": VideoSet(
        "Video-MMMU",
        "note",
        "the picture of its adaptation questions is not shown",
        read=read_mmmu,
        score=lambda row, prediction: _mmmu(row, prediction),
        checked="prompt and scorer",
    ),
    "VsiBench": VideoSet("VSI-Bench", read=read_vsi, checked="prompt and scorer"),
    "VsiSuperRecall": VideoSet("VSI-SUPER Recall", read=LABELLED("options"), checked="prompt and scorer"),
    "VsiSuperCount": VideoSet("VSI-SUPER Count", read=read_count, checked="prompt and scorer"),
    "STIBench": VideoSet("STI-Bench", "note", _DECODES, read=read_sti, checked="prompt and scorer"),
    "DSRBench": VideoSet("DSR-Bench", read=LABELLED("options"), checked="prompt and scorer"),
    "SiteBenchVideo": VideoSet("SITE-Bench, video", read=UNLABELLED("candidates"), checked="prompt and scorer"),
    "ReVSI": VideoSet("ReVSI", "note", "only in VLMEvalKit's repository, not in ms-vlmeval 0.0.20", read=read_revsi),
    "MVUEval": VideoSet("MVU-Eval", read=LABELLED("options"), checked="prompt and scorer"),
    "QBench_Video": VideoSet("Q-Bench-Video, both", "note", f"half of it is {_JUDGE}", judged=True),
    "QBench_Video_MCQ": VideoSet("Q-Bench-Video, multiple choice", read=read_embedded, checked="prompt and scorer"),
    "QBench_Video_VQA": VideoSet("Q-Bench-Video, open", "note", _JUDGE, judged=True),
    "MMBenchVideo": VideoSet("MMBench-Video", "note", f"{_JUDGE}; each question alone (`nopack`)", judged=True),
    "VCRBench": VideoSet(
        "VCR-Bench", "note", f"{_JUDGE}, which also scores the steps; only the answer comes back", judged=True
    ),
    "Video_MMLU_CAP": VideoSet("Video-MMLU, captions", "note", _JUDGE, judged=True),
    "Video_MMLU_QA": VideoSet("Video-MMLU, questions", "note", _JUDGE, judged=True),
    "VDC": VideoSet("VDC", "note", _JUDGE, judged=True),
    "MovieChat1k": VideoSet("MovieChat-1K", "note", _JUDGE, judged=True),
    "DREAM": VideoSet("DREAM-1K", "note", _JUDGE, judged=True),
    "AVSpeakerBench": VideoSet(
        "AV-SpeakerBench",
        "note",
        "the agent hears the video's own sound",
        read=LABELLED("choices"),
        checked="prompt and scorer",
    ),
    "EgoExoBench_MCQ": VideoSet("EgoExoBench", "note", f"{_CUT}; pictures beside a clip are not shown"),
    "MMSIVideoBench": VideoSet("MMSI-Video-Bench", "no", "it passes frames, never the video"),
    "V2PBench": VideoSet("V2P-Bench", "no", "its questions are about a mark in a picture that comes beside the video"),
    "MEGABench": VideoSet("MEGA-Bench", "no", "its messages mix worked examples, pictures and several videos"),
}
"""Class -> what is known of it."""

UNKNOWN = VideoSet("", "note", "not known to this release; its questions are read from the prompt")
"""A class that is not in the table."""


def read_row(name: str, row: Row, prompt: str) -> tuple[str, Reading]:
    """Read a row with the reader of its class, or from the prompt if the row does not fit; this never raises.

    Args:
        name: The name of the class.
        row: The row, with the right answer, which no reader looks at.
        prompt: The text that a passive model would be shown.

    Returns:
        The reader's name for the record, with the reason if the row did not fit, and the question.
    """
    reader = SETS.get(name, UNKNOWN).read
    if reader is read_prompt:
        return "prompt", read_prompt(row, prompt)
    try:
        return name, reader(row, prompt)
    except DocError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - the row comes from others; the prompt can still be read
        reason = f"{type(error).__name__}: {error}"
    return f"prompt ({name} reader: {reason})", read_prompt(row, prompt)


def bucket_of(known: VideoSet, row: Mapping[str, Any]) -> str | None:
    """The duration group of a row; `None` where its data set has none."""
    if known.bins is not None:
        with suppress(KeyError, TypeError, ValueError):
            return known.bins.name(float(row["duration"]))
    value = row.get(known.bucket) if known.bucket else None
    return None if value is None else str(value)


def _omtg(row: Row, prediction: str) -> float:
    """The temporal IoU of an answer in OMTG-Bench, as its class computes it before it takes the mean."""
    from vlmeval.dataset.omtgbench import compute_one_to_many_metrics, parse_time_intervals

    spans = [parse_time_intervals(text) for text in (prediction, str(row["answer"]))]
    return float(compute_one_to_many_metrics(*spans)["tIoU"])


def _mmmu(row: Row, prediction: str) -> float:
    """Whether an answer of Video-MMMU is right, by its own functions."""
    from vlmeval.dataset.videommmu import evaluate_mmmu, process_results

    line = {**row, "prediction": prediction}
    judged, _ = evaluate_mmmu([line | {"parsed_pred": process_results(line)["parsed_pred"]}])
    return float(judged[row["id"]] == "Correct")
