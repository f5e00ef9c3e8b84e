"""Controls what may reach a terminal; everything that this package prints goes through here.

A file name, a question, a model's reply or a server's error may contain sequences that a terminal obeys: move the
cursor, set the title, write the clipboard, hide text.

There are two lines of defence. `console`, `complain`, `warn` and the log records of `guard_logs` print no control
character except those of our own styles. `guarded_streams` is a filter below them, for everything else that prints (a
library, a traceback): it lets only those sequences pass that draw a progress bar. It also ends a command when nobody
reads its output any more, and replaces what the encoding lacks.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

CLOSED_PIPE = 141
"""Exit status when the reader of the output is gone (`apr show … | head -1`).

It is what a shell reports for a program that SIGPIPE ends.
"""

LONGEST = 3000
"""Most characters of one message."""

_LONGEST_WORD = 400
_TURNING = (
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # they change the direction of writing, or end a line
)
_CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_TURNING}]")
_PASSING = re.compile(rf"(\x1b\[(?:[0-9;]*m|[0-9]*[AK]|\?25[lh])|\r)|[\x00-\x08\x0b-\x1f\x7f-\x9f{_TURNING}]")
"""Colours and what a progress bar needs; everything else is removed."""


def plain(text: str, longest: int | None = None) -> str:
    """The text without what a terminal obeys, cut to `longest`.

    Newlines and tabs stay. Lone surrogates are removed too, because no encoding has them.
    """
    text = _CONTROL.sub("�", text.encode("utf-8", "replace").decode("utf-8"))
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"


def one_line(text: str, longest: int = LONGEST) -> str:
    """A message as one plain line; a very long part (a file name of 5,000 characters) loses its middle."""
    line = re.sub(r"\s*\n\s*|\t", " ", plain(text)).strip()
    line = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: shortened(word[0], _LONGEST_WORD), line)
    return shortened(line, longest)


def shortened(text: str, longest: int = 200) -> str:
    """The text, without its middle if it is longer than `longest`."""
    return text if len(text) <= longest else f"{text[: longest * 2 // 3]}…{text[-(longest // 4) :]}"


def quoted(value: object, longest: int = 200) -> str:
    """A value as Python writes it, for a message; without its middle if it is long."""
    if isinstance(value, str):
        return repr(shortened(value, longest))
    try:
        return shortened(repr(value), longest)
    except ValueError:  # Python does not print a number of more than 4,300 digits
        return f"a number of {value.bit_length() if isinstance(value, int) else 'very many'} bits"


def console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """A console that treats every string as plain text, never as markup.

    It prints nothing that a terminal obeys except its own styles.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Plain(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                unsafe = segment.control is None and _CONTROL.search(segment.text)
                yield Segment(plain(segment.text), segment.style) if unsafe else segment

        def on_broken_pipe(self) -> None:
            self.quiet = True
            raise SystemExit(CLOSED_PIPE)

    return Plain(stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)


def complain(message: str) -> None:
    """Print one line on standard error that says what went wrong."""
    _say("error: ", "bold red", message)


def warn(message: str) -> None:
    """Print one line on standard error that the user should know."""
    _say("warning: ", "bold yellow", message)


def _say(head: str, style: str, message: str) -> None:
    from rich.text import Text

    console(stderr=True, soft_wrap=True).print(Text(head, style) + Text(one_line(message)))


def print_exact(text: str) -> None:
    """Print a line for a program to read: exact bytes to a pipe or a file, plain text on a terminal."""
    if isinstance(sys.stdout, _Guarded) and not sys.stdout.isatty():
        sys.stdout.write_bytes(os.fsencode(text) + b"\n")
    else:
        print(plain(text))  # noqa: T201


def print_traceback() -> None:
    """Print the traceback of the exception that is being handled on standard error."""
    print(plain(traceback.format_exc()), file=sys.stderr)  # noqa: T201


class _Guarded(io.TextIOWrapper):
    """Standard output or standard error, while a command runs."""

    def __init__(self, stream: TextIO, *, ends_the_command: bool) -> None:
        utf8 = stream.encoding.lower().replace("-", "").startswith("utf")
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="replace" if utf8 or ends_the_command else "backslashreplace",
            line_buffering=getattr(stream, "line_buffering", False),
            write_through=getattr(stream, "write_through", False),
        )
        self._ends = ends_the_command

    def write(self, text: str) -> int:
        with self._noticing():
            super().write(_PASSING.sub(lambda found: found[1] or "�", text))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Write bytes as they are."""
        with self._noticing():
            super().flush()
            self.buffer.write(data)

    def flush(self) -> None:
        with self._noticing():
            super().flush()

    def close(self) -> None:
        """Leave the stream below open: it is not ours."""
        self.flush()

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # The rest of the buffer goes there, otherwise Python fails again when it exits.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not self._ends:
                return
            if error.errno != errno.EPIPE:
                complain(f"standard output: {error.strerror or error}")
            raise SystemExit(CLOSED_PIPE if error.errno == errno.EPIPE else 1) from None


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Make standard output and standard error pass nothing harmful and accept every character, within the block.

    A command whose output nobody reads any more ends with `CLOSED_PIPE`. One whose output can't be written (the disk is
    full) ends with a message and status 1.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _guard(sys.stdout, ends_the_command=True), _guard(sys.stderr, ends_the_command=False)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            sys.stdout, sys.stderr = before


def _guard(stream: TextIO | None, *, ends_the_command: bool) -> TextIO:
    if stream is None:  # closed by the parent process
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
    if isinstance(stream, _Guarded):
        return stream
    try:
        stream.fileno()
        stream.flush()
        return _Guarded(stream, ends_the_command=ends_the_command)
    except (AttributeError, OSError, ValueError):
        return stream  # not a stream of the system, but an object of the calling program


class _PlainRecord(logging.LogRecord):
    """A log record whose text is safe for a terminal."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = plain("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:
        return plain(super().getMessage())


def guard_logs() -> None:
    """Make log records of the standard library, and of loguru if it is loaded, plain text from now on.

    lmms-eval logs through loguru.
    """
    logging.setLogRecordFactory(_PlainRecord)
    if (loguru := sys.modules.get("loguru")) is not None:
        loguru.logger.configure(patcher=_plain_record)


def _plain_record(record: Any) -> None:
    message = plain(record["message"])
    if (raised := record["exception"]) is not None and raised.type is not None:
        message += "\n" + plain(
            "".join(traceback.format_exception(raised.type, raised.value, raised.traceback)).rstrip()
        )
        record["exception"] = None
    record["message"] = message
