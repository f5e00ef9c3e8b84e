"""From `key=value` arguments to a policy and an episode configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apr_plugin.errors import AprError
from apr_plugin.harnesses.settings import read_settings
from apr_plugin.loop.budget import PROFILES, Budget
from apr_plugin.loop.policy import Sampling


def test_defaults() -> None:
    settings = read_settings({"policy": "guess"})
    assert settings.policy.name == "guess" and settings.concurrency == 4 and settings.resume == "auto"
    assert settings.trajectories == Path("apr_runs")
    assert settings.config.arm == "agent" and settings.config.budget == Budget() and settings.config.sampling == Sampling()


def test_every_group_of_arguments(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Look closely.")
    settings = read_settings(
        {
            "policy": "guess", "how": "first",
            "decode_threads": "3", "decoded_gib": 0.5,
            "arm": "passive", "passive_frames": 8, "seed": 7, "concurrency": 2, "trajectories": str(tmp_path), "resume": "never",
            "system_prompt": str(prompt),
            "max_turns": 9, "frames_per_look": 12, "clip_s": 4.5, "wall_clock_s": 30,
            "temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_new_tokens": 100,
        }
    )  # fmt: skip
    config = settings.config
    assert settings.policy.describe() == {"how": "first"}
    assert (config.arm, config.passive_frames, config.seed, config.system_prompt) == ("passive", 8, 7, "Look closely.")
    assert (settings.concurrency, settings.trajectories, settings.resume) == (2, tmp_path, "never")
    assert (settings.decode_threads, settings.decoded_bytes) == (3, 2**29)
    assert (config.budget.max_turns, config.budget.frames_per_look, config.budget.clip_s, config.budget.wall_clock_s) == (9, 12, 4.5, 30.0)
    assert config.sampling == Sampling(temperature=0.7, top_p=0.9, top_k=20, max_new_tokens=100)


def test_words_and_numbers_give_the_same_configuration() -> None:
    """lmms-eval turns "0.5" into a number, `apr ask` does not; the config hash must not differ."""
    numbers: dict[str, Any] = {"temperature": 0.5, "top_k": 5, "max_turns": 3, "seed": 1, "clip_s": 4, "refuse_blind_answer": False}
    words = {key: str(value) for key, value in numbers.items()}
    one, other = (read_settings({"policy": "guess"} | given) for given in (numbers, words))
    assert one.config == other.config and one.config.hash(one.policy) == other.config.hash(other.policy)
    assert type(other.config.sampling.temperature) is float and type(other.config.sampling.top_k) is int


def test_a_profile_and_what_overrides_it() -> None:
    assert read_settings({"policy": "guess", "profile": "paper"}).config.budget == PROFILES["paper"]
    budget = read_settings({"policy": "guess", "profile": "paper", "max_turns": 22, "on_last_turn": "force"}).config.budget
    assert budget == PROFILES["paper"].model_copy(update={"max_turns": 22, "on_last_turn": "force"})


def test_none_lifts_a_limit() -> None:
    budget = read_settings({"policy": "guess", "visual_tokens_per_look": "None", "turns": "none"}).config.budget
    assert budget.visual_tokens_per_look is None and budget.turns is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "need policy=NAME; the policies are guess,"),
        ({"policy": "gess"}, "there is no policy 'gess' (did you mean 'guess'?); the policies are guess,"),
        ({"policy": "guess", "max_turn": 3}, "unknown model_arg 'max_turn' (did you mean 'max_turns'?)"),
        ({"policy": "guess", "temprature": 3}, "(did you mean 'temperature'?)"),
        ({"policy": "guess", "hwo": "first"}, "(did you mean 'how'?)"),
        ({"policy": "guess", "script": "x"}, "unknown model_arg 'script'"),
        ({"policy": "guess", "how": "last"}, "policy guess: how must be 'random' or 'first', not 'last'"),
        ({"policy": "scripted"}, "policy scripted: "),
        ({"policy": "scripted", "script": "/nowhere/x"}, "cannot read script /nowhere/x: No such file"),
        ({"policy": "guess", "concurrency": 0}, "concurrency must be a whole number of at least 1, not 0"),
        ({"policy": "guess", "concurrency": "many"}, "concurrency must be a whole number of at least 1, not 'many'"),
        ({"policy": "guess", "passive_frames": -1}, "passive_frames must be a whole number of at least 0, not -1"),
        ({"policy": "guess", "decode_threads": 0}, "decode_threads must be a whole number of at least 1, not 0"),
        ({"policy": "guess", "decoded_gib": "much"}, "decoded_gib must be a number above 0, not 'much'"),
        ({"policy": "guess", "seed": 1.5}, "seed must be a whole number"),
        ({"policy": "guess", "frames_per_look": -1}, "frames_per_look=-1: "),
        ({"policy": "guess", "max_turns": "none"}, "max_turns=None: "),
        ({"policy": "guess", "clip_s": "nan"}, "clip_s"),
        ({"policy": "guess", "on_last_turn": "maybe"}, "on_last_turn='maybe': "),
        ({"policy": "guess", "profile": "x"}, "there is no profile 'x'; the profiles are default, paper"),
        ({"policy": "guess", "arm": "both"}, "arm must be 'agent' or 'passive', not 'both'"),
        ({"policy": "guess", "resume": "maybe"}, "resume must be 'auto' or 'never', not 'maybe'"),
        ({"policy": "guess", "temperature": "abc"}, "temperature='abc': "),
        ({"policy": "guess", "temperature": -1}, "temperature must be at least 0, not -1"),
        ({"policy": "guess", "temperature": "nan"}, "temperature must be at least 0, not 'nan'"),
        ({"policy": "guess", "top_p": 7}, "top_p must be above 0 and at most 1, not 7"),
        ({"policy": "guess", "top_k": 0}, "top_k must be at least 1, or -1 for every token, not 0"),
        ({"policy": "guess", "max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"policy": "guess", "system_prompt": "/nowhere/p"}, "system_prompt: cannot read /nowhere/p: "),
    ],
)  # fmt: skip
def test_bad_values_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(AprError) as raised:
        read_settings(arguments)
    message = str(raised.value)
    assert words in message
    assert "\n" not in message


def test_how_files_are_read() -> None:
    media = read_settings({"policy": "guess", "frame_mode": "keyframe", "isolation": "always"}).config.media
    assert (media.mode, media.decoder, media.isolation) == ("keyframe", "pyav", "always")
    with pytest.raises(AprError, match=r"frame_mode='fast'.*'exact' or 'keyframe'"):
        read_settings({"policy": "guess", "frame_mode": "fast"})


def test_isolation_does_not_change_a_configuration() -> None:
    one, other = (read_settings({"policy": "guess", "isolation": kind}) for kind in ("never", "always"))
    assert one.config.hash(one.policy) == other.config.hash(other.policy)
    keyframe = read_settings({"policy": "guess", "frame_mode": "keyframe"})
    assert keyframe.config.hash(keyframe.policy) != one.config.hash(one.policy)
