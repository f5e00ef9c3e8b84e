"""Where an arm looked, against where the evidence is; and the ladder from blind to oracle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import answered, arm_of, key_of, look, store_run, trajectory

from apr_plugin.compare.aiming import AIMING, Aim, aim_of, aims, summarise
from apr_plugin.compare.joined import Arm, Comparison, arm_of_run, join
from apr_plugin.compare.ladder import ladder
from apr_plugin.loop.trajectory import Film, Shown, StopReason, Trajectory, Turn
from apr_plugin.scoring.truth import Evidence, Truth


def aim(turns: Sequence[Turn], *evidence: tuple[float, float], **more: object) -> Aim:
    found = aim_of(
        trajectory(0, [*turns, answered("A")], "A", **more), Truth("A", tuple(Evidence(*s) for s in evidence))
    )
    assert found is not None
    return found


def passive(times: Sequence[float], video: int = 0) -> tuple[Shown, ...]:
    return (Shown(kind="frames", video=video, end_s=100.0, times_s=tuple(times), visual_tokens=10),)


def test_looks_that_hit_and_looks_that_miss() -> None:
    found = aim([look(0, 20), look(60, 80), look(40, 50, kind="audio"), look(45, 47)], (44, 48))
    assert (found.looks, found.hit, found.first_hit, found.wasted, found.repeats) == (4, True, 3, 2, 0)
    assert found.coverage == 1.0 and not found.no_look and not found.forced


def test_a_sparse_look_over_the_evidence_shows_nothing_of_it() -> None:
    """Its window holds the evidence, but none of its frames does: they are at 12.5, 37.5, 62.5 and 87.5 s."""
    found = aim([look(0, 100)], (40, 60))
    assert (found.hit, found.coverage, found.first_hit, found.wasted) == (False, 0.0, None, 1)
    assert aim([look(0, 100)], (40, 63)).hit


def test_coverage_in_seconds() -> None:
    assert aim([look(0, 100)], (30, 50)).coverage == pytest.approx(1 / 20)  # one frame, a second around it
    assert aim([look(0, 100)], (30, 65)).coverage == 1.0  # all frames are no further apart than it is long
    assert aim([look(30, 50)], (30, 65)).coverage == pytest.approx(16 / 35)  # from 32.5 s to 47.5 s, and half a second
    assert aim([look(30, 40, kind="audio")], (35, 55)).coverage == pytest.approx(5 / 20)
    several = aim([look(30, 40, kind="audio"), look(90, 92, 2)], (35, 55), (90, 92))
    assert several.spans_hit == 1.0 and several.coverage == pytest.approx((5 + 2) / 22)
    assert aim([look(30, 40, kind="audio")], (35, 55), (35, 45)).coverage == pytest.approx(5 / 20)  # merged


def test_a_point_in_time_is_the_second_around_it() -> None:
    assert aim([look(10, 10, 1)], (10.4, 10.4)).hit and not aim([look(10, 10, 1)], (10.6, 10.6)).hit
    assert aim([look(10, 10, 1)], (10, 10)).coverage == 1.0
    assert aim([look(9.9, 30, kind="audio")], (10, 10)).coverage == pytest.approx(0.6)
    assert aim([look(99.6, 99.6, 1)], (100, 100)).hit  # at the end of the video
    assert aim([look(0, 0, 1)], (0, 0)).hit


def test_evidence_beyond_the_end_ends_there() -> None:
    assert aim([look(90, 100, kind="audio")], (90, 130)).coverage == 1.0
    assert not aim([look(90, 100, kind="audio")], (120, 130)).hit


def test_sound_counts_as_long_as_it_was_played() -> None:
    turn = look(10, 30, kind="audio")
    assert turn.shown is not None
    cut = turn.model_copy(update={"shown": turn.shown.model_copy(update={"audio_s": 5.0})})
    assert aim([turn], (20, 25)).hit and not aim([cut], (20, 25)).hit


def test_a_clip_counts_by_its_frames_and_by_its_sound() -> None:
    clip = Shown(kind="clip", start_s=10.0, end_s=20.0, times_s=(10.0, 10.5, 11.0), audio_s=10.0)
    turn = look(10, 20).model_copy(update={"shown": clip})
    silent = turn.model_copy(update={"shown": clip.model_copy(update={"audio_s": 0.0})})
    assert aim([turn], (15, 18)).coverage == 1.0 and not aim([silent], (15, 18)).hit
    assert aim([silent], (10.2, 12.2)).coverage == pytest.approx(1.3 / 2)


def test_repeats() -> None:
    assert aim([look(0, 20), look(0, 20)], (5, 6)).repeats == 1
    assert aim([look(0, 20), look(0, 20, 16)], (5, 6)).repeats == 0  # finer
    assert (
        aim([look(0, 20), look(1, 20)], (5, 6)).repeats == 1 and aim([look(0, 20), look(10, 20)], (5, 6)).repeats == 0
    )
    assert aim([look(0, 20), look(0, 20, kind="audio")], (5, 6)).repeats == 0  # another kind
    assert aim([look(0, 20, kind="audio"), look(0, 20, kind="audio")], (5, 6)).repeats == 1
    assert aim([look(7, 7, 1), look(7, 7, 1), look(8, 8, 1)], (5, 6)).repeats == 1  # moments have no IoU
    assert aim([look(0, 20), look(0, 20, video=1)], (5, 6)).repeats == 0


def test_the_other_video_is_not_where_the_evidence_is() -> None:
    truth = Truth("A", (Evidence(10, 20, 1),))
    for video, hit in ((0, False), (1, True)):
        found = aim_of(trajectory(0, [look(10, 20, video=video), answered("A")], "A"), truth)
        assert found is not None and found.hit is hit and found.wasted == (not hit)


def test_answers_without_a_look_and_after_a_limit() -> None:
    assert aim([], (1, 2)) == Aim(0, False, 0.0, 0.0, None, 0, 0, True, False)
    assert aim([look(0, 9)], (1, 2), stop_reason=StopReason.FORCED).forced
    nothing = aim_of(trajectory(0, [], None), Truth("A", (Evidence(1, 2),)))
    assert nothing is not None and not nothing.no_look  # it gave no answer either


def test_tasks_without_evidence_have_no_aim() -> None:
    made = trajectory(0, [look(0, 9), answered("A")], "A")
    for evidence in ((), (Evidence(9, 3),), (Evidence(-5, 3),), (Evidence(float("nan"), 3),)):
        assert aim_of(made, Truth("A", evidence)) is None


def test_a_passive_arm_is_judged_by_what_it_was_shown_first() -> None:
    made = trajectory(0, [answered("A")], "A", first_shown=passive([12.5, 37.5, 62.5, 87.5]))
    hit, missed = (aim_of(made, Truth("A", (Evidence(*span),))) for span in ((30, 40), (40, 50)))
    assert hit is not None and (hit.hit, hit.looks, hit.first_hit, hit.no_look) == (True, 1, 1, False)
    assert missed is not None and (missed.hit, missed.wasted, missed.no_look) == (False, 1, False)


def test_lines_of_version_1_and_videos_of_unknown_length() -> None:
    made = trajectory(0, [look(90, 100, kind="audio"), answered("A")], "A")
    for update in ({"videos": ()}, {"videos": (), "video_durations_s": ()}):
        found = aim_of(made.model_copy(update=update), Truth("A", (Evidence(95, 105),)))
        assert found is not None and found.hit
        assert found.coverage == pytest.approx(0.5 if "video_durations_s" in update else 1.0)
    longer = (Film(duration_s=100.0, has_audio=True, audio_s=110.0),)  # the sound goes on after the pictures
    found = aim_of(made.model_copy(update={"videos": longer}), Truth("A", (Evidence(95, 120),)))
    assert found is not None and found.coverage == pytest.approx(5 / 15)


seconds = st.floats(0, 100).map(lambda value: round(value, 2))
windows = st.tuples(seconds, seconds).map(sorted)
looked = st.builds(
    lambda window, num, kind: look(window[0], window[1], num, kind=kind),
    windows,
    st.integers(1, 8),
    st.sampled_from(["frames", "audio"]),
)
evidences = st.lists(windows, min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(looked, max_size=5), evidences, looked)
def test_what_holds_of_every_aim(turns: list[Turn], spans: list[list[float]], more: Turn) -> None:
    found = aim(turns, *((a, b) for a, b in spans))
    assert found.looks == len(turns) and 0 <= found.coverage <= 1 and 0 <= found.spans_hit <= 1
    assert found.hit == (found.coverage > 0) == (found.spans_hit > 0) == (found.first_hit is not None)
    assert found.wasted < found.looks if found.hit else found.wasted == found.looks
    assert 0 <= found.repeats <= max(0, found.looks - 1)
    mirrored = aim(turns[::-1], *((a, b) for a, b in spans[::-1]))  # the order of looks and spans says when, not what
    assert (mirrored.hit, mirrored.wasted) == (found.hit, found.wasted)
    assert mirrored.coverage == pytest.approx(found.coverage) and mirrored.spans_hit == pytest.approx(found.spans_hit)
    after = aim([*turns, more], *((a, b) for a, b in spans))  # one more look can't show less
    assert after.hit >= found.hit and after.coverage >= found.coverage - 1e-9 and after.repeats >= found.repeats
    again = aim([*turns, *turns[-1:]], *((a, b) for a, b in spans))
    assert again.repeats == found.repeats + bool(turns) and again.coverage == pytest.approx(found.coverage)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 80), st.floats(0, 20), st.integers(2, 30))
def test_listening_to_the_evidence_covers_it(start: float, lasts: float, frames: int) -> None:
    span = (start, start + lasts)
    window = (max(0.0, start - 1), start + lasts + 1)
    assert aim([look(*window, kind="audio")], span).coverage == pytest.approx(1.0)
    oracle = aim([look(*span, frames)], span)
    assert oracle.hit and oracle.coverage > 0.4


# --- over a comparison


def compared_run(tmp_path: Path, made: list[Trajectory], scores: dict[str, float]) -> tuple[Comparison, Arm]:
    truths = {str(n): Truth("A", (Evidence(10, 20),)) for n in range(8)}
    truths["8"] = Truth("A")
    arm = arm_of_run("agent", store_run(tmp_path, made, scores, truths))
    return join([arm]), arm


def test_a_summary(tmp_path: Path) -> None:
    """Eight questions of four videos with evidence: half are hit; one without evidence; one that failed."""
    made = [trajectory(n, [look(0, 5), look(5, 25) if n % 2 else look(60, 70), answered("A")], "A") for n in range(7)]
    made.append(trajectory(7, [], None, stop_reason=StopReason.MEDIA_UNREADABLE))
    made.append(trajectory(8, [look(0, 5), answered("A")], "A"))
    compared, arm = compared_run(tmp_path, made, {str(n): float(n in (1, 2, 3)) for n in range(9)})
    rows = aims(compared, arm)
    assert set(rows) == {key_of(n) for n in range(7)}
    found = summarise(compared, arm)
    assert tuple(found) == AIMING and found == summarise(compared, arm, rows)
    values = {name: None if one is None else one.value for name, one in found.items()}
    assert values == pytest.approx(
        {
            "hit": 3 / 7, "spans_hit": 3 / 7, "coverage": 3 / 7, "looks_to_hit": 2.0, "wasted": 11 / 14, "repeats": 0.0,
            "no_look": 0.0, "forced": 0.0, "supported": 2 / 7, "unsupported": 1 / 7,
        },
        abs=0.12,
    )  # fmt: skip
    assert values["hit"] == pytest.approx(3 / 7) and values["supported"] == pytest.approx(2 / 7)
    hit = found["hit"]
    assert hit is not None and hit.n == 7 and hit.low is not None and 0 <= hit.low < 3 / 7
    json.dumps({name: None if one is None else one.to_dict() for name, one in found.items()}, allow_nan=False)


def test_no_aims_where_there_is_nothing_to_see(tmp_path: Path) -> None:
    failed = [trajectory(n, [], None, stop_reason=StopReason.POLICY_UNAVAILABLE) for n in range(3)]
    compared, arm = compared_run(tmp_path, failed, {str(n): 0.0 for n in range(3)})
    assert set(summarise(compared, arm).values()) == {None}
    rows = arm_of("rows", {0: 1.0}, kind="rows")
    assert set(summarise(join([rows]), rows).values()) == {None}


# --- the ladder


def rungs(**shares: float) -> Comparison:
    arms = []
    for kind, share in shares.items():
        arms.append(
            arm_of(kind, {n: float((n * 37) % 100 < round(100 * share)) for n in range(100)}, kind=kind, per_video=2)
        )
    return join(arms)


def test_a_ladder() -> None:
    found = ladder(rungs(blind=0.25, passive=0.39, agent=0.47, oracle=0.55))
    assert found.n == 100 and found.reasons == {} and found.arms["agent"] == "agent"
    assert found.realised is not None and found.realised_over_passive is not None
    assert found.realised.value == pytest.approx(22 / 30) and found.realised_over_passive.value == pytest.approx(0.5)
    assert found.realised.low is not None and found.realised.high is not None
    assert 0.4 < found.realised.low < 22 / 30 < found.realised.high <= 1.0
    told = found.to_dict()
    assert told["oracle"]["value"] == pytest.approx(0.55) and told["realised"]["n"] == 100
    json.dumps(told, allow_nan=False)


def test_ladders_that_lack_a_rung() -> None:
    without = ladder(rungs(blind=0.25, agent=0.47))
    assert without.realised is None and without.reasons["realised"] == "there is no arm of kind oracle"
    assert without.reasons["realised_over_passive"] == "there is no arm of kind passive and none of kind oracle"
    assert without.rungs["oracle"] is None and without.rungs["blind"] is not None
    worse = ladder(rungs(blind=0.5, passive=0.1, agent=0.47, oracle=0.5))
    assert worse.realised is None and "not better than the blind arm" in worse.reasons["realised"]
    assert worse.realised_over_passive is not None
    empty = ladder(rungs(lmms=0.5))
    assert empty.arms == {} and set(empty.rungs.values()) == {None} and len(empty.reasons) == 2


def test_the_questions_of_a_ladder_have_a_score_of_every_rung() -> None:
    compared = rungs(blind=0.25, agent=0.47, oracle=0.55)
    oracle = compared.arms[2]
    for n in range(0, 100, 2):
        object.__setattr__(oracle.outcomes[key_of(n)], "status", "failed")  # a question without evidence
    assert ladder(compared).n == 50
    for n in range(100):
        object.__setattr__(oracle.outcomes[key_of(n)], "status", "failed")
    found = ladder(compared)
    assert (found.n, found.realised, found.rungs["agent"]) == (0, None, None) and "no question" in found.reasons[
        "realised"
    ]


def test_another_agent_by_name() -> None:
    one, two = (arm_of(name, {n: value for n in range(4)}) for name, value in (("one", 0.0), ("two", 1.0)))
    compared = join([one, two, arm_of("blind", dict.fromkeys(range(4), 0.0), kind="blind")])
    assert ladder(compared).arms["agent"] == "one" and ladder(compared, agent="two").arms["agent"] == "two"
