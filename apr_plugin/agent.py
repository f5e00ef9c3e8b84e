"""`Agent` and `ask`: ask one question about a video from a script, a notebook or an async program.

    from apr_plugin import Agent
    with Agent("hf", pretrained="Qwen/Qwen2.5-Omni-7B", max_turns=16) as agent:
        trajectory = agent.ask("talk.mp4", "What is on the last slide?")
    print(trajectory.answer)

The keyword arguments are lmms-eval's `model_args` (docs/lmms-eval.md, docs/models.md). See docs/python.md.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from apr_plugin.errors import AprError
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.episode import Episode, OnTurn
from apr_plugin.loop.events import OnEvent
from apr_plugin.loop.notebook import is_template, load_system_prompt
from apr_plugin.loop.policy import Policy
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs.meter import run_sync
from apr_plugin.runs.settings import read_settings
from apr_plugin.terminal import quoted

Media = str | Path | MediaRef
"""A video: its path, or a `MediaRef` for a window of the file."""

_OPTION = re.compile(r"\(?([A-Za-z]|\d{1,2})[.):]\)?\s+(.+)", re.DOTALL)
"""A label is one letter or a number; "Dr. No" is an option without a label."""


class Agent:
    """A policy with its limits, loaded once for any number of questions.

    Use it as a context manager, or call `close`.

    Args:
        policy: The name of a policy (`hf`, `openai`, `vllm`, `needle`, …), or an object with the methods of
            `apr_plugin.loop.policy.Policy`.
        arguments: The model_args: limits, sampling, the policy's own arguments. `concurrency` and the decoding limits
            apply to `ask_async`; `trajectories` and `resume` have no effect, because nothing is saved
            (`trajectory.write(PATH)` does that).

    Raises:
        AprError: an argument is missing, unknown, or has a bad value; the message names it and the known ones.
    """

    def __init__(self, policy: str | Policy | None = None, **arguments: Any) -> None:
        if policy is None or isinstance(policy, str):
            self.settings = read_settings({"policy": policy} | arguments)
        elif isinstance(policy, Policy):
            self.settings = read_settings(arguments, policy)
        else:
            raise AprError(
                f"policy must be a name or an object with the methods of apr_plugin.loop.Policy, not {quoted(policy)}"
            )
        self._closed = False
        self._lanes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Lane] = weakref.WeakKeyDictionary()

    def ask(
        self,
        video: Media | Sequence[Media],
        question: str,
        *,
        options: Sequence[str] = (),
        kind: str | None = None,
        hint: str = "",
        system_prompt: str | Path | None = None,
        on_turn: OnTurn | None = None,
    ) -> Trajectory:
        """Ask a question, and wait for the trajectory.

        A failure while the question is answered is in the trajectory's `stop_reason`, and is never an exception. In a
        Jupyter notebook, where an event loop is already running, the episode runs in its own thread, and so does
        `on_turn`.

        Args:
            video: One video or several, in the order in which an action counts them from 0. Without a video the
                question is about text alone.
            question: The question.
            options: The options of a multiple-choice question, with their labels ("A. red") or without.
            kind: `mcq`, `grounding`, `number` or `free_form`; default: `mcq` if there are options, else `free_form`.
            hint: How to write the answer, if the kind does not say everything ("in centimetres").
            system_prompt: Other instructions for this question: the text itself, or the `Path` of a file.
            on_turn: Called after each turn, with its number (from 1) and its record.

        Raises:
            AprError: an option, the kind or the file of instructions is bad, or the agent was closed.
            KeyboardInterrupt: Ctrl-C was pressed; the episode has ended.
        """
        asking = self.ask_async(
            video, question, options=options, kind=kind, hint=hint, system_prompt=system_prompt, on_turn=on_turn
        )
        return run_sync(asking)

    async def ask_async(
        self,
        video: Media | Sequence[Media],
        question: str,
        *,
        options: Sequence[str] = (),
        kind: str | None = None,
        hint: str = "",
        system_prompt: str | Path | None = None,
        on_turn: OnTurn | None = None,
    ) -> Trajectory:
        """Ask like `ask`, in the running event loop.

        If several are asked at once (`asyncio.gather`), at most `concurrency` are answered at a time.
        """
        lane = self._lane()
        asked = make_question(video, question, options=options, kind=kind, hint=hint)
        episode = self.episode(asked, system_prompt=system_prompt, on_turn=on_turn, decoding=lane.decoding)
        async with lane.slots:
            return await episode.run()

    def episode(
        self,
        question: Question,
        *,
        system_prompt: str | Path | None = None,
        on_turn: OnTurn | None = None,
        on_event: OnEvent | None = None,
        decoding: Decoding | None = None,
    ) -> Episode:
        """The episode of a question, not yet run, for callers that need to keep it, or to follow it.

        `Episode.cancelled` has the episode so far. `on_event` gets each thought before its look, and each turn when it
        has ended (`apr_plugin.loop.events`).

        Raises:
            AprError: the file of instructions can't be read, or the agent was closed.
        """
        if self._closed:
            raise AprError("this agent was closed; make another")
        config = self.settings.config
        if system_prompt is not None:
            given = {"system_prompt": _instructions(system_prompt)}
            config = config.model_copy(
                update=given
                | {"system_prompt_template": isinstance(system_prompt, Path) and is_template(system_prompt)}
            )
        return Episode(question, self.settings.policy, config, on_turn=on_turn, on_event=on_event, decoding=decoding)

    def close(self) -> None:
        """Release what the policy holds (a GPU, a connection); a second call does nothing."""
        if not self._closed:
            self._closed = True
            for lane in self._lanes.values():
                lane.decoding.close()
            self.settings.policy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lane(self) -> _Lane:
        loop = asyncio.get_running_loop()
        if (lane := self._lanes.get(loop)) is None:
            lane = self._lanes[loop] = _Lane(
                Decoding(self.settings.decode_threads, self.settings.decoded_bytes),
                asyncio.Semaphore(self.settings.concurrency),
            )
        return lane


class _Lane:
    """What the questions of one event loop share."""

    def __init__(self, decoding: Decoding, slots: asyncio.Semaphore) -> None:
        self.decoding = decoding
        self.slots = slots


def ask(
    video: Media | Sequence[Media],
    question: str,
    *,
    options: Sequence[str] = (),
    kind: str | None = None,
    hint: str = "",
    system_prompt: str | Path | None = None,
    on_turn: OnTurn | None = None,
    policy: str | Policy = "needle",
    **arguments: Any,
) -> Trajectory:
    """Load a policy, ask it one question, and close it.

    For several questions make an `Agent`, which loads the policy once.

    Args:
        video: As for `Agent.ask`; the same holds for all arguments up to `on_turn`.
        question: The question.
        options: The options of a multiple-choice question.
        kind: How the question is answered.
        hint: How to write the answer.
        system_prompt: Other instructions: the text, or the `Path` of a file.
        on_turn: Called after each turn.
        policy: The policy that answers; default: the scripted one for needle videos (`apr needle make`), which needs no
            model.
        arguments: The model_args.

    Raises:
        AprError: as `Agent` and `Agent.ask`.
    """
    with Agent(policy, **arguments) as agent:
        return agent.ask(
            video, question, options=options, kind=kind, hint=hint, system_prompt=system_prompt, on_turn=on_turn
        )


def make_question(
    video: Media | Sequence[Media], text: str, *, options: Sequence[str] = (), kind: str | None = None, hint: str = ""
) -> Question:
    """Make a question from plain values (see `Agent.ask`).

    Raises:
        AprError: an option or the kind is not valid.
    """
    videos = [video] if isinstance(video, str | Path | MediaRef) else video
    return Question(
        text=text,
        kind=_kind(kind, options),
        options=_options(options),
        videos=tuple(
            ref if isinstance(ref, MediaRef) else MediaRef(path=str(Path(ref).expanduser())) for ref in videos
        ),
        answer_hint=hint,
    )


def _kind(kind: str | None, options: Sequence[str]) -> QuestionKind:
    if kind is None:
        return QuestionKind.MCQ if options else QuestionKind.FREE_FORM
    if kind not in list(QuestionKind):
        raise AprError(f"kind must be one of {', '.join(QuestionKind)}, not {quoted(kind)}")
    if kind == QuestionKind.MCQ and not options:
        raise AprError('a question of kind mcq needs options, such as "A. red", "B. blue"')
    return QuestionKind(kind)


def _options(options: Sequence[str]) -> tuple[Option, ...]:
    if isinstance(options, str):
        raise AprError(f'options must be a list, such as ["A. red", "B. blue"], not {quoted(options)}')
    found = []
    for number, text in enumerate(options):
        if not text.strip():
            raise AprError(f"option {number + 1} is empty")
        match = _OPTION.fullmatch(text.strip())
        found.append(
            Option(label=match[1], text=match[2]) if match else Option(label=chr(ord("A") + number), text=text.strip())
        )
    if len({option.label for option in found}) < len(found):
        raise AprError(f"two options have the same label: {', '.join(option.label for option in found)}")
    return tuple(found)


def _instructions(given: str | Path) -> str:
    if isinstance(given, Path):
        try:
            return load_system_prompt(given)
        except (OSError, ValueError) as error:  # not text, or a name with a null character
            raise AprError(
                f"system_prompt: cannot read {given}: {getattr(error, 'strerror', None) or error}"
            ) from error
    if "\n" not in given and given.endswith((".txt", ".md", ".jinja")):
        raise AprError(
            f"system_prompt: {quoted(given)} looks like a file; give it as pathlib.Path, because a text is "
            "taken for the instructions themselves"
        )
    return given
