"""Samples of inspect_ai's logs as trajectories.

A turn is a message of the assistant; its tokens and seconds are those of the `model` event with the same message. A
tool call is an action where its name and arguments are those of one of ours; another call is kept as JSON after the
turn's words. `submit` is the answer. What a tool showed is not recorded: which frames, how much sound.

A log that `apr export inspect` wrote carries our own records besides (`apr` in the metadata); they are then taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pydantic import ValidationError

from apr_plugin.errors import AprError
from apr_plugin.loop.action import ACTIONS, Answer
from apr_plugin.loop.answer import canonical_answer
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.imported import Figure, Imported
from apr_plugin.loop.policy import Usage
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import Shown, StopReason, Timings, Trajectory, Turn
from apr_plugin.runs.foreign.found import About, Found, LeftOut, Wanted
from apr_plugin.runs.foreign.inspect_files import read_log
from apr_plugin.runs.foreign.inspect_scores import score_of, task_metrics
from apr_plugin.runs.foreign.records import Left, Unmapped
from apr_plugin.scoring.truth import Evidence, Truth
from apr_plugin.terminal import quoted

ENDINGS = (".eval", ".json")
"""Of its files."""

LONGEST_TEXT = 1_000_000
"""Characters of one text that are kept; a longer one is cut, and says so."""

_ATTACHED = "attachment://"
_LIMITS = {
    "message": StopReason.TURNS,
    "turn": StopReason.TURNS,
    "token": StopReason.TOKENS,
    "context": StopReason.TOKENS,
    "time": StopReason.WALL_CLOCK,
    "working": StopReason.WALL_CLOCK,
    "operator": StopReason.CANCELLED,
}
_LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Values = Mapping[str, Any]


def read_inspect(files: Sequence[Path], wanted: Wanted, about: About, left: LeftOut) -> Iterator[Found]:
    """Every sample of logs of one model.

    Raises:
        AprError: a log can't be read, or the logs are of several models.
    """
    for file in files:
        head, samples = read_log(file, left)
        task = _head(file, head, wanted, about)
        for place, sample in samples:
            try:
                yield _found(sample, task, place, wanted, about)
            except Left as why:
                left(why, place)


def _head(file: Path, head: Values, wanted: Wanted, about: About) -> str:
    """Take what a log says of all its samples; returns the task's name."""
    told = _mapping(head.get("eval"))
    model = printable(str(told.get("model") or ""))[:500]
    if about.model and model != about.model:
        raise AprError(
            f"{file}: it is of model {quoted(model, 80)} and an earlier log of {quoted(about.model, 80)}; a run is of "
            "one model, so import them one by one"
        )
    task = wanted.task or printable(str(told.get("task") or "inspect"))[:500].replace("\0", "?")
    about.model = model
    release = _mapping(told.get("packages")).get("inspect_ai")
    about.program = f"inspect_ai {printable(str(release))[:60]}" if isinstance(release, str) else "inspect_ai"
    about.time = max(about.time, _time(told.get("created")))
    if head.get("status") != "success":
        about.notes.append(
            f"{file.name}: the log's status is {quoted(head.get('status'), 40)}, so samples may be missing"
        )
    version = told.get("task_version")
    about.versions[task] = version if isinstance(version, int | float | str) else None
    about.metrics[task] = task_metrics(_mapping(head.get("results")), wanted.scorer)
    kept = {name: told[name] for name in ("model_generate_config", "config", "task_args") if told.get(name)}
    about.configuration[task] = kept
    return task


def _found(sample: Values, task: str, place: str, wanted: Wanted, about: About) -> Found:
    said = _Said(sample)
    metadata = _mapping(sample.get("metadata"))
    ours = _mapping(metadata.get("apr"))
    messages = [message for message in _list(sample.get("messages")) if isinstance(message, dict)]
    calls = _model_events(sample)
    wrote = [message for message in messages if message.get("role") == "assistant"]
    events = [calls.get(str(message.get("id"))) for message in wrote]
    score, metrics, reply = score_of(_mapping(sample.get("scores")), wanted.scorer)
    if ours:
        trajectory = _of_ours(ours, wrote, events, said, wanted, place)
    else:
        trajectory = _of_others(sample, messages, wrote, events, said, task, place, reply)
        unread = len(calls) - sum(event is not None for event in events)
        note = "some generations are in events alone (other agents, graders, compacted history); they are not turns"
        if unread > 0 and note not in about.notes:
            about.notes.append(note)
    target = sample.get("target")
    right = [printable(str(one)) for one in (target if isinstance(target, list) else [target]) if one not in (None, "")]
    evidence = _evidence(metadata.get("evidence")) if ours else ()
    truth = Truth(right[0] if len(right) == 1 else tuple(right), evidence) if right else None
    return Found(trajectory, None if trajectory.stop_reason.failed else score, metrics, truth)


def _of_ours(
    ours: Values,
    wrote: Sequence[Values],
    events: Sequence[Values | None],
    said: _Said,
    wanted: Wanted,
    place: str,
) -> Trajectory:
    """A trajectory of this package, from the records that our own export added."""
    turns = [
        dict(_mapping(_mapping(event).get("metadata")).get("apr") or {}) | {"text": said.words(message)[0]}
        for message, event in zip(wrote, events, strict=True)
    ]
    lacks = _mapping(ours.get("imported")).get("absent") or []  # the run was imported before it was exported
    origin = {"format": "inspect", "place": place, "absent": lacks}
    data = {**ours, "turns": turns, "config_hash": "", "imported": origin}
    try:
        made = Trajectory.model_validate_json(json.dumps(data))
    except (ValidationError, ValueError, RecursionError) as error:
        fault = str(error).splitlines()[0][:200]
        raise Left(Unmapped.BAD_RECORD, f"its record of this package is damaged: {fault}") from error
    question = made.question
    videos = tuple(ref.model_copy(update={"path": _name(ref.path), "subtitles": None}) for ref in question.videos)
    changed = {"videos": videos} | ({"task": wanted.task} if wanted.task else {})
    return made.model_copy(update={"question": question.model_copy(update=changed)})


def _of_others(
    sample: Values,
    messages: Sequence[Values],
    wrote: Sequence[Values],
    events: Sequence[Values | None],
    said: _Said,
    task: str,
    place: str,
    reply: str | None,
) -> Trajectory:
    question = _question(sample, said, task)
    results = {str(one.get("tool_call_id")): one for one in messages if one.get("role") == "tool"}
    timed = _tool_seconds(sample)
    turns = [
        _turn(message, event, results, timed, said, last=message is wrote[-1])
        for message, event in zip(wrote, events, strict=True)
    ]
    absent = {Figure.FRAMES, Figure.AUDIO, Figure.VISUAL_TOKENS, Figure.DURATION, Figure.TURNS_ALLOWED, Figure.SEED}
    total = _seconds(sample.get("total_time"))
    if total is None:
        absent.add(Figure.TOTAL_SECONDS)
    if any(event is None or _seconds(event.get("working_time")) is None for event in events):
        absent.add(Figure.MODEL_SECONDS)
    if any(str(call.get("id")) not in timed for message in wrote for call in _calls(message)):
        absent.add(Figure.MEDIA_SECONDS)
    model_s, media_s = sum(turn.model_s for turn in turns), sum(turn.media_s for turn in turns)
    allowed = sample.get("message_limit")
    reason, detail, answer, valid = _ending(sample, question, turns, said, reply)
    if isinstance(allowed, int) and allowed > 0:
        detail = f"{detail} (message limit {allowed})".strip()
    return Trajectory(
        question=question,
        turns=tuple(turns),
        answer=answer,
        answer_valid=valid,
        stop_reason=reason,
        stop_detail=detail,
        timings=Timings(
            total_s=total or 0.0, model_s=model_s, media_s=media_s, other_s=max(0.0, (total or 0.0) - model_s - media_s)
        ),
        imported=Imported(format="inspect", place=place, absent=tuple(sorted(absent))),
    )


def _turn(
    message: Values,
    event: Values | None,
    results: Mapping[str, Values],
    timed: Mapping[str, float],
    said: _Said,
    *,
    last: bool,
) -> Turn:
    text, thought = said.words(message)
    calls = _calls(message)
    output = _mapping(_mapping(event).get("output"))
    if last and not calls:  # `react` takes the submitted answer out of its last message and adds it to the words
        calls = [call for call in _calls(_first_message(output)) if call.get("function") == "submit"]
        text = said.words(_first_message(output))[0] if calls else text
    action = _action(calls[0]) if len(calls) == 1 else None
    if action is None and calls:
        told = [
            json.dumps({"function": call.get("function"), "arguments": call.get("arguments")}, default=str)
            for call in calls
        ]
        text = "\n".join(filter(None, [text, *told]))
    result = results.get(str(calls[0].get("id"))) if len(calls) == 1 else None
    fault = _mapping(_mapping(result).get("error"))
    error = None
    if fault:
        code = ErrorCode.MALFORMED_JSON if fault.get("type") == "parsing" else ErrorCode.ELSEWHERE
        error = ActionError(code, printable(str(fault.get("message")))[:2000])
    shown = None
    if action is not None and not isinstance(action, Answer) and result is not None and error is None:
        shown = Shown(kind=action.type.removeprefix("get_"), video=action.video, start_s=action.start, end_s=action.end)
    stop = _mapping(next(iter(_list(output.get("choices"))), None)).get("stop_reason")
    return Turn(
        text=_cut(text),
        think=_cut(thought),
        action=action,
        error=error,
        shown=shown,
        finish_reason="length" if stop == "max_tokens" else "stop",
        usage=_usage(_mapping(output.get("usage"))),
        model_s=_seconds(_mapping(event).get("working_time")) or 0.0,
        media_s=sum(timed.get(str(call.get("id")), 0.0) for call in calls),
    )


def _action(call: Values) -> Any:
    """A tool call as an action of ours; `None` if it is none."""
    name, arguments = call.get("function"), _mapping(call.get("arguments"))
    if name == "submit":
        words = [value for value in arguments.values() if isinstance(value, str)]
        return Answer(content=_cut(words[0])) if len(words) == 1 else None
    if not isinstance(name, str) or name not in ACTIONS or name == "answer":
        return None
    try:
        return ACTIONS[name].model_validate({**arguments, "type": name})
    except ValidationError:
        return None


def _question(sample: Values, said: _Said, task: str) -> Question:
    given = sample.get("input")
    asked = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    text = said.resolved(given) if isinstance(given, str) else "\n".join(said.words(one)[0] for one in asked)
    names = [name for one in asked for name in said.videos(one)]
    choices = [printable(str(choice)) for choice in _list(sample.get("choices"))][: len(_LABELS)]
    sample_id, epoch = sample.get("id"), sample.get("epoch", 1)
    if not isinstance(sample_id, str | int) or not isinstance(epoch, int) or epoch < 1:
        raise Left(Unmapped.BAD_RECORD, "it has no id, or its epoch is no number from 1")
    return Question(
        text=_cut(text),
        kind=QuestionKind.MCQ if choices else QuestionKind.FREE_FORM,
        options=tuple(Option(label=label, text=choice) for label, choice in zip(_LABELS, choices, strict=False)),
        videos=tuple(MediaRef(path=name) for name in names),
        task=task,
        doc_id=printable(str(sample_id))[:500],
        repeat=epoch - 1,
    )


def _ending(
    sample: Values, question: Question, turns: Sequence[Turn], said: _Said, reply: str | None
) -> tuple[StopReason, str, str | None, bool]:
    """Why it ended, in one word and in words, the answer, and whether it has the right form."""
    if (error := sample.get("error")) is not None:
        return StopReason.ERROR, _cut(str(_mapping(error).get("message") or "an error"))[:1000], None, False
    limit = _mapping(sample.get("limit"))
    completion = said.resolved(str(_mapping(sample.get("output")).get("completion") or ""))
    submitted = next((turn.action.content for turn in turns if isinstance(turn.action, Answer)), "")
    # Many scorers give all words as the answer; the one that the agent submitted is then the answer.
    content = reply if reply and reply != completion else submitted or completion
    if not turns:
        return StopReason.ERROR, "the log has no message of the model", None, False
    reason, detail = StopReason.ANSWERED, ""
    if limit:
        reason = _LIMITS.get(str(limit.get("type")), StopReason.TURNS)
        detail = _cut(f"{limit.get('type')} limit {limit.get('limit')}")[:500]
    if reason.failed or not content.strip():
        return (StopReason.TURNS if reason is StopReason.ANSWERED else reason), detail or "no answer", None, False
    read = canonical_answer(question, content)
    if isinstance(read, ActionError):
        return reason, detail, _cut(content.strip()), False
    return reason, detail, _cut(read), True


class _Said:
    """Reads the words of a sample's messages, whose long texts are kept beside it (`attachments`)."""

    def __init__(self, sample: Values) -> None:
        self._attached = _mapping(sample.get("attachments"))

    def resolved(self, text: str) -> str:
        """The text, or the attachment that it names."""
        if not text.startswith(_ATTACHED):
            return printable(text)
        found = self._attached.get(text.removeprefix(_ATTACHED))
        return printable(found) if isinstance(found, str) else "[an attachment that the log lacks]"

    def words(self, message: Values) -> tuple[str, str]:
        """Text and thought of a message; media is left out."""
        content = message.get("content")
        if isinstance(content, str):
            return self.resolved(content), ""
        parts = [part for part in _list(content) if isinstance(part, dict)]
        text = [self.resolved(str(part.get("text") or "")) for part in parts if part.get("type") == "text"]
        thought = [self.resolved(str(part.get("reasoning") or "")) for part in parts if part.get("type") == "reasoning"]
        return "\n".join(text), "\n".join(thought)

    def videos(self, message: Values) -> list[str]:
        """Names of the videos and sounds in a message; of one that is in the log itself, `video 1`."""
        parts = [part for part in _list(message.get("content")) if isinstance(part, dict)]
        given = [part.get(part["type"]) for part in parts if part.get("type") in ("video", "audio")]
        paths = [one for one in given if isinstance(one, str)]
        inside = (_ATTACHED, "data:")
        return [f"video {n}" if path.startswith(inside) else _name(path) for n, path in enumerate(paths, 1)]


def _model_events(sample: Values) -> dict[str, Values]:
    """The `model` events by the id of the message that was generated."""
    found: dict[str, Values] = {}
    for event in _list(sample.get("events")):
        if isinstance(event, dict) and event.get("event") == "model":
            message = _first_message(_mapping(event.get("output")))
            if message.get("id") is not None:
                found[str(message["id"])] = event
    return found


def _first_message(output: Values) -> Values:
    return _mapping(_mapping(next(iter(_list(output.get("choices"))), None)).get("message"))


def _tool_seconds(sample: Values) -> dict[str, float]:
    """Seconds of each tool call, by its id."""
    events = [one for one in _list(sample.get("events")) if isinstance(one, dict) and one.get("event") == "tool"]
    timed = {str(event.get("id")): _seconds(event.get("working_time")) for event in events}
    return {name: value for name, value in timed.items() if value is not None}


def _calls(message: Values) -> list[Values]:
    return [call for call in _list(message.get("tool_calls")) if isinstance(call, dict)]


def _usage(usage: Values) -> Usage:
    """Tokens; the prompt's are with those from a cache, which are counted apart there."""

    def count(name: str) -> int | None:
        value = usage.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    read, cached = count("input_tokens"), count("input_tokens_cache_read")
    whole = None if read is None else read + (cached or 0) + (count("input_tokens_cache_write") or 0)
    return Usage(prompt_tokens=whole, cached_tokens=cached, completion_tokens=count("output_tokens"))


def _evidence(given: object) -> tuple[Evidence, ...]:
    try:
        return tuple(Evidence(float(start), float(end), int(video)) for start, end, video in _list(given))
    except (TypeError, ValueError, OverflowError):
        return ()


def _name(path: str) -> str:
    """The last part of a foreign path; the rest of it means nothing here."""
    name = PureWindowsPath(PurePosixPath(path.replace("\0", "?")).name).name
    return printable(name)[:255]


def _time(created: object) -> str:
    try:
        return datetime.fromisoformat(str(created)).strftime("%Y%m%d_%H%M%S")
    except ValueError:
        return ""


def _seconds(value: object) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value < 1e9 else None  # type: ignore[arg-type, operator]


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} [cut]"


def _mapping(value: object) -> Values:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
