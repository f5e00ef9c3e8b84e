"""Measures supervised training on rows: rows per second, where the time goes, the cache of percepts, peak memory.

    python -m benchmarks.training [--json FILE] [--rows 16] [--hidden 256] [--layers 4] [--epochs 3]

A random Qwen2.5-Omni is trained on the CPU, in float32, on turns about needle videos (1 and 10 minutes) and about a
10-minute H.264 file of 720p with keyframes 250 pictures apart. A row looks at 8 frames, 5 seconds of sound, or a clip
of 5 seconds. The parts are measured one after the other, in CPU milliseconds of one row: decoding (replay, with the
cache of percepts), preprocessing (encoder, batch), forward, backward, and the optimizer. The first epoch decodes and
fills the cache. Then the same epochs run with the trainer's own way: a worker process prepares the next row meanwhile,
and what counts is the share of the wall time in which the training process waits for it.

Peak memory is that of a process of its own for each length of a row, above what it had before the row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

TARGET = 200
"""Tokens of the target in the measurement of memory."""


def make_student(folder: Path, hidden: int, layers: int) -> Path:
    """A random Qwen2.5-Omni Thinker of that width and depth."""
    import tiny_models

    tiny_models.HIDDEN, tiny_models.LAYERS = hidden, layers
    tiny_models.HEADS, tiny_models.KV_HEADS = hidden // 32, max(1, hidden // 128)
    return tiny_models.save_tiny("qwen2_5_omni", folder)


def make_rows_of(films: Sequence[Path], count: int, student: Any, folder: Path) -> Path:
    """Rows of episodes about these films: a look at frames, at sound and at a clip each, then an answer."""
    from apr_testing import answer, look, turn
    from row_making import Speaker, played, question

    from apr_plugin.loop import Budget, EpisodeConfig, Sampling
    from apr_plugin.media import Video
    from apr_plugin.training.making import RowSettings, Source, make_rows
    from apr_plugin.training.rows import write_rows

    config = EpisodeConfig(budget=Budget(turns=6, frame_pixels=224 * 224), sampling=Sampling(max_new_tokens=300))
    rng = np.random.default_rng(0)
    for number in range(-(-count // 4)):
        film = films[number % len(films)]
        with Video.open(film) as video:
            start = float(np.round(rng.uniform(0, video.duration_s - 40), 1))
        says = [
            look(start, start + 30, 8),
            turn({"type": "get_audio", "start": start, "end": start + 5}),
            turn({"type": "get_clip", "start": start, "end": start + 5}),
            answer("A"),
        ]
        run = played(folder, question(film, doc_id=str(number)), Speaker(student, says), config)
    made = make_rows([Source(run.file, run.card)], student, RowSettings(validation=0.0))
    write_rows(folder / "rows.jsonl", made)
    return folder / "rows.jsonl"


class Parts:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.process_time()

    def start(self) -> None:
        self._since = time.process_time()

    def end(self, part: str) -> None:
        now = time.process_time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now


def one_by_one(trainer: Any, rows: Sequence[Any], student: Any, cache: Any) -> dict[str, float]:
    """An epoch without prefetching: CPU milliseconds a row of each part."""
    import torch

    from apr_plugin.models.batch import Example, batch_of
    from apr_plugin.training.loading import RowLoader

    loader, parts, model = RowLoader(student, percepts=cache), Parts(), trainer.model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()
    for row in rows:
        parts.start()
        prompt, target = loader.prompt(row)
        parts.end("decode")
        encoded = student.encoder.encode(prompt)
        batch = batch_of([Example(encoded, target)], student.family, pad=student.pad, mask=True)
        parts.end("preprocess")
        loss = trainer.compute_loss(model, batch)
        parts.end("forward")
        loss.backward()
        parts.end("backward")
        optimizer.step()
        optimizer.zero_grad()
        parts.end("optimizer")
    return {part: 1000 * seconds / len(rows) for part, seconds in parts.seconds.items()}


def prefetched(trainer: Any) -> dict[str, float]:
    """An epoch with the trainer's own loader and a worker: rows per second, and the share of waiting."""
    loader = trainer.get_train_dataloader()
    model, waited, began, count = trainer.model, 0.0, time.perf_counter(), 0
    model.train()
    batches = iter(loader)
    while True:
        since = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - since
        if batch is None:
            break
        trainer.compute_loss(model, batch).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        count += 1
    whole = time.perf_counter() - began
    return {"rows_per_s": count / whole, "waiting_share": waited / whole}


def measure(name: str, films: Sequence[Path], args: argparse.Namespace, student: Any, folder: Path) -> dict[str, Any]:
    """Everything about rows of these films."""
    from apr_plugin.training.percepts import PerceptCache
    from apr_plugin.training.rows import read_rows
    from apr_plugin.training.sft.recipe import Recipe
    from apr_plugin.training.sft.trainer import make_trainer

    folder.mkdir()
    tell(f"{name}: making rows")
    rows = read_rows(make_rows_of(films, args.rows, student, folder))
    found: dict[str, Any] = {"rows": len(rows), "tokens": [row.tokens for row in rows.rows]}
    for way in ("one_by_one", "prefetched"):
        cache = PerceptCache(folder / f"percepts_{way}", most_bytes=10**10)
        workers = {} if way == "one_by_one" else {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
        recipe = Recipe.model_validate(
            {
                "student": {"pretrained": student.name},
                "learn": {"towers": "trained"},
                "rows_per_step": 1,
                "trainer": {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "disable_tqdm": True}
                | workers,
            }
        )
        trainer = make_trainer(recipe, rows, student, folder / "out", percepts=cache)
        trainer.create_optimizer()
        epochs = []
        for epoch in range(args.epochs):
            tell(f"{name}: {way.replace('_', ' ')}, epoch {epoch + 1}")
            epochs.append(one_by_one(trainer, rows.rows, student, cache) if not workers else prefetched(trainer))
        found[way] = epochs
    return found


def peak(student_folder: str, length: int, whole: bool) -> None:
    """Print MiB that a forward and backward of one row of text needs, above what the process had before."""
    import torch

    torch.set_num_threads(1)
    from apr_plugin.training.sft.head import read_only_labels
    from apr_plugin.training.sft.learner import load_learner
    from apr_plugin.training.sft.recipe import StudentSettings

    model = load_learner(StudentSettings(pretrained=student_folder))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    read_only_labels(model)

    def run(tokens: int) -> None:
        ids = torch.randint(0, 250, (1, tokens))
        labels = ids.clone()
        labels[:, :-TARGET] = -100
        places = torch.arange(tokens).expand(3, 1, -1)
        mask = torch.ones_like(ids)
        if whole:
            model(
                input_ids=ids, position_ids=places, attention_mask=mask, labels=labels, use_cache=False
            ).loss.backward()
            return
        model(
            input_ids=ids, position_ids=places, attention_mask=mask, labels=labels, fused_lm_head=True
        ).loss.backward()

    run(TARGET + 8)  # gradients of all parameters exist
    before = highest_mib()
    run(length)
    print(highest_mib() - before)


def highest_mib() -> float:
    """The most memory that this process ever had; `ru_maxrss` also counts the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384")
    parser.add_argument("--seconds", type=int, default=600, help="length of the 720p file")
    parser.add_argument("--peak", nargs=3, metavar=("STUDENT", "TOKENS", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak(args.peak[0], int(args.peak[1]), args.peak[2] == "whole")
        return
    import torch

    from apr_plugin.training.student import Student
    from benchmarks.films import long

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        student = Student.from_pretrained(str(make_student(folder / "student", args.hidden, args.layers)))
        command = [sys.executable, "-m", "apr_plugin", "needle", "make", "--seed", "7", "--buckets", "1m,10m"]
        tell("making needle videos")
        subprocess.run(
            [*command, "--videos", "2", "--out", str(folder / "needle")], check=True, stdout=subprocess.DEVNULL
        )
        needle = sorted((folder / "needle").rglob("*.mp4"))
        film = long(folder / "720p.mp4", args.seconds, 1280, 720, 4_000_000, tell)
        found: dict[str, Any] = {
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "parameters": parameters(folder / "student"),
            "peak_mib": {},
        }
        for name, films in (("needle", needle), ("720p", [film])):
            found[name] = measure(name, films, args, student, folder / f"rows_{name}")
            show(name, found[name])
        for length in (int(length) for length in args.lengths.split(",")):
            tell(f"peak memory of a row of {length} tokens")
            for way in ("labels", "whole"):
                run = [sys.executable, "-m", "benchmarks.training", "--peak", student.name, str(length), way]
                said = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()[-1]
                found["peak_mib"].setdefault(way, {})[length] = round(float(said), 1)
    print("\n| tokens of a row | peak MiB, head where labels are | peak MiB, logits of all tokens |\n|---|---|---|")
    for length, value in found["peak_mib"]["labels"].items():
        print(f"| {length:,} | {value} | {found['peak_mib']['whole'][length]} |")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def parameters(folder: Path) -> int:
    """Number of parameters of a checkpoint."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as opened:
        return int(sum(np.prod(opened.get_slice(name).get_shape()) for name in opened.keys()))  # noqa: SIM118


def show(name: str, one: dict[str, Any]) -> None:
    print(f"\n{name}: {one['rows']} rows of {min(one['tokens'])} to {max(one['tokens'])} tokens")
    parts = list(one["one_by_one"][0])
    print("| epoch | " + " | ".join(f"{part} ms (share)" for part in parts) + " | rows/s of CPU time |")
    print("|---|" + "---|" * (len(parts) + 1))
    for number, epoch in enumerate(one["one_by_one"], 1):
        total = sum(epoch.values())
        cells = [f"{epoch[part]:.1f} ({epoch[part] / total:.0%})" for part in parts]
        print(f"| {number} | " + " | ".join(cells) + f" | {1000 / total:.2f} |")
    print("\n| epoch, with a worker | rows/s | share of the wall time spent waiting for rows |\n|---|---|---|")
    for number, epoch in enumerate(one["prefetched"], 1):
        print(f"| {number} | {epoch['rows_per_s']:.2f} | {epoch['waiting_share']:.1%} |", flush=True)


if __name__ == "__main__":
    main()
