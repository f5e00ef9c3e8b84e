"""The page's pure parts: what is shown after each event, the ruler, the form; and that no text becomes markup."""

from __future__ import annotations

import dataclasses
import json
import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.agent import make_question
from apr_plugin.errors import AprError
from apr_plugin.harnesses.app import render, ruler
from apr_plugin.harnesses.app.about import DEFAULT_MODEL_ARGS, about_policy
from apr_plugin.harnesses.app.form import KINDS, Form, config_of, question_of
from apr_plugin.harnesses.app.guard import _names_file
from apr_plugin.harnesses.app.uploads import safe_name
from apr_plugin.harnesses.app.view import (
    Began,
    Ended,
    Looked,
    Opened,
    Refused,
    Saw,
    Ticked,
    View,
    Waiting,
    Wrote,
    after,
)
from apr_plugin.harnesses.app.watched import MOST_THUMBNAILS, chosen
from apr_plugin.loop import Budget, EpisodeConfig, Generation, MediaRef, Question
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.parse import parse_turn
from apr_plugin.loop.policy import Usage
from apr_plugin.loop.trajectory import Shown, StopReason, Timings, Trajectory, Turn
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.settings import read_settings

QUESTION = Question(text="what?", kind="free_form", videos=(MediaRef(path="film.mp4"),))


def shown(start: float, end: float, frames: int = 2, kind: str = "frames") -> Shown:
    times = tuple(start + (end - start) * n / max(1, frames - 1) for n in range(frames)) if kind != "audio" else ()
    return Shown(kind=kind, start_s=start, end_s=end, times_s=times, width=64, height=64, visual_tokens=4 * len(times))


def looked(number: int, text: str, seen: Shown | None = None, **more: Any) -> Looked:
    parsed = parse_turn(text)
    kept = {"observation": parsed.observation, "think": parsed.think, "action": parsed.action}
    return Looked(number, Turn(text=text, shown=seen, confidence=parsed.confidence, **kept, **more))


def wrote(number: int, text: str, **more: Any) -> Wrote:
    return Wrote(number, parse_turn(text), Generation(text, **more))


def ended(*turns: Turn, **more: Any) -> Ended:
    done = Trajectory(question=QUESTION, turns=turns, turns_allowed=6, timings=Timings(total_s=2.5), **more)
    return Ended(done, "name")


class Text(HTMLParser):
    """The elements, attributes and words of some HTML."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.words = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_turn_is_shown_as_it_happens() -> None:
    view = View(question=QUESTION)
    steps: list[tuple[Any, str]] = [
        (Waiting(2), "2 questions wait"),
        (Began(), "Looking"),
        (Opened((60.0,), 6), "of 6"),
        (wrote(1, look(0, 60, 2)), "get_frames 0.00s-60.00s x2"),
    ]
    for event, words in steps:
        view = after(view, event)
        pieces = render.pieces(view)
        assert words in pieces.status + pieces.turns
    assert "apr-result" not in render.pieces(view).turns and "No look yet" in render.pieces(view).ruler
    said = render.pieces(view).turns
    view = after(view, looked(1, look(0, 60, 2), shown(0, 60)))
    result = render.pieces(view).turns
    assert result.startswith(said) and "8 visual tokens" in result and "<img" not in result
    assert 'data-turn="1"' in render.pieces(view).ruler
    view = after(view, Saw(((0.0, "QUFB"), (60.0, "QkJC"))))
    pictures = render.pieces(view).turns
    assert pictures.startswith(result), "what is there does not change, so that an update sends only what is new"
    assert pictures.count("data:image/webp;base64,") == 2
    view = after(view, looked(2, answer("a cat")))
    last = view.cards[-1].turn
    assert last is not None and render.pieces(view).turns.startswith(pictures)
    view = after(view, ended(last, answer="a cat", answer_valid=True, stop_reason="answered"))
    assert view.stage == "ended" and view.seconds == 2.5
    assert "<b>a cat</b>" in render.pieces(view).ending and "apr/report/name" in render.pieces(view).ending


def test_the_cost_so_far_counts_what_is_known() -> None:
    view = after(View(question=QUESTION, budget=Budget(wall_clock_s=30, visual_tokens_per_episode=500)), Began())
    assert (view.cost.turns, view.cost.prompt_tokens) == (0, None)
    view = after(
        view, wrote(1, look(0, 9, 3), usage=Usage(prompt_tokens=10, completion_tokens=3), entropies=(0.5, 1.5))
    )
    assert (view.cost.turns, view.cost.prompt_tokens, view.cost.completion_tokens) == (1, 10, 3)
    view = after(view, looked(1, look(0, 9, 3), shown(0, 9, 3), usage=Usage(prompt_tokens=10, completion_tokens=3)))
    view = after(view, looked(2, turn({"type": "get_audio", "start": 0, "end": 4}), shown(0, 4, kind="audio")))
    view = after(view, Ticked(3.25))
    cost = view.cost
    assert (cost.turns, cost.looks, cost.frames, cost.visual_tokens) == (2, 2, 3, 12)
    assert (cost.prompt_tokens, cost.completion_tokens) == (10, 3), "the second turn gave no counts"
    words = Text(render.pieces(view).status).words
    assert "12 of 500" in words and "3.2 of 30" in words
    assert "entropy 1.00 nats" in Text(render.pieces(view).turns).words
    assert "entropy not given" in Text(render.pieces(view).turns).words


@pytest.mark.parametrize("reason", [reason for reason in StopReason if reason.failed])
def test_a_question_that_was_not_answered_says_why(reason: StopReason) -> None:
    view = after(View(question=QUESTION), ended(stop_reason=reason, stop_detail="the server is gone"))
    words = Text(render.pieces(view).ending).words
    assert "The question was not answered" in words and "the server is gone" in words


def test_a_refusal_and_a_turn_that_can_not_be_read_are_shown() -> None:
    assert "no such thing" in render.pieces(after(View(), Refused("no such thing"))).status
    error = ActionError(ErrorCode.MALFORMED_JSON, "there is no object")
    view = after(View(question=QUESTION), Looked(1, Turn(text="I would rather sing", error=error)))
    words = Text(render.pieces(view).turns).words
    assert "MALFORMED_JSON: there is no object" in words and "I would rather sing" in words


KNOWN_TAGS = {
    "div",
    "p",
    "b",
    "i",
    "h4",
    "span",
    "bdi",
    "dl",
    "dt",
    "dd",
    "figure",
    "figcaption",
    "img",
    "a",
    "details",
}
KNOWN_TAGS |= {"summary", "pre"}
KNOWN_ATTRIBUTES = {"class", "data-turn", "data-stage", "data-stop", "style", "title", "role", "aria-label", "alt"}
KNOWN_ATTRIBUTES |= {"src", "href", "target", "rel", "download"}
HOSTILE = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "<img src=x onerror=alert(1)>",
            "<script>alert(1)</script>",
            "[a](javascript:alert(1))",
            '"><svg onload=alert(1)>',
            "${alert(1)}",
            "{{constructor}}",
            "`${1}`",
            "</p></div><iframe src='//evil'>",
            "&lt;b&gt;",
            "\u202e\x1b[31m\ud800",
        ]
    ),
)


@given(st.lists(HOSTILE, min_size=9, max_size=9))
@settings(max_examples=120, deadline=None)
def test_no_text_becomes_markup(texts: list[str]) -> None:
    words, name, note, thought, detail, reply, remark, label, repair = texts
    question = make_question(f"{name}.mp4", words or "?", options=[f"X {label or 'o'}", "Y b"])
    error = ActionError(ErrorCode.OUT_OF_RANGE, detail)
    seen = shown(0, 5).model_copy(update={"remark": remark})
    turns = [
        Looked(1, Turn(text=reply, observation=note, think=thought, error=error, repairs=(repair,))),
        Looked(2, Turn(text=reply, observation=note, action=parse_turn(answer(reply)).action, shown=seen)),
    ]
    view = View(question=question)
    for event in (Began(), Opened((5.0,), 3), *turns, Saw(((0.0, "QUFB"),), (5, 50))):
        view = after(view, event)
    done = ended(stop_reason="answered", answer=reply, answer_valid=False, stop_detail=detail)
    trajectory = done.trajectory.model_copy(update={"question": question})
    view = after(view, dataclasses.replace(done, trajectory=trajectory))
    made = [*vars(render.pieces(view)).values(), render.message_html(words), render.title_html("t", label)]
    for markup in made:
        assert not set("{}$`") & set(markup), "Gradio would take these for a template"
        found = Text(markup)
        assert set(found.tags) <= KNOWN_TAGS | {"h1"} and found.attributes <= KNOWN_ATTRIBUTES
        assert all(link.startswith(("apr/", "data:image/webp;base64,")) for link in found.links)
    shown_words = Text(render.pieces(view).turns).words
    for said in (note, thought):
        assert render._said(said).strip() in shown_words
    player = Text(render.video_html(name, words, "apr/video/token"))
    assert player.tags == ["figure", "video", "figcaption", "bdi", "span"] and player.links == ["apr/video/token"]


def test_a_very_long_text_is_cut_and_says_so() -> None:
    view = after(View(question=QUESTION), looked(1, turn(None, observation="x" * 10_000)))
    assert "(6,000 more characters)" in render.pieces(view).turns


@given(
    st.floats(allow_nan=True, allow_infinity=True),
    st.lists(
        st.tuples(st.floats(0, 1e5), st.floats(0, 1e5), st.sampled_from(["frames", "audio", "clip"])), max_size=12
    ),
)
def test_every_look_is_on_the_ruler_and_none_covers_another(
    duration: float, windows: list[tuple[float, float, str]]
) -> None:
    looks = [(n, shown(min(a, b), max(a, b), 3, kind)) for n, (a, b, kind) in enumerate(windows, 1)]
    made = ruler.draw(duration, looks)
    bars = [bar for lane in made.lanes for bar in lane.bars]
    assert sorted(bar.turn for bar in bars) == [n for n, _ in looks]
    for lane in made.lanes:
        assert {bar.line for bar in lane.bars} == set(range(lane.lines))
        for bar in lane.bars:
            assert 0 <= bar.left <= 100 - ruler.LEAST_WIDTH and bar.width >= ruler.LEAST_WIDTH
            assert bar.left + bar.width <= 100 + 1e-6 and all(0 <= place <= 100 for place in bar.frames)
        for line in range(lane.lines):
            row = sorted((bar.left, bar.left + bar.width) for bar in lane.bars if bar.line == line)
            assert all(before[1] <= later[0] for before, later in pairwise(row))
    assert math.isfinite(made.duration_s) and 1 <= len(made.ticks) <= ruler.MOST_TICKS + 1
    assert all(0 <= place <= 100 + 1e-6 for place, _ in made.ticks)


def test_thumbnails_are_the_first_the_last_and_some_between() -> None:
    many = shown(0, 60, 60)
    assert list(chosen(shown(0, 5, 5), 5)) == [0, 1, 2, 3, 4]
    numbers = list(chosen(many, 60))
    assert len(numbers) == MOST_THUMBNAILS and numbers[0] == 0 and numbers[-1] == 59 and numbers == sorted(set(numbers))
    assert list(chosen(many, 59)) == [], "not the pictures of this look"


def test_the_form_is_a_question() -> None:
    film = MediaRef(path="film.mp4")
    asked = question_of(Form(" what \t is it? ", "A. red\n\n B. blue \n"), film, "7")
    assert (asked.text, asked.kind, asked.task, asked.doc_id) == ("what is it?", "mcq", "app", "7")
    assert [(option.label, option.text) for option in asked.options] == [("A", "red"), ("B", "blue")]
    assert question_of(Form("what?"), film, "7").kind == "free_form"
    assert question_of(Form("when?", kind="time spans"), film, "7").kind == "grounding"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (Form("  "), "write a question"),
        (Form(7), "must be text"),
        (Form("x" * 4001), "4,001 characters"),
        (Form("q", "\n".join("x" * 27)), "27 options"),
        (Form("q", "A. x\nA. y"), "same label"),
        (Form("q", kind="one of the options"), "needs options"),
        (Form("q", "a\nb", "a number"), "remove the options"),
        (Form("q", kind=["mcq"][0]), "must be one of"),
    ],
)
def test_a_form_that_can_not_be_asked_says_why(form: Form, said: str) -> None:
    with pytest.raises(AprError, match=said):
        question_of(form, MediaRef(path="film.mp4"), "7")


def test_a_visitor_can_only_lower_the_limits() -> None:
    config = EpisodeConfig(budget=Budget(max_turns=8, frames_per_look=16, wall_clock_s=50))
    lower = config_of(Form(turns=3, frames=4), config, 60.0).budget
    assert (lower.turns_for(1e9), lower.frames_per_look, lower.wall_clock_s) == (3, 4, 50)
    assert config_of(Form(), config, 20.0).budget.wall_clock_s == 20
    fixed = EpisodeConfig(budget=Budget(turns=5))
    assert config_of(Form(turns=2), fixed, None).budget.turns_for(9) == 2
    for turns in (0, 9, 2.5, math.nan, math.inf, "3", True, -1):
        with pytest.raises(AprError, match="from 1 to 8"):
            config_of(Form(turns=turns), config, None)
    with pytest.raises(AprError, match="from 1 to 5"):
        config_of(Form(turns=6), fixed, None)


@given(st.text(max_size=300))
def test_a_name_of_an_upload_is_one_plain_part_of_a_path(name: str) -> None:
    safe = safe_name(name)
    assert 0 < len(safe) <= 80 and Path(safe).name == safe and safe.isascii() and not safe.startswith((".", "-"))
    assert safe_name("../../etc/my film (1).MP4") == "my_film_1_.MP4"


@given(st.recursive(st.none() | st.text(max_size=5) | st.integers(), lambda inner: st.lists(inner, max_size=3)))
def test_a_request_that_names_a_file_is_found_at_any_depth(value: Any) -> None:
    assert not _names_file(json.dumps({"data": value}).encode())
    hidden = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    assert _names_file(json.dumps({"data": [value, [{"x": [hidden]}]]}).encode())


def test_the_default_policy_is_named_and_is_no_model() -> None:
    arguments = parse_model_args(DEFAULT_MODEL_ARGS)
    words = about_policy(read_settings(arguments).policy)
    assert str(arguments["policy"]) in words and "scripted policy, not a model" in words
    assert next(iter(KINDS.values())) is None
