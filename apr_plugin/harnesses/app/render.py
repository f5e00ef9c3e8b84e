"""A view as HTML. Every text in it is escaped: what a model or a visitor writes is shown as text, never as markup.

The page shows four pieces (`Pieces`). The turns are a row of fragments in which nothing changes once it is there, so
that an update needs to send only what is new.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from apr_plugin.harnesses.app.ruler import clock, draw
from apr_plugin.harnesses.app.view import View
from apr_plugin.loop.action import describe
from apr_plugin.loop.text import printable
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.terminal import plain

LONGEST = 4000
"""Characters of one text that are shown; a longer one says how much is left out. The download has all of it."""

STOPS = {
    StopReason.ANSWERED: "answered",
    StopReason.FORCED: "a limit was reached; the answer came from a last call without media",
    StopReason.CANCELLED: "stopped",
}
"""What to say about a stop reason; the others are said by their name and detail."""


@dataclass(frozen=True)
class Pieces:
    """What the page shows, as HTML."""

    status: str
    """Where the investigation is, and its cost against its limits."""
    ruler: str
    """Its looks on the time axis."""
    turns: str
    """Every turn."""
    ending: str
    """The answer, or why there is none, and the downloads."""


def pieces(view: View) -> Pieces:
    """The four pieces of a view."""
    ruler = draw(view.durations_s[0], view.looks) if view.durations_s else None
    return Pieces(
        status=_inert(_part("status")(view, view.cost)),
        ruler=_inert(_part("ruler")(ruler)) if ruler is not None else "",
        turns="".join(_inert(_part("turn")(card)) for card in view.cards),
        ending=_inert(_part("ending")(view)),
    )


def video_html(name: str, facts: str, address: str) -> str:
    """The chosen video: its name, what was found in it, and a player."""
    return _inert(_part("video")(name, facts, address))


def title_html(title: str, policy: str) -> str:
    """The top of the page: what it is, and who answers."""
    return _inert(_part("title")(title, policy))


def message_html(message: str, error: bool = False) -> str:
    """A message to the visitor."""
    return _inert(_part("message")(message, error))


def style() -> str:
    """The style sheet of the pieces."""
    return files(__package__).joinpath("page.css").read_text("utf-8")


def _inert(html: str) -> str:
    """The same HTML without the characters that a template in the browser would act on.

    Gradio puts the value of an HTML component into a template (`${…}`, then `{{…}}`), so both are written as character
    references.
    """
    return str(html).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")


def _said(value: object, longest: int = LONGEST) -> str:
    """A text of others for the page: no control characters, cut where it is very long."""
    words = plain(printable(str(value)))
    return words if len(words) <= longest else f"{words[:longest]} … ({len(words) - longest:,} more characters)"


def _entropy(values: Any) -> str:
    """The mean entropy of a turn's tokens, or that the policy gives none."""
    known = [value for value in values or () if value is not None and math.isfinite(value)]
    return f"{sum(known) / len(known):.2f} nats a token" if known else "not given"


def _count(value: int | None) -> str:
    return "not given" if value is None else f"{value:,}"


def _stop(reason: StopReason) -> str:
    return STOPS.get(reason, str(reason).replace("_", " "))


def _part(name: str) -> Callable[..., str]:
    return getattr(_module(), name)  # type: ignore[no-any-return]


@cache
def _module() -> Any:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"said": _said, "clock": clock, "entropy": _entropy, "count": _count, "stop": _stop}
    environment.globals["describe"] = describe
    return environment.from_string(files(__package__).joinpath("page.jinja").read_text("utf-8")).module
