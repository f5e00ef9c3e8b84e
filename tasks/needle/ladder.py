"""What `NeedlePolicy` knows and what it does next: a `Case` of notes, and a ladder from the whole video to the event.

The ladder: scan the video for the chapter, scan the chapter for the scene, scan (or listen to) the scene for the event,
narrow the event's edges, answer. A step that the notes already cover is skipped.

A note reads `[frames 0.00-7200.00s x60] 0.00-732.20s blue/striped; 854.24s blue/dotted red triangle; ...` or
`[audio 10.00-40.00s] chime 12.10-12.60s`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .questions import Kind, ParsedQuestion

MAX_FRAMES, MAX_AUDIO_S = 60, 300.0

_LOOK = re.compile(r"\[(frames|audio) ([\d.]+)-([\d.]+)s(?: x(\d+))?\] ?([^\[]*)")
_RUN = re.compile(r"([\d.]+)(?:-([\d.]+))?s ([a-z ]+?)/([a-z]+)(?: ([a-z]+ [a-z]+))?$")
_SOUND = re.compile(r"([a-z]+) ([\d.]+)-([\d.]+)s$")

Window = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """What was on screen at one time."""

    time_s: float
    background: str
    pattern: str
    glyph: str


@dataclass
class Case:
    """Everything that the prompt says: the question, the video's data, and the content of the notes."""

    text: str
    asked: ParsedQuestion | None
    options: list[tuple[str, str]]
    duration_s: float
    fps: float
    has_audio: bool
    points: list[Point] = field(default_factory=list)
    sounds: list[tuple[str, float, float]] = field(default_factory=list)
    scans: list[tuple[float, float, float]] = field(default_factory=list)  # start, end, seconds between frames
    heard: list[Window] = field(default_factory=list)
    tried: set[tuple[str, float, float]] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)  # answers that were refused
    errors: list[str] = field(default_factory=list)
    # label, span, number or words: what the instructions, or the last refusal, ask for; empty if they say nothing
    form: str = ""
    videos: int = 1

    def take(self, note: str) -> None:
        """Add a note to what is known."""
        for kind, start, end, num, items in _LOOK.findall(note):
            window = (float(start), float(end))
            if kind == "audio":
                self.heard.append(window)
                self.sounds += [
                    (m[1], float(m[2]), float(m[3])) for m in map(_SOUND.match, items.strip().split("; ")) if m
                ]
                continue
            self.scans.append((*window, (window[1] - window[0]) / max(1, int(num or 1) - 1)))
            for match in filter(None, map(_RUN.match, items.strip().split("; "))):
                ends = {float(match[1]), float(match[2] or match[1])}
                self.points += [Point(at, match[3], match[4], match[5] or "") for at in ends]
        self.points.sort(key=lambda point: point.time_s)

    @property
    def max_frames(self) -> int:
        """The number of frames per look; it is halved whenever the environment refused that many."""
        return MAX_FRAMES >> sum(code in ("TOO_MANY_FRAMES", "NO_TOKENS_LEFT") for code in self.errors)

    def guess(self, choices: int) -> int:
        """A choice that depends only on the question's words."""
        return int(hashlib.sha256(self.text.encode()).hexdigest()[:12], 16) % max(1, choices)


@dataclass(frozen=True)
class Step:
    """The next action, and the reason."""

    think: str
    confidence: float
    action: dict[str, Any]


@dataclass(frozen=True)
class Bounds:
    """The beginning and end of something: surely absent outside of `outer`, surely present inside `inner`."""

    outer: Window
    inner: Window

    @property
    def middle(self) -> Window:
        """The most likely edges."""
        return ((self.outer[0] + self.inner[0]) / 2, (self.outer[1] + self.inner[1]) / 2)

    @property
    def slack(self) -> float:
        """The uncertainty of the less certain edge, in seconds."""
        return max(self.inner[0] - self.outer[0], self.outer[1] - self.inner[1])


def bounds(case: Case, belongs: Callable[[Point], bool]) -> Bounds | None:
    """What the notes say about the position of the matching points; `None` if there are none."""
    times = [point.time_s for point in case.points if belongs(point)]
    if not times:
        return None
    before = max((p.time_s for p in case.points if p.time_s < times[0]), default=0.0)
    after = min((p.time_s for p in case.points if p.time_s > times[-1]), default=case.duration_s)
    return Bounds((before, max(after, times[-1])), (times[0], times[-1]))


def decide(case: Case, final: bool) -> Step:
    """The next step of the ladder."""
    if final:
        return answer(case, "No turn is left, so I answer from my notes.")
    stuck = len(case.errors) >= 6 or case.max_frames < 2
    if not case.scans and not stuck:
        return look(
            case,
            "get_frames",
            (0.0, case.duration_s),
            "I know nothing of this video yet, so I scan all of it.",
            0.1,
            case.max_frames,
        )
    if stuck or case.asked is None or not case.points:
        return answer(case, "I can't read this question or this video as a needle one, so this is a guess.")
    return next(iter(_rungs(case, case.asked)), None) or answer(case, "My notes hold what can be found.")


def _rungs(case: Case, asked: ParsedQuestion) -> Iterator[Step]:
    """Looks that are still useful, the most urgent first."""
    chapter = bounds(case, lambda p: p.background == asked.colour)
    scene = bounds(case, _in_scene(asked))
    if scene is None:
        place = chapter.outer if chapter else (0.0, case.duration_s)
        what = f"the {asked.pattern} scene of the {asked.colour} chapter" if chapter else f"the {asked.colour} chapter"
        for parts in (50, 200):
            yield from _scan(
                case,
                place,
                (place[1] - place[0]) / parts,
                f"I have not seen {what} yet, so I scan where it can be.",
                0.3,
            )
        return
    glyphs = {point.glyph for point in case.points if _in_scene(asked)(point)} - {""}
    length = scene.middle[1] - scene.middle[0]
    if asked.kind in (Kind.COUNT, Kind.SOUND) and case.has_audio:
        if scene.slack > 0.25 * length:  # otherwise listening covers all of the scene and no event of its neighbours
            yield from _scan(
                case,
                scene.outer,
                max(0.5, length / 10),
                "Where this scene begins and ends is too uncertain to listen to it.",
                0.5,
            )
        yield from _listen(case, scene.middle)
        for _, start, end in _tones(case, asked)[:1] if asked.kind is Kind.SOUND else []:
            window = (round(start + 0.25 * (end - start), 2), round(end - 0.25 * (end - start), 2))
            if _glyph_at(case, asked, (start + end) / 2) is None and ("get_frames", *window) not in case.tried:
                yield look(
                    case,
                    "get_frames",
                    window,
                    f"The {asked.pitch} tone sounds here; what is on screen is still unknown.",
                    0.7,
                    3,
                )
        return
    wanted = {glyph.name for glyph in asked.glyphs}
    missing = wanted - glyphs if wanted else ({"glyph"} if not glyphs else set())
    for step_s in (max(1.9, 0.04 * length), max(0.9, 0.02 * length)) if missing else ():
        yield from _scan(
            case, scene.outer, step_s, f"I have not seen the {' or the '.join(sorted(missing))} of this scene yet.", 0.5
        )
    if asked.kind is Kind.WHEN and not missing:
        yield from _narrow(case, asked)


def _in_scene(asked: ParsedQuestion) -> Callable[[Point], bool]:
    return lambda point: point.background == asked.colour and point.pattern == asked.pattern


def _tones(case: Case, asked: ParsedQuestion) -> list[tuple[str, float, float]]:
    scene = bounds(case, _in_scene(asked))
    name = "chime" if asked.kind is Kind.COUNT else asked.pitch
    return [
        s for s in case.sounds if s[0] == name and scene and scene.middle[0] <= (s[1] + s[2]) / 2 <= scene.middle[1]
    ]


def _glyph_at(case: Case, asked: ParsedQuestion, time_s: float) -> str | None:
    """The glyph that was seen both before and after (or at) this time in the asked scene."""
    for name in {point.glyph for point in case.points if _in_scene(asked)(point)} - {""}:
        times = [point.time_s for point in case.points if _in_scene(asked)(point) and point.glyph == name]
        if times[0] - 0.3 <= time_s <= times[-1] + 0.3:
            return name
    return None


def _scan(case: Case, window: Window, step_s: float, think: str, confidence: float) -> Iterator[Step]:
    """Scan the parts of the window that have not been scanned this finely.

    This is one look if possible; otherwise coarser first, then piece by piece.
    """
    open_ = _unscanned(case, window, 1.05 * step_s)
    if not open_:
        return
    start, end = open_[0][0], open_[-1][1]
    most = case.max_frames - 1
    coarse_s = (end - start) / most
    if coarse_s > step_s and not _unscanned(case, window, 1.1 * coarse_s):
        end = start + step_s * most
    yield look(
        case, "get_frames", (start, end), think, confidence, min(case.max_frames, math.ceil((end - start) / step_s) + 1)
    )


def _unscanned(case: Case, window: Window, step_s: float) -> list[Window]:
    """The parts of the window that were never scanned this finely.

    The frame rate limits how close to an edge a scan can come.
    """
    sliver_s = max(0.2, 1.5 / case.fps) if case.fps > 0 else 0.2
    return _uncovered(window, [(start, end) for start, end, step in case.scans if step <= step_s], sliver_s)


def _listen(case: Case, window: Window) -> Iterator[Step]:
    longest = MAX_AUDIO_S / 2 ** case.errors.count("TOO_LONG")
    for start, end in _uncovered(window, case.heard):
        yield look(
            case,
            "get_audio",
            (start, min(end, start + longest)),
            "I know where the scene is, but not yet how it sounds.",
            0.6,
        )


def _narrow(case: Case, asked: ParsedQuestion) -> Iterator[Step]:
    """Take a closer look at the event's edges."""
    event = _event(case, asked)
    tick = 1 / case.fps if case.fps > 0 else 0.04
    tolerance = max(1.2 * tick, 0.06 * (event.middle[1] - event.middle[0])) if event else 0.0
    if event is None or event.slack <= tolerance:
        return
    edges = [(event.outer[0], event.inner[0]), (event.inner[1], event.outer[1])]
    wide = [edge for edge in edges if edge[1] - edge[0] > tolerance]
    for start, end in [(wide[0][0], wide[-1][1]), *wide]:
        step_s = max(tick, (end - start) / (case.max_frames - 1))
        if step_s <= 0.5 * event.slack or step_s <= tolerance:
            yield from _scan(
                case, (start, end), step_s, "I have seen the event; its exact edges are still uncertain.", 0.8
            )


def _event(case: Case, asked: ParsedQuestion) -> Bounds | None:
    return bounds(case, lambda point: _in_scene(asked)(point) and point.glyph == asked.glyphs[0].name)


def _uncovered(window: Window, covered: list[Window], sliver_s: float = 0.2) -> list[Window]:
    """The parts of the window that are in no covered window, without very short ones."""
    parts, at = [], window[0]
    for start, end in [*sorted(covered), (window[1], window[1])]:
        if min(start, window[1]) - at > sliver_s:
            parts.append((at, min(start, window[1])))
        at = max(at, end)
    return parts


def look(case: Case, kind: str, window: Window, think: str, confidence: float, num: int = 0) -> Step:
    """A look at a window inside the video that has not been taken before."""
    limit = max(case.duration_s - 0.5 * case.errors.count("OUT_OF_RANGE"), 0.2)
    start, end = max(0.0, min(window[0], limit - 0.2)), min(limit, max(window[1], window[0] + 0.2))
    whole = start < 0.1 and end > limit - 0.1
    for _ in range(20):
        action: dict[str, Any] = {"type": kind, "start": round(start, 2), "end": round(end, 2)}
        if (kind, action["start"], action["end"]) not in case.tried:
            break
        start, end = (start + 0.1, end) if whole else (max(0.0, start - 0.1), min(limit, end + 0.1))
    return Step(think, confidence, action | ({"num": max(1, num)} if kind == "get_frames" else {}))


def answer(case: Case, think: str) -> Step:
    """The best answer that the notes allow."""
    known, sure = _known(case) if case.asked else (None, 0.0)
    if known is not None and known not in case.answered and _has_form(case, known):
        return Step(think, sure, {"type": "answer", "content": known})
    forms = [_form(case), "label", "span", "number", "words"]
    guesses = [guess for form in forms if (guess := _guessed(case, form)) is not None]
    content = next((guess for guess in guesses if guess not in case.answered), guesses[0])
    why = (
        "The notes do not tell" if known is None else f"The notes say {known}, which has not the form that is asked for"
    )
    return Step(f"{think} {why}, so I guess.", 0.1, {"type": "answer", "content": content})


def _form(case: Case) -> str:
    """The form that an answer must have: the requested one, otherwise the one that fits the question."""
    if case.form:
        return case.form
    if case.options:
        return "label"
    if case.asked is None:
        return "span" if "[[" in case.text else "words"
    return {Kind.WHEN: "span", Kind.COUNT: "number"}.get(case.asked.kind, "words")


def _has_form(case: Case, content: str) -> bool:
    match _form(case):
        case "label":
            return content in [label for label, _ in case.options]
        case "span":
            return content.startswith("[[")
        case "number":
            return content.isdecimal()
        case _:
            return True


def _known(case: Case) -> tuple[str | None, float]:
    """What the notes say, and how sure it is.

    It is a label if an option says it, otherwise the words, span or number itself.
    """
    asked = case.asked
    assert asked is not None
    seen = [point for point in case.points if _in_scene(asked)(point) and point.glyph]
    found: str | None = None
    match asked.kind:
        case Kind.COUNT:
            scene = bounds(case, _in_scene(asked))
            listened = scene is not None and bool(case.heard) and not _uncovered(scene.middle, case.heard)
            found = str(len(_tones(case, asked))) if listened else None
        case Kind.WHEN:
            event = _event(case, asked)
            if event is not None:
                # The first frame of an edge is the first that shows it, so the true edge is half a frame later than the
                # middle between the two frames.
                half = 0.5 / case.fps if case.fps > 0 else 0.0
                start, end = (min(edge + half, case.duration_s) for edge in event.middle)
                found = f"[[{start:.2f}, {max(end, start):.2f}]]"
        case Kind.SOUND:
            found = next(
                (name for _, start, end in _tones(case, asked) if (name := _glyph_at(case, asked, (start + end) / 2))),
                None,
            )
        case Kind.ORDER:
            names = [point.glyph for point in seen if point.glyph in {glyph.name for glyph in asked.glyphs}]
            found = names[0] if len(set(names)) == 2 else None
        case Kind.GLYPH:
            names = list(dict.fromkeys(point.glyph for point in seen))
            listed = [name for name in names if any(name == text.strip() for _, text in case.options)]
            found = (listed[0] if listed else None) if case.options else ", ".join(names) or None
    if case.options and found is not None and not found.startswith("[["):
        found = next((label for label, text in case.options if text.strip() == found), None)
    return found, 0.95 if found is not None else 0.0


def _guessed(case: Case, form: str) -> str | None:
    """A guess of this form; `None` if no guess is possible."""
    asked = case.asked
    scene = asked and (bounds(case, _in_scene(asked)) or bounds(case, lambda p: p.background == asked.colour))
    match form:
        case "label":
            if asked is None:
                return case.options[0][0] if case.options else None
            shown = {point.glyph for point in case.points if _in_scene(asked)(point)}
            likely = [label for label, text in case.options if text in shown] if asked.kind is Kind.SOUND else []
            labels = likely or [label for label, _ in case.options]
            return labels[case.guess(len(labels))] if labels else None
        case "span":
            if asked is None:
                return f"[[0.0, {case.duration_s:.2f}]]"
            start, end = scene.middle if scene else (0.0, case.duration_s)
            return f"[[{start + 0.3 * (end - start):.2f}, {start + 0.7 * (end - start):.2f}]]"
        case "number":
            return "0" if asked is None else str(1 + case.guess(5))
        case _:
            return str(1 + case.guess(5)) if asked is not None and asked.kind is Kind.COUNT else "unknown"
