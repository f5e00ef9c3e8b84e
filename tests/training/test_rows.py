"""Rows: equal to what the policy saw token for token, targets, what is dropped and why, the file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import answer, look, turn

pytest.importorskip("torch")
pytest.importorskip("transformers")

from row_making import Speaker, played, question, spelled, tokens

from apr_plugin.errors import AprError
from apr_plugin.loop import WIRES, Budget, EpisodeConfig, MediaRef, Sampling, parse_turn
from apr_plugin.loop.policy import Generation
from apr_plugin.models.positions import positions
from apr_plugin.training.loading import RowCollator, RowLoader
from apr_plugin.training.making import RowSettings, Source, make_rows
from apr_plugin.training.rows import NoRows, Row, RowError, RowSet, read_rows, write_rows
from apr_plugin.training.student import Student

Videos = dict[str, Path]
Students = Callable[..., Student]
EVERYTHING = RowSettings(validation=0.0)


def audio(start: float, end: float) -> str:
    return turn({"type": "get_audio", "start": start, "end": end})


def clip(start: float, end: float, **more: Any) -> str:
    return turn({"type": "get_clip", "start": start, "end": end} | more)


def reasons(rows: RowSet) -> Counter[str]:
    return Counter(str(drop.reason) for drop in rows.dropped)


def same_media(one: Any, other: Any) -> None:
    assert len(one.media) == len(other.media)
    for mine, theirs in zip(one.media, other.media, strict=True):
        assert mine.start == theirs.start and mine.runs == theirs.runs
        for name in ("pixels", "grid", "mel"):
            a, b = getattr(mine, name), getattr(theirs, name)
            assert (a is None) == (b is None) and (a is None or bool((a == b).all())), name


@pytest.mark.parametrize("wire", sorted(WIRES))
@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen2_5_vl"])
@pytest.mark.parametrize("writer", ["own", "teacher"])
def test_a_row_is_what_the_policy_saw(
    student: Students, shared_videos: Videos, tmp_path: Path, wire: Any, name: str, writer: Any
) -> None:
    """All kinds of looks, refused and malformed turns, a shrunk look, a forced call; a window of the file."""
    learner = student(name, context_tokens=3000)
    hears = learner.family.hears
    ref = MediaRef(path=str(shared_videos["sound"]), start_s=0.37, end_s=5.21)
    says = [
        look(0, 4.5, 5, video=0),
        audio(0.3, 3.3) if hears else look(1.1, 2.2, 3),
        "no JSON at all",
        clip(1, 4),
        look(0, 4.5, 60),
        clip(0.5, 2, video=1),
        look(9, 3, 2),
        look(0.2, 4.8, 40, video=1),
    ]
    config = EpisodeConfig(
        wire=wire, budget=Budget(turns=8, frame_pixels=20 * 784), sampling=Sampling(max_new_tokens=300)
    )
    asked = question(ref, MediaRef(path=str(shared_videos["silent"])))
    room = 1400 if wire == "compact" else 3000  # its prompts are that much shorter
    run = played(tmp_path, asked, Speaker(learner, [*says, answer("B")], room), config)
    assert run.trajectory.turns[-1].forced and any(turn_.shown and turn_.shown.fitted for turn_ in run.trajectory.turns)
    source = Source(run.file, run.card, writer=writer)
    rows = make_rows([source], learner, EVERYTHING.model_copy(update={"forced": True}))
    assert len(rows) + len(rows.dropped) == len(run.trajectory.turns) == 9
    # The third is no JSON, the seventh is reversed, and the eighth asks for a look in the last turn.
    assert reasons(rows) == {"error_turn": 3} and [row.turn for row in rows.rows] == [1, 2, 4, 5, 6, 9]
    loader = RowLoader(learner)
    for row in rows.rows:
        example, seen = loader.example(row), learner.encoder.encode(run.seen[row.turn - 1])
        text = run.trajectory.turns[row.turn - 1].text
        if writer == "own":
            assert not row.rewritten and list(example.target) == [*spelled(learner, text), learner.end]
        if not row.rewritten:
            np.testing.assert_array_equal(example.encoded.ids, seen.ids)
            np.testing.assert_array_equal(example.encoded.keys, seen.keys)
            np.testing.assert_array_equal(positions(example.encoded, learner.family), positions(seen, learner.family))
            same_media(example.encoded, seen)
        assert len(example.encoded.ids) == row.prompt_tokens and len(example) == row.tokens
        assert (row.visual_tokens, row.audio_tokens) == (seen.size.visual, seen.size.audio)


def test_a_compact_turn_is_written_again_with_its_names(
    student: Students, shared_videos: Videos, tmp_path: Path
) -> None:
    learner = student()
    says = [look("#0.1", 4, 3), look("#1", "#1.2", 2), answer("one")]  # type: ignore[arg-type]
    config = EpisodeConfig(wire="compact", budget=Budget(turns=6))
    run = played(tmp_path, question(shared_videos["sound"]), Speaker(learner, says), config)
    begins = '{"observation": "seen", "think": "so", "confidence": 0.50, "action": '
    wanted = [
        begins + '{"type": "get_frames", "start": "#0.1", "end":    4.0, "num": 3}}',
        begins + '{"type": "get_frames", "start": "#1", "end": "#1.2", "num": 2}}',
        begins + '{"type": "answer", "content": "one"}}',
    ]
    assert run.trajectory.answer == "A"
    rows = make_rows([Source(run.file, run.card)], learner, EVERYTHING)
    loader = RowLoader(learner)
    for number, row in enumerate(rows.rows):
        prompt, target = loader.prompt(row)
        assert target == (*tokens(learner, wanted[number]), learner.end)
        assert [m.text for m in prompt.messages if m.role == "assistant"] == wanted[:number]
        again = parse_turn(wanted[number], names=run.trajectory.names_before(row.turn))
        assert (again.action, again.repairs) == (run.trajectory.turns[number].action, ())


def test_a_teachers_turns_are_written_in_one_form_in_target_and_later_prompts(
    student: Students, shared_videos: Videos, tmp_path: Path
) -> None:
    learner = student()
    plain = {"observation": "é", "think": "so", "confidence": 0.5}
    says = [
        "Sure!\n```json\n"
        + json.dumps(plain | {"action": {"type": "get_frames", "start": 0, "end": 2, "num": 2}})
        + "\n```",
        json.dumps({"action": {"type": "get_clip", "start": 1.0, "end": 3.0}} | plain, separators=(",", ":")),
        answer("A"),
    ]
    run = played(tmp_path, question(shared_videos["sound"]), Speaker(learner, says))
    begins = '{"observation": "é", "think": "so", "confidence": 0.5, "action": '
    wanted = [
        begins + '{"type": "get_frames", "start": 0.0, "end": 2.0, "num": 2}}',
        begins + '{"type": "get_clip", "start": 1.0, "end": 3.0}}',
        '{"observation": "seen", "think": "so", "confidence": 0.5, "action": {"type": "answer", "content": "A"}}',
    ]
    rows = make_rows([Source(run.file, run.card)], learner, EVERYTHING)
    loader = RowLoader(learner)
    assert [row.rewritten for row in rows.rows] == [(), (1,), (1, 2)]
    for number, row in enumerate(rows.rows):
        prompt, target = loader.prompt(row)
        assert target == (*tokens(learner, wanted[number]), learner.end)
        assert [m.text for m in prompt.messages if m.role == "assistant"] == wanted[:number]
        before = run.seen[number]
        assert [m.text for m in prompt.messages if m.role != "assistant"] == [
            m.text for m in before.messages if m.role != "assistant"
        ]
    left = make_rows([Source(run.file, run.card)], learner, EVERYTHING.model_copy(update={"repaired": "drop"}))
    assert reasons(left) == {"repaired": 1} and [row.turn for row in left.rows] == [2, 3]
    prompt, _ = loader.prompt(left.rows[-1])
    assert [m.text for m in prompt.messages if m.role == "assistant"] == [says[0], wanted[1]]


def test_the_students_own_turns(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    """Which of its turns are targets, with which tokens."""
    learner = student()
    text, end = look(0, 2, 2), learner.end
    image = learner.encoder.ids_of["image"]
    start = learner.tokenizer.convert_tokens_to_ids("<|im_start|>")
    fenced = text + "\n```"
    cases: dict[str, tuple[Generation, Any]] = {
        "as sampled": (Generation(text, token_ids=(*spelled(learner, text), end)), (*spelled(learner, text), end)),
        "without its end": (Generation(text, token_ids=spelled(learner, text)), (*spelled(learner, text), end)),
        "a stop text": (
            Generation(text + "\n", token_ids=spelled(learner, fenced)),
            (*tokens(learner, look(0.0, 2.0, 2)), end),
        ),
        "a placeholder": (Generation(text, token_ids=(image, *spelled(learner, text), end)), "placeholder"),
        "another special token": (Generation(text, token_ids=(start, *spelled(learner, text), end)), "special_token"),
        "no tokens": (Generation(text), "no_tokens"),
        "other tokens": (Generation(text, token_ids=(*spelled(learner, "other" + text), end)), "other_tokens"),
        "unknown tokens": (Generation(text, token_ids=(10**6,)), "other_tokens"),
        "cut off": (Generation(text, finish_reason="length", token_ids=spelled(learner, text)), "cut_off"),
    }
    for number, (what, (said, wanted)) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        run = played(folder, question(shared_videos["sound"]), Speaker(learner, [said, answer("A")]))
        rows = make_rows([Source(run.file, run.card, writer="own")], learner, EVERYTHING)
        first = [row for row in rows.rows if row.turn == 1]
        if isinstance(wanted, str):
            assert not first and reasons(rows) == {wanted: 1}, what
        else:
            assert RowLoader(learner).example(first[0]).target == wanted, what
            assert first[0].target_tokens == len(wanted), what
        assert [row.turn for row in rows.rows][-1] == 2, "it stays in later prompts"


def test_an_own_prompt_of_another_length_is_noticed(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    """The run was sampled with larger pictures, so its rows would not be what the policy saw."""
    learner = student("qwen2_5_vl")
    run = played(tmp_path, question(shared_videos["sound"]), Speaker(learner, [look(0, 2, 2), answer("A")]))
    from apr_plugin.models.families import Pixels

    other = Student(learner.encoder.processor, learner.family, learner.context_tokens, pixels=Pixels(least=100 * 784))
    rows = make_rows([Source(run.file, run.card, writer="own")], other, EVERYTHING)
    assert reasons(rows) == {"other_prompt": 1} and [row.turn for row in rows.rows] == [1]
    assert other.digest != learner.digest


def test_too_long_rows_are_dropped_with_their_length(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    learner = student()
    says = [look(0, 5.5, 2), look(0.1, 5.5, 30), answer("A")]
    run = played(tmp_path, question(shared_videos["sound"]), Speaker(learner, says))
    sizes = [row.tokens for row in make_rows([Source(run.file, run.card)], learner, EVERYTHING).rows]
    assert sizes[0] < sizes[1] < sizes[2]
    for limit, left in ((sizes[2], 3), (sizes[2] - 1, 2), (sizes[0], 1)):
        small = student(context_tokens=limit)
        rows = make_rows([Source(run.file, run.card)], small, EVERYTHING)
        assert len(rows) == left
        assert [drop.tokens for drop in rows.dropped] == sizes[left:] and all(
            str(drop.reason) == "too_long" for drop in rows.dropped
        )
    with pytest.raises(NoRows, match=rf"too_long 3 \(the longest row had {sizes[2]} tokens\)"):
        make_rows([Source(run.file, run.card)], student(context_tokens=sizes[0] - 1), EVERYTHING)


def test_a_student_that_does_not_hear_gets_no_sound(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    run = played(tmp_path, question(shared_videos["sound"]), Speaker(student(), [audio(0, 2), clip(0, 2), answer("A")]))
    rows = make_rows([Source(run.file, run.card)], student("qwen2_5_vl"), EVERYTHING)
    assert reasons(rows) == {"medium": 1} and [row.turn for row in rows.rows] == [1, 3]


def test_every_turn_is_a_row_or_has_a_reason(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    learner = student()
    one = question(shared_videos["sound"], doc_id="1")
    says = [look(0, 2, 2), turn(None), look(0, 1, 1), answer("A")]
    first = played(tmp_path, one, Speaker(learner, says))
    played(tmp_path, question(shared_videos["silent"], doc_id="2"), Speaker(learner, [look(0, 3, 2), answer("B")]))
    played(tmp_path, question(tmp_path / "none.mp4", doc_id="3"), Speaker(learner, says))
    played(tmp_path, question(shared_videos["ears"], doc_id="4"), Speaker(learner, ["A"]), EpisodeConfig(arm="blind"))
    data = json.loads(first.trajectory.to_json())
    old = {key: value for key, value in data.items() if key not in ("videos", "budget")} | {"version": 1}
    with first.file.open("a") as file:
        file.write(json.dumps(old) + "\nnot a trajectory\n" + '{"cut')
    special = [look(0, 2.5, 2), turn({"type": "answer", "content": "B"}, observation="<|im_end|> and"), answer("A")]
    played(tmp_path, question(shared_videos["sound"], doc_id="5"), Speaker(learner, special), name="more")
    nothing = [
        turn({"type": "get_frames", "start": 0, "end": 2, "num": 1}, observation="<|IMAGE|>"),
        '{"observation": "", "think": "", "action": {"type": "get_frames", "start": 0, "end": 3, "num": 1}}',
        answer("A"),
    ]
    played(tmp_path, question(shared_videos["sound"], doc_id="6"), Speaker(learner, nothing), name="more")
    kept = [("t", "", "5", 0), ("t", "", "6", 0)]
    sources = [Source(first.file, tmp_path), Source(tmp_path / "more.jsonl", tmp_path, name="more", kept=kept)]
    read: list[int] = []
    rows = make_rows(sources, learner, EVERYTHING, told=read.append)
    assert read == list(range(1, len(read) + 1)) and read[-1] == 7
    assert rows.counts()["runs"] == {
        "error_turn": {"dropped": 1, "turns": 1},
        "unfinished": {"dropped": 1, "turns": 0},
        "other_arm": {"dropped": 1, "turns": 1},
        "old_version": {"dropped": 1, "turns": 4},
        "broken_line": {"dropped": 2, "turns": 0},
    }
    assert {key: value["dropped"] for key, value in rows.counts()["more"].items()} == {
        "special_token": 1,
        "placeholder": 1,
        "no_confidence": 1,
    }
    turns = sum(about["turns"] for about in rows.about["sources"])
    assert turns == len(rows) + sum(drop.turns for drop in rows.dropped)
    fewer = make_rows([Source(first.file, tmp_path, kept={("t", "", "1", 0): {4}})], learner, EVERYTHING)
    assert [(row.key[2], row.turn) for row in fewer.rows] == [("1", 4)] and reasons(fewer)["not_kept"] == 2 + 1


def test_a_video_that_is_gone_or_another_one(student: Students, make_video: Any, tmp_path: Path) -> None:
    learner, path = student(), make_video("film.mp4", frames=20)
    run = played(tmp_path, question(path), Speaker(learner, [look(0, 1, 2), answer("A")]))
    source = Source(run.file, run.card)
    rows = make_rows([source], learner, EVERYTHING)
    moved = tmp_path / "elsewhere" / "film.mp4"
    moved.parent.mkdir()
    path.rename(moved)
    with pytest.raises(NoRows, match="video 1"):
        make_rows([source], learner, EVERYTHING)
    with pytest.raises(Exception, match="no such file"):
        RowLoader(learner).example(rows.rows[-1])
    assert len(make_rows([source], learner, EVERYTHING, find=lambda _: moved)) == 2
    assert len(RowLoader(learner, find=lambda _: moved).example(rows.rows[-1])) == rows.rows[-1].tokens
    make_video("film.mp4", frames=21)
    with pytest.raises(NoRows, match="video 1"):
        make_rows([source], learner, EVERYTHING)
    with pytest.raises(Exception, match="is another file now"):
        RowLoader(learner).example(rows.rows[-1])


def test_the_file(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    learner = student()
    run = played(
        tmp_path / "runs", question(shared_videos["sound"]), Speaker(learner, [look(0, 2, 2), "?", answer("A")])
    )
    rows = make_rows([Source(run.file, run.card, name="mine")], learner, EVERYTHING)
    file = tmp_path / "rows" / "rows.jsonl"
    write_rows(file, rows)
    back = read_rows(file)
    assert [row.model_copy(update={"file": "", "card": ""}) for row in back.rows] == [
        row.model_copy(update={"file": "", "card": ""}) for row in rows.rows
    ]
    (tmp_path / "moved").mkdir()
    (tmp_path / "runs").rename(tmp_path / "moved" / "runs")
    (tmp_path / "rows").rename(tmp_path / "moved" / "rows")
    file = tmp_path / "moved" / "rows" / "rows.jsonl"
    (first, *_, last), header = read_rows(file).rows, read_rows(file).about
    assert len(RowLoader(learner).example(last)) == last.tokens
    assert header["dropped"] == {"mine": {"error_turn": {"dropped": 1, "turns": 1}}}
    assert header["student"]["digest"] == learner.digest and header["splits"] == {"train": 2}
    (drop,) = [json.loads(line) for line in (file.parent / "rows.dropped.jsonl").read_text().splitlines()]
    assert (drop["reason"], drop["turn"], drop["key"]) == ("error_turn", 2, ["t", "", "0", 0])
    with pytest.raises(NoRows, match="validation"):
        read_rows(file, split="validation")
    good = file.read_text()
    for bad, words in (
        (good.replace('"version": 1', '"version": 9', 1), "newer"),
        (good.rsplit("\n", 2)[0] + "\n", "header says 2"),
        (good + "{", "line 4: not JSON"),
        (good.replace('"turn":1', '"turn":0'), "line 2: turn"),
        ("", "empty"),
        ("[]\n", "not an apr.rows file"),
    ):
        file.write_text(bad)
        with pytest.raises(RowError, match=words):
            read_rows(file)
    with pytest.raises(RowError, match="cannot read rows"):
        read_rows(tmp_path)
    line = Path(first.file).read_text()
    Path(first.file).write_text(line.replace('"seen"', '"sean"'))
    with pytest.raises(RowError, match="has changed since the rows were made"):
        RowLoader(learner).example(first)
    with pytest.raises(NoRows, match="nothing was dropped"):
        write_rows(file, RowSet([]))


def test_a_batch_of_rows(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    """From a table of values, in a worker process, as a trainer does it."""
    import torch

    learner = student()
    says = [look(0, 2, 2), audio(0, 2), clip(1, 3), answer("A")]
    run = played(tmp_path, question(shared_videos["sound"]), Speaker(learner, says))
    rows = make_rows([Source(run.file, run.card)], learner, EVERYTHING).rows
    collate = RowCollator(RowLoader(learner))
    table = [row.model_dump(mode="json") for row in rows]
    there = collate(table)
    (from_worker,) = torch.utils.data.DataLoader(table, batch_size=4, num_workers=1, collate_fn=collate)  # type: ignore[arg-type]
    assert there.keys() == from_worker.keys() >= {"pixel_values", "pixel_values_videos", "input_features"}
    assert all(torch.equal(there[key], from_worker[key]) for key in there)
    assert there["labels"].ne(-100).sum(1).tolist() == [row.target_tokens for row in rows]
    assert there["attention_mask"].sum(1).tolist() == [row.tokens for row in rows]


def test_rows_made_for_another_checkpoint_are_refused(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    learner = student()
    run = played(tmp_path, question(shared_videos["sound"]), Speaker(learner, [look(0, 2, 2), answer("A")]))
    row = make_rows([Source(run.file, run.card)], learner, EVERYTHING).rows[-1]
    wrong = row.model_copy(update={"prompt_tokens": row.prompt_tokens + 1})
    with pytest.raises(RowError, match="made for another checkpoint"):
        RowLoader(learner).example(wrong)
    assert isinstance(row, Row)


def test_a_card_that_does_not_fit(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    learner = student()
    says = [look(0, 2, 2), answer("A")]
    run = played(tmp_path / "one", question(shared_videos["sound"]), Speaker(learner, says))
    other = played(
        tmp_path / "two", question(shared_videos["sound"]), Speaker(learner, says), EpisodeConfig(wire="omniagent")
    )
    (card,) = (tmp_path / "two").glob("*/card.json")
    with pytest.raises(NoRows, match="not_rebuilt 1"):
        make_rows([Source(run.file, card)], learner, EVERYTHING)
    with pytest.raises(AprError, match="cannot be read"):
        make_rows([Source(run.file, tmp_path / "two")], learner, EVERYTHING)
    with pytest.raises(AprError, match="cannot read trajectories"):
        make_rows([Source(tmp_path / "none.jsonl", run.card)], learner, EVERYTHING)
    line = run.file.read_text()
    run.file.write_text(line.replace(f'"av":"{run.trajectory.versions["av"]}"', '"av":"1.0"'))
    rows = make_rows([Source(run.file, run.card), Source(other.file, card)], learner, EVERYTHING)
    assert len(rows) == 2 and "decoded with PyAV 1.0" in rows.dropped[0].detail
    wanted = EVERYTHING.model_copy(update={"other_versions": True})
    assert len(make_rows([Source(run.file, run.card)], learner, wanted)) == 2
    run.file.write_text(line.replace('"version":2', '"version":9'))
    with pytest.raises(AprError, match="newer than 2"):
        make_rows([Source(run.file, run.card)], learner, EVERYTHING)


def test_parts_and_shares_of_made_rows(student: Students, make_video: Any, tmp_path: Path) -> None:
    learner = student("qwen2_5_vl")
    for number in range(6):
        path = make_video(f"{number}.mp4", frames=10 + number)
        for source, repeats in (("mine", 1), ("theirs", 2)):
            for repeat in range(repeats):
                asked = question(path, doc_id=str(number), repeat=repeat, text=f"what {source} {repeat}?")
                played(tmp_path, asked, Speaker(learner, [look(0, 1, 2), answer("A")]), name=source)
    sources = [Source(tmp_path / f"{name}.jsonl", tmp_path, name) for name in ("mine", "theirs")]
    wanted = RowSettings(validation=0.3, seed=1, balance="equal")
    rows = make_rows(sources, learner, wanted)
    counts = Counter((row.source, row.split) for row in rows.rows)
    assert counts["mine", "train"] == counts["theirs", "train"] > 0
    assert counts["theirs", "validation"] == 2 * counts["mine", "validation"] > 0
    parts = {part: {row.videos for row in rows.of(part)} for part in ("train", "validation")}  # type: ignore[arg-type]
    assert not parts["train"] & parts["validation"] and reasons(rows) == {"balance": counts["mine", "train"]}
    turned = make_rows(sources[::-1], learner, wanted)
    assert sorted(row.content + row.split for row in turned.rows) == sorted(
        row.content + row.split for row in rows.rows
    )


def test_rows_with_other_media_are_not_equal(student: Students, make_video: Any, tmp_path: Path) -> None:
    """The same words about two films, and about the same film in two sizes."""
    learner = student("qwen2_5_vl")
    films = [make_video(f"{number}.mp4", frames=20, gop=5 + number) for number in range(2)]
    says = [look(0, 1, 2), answer("A")]
    budgets = [Budget(frame_pixels=24 * 784), Budget(frame_pixels=24 * 784), Budget(frame_pixels=20 * 784)]
    for number, film in enumerate([films[0], films[1], films[0], films[0]]):
        config = EpisodeConfig(budget=budgets[number % 3])
        played(tmp_path, question(film, doc_id=str(number)), Speaker(learner, says), config)
    rows = make_rows([Source(tmp_path / "runs.jsonl", tmp_path)], learner, EVERYTHING)
    assert [(row.key[2], row.turn) for row in rows.rows] == [("0", 1), ("0", 2), ("1", 2), ("2", 2)]
    assert reasons(rows) == {"duplicate": 4}
