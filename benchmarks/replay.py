"""Checks that a stored run gives its prompts back: text, token ids, pictures, sound and log-probabilities.

    python -m benchmarks.replay [--json FILE]

Episodes of every kind of look run with small random models (Qwen2.5-VL and Qwen2.5-Omni, float32, in this process):
frames, sound, clips, several videos, windows of files, looks made smaller for the context, malformed turns, a forced
call that leaves notes out, every arm, both wires. The model's samples give the token values; the turns themselves are
written by a script, because a random model asks for nothing. Trajectories and card are written to files and read again.
Then `replay` makes each prompt again and the model writes its turn again, with nothing kept from the first run. The
largest differences are printed. Text, ids, pictures and sound must be equal and log-probabilities within 1e-4,
otherwise the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apr_plugin.loop import (
    Budget,
    Card,
    EpisodeConfig,
    Generation,
    MediaRef,
    Notebook,
    PolicyDefaults,
    Prompt,
    Question,
    Sampling,
    Trajectory,
    VideoMeta,
    replay,
)
from apr_plugin.media import MediaSettings
from apr_plugin.runs import TrajectoryStore, run_episodes

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

LOGPROB = 1e-4
"""Largest difference of a log-probability, in nats."""


class Steered(PolicyDefaults):
    """A model whose turns are replaced by those of a script; the tokens are the model's own."""

    def __init__(self, model: Any, script: list[str]) -> None:
        self.name = model.name
        self.modalities = model.modalities
        self.context_tokens = model.context_tokens
        self.count = model.count
        self.describe = model.describe
        self._model = model
        self._script = script

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Return the model's tokens with the script's words."""
        assert prompt.asked is not None
        written: Generation = await self._model.generate(prompt, sampling)
        return replace(written, text=self._script[min(prompt.asked.turn, len(self._script)) - 1])


def turn(action: dict[str, Any], observation: str = "seen") -> str:
    """One turn of the script."""
    return json.dumps({"observation": observation, "think": "so", "confidence": 0.5, "action": action})


def looks(start: float, hears: bool) -> list[str]:
    """The turns of the script: frames, a clip, sound, a malformed turn, a wide look, the answer."""
    heard = (
        {"type": "get_audio", "start": start, "end": start + 2.5}
        if hears
        else {"type": "get_frames", "start": 1.0, "end": 1.0, "num": 1}
    )
    return [
        turn({"type": "get_frames", "start": start, "end": start + 3.3, "num": 4}),
        turn({"type": "get_clip", "start": start + 0.7, "end": start + 4.1}),
        turn(heard),
        "I would rather look again.",
        turn({"type": "get_frames", "start": 0.0, "end": 9.7, "num": 24}),
        turn({"type": "answer", "content": "a pot"}),
    ]


def cases(film: Path, silent: Path, hears: bool) -> dict[str, tuple[Question, list[str], EpisodeConfig, int | None]]:
    """The cases by name.

    Each has a question, its script, its configuration, and the tokens left after its opening if a small context is
    wanted.
    """
    whole, part = MediaRef(path=str(film)), MediaRef(path=str(film), start_s=3.37, end_s=14.21)

    def ask(name: str, *videos: MediaRef) -> Question:
        return Question(text="What is shown?", kind="free_form", videos=videos, task="replay", doc_id=name)  # type: ignore[arg-type]

    small, warm = (
        Budget(turns=7, frame_pixels=112 * 112, clip_pixels=112 * 112),
        Sampling(temperature=0.8, max_new_tokens=12),
    )
    plain = EpisodeConfig(budget=small, sampling=warm)
    long = [turn({"type": "get_frames", "start": float(n), "end": n + 0.5, "num": 1}, "word " * 90) for n in range(5)]
    found = {
        "looks": (ask("looks", whole), looks(0.3, hears), plain, None),
        "window": (ask("window", part), looks(0.2, hears), plain, None),
        "two videos": (ask("two videos", part, MediaRef(path=str(silent))), looks(0.2, hears), plain, None),
        "keyframes": (
            ask("keyframes", whole),
            looks(0.3, hears),
            plain.model_copy(update={"media": MediaSettings(mode="keyframe")}),
            None,
        ),
        "omniagent wire": (
            ask("omniagent wire", whole),
            looks(0.3, hears),
            plain.model_copy(update={"wire": "omniagent"}),
            None,
        ),
        "made to fit": (ask("made to fit", whole), looks(0.3, hears), plain, 900),
        "forced, notes left out": (
            ask("forced", whole),
            long,
            plain.model_copy(update={"budget": small.model_copy(update={"turns": 5})}),
            560,
        ),
    }
    for arm in ("passive", "blind", "single_frame", "shuffled", "oracle"):
        found[arm] = (ask(arm, part), ["a pot"], plain.model_copy(update={"arm": arm, "passive_frames": 6}), None)
    return found


def encoded(encoder: Any, prompt: Prompt) -> tuple[list[int], list[np.ndarray]]:
    """The token ids, and every array of pictures and sound."""
    made = encoder.encode(prompt)
    arrays = [
        np.asarray(array)
        for medium in made.media
        for array in (medium.pixels, medium.grid, medium.mel)
        if array is not None
    ]
    return made.ids.tolist(), arrays


def measure(
    model: Any, question: Question, script: list[str], config: EpisodeConfig, room: int | None, folder: Path
) -> dict[str, float]:
    """Run, store, read and replay; return the largest difference of each kind."""
    policy = Steered(model, script)
    if room is not None:
        opening = Notebook(
            question, [VideoMeta(16.0, 25.0, "audio" in model.modalities)], config.budget, modalities=model.modalities
        ).prompt(1, 7)
        policy.context_tokens = asyncio.run(model.count(opening)).total + config.sampling.max_new_tokens + room
    seen: list[tuple[str, list[int], list[np.ndarray]]] = []
    card = Card.of(config, policy)
    with TrajectoryStore(folder, card.config_hash, card) as store:
        evidence = {question.key: [(1.0, 2.0), (4.0, 4.5)]}

        def on_prompt(prompt: Prompt, _: Generation) -> None:
            seen.append((prompt.text, *encoded(model._encoder, prompt)))

        asyncio.run(run_episodes([question], policy, config, store=store, evidence=evidence, on_prompt=on_prompt))
    (file,) = store.folder.glob("*.jsonl")
    (trajectory,) = Trajectory.read(file)
    smaller = sum(look.fitted for look in trajectory.looks) + sum(turn.left_out for turn in trajectory.turns)
    if room is not None and not smaller:
        raise SystemExit(f"error: {question.doc_id}: everything fitted into the context, so the case was not tried")
    replayed = list(replay(trajectory, Card.read(store.folder)))
    found = {
        "prompts": float(len(seen)),
        "words": abs(len(seen) - len(replayed)),
        "ids": 0.0,
        "media": 0.0,
        "tokens": 0.0,
        "logprobs": 0.0,
    }
    for number, ((prompt, written), (text, ids, arrays)) in enumerate(zip(replayed, seen, strict=False), 1):
        now_ids, now_arrays = encoded(model._encoder, prompt)
        found["words"] += text != prompt.text
        found["ids"] += ids != now_ids
        sizes = [a.shape for a in arrays] == [a.shape for a in now_arrays]
        apart = [
            float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
            for a, b in zip(arrays, now_arrays, strict=False)
            if a.size
        ]
        found["media"] = max([found["media"], *apart]) if sizes else float("inf")
        sampling = replace(
            config.sampling, seed=(trajectory.seed + number) % 2**32, max_new_tokens=len(written.token_ids or ())
        )
        again = asyncio.run(model.generate(prompt, sampling))
        found["tokens"] += again.token_ids != written.token_ids
        if again.token_ids == written.token_ids:
            apart = [abs(a - (b or 0.0)) for a, b in zip(again.logprobs or (), written.logprobs or (), strict=True)]
            found["logprobs"] = max([found["logprobs"], *apart])
        if model._engine.store is not None:
            model._engine.store.clear()
    return found


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    from apr_testing import make_video_file
    from tiny_models import save_tiny

    from apr_plugin.policies import make_policy

    figures: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as there:
        film = make_video_file(
            Path(there, "film.mp4"), frames=25 * 16, fps=25, size=(320, 240), gop=50, bframes=2, sound_s=16.0
        )
        silent = make_video_file(Path(there, "silent.mp4"), frames=300, fps=30, size=(256, 144), gop=60)
        for name in ("qwen2_5_vl", "qwen2_5_omni"):
            model: Any = make_policy(
                "hf", pretrained=str(save_tiny(name, Path(there, name))), dtype="float32", device="cpu"
            )
            print(
                f"{name}\n  {'case':24} {'prompts':>7} {'words':>6} {'ids':>6} {'media':>9} {'tokens':>6} "
                f"{'logprobs':>9}",
                flush=True,
            )
            figures[name] = {}
            for case, (question, script, config, room) in cases(film, silent, "audio" in model.modalities).items():
                found = figures[name][case] = measure(
                    model, question, script, config, room, Path(there, f"{name} {case}")
                )
                numbers = (
                    f"{found['prompts']:7.0f} {found['words']:6.0f} {found['ids']:6.0f} {found['media']:9.1e} "
                    f"{found['tokens']:6.0f}"
                )
                print(f"  {case:24} {numbers} {found['logprobs']:9.1e}", flush=True)
            model.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    every = [found for cases_ in figures.values() for found in cases_.values()]
    equal = not any(found[key] for found in every for key in ("words", "ids", "media", "tokens"))
    worst = max(found["logprobs"] for found in every)
    print(
        f"words, ids, pictures and sound {'equal' if equal else 'DIFFER'}; log-probabilities at most "
        f"{worst:.1e} apart (limit {LOGPROB:g})"
    )
    return 0 if equal and worst <= LOGPROB else 1


if __name__ == "__main__":
    sys.exit(main())
