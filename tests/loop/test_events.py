"""The events of an episode, in their order, for whoever follows it while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from apr_testing import Playback, answer, look

from apr_plugin.agent import Agent, make_question
from apr_plugin.loop.action import GetFrames
from apr_plugin.loop.episode import Episode
from apr_plugin.loop.events import Event, Opened, Thought, TurnEnded


def test_a_thought_is_told_before_its_look_ends(shared_videos: dict[str, Path]) -> None:
    question = make_question(shared_videos["silent"], "Which?", options=["red", "blue"])
    with Agent(Playback([look(0, 2), "no turn at all", look(4, 5), answer("B")])) as agent:
        events: list[Event] = []
        turns_then: list[int] = []

        def note(event: Event) -> None:
            events.append(event)
            turns_then.append(len(episode.turns))

        episode: Episode = agent.episode(question, on_event=note)
        trajectory = asyncio.run(episode.run())
    assert [type(event) for event in events] == [Opened, Thought, TurnEnded, TurnEnded, Thought, TurnEnded, TurnEnded]
    assert turns_then == [0, 0, 1, 2, 2, 3, 4], "a thought is told while its turn has not ended"
    assert {event.question for event in events} == {question.key}
    assert isinstance(events[0], Opened) and events[0].films == trajectory.videos
    assert isinstance(events[4], Thought) and events[4].number == 3 and isinstance(events[4].parsed.action, GetFrames)
    assert [event.turn for event in events if isinstance(event, TurnEnded)] == list(trajectory.turns)


def test_what_the_listener_raises_is_its_own(shared_videos: dict[str, Path]) -> None:
    def fails(event: Event) -> None:
        raise LookupError("mine")

    with Agent(Playback([look(0, 2), answer("B")])) as agent, pytest.raises(LookupError, match="mine"):
        asyncio.run(agent.episode(make_question(shared_videos["silent"], "Which?"), on_event=fails).run())
