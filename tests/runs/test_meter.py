"""The meter of a run: what it counts and prints, its budget, and a run started from code that is not async."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from apr_testing import Playback, answer, look

from apr_plugin.loop import Budget, EpisodeConfig, MediaRef, Question, StopReason, Trajectory, Usage
from apr_plugin.loop.budget import VISUAL_TOKEN, VisualToken
from apr_plugin.runs import run_episodes
from apr_plugin.runs.meter import Metered, Progress, TokensSpent, per_question, run_sync, tokens_spent

tqdm = pytest.importorskip("tqdm").tqdm
CONFIG = EpisodeConfig(budget=Budget(turns=3))


def _ask(n: int, path: Path) -> list[Question]:
    return [
        Question(text=f"number {i}?", kind="free_form", doc_id=str(i), videos=(MediaRef(path=str(path)),))
        for i in range(n)
    ]  # type: ignore[arg-type]


def test_a_budget_over_all_questions_ends_those_that_are_left(shared_videos: dict[str, Path]) -> None:
    policy = Playback([look(0, 2, 4), answer("a pot")], usage=Usage(100, 0, 10))
    spent = 0

    def done(trajectory: Trajectory, resumed: bool) -> None:
        nonlocal spent
        found = tokens_spent(trajectory)
        assert found is None or found == TokensSpent(200, 20)
        spent += 0 if found is None else found.prompt + found.completion

    metered = Metered(policy, lambda: "the 400 tokens are used up" if spent >= 400 else "")
    assert metered.describe() == policy.describe() and CONFIG.hash(metered) == CONFIG.hash(policy), (
        "a budget is no part of the configuration"
    )
    assert metered.visual_token == policy.visual_token == VISUAL_TOKEN
    policy.visual_token = VisualToken(side_px=56)
    assert Metered(policy, str).visual_token == VisualToken(side_px=56), "looks are counted by the policy's own rule"
    policy.visual_token = VISUAL_TOKEN
    found = run_sync(run_episodes(_ask(4, shared_videos["silent"]), metered, CONFIG, on_done=done))
    assert [t.stop_reason for t in found] == [StopReason.ANSWERED] * 2 + [StopReason.POLICY_UNAVAILABLE] * 2
    assert found[2].stop_detail == "the 400 tokens are used up" and tokens_spent(found[2]) is None

    printed = io.StringIO()
    progress = Progress(tqdm(total=4, file=printed, ncols=160, mininterval=0))
    assert progress.text == ""
    for number, trajectory in enumerate(found):
        progress.done(trajectory, resumed=number == 0)
    progress.close()
    assert "4/4" in printed.getvalue() and "1.0 turns, 2 frames, " in printed.getvalue()
    assert progress.text.endswith(" s each, 1 resumed, 2 FAILED") and progress.finished == 4
    means = per_question(found)
    assert means["turns_per_question"] == 1 and means["frames_per_question"] == 2 and means["audio_s_per_question"] == 0
    assert per_question([]) == {}


def test_from_code_that_is_not_async_with_and_without_a_loop_in_this_thread() -> None:
    async def where() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    async def fails() -> None:
        raise LookupError("nothing there")

    async def notebook() -> str:
        with pytest.raises(LookupError, match="nothing there"):
            run_sync(fails())
        return run_sync(where())

    assert run_sync(where()) == "MainThread"
    assert asyncio.run(notebook()) == "apr-episodes"
    with pytest.raises(LookupError, match="nothing there"):
        run_sync(fails())


@pytest.mark.parametrize("inside", [False, True], ids=["no loop", "in a running loop"])
def test_ctrl_c_cancels_the_work_and_is_raised_when_it_has_ended(inside: bool) -> None:
    code = """
    import asyncio, os, signal, sys, threading, time
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from apr_plugin.runs.meter import run_sync

    async def work():
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)
            print("cancelled", flush=True)
            raise

    def command():
        try:
            run_sync(work())
        except KeyboardInterrupt:
            print("stopped", flush=True)

    async def cell():
        command()

    asyncio.run(cell()) if INSIDE else command()
    """
    code = textwrap.dedent(code).replace("INSIDE", str(inside))
    if inside:  # as in a Jupyter kernel, whose loop does not handle Ctrl-C
        code = code.replace("asyncio.run(cell())", "asyncio.new_event_loop().run_until_complete(cell())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["cancelled", "stopped"]), done.stderr
