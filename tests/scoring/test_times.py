"""Time spans in JSON, clocks and words, read by one parser; hostile text takes time only in proportion to its
length."""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_plugin.scoring import times
from apr_plugin.scoring.intervals import parse_spans, parse_time, set_iou, valid_span
from apr_plugin.scoring.times import MAX_CHARS


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        # JSON that is the whole answer
        ("[[1.5, 4]]", [(1.5, 4)]),
        ("[1.5, 4]", [(1.5, 4)]),
        (" [[1, 2], [3, 4.5]] ", [(1, 2), (3, 4.5)]),
        ("[[1e1, 2e1]]", [(10, 20)]),
        ("[[4, 1]]", [(4, 1)]),
        ('[["0:10", "0:20"]]', [(10, 20)]),
        ('["62s", "75s"]', [(62, 75)]),
        ("[]", []),
        ("{}", []),
        ("null", []),
        ('[["1", "b"]]', []),
        ("[[1, 2, 3]]", []),
        ("[[1, 2], [3]]", []),
        ("[[true, 2]]", []),
        ("[.5, 1.5]", [(0.5, 1.5)]),
        # JSON among words
        ("The event is at [[10, 20]]", [(10, 20)]),
        ("The events are at [10.5,20], and [30,40.25].", [(10.5, 20), (30, 40.25)]),
        ("From 1 to 2 seconds, that is [[10, 200]].", [(10, 200)]),
        ("```json\n[[10, 20]]\n```", [(10, 20)]),
        ('{"spans": [[10, 20], [30, 40]]}', [(10, 20), (30, 40)]),
        ('```json\n[{"start_time": "00:01:02,500", "end_time": "00:01:15"}]\n```', [(62.5, 75)]),
        ('{"start": 10, "end": 20.5}', [(10, 20.5)]),
        ('[{"start": 1, "end": 2}, {"start": 3, "end": 4}]', [(1, 2), (3, 4)]),
        ("<think>maybe [[1, 2]]</think><answer>[[3, 4]]</answer>", [(3, 4)]),
        # words
        ("from 1:02 to 1:15.5", [(62, 75.5)]),
        ("62s-75s", [(62, 75)]),
        ("From 10 to 20 seconds", [(10, 20)]),
        ("62.5 seconds to 75 seconds", [(62.5, 75)]),
        ("The event happens in the 3.2 - 7.9 seconds.", [(3.2, 7.9)]),
        ("10 – 20 and then 30 until 40", [(10, 20), (30, 40)]),
        ("10 to 20 and 30 to 40", [(10, 20), (30, 40)]),
        ("0-5s, 10-15s", [(0, 5), (10, 15)]),
        ("10 -> 20", [(10, 20)]),
        ("10 -20", [(10, 20)]),
        ("between 3 and 5", [(3, 5)]),
        ("between second 3 and second 5", [(3, 5)]),
        ("from about 10 s up to around 20 s", [(10, 20)]),
        ("starts at 10s and ends at 20s", [(10, 20)]),
        ("Start time: 00:10, End time: 00:20", [(10, 20)]),
        ("1:01:01 to 1:01:02.5", [(3661, 3662.5)]),
        ("2 to 3 minutes", [(120, 180)]),
        ("2 min - 3 min", [(120, 180)]),
        ("1m2s to 1m15s", [(62, 75)]),
        ("1 minute 2 seconds to 1 minute 15.5 seconds", [(62, 75.5)]),
        ("1h2m3s - 1h2m5s", [(3723, 3725)]),
        ("1,234.5 to 1,300 seconds", [(1234.5, 1300)]),
        ("from 20 to 10", [(20, 10)]),
        ("-5 to 10", [(-5, 10)]),
        ("(10, 20)", [(10, 20)]),
        ("10.5, 20.0", [(10.5, 20)]),
        ("1:02, 1:15", [(62, 75)]),
        ("10, 20, 30", []),
        ("from .5 to 1.5", [(0.5, 1.5)]),
        ("1 minute .5 seconds to 2 minutes", [(60.5, 120)]),
        ("from 1e1 to 2e1 seconds", [(10, 20)]),
        ("from 10 to 2e1", [(10, 20)]),
        # no spans
        ("", []),
        ("no idea", []),
        ("(null)", []),
        ("at 12 seconds", []),
        ("at 10 and 20", []),
        ("from minute 2 to minute 3", []),
        ("From 10% to 20%", []),
        ("10 to 20%", []),
        ("10 to 20.5 percent", []),
        ("1.2.3 to 4", []),
        ("5e-1234 to 10", []),
        ("2e1% to 5", []),
        ("a video of 10 seconds. today 20", []),
    ],
)
def test_parse_spans(text: str, spans: list[tuple[float, float]]) -> None:
    assert parse_spans(text) == spans


TENTHS = st.integers(0, 99_999).map(lambda tenths: tenths / 10)


def clock(second: float) -> str:
    tenths = round(second * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def units(second: float) -> str:
    tenths = round(second * 10)
    return f"{tenths // 36000}h {tenths // 600 % 60}m {tenths % 600 / 10}s"


@given(st.lists(st.tuples(TENTHS, TENTHS), min_size=1, max_size=8), st.sampled_from([str, clock, units]))
def test_every_way_of_writing_a_span_reads_the_same(spans: list[tuple[float, float]], write: object) -> None:
    assert callable(write)
    for template, between in (
        ("from {} to {}", "; "),
        ("{} - {}", ", "),
        ("between {} and {}", " and "),
        ("[{}, {}]", " "),
        ("it is [{},{}]", "; "),
    ):
        text = between.join(template.format(write(start), write(end)) for start, end in spans)
        assert parse_spans(text) == pytest.approx([pytest.approx(span) for span in spans]), text


@given(st.lists(st.tuples(TENTHS, TENTHS), min_size=1, max_size=8))
def test_canonical_json_comes_back_exactly(spans: list[tuple[float, float]]) -> None:
    assert parse_spans(json.dumps(spans)) == spans
    assert parse_spans(f"The event is at {json.dumps(spans)} of the video.") == spans


def test_spans_that_are_no_numbers_come_back_for_the_message() -> None:
    (start, end), *_ = parse_spans("[[NaN, Infinity]]")
    assert math.isnan(start) and end == math.inf and not valid_span((start, end))
    assert parse_spans(f"[[0, 1{'0' * 400}]]") == [(0.0, math.inf)]


def test_of_a_long_reply_the_end_is_read() -> None:
    assert parse_spans("hm. " * MAX_CHARS + "from 10 to 20") == [(10, 20)]


@pytest.mark.parametrize("line", ["From 12.5 to 20 seconds\n", "from 12.5 to 20, ", "12.5-20\n"])
def test_the_end_of_a_long_reply_does_not_begin_with_a_piece_of_a_number(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(times, "MAX_CHARS", 2_000)
    for shift in range(len(line)):
        assert set(parse_spans(line * (2_000 // len(line) + 2) + " " * shift)) == {(12.5, 20.0)}


@pytest.mark.parametrize("n", [201, 5_000])
def test_as_many_spans_as_a_model_writes(n: int) -> None:
    spans = [(2 * index + 0.25, 2 * index + 1.5) for index in range(n)]
    assert parse_spans(json.dumps(spans)) == spans
    assert parse_spans("\n".join(f"{start}-{end}" for start, end in spans)) == spans
    assert parse_spans(f"It is seen at {json.dumps(spans)}") == spans


def test_a_hundred_thousand_spans_are_cheap() -> None:
    text = json.dumps([[index, index + 0.5] for index in range(100_000)])
    began = time.process_time()
    spans = parse_spans(text)
    seconds = time.process_time() - began
    assert len(spans) == 100_000 and seconds < 5.0  # about half a second
    assert set_iou(spans, [(0.0, 100_000.0)]) == pytest.approx(0.5)


@given(st.text(max_size=300) | st.text('0123456789:.-to s[](),%"hm', max_size=300))
def test_reading_any_text_never_raises(text: str) -> None:
    assert isinstance(parse_spans(text), list)


@pytest.mark.parametrize(
    "text",
    ["1:" * 100_000, "1 " * 100_000, "9" * 200_000, "1:00 - " * 30_000, "[" * 200_000, "1" + " " * 200_000 + "-",
    "start" * 40_000,
     "start 1 " * 30_000,
     "start 1 end" * 20_000, "between 1 " * 20_000, "[1, " * 50_000, "(1," * 50_000, "1 m " * 50_000, "1,000" * 40_000,
     "-" * 200_000,
     "about " * 40_000, "from about the second " * 10_000, "<answer>" * 30_000, "</think>" * 30_000, '"1" ' * 50_000],
)  # fmt: skip
def test_no_text_is_slow(text: str) -> None:
    began = time.process_time()
    parse_spans(text)
    assert time.process_time() - began < 2.0  # processor time, so that the test does not fail on a busy machine


def test_parse_time() -> None:
    assert parse_time("83.5") == 83.5 and parse_time("1:23.5") == 83.5 and parse_time("1:01:23.5") == 3683.5
    with pytest.raises(ValueError):
        parse_time("soon")


def compound(second: float, style: int) -> str:
    """A time in words, in whole seconds: `1 hour, 2 minutes and 3 seconds`."""
    units = [("hour", second // 3600), ("minute", second // 60 % 60), ("second", second % 60)]
    named = [(name, int(n)) for name, n in units if n] or [("second", 0)]
    if style == 0:
        return " and ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in named)
    if style == 1:
        return ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in named)
    if style == 2:
        return ", and ".join(f"{n} {name}s" for name, n in named)
    if style == 3:
        return " ".join(f"{n} { {'hour': 'hr', 'minute': 'min', 'second': 'sec'}[name] }" for name, n in named)
    if style == 4:
        return "".join(f"{n}{name[0]}" for name, n in named)
    if style == 5:
        *first, last = [f"{n} {name}s" for name, n in named]
        return f"{', '.join(first)} and {last}" if first else last
    if style == 6:
        return "".join(f"{n}{ {'hour': '小时', 'minute': '分', 'second': '秒'}[name] }" for name, n in named)
    if style == 7:
        return " and ".join(f"**{n}** {name}s" for name, n in named)
    return f"`{int(second) // 60}:{int(second) % 60:02}`"


SECONDS = st.integers(0, 7300) | st.integers(0, 120).map(lambda minutes: minutes * 60)
RANGES = [
    "from {} to {}",
    "{} - {}",
    "{} – {}",
    "{} until {}",
    "starts at {} and ends at {}",
    "Start: {}, end: {}",
    "It begins at {} and stops at {}.",
    '["{} to {}"]',
    '{{"start": "{}", "end": "{}"}}',
    '[{{"start_time": "{}", "end_time": "{}"}}]',
    "从{}到{}",
]


@given(SECONDS, SECONDS, st.integers(0, 8), st.sampled_from(RANGES))
def test_compound_times_are_the_span(start: int, end: int, style: int, template: str) -> None:
    """A comma within a time may be misread in a list of strings; then there is no span, but never a wrong one."""
    found = parse_spans(template.format(compound(start, style), compound(end, style)))
    assert found == [(start, end)]


@given(SECONDS, SECONDS, SECONDS, SECONDS, st.integers(0, 8), st.integers(0, 8),
       st.sampled_from([*RANGES, "between {} and {}", "[{}, {}]", "({}, {})", "{}, {}"]),
       st.sampled_from([", ", " and ", "; ", ". ", "\n", " to ", " "]))  # fmt: skip
def test_compound_times_are_the_spans_or_none(
    a: int, b: int, c: int, d: int, one: int, other: int, template: str, between: str
) -> None:
    first, second = (
        template.format(compound(a, one), compound(b, other)),
        template.format(compound(c, other), compound(d, one)),
    )
    assert parse_spans(first) in ([(a, b)], [])
    if "{}, {}" not in template:  # "[1 minute, 5 seconds]" may be one time, so it is left out
        assert parse_spans(first + between + second) in ([(a, b), (c, d)], [])


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("from 1 minute and 5 seconds to 1 minute and 20 seconds", [(65, 80)]),
        ("from 1 minute, 5 seconds to 1 minute, 20 seconds", [(65, 80)]),
        ("1 hour, 2 minutes and 3 seconds to 1 hour, 2 minutes and 5 seconds", [(3723, 3725)]),
        ("between 1 minute and 90 seconds", [(60, 90)]),
        ("between 1 minute and 30 seconds", []),
        ("between 1 minute and 2 minutes and 5 seconds", [(60, 125)]),
        ("from 1 to 2 minutes and 3 to 4 minutes", [(60, 120), (180, 240)]),
        ("from 1 minute to 2 minutes and 30 seconds to 3 minutes", []),
        ("1 minute and 75 seconds to 2 minutes", []),
        ("from 1 minute to 1 minute and 75 seconds", []),
        ("1 minute 5 to 1 minute 20", []),
        ("one minute 5 seconds to one minute 20 seconds", []),
        ("1 to 2 to 3", []),
        ("2024-05-01", []),
        ("from 1 day 2 hours to 1 day 3 hours", []),
        ("from 1½ to 2 minutes", []),
        ("1500 ms to 2000 ms", []),
        ("frames 10 to 20", []),
        ("10 to 20 frames", []),
        ("frames [10, 20]", []),
        ("at frame numbers 10-20", []),
        ('{"start_frame": 10, "end_frame": 20}', []),
        ('{"frames": [[10, 20]]}', []),
        ("Frames 10.00s-12.00s (num=5)", [(10, 12)]),
        ("frames 0:10 to 0:20", [(10, 20)]),
        ("10 to 20 people", []),
        ("$10 to $20", []),
        ("Q1 to Q3", []),
        ("starts at 10s and ends 5 seconds later", []),
        ("begins at 1:05 and ends at 1:20", [(65, 80)]),
        ("from **1:05** to **1:20**", [(65, 80)]),
        ('from "1:05" to "1:20"', [(65, 80)]),
        ("`1:05` - `1:20`", [(65, 80)]),
        ("10\u221220", [(10, 20)]),
        ("5 to \u22123", [(5, -3)]),
        ("从65秒到80秒", [(65, 80)]),
        ("1分5秒至1分20秒", [(65, 80)]),
        ("在65秒和80秒之间", [(65, 80)]),
        ("65秒から80秒まで", [(65, 80)]),
        ("65초부터 80초까지", [(65, 80)]),
        ("１:05～１:20", [(65, 80)]),
        ('[{"start": "01:05", "end": "01:20", "label": "runs"}]', [(65, 80)]),
        ('["from 65.0s to 80.0s"]', [(65, 80)]),
        ('["0:10-0:20", "0:30-0:40"]', [(10, 20), (30, 40)]),
        ('[{"timestamp": [1, 2]}, {"time": "0:30 - 0:40"}]', [(1, 2), (30, 40)]),
        ('{"events": [{"start_s": 1, "end_s": 2}]}', [(1, 2)]),
        ('{"answer": [[1, 2]], "confidence": 0.9}', [(1, 2)]),
        ('[{"start": 1}]', []),
        ('[{"start_ms": 1000, "end_ms": 2000}]', []),
        ('["soon", "1 to 2"]', []),
        ("<think>from 1 to 2", []),
    ],
)  # fmt: skip
def test_the_span_or_none(text: str, spans: list[tuple[float, float]]) -> None:
    assert parse_spans(text) == spans
