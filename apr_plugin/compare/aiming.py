"""Whether an arm looked where the evidence is. Pure functions over trajectories and truths.

What counts:

- A span of evidence shorter than a second (`LEAST_S`), such as a point in time, is taken as the second around it. Spans
  that overlap are merged. A span that ends after the video ends there. Spans that are reversed, negative or not finite
  are left out (`Truth.spans`).
- A look shows a span where a frame of it has a true time inside the span (give or take `EDGE_S`, because times are
  rounded), or where sound that it played overlaps the span. The window that was asked for does not matter: no frame of
  a sparse look may fall into a short span. Whether evidence is to be seen or heard, no task says, so either counts.
- Covered is what lies between two neighbouring frames of one look, if they are no further apart than the span is long;
  half a second on either side of a frame inside the span; and the time of the sound. A look that shows nothing of a
  span covers nothing of it, and one that shows it covers some of it.
- A look is a repeat if an earlier one had the same kind, the same video and nearly the same window (IoU of at least
  `SAME_IOU`) and its frames were no further apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from apr_plugin.compare.joined import Arm, Comparison
from apr_plugin.compare.pairs import clusters_of
from apr_plugin.compare.stats import Interval, means, proportion
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.trajectory import Shown, StopReason, Trajectory
from apr_plugin.runs.opened import Key
from apr_plugin.scoring.intervals import Span, hull_iou, merge, overlap
from apr_plugin.scoring.truth import Truth

LEAST_S = 1.0
"""A shorter span of evidence counts as this long, in seconds."""

EDGE_S = 0.05
"""How far outside a span a frame may be and still count as inside, in seconds: about a frame at 25 per second."""

SAME_IOU = 0.8
"""Windows that overlap at least this much are the same."""

_FINER = 0.95
"""Frames closer together than this share of an earlier look's are finer."""


@dataclass(frozen=True)
class Aim:
    """One question: where an arm looked, and where the evidence was."""

    looks: int
    """What it was shown: the agent's looks, or a passive arm's frames, one look for each video."""
    hit: bool
    """Whether any look showed some of the evidence."""
    spans_hit: float
    """Share of the evidence's spans of which something was shown."""
    coverage: float
    """Share of the evidence's seconds that are covered by all looks together."""
    first_hit: int | None
    """Which look showed some of the evidence first, counted from 1; `None` if none did."""
    wasted: int
    """Looks that showed nothing of the evidence."""
    repeats: int
    """Looks that were taken before, and not closer this time."""
    no_look: bool
    """Whether it answered without being shown anything."""
    forced: bool
    """Whether the answer came from a last call, after a limit was reached."""


def aim_of(trajectory: Trajectory, truth: Truth) -> Aim | None:
    """Where a trajectory looked, or `None` where that was not recorded, or nothing says where the evidence is."""
    spans = evidence_spans(trajectory, truth)
    if not spans or not shown_is_known(trajectory):
        return None
    looks = [look for look in trajectory.looks if look.kind != "images"]
    hits = [any(shows(look, span) for span in spans.get(look.video, ())) for look in looks]
    hit_spans = covered = seconds = 0.0
    for video, of_video in spans.items():
        for span in of_video:
            hit_spans += any(shows(look, span) for look in looks if look.video == video)
            parts = [part for look in looks if look.video == video for part in covers(look, span)]
            covered += overlap(merge(parts), [span])
            seconds += span[1] - span[0]
    return Aim(
        looks=len(looks),
        hit=any(hits),
        spans_hit=hit_spans / sum(map(len, spans.values())),
        coverage=min(1.0, covered / seconds),
        first_hit=hits.index(True) + 1 if any(hits) else None,
        wasted=hits.count(False),
        repeats=sum(is_repeat(look, looks[:number]) for number, look in enumerate(looks)),
        no_look=trajectory.answer is not None and not looks,
        forced=trajectory.stop_reason is StopReason.FORCED,
    )


def shown_is_known(trajectory: Trajectory) -> bool:
    """Whether the trajectory says what its looks showed; the record of another program may not."""
    return trajectory.has(Figure.FRAMES) and trajectory.has(Figure.AUDIO)


def evidence_spans(trajectory: Trajectory, truth: Truth) -> dict[int, list[Span]]:
    """The spans of evidence of each video that has any, as they count here: merged, at least a second long."""
    found: dict[int, list[Span]] = {}
    for video in sorted({part.video for part in truth.evidence}):
        end = _end(trajectory, video)
        spans = merge(_widened(span, end) for span in truth.spans(video))
        if spans:
            found[video] = spans
    return found


def shows(look: Shown, span: Span) -> bool:
    """Whether a look showed something of a span of its video."""
    start, end = span
    if any(start - EDGE_S <= time <= end + EDGE_S for time in look.times_s):
        return True
    heard = _heard(look)
    return heard is not None and min(heard[1], end) > max(heard[0], start)


def covers(look: Shown, span: Span) -> list[Span]:
    """Which stretches a look covers of a span of its video; they may overlap, and reach beyond the span."""
    start, end = span
    found: list[Span] = []
    heard = _heard(look)
    if heard is not None and min(heard[1], end) > max(heard[0], start):
        found.append(heard)
    times = sorted(time for time in look.times_s if math.isfinite(time))
    inside = [time for time in times if start - EDGE_S <= time <= end + EDGE_S]
    if inside:
        found += [(max(0.0, time - LEAST_S / 2), time + LEAST_S / 2) for time in inside]
        found += [(a, b) for a, b in pairwise(times) if b - a <= end - start]
    return found


def _end(trajectory: Trajectory, video: int) -> float | None:
    """Where a video ends, its sound included; `None` where it is not known."""
    known = [trajectory.video_durations_s[video]] if 0 <= video < len(trajectory.video_durations_s) else []
    if 0 <= video < len(trajectory.videos):
        film = trajectory.videos[video]
        known += [film.duration_s, film.audio_s or 0.0]
    end = max(known, default=0.0)
    return end if end > 0 else None


def _widened(span: Span, video_end: float | None) -> Span:
    start, end = span
    lacking = max(0.0, LEAST_S - (end - start))
    start, end = max(0.0, start - lacking / 2), end + lacking / 2
    return (start, video_end) if video_end is not None and start < video_end < end else (start, end)


def _heard(look: Shown) -> Span | None:
    """When the sound that was played is from; padding after the sound's end does not count."""
    heard = (look.start_s, min(look.end_s, look.start_s + look.audio_s))
    return heard if look.audio_s > 0 and heard[1] > heard[0] else None


def is_repeat(look: Shown, earlier: Sequence[Shown]) -> bool:
    """Whether an earlier look was the same, and this one is no closer."""
    return any(
        look.kind == other.kind
        and look.video == other.video
        and _same_window(look, other)
        and not _step(look) < _FINER * _step(other)
        for other in earlier
    )


def _same_window(a: Shown, b: Shown) -> bool:
    if abs(a.start_s - b.start_s) <= EDGE_S and abs(a.end_s - b.end_s) <= EDGE_S:
        return True  # moments, too, which have no IoU
    return hull_iou((a.start_s, a.end_s), (b.start_s, b.end_s)) >= SAME_IOU


def _step(look: Shown) -> float:
    """Seconds between frames on average; 0 for sound, which has no finer step."""
    times = look.times_s
    if not times:
        return 0.0
    return (max(times) - min(times)) / (len(times) - 1) if len(times) > 1 else math.inf


def aims(comparison: Comparison, arm: Arm) -> dict[Key, Aim]:
    """Where an arm looked, for each question that has evidence, a trajectory, and did not fail."""
    found: dict[Key, Aim] = {}
    for key in comparison.keys:
        truth = comparison.truths.get(key)
        trajectory = arm.trajectory(key) if truth is not None and truth.evidence else None
        if truth is None or trajectory is None or trajectory.stop_reason.failed:
            continue
        aim = aim_of(trajectory, truth)
        if aim is not None:
            found[key] = aim
    return found


AIMING = (
    "hit", "spans_hit", "coverage", "looks_to_hit", "wasted", "repeats", "no_look", "forced", "supported",
    "unsupported",
)  # fmt: skip
"""What `summarise` gives."""


def summarise(comparison: Comparison, arm: Arm, rows: Mapping[Key, Aim] | None = None) -> dict[str, Interval | None]:
    """How well an arm aimed, over the questions with evidence, with intervals clustered by video.

    Args:
        comparison: The arm's comparison.
        arm: The arm.
        rows: From `aims`, where they are known already.

    Returns:
        `hit`, `no_look`, `forced`: share of questions. `spans_hit`, `coverage`: mean share of a question's evidence.
        `looks_to_hit`: mean number of the first look that showed evidence, over the questions that have one. `wasted`,
        `repeats`: mean share of a question's looks, over questions with a look. `supported`: share of questions that
        were answered rightly after evidence was shown; `unsupported`: rightly, and no evidence was shown. Both together
        are the accuracy. `None` where there are no such questions.
    """
    rows = aims(comparison, arm) if rows is None else rows
    keys = [key for key in comparison.keys if key in rows]
    clusters, found = clusters_of(comparison, keys), [rows[key] for key in keys]
    right = [arm.outcome(key).right for key in keys]
    numbers: dict[str, list[float | None]] = {
        "spans_hit": [aim.spans_hit for aim in found],
        "coverage": [aim.coverage for aim in found],
        "wasted": [aim.wasted / aim.looks if aim.looks else None for aim in found],
        "repeats": [aim.repeats / aim.looks if aim.looks else None for aim in found],
    }
    shares = {
        "hit": [aim.hit for aim in found],
        "no_look": [aim.no_look for aim in found],
        "forced": [aim.forced for aim in found],
        "supported": [good and aim.hit for good, aim in zip(right, found, strict=True)],
        "unsupported": [good and not aim.hit for good, aim in zip(right, found, strict=True)],
    }
    result = means(numbers, clusters, (0.0, 1.0))
    result |= means({"looks_to_hit": [aim.first_hit for aim in found]}, clusters)
    result |= {name: proportion(values, clusters) for name, values in shares.items()}
    return {name: result[name] for name in AIMING}
