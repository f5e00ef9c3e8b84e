"""Rows that teach a small model to see: pictures and their words, with no chat around.

    <|vision_bos|><|IMAGE|><|vision_eos|> red striped green circle<|im_end|>
    #1<|vision_bos|><|IMAGE|><|vision_eos|>#2<|vision_bos|><|IMAGE|><|vision_eos|>#1 blue plain#2 red dotted<|im_end|>

They are by far the cheapest way to eyes: some eight tokens for each picture. With several pictures in a row, they also
teach to find the picture of a name. The measure reads held-out labels (`pictures.held_out`), written greedily.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from apr_plugin.loop.policy import ImagePart
from apr_plugin.models.batch import Example, batch_of
from apr_plugin.models.families import Placeholders
from apr_plugin.models.prompt import Encoded, Medium
from apr_plugin.tasks.needle.palette import ALL_GLYPHS, BACKGROUNDS, PATTERNS
from apr_plugin.training.recipe_file import RecipeError
from apr_plugin.training.student import Student
from apr_plugin.training.tiny.model import EDGE
from apr_plugin.training.tiny.notes import MOST_FRAMES
from apr_plugin.training.tiny.pictures import LABELS, NOISE, Eyes, held_out, name_of
from apr_plugin.training.tiny.worlds import Label

LONGEST = 8
"""Most tokens of a caption."""

_EMPTY = ImagePart(np.zeros((EDGE, EDGE, 3), np.uint8))


def maker(
    *, student: Student, seed: int, least: int = 0, most: int = 0, glyphs: float = 0.8, noise: float = NOISE
) -> Captions:
    """A maker of captions (`training.sft.mixes.RowMaker`).

    Args:
        student: The model that is trained.
        seed: Draws labels and disturbance.
        least: Fewest pictures of a row with names.
        most: Most pictures of such a row; 0: each row has one picture, without a name.
        glyphs: Share of the pictures with a glyph.
        noise: See `Eyes`.
    """
    if not 0 <= least <= most <= MOST_FRAMES or bool(least) != bool(most):
        raise RecipeError(f"captions of {least} to {most} pictures: take 1 to {MOST_FRAMES}, or none of the two")
    return Captions(student, seed, least, most, glyphs, noise)


class Captions:
    """Makes captions by their number, see `maker`."""

    def __init__(self, student: Student, seed: int, least: int, most: int, glyphs: float, noise: float) -> None:
        self._student = student
        self._seed = seed
        self._least, self._most = least, most
        self._glyphs = glyphs
        self._eyes = Eyes(student, seed, noise)
        self._words: dict[str, tuple[int, ...]] = {}

    def __call__(self, index: int) -> Example:
        """The row of this number."""
        labels = self._labels(index)
        encoded = named_pictures(self._student, len(labels)) if self._most else alone(self._student)
        return Example(self._eyes.fill(encoded, labels, index, alone=not self._most), self._target(labels))

    def tokens(self, index: int) -> int:
        """Its length, without its pictures."""
        labels = self._labels(index)
        return len(labels) * (4 if self._most else 3) + len(self._target(labels))

    def _labels(self, index: int) -> list[Label]:
        draw = random.Random(f"captions:{self._seed}:{index}")
        wanted = draw.randint(self._least, self._most) if self._most else 1
        labels: list[Label] = []
        while len(labels) < wanted:
            glyph = draw.choice(ALL_GLYPHS) if draw.random() < self._glyphs else None
            label = (draw.choice(_BACKGROUNDS), draw.choice(PATTERNS), glyph)
            if not held_out(label):
                labels.append(label)
        return labels

    def _target(self, labels: list[Label]) -> tuple[int, ...]:
        words = [f" {name_of(label)}" for label in labels]
        if self._most:
            words = [f"#{number}{name}" for number, name in enumerate(words, 1)]
        return (*(token for word in words for token in self._ids(word)), self._student.end)

    def _ids(self, words: str) -> tuple[int, ...]:
        if words not in self._words:
            self._words[words] = tuple(self._student.encoder.turn_ids(words))
        return self._words[words]


_BACKGROUNDS = tuple(BACKGROUNDS)


def alone(student: Student) -> Encoded:
    """The prompt of one picture and nothing else, laid out."""
    return _pictures(student, [""])


def named_pictures(student: Student, count: int) -> Encoded:
    """The prompt of pictures with names, `#1` to `#count`, and nothing else, laid out."""
    return _pictures(student, [f"#{number}" for number in range(1, count + 1)])


def _pictures(student: Student, names: list[str]) -> Encoded:
    marks = student.family.marks
    tokens = [token for name in names for token in (name, marks.vision_start, marks.image, marks.vision_end) if token]
    ids = np.asarray(student.tokenizer.convert_tokens_to_ids(tokens), np.int64)
    places = np.flatnonzero(ids == student.tokenizer.convert_tokens_to_ids(marks.image)).tolist()
    return Encoded(ids, [Medium(_EMPTY, (Placeholders("image", 1),), place) for place in places])


def measure(
    *, student: Student, seed: int = 1, pictures: int = 0, noise: float = NOISE
) -> Callable[[Any], dict[str, float]]:
    """A measure: the share of held-out pictures whose words are right.

    Args:
        student: The model that is trained.
        seed: Of the disturbance, other than that of the rows.
        pictures: Pictures with names in each prompt; 0: one picture without a name.
        noise: See `Eyes`.

    Returns:
        From a model, `colour`, `pattern`, `glyph_colour`, `shape`, `no_glyph` (a picture without one), `whole`.
    """
    eyes = Eyes(student, seed, noise)
    labels = [label for label in LABELS if held_out(label)]
    random.Random(seed).shuffle(labels)
    each = pictures or 1
    rows = [labels[first : first + each] for first in range(0, len(labels) - each + 1, each)]
    at_once = max(1, 64 // each)

    def run(model: Any) -> dict[str, float]:
        right: dict[str, list[bool]] = {}
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            prompts = [
                eyes.fill(
                    named_pictures(student, each) if pictures else alone(student), shown, first + n, alone=not pictures
                )
                for n, shown in enumerate(part)
            ]
            for shown, text in zip(part, greedy(model, student, prompts, LONGEST * each), strict=True):
                entries = _entries(text, each) if pictures else [text]
                for label, words in zip(shown, entries, strict=True):
                    for name, ok in _compared(label, words.split()).items():
                        right.setdefault(name, []).append(ok)
        return {name: float(np.mean(found)) for name, found in right.items()}

    return run


def _entries(text: str, count: int) -> list[str]:
    """The words of each name; of one that was not written, none."""
    found = dict(re.findall(r"#(\d+)([^#]*)", text))
    return [found.get(str(number), "") for number in range(1, count + 1)]


def _compared(label: Label, words: list[str]) -> dict[str, bool]:
    background, pattern, glyph = label
    padded = [*words, "", "", "", ""]
    found = {"colour": padded[0] == background, "pattern": padded[1] == pattern}
    if glyph is None:
        found["no_glyph"] = len(words) == 2
    else:
        found |= {"glyph_colour": padded[2] == glyph.colour, "shape": padded[3] == glyph.shape}
    return found | {"whole": words == name_of(label).split()}


def greedy(model: Any, student: Student, prompts: list[Encoded], longest: int) -> list[str]:
    """What a model writes after prompts of equal length; everything is read again for each token.

    Args:
        model: In evaluation mode.
        student: Its tokenizer.
        prompts: With tensors; all have the same number of tokens.
        longest: Most tokens.
    """
    written: list[list[int]] = [[] for _ in prompts]
    for _ in range(longest):
        examples = [Example(prompt, ids) for prompt, ids in zip(prompts, written, strict=True)]
        batch = batch_of(examples, student.family, pad=student.pad)
        batch.pop("labels")
        batch = {name: value.to(model.device) for name, value in batch.items()}
        out = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
        out[:, list(student.encoder.never_written)] = float("-inf")
        for ids, token in zip(written, out.argmax(-1).tolist(), strict=True):
            ids.append(student.end if student.end in ids else token)
    return [student.text(ids[: ids.index(student.end)] if student.end in ids else ids).strip() for ids in written]
