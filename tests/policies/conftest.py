"""Small random models, saved once for all tests of policies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("qwen2_5_vl")`: the folder of a small random model (names: `tiny_models.FAMILIES`), made when it is first asked for."""
    pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    import torch
    from tiny_models import save_tiny

    from apr_plugin.policies.hf_compat import LINEAR_ATTENTION_SINCE, release

    torch.set_num_threads(1)  # models this small lose more by waiting for a second processor than they gain

    @cache
    def make(name: str) -> Path:
        if name.startswith("qwen3_5") and release() < LINEAR_ATTENTION_SINCE:
            pytest.skip("this release of transformers can't run Qwen3.5")
        return save_tiny(name, tmp_path_factory.mktemp(name))

    return make
