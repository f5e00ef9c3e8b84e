"""Options of lmms-eval that an agent can't obey, and `media_root`.

They are tried with `apr eval`, plain `lmms-eval` and its evaluator.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_lmms_eval import Evaluate, evaluate  # noqa: F401 - a fixture

from apr_plugin.errors import AprError
from apr_plugin.harnesses.lmms_eval.command import check_options
from apr_plugin.loop.trajectory import StopReason, Trajectory

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.xdist_group("lmms_eval")

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_fewshot": 2}, "--num_fewshot 2 can't apply to model apr: the loop asks each question separately"),
    (
        {"apply_chat_template": True},
        "--apply_chat_template can't apply to model apr: each policy writes its own prompts",
    ),
    (
        {"system_instruction": "Be brief."},
        "--system_instruction 'Be brief.' can't apply to model apr: give instructions with the model_arg system_prompt",
    ),
    ({"limit": float("nan")}, "--limit nan: it must be a number above 0, or -1"),
    ({"limit": -3}, "--limit -3: "),
    ({"limit": 0}, "--limit 0: "),
]


@pytest.mark.parametrize(
    ("options", "words"),
    [*REFUSED, ({"fewshot_as_multiturn": True}, "--fewshot_as_multiturn"), ({"force_simple": True}, "--force")],
)
def test_what_can_t_apply_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(AprError) as raised:
        check_options(options)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_what_asks_for_nothing_passes() -> None:
    check_options({"num_fewshot": 0, "apply_chat_template": False, "system_instruction": None, "limit": None})
    for limit in (-1, 1, 0.5, 300.0):
        check_options({"limit": limit})


@pytest.mark.parametrize(("options", "words"), REFUSED[:3])
def test_a_program_s_evaluation_is_refused_too(
    evaluate: Evaluate,  # noqa: F811
    options: dict[str, Any],
    words: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(AprError) as raised:
        evaluate("bench_text", f"policy=obedient,trajectories={tmp_path}", **options)
    assert words in str(raised.value)


def test_arguments_given_twice(evaluate: Evaluate, tmp_path: Path) -> None:  # noqa: F811
    """lmms-eval takes the last value, so the text is checked."""
    with pytest.raises(AprError, match=r"'policy' is given 2 times: 'guess' and 'obedient'"):
        evaluate("bench_text", f"policy=guess,policy=obedient,trajectories={tmp_path}")


def test_generation_settings_are_said_to_be_unused_and_not_claimed(
    evaluate: Evaluate,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = evaluate(
        "bench_text", f"policy=obedient,trajectories={tmp_path}", gen_kwargs="temperature=0.7,num_beams=4"
    )
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and "--gen_kwargs temperature=0.7,num_beams=4: model apr uses none of it" in told[0]
    assert not results["config"]["gen_kwargs"]
    assert "num_beams" not in json.dumps(results["configs"], default=str)
    assert results["configs"]["bench_text"]["generation_kwargs"]["temperature"] == 0
    assert results["answers"] == {"bench_text": ["B"]}


def test_media_outside_the_folder_fail_one_by_one(evaluate: Evaluate, bench: Any, tmp_path: Path) -> None:  # noqa: F811
    """The files of `bench_bad` are in two folders; the other questions are asked, and the reason is reported."""
    inside = bench.videos["sound"].parent
    results = evaluate("bench_bad,bench_image", f"policy=obedient,media_root={inside},trajectories={tmp_path}")
    saved = {
        (t.question.task, t.question.doc_id): t for path in tmp_path.rglob("*.jsonl") for t in Trajectory.iterate(path)
    }
    outside = {key for key, t in saved.items() if f"is outside media_root={inside}" in t.stop_detail}
    expected = {("bench_bad", n) for n, name in enumerate(("sound", "missing", "silent", "truncated", "empty", "words",
        "ears"))
                if not bench.videos[name].is_relative_to(inside)}  # fmt: skip
    assert outside == {(task, str(n)) for task, n in expected} | {("bench_image", "0")} - {
        key for key in saved if key[0] == "bench_image"
    }
    assert all(saved[key].stop_reason is StopReason.MEDIA_UNREADABLE for key in outside)
    assert saved["bench_bad", "0"].stop_reason is StopReason.ANSWERED and len(results["answers"]["bench_bad"]) == 8
