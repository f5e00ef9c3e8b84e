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
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from apr_plugin.errors import AprError
from apr_plugin.loop.action import ACTIONS, Answer
from apr_plugin.loop.answer import canonical_answer
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.imported import Figure, Imported
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import Shown, StopReason, Timings, Trajectory, Turn
from apr_plugin.runs.foreign.found import About, Found, LeftOut, Wanted
from apr_plugin.runs.foreign.inspect_files import read_log
from apr_plugin.runs.foreign.inspect_parts import (
    Said,
    Values,
    calls_of,
    cut,
    first_message,
    listed,
    mapping,
    model_events,
    seconds,
    tool_seconds,
    usage_of,
)
from apr_plugin.runs.foreign.inspect_scores import score_of, task_metrics
from apr_plugin.runs.foreign.records import Left, Unmapped, file_name
from apr_plugin.scoring.truth import Evidence, Truth
from apr_plugin.terminal import quoted

ENDINGS = (".eval", ".json")
"""Of its files."""

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
    told = mapping(head.get("eval"))
    model = printable(str(told.get("model") or ""))[:500]
    if about.model and model != about.model:
        raise AprError(
            f"{file}: it is of model {quoted(model, 80)} and an earlier log of {quoted(about.model, 80)}; a run is of "
            "one model, so import them one by one"
        )
    task = wanted.task or printable(str(told.get("task") or "inspect"))[:500].replace("\0", "?")
    about.model = model
    release = mapping(told.get("packages")).get("inspect_ai")
    about.program = f"inspect_ai {printable(str(release))[:60]}" if isinstance(release, str) else "inspect_ai"
    about.time = max(about.time, _time(told.get("created")))
    if head.get("status") != "success":
        about.notes.append(
            f"{file.name}: the log's status is {quoted(head.get('status'), 40)}, so samples may be missing"
        )
    version = told.get("task_version")
    about.versions[task] = version if isinstance(version, int | float | str) else None
    about.metrics[task] = task_metrics(mapping(head.get("results")), wanted.scorer)
    kept = {name: told[name] for name in ("model_generate_config", "config", "task_args") if told.get(name)}
    about.configuration[task] = kept
    return task


def _found(sample: Values, task: str, place: str, wanted: Wanted, about: About) -> Found:
    said = Said(sample)
    metadata = mapping(sample.get("metadata"))
    ours = mapping(metadata.get("apr"))
    messages = [message for message in listed(sample.get("messages")) if isinstance(message, dict)]
    calls = model_events(sample)
    wrote = [message for message in messages if message.get("role") == "assistant"]
    events = [calls.get(str(message.get("id"))) for message in wrote]
    score, metrics, reply = score_of(mapping(sample.get("scores")), wanted.scorer)
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
    said: Said,
    wanted: Wanted,
    place: str,
) -> Trajectory:
    """A trajectory of this package, from the records that our own export added."""
    turns = [
        dict(mapping(mapping(event).get("metadata")).get("apr") or {}) | {"text": said.words(message)[0]}
        for message, event in zip(wrote, events, strict=True)
    ]
    lacks = mapping(ours.get("imported")).get("absent") or []  # the run was imported before it was exported
    origin = {"format": "inspect", "place": place, "absent": lacks}
    data = {**ours, "turns": turns, "config_hash": "", "imported": origin}
    try:
        made = Trajectory.model_validate_json(json.dumps(data))
    except (ValidationError, ValueError, RecursionError) as error:
        fault = str(error).splitlines()[0][:200]
        raise Left(Unmapped.BAD_RECORD, f"its record of this package is damaged: {fault}") from error
    question = made.question
    videos = tuple(ref.model_copy(update={"path": file_name(ref.path), "subtitles": None}) for ref in question.videos)
    changed = {"videos": videos} | ({"task": wanted.task} if wanted.task else {})
    return made.model_copy(update={"question": question.model_copy(update=changed)})


def _of_others(
    sample: Values,
    messages: Sequence[Values],
    wrote: Sequence[Values],
    events: Sequence[Values | None],
    said: Said,
    task: str,
    place: str,
    reply: str | None,
) -> Trajectory:
    question = _question(sample, said, task)
    results = {str(one.get("tool_call_id")): one for one in messages if one.get("role") == "tool"}
    timed = tool_seconds(sample)
    turns = [
        _turn(message, event, results, timed, said, last=message is wrote[-1])
        for message, event in zip(wrote, events, strict=True)
    ]
    absent = {Figure.FRAMES, Figure.AUDIO, Figure.VISUAL_TOKENS, Figure.DURATION, Figure.TURNS_ALLOWED, Figure.SEED}
    total = seconds(sample.get("total_time"))
    if total is None:
        absent.add(Figure.TOTAL_SECONDS)
    if any(event is None or seconds(event.get("working_time")) is None for event in events):
        absent.add(Figure.MODEL_SECONDS)
    if any(str(call.get("id")) not in timed for message in wrote for call in calls_of(message)):
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
    said: Said,
    *,
    last: bool,
) -> Turn:
    text, thought = said.words(message)
    calls = calls_of(message)
    output = mapping(mapping(event).get("output"))
    if last and not calls:  # `react` takes the submitted answer out of its last message and adds it to the words
        calls = [call for call in calls_of(first_message(output)) if call.get("function") == "submit"]
        text = said.words(first_message(output))[0] if calls else text
    action = _action(calls[0]) if len(calls) == 1 else None
    if action is None and calls:
        told = [
            json.dumps({"function": call.get("function"), "arguments": call.get("arguments")}, default=str)
            for call in calls
        ]
        text = "\n".join(filter(None, [text, *told]))
    result = results.get(str(calls[0].get("id"))) if len(calls) == 1 else None
    fault = mapping(mapping(result).get("error"))
    error = None
    if fault:
        code = ErrorCode.MALFORMED_JSON if fault.get("type") == "parsing" else ErrorCode.ELSEWHERE
        error = ActionError(code, printable(str(fault.get("message")))[:2000])
    shown = None
    if action is not None and not isinstance(action, Answer) and result is not None and error is None:
        shown = Shown(kind=action.type.removeprefix("get_"), video=action.video, start_s=action.start, end_s=action.end)
    stop = mapping(next(iter(listed(output.get("choices"))), None)).get("stop_reason")
    return Turn(
        text=cut(text),
        think=cut(thought),
        action=action,
        error=error,
        shown=shown,
        finish_reason="length" if stop == "max_tokens" else "stop",
        usage=usage_of(mapping(output.get("usage"))),
        model_s=seconds(mapping(event).get("working_time")) or 0.0,
        media_s=sum(timed.get(str(call.get("id")), 0.0) for call in calls),
    )


def _action(call: Values) -> Any:
    """A tool call as an action of ours; `None` if it is none."""
    name, arguments = call.get("function"), mapping(call.get("arguments"))
    if name == "submit":
        words = [value for value in arguments.values() if isinstance(value, str)]
        return Answer(content=cut(words[0])) if len(words) == 1 else None
    if not isinstance(name, str) or name not in ACTIONS or name == "answer":
        return None
    try:
        return ACTIONS[name].model_validate({**arguments, "type": name})
    except ValidationError:
        return None


def _question(sample: Values, said: Said, task: str) -> Question:
    given = sample.get("input")
    asked = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    text = said.resolved(given) if isinstance(given, str) else "\n".join(said.words(one)[0] for one in asked)
    names = [name for one in asked for name in said.videos(one)]
    choices = [printable(str(choice)) for choice in listed(sample.get("choices"))][: len(_LABELS)]
    sample_id, epoch = sample.get("id"), sample.get("epoch", 1)
    if not isinstance(sample_id, str | int) or not isinstance(epoch, int) or epoch < 1:
        raise Left(Unmapped.BAD_RECORD, "it has no id, or its epoch is no number from 1")
    return Question(
        text=cut(text),
        kind=QuestionKind.MCQ if choices else QuestionKind.FREE_FORM,
        options=tuple(Option(label=label, text=choice) for label, choice in zip(_LABELS, choices, strict=False)),
        videos=tuple(MediaRef(path=name) for name in names),
        task=task,
        doc_id=printable(str(sample_id))[:500],
        repeat=epoch - 1,
    )


def _ending(
    sample: Values, question: Question, turns: Sequence[Turn], said: Said, reply: str | None
) -> tuple[StopReason, str, str | None, bool]:
    """Why it ended, in one word and in words, the answer, and whether it has the right form."""
    if (error := sample.get("error")) is not None:
        return StopReason.ERROR, cut(str(mapping(error).get("message") or "an error"))[:1000], None, False
    limit = mapping(sample.get("limit"))
    completion = said.resolved(str(mapping(sample.get("output")).get("completion") or ""))
    submitted = next((turn.action.content for turn in turns if isinstance(turn.action, Answer)), "")
    # Many scorers give all words as the answer; the one that the agent submitted is then the answer.
    content = reply if reply and reply != completion else submitted or completion
    if not turns:
        return StopReason.ERROR, "the log has no message of the model", None, False
    reason, detail = StopReason.ANSWERED, ""
    if limit:
        reason = _LIMITS.get(str(limit.get("type")), StopReason.TURNS)
        detail = cut(f"{limit.get('type')} limit {limit.get('limit')}")[:500]
    if reason.failed or not content.strip():
        return (StopReason.TURNS if reason is StopReason.ANSWERED else reason), detail or "no answer", None, False
    read = canonical_answer(question, content)
    if isinstance(read, ActionError):
        return reason, detail, cut(content.strip()), False
    return reason, detail, cut(read), True


def _evidence(given: object) -> tuple[Evidence, ...]:
    try:
        return tuple(Evidence(float(start), float(end), int(video)) for start, end, video in listed(given))
    except (TypeError, ValueError, OverflowError):
        return ()


def _time(created: object) -> str:
    try:
        return datetime.fromisoformat(str(created)).strftime("%Y%m%d_%H%M%S")
    except ValueError:
        return ""
