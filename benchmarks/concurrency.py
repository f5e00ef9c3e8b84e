"""Measures many episodes at once: throughput compared with the ideal, and a timeline of decoding and generating.

    python -m benchmarks.concurrency [--json FILE] [--skip-server] [--questions 24]

The benchmark has two parts, both over real video files through `run_episodes`:

1. A policy of fixed latency (1 s a turn, four turns), 64 questions at concurrency 16. The ideal is 64 x 4 x 1 s / 16 =
   16 s, the time of the policy alone. Target: at least 0.95 of that throughput.
2. A real vLLM server on the CPU (`scripts/vllm_cpu.py` makes its environment) with a small random Qwen2.5-VL, through
   `policy=openai`. A grammar restricts the model to turns in the wire format, so that each turn looks at frames and all
   turns are about equally long. Concurrency 1 and 8 answer the same number of questions. Target: 8 has at least 2.5
   times the throughput of 1.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_plugin.loop import Budget, EpisodeConfig, Generation, MediaRef, Policy, Prompt, Question, Sampling
from apr_plugin.loop.policy import PolicyDefaults
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.runs import run_episodes
from benchmarks.films import small

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

LATENCY_S, TURNS, QUESTIONS, AT_ONCE = 1.0, 4, 64, 16
COLUMNS = 110


class Paced(PolicyDefaults):
    """A policy that takes exactly `latency_s` for a turn: three looks at different places, then the answer."""

    name = "paced"

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        await asyncio.sleep(self.latency_s)
        turn = sum(message.role == "assistant" for message in prompt.messages)
        start = float((sampling.seed * 7 + turn * 11) % 50)
        action: dict[str, Any] = {"type": "get_frames", "start": start, "end": start + 4, "num": 4}
        if turn == TURNS - 1:
            action = {"type": "answer", "content": "yes"}
        return Generation(json.dumps({"observation": "o", "think": "t", "confidence": 0.5, "action": action}))

    def describe(self) -> dict[str, Any]:
        return {"latency_s": self.latency_s}


@dataclass
class Watched:
    """A policy that records when each generation of each question began and ended."""

    policy: Policy
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.policy.name
        self.modalities = self.policy.modalities
        self.context_tokens = self.policy.context_tokens
        self.count = self.policy.count
        self.describe = self.policy.describe
        self.close = self.policy.close

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        assert prompt.asked is not None
        asked = prompt.asked.question.text
        began = time.perf_counter()
        generation = await self.policy.generate(prompt, sampling)
        self.spans.setdefault(asked, []).append((began, time.perf_counter()))
        return generation


@dataclass
class Timeline:
    """One run of many questions."""

    seconds: float
    trajectories: list[Trajectory]
    spans: dict[str, list[tuple[float, float]]]
    began: float

    @property
    def turns(self) -> int:
        return sum(len(t.turns) for t in self.trajectories)

    def between(self) -> dict[str, list[tuple[float, float]]]:
        """The times between the generations of a question: decoding, and assembling the next prompt."""
        return {asked: [(a[1], b[0]) for a, b in itertools.pairwise(spans)] for asked, spans in self.spans.items()}

    def overlap(self) -> tuple[float, float]:
        """Seconds between generations, and how many of them had another question's generation running."""
        total = shared = 0.0
        for asked, gaps in self.between().items():
            others = sorted(span for other, spans in self.spans.items() if other != asked for span in spans)
            for start, end in gaps:
                total += end - start
                at = start
                for begin, finish in others:
                    if finish > at and begin < end:
                        shared += min(finish, end) - max(begin, at)
                        at = max(at, min(finish, end))
        return total, shared

    def timeline(self, rows: int = AT_ONCE) -> str:
        """The first questions, one row each, until the last of them ends.

        `G` is generating, `d` is the time between generations (decoding), `.` is before or after the question.
        """
        first = sorted(self.spans, key=lambda asked: self.spans[asked][0])[:rows]
        until = max(self.spans[asked][-1][1] for asked in first) - self.began
        gaps = self.between()
        lines = []
        for asked in first:
            line = ["."] * COLUMNS
            for mark, spans in (("G", self.spans[asked]), ("d", gaps[asked])):
                for start, end in spans:
                    left, right = (
                        min(COLUMNS - 1, int((moment - self.began) / until * COLUMNS)) for moment in (start, end)
                    )
                    line[left : right + 1] = mark * (right + 1 - left)
            lines.append(f"{asked[:16]:>16} {''.join(line)}")
        return "\n".join([*lines, f"{'':>16} 0 s{f'{until:.1f} s':>{COLUMNS - 3}}"])


def run(policy: Policy, film: Path, questions: int, concurrency: int, turns: int, sampling: Sampling) -> Timeline:
    """Ask `questions` about a film."""
    asked = [
        Question(text=f"question {n}", kind="free_form", videos=(MediaRef(path=str(film)),), doc_id=str(n))
        for n in range(questions)
    ]  # type: ignore[arg-type]
    watched = Watched(policy)
    config = EpisodeConfig(budget=Budget(turns=turns, frame_pixels=112 * 112), sampling=sampling)
    began = time.perf_counter()
    done = asyncio.run(run_episodes(asked, watched, config, concurrency=concurrency))
    seconds = time.perf_counter() - began
    failed = [t.stop_detail for t in done if t.stop_reason.failed]
    if failed:
        raise SystemExit(f"error: {len(failed)} questions were not answered: {failed[0]}")
    return Timeline(seconds, done, watched.spans, began)


def fixed_latency(film: Path) -> dict[str, Any]:
    """Run part 1."""
    tell(f"{QUESTIONS} questions, {TURNS} turns of {LATENCY_S} s, concurrency {AT_ONCE}")
    # Modules are loaded and threads are started once per process, not once per question.
    run(Paced(0.0), film, AT_ONCE, AT_ONCE, TURNS, Sampling())
    got = run(Paced(LATENCY_S), film, QUESTIONS, AT_ONCE, TURNS, Sampling())
    ideal = QUESTIONS * TURNS * LATENCY_S / AT_ONCE
    assert got.turns == QUESTIONS * TURNS, got.turns
    print(
        f"\nA policy of fixed latency: {QUESTIONS} questions at concurrency {AT_ONCE}, {TURNS} turns of "
        f"{LATENCY_S} s each\n\n{got.timeline()}\n"
    )
    total, shared = got.overlap()
    print(f"{got.seconds:.2f} s, ideal {ideal:.2f} s: {ideal / got.seconds:.3f} of the ideal throughput (target 0.95)")
    print(f"between generations {total:.2f} s in total; others were generating during {shared / total:.1%}")
    return {
        "seconds": got.seconds,
        "ideal_s": ideal,
        "of_ideal": ideal / got.seconds,
        "between_s": total,
        "overlapped_s": shared,
    }


def on_the_server(film: Path, questions: int) -> dict[str, Any]:
    """Run part 2."""
    from tiny_models import save_tiny
    from vllm_server import MODEL, looking, serve, vllm_python

    from apr_plugin.policies import make_policy

    with tempfile.TemporaryDirectory() as folder:
        tell("starting the server")
        model = save_tiny("qwen2_5_vl", Path(folder) / "model")
        with serve(
            vllm_python(), model, Path(folder) / "server.log", "--limit-mm-per-prompt", '{"image": 64}'
        ) as server:
            # A look, a look that is too late, and the forced answer: three generations of about 150 tokens.
            policy = make_policy(
                "openai", base_url=server.base_url, model=MODEL, extra_body=json.dumps(looking(letters=240))
            )
            sampling = Sampling(temperature=1.0, max_new_tokens=400)
            tell("warming up")
            run(policy, film, 8, 8, 2, sampling)
            runs = {}
            for concurrency in (1, 8):
                tell(f"{questions} questions at concurrency {concurrency}")
                runs[concurrency] = run(policy, film, questions, concurrency, 2, sampling)
            policy.close()
    rates = {}
    for concurrency, got in runs.items():
        tokens = sum(turn.usage.completion_tokens or 0 for t in got.trajectories for turn in t.turns)
        rates[concurrency] = tokens / got.seconds
        total, shared = got.overlap()
        print(
            f"\nvLLM on the CPU, concurrency {concurrency}: {questions} questions, {got.turns} turns, "
            f"{tokens} tokens in {got.seconds:.1f} s"
        )
        print(
            f"{rates[concurrency]:.0f} tokens/s, {60 * questions / got.seconds:.1f} "
            f"questions/min\n\n{got.timeline(8)}\n"
        )
        print(
            f"between generations {total:.2f} s in total; others were generating during {shared / max(total, 1e-9):.1%}"
        )
    by_questions = runs[1].seconds / runs[8].seconds
    print(
        f"\nconcurrency 8 has {by_questions:.2f} times the questions/min of concurrency 1 (target 2.5), "
        f"{rates[8] / rates[1]:.2f} times the tokens/s"
    )
    return {f"seconds_at_{n}": got.seconds for n, got in runs.items()} | {
        "questions_ratio": by_questions,
        "tokens_ratio": rates[8] / rates[1],
    }


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; its status is 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--skip-server", action="store_true", help="the first part only")
    parser.add_argument("--questions", type=int, default=24, help="questions at each concurrency on the server")
    wanted = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        film = small(Path(folder), "h264.mp4", 60.0)
        figures: dict[str, Any] = {
            "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        }
        figures["fixed_latency"] = fixed_latency(film)
        met = figures["fixed_latency"]["of_ideal"] >= 0.95
        if not wanted.skip_server:
            figures["vllm_cpu"] = on_the_server(film, wanted.questions)
            met &= figures["vllm_cpu"]["questions_ratio"] >= 2.5
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=2) + "\n")
    print("\nall targets met" if met else "\nA TARGET WAS MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
