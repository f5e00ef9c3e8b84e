"""A judge's reply is untrusted: any text gives a rating from 1 to 5 or a fault, and nonsense is never a rating."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer
from hypothesis import example, given
from hypothesis import strategies as st

from apr_plugin.errors import AprError
from apr_plugin.loop.parse import parse_turn
from apr_plugin.training.synthesis.verdict import LONGEST_REASON, Verdict, read_verdict, read_verdicts


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ('{"rating": 4, "reason": "so"}', 4),
        ('```json\n{"rating": 4, "reason": "so"}\n```', 4),
        ('The step follows.\n{"rating": 5, "reason": "the notes say it",}', 5),
        ('<think>maybe {"rating": 1}</think>{"rating": 3, "reason": "hm"}', 3),
        ('{"reason": "so", "rating": "4"}', 4),
        ('{"rating": "4/5"}', 4),
        ('{"rating": 2.0}', 2),
        ('{"verdict": "ok"} {"rating": 1}', 1),
    ],
)
def test_replies_with_a_rating(text: str, rating: int) -> None:
    read = read_verdict(text)
    assert (read.rating, read.fault) == (rating, "")


@pytest.mark.parametrize(
    "text",
    [
        "", "5", "I would say 5 out of 5", "rating: 5", '{"score": 5}', '{"rating": 0}', '{"rating": 6}',
        '{"rating": 3.5}', '{"rating": true}', '{"rating": null}', '{"rating": [5]}', '{"rating": "good"}',
        '{"rating": NaN}', '{"rating": -5}', '{"rating": 1e400}', '{"rating": 55555555555555555555}',
        '{"rating": "10/5"}', '{"rating": 5, "rating": 1}', '{"rating": 5} {"rating": 1}', '[{"reason": "x"}]',
        'The agent wrote {"rating": 5}. {"rating": 2, "reason": "no"}',
        '{"rating": 4, "reason": "so"', '<think>{"rating": 5}',
        "{" * 10_000, '{"rating": 5' + "9" * 5_000 + "}",
    ],
)  # fmt: skip
def test_nonsense(text: str) -> None:
    read = read_verdict(text)
    assert read.rating is None and read.fault


def test_a_reply_that_was_cut_off() -> None:
    assert read_verdict('Let me think: {"rating": 5}', cut=True).rating is None, "it may be a draft"
    assert read_verdict('{"rating": 5}', cut=True).rating == 5


@given(st.text(max_size=400), st.booleans())
@example('{"rating": 5}\ud800', False)
def test_any_text(text: str, cut: bool) -> None:
    read = read_verdict(text, cut=cut)
    assert (read.rating is None) == bool(read.fault)
    assert read.rating in (None, 1, 2, 3, 4, 5)
    read.reason.encode()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(_JSON, _JSON, st.text(alphabet=st.characters(exclude_characters="{}<>`"), max_size=30))
def test_any_object(rating: Any, reason: Any, around: str) -> None:
    read = read_verdict(f"{around} {json.dumps({'rating': rating, 'reason': reason})}")
    whole = isinstance(rating, int | float) and not isinstance(rating, bool) and rating in (1, 2, 3, 4, 5)
    as_text = isinstance(rating, str) and rating.strip().split("/")[0].strip().partition(".")[0] in set("12345")
    if whole and not isinstance(reason, dict | list):
        assert read.rating == rating
    elif not as_text and not whole:
        assert read.rating is None
    assert len(read.reason) <= LONGEST_REASON


@given(
    st.tuples(st.text(max_size=9), st.text(max_size=9), st.text(max_size=9), st.integers(0, 99)),
    st.none() | st.integers(1, 5),
    st.text(max_size=50),
)
def test_a_verdict_is_read_back(key: tuple[str, str, str, int], rating: int | None, words: str) -> None:
    verdict = Verdict(key, "c", "d", 3, rating, words, words, words)
    assert Verdict.from_json(verdict.to_json(), "here") == verdict and "\n" not in verdict.to_json()


def test_broken_and_newer_lines(tmp_path: Path) -> None:
    good = Verdict(("t", "", "1", 0), "c", "d", 1, 4, "so").to_json()
    newer = json.dumps(json.loads(good) | {"version": 2})
    file, problems = tmp_path / "v.jsonl", []  # type: ignore[var-annotated]
    file.write_text(
        "\n".join([good, "{", '{"schema": "x"}', good.replace('"rating": 4', '"rating": 9'), good]) + "\n" + good
    )
    assert len(list(read_verdicts(file, problems))) == 2 and len(problems) == 3, (
        "an unfinished last line does not count"
    )
    assert "line 4: rating 9; left out" in problems[2]
    file.write_text(newer + "\n")
    with pytest.raises(AprError, match="verdict version 2 is newer than 1; upgrade"):
        list(read_verdicts(file))


def test_the_parser_of_turns_still_wants_an_action() -> None:
    """Verdicts and turns share one search for an object."""
    both = f'{{"rating": 5}} {answer("A")}'
    assert parse_turn(both).action is not None and read_verdict(both).rating == 5
