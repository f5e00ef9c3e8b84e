"""Reads the text that a policy wrote as a validated turn: the only parser of the wire format.

The strict form is tried first (one raw JSON object with the keys `observation`, `think`, `confidence`, `action`). After
that, common mistakes of models are repaired: code fences, words around the object, a trailing comma, a missing last
brace, numbers written as strings, a missing `confidence`. The turn names every repair, so that a report can say how
cleanly a model writes. What can't be repaired is an `ActionError` that the model reads. `parse_strictly` accepts only
the strict form; anything else costs the turn (`parsing=strict`).

The content of a block of thought (`apr_plugin.scoring.thought`) is not a turn: a draft in it is never carried out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from apr_plugin.loop.action import ACTIONS, Answer, Look
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.references import FrameNames, Named
from apr_plugin.loop.text import printable
from apr_plugin.scoring.objects import MAX_OBJECTS, MAX_SCANNED_CHARS, closing_brace, lacks_one_brace
from apr_plugin.scoring.text import without_turn_marks
from apr_plugin.scoring.thought import split_thought

MAX_TEXT_CHARS = 200_000
"""Longer turns are cut before parsing; no turn of 4,096 tokens is nearly that long."""

_KEYS = {"observation", "think", "confidence", "action"}
_NUMBER_KEYS = {"start": float, "end": float, "num": int, "video": int}


@dataclass(frozen=True)
class ParsedTurn:
    """The parts of what a policy wrote."""

    observation: str = ""
    """The note on what the latest percept showed."""

    think: str = ""
    """Why this action."""

    confidence: float | None = None
    """How sure the policy says it is, 0 to 1; `None` if it did not say."""

    action: Look | Answer | None = None
    """The action, or `None` if it could not be read."""

    error: ActionError | None = None
    """Why there is no action; exactly one of `action` and `error` is set."""

    repairs: tuple[str, ...] = ()
    """What was repaired, in words."""

    named: Named | None = None
    """What the policy wrote where the action has times; `None` if it named no frame."""


def parse_turn(
    text: str,
    *,
    answer_only: bool = False,
    offered: Collection[str] = tuple(ACTIONS),
    cut: bool = False,
    names: FrameNames | None = None,
) -> ParsedTurn:
    """Read one turn. This never raises, whatever the text.

    Args:
        text: What the policy wrote.
        answer_only: Whether a missing observation or thought is accepted, because only the answer counts.
        offered: The actions that the policy may take; any other is unknown.
        cut: Whether the turn was cut off at its length limit. Then an object after other words may be a draft in a
            thought that the chat template opened, and is not carried out unless a block of thought is closed before it.
        names: The frames that the policy may name in place of times; with `None` a name is no time.
    """
    repairs: list[str] = []
    written: dict[str, str] = {}
    found = _find_object(text, repairs, cut=cut)
    if isinstance(found, ActionError):
        return ParsedTurn(error=found)
    observation = _as_text(found, "observation", repairs)
    think = _as_text(found, "think", repairs)
    confidence = _read_confidence(found, repairs)
    if unknown := sorted(set(found) - _KEYS):
        repairs.append("ignored unknown keys " + ", ".join(_clip(key) for key in unknown[:5]))
    action = _read_action(found, repairs, offered, names=names, named=written)
    missing = [key for key in ("observation", "think") if key not in found]
    if missing and not answer_only and not isinstance(action, ActionError):
        named = " and ".join(f"'{key}'" for key in missing)
        action = ActionError(
            ErrorCode.MISSING_KEY,
            f"{named} {'is' if len(missing) == 1 else 'are'} missing; the keys given are {_keys(found)}.",
        )
    if isinstance(action, ActionError):
        return ParsedTurn(observation, think, confidence, error=action, repairs=tuple(repairs))
    names_given = Named(**written) if written else None
    return ParsedTurn(observation, think, confidence, action=action, repairs=tuple(repairs), named=names_given)


def parse_strictly(
    text: str, *, offered: Collection[str] = tuple(ACTIONS), several: bool = False, cut: bool = False
) -> ParsedTurn:
    """Read one turn as OmniAgent's environment does. This never raises.

    The source is HarryHsing/OmniAgent, `video_env.py`, with its check of the confidence on. It accepts one raw JSON
    object, with nothing but blanks around it, that has exactly the four keys: `observation` and `think` strings,
    `confidence` any number (1.7 and NaN too), and the action with its arguments: numbers for `start` and `end`, a
    number without a point for `num`, a string for `content`. `true` and `false` count as 1 and 0; other arguments are
    ignored. Nothing is repaired. A turn that `parse_turn` refuses too gets the same error, so that a policy reads the
    same words. One thing is refused here but accepted there: NaN for a time (`docs/scoring.md`).

    Args:
        text: What the policy wrote.
        offered: The actions that the policy may take; any other is unknown.
        several: Whether the question has several videos. Only then `video` is an argument; the official format has
            none.
        cut: Whether the turn was cut off at its length limit; it is used only in the text of the error.
    """
    read = _read_strictly(text, offered, several)
    if read.error is None:
        return read
    repaired = parse_turn(text, offered=offered, cut=cut)
    return replace(read, error=repaired.error or read.error)


def _read_strictly(text: str, offered: Collection[str], several: bool) -> ParsedTurn:
    text = printable(text[:MAX_TEXT_CHARS]).strip()
    found = _loads(text) if text.startswith("{") else None
    if not isinstance(found, dict):
        fault = _json_fault(text) if text.startswith("{") else f"it begins with {_clip(text)}"
        return ParsedTurn(
            error=_malformed(f"the turn must be one raw JSON object with nothing before or after it: {fault}.")
        )
    observation, think, confidence = (
        _as_text(found, "observation", []),
        _as_text(found, "think", []),
        _read_confidence(found, []),
    )
    if not several and isinstance(raw := found.get("action"), dict):
        found = found | {"action": {key: value for key, value in raw.items() if key != "video"}}
    read = _strict_fault(found) or _read_action(found, [], offered, strict=True)
    if isinstance(read, ActionError):
        return ParsedTurn(observation, think, confidence, error=read)
    return ParsedTurn(observation, think, confidence, action=read)


def _strict_fault(found: dict[str, Any]) -> ActionError | None:
    """The error in the object's keys, or in the values other than the action."""
    if missing := sorted(_KEYS - set(found)):
        named = ", ".join(f"'{key}'" for key in missing)
        return ActionError(ErrorCode.MISSING_KEY, f"{named} must be there too; the keys given are {_keys(found)}.")
    if unknown := sorted(set(found) - _KEYS):
        named = ", ".join(_clip(key) for key in unknown[:5])
        return ActionError(
            ErrorCode.UNKNOWN_KEY, f"the object has keys beside observation, think, confidence and action: {named}."
        )
    for key in ("observation", "think"):
        if not isinstance(found[key], str):
            return ActionError(ErrorCode.WRONG_TYPE, f"'{key}' must be a string, not {_kind(found[key])}.")
    if not isinstance(found["confidence"], int | float):
        return ActionError(ErrorCode.WRONG_TYPE, f"'confidence' must be a number, not {_kind(found['confidence'])}.")
    return None


def find_object(text: str, key: str, *, cut: bool = False) -> dict[str, Any] | ActionError:
    """The JSON object in what a model wrote, found and repaired as a turn's is; this never raises.

    Args:
        text: What the model wrote.
        key: The key that the object must have, such as `rating`; the first object with it counts.
        cut: Whether the text was cut off at its length limit.

    Returns:
        The object, or why there is none. An object without the key is returned if there is no other.
    """
    return _find_object(text, [], cut=cut, key=key)


def _find_object(text: str, repairs: list[str], *, cut: bool, key: str = "action") -> dict[str, Any] | ActionError:
    text = printable(text[:MAX_TEXT_CHARS]).strip()
    strict = _loads(text)
    if isinstance(strict, dict):
        return strict
    reply = split_thought(text)
    said = without_turn_marks(reply.said)
    if reply.thought:
        repairs.append("left out a block of thought")
    if reply.unclosed:
        return _malformed(
            "the thought before the JSON object is never closed, so there is no turn; think less, close it "
            "and write the object after it."
        )
    if not said:
        return _malformed(
            "there is no JSON object after the thought; write it after the thought's end."
            if reply.thought
            else "the turn is empty; write one JSON object."
        )
    return _search(said, repairs, opening_only=cut and not reply.thought, key=key)


def _search(text: str, repairs: list[str], *, opening_only: bool, key: str) -> dict[str, Any] | ActionError:
    """The turn's object in the words of the reply."""
    best: dict[str, Any] | None = None
    closed, unreadable_to = False, 0
    first = text.find("{")
    unclosed = first >= 0 and closing_brace(text, first) is None
    if opening_only and first > 0 and text[:first].strip("`\n ").removeprefix("json").strip():
        return _malformed(
            "the turn was cut off at its length limit, and its JSON object is not what it begins with; write "
            "the object alone."
        )
    if unclosed and not opening_only and lacks_one_brace(bare := text.removesuffix("```").rstrip(), first):
        value, notes = _repaired(bare[first:] + "}")
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            repairs += [*notes, "closed the object"]
            return value
    for start, end in _object_spans(text):
        closed = True
        value, notes = _repaired(text[start:end])
        if not isinstance(value, dict):
            unreadable_to = max(unreadable_to, end)
            continue
        before, after = text[:start].strip(), text[end:].strip()
        if before.startswith("```") or after.endswith("```"):
            notes.append("removed a code fence")
            before, after = before.removeprefix("```").removeprefix("json").strip(), after.removesuffix("```").strip()
        if before or after:
            notes.append("ignored text around the object")
        if key in value:
            repairs += notes
            return value
        if start >= unreadable_to and not unclosed:  # otherwise it is a part of an object that can't be read
            best = best or value
    if best is not None:
        return best  # an object without an action, because the error about the missing key is more useful
    if first < 0:
        return _malformed(f"the turn holds no JSON object; it begins with {_clip(text)}.")
    if not closed or unclosed:
        return _malformed("the JSON object is never closed; keep the turn shorter and end it with '}'.")
    return _malformed(f"the JSON object can't be read: {_json_fault(text)}.")


def _malformed(message: str) -> ActionError:
    return ActionError(ErrorCode.MALFORMED_JSON, message)


def _loads(text: str, *, strict: bool = True) -> Any:
    """The JSON value, or `None` if there is none; NaN and infinities are floats, so that they get their own message."""
    try:
        return json.loads(text, strict=strict)
    except (ValueError, RecursionError):  # ValueError also covers integers of thousands of digits
        return None


def _repaired(text: str) -> tuple[Any, list[str]]:
    """The JSON value with as little repair as possible, and what was repaired."""
    if (value := _loads(text)) is not None:
        return value, []
    if (value := _loads(text, strict=False)) is not None:
        return value, ["accepted line breaks within a string"]
    bare = _without_trailing_commas(text)
    if (value := _loads(bare)) is not None:
        return value, ["removed a trailing comma"]
    return _loads(bare, strict=False), ["removed a trailing comma", "accepted line breaks within a string"]


def _json_fault(text: str) -> str:
    try:
        json.loads(text[text.index("{") :])
    except json.JSONDecodeError as error:
        return f"{error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:
        return type(error).__name__
    return "no object with an action"


def _object_spans(text: str) -> Iterator[tuple[int, int]]:
    """The outermost `{...}` of the text, then objects at later braces; braces inside JSON strings don't count."""
    position = scanned = 0
    for _ in range(MAX_OBJECTS):
        start = text.find("{", position)
        if start < 0 or scanned > MAX_SCANNED_CHARS:
            return
        end = closing_brace(text, start)
        scanned += (end or len(text)) - start
        if end is not None:
            yield start, end
        position = start + 1


def _without_trailing_commas(text: str) -> str:
    """Drop commas directly before `}` or `]`, outside strings."""
    out: list[str] = []
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "}]":
            kept = len(out)
            while kept and out[kept - 1].isspace():
                kept -= 1
            if kept and out[kept - 1] == ",":
                del out[kept - 1]
        out.append(char)
    return "".join(out)


def _as_text(found: dict[str, Any], key: str, repairs: list[str]) -> str:
    if key not in found:
        repairs.append(f"{key} was missing")
        return ""
    value = found[key]
    if isinstance(value, str):
        return printable(value)
    repairs.append(f"{key} was not a string")
    return printable(json.dumps(value, ensure_ascii=False))


def _read_confidence(found: dict[str, Any], repairs: list[str]) -> float | None:
    if "confidence" not in found:
        repairs.append("confidence was missing")
        return None
    value = found["confidence"]
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
        repairs.append("confidence was a string")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN fails the comparison
        repairs.append("confidence was no number from 0 to 1")
        return None
    return float(value)


def _read_action(
    found: dict[str, Any],
    repairs: list[str],
    offered: Collection[str],
    *,
    strict: bool = False,
    names: FrameNames | None = None,
    named: dict[str, str] | None = None,
) -> Look | Answer | ActionError:
    if "action" not in found:
        return ActionError(ErrorCode.MISSING_KEY, f"the key 'action' is missing; the keys given are {_keys(found)}.")
    raw = found["action"]
    if not isinstance(raw, dict):
        return ActionError(ErrorCode.WRONG_TYPE, f"'action' must be an object with a 'type', not {_kind(raw)}.")
    if "type" not in raw:
        return ActionError(ErrorCode.MISSING_KEY, f"the action has no key 'type'; the keys given are {_keys(raw)}.")
    name = raw["type"]
    model = ACTIONS.get(name) if isinstance(name, str) and name in offered else None
    if model is None:
        return ActionError(
            ErrorCode.UNKNOWN_ACTION, f"there is no action {_clip(name)}; the actions are {', '.join(offered)}."
        )
    fields = {key: value for key, value in raw.items() if key in model.model_fields}
    if unknown := sorted(set(raw) - set(fields)):
        repairs.append("ignored unknown arguments " + ", ".join(_clip(key) for key in unknown[:5]))
    named = {} if named is None else named
    if names is not None:
        named |= {key: fields[key].strip() for key in ("start", "end") if _names_frame(fields.get(key))}
    for key, number in _NUMBER_KEYS.items():
        if key in fields and key not in named:
            value = (
                _strict_number(key, fields[key], number) if strict else _read_number(key, fields[key], number, repairs)
            )
            if isinstance(value, ActionError):
                return value
            fields[key] = value
    for key in tuple(named):
        assert names is not None
        time_s = names.time(named[key], f"'{key}'", fields.get("video", 0))
        if isinstance(time_s, ActionError):
            return time_s
        fields[key] = time_s
    if model is Answer and "content" in fields:
        if not isinstance(fields["content"], str):
            if strict or fields["content"] is None:
                return ActionError(ErrorCode.WRONG_TYPE, f"'content' must be a string, not {_kind(fields['content'])}.")
            fields["content"] = json.dumps(fields["content"], ensure_ascii=False)
            repairs.append("content was not a string")
        fields["content"] = printable(fields["content"])
        resolved = fields["content"] if names is None else names.in_answer(fields["content"])
        if isinstance(resolved, ActionError):
            return resolved
        if resolved != fields["content"]:
            named["content"], fields["content"] = fields["content"], resolved
    try:
        return model(**fields)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "missing":
            return ActionError(
                ErrorCode.MISSING_KEY, f"{name} needs the key '{where}'; the keys given are {_keys(raw)}."
            )
        return ActionError(ErrorCode.WRONG_TYPE, f"'{where}' of {name}: {fault['msg']}.")


def _names_frame(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith("#")


def _read_number(
    key: str, value: Any, number: type[int] | type[float], repairs: list[str]
) -> int | float | ActionError:
    if isinstance(value, str):
        try:
            value = float(value.strip().removesuffix("s"))
        except ValueError:
            return ActionError(ErrorCode.WRONG_TYPE, f"'{key}' must be a number, not {_clip(value)}.")
        repairs.append(f"{key} was a string")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ActionError(ErrorCode.WRONG_TYPE, f"'{key}' must be a number, not {_kind(value)}.")
    try:
        value_f = float(value)
    except OverflowError:
        value_f = math.inf
    if not math.isfinite(value_f):
        return ActionError(ErrorCode.NOT_FINITE, f"'{key}' must be a finite number, not {value_f}.")
    if number is float:
        return value_f
    if value_f != int(value_f):
        return ActionError(ErrorCode.WRONG_TYPE, f"'{key}' must be a whole number, not {value_f:g}.")
    if not isinstance(value, int) and not any(note.startswith(f"{key} ") for note in repairs):
        repairs.append(f"{key} was no integer")
    return int(value_f)


def _strict_number(key: str, value: Any, number: type[int] | type[float]) -> int | float | ActionError:
    if not isinstance(value, int if number is int else int | float):
        whole = "whole number without a point" if number is int else "number"
        return ActionError(
            ErrorCode.WRONG_TYPE,
            f"'{key}' must be a {whole}, not {_clip(value) if isinstance(value, str | float) else _kind(value)}.",
        )
    return _read_number(key, int(value) if isinstance(value, bool) else value, number, [])


def _clip(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _keys(found: dict[str, Any]) -> str:
    return ", ".join(_clip(key) for key in list(found)[:8]) or "none"


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
