"""`apr omniagent-prompt`: the system prompt of OmniAgent's checkpoints, read from a clone of its repository.

The checkpoints were trained with this prompt; the user makes the clone.

The prompt is the repository's own text and is not shipped here. It is in a function that returns an f-string. The file
is read as text and parsed (`ast`); nothing in it is imported or evaluated. The prompt is made only of constant strings,
with the limits in place of the function's arguments.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.files import check_regular
from apr_plugin.loop.notebook import is_template
from apr_plugin.terminal import print_exact, quoted, shortened

WHERE = "agent_system/environments/prompts/video_prompt.py"
"""The file of the prompt within the official repository."""

FUNCTION = "build_video_prompt_omniagent"
ARGUMENTS = ("max_steps", "max_frames_len", "max_audio_len", "max_clip_len")

KNOWN = "commit 18725bc of github.com/HarryHsing/OmniAgent is known to work"

MOST_BYTES = 1 << 20
"""The largest file that is read, in bytes; the official one has 8 KB."""

_SPEC = re.compile(r"0?\d{0,2}(\.\d{1,2})?[dfg]?")
"""Format specs that a number may have; a width of at most two digits bounds the length of the prompt."""


def run_omniagent_prompt(clone: Path, out: str, frames: int, audio_s: str, clip_s: str, force: bool) -> None:
    """Write the prompt to a file that the model_arg `system_prompt` takes, or to standard output.

    Args:
        clone: Folder of the clone.
        out: The file, or `-` for standard output.
        frames: Most frames of one look.
        audio_s: Most seconds of one look at sound, written as in the prompt.
        clip_s: Seconds of a clip, written as in the prompt.
        force: Whether to overwrite an existing file.

    Raises:
        AprError: the folder is no clone, the prompt has another form, or a file that can't be written.
    """
    limits = {
        "max_frames_len": frames,
        "max_audio_len": _seconds("--audio-s", audio_s),
        "max_clip_len": _seconds("--clip-s", clip_s),
    }
    if is_template(out):
        raise AprError(
            f"{quoted(out)} would be read as a template, but the prompt is not a template; give a name that does not "
            "end with .jinja"
        )
    prompt = omniagent_prompt(clone, limits)
    if out == "-":
        print_exact(prompt.removesuffix("\n"))
        return
    _write(Path(out), prompt, force)
    print_exact(f"{out}: {len(prompt)} characters; use it with --model_args profile=omniagent,system_prompt={out}")


def omniagent_prompt(clone: Path, limits: Mapping[str, int | float]) -> str:
    """The text that the clone's `build_video_prompt_omniagent` returns for these limits.

    Args:
        clone: Folder of the clone.
        limits: A number for each argument that the prompt may name; an int and a float are written as Python writes
            them (300, 300.0).

    Raises:
        AprError: the file is missing or can't be read, or the function is missing or contains more than words and
            limits.
    """
    path = clone / WHERE
    text = _read(clone, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parser, on code that is not ours
            returned = _returned(path, ast.parse(text))
            prompt = _words(path, returned, limits)
    except (SyntaxError, ValueError) as error:
        raise AprError(
            f"{path} is not Python: {getattr(error, 'msg', error)} (line "
            f"{getattr(error, 'lineno', None) or 1}); {KNOWN}"
        ) from error
    except (RecursionError, MemoryError) as error:
        raise AprError(f"{path} is nested too deeply to be read; {KNOWN}") from error
    if not prompt.strip():
        raise _changed(path, returned, "no words")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise _changed(path, returned, "half a character (a lone surrogate)")
    return prompt


def _seconds(option: str, value: str) -> int | float:
    """Parse the number as it was written: 300 and 300.0 make different prompts."""
    try:
        number = int(value) if re.fullmatch(r"[0-9]{1,6}", value) else float(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= 86_400:
        raise AprError(f"{option} must be a number of seconds, at most 86400, not {quoted(value)}")
    return number


def _read(clone: Path, path: Path) -> str:
    give = "give the folder of a clone of github.com/HarryHsing/OmniAgent"
    if not clone.is_dir():
        raise AprError(f"{clone} is not a folder; {give}")
    try:
        check_regular(path)
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AprError(f"{clone} has no {WHERE}; {give} ({KNOWN})") from error
    except OSError as error:
        raise AprError(f"can't read {path}: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise AprError(f"{path} is larger than {MOST_BYTES} bytes, so it is not the file of a prompt; {KNOWN}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AprError(f"{path} is not UTF-8 text (byte {error.start}); {KNOWN}") from error


def _returned(path: Path, module: ast.Module) -> ast.expr:
    """The expression that the function returns; it must do nothing else."""
    found = [
        node
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == FUNCTION
    ]
    if not found:
        raise AprError(f"{path} has no function {FUNCTION}; {KNOWN}")
    function = found[0]
    if len(found) > 1:
        raise _changed(path, found[1], f"a second {FUNCTION}")
    if not isinstance(function, ast.FunctionDef):
        raise _changed(path, function, "an async function")
    if function.decorator_list:
        raise _changed(path, function.decorator_list[0], "a decorator")
    given = function.args
    if (
        given.vararg
        or given.kwarg
        or given.kwonlyargs
        or tuple(one.arg for one in (*given.posonlyargs, *given.args)) != ARGUMENTS
    ):
        raise _changed(path, function, f"arguments other than {', '.join(ARGUMENTS)}")
    body = function.body
    if len(body) > 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]  # its docstring
    if not isinstance(body[0], ast.Return) or len(body) > 1:
        raise _changed(path, body[0], "more than one statement that returns the prompt")
    if body[0].value is None:
        raise _changed(path, body[0], "a return of nothing")
    return body[0].value


def _words(path: Path, node: ast.expr, limits: Mapping[str, int | float]) -> str:
    """The text of an expression of constant words, joined by `+` or in f-strings with the names of limits in them."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _words(path, left, limits) + _words(path, right, limits)
        case ast.JoinedStr(values=values):
            return "".join(_words(path, value, limits) for value in values)
        case ast.FormattedValue(value=ast.Name(id=name), conversion=-1, format_spec=spec):
            if name not in limits:
                why = "which depends on the video" if name == "max_steps" else "which is not a limit"
                raise _changed(path, node, f"{{{shortened(name, 60)}}}, {why}")
            form = _spec(path, spec)
            try:
                return format(limits[name], form)
            except ValueError as error:
                raise _changed(path, node, f"{{{name}:{form}}}, which {limits[name]} can't be written by") from error
    raise _changed(path, node, f"{quoted(shortened(ast.unparse(node), 60))}, which is more than words and limits")


def _spec(path: Path, spec: ast.expr | None) -> str:
    match spec:
        case None:
            return ""
        case ast.JoinedStr(values=[ast.Constant(value=str(text))]) if _SPEC.fullmatch(text):
            return text
    raise _changed(path, spec, "a format spec that is not a plain one")


def _changed(path: Path, node: ast.expr | ast.stmt, what: str) -> AprError:
    return AprError(
        f"{path}, line {node.lineno}: {FUNCTION} has {what}. Nothing of it is run, so its prompt can't be read; {KNOWN}"
    )


def _write(path: Path, prompt: str, force: bool) -> None:
    try:
        if force and path.exists():
            check_regular(path)
        with path.open("w" if force else "x", encoding="utf-8", newline="") as file:
            file.write(prompt)
    except FileExistsError as error:
        raise AprError(f"{path} already exists; name another file with --out, or overwrite it with --force") from error
    except OSError as error:
        raise AprError(f"can't write {path}: {error.strerror or error}") from error
