"""Equal rows, the train and the validation part, balanced sources: rules that hold for any rows."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.training.parts import balanced, split_by_video, without_duplicates
from apr_plugin.training.rows import Row, RowError

SHARES = st.floats(0, 0.9)
SEEDS = st.integers(0, 5)


def row(number: int, videos: tuple[str, ...], content: str, source: str) -> Row:
    return Row(
        file="f.jsonl",
        start=number,
        digest="0",
        card="c",
        key=("t", "", str(number), 0),
        turn=1,
        source=source,
        target="canonical",
        videos=videos,
        content=content,
        prompt_tokens=1,
        target_tokens=1,
    )


NAMES = st.sampled_from("abcdefgh")
ROWS = st.lists(
    st.tuples(st.lists(NAMES, min_size=0, max_size=3).map(tuple), st.integers(0, 9), st.sampled_from("xyz")),
    min_size=1,
    max_size=30,
).map(lambda made: [row(n, videos, f"c{content}", source) for n, (videos, content, source) in enumerate(made)])


@given(ROWS)
def test_one_of_each_set_of_equal_rows_stays(rows: list[Row]) -> None:
    kept, others = without_duplicates(rows)
    assert len(kept) + len(others) == len(rows) and len({each.content for each in kept}) == len(kept)
    assert {each.content for each in kept} == {each.content for each in rows}
    assert without_duplicates(kept) == (kept, [])


def parts(rows: list[Row]) -> dict[int, str]:
    return {each.start: each.split for each in rows}


@settings(max_examples=300)
@given(ROWS, SHARES, SEEDS)
def test_no_video_is_in_both_parts(rows: list[Row], share: float, seed: int) -> None:
    made = split_by_video(rows, share, seed)
    assert [each.start for each in made] == [each.start for each in rows]
    found: dict[str, set[str]] = {}
    for each in made:
        for video in each.videos:
            found.setdefault(video, set()).add(each.split)
    assert all(len(both) == 1 for both in found.values())
    shuffled = rows.copy()
    random.Random(seed).shuffle(shuffled)
    assert parts(split_by_video(shuffled, share, seed)) == parts(made), "the order decides nothing"
    used = {each.split for each in made}
    alone = {each.videos for each in rows if len(each.videos) == 1} if all(len(r.videos) == 1 for r in rows) else set()
    if share == 0:
        assert used == {"train"}
    elif len(alone) > 1:
        assert used == {"train", "validation"}
    assert "train" in used or len(used) == 1


def test_the_share_is_about_that_of_the_videos() -> None:
    rows = [row(n, (f"video {n}",), str(n), "x") for n in range(2000)]
    for share in (0.05, 0.3):
        counts = Counter(each.split for each in split_by_video(rows, share, 7))
        assert abs(counts["validation"] / 2000 - share) < 4 * math.sqrt(share * (1 - share) / 2000)
    one, two = (parts(split_by_video(rows, 0.3, seed)) for seed in (1, 2))
    assert one != two
    more = split_by_video([*rows, row(5000, ("another",), "z", "x")], 0.3, 1)
    assert one.items() <= parts(more).items(), "another video moves none"


def test_a_question_about_two_videos_keeps_both_together() -> None:
    rows = [row(n, (f"v{n}", f"v{n + 1}"), str(n), "x") for n in range(20)]
    assert {each.split for each in split_by_video(rows, 0.5, 0)} == {"train"}, "all are connected"


@settings(max_examples=300)
@given(ROWS, SEEDS, st.sampled_from(["none", "equal", "shares"]))
def test_sources_have_their_shares(rows: list[Row], seed: int, kind: str) -> None:
    rows = split_by_video(rows, 0.3, seed)
    counts = Counter(each.source for each in rows if each.split == "train")
    shares = {source: 1.0 + place for place, source in enumerate(sorted(counts))}
    balance = shares if kind == "shares" else kind
    kept, others = balanced(rows, balance, seed)  # type: ignore[arg-type]
    assert sorted(each.start for each in kept + others) == [each.start for each in rows]
    assert all(each.split == "train" for each in others)
    left = Counter(each.source for each in kept if each.split == "train")
    if kind == "none":
        assert not others
        return
    weights = shares if kind == "shares" else dict.fromkeys(counts, 1.0)
    scale = min((counts[source] / weights[source] for source in counts), default=0.0)
    assert left == {source: max(1, math.floor(scale * weights[source] + 1e-9)) for source in counts}
    assert (left.keys() == counts.keys() and any(left[source] == counts[source] for source in counts)) or not counts
    again, none = balanced(kept, balance, seed)  # type: ignore[arg-type]
    assert kind == "shares" or (again == kept and none == [])


def test_shares_must_name_the_sources() -> None:
    rows = [row(1, ("a",), "1", "x"), row(2, ("b",), "2", "y")]
    for shares in ({"x": 1.0}, {"x": 1.0, "y": 1.0, "z": 1.0}, {"x": 1.0, "y": 0.0}, {"x": 1.0, "y": math.nan}):
        with pytest.raises(RowError, match=r"'x' \(1 rows\), 'y'"):
            balanced(rows, shares, 0)
