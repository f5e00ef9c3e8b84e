"""OmniAgent's rows as trajectories, from what they say alone; no video is opened.

What a turn was shown is in the next prompt: the times of frames, or the window of sound or of a clip. The times are the
labels that the model read, which are the requested times. How many frames of a clip were shown is not recorded, nor
tokens, seconds and seeds. `apr_plugin.training.readers.omniagent` plays the same rows on the videos.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_plugin.loop.action import Answer
from apr_plugin.loop.answer import TakenAnswer, strict_answer
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.imported import Figure, Imported
from apr_plugin.loop.parse import parse_turn
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import Film, Shown, StopReason, Trajectory, Turn
from apr_plugin.runs.foreign.found import About, Found, LeftOut, Wanted
from apr_plugin.runs.foreign.omniagent_rows import (
    Row,
    info_of,
    is_row,
    limits_of,
    media_mark,
    question_of,
    steps,
    texts_of,
    together,
)
from apr_plugin.runs.foreign.records import Left, Unmapped, file_name, number, records
from apr_plugin.scoring.truth import Evidence, Truth, spans_text

ENDINGS = (".jsonl", ".json", ".parquet")
"""Of its files."""

_NEVER = (Figure.VISUAL_TOKENS, Figure.TOTAL_SECONDS, Figure.MODEL_SECONDS, Figure.MEDIA_SECONDS, Figure.SEED)
_TIME = r"(\d+(?:\.\d+)?)s"
_FRAMES = re.compile(rf"Frames {_TIME}-{_TIME} \(num=(\d+)\)\.|Frame at {_TIME} \(num=1\)\.")
_TIMED = re.compile(r"(Audio|Clip) " + rf"{_TIME}-{_TIME}")
_LISTED = re.compile(r"Timestamps: \[([^\]]*)\]")
_LABEL = re.compile(rf"Frame {_TIME}:")
_ERROR = re.compile(r"\[ERROR\] ([A-Z_]+): (.*?)(?:\n\[SYSTEM\].*|\n\[NOTICE\].*)?\Z", re.DOTALL)
_CODES = {
    "FRAME_TS_OOB": ErrorCode.OUT_OF_RANGE,
    "AUDIO_RANGE": ErrorCode.OUT_OF_RANGE,
    "CLIP_RANGE": ErrorCode.OUT_OF_RANGE,
    "CLIP_NEG_LEN": ErrorCode.REVERSED_WINDOW,
    "TOO_MANY_FRAMES": ErrorCode.TOO_MANY_FRAMES,
    "INVALID_FRAME_NUM": ErrorCode.TOO_FEW_FRAMES,
    "NO_AUDIO": ErrorCode.NO_AUDIO,
    "AUDIO_TOO_SHORT": ErrorCode.TOO_SHORT,
    "CLIP_TOO_SHORT": ErrorCode.TOO_SHORT,
    "AUDIO_TOO_LONG": ErrorCode.TOO_LONG,
    "CLIP_TOO_LONG": ErrorCode.TOO_LONG,
    "EARLY_ANSWER": ErrorCode.EARLY_ANSWER,
    "INVALID_JSON": ErrorCode.MALFORMED_JSON,
    "TRAILING_GARBAGE": ErrorCode.MALFORMED_JSON,
    "UNKNOWN_ACTION_TYPE": ErrorCode.UNKNOWN_ACTION,
    "ANSWER_JSON_PARSE": ErrorCode.ANSWER_FORM,
    "SPAN_FORMAT": ErrorCode.ANSWER_FORM,
    "ANSWER_NOT_STRING": ErrorCode.ANSWER_FORM,
}
"""The markers of its environment (`video_env.py`, lines 309-337)."""


def read_omniagent(files: Sequence[Path], wanted: Wanted, about: About, left: LeftOut) -> Iterator[Found]:
    """Every trajectory of files of rows.

    Raises:
        AprError: a file can't be read.
    """
    about.program = "OmniAgent"
    about.notes.append("times of frames are those that were asked for, rounded to 0.01 s, as its prompts label them")
    seen, attempts = set[str](), dict[str, int]()
    for file in files:
        for rows in together(_rows(file, left)):
            traj_id = str(rows[0][1]["traj_id"])
            place = f"{file.name}, {rows[0][0]}" + (f" to {rows[-1][0]}" if len(rows) > 1 else "")
            doc_id = printable(str(rows[0][1].get("question_id"))[:200])
            try:
                if traj_id in seen:
                    raise Left(Unmapped.BAD_RECORD, "its rows are not together in the file; sort it by traj_id")
                seen.add(traj_id)
                # Attempts at one question are told apart by their order.
                repeat = attempts.get(doc_id, -1) + 1
                found = _found([row for _, row in rows], (wanted.task or "omniagent", doc_id, repeat), place)
                attempts[doc_id] = repeat
                yield found
            except Left as why:
                left(why, place)


def _rows(file: Path, left: LeftOut) -> Iterator[tuple[str, Row]]:
    for where, row in records(file):
        if is_row(row):
            yield where, row
        else:
            left(Left(Unmapped.BAD_RECORD, "it is no row with a traj_id"), f"{file.name}, {where}")


def _found(given: Sequence[Row], named: tuple[str, str, int], place: str) -> Found:
    rows = steps(given)
    texts, prompt = texts_of(rows)
    last = rows[max(rows)]
    info = info_of(last)
    name = file_name(info.get("video"))
    question = question_of(info, [name] if name else [], named)
    absent = set(_NEVER)
    film = _film(info, absent)
    # After each turn comes what the environment said.
    came = [prompt[at + 1][1] for at, (role, _) in enumerate(prompt[:-1]) if role == "assistant"]
    turns = [_turn(text, came[at] if at < len(came) else None, film.has_audio, absent) for at, text in enumerate(texts)]
    try:
        allowed = limits_of(info)["turns"]
    except Left:
        allowed = 0
        absent.add(Figure.TURNS_ALLOWED)
    reason, detail, answer = _ending(question, turns[-1], _truthy(last.get("done")), len(texts), allowed)
    trajectory = Trajectory(
        question=question,
        turns=tuple(turns),
        answer=None if answer is None else answer.text,
        answer_valid=answer is not None and answer.valid,
        stop_reason=reason,
        stop_detail=detail,
        turns_allowed=allowed,
        video_durations_s=(film.duration_s,) if Figure.DURATION not in absent else (),
        videos=(film,) if Figure.DURATION not in absent else (),
        imported=Imported(format="omniagent", place=place, absent=tuple(sorted(absent))),
    )
    reward = last.get("episode_reward", last.get("step_reward"))
    metrics: dict[str, float] = {}
    if not reason.failed and reward is not None:
        metrics["episode_reward"] = number(reward, "episode_reward")
    score = metrics.get("episode_reward")
    return Found(
        trajectory,
        score if score is not None and 0 <= score <= 1 else None,
        metrics,
        _truth(question, info.get("answer")),
    )


def _turn(text: str, came: str | None, heard: bool, absent: set[Figure]) -> Turn:
    read = parse_turn(text)
    shown, error = (None, None) if came is None else _came(came, heard, absent)
    looked = read.action is not None and not isinstance(read.action, Answer)
    if came is not None and shown is None and error is None and looked:
        absent.update((Figure.FRAMES, Figure.AUDIO))  # something that is not known came back
    return Turn(
        text=printable(text),
        observation=read.observation,
        think=read.think,
        confidence=read.confidence,
        action=read.action,
        error=error or (read.error if came is None else None),
        shown=shown,
        repairs=read.repairs,
    )


def _came(text: str, heard: bool, absent: set[Figure]) -> tuple[Shown | None, ActionError | None]:
    """What the environment answered to an action."""
    text = text.strip()
    if (fault := _ERROR.match(text)) is not None:
        code = _CODES.get(fault[1], ErrorCode.ELSEWHERE)
        return None, ActionError(code, printable(f"{fault[1]}: {fault[2].strip()}"[:2000]))
    if (frames := _FRAMES.match(text)) is not None:
        listed = _LISTED.search(text)
        named = re.findall(_TIME, listed[1]) if listed is not None else _LABEL.findall(text)
        start, end, count = (frames[4], frames[4], 1) if frames[4] else (frames[1], frames[2], int(frames[3]))
        times = tuple(map(float, named or ([start] if count == 1 else [])))
        pictures = text.count(media_mark("image"))
        if len(times) != count or pictures not in (0, count):
            absent.add(Figure.FRAMES)
            times = ()
        return Shown(kind="frames", start_s=float(start), end_s=float(end), times_s=times, asked_s=times), None
    if (timed := _TIMED.match(text)) is not None:
        start_s, end_s = float(timed[2]), float(timed[3])
        if timed[1] == "Audio":
            return Shown(kind="audio", start_s=start_s, end_s=end_s, audio_s=max(0.0, end_s - start_s)), None
        absent.update((Figure.FRAMES, Figure.AUDIO) if heard else (Figure.FRAMES,))
        return Shown(kind="clip", start_s=start_s, end_s=end_s), None
    return None, None


def _ending(
    question: Question, turn: Turn, done: bool, count: int, allowed: int
) -> tuple[StopReason, str, TakenAnswer | None]:
    """Why the episode ended, and its answer, read as OmniAgent's environment reads it."""
    if not done:
        return StopReason.ERROR, f"the record ends after turn {count}, before the episode did", None
    if isinstance(turn.action, Answer):
        taken = strict_answer(question, turn.action.content)
        if isinstance(taken, ActionError):
            taken = TakenAnswer(turn.action.content.strip(), False, taken.message)
        return StopReason.ANSWERED, taken.remark, taken
    if allowed and count >= allowed:
        return StopReason.TURNS, f"all {allowed} turns were used", None
    return (
        StopReason.ERROR,
        f"the episode ended after turn {count} without an answer; the record does not say why",
        None,
    )


def _film(info: Mapping[str, Any], absent: set[Figure]) -> Film:
    try:
        duration = number(info.get("duration_seconds"), "duration_seconds")
        fps: float | None = number(info["fps"], "fps") if info.get("fps") is not None else None
    except Left:
        duration, fps = 0.0, None
    if duration <= 0:
        absent.add(Figure.DURATION)
    return Film(duration_s=max(0.0, duration), fps=fps, has_audio=_truthy(info.get("has_audio")))


def _truthy(value: object) -> bool:
    """A truth value, which the released rows have as text."""
    return value is True or str(value).strip().lower() == "true"


def _truth(question: Question, answer: object) -> Truth | None:
    if question.kind is QuestionKind.GROUNDING:
        try:
            spans = [(number(start, "answer"), number(end, "answer")) for start, end in answer]  # type: ignore[attr-defined]
        except (Left, TypeError, ValueError):
            return None
        return Truth(spans_text(spans), tuple(Evidence(start, end) for start, end in spans)) if spans else None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        return None
    words = printable(str(answer).strip())
    if question.kind is QuestionKind.MCQ:  # it compares the first character
        words = words[0].upper()
        return Truth(words) if words in {option.label for option in question.options} else None
    return Truth(words)
