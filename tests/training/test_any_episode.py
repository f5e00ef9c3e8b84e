"""Whatever a policy writes: every turn is a row or has a reason; a row is what was seen, but for rewritten turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import answer, look, turn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

from row_making import Speaker, played, question

from apr_plugin.loop import WIRES, Budget, EpisodeConfig, MediaRef, Sampling
from apr_plugin.training.loading import RowLoader
from apr_plugin.training.making import RowSettings, Source, make_rows
from apr_plugin.training.rows import NoRows
from apr_plugin.training.student import Student

SECONDS = st.floats(0, 4).map(lambda value: round(value, 2))
ACTIONS = st.one_of(
    st.tuples(SECONDS, SECONDS, st.integers(1, 9)).map(
        lambda drawn: {"type": "get_frames", "start": min(drawn[:2]), "end": max(drawn[:2]), "num": drawn[2]}
    ),
    st.tuples(st.sampled_from(["get_audio", "get_clip"]), SECONDS, SECONDS).map(
        lambda drawn: {"type": drawn[0], "start": min(drawn[1:]), "end": max(drawn[1:])}
    ),
    st.just({"type": "answer", "content": "A"}),
)
NOTES = st.one_of(st.text(max_size=30), st.sampled_from(["<|IMAGE|>", "<|im_end|>", "a <image> tag", "x" * 900]))
TURNS = st.one_of(
    st.builds(turn, ACTIONS, NOTES),
    st.builds(turn, ACTIONS, NOTES).map(lambda text: f"So:\n```json\n{text}\n```"),
    st.builds(lambda action: turn(action, confidence=7.0), ACTIONS),
    st.text(max_size=40),
    st.just(look(0, 3, 4)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    says=st.lists(TURNS, min_size=1, max_size=5),
    wire=st.sampled_from(sorted(WIRES)),
    writer=st.sampled_from(["own", "teacher"]),
    repaired=st.sampled_from(["rewrite", "drop"]),
    forced=st.booleans(),
    context=st.sampled_from([None, 2600, 4000]),
    parsing=st.sampled_from(["repair", "strict"]),
)
def test_any_episode(
    student: Callable[..., Student],
    shared_videos: dict[str, Path],
    says: list[str],
    wire: Any,
    writer: Any,
    repaired: Any,
    forced: bool,
    context: int | None,
    parsing: Any,
) -> None:
    if WIRES[wire].references:
        parsing = "repair"  # strict parsing reads no names
    learner = student("qwen2_5_omni", context_tokens=4096)
    config = EpisodeConfig(wire=wire, parsing=parsing, budget=Budget(turns=5), sampling=Sampling(max_new_tokens=300))
    ref = MediaRef(path=str(shared_videos["sound"]), start_s=0.37)
    with tempfile.TemporaryDirectory() as folder:
        policy = Speaker(learner, [*says, answer("B")], context)
        run = played(Path(folder), question(ref), policy, config)  # type: ignore[arg-type]
        wanted = RowSettings(validation=0, repaired=repaired, forced=forced)
        try:
            rows = make_rows([Source(run.file, run.card, writer=writer)], learner, wanted)
        except NoRows:
            return
        loader = RowLoader(learner)
        turns = run.trajectory.turns
        assert len(rows) + sum(drop.turns for drop in rows.dropped) == len(turns)
        assert {row.turn for row in rows.rows}.isdisjoint(drop.turn for drop in rows.dropped)
        later = {row.turn: learner.text(loader.prompt(row, blank=True)[1]) for row in rows.rows}
        for row in rows.rows:
            was, wrote = run.seen[row.turn - 1], turns[row.turn - 1]
            assert wrote.error is None and wrote.action is not None and (forced or not wrote.forced)
            prompt, target = loader.prompt(row)
            assert target[-1] == learner.end and not set(target[:-1]) & learner.special
            if row.target == "tokens":
                assert learner.text(target) == wrote.text
            if not row.rewritten:
                ours, theirs = (learner.encoder.encode(each) for each in (prompt, was))
                np.testing.assert_array_equal(ours.keys, theirs.keys)
            first = turns[row.turn - 1].left_out
            notes = [message.text for message in prompt.messages if message.role == "assistant"]
            for number, note in enumerate(notes, first + 1):
                told = later.get(number, turns[number - 1].text if number not in row.rewritten else note)
                assert note == told, "what is taught and what is read later are the same"
            others = [[m.text for m in each.messages if m.role != "assistant"] for each in (prompt, was)]
            assert others[0] == others[1]
