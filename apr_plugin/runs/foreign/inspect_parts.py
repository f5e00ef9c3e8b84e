"""The parts of a sample of inspect_ai: words, names of videos, events, tokens. Everything in it is untrusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_plugin.loop.policy import Usage
from apr_plugin.loop.text import printable
from apr_plugin.runs.foreign.records import file_name

LONGEST_TEXT = 1_000_000
"""Characters of one text that are kept; a longer one is cut, and says so."""

Values = Mapping[str, Any]
"""An object of a log."""

_ATTACHED = "attachment://"


class Said:
    """Reads the words of a sample's messages, whose long texts are kept beside it (`attachments`)."""

    def __init__(self, sample: Values) -> None:
        self._attached = mapping(sample.get("attachments"))

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
        parts = [part for part in listed(content) if isinstance(part, dict)]
        text = [self.resolved(str(part.get("text") or "")) for part in parts if part.get("type") == "text"]
        thought = [self.resolved(str(part.get("reasoning") or "")) for part in parts if part.get("type") == "reasoning"]
        return "\n".join(text), "\n".join(thought)

    def videos(self, message: Values) -> list[str]:
        """Names of the videos and sounds in a message; of one that is in the log itself, `video 1`."""
        parts = [part for part in listed(message.get("content")) if isinstance(part, dict)]
        given = [part.get(part["type"]) for part in parts if part.get("type") in ("video", "audio")]
        paths = [one for one in given if isinstance(one, str)]
        inside = (_ATTACHED, "data:")
        return [f"video {n}" if path.startswith(inside) else file_name(path) for n, path in enumerate(paths, 1)]


def model_events(sample: Values) -> dict[str, Values]:
    """The `model` events by the id of the message that was generated."""
    found: dict[str, Values] = {}
    for event in listed(sample.get("events")):
        if isinstance(event, dict) and event.get("event") == "model":
            message = first_message(mapping(event.get("output")))
            if message.get("id") is not None:
                found[str(message["id"])] = event
    return found


def first_message(output: Values) -> Values:
    """The message of a generation."""
    return mapping(mapping(next(iter(listed(output.get("choices"))), None)).get("message"))


def tool_seconds(sample: Values) -> dict[str, float]:
    """Seconds of each tool call, by its id."""
    events = [one for one in listed(sample.get("events")) if isinstance(one, dict) and one.get("event") == "tool"]
    timed = {str(event.get("id")): seconds(event.get("working_time")) for event in events}
    return {name: value for name, value in timed.items() if value is not None}


def calls_of(message: Values) -> list[Values]:
    """The tool calls in a message."""
    return [call for call in listed(message.get("tool_calls")) if isinstance(call, dict)]


def usage_of(usage: Values) -> Usage:
    """Tokens; the prompt's are with those from a cache, which are counted apart there."""

    def count(name: str) -> int | None:
        value = usage.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    read, cached = count("input_tokens"), count("input_tokens_cache_read")
    whole = None if read is None else read + (cached or 0) + (count("input_tokens_cache_write") or 0)
    return Usage(prompt_tokens=whole, cached_tokens=cached, completion_tokens=count("output_tokens"))


def seconds(value: object) -> float | None:
    """A number of seconds; `None` if it is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value < 1e9 else None  # type: ignore[arg-type, operator]


def cut(text: str) -> str:
    """The text without what no file accepts, cut at `LONGEST_TEXT`."""
    text = printable(text)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} [cut]"


def mapping(value: object) -> Values:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def listed(value: object) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []
