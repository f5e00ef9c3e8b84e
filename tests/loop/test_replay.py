"""Replay: from a trajectory that was read back from its file to every prompt that the policy saw, equal in text, pixels
and samples."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import answer, look, turn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_context import Counting

from apr_plugin.loop import (
    ARMS,
    PROFILES,
    WIRES,
    Budget,
    Card,
    CardError,
    Episode,
    EpisodeConfig,
    MediaRef,
    Option,
    Prompt,
    Question,
    ReplayError,
    Sampling,
    Trajectory,
    replay,
)
from apr_plugin.loop.policy import AudioPart, ImagePart, Part, TextPart, VideoPart
from apr_plugin.media import MediaSettings

Videos = dict[str, Path]


def same_part(one: Part, other: Part) -> bool:
    match one, other:
        case TextPart(), TextPart():
            return one == other
        case ImagePart(), ImagePart():
            return np.array_equal(one.image, other.image)
        case AudioPart(), AudioPart():
            return one.sample_rate == other.sample_rate and np.array_equal(one.waveform, other.waveform)
        case VideoPart(), VideoPart():
            timing = (one.times_s, one.fps, one.audio is None) == (other.times_s, other.fps, other.audio is None)
            sound = one.audio is None or (other.audio is not None and same_part(one.audio, other.audio))
            return timing and sound and np.array_equal(one.frames, other.frames)
    return False


def same(one: Prompt, other: Prompt) -> None:
    assert (one.text, one.final, one.asked) == (other.text, other.final, other.asked)
    assert [m.role for m in one.messages] == [m.role for m in other.messages]
    for mine, theirs in zip(one.messages, other.messages, strict=True):
        assert len(mine.parts) == len(theirs.parts) and all(map(same_part, mine.parts, theirs.parts))


def play(
    question: Question, texts: list[str], config: EpisodeConfig, context: int | None = None, **more: Any
) -> tuple[Trajectory, Card, list[Prompt]]:
    """The trajectory and its card, both read back from their files, and the prompts that the policy got."""
    policy, seen = Counting(texts, context), []
    done = asyncio.run(Episode(question, policy, config, on_prompt=lambda prompt, _: seen.append(prompt), **more).run())
    assert seen == policy.prompts
    return Trajectory.from_json(done.to_json()), Card.of(config, policy), seen


def check(done: Trajectory, card: Card, seen: list[Prompt]) -> None:
    replayed = list(replay(done, card))
    assert len(replayed) == len(seen)
    for (prompt, turn_), was, written in zip(replayed, seen, done.turns, strict=True):
        same(prompt, was)
        assert turn_ is written


def ask(*refs: MediaRef, kind: str = "free_form") -> Question:
    options = (Option(label="A", text="one"), Option(label="B", text="two")) if kind == "mcq" else ()
    return Question(text="what?", kind=kind, videos=refs, options=options, task="t", doc_id="7", answer_hint="in words")  # type: ignore[arg-type]


AUDIO, CLIP = (
    lambda a, b, kind=kind, **more: turn({"type": kind, "start": a, "end": b} | more)
    for kind in ("get_audio", "get_clip")
)
SECONDS = st.floats(0, 4)
TEXTS = st.one_of(
    st.builds(
        lambda a, b, n, v: look(min(a, b), max(a, b), n, video=v),
        SECONDS,
        SECONDS,
        st.integers(1, 24),
        st.integers(0, 1),
    ),
    st.builds(lambda a, b: AUDIO(min(a, b), max(a, b)), SECONDS, SECONDS),
    st.builds(lambda a, b: CLIP(min(a, b), max(a, b)), SECONDS, SECONDS),
    st.builds(
        lambda n: turn({"type": "get_frames", "start": 0, "end": 3, "num": 5}, observation="x" * n),
        st.integers(0, 2000),
    ),
    st.text(max_size=80),
    st.just(answer("A")),
    st.sampled_from([look("#1", "#2", 3), look("#0.1", "#1.2", 4), look("#1", "#0.2", 2, video=1), AUDIO("#1.1", 3)]),
)
BUDGETS = st.builds(
    Budget,
    turns=st.integers(1, 6),
    frame_pixels=st.sampled_from([4 * 784, 20 * 784, 448 * 448]),
    clip_fps=st.sampled_from([0.7, 2.0, 3.0]),
    visual_tokens_per_look=st.sampled_from([None, 40, 400]),
    on_last_turn=st.sampled_from(["force", "fail"]),
    min_clip_frames=st.just(1),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6),
    budget=BUDGETS,
    wire=st.sampled_from(sorted(WIRES)),
    context=st.sampled_from([None, 1800, 2600, 4000]),
    window=st.sampled_from([(None, None), (0.37, None), (1.234, 5.21)]),
    mode=st.sampled_from(["exact", "keyframe"]),
    arm=st.sampled_from(["agent", "agent", "agent", *ARMS]),
    parsing=st.sampled_from(["repair", "strict"]),
)
def test_every_prompt_comes_back(
    shared_videos: Videos,
    texts: list[str],
    budget: Budget,
    wire: Any,
    context: int | None,
    window: Any,
    mode: Any,
    arm: Any,
    parsing: Any,
) -> None:
    question = ask(
        MediaRef(path=str(shared_videos["sound"]), start_s=window[0], end_s=window[1]),
        MediaRef(path=str(shared_videos["silent"])),
        kind="mcq",
    )
    if arm == "agent" and WIRES[wire].references:
        parsing = "repair"  # strict parsing reads no names
    config = EpisodeConfig(
        arm=arm,
        passive_frames=5,
        budget=budget,
        wire=wire,
        parsing=parsing,
        media=MediaSettings(mode=mode),
        sampling=Sampling(max_new_tokens=300),
    )
    check(*play(question, texts, config, context, evidence=[(0.5, 1.0), (2.0, 2.5)]))


def test_one_of_each_look_with_the_published_settings(shared_videos: Videos) -> None:
    texts = [look(0, 5.9, 60), AUDIO(0.3, 3.3), CLIP(1, 5), "no JSON", look(0, 5.9, 60), answer("B")]
    profile = PROFILES["omniagent"]
    config = EpisodeConfig(budget=profile.budget.model_copy(update={"turns": 8}), wire="omniagent", parsing="strict")
    done, card, seen = play(ask(MediaRef(path=str(shared_videos["sound"])), kind="mcq"), texts, config)
    assert len(seen) == 6 and done.answer == "B"
    check(done, card, seen)


def test_a_forced_call_that_left_notes_out_comes_back(shared_videos: Videos) -> None:
    texts = [
        turn({"type": "get_frames", "start": n, "end": n + 0.5, "num": 1}, observation="word " * 60) for n in range(4)
    ]
    config = EpisodeConfig(budget=Budget(turns=4), sampling=Sampling(max_new_tokens=300), system_prompt="Look.")
    done, card, seen = play(ask(MediaRef(path=str(shared_videos["sound"]))), [*texts, answer("a pot")], config, 800)
    assert done.turns[-1].forced and done.turns[-1].left_out > 0 and done.turns[-1].forced_why
    check(done, card, seen)


def test_pictures_of_a_question_have_to_be_given(tmp_path: Path) -> None:
    pictures = [ImagePart(np.full((56, 56, 3), n, np.uint8)) for n in range(2)]
    done, card, seen = play(ask(), ["a pot"], EpisodeConfig(), pictures=lambda _: pictures)
    with pytest.raises(ReplayError, match="give them as pictures="):
        list(replay(done, card))
    ((prompt, _),) = replay(done, card, pictures=pictures)
    same(prompt, seen[0])


def test_what_has_changed_is_named(shared_videos: Videos, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    shutil.copy(shared_videos["sound"], path)
    question = ask(MediaRef(path=str(path)))
    done, card, seen = play(question, [look(0, 5, 3), answer("a pot")], EpisodeConfig())
    check(done, card, seen)

    def refused(words: str, trajectory: Trajectory = done, other: Card = card, **more: Any) -> None:
        with pytest.raises(ReplayError, match=words):
            list(replay(trajectory, other, **more))

    moved = tmp_path / "elsewhere" / "film.mp4"
    moved.parent.mkdir()
    shutil.move(path, moved)
    refused("no such file")
    assert len(list(replay(done, card, find=lambda _: moved))) == 2
    renamed = shutil.copy(moved, tmp_path / "other.mp4")
    refused("has another name", find=lambda _: renamed)
    shutil.copy(shared_videos["silent"], moved)
    refused("is another file now", find=lambda _: moved)
    shutil.copy(shared_videos["sound"], path)
    refused("with the configuration", other=card.model_copy(update={"config_hash": "0" * 16}))
    refused("words or lays out prompts differently", other=card.model_copy(update={"prompt_hash": "0" * 16}))
    older = done.model_copy(update={"versions": {"av": "1.0"}})
    refused("decoded with PyAV 1.0", older)
    assert len(list(replay(older, card, other_versions=True))) == 2
    shown = done.turns[0].shown
    assert shown is not None
    elsewhere = shown.model_copy(update={"file_s": (0.0, 2.51, 5.0)})
    refused(
        "now", done.model_copy(update={"turns": (done.turns[0].model_copy(update={"shown": elsewhere}), done.turns[1])})
    )


def test_a_line_of_version_1_loads_and_says_what_it_cannot_do(shared_videos: Videos) -> None:
    done, card, _ = play(
        ask(MediaRef(path=str(shared_videos["sound"]))), [look(0, 5, 3), answer("a pot")], EpisodeConfig()
    )
    data = json.loads(done.to_json())
    for key in ("videos", "budget"):
        del data[key]
    for item in data["turns"]:
        for key in ("forced_why", "left_out"):
            del item[key]
        for key in ("asked_s", "file_s", "sound_file_s", "fps", "untimed", "fitted"):
            (item["shown"] or {}).pop(key, None)
    old = Trajectory.from_json(json.dumps(data | {"version": 1}))
    assert old.answer == "a pot" and old.frames == 3 and old.budget is None
    with pytest.raises(ReplayError, match="version 1"):
        list(replay(old, card))


def test_a_card_comes_back_from_its_file_and_bad_ones_are_named(tmp_path: Path) -> None:
    config = EpisodeConfig(
        system_prompt="Look.", media=MediaSettings(mode="keyframe"), wire="omniagent", sampling=Sampling(stop=("```",))
    )
    card = Card.of(config, Counting([], 1000))
    (tmp_path / "card.json").write_text(card.to_json())
    assert Card.read(tmp_path) == card == Card.read(tmp_path / "card.json")
    assert card.prompts["instructions"] == "Look." and card.policy["context_tokens"] == 1000
    for text, words in (
        ("{", "cannot be read"),
        ("[]", "not an apr.card file"),
        ('{"schema": "apr.card", "version": 9}', "newer"),
        ('{"schema": "apr.card", "version": 1}', "config_hash"),
    ):
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(CardError, match=words):
            Card.read(tmp_path)
    (tmp_path / "card.json").unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CardError, match="an earlier release"):
        Card.read(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=5),
    wire=st.sampled_from(sorted(WIRES)),
    context=st.sampled_from([None, 1800, 2600]),
    chosen=st.sets(st.integers(1, 7)),
)
def test_chosen_turns_and_blank_media(
    shared_videos: Videos, texts: list[str], wire: Any, context: int | None, chosen: set[int]
) -> None:
    """Prompts of some turns equal those of all; blank ones have the same words and the same sizes."""
    question = ask(MediaRef(path=str(shared_videos["sound"]), start_s=0.37), kind="mcq")
    config = EpisodeConfig(wire=wire, budget=Budget(turns=5), sampling=Sampling(max_new_tokens=300))
    done, card, seen = play(question, texts, config, context)
    wanted = [number for number in sorted(chosen) if number <= len(seen)]
    some = list(replay(done, card, turns=chosen))
    assert len(some) == len(wanted)
    for number, (prompt, turn_) in zip(wanted, some, strict=True):
        same(prompt, seen[number - 1])
        assert turn_ is done.turns[number - 1]
    for (prompt, _), was in zip(replay(done, card, blank=True), seen, strict=True):
        assert prompt.text == was.text and [shape(prompt)] == [shape(was)]


def shape(prompt: Prompt) -> list[Any]:
    """The sizes of a prompt's media."""
    found: list[Any] = []
    for part in (part for message in prompt.messages for part in message.parts):
        match part:
            case ImagePart():
                found.append(part.image.shape)
            case AudioPart():
                found.append(part.waveform.shape)
            case VideoPart():
                sound = None if part.audio is None else part.audio.waveform.shape
                found.append((part.frames.shape, part.times_s, part.fps, sound))
    return found


def test_other_words_in_later_prompts(shared_videos: Videos) -> None:
    done, card, seen = play(
        ask(MediaRef(path=str(shared_videos["sound"]))),
        [f"```{look(0, 2, 2)}```", look(1, 2, 2), answer("a pot")],
        EpisodeConfig(),
    )
    changed = list(replay(done, card, words=lambda number, turn_: "short" if number == 1 else turn_.text))
    same(changed[0][0], seen[0])
    for (prompt, _), was in zip(changed[1:], seen[1:], strict=True):
        assert prompt.text == was.text.replace(done.turns[0].text, "short")
        assert shape(prompt) == shape(was)
