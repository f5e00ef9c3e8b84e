"""`Notebook`: the persistent text of an episode, and the only place where a prompt is assembled.

Layout of a prompt, in this order:

1. system: the instructions, the same in every turn of an episode;
2. user: length, frame rate and sound of the video, then the question;
3. for each turn so far, assistant: the turn word for word; user: its placeholder or error. Only the last percept
   has media;
4. at the very end of the last user message, the notice of how many turns are left.

So everything up to the newest turn is a strict prefix of the next prompt, and prefix caches are used: the media comes
after the newest turn, and the notice, which changes every turn, comes after the media.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
import jinja2.meta
import numpy as np
from jinja2.sandbox import SandboxedEnvironment

from apr_plugin.files import read_regular
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import EVERY_MODALITY, Asked, ImagePart, Message, Modality, Part, Prompt, TextPart
from apr_plugin.loop.question import Option, Question, QuestionKind
from apr_plugin.loop.wires import WIRES, VideoMeta, Wire

MAX_TURN_CHARS = 20_000
"""A longer turn is cut in the prompt (4,096 tokens are about 16,000 characters); the trajectory keeps all of it."""

PASSIVE_INSTRUCTIONS = (
    "You answer a question about a video from the frames you are given. Reply with the answer alone, and nothing else."
)
"""System prompt of the passive arm."""


@dataclass(frozen=True)
class _Entry:
    text: str
    """The text that the policy wrote."""
    came_back: str
    """Placeholder or error."""


class Notebook:
    """The notes of one episode.

    Args:
        question: The question.
        videos: What is known about each video before the first look.
        budget: The limits that the instructions name.
        system_prompt: Custom instructions in place of the default ones, for a checkpoint trained with its own. If they
            don't say how the answer is written, the first user message does.
        modalities: What the policy can perceive; nothing else is offered.
        wire: How everything except the instructions is written.
        episode: Name of the episode in its prompts.
        template: Whether `system_prompt` is a template with the variables of the default instructions
            (`render_instructions`).
        passive_wire: Whether prompts of one turn are written by `wire`, too.
    """

    def __init__(
        self,
        question: Question,
        videos: Sequence[VideoMeta],
        budget: Budget,
        system_prompt: str | None = None,
        modalities: frozenset[Modality] = EVERY_MODALITY,
        wire: Wire = WIRES["apr"],
        episode: str = "",
        template: bool = False,
        passive_wire: bool = False,
    ) -> None:
        self.question = question
        self.videos = tuple(videos)
        self.modalities = modalities
        self.wire = wire
        self.episode = episode
        self.passive_wire = passive_wire
        self.system = system_prompt or ""
        if system_prompt is None or template:
            self.system = render_instructions(
                question, max(1, len(videos)), budget, modalities, instructions_of(system_prompt, wire), wire.references
            )
        told = (
            wire.tells_form
            or system_prompt is None
            or (template and "answer_form" in template_variables(system_prompt))
        )
        self._form = "" if told else f"\n{answer_form(question)}"
        self._entries: list[_Entry] = []
        self._latest: Percept | None = None

    def add(self, text: str, outcome: Percept | ActionError | None) -> None:
        """Add one turn: what the policy wrote, and what the environment returned."""
        self._entries.append(
            _Entry(text if len(text) <= MAX_TURN_CHARS else text[:MAX_TURN_CHARS] + " [cut]", self._as_text(outcome))
        )
        self._latest = outcome if isinstance(outcome, Percept) else None

    def forget_media(self) -> None:
        """Drop the media of the latest percept, after a generation has seen it."""
        self._latest = None

    def __len__(self) -> int:
        """Number of turns in the notebook."""
        return len(self._entries)

    def with_turn(self, text: str, outcome: Percept | ActionError | None) -> Notebook:
        """A copy with one more turn; this notebook does not change."""
        other = copy.copy(self)
        other._entries = self._entries.copy()
        other.add(text, outcome)
        return other

    def history(self, left_out: int = 0) -> tuple[Message, ...]:
        """Everything up to the newest turn, without media or notice: a strict prefix of every later prompt.

        Args:
            left_out: How many of the first turns are left out; the opening then says so.
        """
        opening = self.wire.opening(self.question, self.videos, self.modalities) + self._form
        if left_out:
            which = "turn 1" if left_out == 1 else f"turns 1 to {left_out}"
            opening += self.wire.left_out(which)
        messages = [Message("system", (TextPart(self.system),)), Message("user", (TextPart(opening),))]
        for number, entry in enumerate(self._entries[left_out:], left_out + 1):
            messages.append(Message("assistant", (TextPart(entry.text),)))
            if number < len(self._entries):
                messages.append(Message("user", (TextPart(entry.came_back),)))
        return tuple(messages)

    def prompt(self, turn: int, turns: int) -> Prompt:
        """The prompt of turn `turn` (counted from 1) of `turns`, with the media of the latest percept."""
        return Prompt(self._with_latest(self.wire.notice(turn, turns), media=True), turn >= turns, self._asked(turn))

    def forced_prompt(self, reason: str, left_out: int = 0) -> Prompt:
        """The last call for an answer, without media: the notes alone.

        Args:
            reason: Which limit was reached, in words.
            left_out: How many of the first turns are left out, if not all fit into the model's context.
        """
        messages = self._with_latest(self.wire.forced_notice(reason), media=False, left_out=left_out)
        return Prompt(messages, True, self._asked(len(self._entries) + 1))

    def passive_prompt(self, percepts: Sequence[Percept], pictures: Sequence[ImagePart] = ()) -> Prompt:
        """One prompt with everything the passive arm sees: frames or the question's pictures, and the question.

        It ends with the form of the answer. It has the default form with every wire, because a passive model is not an
        agent and was not trained on any of the wires. With `passive_wire` it is the agent's own form for a model that
        was trained to answer at once in it: instructions, question, everything that is shown, and the notice of a last
        turn.
        """
        if self.passive_wire:
            return self._at_once(percepts, pictures)
        own = WIRES["apr"]
        media = tuple(part for percept in percepts for part in (*own.parts(percept), TextPart("\n\n")))
        if pictures:
            media += (*pictures, TextPart("\n"))
        asked = TextPart(f"{own.opening(self.question, self.videos, self.modalities)}\n{answer_form(self.question)}")
        messages = (Message("system", (TextPart(PASSIVE_INSTRUCTIONS),)), Message("user", (*media, asked)))
        return Prompt(messages, True, self._asked(1))

    def _at_once(self, percepts: Sequence[Percept], pictures: Sequence[ImagePart]) -> Prompt:
        opening = self.wire.opening(self.question, self.videos, self.modalities) + self._form
        parts: list[Part] = [TextPart(opening)]
        for percept in percepts:
            parts += [TextPart("\n"), *self.wire.parts(percept)]
        parts += [TextPart("\n"), *pictures] if pictures else []
        parts.append(TextPart(self.wire.notice(1, 1)))
        messages = (Message("system", (TextPart(self.system),)), Message("user", tuple(parts)))
        return Prompt(messages, True, self._asked(1))

    def _asked(self, turn: int) -> Asked:
        return Asked(self.episode, turn, self.question, tuple(video.duration_s for video in self.videos))

    def _with_latest(self, notice: str, media: bool, left_out: int = 0) -> tuple[Message, ...]:
        history = self.history(left_out)
        if len(self._entries) <= left_out:
            return (history[0], Message("user", (*history[1].parts, TextPart(notice))))
        parts: tuple[Part, ...] = (TextPart(self._entries[-1].came_back),)
        if self._latest is not None and media:
            parts = self.wire.parts(self._latest)
        return (*history, Message("user", (*parts, TextPart(notice))))

    def _as_text(self, outcome: Percept | ActionError | None) -> str:
        match outcome:
            case Percept():
                return self.wire.placeholder(outcome)
            case ActionError():
                return self.wire.error(outcome)
            case None:
                return self.wire.noted


def answer_form(question: Question) -> str:
    """One sentence that says how the answer is written."""
    hint = f" ({question.answer_hint})" if question.answer_hint else ""
    match question.kind:
        case QuestionKind.MCQ:
            return (
                "The answer is the label of one option: "
                f"{', '.join(option.label for option in question.options)}{hint}."
            )
        case QuestionKind.GROUNDING:
            return (
                f"The answer is every matching time span in seconds, as text like [[12.5, 20.0], [33.0, 41.2]]{hint}."
            )
        case QuestionKind.NUMBER:
            return f"The answer is one number in digits{hint}."
        case QuestionKind.FREE_FORM:
            return f"The answer is a short text{hint}."


@cache
def own_instructions() -> str:
    """The template of the default instructions."""
    return resources.files("apr_plugin.loop").joinpath("instructions.jinja").read_text("utf-8")


def instructions_of(system_prompt: str | None, wire: Wire) -> str:
    """The instructions before they are rendered: custom ones, or those of the wire, or the default ones."""
    if system_prompt is not None:
        return system_prompt
    return own_instructions() if wire.instructions is None else wire.instructions


def _jinja() -> jinja2.Environment:
    return SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)  # a prompt is plain text, not HTML


@cache
def _template(source: str) -> jinja2.Template:
    return _jinja().from_string(source)


@cache
def template_variables(source: str) -> frozenset[str]:
    """The variables that a template uses."""
    return frozenset(jinja2.meta.find_undeclared_variables(_jinja().parse(source)))


def render_instructions(
    question: Question,
    videos: int,
    budget: Budget,
    modalities: frozenset[Modality] = EVERY_MODALITY,
    source: str | None = None,
    references: bool = False,
) -> str:
    """The system prompt of an episode.

    The variables of a template have the same names as these arguments, unless another one is given.

    Args:
        question: The question; only the form of its answer is used, as `answer_form`.
        videos: Number of its videos, as `videos`.
        budget: Its limits, as `budget`.
        modalities: What the policy perceives, as `frames`, `audio` and `clip`, each true or false.
        source: A template; the default one if it is missing.
        references: Whether shown frames have names, as `references`.
    """
    can = {name: name in modalities for name in EVERY_MODALITY}
    template = _template(own_instructions() if source is None else source)
    told = {"videos": videos, "budget": budget, "answer_form": answer_form(question), "references": references}
    return template.render(told | can).strip()


def load_system_prompt(path: str | Path) -> str:
    """Instructions from a file: used word for word, or as a template if its name ends with `.jinja`.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not text, or it is a template that can't be rendered; the message says why.
    """
    text = read_regular(Path(path).expanduser()).decode("utf-8")
    if is_template(path):
        try:
            render_instructions(Question(text="", kind=QuestionKind.FREE_FORM), 1, Budget(), source=text)
        except jinja2.TemplateError as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ValueError(
                f"it is not a valid template{line}: {error.message}; its variables are videos, budget, answer_form, "
                "references, frames, audio, clip"
            ) from error
    return text


def is_template(path: str | Path) -> bool:
    """Whether the instructions in this file are a template, which its name decides."""
    return str(path).endswith(".jinja")


@cache
def prompt_hash(
    system_prompt: str | None,
    modalities: frozenset[Modality] = EVERY_MODALITY,
    wire: Wire = WIRES["apr"],
    template: bool = False,
    passive_wire: bool = False,
) -> str:
    """16 hex digits that change if the words or the layout of prompts change: a hash over one prompt of each kind."""
    option = Option(label="A", text="one")
    seen: list[str] = []
    for kind in QuestionKind:
        question = Question(
            text="what?", kind=kind, options=(option,) if kind is QuestionKind.MCQ else (), answer_hint="hint"
        )
        for videos in (1, 2):
            notebook = Notebook(
                question,
                [VideoMeta(1.0, 1.0, True)] * videos,
                Budget(),
                system_prompt,
                modalities,
                wire,
                template=template,
                passive_wire=passive_wire,
            )
            look = Percept(
                "frames",
                0,
                0.0,
                1.0,
                images=np.zeros((2, 1, 1, 3), np.uint8),
                times_s=(0.0, 1.0),
                asked_s=(0.01, 1.01),
                several=videos > 1,
                look=1,
            )
            notebook.add("{}", look)
            seen += [notebook.prompt(2, 4).text, notebook.passive_prompt([look]).text]
            notebook.add("{}", ActionError(ErrorCode.OUT_OF_RANGE, "where."))
            seen += [notebook.prompt(4, 4).text, notebook.forced_prompt("why.").text]
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()[:16]
