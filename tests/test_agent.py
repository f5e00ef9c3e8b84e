"""`Agent`, `ask` and `open_run` from the package itself, as a program, a Jupyter notebook and async code use them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look

import apr_plugin
from apr_plugin import Agent, ask, open_run
from apr_plugin.errors import AprError
from apr_plugin.loop import Generation, MediaRef, Prompt, QuestionKind, Sampling, StopReason, Trajectory
from apr_plugin.runs.settings import read_settings

Videos = dict[str, Path]


def test_the_names_are_there_and_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys, apr_plugin; print(*sorted(m for m in sys.modules if m.split('.')[0] in ('apr_plugin', "
        "'numpy', 'torch', 'pydantic', 'av')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "apr_plugin"
    ]
    code = (
        "import sys; from apr_plugin import Agent, ask, open_run; print({'torch', 'lmms_eval', 'pandas', "
        "'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
    assert {"Agent", "ask", "open_run"} <= set(dir(apr_plugin))
    with pytest.raises(AttributeError, match="has no attribute 'Agnet'"):
        apr_plugin.Agnet  # noqa: B018
    with pytest.raises(ImportError):
        from apr_plugin import nothing  # noqa: F401


def test_arguments_are_the_model_args(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(answer("A"))
    given: dict[str, Any] = {
        "script": str(script),
        "max_turns": 9,
        "temperature": 0.5,
        "arm": "passive",
        "passive_frames": 3,
        "seed": 4,
    }
    agent, settings = Agent("scripted", **given), read_settings({"policy": "scripted"} | given)
    assert agent.settings.config == settings.config and agent.settings.policy.describe() == settings.policy.describe()
    assert Agent(policy="guess", how="first").settings.policy.describe() == {"how": "first"}
    for policy, more, words in (
        ("gess", {}, "there is no policy 'gess' (did you mean 'guess'?)"),
        ("guess", {"max_turn": 3}, "unknown model_arg 'max_turn' (did you mean 'max_turns'?)"),
        ("guess", {"max_turns": 0}, "max_turns=0: it must be a whole number from 1 to"),
        (None, {}, "model_args need policy=NAME"),
        (Playback(["x"]), {"how": "first"}, "unknown model_arg 'how'"),
        (object(), {}, "policy must be a name or an object with the methods of"),
    ):
        with pytest.raises(AprError) as error:
            Agent(policy, **more)  # type: ignore[arg-type]
        assert words in str(error.value)


def test_ask_with_everything_and_what_comes_back(shared_videos: Videos, tmp_path: Path) -> None:
    policy = Playback([look(0, 2, 3), look(0, 2, 3, video=1), answer("B")])
    seen: list[tuple[int, str]] = []
    with Agent(policy, turns=5) as agent:
        videos = [shared_videos["silent"], MediaRef(path=str(shared_videos["sound"]), start_s=1, end_s=4)]
        trajectory = agent.ask(
            videos,
            "Which?",
            options=["red", "Dr. No"],
            system_prompt="Look twice.",
            on_turn=lambda n, t: seen.append((n, t.text)),
        )
        assert (trajectory.answer, trajectory.stop_reason, trajectory.frames) == ("B", StopReason.ANSWERED, 6)
        assert (
            [n for n, _ in seen] == [1, 2, 3]
            and trajectory.turns[1].shown is not None
            and trajectory.turns[1].shown.video == 1
        )
        assert [(o.label, o.text) for o in trajectory.question.options] == [("A", "red"), ("B", "Dr. No")]
        assert trajectory.question.kind is QuestionKind.MCQ and trajectory.question.videos[1].start_s == 1
        assert "Look twice." in policy.prompts[0].text

        (tmp_path / "words.txt").write_text("Look once.")
        other = agent.ask(
            str(shared_videos["silent"]),
            "How many?",
            kind="number",
            hint="in dozens",
            system_prompt=tmp_path / "words.txt",
        )
        assert other.question.kind is QuestionKind.NUMBER and (
            other.question.answer_hint,
            trajectory.question.answer_hint,
        ) == ("in dozens", "")
        assert "Look once." in policy.prompts[3].text
        before = len(policy.prompts)
        agent.ask(shared_videos["silent"], "What?", hint="be brief")
        assert "be brief" in policy.prompts[before].text and "be brief" not in policy.prompts[0].text
        assert (
            len(
                {
                    trajectory.config_hash,
                    other.config_hash,
                    agent.ask(str(shared_videos["silent"]), "What?").config_hash,
                }
            )
            == 3
        )
        gone = agent.ask(tmp_path / "gone.mp4", "What?")
        assert gone.stop_reason is StopReason.MEDIA_UNREADABLE and gone.answer is None
        for more, words in (
            ({"kind": "essay"}, "kind must be one of mcq"),
            ({"kind": "mcq"}, "needs options"),
            ({"options": "A. red"}, "options must be a list"),
            ({"system_prompt": "words.txt"}, "give it as pathlib.Path"),
            ({"system_prompt": tmp_path / "none.txt"}, "cannot read"),
        ):
            with pytest.raises(AprError, match=words):
                agent.ask(shared_videos["silent"], "What?", **more)  # type: ignore[arg-type]
    with pytest.raises(AprError, match="was closed"):
        agent.ask(shared_videos["silent"], "What?")
    saved = tmp_path / "asked.jsonl"
    trajectory.write(saved)
    assert [t.answer for t in open_run(saved)] == ["B"]


def test_one_shot_closes_the_policy_also_when_it_fails(shared_videos: Videos) -> None:
    class Closing(Playback):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    policy = Closing([look(0, 2, 3), answer("a pot")])
    assert ask(shared_videos["silent"], "What?", policy=policy, max_turns=4).answer == "a pot" and policy.closed == 1
    with pytest.raises(AprError, match="kind must be"):
        ask(shared_videos["silent"], "What?", kind="essay", policy=policy)
    assert policy.closed == 2
    agent = Agent(policy)
    agent.close()
    agent.close()
    assert policy.closed == 3


def test_inside_a_running_loop_and_after_it(shared_videos: Videos) -> None:
    """As in a Jupyter notebook: a cell runs inside the kernel's loop, and calls code that is not async."""
    policy = Playback([look(0, 2, 3), answer("a pot")])
    agent, threads = Agent(policy), set()

    async def cell() -> list[str | None]:
        turns = agent.ask(
            shared_videos["silent"], "What?", on_turn=lambda n, t: threads.add(threading.current_thread().name)
        )
        one = ask(shared_videos["silent"], "What?", policy=policy)
        awaited = await agent.ask_async(shared_videos["silent"], "What?")
        return [turns.answer, one.answer, awaited.answer]

    assert asyncio.run(cell()) == ["a pot"] * 3 and threads == {"apr-episodes"}
    assert agent.ask(shared_videos["silent"], "What?").answer == "a pot", "and in no loop"


def test_many_at_once_are_answered_by_as_many_as_concurrency_says(shared_videos: Videos) -> None:
    class Counting(Playback):
        now = 0
        most = 0

        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            self.now -= 1
            return await super().generate(prompt, sampling)

    policy = Counting([look(0, 3, 8), answer("a pot")])

    async def ask_all() -> list[Trajectory]:
        return await asyncio.gather(*(agent.ask_async(shared_videos["silent"], f"What is {n}?") for n in range(9)))

    with Agent(policy, concurrency=3, decode_threads=1, decoded_gib=0.001) as agent:
        for _ in range(2):  # one loop for each; what they wait for belongs to the loop
            assert [t.answer for t in asyncio.run(ask_all())] == ["a pot"] * 9
    assert policy.most == 3


def test_the_command_line_asks_the_same(shared_videos: Videos, tmp_path: Path) -> None:
    script, saved = tmp_path / "script", tmp_path / "saved.jsonl"
    script.write_text("\n".join([look(0, 2, 3), answer("B")]))
    command = [
        "ask",
        str(shared_videos["silent"]),
        "Which?",
        "-o",
        "red",
        "-o",
        "blue",
        "-m",
        f"policy=scripted,script={script}",
        "--save",
        str(saved),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "apr_plugin.cli", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (by_command,) = Trajectory.read(saved)
    by_program = ask(shared_videos["silent"], "Which?", options=["red", "blue"], policy="scripted", script=str(script))
    assert _same(by_command) == _same(by_program)


def _same(trajectory: Trajectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(trajectory.to_json())
    for turn in found["turns"]:
        del turn["model_s"], turn["media_s"]
        if turn["shown"]:
            del turn["shown"]["decode_s"]
    del found["timings"]
    return found
