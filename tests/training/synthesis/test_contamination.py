"""Training data of a benchmark's own videos is refused: by the name of its data set, and by the names of its videos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apr_plugin.loop import MediaRef, Question
from apr_plugin.scoring.truth import Truth
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.training.synthesis.contamination import Known, check, known_videos, listed
from apr_plugin.training.synthesis.questions import TrainingQuestion

KNOWN = Known({"Cm73ma6Ibcs": "LVBench", "movie101_66-long": "MLVU", "12": "Other"}, ("apr_lvbench",), ("apr_mlvu",))


def _asked(video: str, source: str = "", doc_id: str = "0") -> TrainingQuestion:
    question = Question(text="what?", kind="free_form", task="t", doc_id=doc_id, videos=(MediaRef(path=video),))  # type: ignore[arg-type]
    return TrainingQuestion(question, Truth("x"), source)


@pytest.mark.parametrize(
    ("source", "benchmark"),
    [
        ("Lanxingxuan/Video_Crop_Data", "LVBench"),
        ("https://huggingface.co/datasets/Lanxingxuan/Video_Crop_Data", "LVBench"),
        ("video_crop_data", "LVBench"),
        ("Video-MME", "Video-MME"),
        ("lmms-lab/Video-MME", "Video-MME"),
        ("LongVALE", None),
        ("LongVALE train", None),
        ("my own LVBench-like set", None),
        ("", None),
    ],
)
def test_a_source_is_refused_by_its_name(source: str, benchmark: str | None) -> None:
    refused = check([_asked("/x/clip.mp4", source)], Known({})).refused
    assert [one.benchmark for one in refused.values()] == ([] if benchmark is None else [benchmark])
    assert all(one.by == "data_set" and "http" in one.detail for one in refused.values()), "it names where that is said"


@pytest.mark.parametrize(
    ("video", "benchmark"),
    [
        ("/data/Cm73ma6Ibcs.mp4", "LVBench"),
        ("/data/Cm73ma6Ibcs", "LVBench"),
        ("/data/yt_Cm73ma6Ibcs_0_120.mkv", "LVBench"),
        ("/data/xCm73ma6Ibcs.mp4", None),
        ("/data/cm73ma6ibcs.mp4", None),
        ("/other/movie101_66-long.mp4", "MLVU"),
        ("/data/12.mp4", None),
        ("/data/holiday.mp4", None),
    ],
)
def test_a_video_is_refused_by_its_name(video: str, benchmark: str | None) -> None:
    checked = check([_asked(video)], KNOWN)
    assert [one.benchmark for one in checked.refused.values()] == ([] if benchmark is None else [benchmark])
    assert checked.too_short == (("12.mp4",) if video.endswith("/12.mp4") else ())
    assert (checked.compared, checked.not_compared) == (("apr_lvbench",), ("apr_mlvu",))


def test_the_catalogues_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_needle: Path) -> None:
    """Real annotations of two tasks: LVBench's file, and a needle set that is the benchmark here."""
    monkeypatch.setenv("APR_DATA", str(tmp_path))
    monkeypatch.setenv("APR_NEEDLE_DIR", str(train_needle))
    (tmp_path / "lvbench").mkdir()
    row = {"key": "Cm73ma6Ibcs", "qa": [{"uid": "1", "question": "q\n(A) a\n(B) b\n(C) c\n(D) d", "answer": "A",
           "question_type": ["key information retrieval"], "time_reference": "00:01-00:02"}], "type": "cartoon",
           "video_info": {"duration_minutes": 30}}  # fmt: skip
    (tmp_path / "lvbench" / "video_info.meta.jsonl").write_text(json.dumps(row) + "\n")
    known = known_videos()
    assert {"apr_lvbench", "apr_needle_glyph"} <= set(known.compared), known.compared
    assert "apr_videomme" in known.not_compared and set(known.compared).isdisjoint(known.not_compared)
    assert set(known.compared) | set(known.not_compared) == set(sources())
    assert known.names["Cm73ma6Ibcs"] == "LVBench"
    (video,) = (train_needle / "videos").glob("*.mp4")
    assert [one.benchmark for one in check([_asked(str(video))]).refused.values()] == ["Needle"]

    (tmp_path / "lvbench" / "video_info.meta.jsonl").write_text("{broken")
    assert "apr_lvbench" in known_videos().not_compared, "damaged annotations protect nothing, and that is said"


def test_the_list_covers_every_benchmark_without_a_train_split() -> None:
    trained = {"longvale", "charades_sta", "activitynet_captions", "qvhighlights", "tacos", "needle"}
    others = [source for source in sources().values() if source.folder not in trained]
    named = {entry.benchmark.casefold() for entry in listed()}
    assert not [source.title for source in others if not source.title.casefold().startswith(tuple(named))]
    names = {name for entry in listed() for name in entry.names}
    assert {file.hub for source in others for file in source.files if file.hub} <= names
    assert all(entry.source.startswith("https://") and entry.why for entry in listed())
