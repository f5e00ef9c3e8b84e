"""`apr_profile.json`: read and written, refused with its name, and taken up by policies, commands and cards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin import Agent
from apr_plugin.cli.doctor import run_doctor
from apr_plugin.errors import AprError
from apr_plugin.loop import Budget, Card, EpisodeConfig, Sampling
from apr_plugin.loop.profile_file import PROFILE_FILE, ProfileError, ProfileFile, SampledBy, read_profile
from apr_plugin.models.profile import profile_of_arguments, profile_of_checkpoint
from apr_plugin.runs import settings as run_settings
from apr_plugin.runs.settings import check_arguments, read_settings

OWN = ProfileFile(
    wire="compact",
    frame_times=False,
    instructions="Look.",
    limits=Budget(turns=6, frame_pixels=56 * 56, frames_per_look=24),
    sampling=SampledBy(max_new_tokens=200, stop=("!",)),
)
PROFILES = st.builds(
    ProfileFile,
    wire=st.sampled_from(["apr", "omniagent", "compact"]),
    frame_references=st.none() | st.booleans(),
    instructions=st.none() | st.text(max_size=40),
    limits=st.builds(Budget, turns=st.none() | st.integers(1, 40), clip_fps=st.floats(0.5, 9)),
    sampling=st.builds(
        SampledBy,
        temperature=st.none() | st.floats(0, 2),
        top_k=st.sampled_from([None, -1, 5]),
        max_new_tokens=st.none() | st.integers(1, 900),
        stop=st.none() | st.lists(st.text(min_size=1, max_size=5), max_size=2).map(tuple),
    ),
)


@settings(max_examples=60, deadline=None)
@given(profile=PROFILES)
def test_what_is_written_is_read(profile: ProfileFile, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("profile")
    path = profile.write(folder)
    assert read_profile(path) == read_profile(folder) == profile and read_profile(path).digest == profile.digest
    assert [file.name for file in folder.iterdir()] == [PROFILE_FILE]
    config = read_settings({"profile": str(folder)}, Playback([answer("A")])).config
    assert config.budget == profile.limits and config.wire == profile.wire and config.profile == profile.digest
    assert config.system_prompt == profile.instructions
    if profile.sampling.max_new_tokens is not None:
        assert config.sampling.max_new_tokens == profile.sampling.max_new_tokens


HEAD = {"schema": "apr.profile", "version": 1}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (HEAD | {"wires": "apr"}, "wires: there is no such setting"),
        (HEAD | {"wire": "short"}, "wire: Input should be 'apr', 'omniagent' or 'compact', not \"short\""),
        (HEAD | {"limits": {"turns": 0}}, "limits.turns: .*greater than or equal to 1, not 0"),
        (HEAD | {"limits": {"turns": True}}, "limits.turns"),
        (HEAD | {"limits": {"frame_pixel": 9}}, "limits.frame_pixel: there is no such setting"),
        (HEAD | {"sampling": {"temperature": -1}}, "sampling.temperature"),
        (HEAD | {"sampling": {"temperature": "0.5"}}, "sampling.temperature"),
        (HEAD | {"sampling": {"top_k": 0}}, "top_k must be -1 or at least 1"),
        (HEAD | {"frame_times": False}, "frame_times=false needs frame_references=true"),
        (HEAD | {"wire": "compact", "parsing": "strict"}, "strict parsing reads no names"),
        (HEAD | {"instructions": "{{ what }}", "instructions_template": True}, "not a template that can be rendered"),
        (HEAD | {"instructions": "{{ ''.__class__ }}", "instructions_template": True}, "not a template that can be"),
        (HEAD | {"version": 2}, "version 2 is newer than 1"),
        ({"schema": "apr.profile"}, "has no version"),
        ({"schema": "apr.card", "version": 1}, "this is no profile"),
        ([], "this is no profile"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(data: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / PROFILE_FILE).write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=words) as caught:
        read_profile(tmp_path)
    assert str(tmp_path / PROFILE_FILE) in str(caught.value)
    with pytest.raises(AprError, match=words):
        check_arguments({"policy": "hf", "pretrained": str(tmp_path)})


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    for text in ("{", '{"a": NaN}', "[" * 100_000, "\x00"):
        (tmp_path / PROFILE_FILE).write_text(text)
        with pytest.raises(ProfileError, match="not JSON"):
            read_profile(tmp_path)
    (tmp_path / PROFILE_FILE).write_text(" " * 1_000_001)
    with pytest.raises(ProfileError, match="at most 1,000,000"):
        read_profile(tmp_path)
    with pytest.raises(ProfileError, match="cannot read the profile"):
        read_profile(tmp_path / "other.json")


def config_of(**given: Any) -> EpisodeConfig:
    """The configuration of a run of `policy=hf`, without loading the model."""
    _, _, found = run_settings._read({"policy": "hf"} | given)
    config: EpisodeConfig = found["config"]
    return config


def test_a_checkpoint_has_its_profile_and_arguments_win(tmp_path: Path) -> None:
    plain, own = tmp_path / "plain", tmp_path / "own"
    for folder in (plain, own):
        folder.mkdir()
    OWN.write(own)
    default, config = config_of(pretrained=str(plain)), config_of(pretrained=str(own))
    assert default == EpisodeConfig() and profile_of_checkpoint(str(plain), "hf") is None
    assert (config.wire, config.frame_times, config.system_prompt) == ("compact", False, "Look.")
    assert config.budget == OWN.limits and config.sampling == Sampling(max_new_tokens=200, stop=("!",))
    changed = config_of(
        pretrained=str(own), frame_times="true", system_prompt="default", turns=3, temperature=0.5, stop="none"
    )
    assert changed.form.frame_times and changed.system_prompt is None
    assert (changed.budget.turns, changed.budget.frame_pixels) == (3, 56 * 56)
    assert changed.sampling == Sampling(temperature=0.5, max_new_tokens=200)
    other = config_of(pretrained=str(own), wire="apr")
    assert (other.wire, other.form.references, other.form.frame_times) == ("apr", False, True)
    assert config_of(pretrained=str(own), profile="default") == EpisodeConfig()
    assert config_of(pretrained=str(own), profile="omniagent").wire == "omniagent"
    assert config_of(pretrained=str(own), profile="checkpoint") == config
    assert config_of(pretrained=str(plain), profile=str(own)) == config
    assert config_of(pretrained=str(plain), profile=str(own / PROFILE_FILE)) == config
    for bad, words in (
        ({"pretrained": str(plain), "profile": "checkpoint"}, "carries no apr_profile.json"),
        ({"pretrained": str(plain), "profile": "compat"}, "the profiles are default, omniagent, paper, checkpoint"),
        ({"pretrained": str(own), "parsing": "strict"}, "parsing=strict reads no names"),
    ):
        with pytest.raises(AprError, match=words):
            config_of(**bad)
    for name in ("x" * 5000, "a\0b"):
        assert profile_of_checkpoint(name + "/y", "hf", fetch=False) is None
    with pytest.raises(AprError, match="policies other than hf, vllm carries no"):
        read_settings({"policy": "guess", "profile": "checkpoint"})
    OWN.model_copy(update={"instructions": "Adapted."}).write(plain)
    adapted = profile_of_arguments("hf", {"pretrained": str(own), "adapter": str(plain)})
    assert adapted is not None and adapted.instructions == "Adapted."


def test_the_card_has_the_digest_and_the_hash_is_that_of_the_values(tmp_path: Path) -> None:
    OWN.write(tmp_path)
    policy = Playback([answer("A")])
    config = read_settings({"profile": str(tmp_path)}, policy).config
    said = EpisodeConfig(
        wire="compact",
        frame_times=False,
        system_prompt="Look.",
        budget=OWN.limits,
        sampling=Sampling(max_new_tokens=200, stop=("!",)),
    )
    assert config.profile == OWN.digest and said.profile == "" and config.hash(policy) == said.hash(policy)
    card = Card.of(config, policy)
    (tmp_path / "card.json").write_text(card.to_json())
    assert Card.read(tmp_path).config.profile == OWN.digest and Card.read(tmp_path).content_hash == card.config_hash


def test_commands_take_it_up(
    tiny: Callable[[str], Path], tmp_path: Path, shared_videos: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`Agent` (so `apr ask` too) with a real model, and `apr doctor`."""
    folder = Path(shutil.copytree(tiny("qwen2_5_omni_merge4"), tmp_path / "model"))
    OWN.model_copy(update={"limits": Budget(turns=1, frame_pixels=56 * 56)}).write(folder)
    with Agent("hf", pretrained=str(folder), device="cpu", max_new_tokens=4) as agent:
        done = agent.ask(str(shared_videos["sound"]), "What is it?")
    assert done.turns_allowed == 1 and done.budget is not None and done.budget.frame_pixels == 56 * 56
    assert agent.settings.config.wire == "compact" and agent.settings.config.sampling.max_new_tokens == 4
    assert run_doctor(True, str(folder)) == 0
    told = capsys.readouterr().out
    assert f"its {PROFILE_FILE} sets wire=compact, frame_times=false" in told
    assert run_doctor(True, str(tiny("qwen2_5_omni"))) == 0
    assert f"carries no {PROFILE_FILE}" in capsys.readouterr().out
    (folder / PROFILE_FILE).write_text("{}")
    with pytest.raises(AprError, match="this is no profile"):
        run_doctor(True, str(folder))


def test_ranges_are_those_of_the_arguments() -> None:
    """A value that an argument may have, a profile may have too, and no other."""
    for name in ("temperature", "top_p", "top_k", "max_new_tokens"):
        limits = run_settings._LIMITS[name]
        edges = [limits.least, limits.most, limits.most * 2, limits.least - 2, *limits.also]
        for edge in edges:
            value: Any = int(edge) if limits.whole else float(edge)
            try:
                SampledBy(**{name: value})
            except ValueError:
                assert not limits.hold(value), (name, value)
            else:
                assert limits.hold(value), (name, value)
