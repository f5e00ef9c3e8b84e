"""Times and time spans in the text that a model writes.

Every task and the loop use this parser. Pure functions; times are in seconds.

Every pattern repeats a bounded number of times, so that the time to read a text is proportional to its length.
"""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from apr_plugin.scoring.text import ANSWER_KEYS, answer_part, json_value

Span = tuple[float, float]

MAX_CHARS = 100_000
"""Words are read only in this many characters at the end, because the answer of a long reply is at its end. There is
room for thousands of spans."""

_UNITS = {
    "h": r"hours?|hrs?|h|小时|小時|時間|时|時|시간",
    "m": r"minutes?|mins?|m|分钟|分鐘|分|분",
    "s": r"seconds?|secs?|s|秒钟|秒鐘|秒|초",
}
_SECONDS = {"h": 3600, "m": 60, "s": 1}

_FRACTION = r"\.\d{1,1100}+"  # the shortest form of a float has up to 17 digits, its exact one up to 1,074
_CLOCK = rf"(?:\d{{1,3}}:)?\d{{1,3}}:\d{{2}}(?:{_FRACTION}|,\d{{3}}(?!\d))?"
_PLAIN = rf"(?:\d{{1,309}}+(?:{_FRACTION}|\.)?+|(?<![.A-Za-z0-9_]){_FRACTION})(?:e[-+]?\d{{1,3}}+(?!\d))?+"
_THOUSANDS = rf"\d{{1,3}}(?:,\d{{3}}){{1,102}}+(?:{_FRACTION})?+(?!,?\d)"
_BELOW_60 = rf"[0-5]?\d(?:{_FRACTION})?"
_JOIN = r"\s{0,3}(?:(?:,\s{0,3})?\band\s{1,3}|,\s{0,3})"
_NOT_CUT = r"(?![\d:]|\.\d|e[-+]?\d|\s?[%‰]|\spercent|\s?/\s?\d)"


def _unit(name: str) -> str:
    return rf"\s{{0,3}}-?(?:{_UNITS[name]})(?![a-z])"


def _after(name: str) -> str:
    """A pattern of the rest of a time after a larger unit: `5 seconds`, `and 5 seconds`, `, 5 seconds`.

    After a word or a comma, the number must be below 60.
    """
    return rf"(?:(?:\s{{0,3}}{_PLAIN}|{_JOIN}{_BELOW_60}){_unit(name)})"


def _time(number: str) -> str:
    """A pattern of one time: `1:02.5`, `62.5`, `62 s`, `1 min 2 s`, `1 minute and 2 seconds`.

    It matches neither a part of a longer number nor a percentage.
    """
    hours, minutes = rf"{number}{_unit('h')}{_after('m')}?{_after('s')}?", rf"{number}{_unit('m')}{_after('s')}?"
    return rf"(?>{_CLOCK}|{hours}|{minutes}|{number}{_unit('s')}|{number}){_NOT_CUT}"


_WORD_TIME = re.compile(
    rf"(?<![\d:#$€£])(?<![\d:][.,])(?<![A-Za-z_])(?<!\de[-+])(?:{_time(f'(?:{_THOUSANDS}|{_PLAIN})')})", re.IGNORECASE
)
_LIST_TIME = rf"[\"']?(-?{_time(_PLAIN)})[\"']?"
_PAIR = rf"\s{{0,9}}{_LIST_TIME}\s{{0,9}},\s{{0,9}}{_LIST_TIME}\s{{0,9}}"
_IN_BRACKETS = re.compile(rf"\[{_PAIR}\]", re.IGNORECASE)
_IN_PARENTHESES_OR_BARE = re.compile(rf"\({_PAIR}\)|\A{_LIST_TIME}\s{{0,9}},\s{{0,9}}{_LIST_TIME}\Z", re.IGNORECASE)
_LONE_TIME = re.compile(rf"-?{_time(_PLAIN)}", re.IGNORECASE)

_ABOUT = (
    r"(?:(?:about|around|approximately|approx\.|roughly|the|seconds?|timestamp|time|t=|第|大?约)\s{0,3}){0,3}[\"'“‘(]?"
)
_ENDED = r"[\"'”’)]?"
_TO = re.compile(
    rf"{_ENDED}\s{{0,4}}(?:--?>|[-–—−~～→]|(?:up\s)?to(?![a-z])|until|till|through"
    rf"|到|至|から|부터|에서)\s{{0,4}}{_ABOUT}-?\Z",
    re.IGNORECASE,
)
_AND = re.compile(rf"{_ENDED}\s{{0,4}}(?:,\s)?(?:and|&|和|与|與)\s{{0,4}}{_ABOUT}-?\Z", re.IGNORECASE)
_BETWEEN = re.compile(rf"(?:between\s{{1,4}}|在\s{{0,4}}){_ABOUT}-?\Z", re.IGNORECASE)
_LABELLED = rf"[a-z_ ]{{0,12}}[\"']?\s{{0,3}}[:=]?\s{{0,3}}[\"']?{_ABOUT}-?\Z"
_START = re.compile(rf"(?:start|begin|onset)(?![a-z_ ]{{0,9}}frame){_LABELLED}", re.IGNORECASE)
_END = re.compile(
    rf"[^\d\[\]]{{0,40}}?(?<![a-z])(?:end|finish|stop|offset)(?![a-z_ ]{{0,9}}frame){_LABELLED}", re.IGNORECASE
)
_BESIDE = re.compile(r"\s{0,3}(?:,\s{0,3})?(?:and\s{1,3})?\Z", re.IGNORECASE)
_LATER = re.compile(r"\s{0,3}(?:later|after|afterwards|earlier|before)\b", re.IGNORECASE)
_NO_TIME_BEFORE = re.compile(
    r"(?<![a-z])(?:frames?|frame_?(?:numbers?|ind(?:ex|ices))|steps?|turns?|scenes?|shots?|"
    r"chapters?|pages?|episodes?|images?|pictures?|clips?|rows?|lines?"
    r"|questions?|options?|items?|levels?|rounds?|numbers?|no\.|years?|ages?|score|第\d{0,6}帧)[\s\"'`:=#(\[]{0,6}\Z",
    re.IGNORECASE,
)
_NO_TIME_AFTER = re.compile(
    r"\s{0,3}(?:frames?|fps|people|persons?|times|years?|months?|weeks?|days?|"
    r"degrees?|dollars?|points?|pixels?|met(?:er|re)s?|feet|miles?|[ck]m|km/h|kg|帧)(?![a-z])",
    re.IGNORECASE,
)
_PART = re.compile(
    rf"({_THOUSANDS}|{_PLAIN})(?:\s{{0,3}}-?({'|'.join(f'(?:{unit})(?![a-z])' for unit in _UNITS.values())}))?",
    re.IGNORECASE,
)
_UNIT_OF = re.compile("|".join(f"(?P<{name}>{unit})" for name, unit in _UNITS.items()), re.IGNORECASE)
_SIGNS = str.maketrans("\u2212\uff0d\uff1a\u00a0" + "".join(map(chr, range(0xFF10, 0xFF1A))), "--: 0123456789")
_LOOK_BACK = 60
_LONG_LINE = 1_000

_START_KEYS = frozenset(("start", "begin", "from", "onset", "t0"))
_END_KEYS = frozenset(("end", "stop", "to", "finish", "offset", "t1"))
_KEY_WORDS = re.compile(
    r"(?:[_\- ]?(?:time|timestamp|seconds?|secs?|s|at))*\Z|\A(?:time|timestamp|t)[_\- ]", re.IGNORECASE
)
_LIST_KEYS = (
    "spans",
    "span",
    "timestamps",
    "timestamp",
    "segments",
    "segment",
    "intervals",
    "interval",
    "windows",
    "window",
    "time_spans",
    "time_span",
    "times",
    "time",
    "time_range",
    "time_ranges",
    "ranges",
    "range",
    "events",
    "moments",
    "answers",
    *ANSWER_KEYS,
)


@dataclass(frozen=True)
class _Time:
    start: int
    end: int
    text: str


def parse_time(text: str) -> float:
    """Seconds of `83.5`, `1:23.5` or `1:01:23.5`.

    Raises:
        ValueError: the text has none of these forms.
    """
    seconds = 0.0
    for field in text.strip().split(":"):
        seconds = seconds * 60 + float(field)
    return seconds


def parse_spans(text: str) -> list[Span]:
    """Read the time spans that an answer names.

    The text is read as the first of these kinds that it has:

    1. JSON that is the whole answer, bare or in a code fence: `[[1.5, 4]]`, `[1.5, 4]`, `{"start": 1.5, "end": 4}`,
    lists
       of such objects, lists of strings that each name spans;
    2. pairs in brackets among words: `The event is at [[10, 20]]`;
    3. words: `from 1:02 to 1:15.5`, `62s-75s`, `between 1 min 2 s and 75 s`, `2 to 3 minutes`, `1 minute and 5 seconds
    to
       1 minute and 20 seconds`, `start: 10, end: 20`;
    4. pairs in parentheses (`(10, 20)`), or one pair that is the whole answer (`10, 20`).

    A number without a unit has the unit of the other end, or else seconds. Percentages, frame numbers and counts are
    not times. If it is unclear which times belong together ("1 to 2 to 3"), there is no span.

    All spans are returned in the order written, including reversed and non-finite ones, so that the caller can report
    what is wrong with them. An empty list means that no span was found. A decimal may have an exponent, or any number
    of digits that a float can have.
    """
    text = answer_part(text)
    value = json_value(text)
    spans = _from_json(value) if isinstance(value, list | dict) else None
    if spans is not None:
        return spans
    return [] if isinstance(value, list) else _from_words(_end_of(text))


def _end_of(text: str) -> str:
    """The last `MAX_CHARS` characters, without a partial line or word at their beginning."""
    if len(text) <= MAX_CHARS:
        return text
    begin = len(text) - MAX_CHARS
    line, blank = text.find("\n", begin, begin + _LONG_LINE), text.find(" ", begin, begin + _LONG_LINE)
    return text[max(begin, line + 1 or blank + 1) :]


def _from_json(value: object, depth: int = 0) -> list[Span] | None:
    """The spans of a JSON value; `None` if it does not have one of the forms."""
    if depth > 4:
        return None
    if isinstance(value, str):
        return _from_words(value[:MAX_CHARS]) or None
    if isinstance(value, dict):
        return _from_object(value, depth)
    if not isinstance(value, list):
        return None
    if len(value) == 2:
        start, end = map(_json_time, value)
        if start is not None and end is not None:
            return [(start, end)]
    spans: list[Span] = []
    for item in value:
        found = _from_json(item, depth + 1)
        if found is None:
            return None
        spans += found
    return spans


def _from_object(value: dict[str, object], depth: int) -> list[Span] | None:
    starts = [item for key, item in value.items() if _key(key) in _START_KEYS]
    ends = [item for key, item in value.items() if _key(key) in _END_KEYS]
    if len(starts) == len(ends) == 1:
        start, end = _json_time(starts[0]), _json_time(ends[0])
        return None if start is None or end is None else [(start, end)]
    if starts or ends:
        return None
    lower = {key.casefold(): item for key, item in value.items()}
    held = next((lower[key] for key in _LIST_KEYS if key in lower), None)
    return _from_json(held, depth + 1) if held is not None else None


def _key(key: str) -> str:
    """The key without "time", "seconds" and the like: `start_time`, `time_start`, `startSec` are `start`."""
    return _KEY_WORDS.sub("", key[:40]).casefold().strip("_- ")


def _json_time(value: object) -> float | None:
    if isinstance(value, str):
        value = _plain(value).strip()
        return _seconds(value, "s") if _LONE_TIME.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _from_words(text: str) -> list[Span]:
    text = _plain(text)
    return _listed(text, _IN_BRACKETS) or _told(text) or _listed(text, _IN_PARENTHESES_OR_BARE)


def _plain(text: str) -> str:
    """The text without marks of Markdown, with ASCII digits and minus signs."""
    return text.translate(_SIGNS).replace("**", "").replace("__", "").replace("`", "")


def _listed(text: str, pattern: re.Pattern[str]) -> list[Span]:
    """Pairs with a comma between their times; frame numbers and the like are left out."""
    return [
        _span(start, end)
        for match in pattern.finditer(text)
        for start, end in [filter(None, match.groups())]
        if _is_told(start + end) or not _NO_TIME_BEFORE.search(text, max(0, match.start() - _LOOK_BACK), match.start())
    ]


def _told(text: str) -> list[Span]:
    """Pairs of times in words; none if it is unclear which times belong together."""
    times = [_Time(match.start(), match.end(), match[0]) for match in _WORD_TIME.finditer(text)]
    spans: list[Span] = []
    paired: set[int] = set()
    last_of_pair = -1
    for at, (first, second) in enumerate(pairwise(times)):
        gap = text[first.end : min(second.start, first.end + 2 * _LOOK_BACK)]
        ranged = _TO.match(gap)
        if not ranged and not _pairs_up(text, first, gap):
            continue
        if ranged and at == last_of_pair:
            return []  # "1 to 2 to 3"
        if at == last_of_pair:
            continue
        before, after = text[max(0, first.start - _LOOK_BACK) : first.start], text[second.end : second.end + _LOOK_BACK]
        told = _is_told(first.text) or _is_told(second.text)
        if not told and (_NO_TIME_BEFORE.search(before) or _NO_TIME_AFTER.match(after)):
            last_of_pair = at + 1
            continue
        if _LATER.match(after) or _NO_TIME_AFTER.match(after) or _cut_off(text, times, at, last_of_pair):
            return []
        negative = (_minus(before, first=True), _minus(gap, first=False))
        start, end = _span(first.text, second.text)
        spans.append((-start if negative[0] else start, -end if negative[1] else end))
        last_of_pair = at + 1
        paired |= {at, at + 1}
    lone = (time for at, time in enumerate(times) if at not in paired) if "between" in text.casefold() else ()
    if any(_BETWEEN.search(text, max(0, time.start - _LOOK_BACK), time.start) for time in lone):
        return []  # "between 1 minute and 30 seconds": this is one time, and the other is missing
    return spans


def _pairs_up(text: str, first: _Time, gap: str) -> bool:
    """Whether the words before the first time and between both make them a span.

    Examples: "between 3 and 5", "starts at 3 and ends at 5".
    """
    before = text[max(0, first.start - _LOOK_BACK) : first.start]
    return bool((_AND.match(gap) and _BETWEEN.search(before)) or (_END.match(gap) and _START.search(before)))


def _cut_off(text: str, times: list[_Time], at: int, last_of_pair: int) -> bool:
    """Whether the pair `at`, `at + 1` is part of longer times: "1 minute and 75 seconds to …", "1 minute 5 to …"."""
    first, second = times[at], times[at + 1]
    if (
        at > 0
        and at - 1 != last_of_pair
        and _units(times[at - 1].text)
        and _BESIDE.match(text[times[at - 1].end : first.start])
    ):
        return True
    if at + 2 < len(times) and _units(second.text) and _units(second.text)[-1] != "s":
        third = times[at + 2]
        beside = _BESIDE.match(text[second.end : third.start])
        begins_pair = at + 3 < len(times) and _TO.match(text[third.end : times[at + 3].start])
        return bool(beside) and not begins_pair
    return False


def _minus(before: str, *, first: bool) -> bool:
    """Whether the text before a time ends with a minus sign; the hyphen of a range is not a sign."""
    if not before.endswith("-"):
        return False
    rest = before[:-1]
    return (
        not rest[-1:].isalnum()
        if first
        else bool(_TO.match(rest) or _AND.match(rest) or _END.match(rest)) and bool(rest.strip())
    )


def _is_told(times: str) -> bool:
    """Whether a clock format or a unit shows that the text is a time."""
    return ":" in times or bool(_units(times))


def _span(start: str, end: str) -> Span:
    return _seconds(start, _last_unit(end)), _seconds(end, _last_unit(start))


def _units(time: str) -> list[str]:
    """The units that a time names, as `h`, `m`, `s`."""
    return [name for _, unit in _PART.findall(time) if unit for name in [_name(unit)]]


def _name(unit: str) -> str:
    match = _UNIT_OF.fullmatch(unit)
    return match.lastgroup or "s" if match else "s"


def _last_unit(time: str) -> str:
    """The last unit that a time names; seconds for a clock format or a bare number."""
    units = _units(time)
    return units[-1] if units else "s"


def _seconds(time: str, default_unit: str) -> float:
    time = time.strip()
    sign, time = (-1.0, time[1:]) if time.startswith("-") else (1.0, time)
    if ":" in time:
        return sign * parse_time(time.replace(",", "."))
    return sign * sum(
        float(number.replace(",", "")) * _SECONDS[_name(unit) if unit else default_unit]
        for number, unit in _PART.findall(time)
    )
