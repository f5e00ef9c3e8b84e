"""From `key=value` arguments to a policy and an episode configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.errors import AprError
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.policy import Sampling
from apr_plugin.loop.profiles import PROFILES
from apr_plugin.runs.arguments import check_once, parse_model_args
from apr_plugin.runs.settings import check_arguments, read_settings


def test_defaults() -> None:
    settings = read_settings({"policy": "guess"})
    assert settings.policy.name == "guess" and settings.concurrency == 4 and settings.resume == "auto"
    assert settings.trajectories == Path("apr_runs")
    assert (
        settings.config.arm == "agent" and settings.config.budget == Budget() and settings.config.sampling == Sampling()
    )


def test_every_group_of_arguments(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Look closely.")
    settings = read_settings(
        {
            "policy": "guess", "how": "first",
            "decode_threads": "3", "decoded_gib": 0.5,
            "arm": "passive", "parsing": "strict", "passive_frames": 8, "seed": 7, "concurrency": 2,
            "trajectories": str(tmp_path), "resume": "never",
            "system_prompt": str(prompt),
            "max_turns": 9, "frames_per_look": 12, "clip_s": 4.5, "wall_clock_s": 30,
            "temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_new_tokens": 100,
        }
    )  # fmt: skip
    config = settings.config
    assert settings.policy.describe() == {"how": "first"}
    assert (config.arm, config.passive_frames, config.seed, config.system_prompt) == ("passive", 8, 7, "Look closely.")
    assert config.parsing == "strict" and read_settings({"policy": "guess"}).config.parsing == "repair"
    assert (settings.concurrency, settings.trajectories, settings.resume) == (2, tmp_path, "never")
    assert (settings.decode_threads, settings.decoded_bytes) == (3, 2**29)
    assert (
        config.budget.max_turns,
        config.budget.frames_per_look,
        config.budget.clip_s,
        config.budget.wall_clock_s,
    ) == (9, 12, 4.5, 30.0)
    assert config.sampling == Sampling(temperature=0.7, top_p=0.9, top_k=20, max_new_tokens=100)


def test_words_and_numbers_give_the_same_configuration() -> None:
    """lmms-eval turns "0.5" into a number, `apr ask` does not; the config hash must not differ."""
    numbers: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 5,
        "max_turns": 3,
        "seed": 1,
        "clip_s": 4,
        "refuse_blind_answer": False,
    }
    words = {key: str(value) for key, value in numbers.items()}
    one, other = (read_settings({"policy": "guess"} | given) for given in (numbers, words))
    assert one.config == other.config and one.config.hash(one.policy) == other.config.hash(other.policy)
    assert type(other.config.sampling.temperature) is float and type(other.config.sampling.top_k) is int


def test_a_profile_and_what_overrides_it() -> None:
    config = read_settings({"policy": "guess", "profile": "paper"}).config
    assert config == read_settings({"policy": "guess", "profile": "omniagent"}).config
    assert (config.budget, config.wire, config.parsing) == (PROFILES["paper"].budget, "omniagent", "strict")
    published = Sampling(temperature=1.0, top_p=0.95, top_k=20, stop=("```",))
    assert config.sampling == published == read_settings({"policy": "guess", "wire": "omniagent"}).config.sampling
    budget = read_settings(
        {"policy": "guess", "profile": "paper", "max_turns": 22, "on_last_turn": "force"}
    ).config.budget
    assert budget == PROFILES["paper"].budget.model_copy(update={"max_turns": 22, "on_last_turn": "force"})
    own = read_settings(
        {"policy": "guess", "profile": "paper", "wire": "apr", "parsing": "repair", "top_k": 5, "stop": "END"}
    ).config
    assert (own.wire, own.parsing, own.sampling) == ("apr", "repair", Sampling(top_k=5, stop=("END",)))
    assert read_settings({"policy": "guess", "profile": "paper", "stop": "none"}).config.sampling.stop == ()
    passive = read_settings({"policy": "guess", "profile": "paper", "arm": "passive"}).config.sampling
    assert passive == Sampling(), "a passive model is no agent, and is asked greedily as passive models are"


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
        ({"policy": "guess", "how": "last"}, "policy guess: how must be random or first, not 'last'"),
        ({"policy": "guess", "parsing": "strickt"}, "model_arg parsing must be 'repair' or 'strict', not 'strickt'"),
        ({"policy": "scripted"}, "policy scripted: "),
        ({"policy": "scripted", "script": "/nowhere/x"}, "cannot read script /nowhere/x: No such file"),
        ({"policy": "guess", "concurrency": 0}, "concurrency=0: it must be a whole number from 1 to 10,000"),
        ({"policy": "guess", "concurrency": "many"}, "concurrency='many': it must be a whole number from 1"),
        ({"policy": "guess", "passive_frames": -1}, "passive_frames=-1: it must be a whole number from 0 to 100,000"),
        ({"policy": "guess", "decode_threads": 0}, "decode_threads=0: it must be a whole number from 1 to 1,024"),
        ({"policy": "guess", "decoded_gib": "much"}, "decoded_gib='much': it must be a number from 0.001 to 65,536"),
        ({"policy": "guess", "seed": 1.5}, "seed=1.5: it must be a whole number from 0"),
        ({"policy": "guess", "frames_per_look": -1}, "frames_per_look=-1: "),
        ({"policy": "guess", "max_turns": "none"}, "max_turns='none': it must be a whole number from 1 to 10,000"),
        ({"policy": "guess", "clip_s": "nan"}, "clip_s"),
        ({"policy": "guess", "on_last_turn": "maybe"}, "on_last_turn='maybe': "),
        ({"policy": "guess", "profile": "x"}, "there is no profile 'x'; the profiles are default, omniagent, paper"),
        ({"policy": "guess", "wire": "x"}, "there is no wire 'x'; the wires are apr, omniagent"),
        ({"policy": "guess", "arm": "both"}, "there is no arm 'both'; the arms are agent, passive, "
            "blind, single_frame, "
            "shuffled, oracle"),
        ({"policy": "guess", "resume": "maybe"}, "resume must be 'auto' or 'never', not 'maybe'"),
        ({"policy": "guess", "temperature": "abc"}, "temperature='abc': "),
        ({"policy": "guess", "temperature": -1}, "temperature=-1: it must be a number from 0 to 100"),
        ({"policy": "guess", "temperature": "nan"}, "temperature='nan': it must be a number from 0 to 100"),
        ({"policy": "guess", "top_p": 7}, "top_p=7: it must be a number above 0 and at most 1"),
        ({"policy": "guess", "top_k": 0}, "top_k=0: it must be a whole number from 1 to 10,000,000, "
            "or -1 for every token"),
        ({"policy": "guess", "max_new_tokens": 0}, "max_new_tokens=0: it must be a whole number from 1 to 1,048,576"),
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


_NUMERIC = (int, float, int | None, float | None)
NUMBERS = [name for name, field in Budget.model_fields.items() if field.annotation in _NUMERIC]
NUMBERS += [
    "passive_frames",
    "seed",
    "concurrency",
    "decode_threads",
    "decoded_gib",
    "temperature",
    "top_p",
    "top_k",
    "max_new_tokens",
]


@pytest.mark.parametrize(
    "value",
    ["nan", "inf", "-inf", "-5", "1e300", "99999999999999999999999", "true", "x", "0x10", "1 2", "\u0663\u0664x"],
)
@pytest.mark.parametrize("key", NUMBERS)
def test_what_is_no_number_of_sane_size_is_refused(key: str, value: str) -> None:
    """A value as it is typed, and as lmms-eval passes it."""
    for read in (value, parse_model_args(f"{key}={value}")[key]):
        with pytest.raises(AprError) as raised:
            check_arguments({"policy": "guess", key: read})
        message = str(raised.value)
        assert message.startswith(f"model_arg {key}=") and ": it must be a " in message and "\n" not in message


@given(st.sampled_from(NUMBERS), st.one_of(st.integers(), st.floats(), st.booleans(), st.text()))
def test_no_value_gets_past_as_something_else(key: str, value: Any) -> None:
    """Every value that is given for a number is read as that number, or named in an error."""
    try:
        settings = read_settings({"policy": "guess", key: value})
    except AprError as error:
        assert str(error).startswith(f"model_arg {key!r} is empty" if value == "" else "model_arg ")
        assert len(str(error)) < 600
        return
    config = settings.config
    for place in (config.budget, config.sampling, config, settings):
        # Each generation gets its own seed.
        if key in vars(place) and (place is not config.sampling or key != "seed"):
            assert vars(place)[key] == (None if str(value).lower() == "none" else pytest.approx(float(value)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_turns=2,min_turns=9", "min_turns=9 is above max_turns=2"),
        ("min_turns=33", "min_turns=33 is above max_turns=32"),
        ("audio_s=0.05", "min_audio_s=0.1 is above audio_s=0.05"),
        ("clip_s=0.01", "clip_s=0.01 is shorter than min_clip_frames=4 last"),
        ("frames_per_look=0", "frames_per_look=0: it must be a whole number from 1 to 100,000"),
        ("frame_pixels=1e9", "frame_pixels=1000000000: it must be a whole number from 3,136 to 67,108,864"),
        ("wall_clock_s=1e-9", "wall_clock_s=1e-09: it must be a number from 0.1 to 31,622,400, or none"),
        ("trajectories=", "'trajectories' is empty"),
        ("media_root=/nowhere", "media_root='/nowhere': no such folder"),
        ("media_root=/dev/null", "media_root='/dev/null': no such folder"),
        ("media_root=a\0b", "no such folder"),
        ("system_prompt=/dev/zero", "system_prompt: cannot read /dev/zero: it is a device, not a file"),
        ("seed=1,seed=2", "'seed' is given 2 times: '1' and '2'; give it only once"),
        ("policy=needle", "'policy' is given 2 times: 'guess' and 'needle'"),
        ('seed=1,seed={"a":1,"b":2}', "'seed' is given 2 times"),
        ("x" * 5000 + "=1", "unknown model_arg 'xxx"),
        ("profile=" + "x" * 5000, "there is no profile 'xxx"),
        ("max_turns=" + "9" * 5000, "max_turns='99"),
        ("on_last_turn=" + "x" * 5000, "on_last_turn='xxx"),
        ("x\x1b[31m=1", "unknown model_arg 'x\\x1b[31m'"),
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_contradictions_and_nonsense(text: str, words: str) -> None:
    with pytest.raises(AprError) as raised:
        check_arguments(parse_model_args(f"policy=guess,{text}"))
    assert words in str(raised.value) and len(str(raised.value)) < 1200 and "\n" not in str(raised.value)


def test_arguments_that_are_given_once() -> None:
    check_once('policy=openai,extra_body={"a":1,"policy":2},base_url=[http://a/v1?seed=1,http://b/v1],seed=1')
    # Below the default of min_turns: a limit.
    assert read_settings(parse_model_args("policy=guess,max_turns=2")).config.budget.turns_for(600) == 2


def test_decord_that_is_missing_or_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error comes at the start, not with every question."""
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(AprError, match="decord"):
        check_arguments({"policy": "guess", "decoder": "decord"})
    monkeypatch.delitem(sys.modules, "decord")
    (tmp_path / "decord.py").write_text("raise OSError('libav.so: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AprError, match=r"decoder=decord: decord is installed but can't be loaded: libav.so"):
        check_arguments({"policy": "guess", "decoder": "decord"})


def test_a_folder_for_all_media_decides_nothing_else(tmp_path: Path) -> None:
    one, other = read_settings({"policy": "guess"}), read_settings({"policy": "guess", "media_root": str(tmp_path)})
    assert other.config.media.root == str(tmp_path.resolve())
    assert one.config.hash(one.policy) == other.config.hash(other.policy)
