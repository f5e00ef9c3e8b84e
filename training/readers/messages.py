"""Reader of append-only trajectories: lists of messages in which all media stays (LongVT, ParaVT), purged into turns.

Format: a record has `messages`, a list or the same as a JSON string. The first user message has the question and the
video. An assistant message has `<think>…</think>` and then a call, `<tool_call>{"name": "crop_video", "arguments":
{…}}</tool_call>` (or an OpenAI `tool_calls` field), or `<answer>…</answer>`. What a tool returned follows in a message
of its own, or as `<tool_response>…</tool_response>` in the same text. Sources: EvolvingLMMs-Lab/LongVT
(`data/launch/imcott_generate.py`, `examples/eval/single_inference.py`), EvolvingLMMs-Lab/ParaVT (`paravt/data`).

What is different there, and how it is mapped:

- The model saw the whole video at once before its first words. Here an opening turn looks at frames of the whole
  video; it is ours, so it is no target.
- A call is a look at frames of its window (`get_frames`). A window past the end of the video is cut there.
- A thought tells what was seen, what it means and what to do next, in one text. It becomes the `observation`, which
  later prompts keep; `think` is empty.
- There is no confidence. It is a setting, for looks and for answers, and the cards have it.
- Instructions, tools and the path in the prompt are theirs; the ones here take their place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin.loop.action import Answer, GetFrames
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.trajectory import StopReason, Turn
from apr_plugin.loop.wires.apr import floored
from apr_plugin.runs.foreign.records import Left, Unmapped, number, records
from apr_plugin.training.readers.acting import Imported, Stage, find_video
from apr_plugin.training.targets import canonical

_TAG = re.compile(r"<(think|tool_call|tool_response|answer|time)>(.*?)</\1>", re.DOTALL)
_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\)?\s+(\S.*)$")
_INSTRUCTIONS = (
    r"You FIRST think about the reasoning process",
    r"Think first, call \*{0,2}crop_video",
    r"Think step by step, use crop_video",
    r"The Video path for this video is",
    r"VIDEO_PATH\s*:",
)
"""Where instructions to the model begin in the first user message; the question ends there."""
OPENING = "I look at the whole video first."
"""The thought of the opening turn."""


@dataclass(frozen=True)
class Filling:
    """How what is missing there is filled in."""

    frames_per_crop: int = 16
    """Frames of a look in place of a call."""
    overview_frames: int = 32
    """Frames of the opening look at the whole video."""
    look_confidence: float = 0.5
    """Confidence in a turn that looks."""
    answer_confidence: float = 0.95
    """Confidence in a turn that answers; the default instructions ask for 0.9 or more."""


@dataclass(frozen=True)
class _Step:
    thought: str
    window: tuple[float, float] | None
    answer: str | None


def read_messages(
    file: str | Path,
    videos: str | Path,
    out: str | Path,
    *,
    name: str = "messages",
    filling: Filling | None = None,
    told: Callable[[int], None] | None = None,
) -> Imported:
    """Play the trajectories of a file of message lists.

    Args:
        file: The records, `.jsonl`, `.json` or `.parquet`.
        videos: The folder to which paths of videos are relative (`file://` in front is left out).
        out: A new folder for the trajectories.
        name: Name of the source.
        filling: How what is missing there is filled in.
        told: Called after each record with the number of those that were read, to show progress.

    Raises:
        AprError: the file can't be read, or the folder already has trajectories.
    """
    how = filling or Filling()
    stage = Stage(out, "messages", vars(how))
    for done, (where, record) in enumerate(records(file), 1):
        named = str(record.get("id", where))[:200] if isinstance(record, dict) else where
        try:
            _play(stage, record, (name, f"{where} {named}" if named != where else where), videos, how)
        except Left as left:
            stage.skip(left, named)
        if told is not None:
            told(done)
    return stage.done(name)


def _play(stage: Stage, record: object, named: tuple[str, str], videos: str | Path, how: Filling) -> None:
    messages = _messages(record)
    asked = next((message for message in messages if message.get("role") == "user"), None)
    if asked is None:
        raise Left(Unmapped.BAD_RECORD, "there is no user message")
    steps = _steps(messages[messages.index(asked) + 1 :])
    if all(step.window is None for step in steps):
        raise Left(Unmapped.NO_CALL)
    question = _question(asked, find_video(_video(messages), videos), named)
    whole = Budget()
    turns = len(steps) + 1
    least = max(whole.min_turns, turns)
    frames = max(how.frames_per_crop, how.overview_frames, whole.frames_per_look)
    limits = {"min_turns": least, "max_turns": max(whole.max_turns, least), "frames_per_look": frames}
    config = EpisodeConfig(budget=whole.model_copy(update=limits))

    def write(turn: int, duration_s: float) -> str:
        last = float(floored(duration_s))
        if turn == 1:
            look = GetFrames(start=0.0, end=last, num=how.overview_frames)
            return canonical(Turn(text="", think=OPENING, confidence=0.0, action=look))
        step = steps[min(turn - 2, len(steps) - 1)]
        if step.window is None:
            answer = Answer(content=step.answer or "")
            return canonical(Turn(text="", observation=step.thought, confidence=how.answer_confidence, action=answer))
        start, end = step.window
        look = GetFrames(start=start, end=min(end, last), num=how.frames_per_crop)
        return canonical(Turn(text="", observation=step.thought, confidence=how.look_confidence, action=look))

    done, _ = stage.play(question, config, write)
    for place, turn in enumerate(done.turns, 1):
        if turn.error is not None:
            reason = Unmapped.UNANSWERED if place == turns else Unmapped.LOOK_REFUSED
            raise Left(reason, f"turn {place}: {turn.error.message}")
    if done.stop_reason is not StopReason.ANSWERED:
        raise Left(Unmapped.UNANSWERED, f"{done.stop_reason}: {done.stop_detail}")
    stage.keep(done, range(2, turns + 1))


def _messages(record: object) -> list[Mapping[str, Any]]:
    found = record.get("messages") if isinstance(record, dict) else None
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise Left(Unmapped.BAD_RECORD, f"its messages are not JSON ({error})") from error
    if isinstance(found, dict):
        found = found.get("messages")
    if not isinstance(found, list) or not found or not all(isinstance(message, dict) for message in found):
        raise Left(Unmapped.BAD_RECORD, "it has no list of messages")
    return found


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _text(message: Mapping[str, Any]) -> str:
    return "".join(str(part.get("text") or "") for part in _parts(message) if part.get("type") == "text")


def _video(messages: Sequence[Mapping[str, Any]]) -> object:
    """The path of the first video before the first words of the assistant."""
    for message in messages:
        if message.get("role") == "assistant":
            break
        for part in _parts(message):
            kind = part.get("type")
            given = part.get(kind) if kind in ("video", "video_url") else None
            if isinstance(given, dict):
                given = given.get("url") or given.get("video")
            if isinstance(given, str):
                return given
    return None


def _question(asked: Mapping[str, Any], video: Path, named: tuple[str, str]) -> Question:
    text = _text(asked).replace("<video>", "").replace("<image>", "")
    for beginning in _INSTRUCTIONS:
        text = re.split(beginning, text, maxsplit=1)[0]
    text = text.strip()
    if not text:
        raise Left(Unmapped.BAD_RECORD, "there is no question")
    lines, options = text.splitlines(), list[Option]()
    found = [_OPTION.match(line) for line in lines]
    places = [n for n, match in enumerate(found) if match]
    labels = [match[1] for match in found if match]
    if len(labels) > 1 and labels == [chr(ord("A") + n) for n in range(len(labels))]:
        options = [Option(label=match[1], text=match[2].strip()) for match in found if match]
        head = "\n".join(lines[: places[0]]).strip()
        text = re.sub(r"\n?\s*Options:\s*$", "", head)
    task, doc_id = named
    kind = QuestionKind.MCQ if options else QuestionKind.FREE_FORM
    return Question(
        text=text, kind=kind, options=tuple(options), videos=(MediaRef(path=str(video)),), task=task, doc_id=doc_id
    )


def _steps(messages: Sequence[Mapping[str, Any]]) -> list[_Step]:
    """What the assistant wrote, as looks and, at the end, the answer."""
    steps: list[_Step] = []
    for message in messages:
        if message.get("role") != "assistant":
            continue
        text = _text(message)
        for stretch in re.split(r"<tool_response>.*?</tool_response>", text, flags=re.DOTALL):
            if stretch.strip() or message.get("tool_calls"):
                steps.append(_step(stretch, message.get("tool_calls") or ()))
    if not steps or steps[-1].answer is None or any(step.answer is not None for step in steps[:-1]):
        raise Left(Unmapped.NO_ACTION, "it does not end with its one answer")
    return steps


def _step(text: str, more: Sequence[Any]) -> _Step:
    found = [(match[1], match[2].strip()) for match in _TAG.finditer(text)]
    thought = "\n".join(words for tag, words in found if tag == "think")
    calls = [_called(words) for tag, words in found if tag == "tool_call"]
    calls += [_called(call.get("function") if isinstance(call, dict) else None) for call in more]
    answers = [words for tag, words in found if tag == "answer"]
    if len(calls) > 1:
        raise Left(Unmapped.SEVERAL_CALLS, f"{len(calls)} calls in one turn")
    if len(calls) + len(answers) != 1 or (answers and not answers[0]):
        raise Left(Unmapped.NO_ACTION, f"a turn has {len(calls)} calls and {len(answers)} answers")
    return _Step(thought, calls[0] if calls else None, answers[0] if answers else None)


def _called(call: object) -> tuple[float, float]:
    """The window of a call of `crop_video`, in seconds; its path is not used."""
    try:
        call = json.loads(call) if isinstance(call, str) else call
        if not isinstance(call, dict):
            raise ValueError("it is no object")
        given = call.get("arguments")
        given = json.loads(given) if isinstance(given, str) else given
        if not isinstance(given, dict):
            raise ValueError("it has no arguments")
    except (ValueError, RecursionError) as error:
        raise Left(Unmapped.NO_ACTION, f"a call can't be read: {error}") from error
    if call.get("name") != "crop_video":
        raise Left(Unmapped.UNKNOWN_TOOL, str(call.get("name"))[:80])
    return number(given.get("start_time"), "start_time"), number(given.get("end_time"), "end_time")
