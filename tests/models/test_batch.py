"""One builder of model inputs: padded and mixed batches, explicit positions, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import after, big_clip, opening

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from apr_plugin.loop.policy import AudioPart, ImagePart, Message, Prompt, TextPart, VideoPart  # noqa: E402 - after the libraries it needs
from apr_plugin.models.batch import IGNORED, Example, batch_of, positions_with  # noqa: E402
from apr_plugin.models.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from apr_plugin.models.families import Pixels  # noqa: E402
from apr_plugin.models.positions import positions  # noqa: E402
from apr_plugin.models.prompt import PromptEncoder  # noqa: E402

Tiny = Callable[[str], Path]
Loaded = tuple[Checkpoint, PromptEncoder]


@pytest.fixture(scope="module")
def loaded(tiny: Tiny) -> Callable[[str], Loaded]:
    made: dict[str, Loaded] = {}

    def get(name: str) -> Loaded:
        if name not in made:
            checkpoint = load_checkpoint(str(tiny(name)), device="cpu", dtype="float32")
            made[name] = checkpoint, PromptEncoder(checkpoint.processor, checkpoint.family, Pixels(), checkpoint.dtype)
        return made[name]

    return get


def everything(parts: Prompt) -> Prompt:
    """The same prompt with a picture, a sound and two clips in its last message."""
    rng = np.random.default_rng(5)
    picture = ImagePart(rng.integers(0, 255, (84, 140, 3), np.uint8))
    sound = AudioPart(rng.uniform(-0.3, 0.3, 30_000).astype(np.float32), 16_000)
    frames = rng.integers(0, 255, (6, 84, 84, 3), np.uint8)
    silent = VideoPart(frames, tuple(n / 2 for n in range(6)), 2.0)
    heard = VideoPart(frames[:4], tuple(n / 3 for n in range(4)), 3.0, sound)
    *before, last = parts.messages
    return Prompt((*before, Message(last.role, (silent, *last.parts, picture, sound, heard, TextPart("Which?")))))


def examples(name: str, given: Loaded) -> list[Example]:
    """Rows with text alone, frames, sound, clips with sound and without, and all of them together."""
    checkpoint, encoder = given
    prompts = [opening(), after("frames", frames=3), big_clip(7, fps=1.5, sound=False), after("frames", frames=1)]
    if checkpoint.family.hears:
        prompts += [after("audio"), big_clip(5, sound=True), everything(opening()), after("audio", seconds=7.3)]
    rng = np.random.default_rng(0)
    return [
        Example(encoder.encode(prompt), rng.integers(0, 250, 5 + 3 * number).tolist())
        for number, prompt in enumerate(prompts)
    ]


def told(checkpoint: Checkpoint, rows: Sequence[Example], **more: Any) -> list[Any]:
    """Log-probabilities of each row's target, shape (tokens of the target, vocabulary)."""
    given = batch_of(rows, checkpoint.family, pad=checkpoint.processor.tokenizer.pad_token_id, **more)
    labels = given.pop("labels")
    with torch.no_grad():
        out = torch.log_softmax(checkpoint.model(**given, use_cache=False).logits, -1)
    return [row[:-1][mask[1:]] for row, mask in zip(out, labels != IGNORED, strict=True)]


NAMES = ("qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_omni_moe", "qwen3_5")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_mixed_batch_equals_single_rows(loaded: Callable[[str], Loaded], name: str, side: Any) -> None:
    checkpoint, _ = loaded(name)
    rows = examples(name, loaded(name))
    alone = [told(checkpoint, [row])[0] for row in rows]
    assert [len(each) for each in alone] == [len(row.target) for row in rows]
    worst = 0.0
    for order in (range(len(rows)), range(len(rows) - 1, -1, -1)):
        together = told(checkpoint, [rows[n] for n in order], side=side)
        for number, mine in zip(order, together, strict=True):
            worst = max(worst, float((mine - alone[number]).abs().max()))
    print(f"\n{name} {side}: largest difference of a log-probability {worst:.1e}")
    assert worst < 1e-4


def test_a_clip_row_without_explicit_positions_is_scored_wrongly(loaded: Callable[[str], Loaded]) -> None:
    """It is the reason for always giving them: transformers counts the text after a clip in another way."""
    checkpoint, encoder = loaded("qwen2_5_vl")
    row = Example(encoder.encode(big_clip(12, fps=0.5, sound=False)), list(range(40, 80)))
    given = batch_of([row], checkpoint.family, pad=0)
    labels = given.pop("labels")
    ids, config = given["input_ids"], checkpoint.model.config
    own = {key: value for key, value in given.items() if key != "position_ids"} | {
        "mm_token_type_ids": (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    }
    seen = []
    for arguments in (given, own):
        with torch.no_grad():
            out = torch.log_softmax(checkpoint.model(**arguments, use_cache=False).logits[0, :-1], -1)
        seen.append(out.gather(1, ids[0, 1:, None])[:, 0][labels[0, 1:] != IGNORED])
    off = float((seen[0] - seen[1]).abs().max())
    print(f"\nlargest error without explicit positions: {off:.2f} nats")
    assert off > 0.5


def test_labels_positions_and_padding(loaded: Callable[[str], Loaded]) -> None:
    checkpoint, encoder = loaded("qwen2_5_omni")
    short, long = encoder.encode(opening()), encoder.encode(after("audio"))
    rows = [Example(short, [7, 8, 9]), Example(long, [5])]
    for side in ("right", "left"):
        made = batch_of(rows, checkpoint.family, pad=0, side=side)  # type: ignore[arg-type]
        assert made["input_ids"].shape == made["labels"].shape == (2, max(map(len, rows)))
        assert made["position_ids"].shape == (3, *made["input_ids"].shape)
        for number, row in enumerate(rows):
            there = made["attention_mask"][number].bool()
            assert made["input_ids"][number][there].tolist() == [*row.encoded.ids, *row.target]
            assert made["labels"][number][there].tolist() == [IGNORED] * len(row.encoded.ids) + list(row.target)
            assert (made["labels"][number][~there] == IGNORED).all()
            own = made["position_ids"][:, number, there].numpy()
            np.testing.assert_array_equal(own, positions_with(row.encoded, len(row.target), checkpoint.family))
            before = positions(row.encoded, checkpoint.family)
            np.testing.assert_array_equal(own[:, : before.shape[1]], before)
            assert own[:, before.shape[1] :].tolist() == [[before.max() + 1 + n for n in range(len(row.target))]] * 3
    alone = batch_of(rows[:1], checkpoint.family, pad=0)
    assert "attention_mask" not in alone and "pixel_values" not in alone and "input_features" not in alone
    assert batch_of(rows[:1], checkpoint.family, pad=0, mask=True)["attention_mask"].all()
    assert "attention_mask" not in batch_of([rows[0]] * 2, checkpoint.family, pad=0)


def test_what_it_refuses(loaded: Callable[[str], Loaded]) -> None:
    checkpoint, encoder = loaded("qwen2_5_omni")
    row = Example(encoder.encode(opening()), [7, encoder.ids_of["video"]])
    with pytest.raises(ValueError, match="row 0: its target holds placeholders"):
        batch_of([row], checkpoint.family, pad=0, placeholders=encoder.ids_of.values())
    with pytest.raises(ValueError, match="at least one example"):
        batch_of([], checkpoint.family, pad=0)


def test_the_gradient_of_a_padded_batch_is_that_of_its_rows(tiny: Tiny) -> None:
    checkpoint = load_checkpoint(str(tiny("qwen2_5_omni")), device="cpu", dtype="float32")
    encoder = PromptEncoder(checkpoint.processor, checkpoint.family, Pixels(), checkpoint.dtype)
    rows = examples("qwen2_5_omni", (checkpoint, encoder))
    model, total = checkpoint.model.requires_grad_(True), sum(len(row.target) for row in rows)

    def gradient(batches: list[list[Example]]) -> dict[str, Any]:
        model.zero_grad()
        for batch in batches:
            given = batch_of(batch, checkpoint.family, pad=0)
            labels = given.pop("labels")[:, 1:]
            logits = model(**given, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            (loss / total).backward()
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    together, one_by_one = gradient([rows]), gradient([[row] for row in rows])
    assert together.keys() == one_by_one.keys() and len(together) > 50
    assert {"visual", "audio_tower"} <= {part for name in together for part in name.split(".")}
    off = max(float((together[name] - one_by_one[name]).abs().max()) for name in together)
    print(f"\nlargest difference of a gradient {off:.1e}")
    assert off < 1e-4
