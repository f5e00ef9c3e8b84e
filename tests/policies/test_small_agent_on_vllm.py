"""The small agent on a real vLLM engine: by its name, and the same greedy tokens as `policy=hf`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundled_testing import SmallAgent
from vllm_server import ROOT, vllm_environment, vllm_python

from apr_plugin.tasks.needle.palette import ALL_GLYPHS, BACKGROUNDS, PATTERNS, draw_frame
from apr_plugin.tasks.needle.questions import TEMPLATES, Kind
from apr_plugin.tasks.needle.read import SPANS_HINT

PROGRAM = Path(__file__).with_name("small_agent_inside.py")
pytestmark = [pytest.mark.xdist_group("vllm"), pytest.mark.slow, pytest.mark.timeout(1200)]


FRAMES = 20
COLOURS = tuple(BACKGROUNDS)


def _pictures(shift: int) -> np.ndarray:
    labels = [
        (COLOURS[(n // 4 + shift) % len(COLOURS)], PATTERNS[(n // 2 + shift) % len(PATTERNS)]) for n in range(FRAMES)
    ]
    glyphs = [ALL_GLYPHS[shift] if n % 7 == 3 else None for n in range(FRAMES)]
    return np.stack([draw_frame(*label, glyph, (56, 56)) for label, glyph in zip(labels, glyphs, strict=True)])


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A question of the needle benchmark, and two looks."""
    text = TEMPLATES[Kind.WHEN].format(glyph=ALL_GLYPHS[0].name, pattern=PATTERNS[0], colour=COLOURS[0])
    np.savez(tmp_path / "case.npz", text=text, hint=SPANS_HINT, frames=_pictures(0), other=_pictures(3))
    return tmp_path / "case.npz"


def _written(python: Path | str, kind: str, folder: Path, case: Path, **more: Any) -> dict[str, Any]:
    command = [str(python), str(PROGRAM), kind, str(folder), str(case), str(out := case.with_suffix(f".{kind}"))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1100, check=False, **more)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    told: dict[str, Any] = json.loads(out.read_text())
    return told


def test_vllm_writes_what_transformers_writes(small_agent: SmallAgent, case: Path) -> None:
    python = vllm_python()
    ours = _written(sys.executable, "hf", small_agent.folder, case)
    theirs = _written(python, "vllm", small_agent.folder, case, env=vllm_environment())
    for name in ("first", "frames", "other"):
        one, other = ours[name], theirs[name]
        assert other["tokens"] == one["tokens"] and len(one["tokens"]) > 1, name
        np.testing.assert_allclose(other["logprobs"], one["logprobs"], atol=1e-3, err_msg=name)
        assert other["prompt"] == one["prompt"] and one["counted"] == other["counted"] == len(one["prompt"])
        assert one["visual"] == other["visual"] == (0 if name == "first" else FRAMES), "a frame is one token"
    one, other = theirs["frames"], theirs["other"]
    same = one["tokens"] == other["tokens"]
    assert not same or np.abs(np.subtract(one["logprobs"], other["logprobs"])).max() > 1e-3, "pictures are looked at"
    for told in (ours["described"], theirs["described"]):
        assert told["pretrained"] == "apr-tiny" and told["weights"] == ours["described"]["weights"]
