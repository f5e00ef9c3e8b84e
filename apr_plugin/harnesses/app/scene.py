"""`Scene`: an episode that tells what happens in it, as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from apr_plugin.harnesses.app.records import Reporting
from apr_plugin.harnesses.app.view import Event, Looked, Opened, Saw, Wrote
from apr_plugin.harnesses.app.watched import Watched, chosen
from apr_plugin.loop.action import offered_actions
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.episode import Episode
from apr_plugin.loop.policy import Generation, Policy, Prompt
from apr_plugin.loop.question import Question
from apr_plugin.loop.reply import read_turn, read_turn_strictly
from apr_plugin.loop.trajectory import Turn


class Scene:
    """An episode, not yet run, whose events are told as they happen.

    Args:
        policy: The policy that answers, shared by all.
        decoding: Limits on reading, shared by all.
        reporting: Makes pictures small.
        question: What is asked.
        config: Its limits.
        tell: Called with each event, in the event loop of the episode.
    """

    def __init__(
        self,
        policy: Policy,
        decoding: Decoding,
        reporting: Reporting,
        question: Question,
        config: EpisodeConfig,
        tell: Callable[[Event], None],
    ) -> None:
        self._reporting = reporting
        self._tell = tell
        self._offered = offered_actions(policy.modalities)
        self._last: Turn | None = None
        self.episode = Episode(
            question,
            Watched(policy, self._on_asked),
            config,
            on_turn=self._on_turn,
            on_prompt=self._on_written,
            decoding=decoding,
        )
        """To be run once."""

    async def _on_asked(self, prompt: Prompt) -> None:
        """The policy is about to read a prompt: its media is what the turn before asked for."""
        if prompt.asked is not None and not self.episode.turns:
            self._tell(Opened(prompt.asked.durations_s, self.episode.allowed))
        shown = self._last.shown if self._last is not None else None
        if shown is not None:
            self._last = None
            pictures, sounds = prompt.newest_media()
            numbers = chosen(shown, len(pictures))
            make = self._reporting
            small = await asyncio.to_thread(lambda: [make.thumbnail(pictures[number]) for number in numbers])
            times = [shown.times_s[number] for number in numbers]
            wave = tuple(make.waveform(sounds[0])) if sounds else None
            self._tell(Saw(tuple(zip(times, small, strict=True)), wave))

    def _on_written(self, prompt: Prompt, generation: Generation) -> None:
        """The policy wrote a turn; one without an action is shown when it is over."""
        if prompt.final or prompt.asked is None or self.episode.config.arm != "agent":
            return
        several = len(self.episode.question.videos) > 1
        read = partial(read_turn_strictly, several=several) if self.episode.strict else read_turn
        parsed = read(generation, offered=self._offered)
        if parsed.action is not None:
            self._tell(Wrote(prompt.asked.turn, parsed, generation))

    def _on_turn(self, number: int, turn: Turn) -> None:
        self._last = turn
        self._tell(Looked(number, turn))
