"""A policy is offered, told about and shown only what it can perceive."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look, turn

from apr_plugin.loop import (
    Budget,
    Environment,
    Episode,
    EpisodeConfig,
    ErrorCode,
    GetClip,
    MediaRef,
    Percept,
    Question,
    StopReason,
    Trajectory,
)
from apr_plugin.loop.policy import ImagePart, Modality, VideoPart

Videos = dict[str, Path]


def play(path: Path, texts: list[str], *modalities: Modality, **config: Any) -> tuple[Trajectory, Playback]:
    policy = Playback(texts)
    policy.modalities = frozenset(modalities)
    question = Question(text="what?", kind="free_form", videos=(MediaRef(path=str(path)),))  # type: ignore[arg-type]
    return asyncio.run(Episode(question, policy, EpisodeConfig(budget=Budget(turns=6), **config)).run()), policy


AUDIO, CLIP = ({"type": kind, "start": 0, "end": 2} for kind in ("get_audio", "get_clip"))


def test_a_policy_without_ears(shared_videos: Videos) -> None:
    done, policy = play(shared_videos["sound"], [turn(AUDIO), turn(CLIP), answer("a pot")], "frames", "clip")
    first = policy.prompts[0].text
    assert "get_audio" not in first and "has_audio" not in first and "get_clip" in first
    error = done.turns[0].error
    assert error is not None and error.code == ErrorCode.UNKNOWN_ACTION
    assert (
        error.message == "there is no action 'get_audio'; the actions are get_frames, get_clip, answer."
        and error.message in policy.prompts[1].text
    )
    (part,) = [part for part in policy.prompts[2].messages[-1].parts if isinstance(part, VideoPart)]
    assert part.audio is None and len(part.frames) == 4
    assert done.turns[1].shown is not None and done.turns[1].shown.audio_s == 0.0
    assert done.answer == "a pot"


def test_a_policy_with_ears_alone(shared_videos: Videos) -> None:
    done, policy = play(shared_videos["ears"], [look(0, 1), turn(CLIP), turn(AUDIO), answer("a bang")], "audio")
    assert [t.error.code if t.error else None for t in done.turns] == [ErrorCode.UNKNOWN_ACTION] * 2 + [None, None]
    assert "get_frames" not in policy.prompts[0].text and done.answer == "a bang"


def test_sound_alone_is_nothing_to_a_policy_without_ears(shared_videos: Videos) -> None:
    done, _ = play(shared_videos["ears"], [look(0, 1), answer("a bang")], "frames")
    error = done.turns[0].error
    assert error is not None and error.code == ErrorCode.NO_PICTURE and "get_audio" not in error.message


def test_a_clip_without_ears_decodes_no_sound(shared_videos: Videos) -> None:
    packets = []
    for modalities in (frozenset[Modality]({"clip"}), frozenset[Modality]({"clip", "audio"})):
        with Environment(Budget(), modalities=modalities) as environment:
            environment.reset(
                Question(text="?", kind="free_form", videos=(MediaRef(path=str(shared_videos["sound"])),))
            )  # type: ignore[arg-type]
            seen = environment.step(GetClip(start=0, end=2))
            assert isinstance(seen, Percept) and (seen.waveform is None) == ("audio" not in modalities)
            packets.append(seen.packets)
    assert packets[0] < packets[1]


def test_the_passive_arm_of_a_blind_policy_says_so(shared_videos: Videos) -> None:
    done, policy = play(shared_videos["sound"], ["a pot"], "audio", arm="passive")
    assert (
        done.stop_reason is StopReason.ANSWERED
        and "takes in no pictures" in done.stop_detail
        and done.first_shown == ()
    )
    blind = asyncio.run(
        Episode(
            Question(text="?", kind="free_form"),
            policy,
            EpisodeConfig(),
            pictures=lambda pixels: pytest.fail("the pictures were read nevertheless"),
        ).run()  # type: ignore[arg-type]
    )
    assert "takes in no pictures" in blind.stop_detail
    assert not any(
        isinstance(part, ImagePart)
        for prompt in policy.prompts
        for message in prompt.messages
        for part in message.parts
    )


def test_what_a_policy_perceives_is_part_of_the_configuration() -> None:
    hashes = set()
    for modalities, tokens in (({"frames"}, None), ({"frames", "audio"}, None), ({"frames"}, 4096)):
        policy = Playback(["a pot"])
        policy.modalities, policy.context_tokens = frozenset(modalities), tokens  # type: ignore[arg-type]
        hashes.add(EpisodeConfig().hash(policy))
    assert len(hashes) == 3
