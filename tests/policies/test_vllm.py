"""`policy=vllm`: what needs no engine, and `vllm_inside.py` on a real engine in the environment that has vLLM."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conformance import GREEDY, for_both_engines
from sft_making import trained_omni
from vllm_server import ROOT, vllm_environment, vllm_python

from apr_plugin.errors import AprError
from apr_plugin.policies import make_policy
from apr_plugin.policies.vllm.policy import _entropy, _rank

pytestmark = pytest.mark.xdist_group("vllm")


@dataclass
class _Logprob:
    logprob: float


def _position(*probabilities: float) -> dict[int, _Logprob]:
    return {token: _Logprob(math.log(p) if p else -math.inf) for token, p in enumerate(probabilities)}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_it_says_what_to_install() -> None:
    with pytest.raises(AprError, match=r"vllm is not installed; add it with: pip install 'apr-plugin\[vllm\]'"):
        make_policy("vllm", pretrained="any")


def test_entropy_is_over_the_likeliest_tokens_renormalised() -> None:
    assert _entropy(_position(0.5, 0.5), 20) == pytest.approx(math.log(2))
    assert _entropy(_position(0.4, 0.4, 0.1), 2) == pytest.approx(math.log(2)), (
        "the sampled token may stand beside the likeliest"
    )
    assert _entropy(_position(1.0, 0.0, 0.0), 20) == 0
    assert _entropy(_position(0.25, 0.25, 0.25, 0.25), 4) == pytest.approx(math.log(4))


def test_the_rank_that_memory_is_reserved_for(tmp_path: Path) -> None:
    for rank, reserved in ((4, 8), (8, 8), (12, 16), (64, 64), (100, 128)):
        (tmp_path / "adapter_config.json").write_text(f'{{"r": {rank}}}')
        assert _rank(str(tmp_path)) == reserved


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_a_real_engine(tiny: Callable[[str], Path], shared_videos: dict[str, Path], tmp_path: Path) -> None:
    """Everything in `vllm_inside.py`, on a small Qwen2.5-Omni in the layout of a whole checkpoint.

    Its Thinker was trained by this package and put back. The results are compared with those of `policy=hf`.
    """
    python = vllm_python()
    pytest.importorskip("trl")
    model = str(trained_omni(tiny("qwen2_5_omni_full"), shared_videos, tmp_path)[1])
    transformers = make_policy("hf", pretrained=model, device="cpu", dtype="float32")
    by_transformers = {
        kind: asyncio.run(transformers.generate(prompt, GREEDY)).token_ids
        for kind, prompt in for_both_engines().items()
    }
    families = [
        str(tiny(name)) for name in ("qwen2_5_vl", "qwen2_5_omni_full", "qwen3_vl", "qwen3_5", "qwen3_omni_moe_full")
    ]
    transformers.close()
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("vllm_inside.py")),
    ]
    environment = vllm_environment() | {
        "TINY_MODEL": model,
        "BY_TRANSFORMERS": json.dumps(by_transformers),
        "TINY_FAMILIES": os.pathsep.join(families),
    }
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1100, check=False
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-3000:]
    assert re.search(r"^\d+ passed", ended.stdout, re.MULTILINE), ended.stdout[-2000:]
