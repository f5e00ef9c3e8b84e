"""`Notebook`: the persistent text of an episode, and the one place where a prompt is assembled.

Layout of a prompt, in this order:

1. system: the instructions, the same in every turn of an episode;
2. user: length, frame rate and sound of the video, then the question;
3. for each turn so far, assistant: the turn word for word; user: its placeholder or error. Only the last percept carries media;
4. at the very end of the last user message, the notice of how many turns are left.

So everything up to the newest turn is a strict prefix of the next prompt, and prefix caches are hit: media sits behind the newest turn, and the
notice, which changes every turn, behind the media.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np

from apr_plugin.loop.budget import Budget
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import Message, Part, Prompt, TextPart
from apr_plugin.loop.question import Option, Question, QuestionKind

MAX_TURN_CHARS = 20_000
"""A longer turn (4,096 tokens are about 16,000 characters) is cut in the prompt; the trajectory keeps all of it."""

PASSIVE_INSTRUCTIONS = "You answer a question about a video from the frames you are given. Reply with the answer alone, and nothing else."
"""System prompt of the passive arm."""


@dataclass(frozen=True)
class VideoMeta:
    """What a policy is told about a video before it looks."""

    duration_s: float
    fps: float | None
    has_audio: bool


@dataclass(frozen=True)
class _Entry:
    text: str
    outcome: Percept | ActionError | None


class Notebook:
    """The notes of one episode.

    Args:
        question: What is asked.
        videos: What is known of each video beforehand.
        budget: Limits that the instructions name.
        system_prompt: Instructions to use instead of ours, for a checkpoint trained with its own.
    """

    def __init__(self, question: Question, videos: Sequence[VideoMeta], budget: Budget, system_prompt: str | None = None) -> None:
        self.question, self.videos = question, tuple(videos)
        self.system = system_prompt if system_prompt is not None else render_instructions(question, max(1, len(videos)), budget)
        self._entries: list[_Entry] = []

    def add(self, text: str, outcome: Percept | ActionError | None) -> None:
        """Note one turn: what the policy wrote, and what came back."""
        self._entries.append(_Entry(text if len(text) <= MAX_TURN_CHARS else text[:MAX_TURN_CHARS] + " [cut]", outcome))

    def history(self) -> tuple[Message, ...]:
        """Everything up to the newest turn, without media or notice: a strict prefix of every later prompt."""
        messages = [Message("system", (TextPart(self.system),)), Message("user", (TextPart(self._opening()),))]
        for number, entry in enumerate(self._entries):
            messages.append(Message("assistant", (TextPart(entry.text),)))
            if number + 1 < len(self._entries):
                messages.append(Message("user", (TextPart(_as_text(entry.outcome)),)))
        return tuple(messages)

    def prompt(self, turn: int, turns: int) -> Prompt:
        """The prompt of turn `turn` (counted from 1) of `turns`, with the media of the latest percept."""
        final = turn >= turns
        left = turns - turn
        notice = f"\n[NOTICE] Step {turn}/{turns}. {left} step{'' if left == 1 else 's'} remaining."
        if final:
            notice = f"\n[NOTICE] Step {turn}/{turns}. FINAL STEP: only an answer counts now. Give the best answer that your notes allow."
        return Prompt(self._with_latest(notice, media=True), final)

    def forced_prompt(self, reason: str) -> Prompt:
        """The last call for an answer, without media: the notes alone.

        Args:
            reason: Which limit was reached, in words.
        """
        notice = f"\n[NOTICE] {reason} Nothing more can be looked at. Reply with one JSON object whose action is the answer, from your notes."
        return Prompt(self._with_latest(notice, media=False), final=True)

    def passive_prompt(self, percepts: Sequence[Percept]) -> Prompt:
        """One prompt with everything the passive arm sees: the frames, the question, the answer's form."""
        media = tuple(part for percept in percepts for part in (*percept.parts(), TextPart("\n\n")))
        asked = TextPart(f"{self._opening()}\n{answer_form(self.question)}")
        return Prompt((Message("system", (TextPart(PASSIVE_INSTRUCTIONS),)), Message("user", (*media, asked))), final=True)

    def _with_latest(self, notice: str, media: bool) -> tuple[Message, ...]:
        history = self.history()
        if not self._entries:
            return (history[0], Message("user", (*history[1].parts, TextPart(notice))))
        latest = self._entries[-1].outcome
        parts: tuple[Part, ...] = latest.parts() if isinstance(latest, Percept) and media else (TextPart(_as_text(latest)),)
        return (*history, Message("user", (*parts, TextPart(notice))))

    def _opening(self) -> str:
        blocks = []
        for number, video in enumerate(self.videos):
            name = "Video META:" if len(self.videos) == 1 else f"Video {number} META:"
            fps = f"{video.fps:.2f}" if video.fps else "unknown"
            blocks.append(
                f"{name}\n- duration_seconds: {int(video.duration_s * 100) / 100:.2f}\n- fps: {fps}\n- has_audio: {str(video.has_audio).lower()}"
            )
        lines = [f"Question: {self.question.text}"]
        if self.question.options:
            lines.append("Options:")
            lines += [f"{option.label}. {option.text}" for option in self.question.options]
        blocks.append("\n".join(lines))
        return "\n\n".join(blocks)


def _as_text(outcome: Percept | ActionError | None) -> str:
    match outcome:
        case Percept():
            return outcome.placeholder()
        case ActionError():
            return outcome.feedback()
        case None:
            return "[NOTICE] The turn was noted."


def answer_form(question: Question) -> str:
    """One sentence that says how the answer is written."""
    hint = f" ({question.answer_hint})" if question.answer_hint else ""
    match question.kind:
        case QuestionKind.MCQ:
            return f"The answer is the label of one option: {', '.join(option.label for option in question.options)}{hint}."
        case QuestionKind.GROUNDING:
            return f"The answer is every matching time span in seconds, as text like [[12.5, 20.0], [33.0, 41.2]]{hint}."
        case QuestionKind.NUMBER:
            return f"The answer is one number in digits{hint}."
        case QuestionKind.FREE_FORM:
            return f"The answer is a short text{hint}."


@cache
def _template() -> jinja2.Template:
    source = resources.files("apr_plugin.loop").joinpath("instructions.jinja").read_text("utf-8")
    return jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(source)  # a prompt is text, not HTML


def render_instructions(question: Question, videos: int, budget: Budget) -> str:
    """The system prompt of an episode."""
    return _template().render(videos=videos, budget=budget, answer_form=answer_form(question)).strip()


def load_system_prompt(path: str | Path) -> str:
    """Instructions from a file, used word for word.

    Raises:
        OSError: the file can't be read.
    """
    return Path(path).expanduser().read_text("utf-8").strip()


@cache
def prompt_hash(system_prompt: str | None) -> str:
    """16 hex digits that change when the words or the layout of prompts do: a hash over one prompt of each sort."""
    option = Option(label="A", text="one")
    seen: list[str] = []
    for kind in QuestionKind:
        question = Question(text="what?", kind=kind, options=(option,) if kind is QuestionKind.MCQ else (), answer_hint="hint")
        for videos in (1, 2):
            notebook = Notebook(question, [VideoMeta(1.0, 1.0, True)] * videos, Budget(), system_prompt)
            look = Percept("frames", 0, 0.0, 1.0, images=np.zeros((2, 1, 1, 3), np.uint8), times_s=(0.0, 1.0), several=videos > 1)
            notebook.add("{}", look)
            seen += [notebook.prompt(2, 4).text, notebook.passive_prompt([look]).text]
            notebook.add("{}", ActionError(ErrorCode.OUT_OF_RANGE, "where."))
            seen += [notebook.prompt(4, 4).text, notebook.forced_prompt("why.").text]
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()[:16]
