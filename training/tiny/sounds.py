"""Rows that teach a small model to hear: a sound and its words, alone or in the chat.

    <|audio_bos|><|AUDIO|>…<|audio_eos|> low#4 chime#9<|im_end|>

`maker` makes sounds with no chat around, the first teacher of the audio tower. `listening` makes a look at a scene, a
sound of the same window, and the whole next turn as the target; with `text=True` the note is in the target alone, and
there is no sound in the prompt. The measure hears windows of worlds of gates.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from apr_plugin.loop.action import GetAudio
from apr_plugin.media import SAMPLE_RATE
from apr_plugin.models.batch import Example
from apr_plugin.models.prompt import Encoded
from apr_plugin.tasks.needle.make import BUCKETS
from apr_plugin.tasks.needle.palette import CHIME_S, PITCHES
from apr_plugin.tasks.needle.world import CHIME
from apr_plugin.training.student import Student
from apr_plugin.training.tiny import listening as hearing
from apr_plugin.training.tiny.agents import asked_of, drawn
from apr_plugin.training.tiny.ears import Ears, alone, waveform
from apr_plugin.training.tiny.notes import FRAMES, Move, teach, turn_of
from apr_plugin.training.tiny.pictures import Eyes
from apr_plugin.training.tiny.prompts import WIRE, Heard, Laid, Rows, laid, notebook, percept_of
from apr_plugin.training.tiny.worlds import GATES, Film, film, question_of

LENGTHS_S = (8.0, 190.0)
"""Bounds of the windows of made-up sounds: scenes of videos of one minute to two hours."""

MOST_TOKENS = 20
"""Most tokens that are written of a sound."""


def made_up(draw: random.Random, shortest_s: float, longest_s: float) -> tuple[float, list[hearing.Sound]]:
    """A window's length in seconds, and sounds in it as scenes have them: chimes, or tones of three pitches."""
    length = round(math.exp(draw.uniform(math.log(shortest_s), math.log(longest_s))), 1)
    what = draw.random()
    if what < 0.4:
        names = [CHIME] * draw.randint(1, 6)
    elif what < 0.8:
        names = [*PITCHES, *([CHIME] if draw.random() < 0.4 else [])]
    else:
        names = [draw.choice((CHIME, *PITCHES)) for _ in range(draw.randint(0, 5))]
    draw.shuffle(names)
    most = max(1.0, 0.6 * max(2.0, length / 24 * draw.uniform(1.0, 1.5)))
    lasting = [CHIME_S if name == CHIME else round(draw.uniform(1.0, most), 1) for name in names]
    while sum(lasting) + 0.3 * len(lasting) > 0.9 * length:
        names.pop()
        lasting.pop()
    slack = 0.96 * length - sum(lasting) - 0.3 * len(lasting)
    at, sounds = 0.02 * length, []
    for name, lasts, offset in zip(names, lasting, sorted(draw.uniform(0, slack) for _ in names), strict=True):
        sounds.append((round(at + offset, 1), round(at + offset + lasts, 1), name))
        at += lasts + 0.3
    return length, sounds


class Sounds:
    """Makes sounds and their words by their number, see `maker`."""

    def __init__(self, student: Student, seed: int, shortest_s: float, longest_s: float, noise: float) -> None:
        self._student = student
        self._seed = seed
        self._bounds_s = (shortest_s, longest_s)
        self._ears = Ears(student, seed, noise)

    def __call__(self, index: int) -> Example:
        """The row of this number."""
        length_s, sounds = self._drawn(index)
        samples = waveform(sounds, 0.0, length_s)
        return Example(self._ears.fill(alone(self._student, len(samples)), samples, index), self._target(index))

    def tokens(self, index: int) -> int:
        """Its length, without its sound."""
        samples = round(self._drawn(index)[0] * SAMPLE_RATE)
        return 2 + self._student.family.audio_tokens(samples) + len(self._target(index))

    def _drawn(self, index: int) -> tuple[float, list[hearing.Sound]]:
        return made_up(random.Random(f"sounds:{self._seed}:{index}"), *self._bounds_s)

    def _target(self, index: int) -> tuple[int, ...]:
        length_s, sounds = self._drawn(index)
        words = hearing.words_of(hearing.events_of(sounds, 0.0, length_s))
        return (*self._student.encoder.turn_ids(words), self._student.end)


def maker(
    *,
    student: Student,
    seed: int,
    shortest_s: float = LENGTHS_S[0],
    longest_s: float = LENGTHS_S[1],
    noise: float = 0.5,
) -> Sounds:
    """A maker of sounds and their words (`training.sft.mixes.RowMaker`).

    Args:
        student: The model that is trained.
        seed: Draws sounds and disturbance.
        shortest_s: Length of the shortest window in seconds.
        longest_s: Of the longest; lengths are drawn evenly on a logarithmic scale.
        noise: See `Ears`.
    """
    return Sounds(student, seed, shortest_s, longest_s, noise)


def listening(*, student: Student, seed: int, text: bool = False, worlds: int = 1_000_000, noise: float = 0.5) -> Rows:
    """A maker of turns after a sound: a look at the scene, the sound of the same window, and what follows.

    Args:
        student: The model that is trained.
        seed: Draws everything.
        text: Whether the sound is left out of the prompt, so that the rest of the turn must follow from the note.
        worlds: See `agents.maker`.
        noise: See `Ears`.
    """

    def lay(index: int) -> Laid:
        draw = random.Random(f"listening:{seed}:{index}")
        seen, doc = drawn(draw, worlds, hearing.KINDS)
        question, _ = question_of(doc)
        asked = asked_of(doc)
        start_s, end_s = _window(seen, doc["spans"][0][0], draw)
        times, labels = seen.frames(start_s, end_s, FRAMES["inner"])
        # A turn before, of few frames that lie around the scene.
        wide = (max(0.0, times[0] - draw.uniform(1, 60)), min(seen.duration_s, times[-1] + draw.uniform(1, 60)))
        shown, earlier = seen.frames(*wide, draw.randint(2, 4))
        looked = turn_of(
            asked, earlier, shown, Move(f"inner#1#{len(shown)}:#1#{len(shown)}", 1, len(shown), FRAMES["inner"])
        )
        moved = looked.action.model_copy(update={"start": times[0], "end": times[-1]})  # type: ignore[union-attr]
        notes = notebook(question, seen.meta).with_turn(
            WIRE.written(looked), percept_of(looked.model_copy(update={"action": moved}), times, 1)
        )
        listened = turn_of(asked, labels, times, teach(asked, labels, "inner"))
        assert isinstance(listened.action, GetAudio)
        window = (listened.action.start, listened.action.end)
        notes = notes.with_turn(WIRE.written(listened), percept_of(listened, (), 2))
        events = hearing.events_of(seen.sounds, *window)
        words = WIRE.written(turn_of(asked, labels, times, teach(asked, labels, "listen", events), events))
        if text:
            notes.forget_media()
        return laid(student, notes, (), words, None if text else Heard(seen.sounds, *window))

    return Rows(lay, Eyes(student, seed), Ears(student, seed, noise))


def _window(seen: Film, time_s: float, draw: random.Random) -> tuple[float, float]:
    """Nearly the whole scene that is on at a time: what the teacher narrows its looks down to."""
    scene = next(scene for _, scene in seen.world.scenes() if scene.start_s <= time_s < scene.end_s)
    cut = (scene.end_s - scene.start_s) / 16
    return scene.start_s + draw.uniform(0.1, cut), scene.end_s - draw.uniform(0.1, cut) - 0.1


def measure(*, student: Student, seed: int = 0, count: int = 100, batch: int = 20) -> Callable[[Any], dict[str, float]]:
    """A measure: what a model writes of the sounds of scenes of worlds of gates, greedily, with no chat around.

    Args:
        student: The model that is trained.
        seed: Draws the scenes.
        count: How many; a fifth of them from each length of video.
        batch: Sounds that are written about at the same time.

    Returns:
        From a model, `names` (the share of windows whose events have the right names, in order) and `places` (the
        share where each is also within one 24th of the window); `chimes` and `tones` are the `names` of the scenes
        where chimes are counted, and of those with tones.
    """
    asked = sorted((_heard(seed, n, tuple(BUCKETS)[n % len(BUCKETS)]) for n in range(count)), key=lambda one: one[1])
    quiet = Ears(student, seed, noise=0.0)

    def run(model: Any) -> dict[str, float]:
        found: dict[str, list[bool]] = defaultdict(list)
        for first in range(0, len(asked), batch):
            part = asked[first : first + batch]
            prompts = [
                quiet.fill(alone(student, len(samples)), samples, first + n)
                for n, samples in enumerate(waveform(seen.sounds, *window) for seen, window, _ in part)
            ]
            for (seen, window, kind), text in zip(part, written(model, student, prompts, MOST_TOKENS), strict=True):
                names, places = hearing.judged(text, hearing.events_of(seen.sounds, *window))
                found["names"].append(names)
                found["places"].append(places)
                found["chimes" if kind == "count" else "tones"].append(names)
        return {name: float(np.mean(right)) for name, right in found.items()}

    return run


SEEDS = 2_000_000
"""Where the worlds of heard windows begin within those of gates."""


def _heard(seed: int, number: int, bucket: str) -> tuple[Film, tuple[float, float], str]:
    draw = random.Random(f"heard:{seed}:{number}")
    seen, docs = film(GATES.start + SEEDS + seed + number, bucket)
    doc = draw.choice([doc for doc in docs if doc["kind"] in hearing.KINDS])
    return seen, _window(seen, doc["spans"][0][0], draw), doc["kind"]


def written(model: Any, student: Student, prompts: Sequence[Encoded], longest: int) -> list[str]:
    """What a model writes after prompts, greedily.

    Args:
        model: In evaluation mode.
        student: Its tokenizer.
        prompts: With tensors.
        longest: Most tokens.
    """
    from transformers import DynamicCache

    from apr_plugin.models.checkpoint import Checkpoint
    from apr_plugin.models.positions import positions

    checkpoint = Checkpoint.around(model, student.encoder.processor)
    most = max(len(prompt.ids) for prompt in prompts)
    ids = np.full((len(prompts), most), student.pad, np.int64)
    places = np.ones((3, len(prompts), most), np.int64)
    known = np.zeros((len(prompts), most + longest), np.bool_)
    for row, prompt in enumerate(prompts):
        ids[row, most - len(prompt.ids) :] = prompt.ids
        places[:, row, most - len(prompt.ids) :] = positions(prompt, student.family)
        known[row, most - len(prompt.ids) :] = True
    cache, media = DynamicCache(config=checkpoint.cache_config), [one for prompt in prompts for one in prompt.media]
    texts: list[list[int]] = [[] for _ in prompts]
    with checkpoint.without_gradients():
        for done in range(longest):
            logits = checkpoint.forward(ids, places, cache, media=media, mask=known[:, : most + done])
            logits[:, list(student.encoder.never_written)] = float("-inf")
            ids, media = logits.argmax(-1)[:, None].cpu().numpy(), []
            places = places[:, :, -1:] + 1
            for text, token in zip(texts, ids[:, 0].tolist(), strict=True):
                text.append(student.end if student.end in text else token)
            if all(student.end in text for text in texts):
                break
    return [student.text(text[: text.index(student.end)] if student.end in text else text) for text in texts]
