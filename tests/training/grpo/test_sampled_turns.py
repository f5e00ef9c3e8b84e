"""Turns that a real model sampled: the entropies that policy=hf records are those of a trainer's forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from apr_plugin.loop import Budget, Card, EpisodeConfig, MediaRef, Option, Question, replay  # noqa: E402
from apr_plugin.loop.policy import Sampling  # noqa: E402
from apr_plugin.models.batch import IGNORED, Example, batch_of  # noqa: E402
from apr_plugin.models.checkpoint import load_checkpoint  # noqa: E402
from apr_plugin.models.families import Pixels  # noqa: E402
from apr_plugin.models.prompt import PromptEncoder  # noqa: E402
from apr_plugin.policies.hf.policy import HfPolicy  # noqa: E402
from apr_plugin.runs import run_episodes  # noqa: E402
from apr_plugin.runs.meter import run_sync  # noqa: E402
from apr_plugin.training.grpo.credit import credit  # noqa: E402
from apr_plugin.training.grpo.turns import turns_of_tokens, turns_of_trajectories  # noqa: E402

TEMPERATURE = 0.7


def test_recorded_entropies_are_those_of_a_forward_pass(
    tiny: Callable[[str], Path], shared_videos: dict[str, Path]
) -> None:
    """At the sampling temperature, over the whole vocabulary except for the tokens that policy=hf never writes.

    The turns have several lengths and are padded into one batch.
    """
    checkpoint = load_checkpoint(str(tiny("qwen2_5_vl")), device="cpu", dtype="float32")
    encoder = PromptEncoder(checkpoint.processor, checkpoint.family, Pixels(), checkpoint.dtype)
    policy = HfPolicy(checkpoint)
    options = (Option(label="A", text="one"), Option(label="B", text="two"))
    video = MediaRef(path=str(shared_videos["silent"]))
    asked = [
        Question(text="?", kind="mcq", options=options, task="t", doc_id="1", repeat=repeat, videos=(video,))  # type: ignore[arg-type]
        for repeat in range(3)
    ]
    sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=12)
    config = EpisodeConfig(budget=Budget(turns=2, on_last_turn="fail"), sampling=sampling)
    done = run_sync(run_episodes(asked, policy, config, 1))
    recorded = turns_of_trajectories([done])
    weights = credit(recorded, np.ones(len(recorded))).weights
    assert len(recorded) == 6 and weights.mean() == pytest.approx(1, abs=1e-6) and weights.std() > 1e-4

    turns = [pair for trajectory in done for pair in replay(trajectory, Card.of(config, policy))]
    rows = [Example(encoder.encode(prompt), turn.token_ids or ()) for prompt, turn in turns]
    pad = checkpoint.processor.tokenizer.pad_token_id
    inputs = batch_of(rows, checkpoint.family, pad=pad, side="left")
    wrote = (inputs.pop("labels") != IGNORED)[:, 1:].numpy()
    with torch.no_grad():
        logits = checkpoint.model(**inputs, use_cache=False).logits[:, :-1].double() / TEMPERATURE
    logits[..., list(encoder.never_written)] = -torch.inf
    entropies = torch.special.entr(logits.softmax(-1)).sum(-1).numpy()
    ids: dict[str, Any] = {name: getattr(recorded, name) for name in ("group", "trajectory", "number")}
    scored = turns_of_tokens(entropies, wrote, **ids, groups=1, trajectories=3, top_k=None)
    assert scored.tokens.tolist() == recorded.tokens.tolist()
    assert scored.entropy == pytest.approx(recorded.entropy, abs=1e-5)
    policy.close()
