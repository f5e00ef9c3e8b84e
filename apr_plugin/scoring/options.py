r"""Which option a reply names, and how the labels of options are written. Pure functions.

All code uses these rules. An option is named by its label alone (`B`, `(B)`, `**B**`), by its label with words after
it (`B. the red one`, `B - the red one`), by its words, or by a statement of the answer (`the answer is B`,
`I choose B`, `\boxed{B}`, a last line `B`). These name no option: a sentence that merely begins with a capital letter
("A man walks"), several labels ("B or C"), a label that is denied ("not B", "A. wrong"), and a list that judges every
option.
"""

# ruff: noqa: RUF001 - full-width and other signs that models write

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

_OPEN, _CLOSE = r"[(\[{<'\"“‘«【「『〔]", r"[)\]}>'\"”’»】」』〕]"
_LETTER = r"0-9A-Za-z_\u00c0-\u024f"
_ANSWER = (
    r"(?:answers?|(?:correct|right|best|final|correct\sanswer)\s(?:option|choice|letter|one)|"
    r"r[ée]ponse|respuesta|resposta|antwort|risposta|ответ"
    r"|答え|正解|정답|答案|正确选项|正確選項)"
)
_IS = (
    r"(?:\s{0,3}\(s\))?\s{0,3}(?:(?:is|was|would\sbe|should\sbe|must\sbe|has\sto\sbe|will\sbe|"
    r"seems\sto\sbe|appears\sto\sbe|est|es|é|ist|è)\b"
    r"|应该是|應該是|应该为|应为|應為|[是为為はは은는]|=|->|→|:|\s[-–—]\s)?"
)
_HEDGE = r"(?:(?:most\s)?(?:likely|probably|clearly|definitely|indeed|therefore|thus|simply|obviously)\s{1,3})?"
_NOUN = r"(?:(?:the\s{1,3})?(?:option|choice|letter)\s{0,3}|选项|選項)?"
_REASON = r"(?:because|since|as|given|due\sto|based\son)\b"
_CHOOSE = (
    r"(?:(?:\b(?:i|we)(?:['’](?:d|ll|m)|\s(?:would|will|am|shall))?\s(?:also\s)?"
    r"(?:choose|chose|pick|select|go\swith|going\swith|opt\sfor|say|answer))\s{1,3}"
    r"|\A(?:choose|pick|select)\s{1,3}|(?<![不没別别])(?:选择|選擇|故选|故選|应选|應選|选|選)\s{0,3}(?:了|:)?\s{0,3})"
)
_RIGHT = (
    r"\s{1,3}is\s{1,3}(?:the\s{1,3}|my\s{1,3})?(?:only\s{1,3}|most\s{1,3})?"
    r"(?:correct|right|best|answer|final|accurate)\b(?!\?)"
)
_RIGHT_CJK = r"\s{0,2}(?:选项|選項|项|項)?\s{0,2}(?:是|为|為)?\s{0,2}(?:正确|正確|对的|對的)"
_THEREFORE = r"(?:^|[.\n]\s{0,3})(?:so|therefore|thus|hence|因此|所以|故)\s{0,2}[,:]?\s{0,3}"
_AND = r"(?:,|、|/|&|\+|\bor\b|\band\b|\bnor\b|或者|还是|以及|或|和|与|與|及|跟|[-–—]\s)"
_DENIED = re.compile(
    r"(?:\bnot|n['’]t|\bnever)(?:\s+(?:think|believe|say|sure|certain|that|"
    r"the|be|clear|mean|agree|if|whether|likely|necessarily|option|choice|answer|is|an?))*\s*\Z"
    r"|\b(?:if|unless|whether|suppose|assuming|why|neither|either)"
    r"(?:\s+(?:that|the|option|choice|correct|right|is))*\s*\Z",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"(?:(?:this|it|that)\s{1,3})?(?:(?:is|was|are|can\sbe|seems|looks)\s{1,3}|[:=]\s{0,3})?"
    r"(?:wrong|incorrect|false|not|no|cannot|can['’]?t|isn['’]?t|doesn['’]?t|"
    r"eliminated|ruled|excluded|unlikely|impossible|irrelevant|不|错|錯)(?![a-z])",
    re.IGNORECASE,
)
_SAID_RIGHT = re.compile(
    r"\s{0,3}(?:(?:this|it|that)\s)?(?:is\s{1,3})?(?:the\s)?"
    r"(?:right|correct|yes|true|best|answer|\u6b63\u786e|\u5bf9)\b",
    re.IGNORECASE,
)
_HEDGED = r"\b(?:or|maybe|perhaps|possibly|either|both|and\salso)\s{1,3}(?:option\s{1,3}|choice\s{1,3})?"
_MARKED = re.compile(r"(\*{1,3}|_{2}|`)\s{0,2}[(\[]?([^\W_]{1,3})[)\]]?\s{0,2}([.:)]?)\s{0,2}\1")
_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf|bf|rm)\s{0,2}\{([^{}]{0,500})\}")
_BOXED = re.compile(r"\\f?boxed\s{0,2}\{([^{}]{0,500})\}")
_PUNCTUATION = "()[]{}<>.:,;!*#\"'`“”‘’«»【】「」『』〔〕。、，；！ \t\r\n"

MAX_OPTION_CHARS = 20_000
"""A label is searched for in this many characters at the end: in a long reply, the answer is at the end."""


@dataclass(frozen=True)
class _Rules:
    """Patterns for one set of labels."""

    leading: re.Pattern[str]
    """The label at the beginning of a text, and the separator between it and the words after it."""

    stated: re.Pattern[str]
    """A statement of the answer."""

    right: re.Pattern[str]
    """A label that is said to be right."""

    said_in_words: re.Pattern[str]
    """The words that introduce the answer in words."""

    joined: re.Pattern[str]
    """At the beginning of the text after a label: another label next to it."""

    joined_before: re.Pattern[str]
    """At the end of the text before a label: another label next to it."""

    hedged: re.Pattern[str]
    """Another label that may also be meant."""

    others: re.Pattern[str]
    """Labels at the beginning of a line, and labels within a line that are written like labels of a list."""

    ends_with_label: re.Pattern[str]
    """At the end of the text before the last line: another label."""

    label_line: re.Pattern[str]
    """A last line that consists of a label alone."""


@lru_cache(maxsize=256)
def _rules(labels: tuple[str, ...]) -> _Rules:
    one = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))

    def token(name: str, *, exact: bool) -> str:
        case = "(?-i:" if exact else "(?:"
        return rf"(?<![{_LETTER}]){_OPEN}{{0,2}}\s?{case}(?P<{name}>{one}))\s?{_CLOSE}{{0,2}}(?!['’]?[{_LETTER}])"

    plain = rf"{_OPEN}{{0,2}}\s?(?:{one})\s?{_CLOSE}{{0,2}}(?![{_LETTER}])"
    beside = (
        rf"\s{{0,3}}(?:{_AND}\s{{0,3}}){{1,2}}"
        rf"(?:(?:also|maybe|perhaps|possibly|option|choice|选项)\s{{0,3}}){{0,2}}(?-i:{plain})"
    )
    alone = rf"(?!\s{{0,3}}\n\s{{0,3}}(?-i:{plain})[.:)]?\s{{0,3}}(?:\n|\Z))(?!{beside})"
    stop = (
        rf"(?=\s{{0,9}}\Z|\s{{0,3}}\n|\s{{0,3}}[.:)](?!\d|[A-Za-z]\.)"
        rf"|\s{{0,3}}[。;!]|\s{{0,3}},?\s{{1,3}}{_REASON}|{_RIGHT})"
    )
    loose = (
        r"(?=\s{0,3}\((?!\s{0,3}(?:or|and|maybe|possibly|not)\b)|"
        r",\s{1,3}(?!or\b|and\b|maybe\b|perhaps\b|possibly\b)\w|\s{1,3}[-–—]{1,2}\s)"
    )
    cjk = r"(?=\s{0,3},?\s{0,3}[\u3001-\u30ff\u3400-\u9fff\uac00-\ud7af])"
    head = (
        rf"(?:{_ANSWER}{_IS}\s{{0,3}}:?\s{{0,3}}{_HEDGE}{_NOUN}:?\s{{0,3}}"
        rf"|{_CHOOSE}{_NOUN}:?\s{{0,3}}|{_THEREFORE}{_NOUN})"
    )
    noun = r"(?:(?:the\s{1,3})?(?:option|choice|answer|选项|選項)\s{0,3}(?:is\b|:)?\s{0,3})"
    part = (
        rf"\s{{0,3}}[.:)](?!\d|[A-Za-z]\.)\s{{0,3}}|\s{{0,3}}[、。;]\s{{0,3}}"
        rf"|\s{{0,3}}\n\s{{0,9}}|\s{{0,9}}\Z|\s{{1,3}}(?={_REASON})"
        rf"|(?-i:(?<=[A-Z0-9)\]])(?:\s{{1,3}}[-–—]{{1,2}}\s{{1,3}}|"
        rf",\s{{1,3}}(?={_REASON}|the\b|it\b|this\b|as\b|for\b|which\b)))"
    )
    flags = re.IGNORECASE
    return _Rules(
        leading=re.compile(
            rf"\A(?:[-*•#>]{{1,3}}\s{{1,3}})?(?P<noun>{noun})?"
            rf"(?:{token('label', exact=False)}(?P<part>{part})|{token('marked', exact=True)}(?P<gap>\s{{1,3}}))",
            flags,
        ),
        stated=re.compile(
            rf"{head}(?:{token('strict', exact=False)}{alone}{stop}"
            rf"|{token('loose', exact=True)}{alone}(?:{loose}|{cjk}))",
            flags,
        ),
        right=re.compile(rf"{token('right', exact=False)}(?:{_RIGHT}|{_RIGHT_CJK})", flags),
        said_in_words=re.compile(
            rf"{_ANSWER}{_IS}\s{{0,3}}:?\s{{0,3}}{_NOUN}:?\s{{0,3}}(?P<words>[^\n]{{1,400}})", flags
        ),
        joined=re.compile(rf"{beside}|(?:or|and)\s{{1,3}}(?-i:{plain})", flags),
        joined_before=re.compile(
            rf"(?:\bor|\band|\bnor|\bnot|或|和|与|及|不|不是|不选|[/&])\s{{0,3}}(?:option\s|choice\s)?\Z"
            rf"|(?-i:{plain})\s{{0,3}},\s{{0,3}}\Z",
            flags,
        ),
        hedged=re.compile(rf"{_HEDGED}(?-i:{plain})(?!\s{{1,3}}[a-z])", flags),
        others=re.compile(
            r"(?:^[ "
            rf"\t]{{0,9}}(?:[-*•]\s)?(?:option\s|choice\s|选项)?|(?<=\s))(?:\((?P<a>{one})\)|(?P<b>{one})[.:)](?=\s))",
            re.MULTILINE,
        ),
        ends_with_label=re.compile(rf"(?<![{_LETTER}])(?:{one})\s?{_CLOSE}{{0,2}}[.:)]?\s{{0,9}}\Z"),
        label_line=re.compile(rf"\n[^\S\n]{{0,9}}(?:{noun})?{_OPEN}{{0,2}}(?P<line>{one}){_CLOSE}{{0,2}}[.。!]?\Z"),
    )


def match_option(content: str, options: Sequence[tuple[str, str]], *, opening: bool = False) -> str | None:
    """The label of the option that a text names, or `None` if it names none, or more than one.

    Args:
        content: The reply, without thought and marks of a turn (`apr_plugin.scoring.text.answer_part`).
        options: (label, text) of each option.
        opening: Whether only the beginning of the text counts, because the reply was cut off.
    """
    by_label = {_folded(label): label for label, _ in options if _folded(label)}
    if not by_label:
        return None
    text = _plain_marks(content[-MAX_OPTION_CHARS:])
    bare = text.strip(_PUNCTUATION).casefold()
    if bare in by_label and not opening:
        return by_label[bare]
    # If an option is as short as a label, its `**5**` has become "(5)".
    by_text = _by_text(text, options) or _by_text(bare, options)
    if by_text is not None and not opening:
        return by_text
    rules = _rules(tuple(dict.fromkeys(_normal(label) for label, _ in options if _folded(label))))
    lead = _leading(text, rules, options, by_label)
    if opening:
        first = rules.stated.match(text.lstrip())
        return lead or (by_label.get(_label_of(first)) if first else None)
    stated = _stated(text, rules, options, by_label)
    if lead is not None and stated is not None and lead != stated:
        return None
    return lead or stated


def _leading(text: str, rules: _Rules, options: Sequence[tuple[str, str]], by_label: dict[str, str]) -> str | None:
    """The label at the beginning of the text, if the words after it don't contradict it."""
    match = rules.leading.match(text)
    if match is None:
        own = [label for label, words in options if words.strip() and _words(text) == _words(f"{label} {words}")]
        return own[0] if len(own) == 1 else None
    label = by_label.get(_label_of(match))
    if label is None:
        return None
    rest, words = text[match.end() :], next(words for other, words in options if other == label)
    if rest.strip() and _words(rest) == _words(words):
        return label
    if match["marked"] is not None and not _is_wrapped(match, "marked"):
        return None
    said_right = rules.right.match(text)
    if not said_right and (_WRONG.match(rest) and not _begins_with(rest, words)):
        return None
    if (
        rules.joined.match(rest)
        or rules.joined.match(text, match.end("label") if match["label"] else match.end("marked"))
        or rules.hedged.search(rest)
    ):
        return None
    others = [(_folded(other[1] or other[2]), other.end()) for other in rules.others.finditer(rest)]
    listed = {other for other, _ in others} - {_folded(label)}
    order = list(by_label)
    if (
        listed
        and min(map(order.index, listed)) < order.index(_folded(label))
        and not any(_SAID_RIGHT.match(rest, end) for _, end in others)
    ):
        # The text gives the answer, then what is wrong with the others: a list that judges every option begins with the
        # first one.
        listed = set()
    listed |= {
        line for line in (line.strip(_PUNCTUATION).casefold() for line in rest.split("\n")[:1]) if line in by_label
    }
    return None if listed else label


def _stated(text: str, rules: _Rules, options: Sequence[tuple[str, str]], by_label: dict[str, str]) -> str | None:
    """The option in the last statement of the answer."""
    found: list[tuple[int, str | None, bool]] = []
    for match in rules.stated.finditer(text):
        if not _DENIED.search(text, max(0, match.start() - 80), match.start()):
            found.append((match.start(), by_label.get(_label_of(match)), False))
    for match in rules.right.finditer(text):
        begin = max(0, match.start() - 80)
        before = text[begin : match.start()]
        if not _DENIED.search(before) and not rules.joined_before.search(before):
            found.append((match.start(), by_label.get(_label_of(match)), True))
    for match in _BOXED.finditer(text):
        inside = match[1].strip()
        if inside and "boxed" not in inside:
            found.append((match.start(), match_option(inside, options), False))
    for match in rules.said_in_words.finditer(text):
        if (
            not _DENIED.search(text, max(0, match.start() - 80), match.start())
            and (label := _by_text(match["words"], options)) is not None
        ):
            found.append((match.start(), label, False))
    line = rules.label_line.search(text, max(0, len(text) - 60))
    if line and not rules.ends_with_label.search(text, max(0, line.start() - 12), line.start()):
        found.append((line.start(), by_label.get(_label_of(line)), False))
    if not found:
        return None
    _, label, said_right = max(found, key=lambda item: item[0])
    rivals = {other for _, other, is_right in found if is_right and other != label}
    return None if said_right and rivals else label


def _label_of(match: re.Match[str]) -> str:
    return next(value for name, value in match.groupdict().items() if value and name in _LABEL_GROUPS).casefold()


_LABEL_GROUPS = frozenset(("label", "marked", "strict", "loose", "right", "line"))


def _is_wrapped(match: re.Match[str], name: str) -> bool:
    begin, end = match.span(name)
    return match.string[max(0, begin - 1) : begin] in tuple("([{【「") and match.string[end : end + 1] in tuple(
        ")]}】」"
    )


def _begins_with(rest: str, words: str) -> bool:
    return bool(words.strip()) and _words(rest).startswith(_words(words))


def _by_text(text: str, options: Sequence[tuple[str, str]]) -> str | None:
    """The only option with exactly these words."""
    wanted = _words(text)
    found = [label for label, words in options if words.strip() and _words(_plain_marks(words)) == wanted]
    return found[0] if wanted and len(found) == 1 else None


def _words(text: str) -> str:
    return " ".join(_normal(text).casefold().split()).strip(" .。\"'`*“”")


def _normal(text: str) -> str:
    """Full-width letters and signs as plain ones."""
    return unicodedata.normalize("NFKC", text)


def _folded(label: str) -> str:
    return _normal(label).strip().casefold()


def _plain_marks(text: str) -> str:
    """The text without marks of Markdown and LaTeX; a label in bold or code is put in parentheses."""
    text = _LATEX.sub(r"\1", _normal(text))
    text = _MARKED.sub(r"(\2)\3", text)
    return (
        text.replace("**", "")
        .replace("__", "")
        .replace("`", "")
        .replace("$", "")
        .replace("\\(", "")
        .replace("\\)", "")
        .strip()
        .strip("\"'")
        .strip()
    )


_MARK = r"[.．。:：)）、]"


def label_pattern(one: str, marks: str = _MARK) -> str:
    """A pattern of the label at the beginning of an option.

    It matches `A.` `A)` `A:` `(A)` `[A]` `**A.**` `**A**`, full-width signs and `A、`.

    Its groups are `bold`, `round`, `square` and `label`, one of which holds the label, and `mark`, the sign after a
    plain label.

    Args:
        one: A pattern of one label.
        marks: A pattern of the sign after a plain label.
    """
    return (
        rf"(?:(?P<stars>\*{{1,3}}|__)\s?[(（\[【]?(?P<bold>{one})[)）\]】]?{_MARK}?\s?(?P=stars){_MARK}?"
        rf"|[(（](?P<round>{one})[)）]|[\[【](?P<square>{one})[\]】]|(?P<label>{one})[ \t]?(?P<mark>{marks}))"
    )


def label_of(match: re.Match[str]) -> str:
    """The label in a match of `label_pattern`, as a plain letter or digit."""
    return _normal(match["bold"] or match["round"] or match["square"] or match["label"])


_OPTION = re.compile(rf"\s*(?:[-*•]\s+)?{label_pattern('[A-Z0-9Ａ-Ｚ０-９]')}\s*")


_BLANK = re.compile(r"\s*([A-Z])\s+(.*)\Z", re.DOTALL)


def split_label(text: str) -> tuple[str, str] | None:
    """(label, words) of an option that begins with its label, or `None` if it does not.

    Examples: "A. red", "(A) red", "**A.** red".
    """
    match = _OPTION.match(text)
    return (label_of(match), text[match.end() :].strip()) if match else None


def without_labels(texts: Iterable[str]) -> list[str]:
    """The words of options without their labels ("A. red", "A red").

    The texts are unchanged unless each one has a label, in rising order.
    """
    plain = [str(text) for text in texts]
    split = [split_label(text) or ((blank[1], blank[2]) if (blank := _BLANK.match(text)) else None) for text in plain]
    labels = [label for label, _ in filter(None, split)]
    carried = len(labels) == len(plain) and all(before < after for before, after in pairwise(labels))
    return [words.strip() for _, words in filter(None, split)] if carried else plain
