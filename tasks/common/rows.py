"""Rows as files of annotations contain them, and those that can't be read.

A row that can't be read costs its own question, which counts as wrong with a reason; it never ends a run.

A row can't be read if a task's own code fails on it, or if a value has another type than its column: a harness keeps a
task's rows in an Arrow table, which can't store such a value. The document of such a row has the column
`apr_unreadable`, with the reason, and of all others only those that begin with `apr_`. A request for its videos raises
that reason, so that the model `apr` ends the question as `media_unreadable` with it.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError, require
from apr_plugin.loop.text import printable

Row = Mapping[str, Any]
"""One question with the columns of its benchmark."""

OURS = "apr_"
"""The prefix of the columns that this package adds."""

UNREADABLE = "apr_unreadable"
"""The column with the reason why a row can't be read; it exists only if a task has such a row."""

FAULTS = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    ArithmeticError,
    AssertionError,
    RecursionError,
    csv.Error,
)
"""The exceptions of reading a row of another form."""

NOT_READ = "(this row of the data set can't be read)"
"""The prompt of such a row, which no policy sees."""

_DEEPEST = 32
"""The depth of nested lists and objects that a row may have."""


@dataclass(frozen=True)
class Unreadable:
    """A placeholder for a row that can't be read."""

    reason: str
    """The reason, in one line."""

    @classmethod
    def by(cls, error: Exception, where: str = "") -> Unreadable:
        """Make one from an exception that was raised while reading."""
        return cls(where + reason(error))


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, KeyError):
        return f"no column or value {error}"
    return (printable(str(error)).strip() or type(error).__name__).splitlines()[0][:300]


def each(read: Callable[[Any], Iterable[Row | Unreadable]], items: Iterable[Any]) -> Iterator[Row | Unreadable]:
    """The rows that `read` makes of each item; an `Unreadable` follows where it fails on an item."""
    for item in items:
        if isinstance(item, Unreadable):
            yield item
            continue
        try:
            yield from read(item)
        except FAULTS as error:
            yield Unreadable.by(error)


def number(value: Any) -> float:
    """A finite number; text that contains one counts, because some benchmarks have that.

    Raises:
        ValueError: it is not a number, is a truth value, or is infinite.
    """
    found = math.nan if isinstance(value, bool) else float(value)
    if not math.isfinite(found):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return found


def plain(value: Any, depth: int = 0) -> Any:
    """The same value in a form that a table accepts: text without lone surrogates, in lists and objects too.

    Raises:
        ValueError: it has a whole number beyond 64 bits, an infinite number, a column without a name, or lists nested
            too deeply.
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"a whole number of {value.bit_length()} bits; at most 64 are allowed")
    if isinstance(value, float) and math.isinf(value):
        raise ValueError("an infinite number")
    if isinstance(value, dict | list) and depth >= _DEEPEST:
        raise ValueError(f"lists or objects nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("more fields than columns")
        return {printable(name): plain(item, depth + 1) for name, item in value.items()}
    return [plain(item, depth + 1) for item in value] if isinstance(value, list) else value


def unreadable(document: Row) -> str | None:
    """The reason why this document can't be read, which is never empty; `None` if it can."""
    found: str | None = document.get(UNREADABLE)
    return found


def check_readable(document: Row) -> None:
    """Check that a document can be read; called before its videos are named.

    Raises:
        AprError: the document can't be read.
    """
    if (why := unreadable(document)) is not None:
        raise AprError(f"this row of the data set can't be read: {why}")


def table(
    documents: Sequence[Row], attempt: Callable[[Row], object] | None = None
) -> tuple[Any, list[tuple[int, str]]]:
    """The documents as a `datasets.Dataset`, and the numbers of those that can't be read with their reasons.

    A column has the type that most of its values have. A document with a value that does not fit can't be read.

    Args:
        documents: One for each question.
        attempt: Is called for each document, and raises if it can't be asked or scored.
    """
    import datasets

    rows: list[dict[str, Any]] = []
    for document in documents:
        try:
            row = plain(dict(document))
        except FAULTS as error:
            row = _without(document, reason(error))
        rows.append(row)
    for name in dict.fromkeys(name for row in rows for name in row):
        for at, why in _misfits([row.get(name) for row in rows]).items():
            rows[at] = _without(rows[at], f"column {name!r}: {why}")
    if attempt is not None:
        columns = dict.fromkeys(name for row in rows for name in row)
        for at, row in enumerate(rows):
            try:
                if unreadable(row) is None:
                    attempt({name: row.get(name) for name in columns})
            except FAULTS as error:
                rows[at] = _without(row, reason(error))
    columns = dict.fromkeys(name for row in rows for name in row)  # `from_list` uses those of the first row only
    found = datasets.Dataset.from_list([{name: row.get(name) for name in columns} for row in rows])
    return found, [(at, row[UNREADABLE]) for at, row in enumerate(rows) if row.get(UNREADABLE) is not None]


def _without(row: Row, why: str) -> dict[str, Any]:
    """The document of a row that turned out to be unreadable."""
    return {
        **{name: value for name, value in row.items() if isinstance(name, str) and name.startswith(OURS)},
        UNREADABLE: why,
    }


def _misfits(values: Sequence[Any]) -> dict[int, str]:
    """The values of a column that do not fit its type, by index, with the reason.

    The type is the most common one, widened by the others as far as possible.
    """
    import pyarrow

    try:
        # A truth value is not 1.0.
        if not (
            pyarrow.types.is_floating(pyarrow.array(values).type) and any(isinstance(value, bool) for value in values)
        ):
            return {}
    except (pyarrow.ArrowException, *FAULTS):
        pass
    why: dict[int, str] = {}
    own: dict[int, Hashable] = {}
    for at, value in enumerate(values):
        try:
            own[at] = pyarrow.array([value]).type
        except (pyarrow.ArrowException, *FAULTS) as error:
            why[at] = reason(error)
    common, fits = pyarrow.null(), set()
    for kind, _ in Counter(own.values()).most_common():
        try:
            schemas = [pyarrow.schema([("value", one)]) for one in (common, kind)]
            common = pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
            fits.add(kind)
        except (pyarrow.ArrowException, *FAULTS):
            continue
    for at, kind in own.items():
        try:
            if kind not in fits:
                raise TypeError(f"{kind} where other rows have {common}")
            pyarrow.array([values[at]], type=common)
        except (pyarrow.ArrowException, *FAULTS) as error:
            why[at] = reason(error)
    return why


def content(path: Path) -> Any:
    """The content of a file; bytes that are not UTF-8 cause an error only in the row that has them."""
    if path.suffix == ".parquet":
        require("pyarrow", "lmms")
        from pyarrow import parquet

        return parquet.read_table(path).to_pylist()
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        match path.suffix:
            case ".json":
                return json.load(file, parse_int=_whole)
            case ".jsonl":
                return [_line(number, line) for number, line in enumerate(file.read().split("\n"), 1) if line.strip()]
            case ".csv":
                return list(_records(csv.DictReader(file)))
        return file.read().splitlines()


def _whole(text: str) -> int | float:
    """A whole number of a JSON file.

    Python refuses to read a number of more than 4300 digits, and the whole file with it.
    """
    return int(text) if len(text) < 1000 else float(text)


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line, parse_int=_whole)
    except FAULTS as error:
        return Unreadable.by(error, f"line {number}: ")


def _records(reader: csv.DictReader[str]) -> Iterator[Row | Unreadable]:
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Unreadable.by(error, f"line {reader.line_num}: ")
