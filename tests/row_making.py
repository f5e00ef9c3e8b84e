"""What the tests of rows are made with: a policy that says texts with a real checkpoint's tokens, and its runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_plugin.loop import Card, Episode, EpisodeConfig, MediaRef, Option, Prompt, Question, Trajectory
from apr_plugin.loop.policy import Generation, PolicyDefaults, PromptSize, Sampling, Usage
from apr_plugin.training.student import Student

Say = str | Generation


class Speaker(PolicyDefaults):
    """Says the given texts as the student would: with token ids that are not those of a tokenizer, and exact counts.

    Every word's letters are tokens of their own, as a model may sample them; `end` is left out where a text is given as
    a `Generation`.
    """

    name = "speaker"

    def __init__(self, student: Student, says: Sequence[Say], context_tokens: int | None = None) -> None:
        self.student = student
        self.says = list(says)
        self.context_tokens = context_tokens
        self.modalities = student.family.modalities
        self.seen: list[Prompt] = []

    async def count(self, prompt: Prompt) -> PromptSize:
        return self.student.encoder.count(prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        assert prompt.asked is not None
        self.seen.append(prompt)
        say = self.says[min(prompt.asked.turn, len(self.says)) - 1]
        if isinstance(say, Generation):
            return say
        size = self.student.encoder.count(prompt)
        ids = (*spelled(self.student, say), self.student.end)
        return Generation(say, Usage(size.total, 0, len(ids), size.visual, size.audio), token_ids=ids)

    def describe(self) -> dict[str, Any]:
        return {"says": len(self.says)}


def spelled(student: Student, text: str) -> tuple[int, ...]:
    """Token ids of a text, letter by letter."""
    encode = student.tokenizer.backend_tokenizer.encode
    return tuple(token for letter in text for token in encode(letter, add_special_tokens=False).ids)


def tokens(student: Student, text: str) -> tuple[int, ...]:
    return tuple(student.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass
class Played:
    """An episode that was written to a file, and what its policy saw."""

    trajectory: Trajectory
    file: Path
    card: Path
    seen: list[Prompt]


Play = Callable[..., Played]


def played(
    folder: Path, question: Question, policy: Speaker, config: EpisodeConfig | None = None, name: str = "runs"
) -> Played:
    """Play an episode and append it to a file in this folder, with a card for each configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config or EpisodeConfig()
    policy.seen.clear()
    done = asyncio.run(Episode(question, policy, config).run())
    card = Card.of(config, policy)
    place = folder / card.config_hash
    place.mkdir(exist_ok=True)
    (place / "card.json").write_text(card.to_json())
    file = folder / f"{name}.jsonl"
    done.write(file)
    return Played(done, file, folder, list(policy.seen))


def question(*paths: Path, doc_id: str = "0", text: str = "what?", **more: Any) -> Question:
    options = (Option(label="A", text="one"), Option(label="B", text="two"))
    refs = tuple(path if isinstance(path, MediaRef) else MediaRef(path=str(path)) for path in paths)
    return Question(text=text, kind="mcq", options=options, videos=refs, task="t", doc_id=doc_id, **more)  # type: ignore[arg-type]
