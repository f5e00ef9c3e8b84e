"""Measures the gain of kept key-value caches and of batches in `policy=hf`, as ratios of one run.

The same prompts of ten-turn episodes are run in every way.

    python -m benchmarks.hf_cache [--json FILE] [--episodes 2] [--tokens 16] [--hidden 256] [--layers 4]

A random Qwen2.5-VL runs on the available device. The notebook is long: each turn notes 80 words and looks at 8 frames
of 224x224. What the model writes is discarded, so that every way reads the same prompts. Episodes run at the same time,
each turn when the one before it is done. Greedy turns of all ways are compared token by token. If other work is
running, CPU seconds are more reliable than wall seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from apr_plugin.loop import Budget, Generation, Notebook, Percept, Prompt, Question, QuestionKind, Sampling
from apr_plugin.loop.wires import VideoMeta
from apr_plugin.policies.hf.policy import HfPolicy

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

TURNS = 10
WORDS = (
    "red",
    "blue",
    "square",
    "circle",
    "left",
    "right",
    "enters",
    "leaves",
    "room",
    "door",
    "window",
    "car",
    "person",
    "turns",
    "walks",
    "says",
)


def make_model(folder: Path, hidden: int, layers: int) -> Path:
    """A random Qwen2.5-VL of that width and depth, saved like any checkpoint."""
    import torch
    import transformers
    from tiny_models import save_tiny

    save_tiny("qwen2_5_vl", folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    text.hidden_size = hidden
    text.intermediate_size = 3 * hidden
    text.num_hidden_layers = layers
    text.num_attention_heads = hidden // 32
    text.num_key_value_heads = hidden // 128
    vision.out_hidden_size = hidden
    text.layer_types = None
    text.__post_init__()
    torch.manual_seed(0)
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def episode(number: int) -> list[Prompt]:
    """The prompts of one episode."""
    rng = random.Random(number)
    question = Question(text=f"What happens in scene {number}?", kind=QuestionKind.FREE_FORM)
    book = Notebook(question, [VideoMeta(3600.0, 25.0, False)], Budget())
    prompts = [book.prompt(1, TURNS)]
    for turn in range(1, TURNS):
        seen = " ".join(rng.choices(WORDS, k=60))
        thought = " ".join(rng.choices(WORDS, k=20))
        action = {"type": "get_frames", "start": turn * 60.0, "end": turn * 60.0 + 7, "num": 8}
        images = np.random.default_rng(number * 100 + turn).integers(0, 255, (8, 224, 224, 3), np.uint8)
        times = tuple(turn * 60.0 + n for n in range(8))
        note = {"observation": f"[Frames] {seen}", "think": thought, "confidence": 0.5, "action": action}
        book.add(json.dumps(note), Percept("frames", 0, times[0], times[-1], images=images, times_s=times))
        prompts.append(book.prompt(turn + 1, TURNS))
    return prompts


def run(folder: Path, episodes: list[list[Prompt]], tokens: int, **arguments: Any) -> dict[str, Any]:
    """Run one way: all episodes at the same time."""
    policy = HfPolicy.from_pretrained(str(folder), **arguments)

    async def one(prompts: list[Prompt]) -> list[Generation]:
        return [await policy.generate(prompt, Sampling(max_new_tokens=tokens)) for prompt in prompts]

    async def all_of_them() -> list[list[Generation]]:
        return await asyncio.gather(*map(one, episodes))

    asyncio.run(policy.generate(episodes[0][1], Sampling(max_new_tokens=2)))  # warm-up
    if policy._engine.store is not None:
        policy._engine.store.clear()
    began, cpu = time.perf_counter(), time.process_time()
    done = asyncio.run(all_of_them())
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    policy.close()
    flat = [generation for generations in done for generation in generations]
    return {
        **arguments,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "read_s": round(sum(generation.timings.prefill_s or 0 for generation in flat), 2),
        "prompt_tokens": sum(generation.usage.prompt_tokens or 0 for generation in flat),
        "computed_tokens": sum(
            (generation.usage.prompt_tokens or 0) - (generation.usage.cached_tokens or 0) for generation in flat
        ),
        "written": [generation.token_ids for generation in flat],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    wanted = parser.parse_args()
    import torch
    import transformers

    episodes = [episode(number) for number in range(wanted.episodes)]
    ways = [(cache, size) for size in (1, wanted.episodes) for cache in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), wanted.hidden, wanted.layers)
        rows = []
        for cache, size in ways:
            rows.append(run(model, episodes, wanted.tokens, kv_cache=cache, batch_size=size, dtype=wanted.dtype))
            print(f"kv_cache={cache}, batch_size={size}: {rows[-1]['wall_s']} s", file=sys.stderr)
    base = rows[0]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    print(
        f"{device}, {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{wanted.dtype}"
    )
    print(
        f"{wanted.episodes} episodes of {TURNS} turns, prompts of "
        f"{base['prompt_tokens'] // len(base['written'])} tokens on average, ",
        end="",
    )
    print(f"{wanted.tokens} tokens a turn, {wanted.hidden} wide, {wanted.layers} layers")
    print(
        "| kv_cache | batch_size | wall s | CPU s | reading prompts, s | prompt tokens computed | times less "
        "wall | times less CPU |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        share = row["computed_tokens"] / row["prompt_tokens"]
        faster = base["wall_s"] / row["wall_s"], base["cpu_s"] / row["cpu_s"]
        print(
            f"| {row['kv_cache']} | {row['batch_size']} | {row['wall_s']} | {row['cpu_s']} | {row['read_s']} "
            f"| {share:.0%} | ",
            end="",
        )
        print(f"{faster[0]:.2f} | {faster[1]:.2f} |")
    print(f"greedy turns are the same in every way: {all(row['written'] == base['written'] for row in rows)}")
    if wanted.json:
        wanted.json.write_text(json.dumps([{**row, "written": len(row["written"])} for row in rows], indent=1))


if __name__ == "__main__":
    main()
