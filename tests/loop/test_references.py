"""References: the parser of names, what they mean, and episodes in which a policy names frames in place of times."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from apr_testing import Playback, answer, look, turn
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.errors import AprError
from apr_plugin.loop import (
    ActionError,
    Answer,
    Budget,
    Card,
    Episode,
    EpisodeConfig,
    ErrorCode,
    GetFrames,
    MediaRef,
    Option,
    Question,
    QuestionKind,
    StopReason,
    Trajectory,
    parse_turn,
    replay,
)
from apr_plugin.loop.policy import PromptSize, Sampling
from apr_plugin.loop.references import FrameNames, NamedLook, Reference, read_reference
from apr_plugin.loop.wires import WIRES, wire_of
from apr_plugin.loop.wires.compact import fixed_strings
from apr_plugin.runs.settings import read_settings

Videos = dict[str, Path]
LOOKS = (
    NamedLook("frames", 0, (0.0, 2.5, 5.0)),
    NamedLook("audio", 0, (1.0, 3.0)),
    NamedLook("frames", 1, (7.25, 8.5)),
    NamedLook("clip", 0, (4.0, 6.0)),
)
GROUNDING = FrameNames(QuestionKind.GROUNDING, LOOKS, (60.0, 9.0))


@given(st.integers(1, 10**9 - 1), st.none() | st.integers(0, 10**9 - 1), st.text(" \n\t", max_size=3))
def test_what_a_reference_reads_like_is_read_as_it(frame: int, number: int | None, blank: str) -> None:
    reference = Reference(frame, number)
    assert read_reference(f"{blank}{reference}{blank}") == reference


@given(st.text(max_size=20) | st.text("#.0123456789 \"'-+eE٣", max_size=12))
def test_other_text_is_no_reference(text: str) -> None:
    found = read_reference(text)
    if found is not None:
        first, _, second = text.strip()[1:].partition(".")
        assert text.strip().isascii() and (second == "") == (found.look is None)
        assert [int(n) for n in (first, second) if n] == [n for n in (found.look, found.frame) if n is not None]


@given(
    st.lists(
        st.builds(
            NamedLook,
            st.sampled_from(["frames", "audio", "clip"]),
            st.integers(0, 1),
            st.lists(st.floats(0, 1e4), max_size=4).map(tuple),
        ),
        max_size=5,
    ),
    st.integers(0, 6),
    st.none() | st.integers(0, 7),
    st.none() | st.integers(0, 1),
)
def test_a_name_is_the_time_that_was_shown_or_an_error_with_the_name(
    looks: list[NamedLook], frame: int, number: int | None, video: int | None
) -> None:
    names = FrameNames(QuestionKind.GROUNDING, tuple(looks), (50.0, 70.0))
    text = str(Reference(frame, number))
    time_s = names.time(text, "'start'", video)
    newest = [n for n, each in enumerate(looks, 1) if each.kind == "frames" and video in (None, each.video)]
    which = number if number is not None else (newest or [-1])[-1]
    if which == 0 and frame in (1, 2):
        assert time_s == (0.0 if frame == 1 else (50.0, 70.0)[video or 0])
    elif (
        1 <= which <= len(looks)
        and 1 <= frame <= len(looks[which - 1].times_s)
        and video
        in (
            None,
            looks[which - 1].video,
        )
    ):
        assert time_s == looks[which - 1].times_s[frame - 1]
    else:
        assert isinstance(time_s, ActionError) and time_s.code is ErrorCode.UNKNOWN_FRAME
        assert f"names {text}, which was never shown" in time_s.message


@given(st.text(max_size=60) | st.text("#.0123456789[], \"'-<think>/", max_size=40), st.sampled_from(QuestionKind))
def test_reading_an_answer_never_raises(content: str, kind: QuestionKind) -> None:
    read = FrameNames(kind, LOOKS, (60.0, 9.0)).in_answer(content)
    assert isinstance(read, str | ActionError)
    if "#" not in content or kind in (QuestionKind.MCQ, QuestionKind.FREE_FORM):
        assert read == content


@pytest.mark.parametrize(
    ("name", "video", "words"),
    [
        ("#4", 0, "look 1 has the frames #1.1 to #1.3"),
        ("#0", 0, "look 1 has the frames #1.1 to #1.3"),
        ("#9.1", 0, "only looks 1 to 4 were shown"),
        ("#2.3", 0, "look 2 has the sound's edges #2.1 to #2.2"),
        ("#3.1", 0, 'look 3 is of video 1, and the action of video 0; add "video": 1'),
        ("#1.1", 1, "look 1 is of video 0, and the action of video 1"),
        ("#0.3", 0, "only looks 1 to 4"),
    ],
)
def test_the_error_says_what_can_be_named(name: str, video: int, words: str) -> None:
    read = parse_turn(look(name, "#1", video=video), names=GROUNDING)  # type: ignore[arg-type]
    assert read.error is not None and read.error.code is ErrorCode.UNKNOWN_FRAME and words in read.error.message
    assert read.error.message.startswith("'start' names") and read.observation == "seen"


def test_before_any_look_there_is_no_name() -> None:
    for names, words in (
        (FrameNames(QuestionKind.GROUNDING), "no frames have been shown yet"),
        (FrameNames(QuestionKind.GROUNDING, LOOKS[1:2]), "no frames have been shown yet"),
        (FrameNames(QuestionKind.GROUNDING, LOOKS[:1]), "no frames of video 1 have been shown yet"),
    ):
        error = parse_turn(look("#1", 3, video=1), names=names).error  # type: ignore[arg-type]
        assert error is not None and words in error.message


@pytest.mark.parametrize(
    ("start", "end", "video", "times"),
    [
        ("#1", "#3", 0, (0.0, 5.0)),
        (" #2 ", 9, 0, (2.5, 9.0)),
        ("#2.1", "#4.2", 0, (1.0, 6.0)),
        ("#1", "#2", 1, (7.25, 8.5)),
        ("#0.1", "#0.2", 1, (0.0, 9.0)),
        ("1.5", "#1.2", 0, (1.5, 2.5)),
    ],
)
def test_names_in_a_window(start: Any, end: Any, video: int, times: tuple[float, float]) -> None:
    read = parse_turn(look(start, end, 4, video=video), names=GROUNDING)
    assert read.action == GetFrames(start=times[0], end=times[1], num=4, video=video)
    written = {key: value.strip() for key, value in (("start", start), ("end", end)) if "#" in str(value)}
    assert read.named is not None and read.named.model_dump(exclude_none=True) == written
    assert not any("#" in note for note in read.repairs)


@pytest.mark.parametrize("text", ["#", "#x", "#1.", "#1.2.3", "#-1", "#1s", "# 1", "#" + "1" * 10, "#٣"])
def test_what_only_begins_like_a_name_is_told_the_form(text: str) -> None:
    error = parse_turn(look(text, 9), names=GROUNDING).error  # type: ignore[arg-type]
    assert error is not None and error.code is ErrorCode.WRONG_TYPE and "such as #4 or #2.4" in error.message


def test_without_references_a_name_is_no_number() -> None:
    error = parse_turn(look("#1", "#2")).error  # type: ignore[arg-type]
    assert (
        error is not None
        and error.code is ErrorCode.WRONG_TYPE
        and error.message == ("'start' must be a number, not '#1'.")
    )
    assert parse_turn(answer('[["#1", "#2"]]')).action == Answer(content='[["#1", "#2"]]')


@pytest.mark.parametrize(
    ("kind", "content", "read"),
    [
        ("grounding", '[["#1", "#2"]]', "[[7.250, 8.500]]"),
        ("grounding", "[[#1.1, #1.2], ['#4.1', 5.5]]", "[[0.000, 2.500], [4.000, 5.5]]"),
        ("grounding", "#1.1-#1.2", "0.000-2.500"),
        ("grounding", "<think>#99</think>[[#1.1,#1.2]]", "[[0.000,2.500]]"),
        ("grounding", "[[1, 2]]", "[[1, 2]]"),
        ("grounding", "the #tag of a&#39;b [[1, 2]]", "the #tag of a&#39;b [[1, 2]]"),
        ("number", "#1.2", "2.500"),
        ("number", '"#1"', "7.250"),
        ("number", "shirt #1", "shirt #1"),
        ("mcq", "#1", "#1"),
        ("free_form", "#1", "#1"),
    ],
)
def test_names_in_an_answer(kind: str, content: str, read: str) -> None:
    names = FrameNames(QuestionKind(kind), LOOKS, (60.0, 9.0))
    parsed = parse_turn(answer(content), names=names)
    assert parsed.action == Answer(content=read)
    assert (parsed.named is None) == (content == read) and (parsed.named is None or parsed.named.content == content)


def ask(*paths: Path, kind: str = "grounding") -> Question:
    options = (Option(label="A", text="red star"), Option(label="B", text="teal ring")) if kind == "mcq" else ()
    refs = tuple(MediaRef(path=str(path)) for path in paths)
    return Question(text="when?", kind=kind, videos=refs, options=options, task="t", doc_id="7")  # type: ignore[arg-type]


def play(question: Question, texts: list[str], **more: Any) -> tuple[Trajectory, Card]:
    policy = more.pop("policy", None) or Playback(texts)
    config = EpisodeConfig(wire=more.pop("wire", "compact"), budget=more.pop("budget", Budget(turns=9)), **more)
    done = asyncio.run(Episode(question, policy, config).run())
    assert done.stop_reason is not StopReason.ERROR, done.stop_detail
    return Trajectory.from_json(done.to_json()), Card.of(config, policy)


def test_an_episode_in_which_no_time_is_written(shared_videos: Videos) -> None:
    """The whole video, then closer twice, sound, an unknown name, an answer: the record has times and names."""
    texts = [
        look("#0.1", "#0.2", 7),  # type: ignore[arg-type]
        turn({"type": "get_audio", "start": "#2", "end": "#3"}),
        look("#3", "#5", 5),  # type: ignore[arg-type]
        look("#9", "#5", 5),  # type: ignore[arg-type]
        look("#2.1", "#1.4", 3),  # type: ignore[arg-type]
        answer('[["#2", "#3.4"]]'),
    ]
    done, card = play(ask(shared_videos["sound"]), texts)
    shown = [each.shown for each in done.turns]
    assert [each.look for each in shown if each] == [1, 2, 3, 4]
    first, third = shown[0], shown[2]
    assert first is not None and third is not None
    assert done.turns[1].action.start == first.times_s[1] == shown[1].start_s  # type: ignore[union-attr]
    assert (third.start_s, third.end_s) == (first.times_s[2], first.times_s[4])
    refused = done.turns[3].error
    assert refused is not None and refused.code is ErrorCode.UNKNOWN_FRAME and "#3.1 to #3.5" in refused.message
    fourth = shown[4]
    assert fourth is not None and (fourth.start_s, fourth.end_s) == (first.times_s[1], first.times_s[3])
    assert done.answer == json.dumps([[round(fourth.times_s[1], 3), round(third.times_s[3], 3)]]) and done.answer_valid
    assert [None if t.named is None else t.named.model_dump(exclude_none=True) for t in done.turns] == [
        {"start": "#0.1", "end": "#0.2"},
        {"start": "#2", "end": "#3"},
        {"start": "#3", "end": "#5"},
        None,
        {"start": "#2.1", "end": "#1.4"},
        {"content": '[["#2", "#3.4"]]'},
    ]
    prompts = [prompt for prompt, _ in replay(done, card)]
    assert "Look 4 frames" in prompts[-1].text and "\nLook 3 frames" in prompts[-1].text
    for number, each in enumerate(done.turns, 1):  # what is recorded is enough to read every turn again
        again = parse_turn(each.text, names=done.names_before(number))
        assert (again.action, again.error, again.named) == (each.action, each.error, each.named)
    written = [WIRES["compact"].written(each) for each in done.turns if each.action is not None]
    for text, each in zip(written, (t for t in done.turns if t.action is not None), strict=True):
        number = done.turns.index(each) + 1
        again = parse_turn(text, names=done.names_before(number))
        assert (again.action, again.named, again.repairs) == (each.action, each.named, ())


class Counted(Playback):
    """Counts a token for every four characters and for every visual token, and has a short context."""

    context_tokens = 600

    async def count(self, prompt: Any) -> PromptSize:
        text = sum(len(m.text) for m in prompt.messages) // 4
        images = [part.image for m in prompt.messages for part in m.parts if hasattr(part, "image")]
        return PromptSize(text=text, visual=sum(i.shape[0] * i.shape[1] // 784 for i in images), audio=0)


def test_only_frames_that_were_shown_have_names(shared_videos: Videos) -> None:
    """The context leaves room for some of the frames; a name beyond them is an error, not another frame."""
    texts = [look(0, 5, 60), look("#1", "#40", 3), look("#1", "#3", 3), answer("[[#1, #2]]")]  # type: ignore[arg-type]
    policy = Counted(texts)
    done, _ = play(ask(shared_videos["sound"]), texts, policy=policy, sampling=Sampling(max_new_tokens=256))
    shown = done.turns[0].shown
    assert shown is not None and shown.fitted and 3 <= len(shown.times_s) < 40
    error = done.turns[1].error
    assert error is not None and f"look 1 has the frames #1.1 to #1.{len(shown.times_s)}" in error.message
    again = done.turns[2].shown
    assert again is not None and again.look == 2 and again.end_s == shown.times_s[2]


def test_names_are_of_the_video_that_is_asked_about(shared_videos: Videos) -> None:
    texts = [
        look(0, 5, 3),
        look(1, 3, 3, video=1),
        look("#1", "#3", 4),
        look("#1", "#3", 4, video=1),
        look("#1.1", 9, video=1),
    ]  # type: ignore[arg-type]
    question = ask(shared_videos["sound"], shared_videos["silent"])
    done, _ = play(question, [*texts, answer("[[#1.1, #1.2]]")], wire="apr", frame_references=True)
    third, fourth = done.turns[2].shown, done.turns[3].shown
    assert third is not None and (third.start_s, third.end_s) == (0.0, done.turns[0].shown.times_s[2])  # type: ignore[union-attr]
    assert fourth is not None and fourth.video == 1 and fourth.start_s == done.turns[1].shown.times_s[0]  # type: ignore[union-attr]
    assert done.turns[4].error is not None and done.turns[4].error.code is ErrorCode.UNKNOWN_FRAME
    assert done.answer_valid


@pytest.mark.parametrize("text", [answer("[[#1, #1.2]]"), "[[#1, #1.2]]", "from #1 to #1.2"])
def test_a_forced_answer_may_name_frames(shared_videos: Videos, text: str) -> None:
    done, card = play(ask(shared_videos["sound"]), [look(0, 5, 6), "no JSON", text], budget=Budget(turns=2))
    shown = done.turns[0].shown
    assert done.stop_reason is StopReason.FORCED and shown is not None
    assert done.answer == json.dumps([[0.0, round(shown.times_s[1], 3)]]) and done.answer_valid
    assert done.turns[2].named is not None
    assert len(list(replay(done, card))) == 3
    wrong, _ = play(
        ask(shared_videos["sound"]), [look(0, 5, 6), "no JSON", text.replace("#1.2", "#7")], budget=Budget(turns=2)
    )
    assert not wrong.answer_valid and "#7, which was never shown" in wrong.stop_detail


@pytest.mark.parametrize("wire", ["compact", "apr", "omniagent"])
@pytest.mark.parametrize(("words", "label"), [("teal ring", "B"), ("Red star", "A"), ("B", "B")])
def test_an_option_may_be_answered_in_its_own_words(shared_videos: Videos, wire: str, words: str, label: str) -> None:
    for texts, turns in (([look(0, 5, 2), answer(words)], 3), ([look(0, 5, 2), "no JSON", words], 2)):
        done, _ = play(ask(shared_videos["sound"], kind="mcq"), texts, wire=wire, budget=Budget(turns=turns))
        assert (done.answer, done.answer_valid) == (label, True)


def test_a_line_without_names_is_read_and_wires_without_them_write_none(shared_videos: Videos) -> None:
    done, card = play(ask(shared_videos["sound"]), [look(0, 5, 3), look("#1", "#2"), answer("[[1, 2]]")], wire="apr")  # type: ignore[arg-type]
    assert done.turns[1].error is not None and done.turns[1].error.code is ErrorCode.WRONG_TYPE
    line = json.loads(done.to_json())
    for each in line["turns"]:
        del each["named"]
        if each["shown"]:
            del each["shown"]["look"]
    old = Trajectory.from_json(json.dumps(line))
    assert [prompt.text for prompt, _ in replay(old, card)] == [prompt.text for prompt, _ in replay(done, card)]


def settings(**given: Any) -> EpisodeConfig:
    return read_settings(given, Playback([answer("A")])).config


def test_the_settings() -> None:
    assert settings(wire="compact").form is WIRES["compact"] and settings(wire="compact").form.references
    assert settings(frame_references="true").form is wire_of("apr", True)
    plain = settings()
    assert plain == settings(frame_references="false", frame_times="true") and not plain.form.references
    hidden = settings(wire="compact", frame_times="false")
    assert hidden.form.references and not hidden.form.frame_times
    assert "frame_references" not in plain.describe(Playback([""]))
    assert hidden.describe(Playback([""]))["frame_times"] is False
    assert settings(wire="compact", system_prompt="none").system_prompt == ""
    for bad, words in (
        ({"frame_times": "false"}, "frame_times=false needs frame_references=true"),
        ({"wire": "compact", "parsing": "strict"}, "parsing=strict reads no names"),
        ({"profile": "omniagent", "frame_references": "true"}, "parsing=strict reads no names"),
        ({"frame_references": "perhaps"}, "frame_references"),
    ):
        with pytest.raises(AprError, match=words):
            settings(**bad)
    with pytest.raises(ValueError, match="strict parsing reads no names"):
        EpisodeConfig(wire="compact", parsing="strict")


def test_fixed_strings_are_what_the_wire_writes(shared_videos: Videos) -> None:
    """Everything in a prompt and a turn of the compact wire is a fixed string, a number, or words of others."""
    texts = [look("#0.1", "#0.2", 4), answer("[[1, 2]]")]  # type: ignore[arg-type]
    done, card = play(ask(shared_videos["sound"]), texts, budget=Budget(turns=4))
    *_, (prompt, _) = replay(done, card)
    written = [WIRES["compact"].written(each) for each in done.turns[:1]]
    rest = "".join(part.text if hasattr(part, "text") else "|" for part in prompt.messages[1].parts)
    rest += "".join(part.text if hasattr(part, "text") else "|" for part in prompt.messages[-1].parts) + written[0]
    for text in fixed_strings(8, 2):
        rest = rest.replace(text, "|")
    for words in ("when?", "seen", "so"):
        rest = rest.replace(words, "|")
    assert not set(rest) - set('0123456789. |\n"'), rest
