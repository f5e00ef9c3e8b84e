"""Subtitles: three forms of files, the words of a look, and looks that show those of their own times alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from apr_testing import Playback, answer, look, turn

from apr_plugin.loop.card import Card
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.episode import Episode
from apr_plugin.loop.question import MediaRef, Question, QuestionKind, SubtitlesRef
from apr_plugin.loop.replay import replay
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.media import MediaOpenError
from apr_plugin.media.subtitles import LONGEST, Cue, at_times, in_words, read_cues, within

SRT = """\ufeff1\r
00:00:01,000 --> 00:00:02,000 X1:40\r
Hello <i>there</i>\r
again\r
\r
2\r
00:01:02,500 --> 01:00:00,000\r
{\\an8}the end\r
"""
VTT = "WEBVTT\n\nNOTE\n\n00:01.000 --> 00:02.000\nHello there again\n\n01:02.500 --> 01:00:00.000\nthe end\n"
LINES = [
    {"start": "00:00:01.000", "end": "00:00:02.000", "line": "Hello there again"},
    {"start": "00:01:02.500", "end": "01:00:00.000", "line": "the end"},
]
STAMPS = [{"timestamp": [1.0, 2.0], "text": "Hello there again"}, {"timestamp": [62.5, 3600.0], "text": "the end"}]
JSONL = "\n".join(
    json.dumps({"start_time": start, "end_time": end, "text": text})
    for start, end, text in ((1.0, 2.0, "Hello there again"), (62.5, 3600.0, "the end"))
)
CUES = (Cue(1.0, 2.0, "Hello there again"), Cue(62.5, 3600.0, "the end"))


@pytest.mark.parametrize("text", [SRT, VTT, json.dumps(LINES), json.dumps(STAMPS), JSONL])
def test_every_form_gives_the_same_cues(text: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text(text, newline="")
    assert read_cues(str(path)) == CUES
    assert read_cues(str(path), from_s=60.0) == (Cue(2.5, 3540.0, "the end"),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no times here",
        b"[]",
        b"{}",
        b'[{}, 7, {"start": "x", "end": 1, "line": 2}]',
        b"[[[[",
        b"\xff\xfe\x00",
        b"00:00:05,000 --> 00:00:01,000\nbackwards\n",
        b"1 --> 2",
    ],
)
def test_a_file_without_a_cue_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    with pytest.raises(MediaOpenError, match="subtitle"):
        read_cues(str(path))


@pytest.mark.parametrize("path", ["missing", ".", "nul\0"])
def test_a_file_that_cannot_be_read_is_an_error(path: str, tmp_path: Path) -> None:
    with pytest.raises(MediaOpenError, match="read subtitles"):
        read_cues(str(tmp_path / path))


def test_a_damaged_cue_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text(json.dumps([{"timestamp": [1.0, None], "text": "open end"}, {"timestamp": "x"}, *STAMPS]))
    assert [cue.text for cue in read_cues(str(path))] == ["Hello there again", "open end", "the end"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text(VTT)
    read_cues(str(path))
    path.write_text(VTT.replace("Hello", "Goodbye, all"))
    assert read_cues(str(path))[0].text.startswith("Goodbye")


def test_which_cues_a_look_has() -> None:
    assert at_times(CUES, [0.0, 1.5, 1.7, 2.0]) == [CUES[0]]
    assert within(CUES, 2.0, 62.5) == [] and within(CUES, 1.9, 62.6) == list(CUES)
    assert in_words([]) == ""
    assert in_words(CUES[:1], offset_s=0.5) == '(Subtitles: 0.50s-1.50s "Hello there again")'
    assert in_words([Cue(1.0, float("inf"), "x")]) == '(Subtitles: 1.00s- "x")'


def test_very_many_words_are_cut_and_counted() -> None:
    many = [Cue(float(at), at + 1.0, "word " * 50) for at in range(100)]
    words = in_words(many)
    assert len(words) < LONGEST + 200 and "more, which a shorter window would show" in words
    shown = words.count('s "')
    assert f"and {100 - shown} more" in words


@pytest.fixture
def talk(shared_videos: dict[str, Path], tmp_path: Path) -> MediaRef:
    """A video of 6 s whose subtitles begin 10 s earlier."""
    path = tmp_path / "talk.srt"
    path.write_text(
        "".join(f"{at}\n00:00:{10 + at:02d},000 --> 00:00:{11 + at:02d},000\nzeta {at}\n\n" for at in range(6))
    )
    return MediaRef(path=str(shared_videos["sound"]), subtitles=SubtitlesRef(path=str(path), from_s=10.0))


def _run(question: Question, *turns: str, **more: object) -> tuple[Trajectory, Playback, EpisodeConfig]:
    policy, config = Playback(turns), EpisodeConfig(**more)
    return asyncio.run(Episode(question, policy, config).run()), policy, config


def _question(video: MediaRef) -> Question:
    return Question(text="What is said?", kind=QuestionKind.FREE_FORM, videos=(video,))


def test_looks_show_the_subtitles_of_their_own_times_for_one_turn(talk: MediaRef) -> None:
    hear = turn({"type": "get_audio", "start": 1.5, "end": 2.5})
    watch = turn({"type": "get_clip", "start": 4.2, "end": 5.0})
    trajectory, policy, _ = _run(_question(talk), look(0, 3, 2), hear, watch, answer("words"))
    assert trajectory.stop_reason is StopReason.ANSWERED
    frames, sound, moving = (shown.remark for shown in trajectory.looks)
    assert frames == '(Subtitles: 0.00s-1.00s "zeta 0"; 3.00s-4.00s "zeta 3")'
    assert sound == '(Subtitles: 1.00s-2.00s "zeta 1"; 2.00s-3.00s "zeta 2")'
    assert moving == '(Subtitles: 4.00s-5.00s "zeta 4")'
    texts = [prompt.text for prompt in policy.prompts]
    assert "zeta" not in texts[0]
    assert "zeta 3" in texts[1] and "zeta 1" not in texts[1]
    assert "zeta 2" in texts[2] and "zeta 3" not in texts[2]
    assert "zeta 4" in texts[3] and "zeta 2" not in texts[3]


def test_prompts_with_subtitles_are_rebuilt_from_the_trajectory(talk: MediaRef, tmp_path: Path) -> None:
    """The file is not needed any more: its words are in the record of the look."""
    trajectory, policy, config = _run(_question(talk), look(0, 3, 2), answer("words"))
    kept = Trajectory.from_json(trajectory.to_json())
    assert kept.question == trajectory.question
    assert talk.subtitles is not None
    Path(talk.subtitles.path).unlink()
    rebuilt = [prompt.text for prompt, _ in replay(kept, Card.of(config, policy))]
    assert rebuilt == [prompt.text for prompt in policy.prompts]


@pytest.mark.parametrize(
    ("arm", "said"), [("passive", True), ("single_frame", True), ("shuffled", False), ("blind", False)]
)
def test_passive_arms_see_those_of_their_frames(talk: MediaRef, arm: str, said: bool) -> None:
    trajectory, policy, _ = _run(_question(talk), "words", arm=arm, passive_frames=3)
    (prompt,) = policy.prompts
    assert ("(Subtitles: " in prompt.text) is said
    if arm == "passive":
        assert trajectory.first_shown[0].remark == (
            '(Subtitles: 1.00s-2.00s "zeta 1"; 3.00s-4.00s "zeta 3"; 5.00s-6.00s "zeta 5")'
        )


def test_a_missing_file_ends_the_question_with_its_reason(talk: MediaRef) -> None:
    assert talk.subtitles is not None
    Path(talk.subtitles.path).unlink()
    trajectory, _, _ = _run(_question(talk), "words")
    assert trajectory.stop_reason is StopReason.MEDIA_UNREADABLE and "talk.srt" in trajectory.stop_detail


def test_a_question_with_subtitles_is_another_question(talk: MediaRef) -> None:
    """So a run with them never takes the answers of one without; without them, nothing changes."""
    bare = talk.model_copy(update={"subtitles": None})
    assert _question(talk).content_hash() != _question(bare).content_hash()
    assert _question(bare).content_hash() == _question(MediaRef(path=bare.path)).content_hash()
