"""Truths of the tasks through lmms-eval: none reaches a policy or a record, and the arm `oracle` shows the evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from task_testing import Knows, TaskBench, check_truths, trajectories, write

pytest.importorskip("lmms_eval")

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Generation, ImagePart, Prompt, Sampling, TextPart
from apr_plugin.policies import POLICIES
from apr_plugin.tasks.charades_sta import utils as charades
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.tasks.lvbench import utils as lvbench
from apr_plugin.tasks.needle.make import BUCKETS, DOCS_NAME, SPEC_NAME
from apr_plugin.tasks.videomme import utils as videomme
from apr_plugin.tasks.vsibench import utils as vsibench

pytestmark = pytest.mark.xdist_group("lmms_eval")

LENGTHS = [{"id": "AAA01", "subject": "X", "length": "30.0"}]
NEEDLE = ("glyph", "when", "sound", "count", "order")
TASKS = ("apr_charades_sta", "apr_videomme", "apr_vsibench", *(f"apr_needle_{kind}" for kind in NEEDLE))
ANSWERS = {
    "opens a door": "[[2, 6]]",
    "mme": "A",
    "vsi": "4",
    "glyph": "A",
    "when is": "[[3, 7]]",
    "sound": "B",
    "count": "3",
    "order": "B",
}


class Watches(Knows):
    """A policy that writes down every prompt that it is given."""

    seen: list[Any] = []  # noqa: RUF012 - lmms-eval makes the policy itself

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        self.seen.append(
            [
                [part.text if isinstance(part, TextPart) else _pixels(part) for part in message.parts]
                for message in prompt.messages
            ]
        )
        return await super().generate(prompt, sampling)


def _pixels(part: Any) -> Any:
    return (part.image.shape, hash(part.image.tobytes())) if isinstance(part, ImagePart) else type(part).__name__


def _needle(kind: str, answer: str, span: list[float]) -> dict[str, Any]:
    return {
        "id": f"x-{kind}", "video": "videos/x.mp4", "duration_s": 30.0, "bucket": next(iter(BUCKETS)), "kind": kind,
        "question": f"Of {kind} is it?",
        "options": ["left", "right"] if kind in ("glyph", "sound", "order") else [],
        "answer": "" if kind == "when" else answer,
        "spans": [span], "answer_spans": [span] if kind == "when" else [],
    }  # fmt: skip


def _place(bench: TaskBench, right: dict[str, str], span: list[float]) -> None:
    """The same questions about the same videos, with other right answers."""
    bench.place(charades.SOURCE, [f"AAA01 {span[0]} {span[1]}##person opens a door.", LENGTHS], {"AAA01.mp4": 30})
    options = {"options": ["A. left", "B. right"]}
    about = {"domain": "Knowledge", "sub_category": "Law", "task_type": "Counting Problem", "duration": "short"}
    row = {
        "videoID": "one",
        "question_id": "1",
        "question": "How about mme?",
        "answer": right["letter"],
        **about,
        **options,
    }
    bench.place(videomme.SOURCE, [[row]], {"data/one.mp4": 3})
    scene = {
        "id": 1,
        "dataset": "scannet",
        "scene_name": "s",
        "question_type": "object_counting",
        "question": "How about vsi?",
    }
    bench.place(vsibench.SOURCE, [[{**scene, "ground_truth": right["number"]}]], {"scannet/s.mp4": 4})
    rows = [_needle(kind, right["number"] if kind == "count" else right["letter"], span) for kind in NEEDLE]
    write(bench.root / "needle" / DOCS_NAME, rows)
    write(bench.root / "needle" / SPEC_NAME, {})
    bench.film(30, bench.root / "needle" / "videos" / "x.mp4")


@pytest.fixture
def watched(task_bench: TaskBench, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskBench]:
    monkeypatch.setitem(POLICIES, "knows", f"{__name__}:Watches")
    monkeypatch.setenv("APR_NEEDLE_DIR", str(task_bench.root / "needle"))
    Watches.seen.clear()
    yield task_bench
    Watches.seen.clear()


def _record(folder: Path) -> dict[Any, Any]:
    """Each trajectory's JSON without times, the decoder's state and the hash of the policy's own arguments."""
    found = {}
    for key, trajectory in trajectories(folder).items():
        row = json.loads(trajectory.to_json())
        found[key] = _without(
            row, {"timings", "media_s", "model_s", "total_s", "decode_s", "mode", "packets", "config_hash"}
        )
    return found


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(item, names) for name, item in value.items() if name not in names}
    return [_without(item, names) for item in value] if isinstance(value, list) else value


def _names(value: Any) -> Iterator[str]:
    for name, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield str(name)
        yield from _names(item)


def test_every_source_says_what_is_right() -> None:
    assert [task for task, source in sources().items() if source.truth_of is None] == []


def test_other_truths_change_nothing_that_is_seen_or_recorded(watched: TaskBench) -> None:
    """Two runs whose rows differ only in the right answers and the evidence.

    Every prompt and every trajectory is the same, but the scores differ.
    """
    runs = []
    for right, span in (
        ({"letter": "A", "number": "4"}, [2.0, 6.0]),
        ({"letter": "B", "number": "3"}, [13.718, 17.29]),
    ):
        _place(watched, right, span)
        results = watched.run(",".join(TASKS), ANSWERS, bootstrap_iters=0)
        check_truths(results, *TASKS)
        runs.append(
            (
                sorted(map(repr, Watches.seen)),
                _record(results["trajectories"]),
                [results[task]["score"] for task in TASKS],
            )
        )
        Watches.seen.clear()
    (prompts, records, scores), (others, other_records, other_scores) = runs
    assert len(prompts) == 2 * len(TASKS) and len(records) == len(TASKS)
    assert prompts == others and records == other_records
    assert all(one != other for one, other in zip(scores, other_scores, strict=True))
    written = json.dumps(list(other_records.values())) + repr(others)
    assert "13.71" not in written and "17.29" not in written
    held = {name for record in records.values() for name in _names(record)}
    assert not {"truth", "evidence", "spans", "answer_spans", "ground_truth", "target"} & held


def test_the_oracle_shows_the_evidence_and_is_told_nothing_of_it(watched: TaskBench) -> None:
    _place(watched, {"letter": "A", "number": "4"}, [13.0, 17.0])
    tasks = ("apr_charades_sta", *(f"apr_needle_{kind}" for kind in NEEDLE))
    results = watched.run(",".join(tasks), ANSWERS, ",arm=oracle,passive_frames=8", bootstrap_iters=0)
    check_truths(results, *tasks)
    found = trajectories(results["trajectories"])
    assert len(found) == len(tasks) == len(Watches.seen)
    for trajectory in found.values():
        times = [time for shown in trajectory.first_shown for time in shown.times_s]
        assert trajectory.arm == "oracle" and times == [13.0, 14.0, 15.0, 16.0]  # the film has a picture a second
        assert not {"truth", "evidence", "spans", "answer_spans"} & set(_names(json.loads(trajectory.to_json())))
    assert not any("[13.0, 17.0]" in repr(prompt) for prompt in Watches.seen)


def test_without_evidence_nothing_is_asked(watched: TaskBench) -> None:
    _place(watched, {"letter": "A", "number": "4"}, [13.0, 17.0])
    with pytest.raises(AprError, match="arm=oracle: task 'apr_videomme' does not say where the evidence is") as said:
        watched.run("apr_charades_sta,apr_videomme", ANSWERS, ",arm=oracle", bootstrap_iters=0)
    assert "\n" not in str(said.value) and not Watches.seen


@pytest.mark.parametrize(
    ("reference", "spans"),
    [
        ("00:15-00:19", [(15, 19)]), ("01:02:03-01:02:13", [(3723, 3733)]), ("00:01", [(1, 2)]),
        ("00:01-00:02, 01:00-01:10", [(1, 2), (60, 70)]),
        ("whole video", []), (None, []), ("", []), ("00:09-00:03", []), ("1-2-3", []),
    ],
)  # fmt: skip
def test_lvbench_times(reference: Any, spans: list[tuple[float, float]]) -> None:
    truth = lvbench.truth_of({"answer": "B", "time_reference": reference})
    assert truth.spans() == spans and truth.answers == ("B",)
