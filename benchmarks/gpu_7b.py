"""Seconds of an agent's episode beside one passive pass of 768 frames, with a 7B model on one GPU.

    python -m benchmarks.gpu_7b [--model qwen2_5_vl|qwen2_5_omni] [--minutes 10] [--out FILE]
    python -m benchmarks.gpu_7b --small     # the same with a tiny model on the CPU

The model has random weights in the published shape (`benchmarks/random_7b.py`), bfloat16, sdpa; the film is drawn with
PyAV; loop, media and `policy=hf` are the real ones. Each turn writes exactly as many tokens as a published turn has (a
token that ends a turn is ignored). Then its words are replaced with those of a script, because a random model asks for
nothing.

- `agent`: 203 frames in 10 turns, at most 1,024 tokens a frame (arXiv 2606.19341, LVBench).
- `passive`: 768 frames in one pass, at most 64 tokens a picture, 49,152 in all. The published setting has the same
  tokens and patches: a clip with at most 128*28*28 pixels a frame, where two frames share their tokens
  (QwenLM/Qwen3-VL issue 715).
- `passive_24k`: 32 tokens a picture, 24,576 in all (arXiv 2502.13923).
- `passive_98k`: 128 tokens a picture.
- `passive_equal`: the agent's 203 frames at its own pixels in one pass, made smaller as far as the context of 131,072
  tokens needs it.

Arms alternate, after one warm-up each. An episode finds nothing of an earlier one in a cache. An episode that would not
end within the time that is left is not begun; what was measured before it is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apr_plugin.loop import (
    Budget,
    Episode,
    EpisodeConfig,
    Generation,
    MediaRef,
    Option,
    PolicyDefaults,
    Prompt,
    Question,
    QuestionKind,
    Sampling,
    StopReason,
    Turn,
)
from apr_plugin.loop.budget import PATCH_PIXELS
from apr_plugin.loop.notebook import PASSIVE_INSTRUCTIONS, render_instructions
from benchmarks.gpu_7b_episode import ARMS, FILM_FPS, FRAMES, FULL, SMALL, TURNS, WORDS, Scale, actions, film, script
from benchmarks.gpu_7b_table import machine, ratios, summary, table, told
from benchmarks.random_7b import MODELS, PARAMETERS, processor_of, random_model

CONTEXT = 131_072
"""Tokens of prompt and turn together (the published `max_model_len`)."""
PROMPT = 65_536 - 32
"""Tokens of an agent's prompt."""
PUBLISHED = (
    "Published, other engines and cards (arXiv 2606.19341, table 7; 100 questions of LVBench): OmniAgent 66.8 s, of "
    "which 56.0 s model, Qwen2.5-Omni-7B with 201 frames 34.8 s, each on one A100; Qwen2.5-VL-72B with 768 frames "
    "75.1 s on four."
)


@dataclass
class Timed(PolicyDefaults):
    """`policy=hf` that writes exactly so many tokens a turn; what the loop reads is the script."""

    inner: Any
    turns: Sequence[tuple[str, int]] = ()
    """Words and tokens of each turn."""
    written: list[Generation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name, self.modalities, self.context_tokens = "timed", frozenset({"frames"}), self.inner.context_tokens
        self.describe, self.count = self.inner.describe, self.inner.count

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        assert prompt.asked is not None
        text, tokens = self.turns[prompt.asked.turn - 1]
        written: Generation = await self.inner.generate(prompt, replace(sampling, max_new_tokens=tokens))
        if written.usage.completion_tokens != tokens:
            raise RuntimeError(f"{written.usage.completion_tokens} tokens were written instead of {tokens}")
        self.written.append(written)
        return replace(written, text=text, finish_reason="stop")


class Bench:
    """A model, its policy and the film.

    Args:
        wanted: The command line.
        scale: How large everything is.
        tell: Called with what is going on.
    """

    def __init__(self, wanted: argparse.Namespace, scale: Scale, tell: Callable[[str], None]) -> None:
        from apr_plugin.models.checkpoint import Checkpoint
        from apr_plugin.policies.hf.policy import HfPolicy

        self.scale, self.tell, self.device = scale, tell, "cpu" if wanted.small else "cuda"
        path = film(wanted.film_folder, scale, tell)
        options = tuple(
            Option(label=label, text=f"the {what} one") for label, what in zip("AB", ("red", "blue"), strict=True)
        )
        self.question = Question(
            text="Which car comes first?",
            kind=QuestionKind.MCQ,
            options=options,
            videos=(MediaRef(path=str(path)),),
            task="gpu_7b",
        )
        tell(f"building {MODELS[wanted.model]}, random weights, on {self.device}")
        began = time.perf_counter()
        texts = [render_instructions(self.question, 1, Budget()), PASSIVE_INSTRUCTIONS, self.question.text]
        texts += ["\nFrame: Frames Video META: duration_seconds fps Options: Timestamps num Step steps remaining."]
        texts += [json.dumps({"observation": WORDS, "think": "so", "confidence": 0.5})]
        texts += [json.dumps(action) for action in actions(scale.seconds)]
        processor = processor_of(wanted.model, texts)
        model = random_model(wanted.model, self.device, wanted.small)
        self.parameters = sum(each.numel() for each in model.parameters())
        if not wanted.small and self.parameters != PARAMETERS[wanted.model]:
            raise SystemExit(f"error: {self.parameters:,} weights instead of {PARAMETERS[wanted.model]:,}")
        # Nothing ends a turn, and the model is nobody else's: it runs as one that policy=hf has loaded.
        checkpoint = replace(Checkpoint.around(model, processor, weights="random"), eos=frozenset(), borrowed=False)
        self.inner = HfPolicy(checkpoint, batch_size=1, kv_cache_gb=wanted.kv_cache_gb, context_tokens=CONTEXT)
        self.turns = script(scale, lambda text: len(processor.tokenizer.backend_tokenizer.encode(text).ids))
        self.built_s = time.perf_counter() - began
        tell(f"{self.parameters:,} weights in {self.built_s:.1f} s")

    def config(self, arm: str) -> EpisodeConfig:
        """The settings of an arm."""
        agent = arm == "agent"
        budget = Budget(
            turns=TURNS,
            frame_pixels=self.scale.tokens_a_frame[arm] * PATCH_PIXELS,
            visual_tokens_per_look=None,
            prompt_tokens=PROMPT if agent else None,
        )
        frames = FRAMES if arm == "passive_equal" else self.scale.passive_frames
        return EpisodeConfig(arm="agent" if agent else "passive", passive_frames=frames, budget=budget)

    def run(self, arm: str, seconds: float, tokens: int | None = None) -> dict[str, Any] | None:
        """One episode; `None` if it takes longer than `seconds`. `tokens`: of every turn, instead of its own."""
        turns = self.turns if arm == "agent" else [("B", self.scale.passive_tokens)]
        policy = Timed(self.inner, [(text, tokens or own) for text, own in turns])
        self.inner.weights_changed("random")  # forgets the prompts that are kept
        self._peak_reset()
        began = time.perf_counter()

        def done(number: int, turn: Turn) -> None:
            usage, frames = turn.usage, len(turn.shown.times_s) if turn.shown else 0
            computed = (usage.prompt_tokens or 0) - (usage.cached_tokens or 0)
            self.tell(
                f"{arm}, turn {number} of {len(turns)}: {computed:,} tokens read, {usage.completion_tokens} written "
                f"in {turn.model_s:.1f} s; {frames} frames in {turn.media_s:.1f} s"
            )

        async def limited() -> Any:
            return await asyncio.wait_for(Episode(self.question, policy, self.config(arm), on_turn=done).run(), seconds)

        try:
            trajectory = asyncio.run(limited())
        except TimeoutError:
            return None
        wall = time.perf_counter() - began
        if trajectory.stop_reason is not StopReason.ANSWERED:
            raise SystemExit(f"error: {arm} ended as {trajectory.stop_reason}: {trajectory.stop_detail}")
        usages = [each.usage for each in policy.written]
        times = [each.timings for each in policy.written]
        prompts = sum(usage.prompt_tokens or 0 for usage in usages)
        kept = sum(usage.cached_tokens or 0 for usage in usages)
        return {
            "wall_s": wall,
            "model_s": trajectory.timings.model_s,
            "media_s": trajectory.timings.media_s,
            "other_s": trajectory.timings.other_s,
            "preparing_s": sum(each.queue_s or 0 for each in times),
            "reading_s": sum(each.prefill_s or 0 for each in times),
            "writing_s": sum(each.decode_s or 0 for each in times),
            "turns": len(trajectory.turns),
            "frames": trajectory.frames,
            "prompt_tokens": prompts,
            "computed_tokens": prompts - kept,
            "reused_tokens": kept,
            "longest_prompt": max(usage.prompt_tokens or 0 for usage in usages),
            "visual_tokens": sum(usage.visual_tokens or 0 for usage in usages),
            "written_tokens": sum(usage.completion_tokens or 0 for usage in usages),
            "peak_gpu_gb": self._peak(),
            "note": trajectory.stop_detail,
        }

    def close(self) -> None:
        self.inner.close()

    def _peak_reset(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> float | None:
        import torch

        return torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else None


def measure(
    bench: Bench, arms: Sequence[str], repeats: int, ends: float, keep: Callable[[dict[str, Any], str], None]
) -> str:
    """Warm up, then take the arms in turn until all are done or the time is up; returns why it ended early, if it did.

    Args:
        bench: What runs.
        arms: Their names.
        repeats: Episodes of each.
        ends: When to be done, on the clock of `time.perf_counter`.
        keep: Called with all episodes by arm after each one, and with that reason.
    """
    found: dict[str, Any] = {arm: [] for arm in arms}
    longest = dict.fromkeys(arms, 0.0)
    over = "the time was up"
    for number in range(repeats + 1):
        for arm in arms:
            bench.tell(f"{arm}: " + (f"{number} of {repeats}" if number else "warm-up, all frames, few tokens"))
            left = ends - time.perf_counter()
            if left < 1.05 * longest[arm]:
                return f"{over}: {left:.0f} s were left, an episode of {arm} takes {longest[arm]:.0f} s"
            began = time.perf_counter()
            episode = bench.run(arm, max(0.0, left), None if number else 2)
            longest[arm] = max(longest[arm], time.perf_counter() - began)
            if episode is None:
                return f"{over} in an episode of {arm}, which is left out"
            if number:
                found[arm].append(episode)
                keep(found, "")
    return ""


def read(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", choices=MODELS, default="qwen2_5_vl")
    parser.add_argument("--small", action="store_true", help="a tiny model and short turns, on the CPU")
    parser.add_argument("--minutes", type=float, default=10.0, help="be done after this long, building included")
    parser.add_argument("--repeats", type=int, default=3, help="episodes of each arm")
    parser.add_argument("--arms", default="agent,passive", help=f"with commas between, of {', '.join(ARMS)}")
    parser.add_argument("--kv-cache-gb", type=float, default=4.0, help="memory for kept prompts; 0 keeps none")
    parser.add_argument("--film-folder", type=Path, default=Path(tempfile.gettempdir()) / "apr-gpu-7b")
    parser.add_argument("--out", type=Path, help="write all figures here as JSON, anew after each episode")
    wanted = parser.parse_args(words)
    wanted.arms = list(dict.fromkeys(wanted.arms.split(",")))
    if unknown := set(wanted.arms) - set(ARMS):
        parser.error(f"there is no arm {', '.join(sorted(unknown))}; the arms are {', '.join(ARMS)}")
    if wanted.repeats < 1 or wanted.minutes <= 0:
        parser.error("--repeats must be at least 1, and --minutes above 0")
    return wanted


def main(words: Sequence[str] | None = None) -> int:
    """The command; its status is 1 if an arm has no finished episode."""
    began = time.perf_counter()
    wanted = read(words)
    import torch

    if not wanted.small and not torch.cuda.is_available():
        raise SystemExit(
            "error: torch finds no GPU here, so the 7B model was not timed; the benchmark is ready for a machine that "
            "has one, and --small runs it with a tiny model on the CPU"
        )

    def tell(what: str) -> None:
        print(f"[{time.perf_counter() - began:6.1f} s] {what}", file=sys.stderr, flush=True)

    scale = SMALL if wanted.small else FULL
    bench = Bench(wanted, scale, tell)
    about: dict[str, Any] = {
        "model": MODELS[wanted.model] if not wanted.small else f"tiny {wanted.model}",
        "scale": scale.title,
        "parameters": bench.parameters,
        "weights": "random",
        "dtype": "bfloat16",
        "attention": "sdpa",
        "kv_cache_gb": wanted.kv_cache_gb,
        "turn_tokens": [tokens for _, tokens in bench.turns],
        "film": {"size": scale.film, "seconds": scale.seconds, "fps": FILM_FPS},
        "built_s": bench.built_s,
        "machine": machine(bench.device),
    }
    kept: dict[str, Any] = {}

    def keep(found: dict[str, Any], stopped: str) -> None:
        done = {arm: summary(episodes) for arm, episodes in found.items() if episodes}
        kept.update(about | {"arms": done, "ratios": ratios(done), "episodes": found, "stopped_early": stopped})
        if wanted.out:
            wanted.out.write_text(json.dumps(kept, indent=1) + "\n")

    keep({}, "nothing was measured")
    try:
        stopped = measure(bench, wanted.arms, wanted.repeats, began + 60 * wanted.minutes, keep)
    except KeyboardInterrupt:
        stopped = "interrupted"
    keep(kept["episodes"], stopped)
    bench.close()
    print(f"{about['model']}, {bench.parameters:,} random weights, bfloat16, sdpa; " + told(about["machine"]))
    print(
        "The words of the agent's turns are a script's: what the random model wrote, token for token, is thrown away."
    )
    if wanted.small:
        print("A tiny model on the CPU: these figures say that everything runs, and nothing of a 7B model.")
    else:
        print(PUBLISHED)
    print(*table(kept["arms"]), sep="\n")
    if stopped:
        print(f"stopped early: {stopped}")
    return 0 if all(arm in kept["arms"] for arm in wanted.arms) else 1


if __name__ == "__main__":
    sys.exit(main())
