"""`apr omniagent-prompt` on made-up files of the official form; nothing in a hostile file is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm_apr

from apr_plugin.cli.omniagent_prompt import FUNCTION, MOST_BYTES, WHERE, omniagent_prompt
from apr_plugin.errors import AprError

LIMITS = {"max_frames_len": 60, "max_audio_len": 300, "max_clip_len": 60.0}
HEAD = f"def {FUNCTION}(max_steps: int, max_frames_len: int, max_audio_len: float, max_clip_len: float) -> str:\n"
TEMPLATE = (
    'f"""\nLook at {max_frames_len} frames, hear {max_audio_len}s,\n  watch {max_clip_len}s. {{"type": '
    '"answer"}} “é” \\n stays.\n'
    'One\\\nline, {max_clip_len:.1f}.\n"""'
)


def clone(folder: Path, source: str | bytes) -> Path:
    path = folder / "clone" / WHERE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return folder / "clone"


def run_function(source: str, limits: dict[str, int | float]) -> str:
    """The return value of the function in a separate Python process."""
    code = f"{source}\nimport json\nprint(json.dumps({FUNCTION}(32, {', '.join(map(repr, limits.values()))})))"
    return str(
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    )


def apr(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return warm_apr.run("omniagent-prompt", *arguments, cwd=cwd)


@pytest.mark.parametrize(
    "body",
    [
        f"    return {TEMPLATE}\n",
        f'    """Its docstring."""\n    return {TEMPLATE}\n',
        '    return "no limits at all"\n',
        "    return 'one ' + f'two {max_frames_len!s:>9}' + \"three\"\n".replace("!s:>9", ":4d"),
        "    return ('implicit ' f'{max_audio_len:5.1f} '\n        r'raw \\n ' f'{max_clip_len:g}')\n",
        "    return f'{max_clip_len}{max_clip_len}{{}}' f''\n",
        "    return '\\d is an invalid escape'\n",
    ],
    ids=["f-string", "docstring", "constant", "plus", "implicit", "only-limits", "warned-of"],
)
@pytest.mark.parametrize(
    "numbers", [(60, 300, 60), (60, 300.0, 59.96), (1, 0.5, 86_400)], ids=["ints", "floats", "odd"]
)
def test_equals_what_the_function_returns(body: str, numbers: tuple[int | float, ...], tmp_path: Path) -> None:
    limits = dict(zip(LIMITS, numbers, strict=True))
    source = (
        f"# Words of another kind: {{not_read}}\nimport this_is_not_installed\n\n{HEAD}{body}\n\ndef another(): "
        "return eval('1')\n"
    )
    expected = run_function(source.replace("import this_is_not_installed", ""), limits)
    assert omniagent_prompt(clone(tmp_path, source), limits) == expected
    assert (
        omniagent_prompt(clone(tmp_path, b"\xef\xbb\xbf" + source.replace("\n", "\r\n").encode()), limits) == expected
    )


BOMB = "__import__('pathlib').Path('ran').touch()"


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "runs-code": (f'{BOMB}\n{HEAD}    return f"{{{BOMB}}}"\n', "{__import__('pathlib').Path('ran').touch()}"),
    "code-before": (
        f"{HEAD}    {BOMB}\n    return 'x'\n",
        "line 2: build_video_prompt_omniagent has more than one statement",
    ),
    "assigns": (
        f"{HEAD}    x = 'x'\n    return x\n",
        "line 2: build_video_prompt_omniagent has more than one statement",
    ),
    "calls": (f"{HEAD}    return open('secret').read()\n", "has \"open('secret').read()\", which is more than words"),
    "multiplies": (f"{HEAD}    return 'a' * 1000000000\n", "has \"'a' * 1000000000\""),
    "bare-name": (f"{HEAD}    return 'a' + max_clip_len\n", "has 'max_clip_len', which is more than words"),
    "attribute": (f"{HEAD}    return f'{{max_clip_len.real}}'\n", "which is more than words"),
    "conversion": (f"{HEAD}    return f'{{max_clip_len!r}}'\n", "which is more than words"),
    "wide-spec": (f"{HEAD}    return f'{{max_clip_len:1000000000}}'\n", "has a format spec that is not a plain one"),
    "nested-spec": (
        f"{HEAD}    return f'{{max_clip_len:{{max_frames_len}}}}'\n",
        "has a format spec that is not a plain one",
    ),
    "wrong-spec": (f"{HEAD}    return f'{{max_clip_len:d}}'\n", "has {max_clip_len:d}, which 60.0 can't be written by"),
    "max-steps": (f"{HEAD}    return f'{{max_steps}}'\n", "has {max_steps}, which depends on the video"),
    "unknown-name": (f"{HEAD}    return f'{{secret}}'\n", "has {secret}, which is not a limit"),
    "bytes": (f"{HEAD}    return b'bytes'\n", "has \"b'bytes'\""),
    "returns-nothing": (f"{HEAD}    return\n", "has a return of nothing"),
    "blank": (f"{HEAD}    return ' '\n", "has no words"),
    "surrogate": (f"{HEAD}    return '\\ud800'\n", "has half a character"),
    "only-docstring": (f"{HEAD}    '''Only a docstring.'''\n", "has more than one statement"),
    "decorator": (f"@{BOMB}\n{HEAD}    return 'x'\n", "has a decorator"),
    "async": (f"async {HEAD}    return 'x'\n", "has an async function"),
    "twice": (f"{HEAD}    return 'x'\n{HEAD}    return 'y'\n", "line 3: build_video_prompt_omniagent has a second"),
    "star-arguments": (
        f"def {FUNCTION}(max_steps, **more):\n    return 'x'\n",
        "has arguments other than max_steps, max_frames_len",
    ),
    "other-order": (
        f"def {FUNCTION}(max_steps, max_clip_len, max_frames_len, max_audio_len):\n    return 'x'\n",
        "has arguments other than",
    ),
    "other-function": ("def another():\n    return 'x'\n", f"has no function {FUNCTION}"),
    "indented": (f"if True:\n    {HEAD}        return 'x'\n", f"has no function {FUNCTION}"),
    "empty": ("", f"has no function {FUNCTION}"),
    "no-python": ("\x1b]0;title\x07 def", "is not Python"),
    "nul": ("a = 'x\x00'", "is not Python"),
    "brackets": (f"{HEAD}    return {'(' * 150_000}\n", "is not Python"),
    "minuses": (f"{HEAD}    return {'-' * 150_000}1\n", "is nested too deeply"),
    "pluses": (f"{HEAD}    return {' + '.join(['1'] * 100_000)}\n", "is nested too deeply"),
    "dots": (f"{HEAD}    return a{'.a' * 100_000}\n", "is nested too deeply"),
    "not-utf8": (b"# caf\xe9\n", "is not UTF-8 text (byte 5)"),
    "huge": (b"#" * (MOST_BYTES + 1), "is larger than 1048576 bytes"),
}


@pytest.mark.parametrize(("source", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_more_than_words_is_refused(
    source: str | bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AprError) as refused:
        omniagent_prompt(clone(tmp_path, source), LIMITS)
    assert message in str(refused.value) and "18725bc" in str(refused.value) and len(str(refused.value)) < 1000
    assert not Path("ran").exists()


def test_no_clone(tmp_path: Path) -> None:
    with pytest.raises(AprError, match="is not a folder; give the folder of a clone"):
        omniagent_prompt(tmp_path / "nothing", LIMITS)
    with pytest.raises(AprError, match=r"has no agent_system/environments/prompts/video_prompt\.py; .* 18725bc"):
        omniagent_prompt(tmp_path, LIMITS)
    made = clone(tmp_path, "")
    (made / WHERE).unlink()
    os.mkfifo(made / WHERE)
    with pytest.raises(AprError, match="it is a pipe, not a file"):
        omniagent_prompt(made, LIMITS)


def test_the_command(tmp_path: Path) -> None:
    made = clone(tmp_path, f"{HEAD}    return {TEMPLATE}\n")
    prompt = omniagent_prompt(made, LIMITS | {"max_clip_len": 60})
    done = apr(made, cwd=tmp_path)
    assert done.returncode == 0 and b"system_prompt=omniagent_prompt.txt" in done.stdout
    assert (tmp_path / "omniagent_prompt.txt").read_bytes() == prompt.encode()
    assert apr(made, "--out", "-", cwd=tmp_path).stdout == prompt.encode()

    again = apr(made, "--clip-s", "60.0", cwd=tmp_path)
    assert again.returncode == 1 and b"already exists" in again.stderr and b"--force" in again.stderr
    assert (tmp_path / "omniagent_prompt.txt").read_bytes() == prompt.encode()
    assert apr(made, "--clip-s", "60.0", "--force", cwd=tmp_path).returncode == 0
    assert (tmp_path / "omniagent_prompt.txt").read_bytes() == omniagent_prompt(made, LIMITS).encode()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--out", "no/folder/p.txt"], 1, "can't write no/folder/p.txt: No such file"),
        (["--out", "clone", "--force"], 1, "can't write clone: it is a folder"),
        (["--out", "prompt.jinja"], 1, "'prompt.jinja' would be read as a template"),
        (["--audio-s", "nan"], 1, "--audio-s must be a number of seconds, at most 86400, not 'nan'"),
        (["--clip-s", "-1"], 1, "--clip-s must be a number of seconds"),
        (["--frames-per-look", "0"], 2, "frames-per-look"),
    ],
    ids=["no-folder", "a-folder", "template", "nan", "negative", "no-frames"],
)
def test_wrong_use(arguments: list[str], status: int, message: str, tmp_path: Path) -> None:
    done = apr(clone(tmp_path, f"{HEAD}    return 'x'\n"), *arguments, cwd=tmp_path)
    assert done.returncode == status and message in done.stderr.decode() and "Traceback" not in done.stderr.decode()
