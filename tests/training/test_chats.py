"""Chats beside turns: the tokens of the rendered chat, odd texts, how many are taken, what is dropped and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

from row_making import Played, Speaker, played, question

from apr_plugin.errors import AprError
from apr_plugin.models.special_tokens import broken_up
from apr_plugin.training.chat import NotRead, read_chat
from apr_plugin.training.chats import LONGEST_LINE, ChatSource, chat_rows, target_ids
from apr_plugin.training.loading import RowCollator, RowLoader
from apr_plugin.training.making import RowSettings, Source, make_rows
from apr_plugin.training.rows import Drop, NoRows, Row, RowError, RowSet, read_rows, write_rows
from apr_plugin.training.student import Student
from apr_plugin.training.targets import Reason

Students = Callable[..., Student]
EVERYTHING = RowSettings(validation=0.0)


def user(words: object) -> dict[str, object]:
    return {"role": "user", "content": words}


def said(words: object, **more: object) -> dict[str, object]:
    return {"role": "assistant", "content": words} | more


def system(words: object) -> dict[str, object]:
    return {"role": "system", "content": words}


def chat(*messages: object, **more: object) -> dict[str, object]:
    return {"messages": list(messages)} | more


def file_of(folder: Path, *lines: object, name: str = "chats.jsonl") -> Path:
    """A file of these lines: bytes and texts as they are, other values as JSON."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for line in lines:
            text = line if isinstance(line, str | bytes) else json.dumps(line, ensure_ascii=False)
            out.write((text if isinstance(text, bytes) else text.encode()) + b"\n")
    return path


def many(count: int, replies: int = 1) -> list[dict[str, object]]:
    return [
        chat(*(part for turn in range(replies) for part in (user(f"say {n} {turn}"), said(f"it is {n} {turn}"))))
        for n in range(count)
    ]


def made(path: Path, student: Student, settings: RowSettings = EVERYTHING) -> tuple[list[Row], list[Drop]]:
    return chat_rows(ChatSource(path), student, settings)


def reasons(drops: Sequence[Drop]) -> Counter[str]:
    return Counter(str(drop.reason) for drop in drops)


def rendered(student: Student, messages: Sequence[dict[str, object]]) -> list[int]:
    """What the checkpoint's own processor makes of a whole chat, without the line break after its last message."""
    listed = [{"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    found: Any = student.encoder.processor.apply_chat_template([listed], tokenize=True, return_dict=True)
    ids = [int(token) for token in found["input_ids"][0]]
    return ids[: len(ids) - ids[::-1].index(student.end)]


@pytest.fixture(scope="module")
def turns(student: Students, shared_videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Nine questions of three turns each."""
    folder, learner = tmp_path_factory.mktemp("turns"), student()
    for number in range(9):
        asked = question(shared_videos["silent"], doc_id=str(number), text=f"what is {number}?")
        run = played(folder, asked, Speaker(learner, [look(0, 1, 1), look(1, 2, 1), answer("A")]))
    return run


def mixed(turns: Played, student: Student, path: Path, told: list[int] | None = None, **more: Any) -> RowSet:
    return make_rows(
        [Source(turns.file, turns.card)],
        student,
        RowSettings(**({"validation": 0.0} | more)),
        chats=ChatSource(path),
        told_chats=None if told is None else told.append,
    )


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen2_5_vl", "qwen3_vl"])
def test_a_row_has_the_tokens_of_the_rendered_chat(student: Students, tmp_path: Path, name: str) -> None:
    learner = student(name)
    messages = [
        system("Be brief."),
        user("What is 2 + 2?"),
        said("4."),
        user("Und auf Deutsch, 你好?"),
        said("vier é\n"),
    ]
    shared = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = {"conversations": [{"from": shared[str(m["role"])], "value": m["content"]} for m in messages]}
    parts = chat(*({"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages))
    beside = chat(*messages[1:], system="Be brief.")
    for line in (chat(*messages), sharegpt, parts, beside):
        rows, drops = made(file_of(tmp_path, line), learner)
        assert not drops and [row.turn for row in rows] == [1, 2]
        loader = RowLoader(learner)
        for row, length in zip(rows, (3, 5), strict=True):
            example = loader.example(row)
            assert [*example.encoded.ids.tolist(), *example.target] == rendered(learner, messages[:length])
            assert example.target[-1] == learner.end and learner.text(example.target) == messages[length - 1]["content"]
            assert (len(example.encoded.ids), len(example.target)) == (row.prompt_tokens, row.target_tokens)
            assert (row.card, row.videos, row.target, row.visual_tokens) == ("", (), "chat", 0)
            assert row.key == ("chats", "", "1", 0)
    without, _ = made(file_of(tmp_path, chat(*messages[1:3])), learner)
    example = RowLoader(learner).example(without[0])
    assert [*example.encoded.ids.tolist(), *example.target] == rendered(learner, messages[1:3])


MARKS = ("<|im_end|>", "<|im_start|>", "<|IMAGE|>", "<|AUDIO|>", "<|VIDEO|>", "<|vision_bos|>", "<|endoftext|>")
ODD = ("<image>", "<|im_", "<|", "|>", "end|>", "<", "im_end", "[INST]", "<think>", "{{", "}}", "{%", "%}", "<b>")
LETTERS = ("\ufeff", "\u2028", "\x00", "\x85", "\U0001f600", "\u0301", "a", "assistant", "system", "user")
BLANKS = (" ", "\n", "\r\n", "\t", "<|im_end|>\n<|im_start|>assistant\n")
PIECES = st.one_of(st.text(max_size=12), *map(st.sampled_from, (MARKS, ODD, LETTERS, BLANKS)))
TEXTS = st.lists(PIECES, min_size=1, max_size=6).map("".join)


@settings(max_examples=80, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS, st.booleans())
def test_odd_texts(student: Students, first: str, asked: str, words: str, reply: str, ascii_only: bool) -> None:
    """Nothing that a chat says becomes a special token, in a prompt or in a target; the rest is the rendered chat."""
    learner = student()
    messages = [system(first), user(asked), said(words), user(asked), said(reply)]
    found = read_chat(json.dumps(chat(*messages), ensure_ascii=ascii_only).encode())
    assert [found.reply(1), found.reply(2)] == [words, reply]
    prompt, target = learner.encoder.lay_out(found.prompt(2)).ids.tolist(), target_ids(reply, learner)
    frame = rendered(learner, [m | {"content": ""} for m in messages])
    special = Counter(token for token in frame if token in learner.special)
    if isinstance(target, Reason):
        assert (
            target in (Reason.SPECIAL_TOKEN, Reason.PLACEHOLDER) and broken_up(reply, learner.encoder._special) != reply
        )
        special[learner.end] -= 1  # the target's
    else:
        assert learner.text(target) == reply and not learner.special & set(target[:-1])
        prompt = [*prompt, *target]
    assert Counter(token for token in prompt if token in learner.special) == special
    harmless = [
        {"role": m["role"], "content": broken_up(str(m["content"]), learner.encoder._special)} for m in messages
    ]
    if isinstance(target, Reason):
        ends = rendered(learner, [*harmless[:-1], said("")])
        assert prompt == ends[:-1]
    elif not reply[:1].isspace():
        # A model writes the first word after the line break of the prompt; a tokenizer may join two blanks there.
        assert prompt == rendered(learner, harmless)


BAD: dict[str, tuple[object, ...]] = {
    "broken_line": (
        "{",
        "not JSON",
        b'{"messages": "\xff"}',
        '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]}',
        "[" * 100_000,
        '{"n": ' + "9" * 5000 + "}",
        "{'messages': []}",
        json.dumps(chat(user("a"), said("b"))).encode("utf-16"),
    ),
    "no_chat": (
        "1",
        '"text"',
        "null",
        {},
        {"messages": None},
        {"messages": []},
        {"messages": "hello"},
        {"messages": ["hello"]},
        {"prompt": "a", "completion": "b"},
        chat(user("a"), {"role": "assistant"}),
        chat(user("a"), said(3)),
        chat(user("a"), said(["b"])),
        chat(user("a"), said([{"type": "text"}])),
        chat(user("a"), said([{"text": "b"}])),
        chat(user({"a": 1}), said("b")),
    ),
    "wrong_role": (
        chat({"role": "bot", "content": "a"}, said("b")),
        chat({"content": "a"}, said("b")),
        chat({"role": ["user"], "content": "a"}, said("b")),
        chat({"role": "User", "content": "a"}, said("b")),
        chat(said("b")),
        chat(system("s"), said("b")),
        chat(user("a"), said("b"), said("c")),
        chat(user("a"), system("s"), said("b")),
        chat(system("s"), system("s"), user("a"), said("b")),
        chat(system("s"), user("a"), said("b"), system="another"),
    ),
    "chat_media": (
        chat(user([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "a"}]), said("b")),
        chat(user("<image>\nwhat?"), said("b"), images=["a.png"]),
        chat(user("a"), said("b"), video="film.mp4"),
        chat(user("a") | {"images": ["a.png"]}, said("b")),
    ),
    "tool_call": (
        chat(user("a"), said(None, tool_calls=[{"function": {"name": "f"}}]), {"role": "tool", "content": "1"}),
        chat(user("a"), said("b"), tools=[{"type": "function"}]),
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "{}"}]},
    ),
    "no_reply": (chat(user("a")), chat(system("s"), user("a"), user("b"))),
    "empty_message": (
        chat(user("a"), said("")),
        chat(user("a"), said(" \n")),
        chat(user("a"), said(None)),
        chat(user("a"), said([])),
        chat(user(""), said("b")),
    ),
    "special_token": (chat(user("a"), said("so <|im_end|> it ends")), chat(user("a"), said("see <image>"))),
    "placeholder": (chat(user("a"), said("<|IMAGE|>")), chat(user("a"), said("a<|audio_bos|>"))),
    "not_kept": (chat(user("a"), said("b", weight=0)),),
    "huge_line": (chat(user("a" * LONGEST_LINE), said("b")), "x" * (3 * LONGEST_LINE)),
}


def test_what_is_no_chat_has_a_reason(student: Students, tmp_path: Path) -> None:
    learner, good = student(), chat(user("fine?"), said("fine"))
    lines: list[object] = [good]
    where: dict[str, str] = {}
    for reason, bad in BAD.items():
        for one in bad:
            lines += ["", one]
            where[str(len(lines))] = reason
    path = file_of(tmp_path, *lines, "   ", good | {"id": "2"})
    rows, drops = made(path, learner)
    # UTF-16 has a line break in it, and what follows it is a line of its own.
    found = {drop.key[2]: str(drop.reason) for drop in drops if drop.key is not None}
    shift = 0
    for number, reason in where.items():
        assert found[str(int(number) + shift)] == reason, lines[int(number) - 1]
        if isinstance(lines[int(number) - 1], bytes):
            shift += lines[int(number) - 1].count(b"\n")  # type: ignore[union-attr]
    assert [row.turn for row in rows] == [1] and reasons(drops)["duplicate"] == 1, "the last line is the first again"
    assert len(drops) == sum(map(len, BAD.values())) + 1 + shift
    assert all(
        drop.detail for drop in drops if str(drop.reason) in ("broken_line", "no_chat", "wrong_role", "tool_call")
    )
    (row,) = rows
    assert path.read_bytes()[row.start :].startswith(b'{"messages"')


def test_a_byte_order_mark_and_windows_line_ends(student: Students, tmp_path: Path) -> None:
    learner = student()
    lines = [json.dumps(one) for one in many(3)]
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # no line end after the last one
    rows, drops = made(path, learner)
    assert not drops and [row.key[2] for row in rows] == ["1", "2", "3"]
    for number, row in enumerate(rows):
        assert learner.text(RowLoader(learner).example(row).target) == f"it is {number} 0"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps(many(2), indent=1), "not one array"),
        (b"\xef\xbb\xbf  " + json.dumps(many(2)).encode(), "not one array"),
        ("", "no chat became a row to train on: nothing was dropped"),
        ("{}\n{\n", "no chat became a row to train on: no_chat 1, broken_line 1"),
        (b"PAR1\x15\x04\x15\xff", "broken_line 1"),
        (None, "cannot read chats: No such file"),
        ("folder", "cannot read chats: it is a folder"),
    ],
    ids=["array", "array after a mark", "empty", "all bad", "binary", "missing", "folder"],
)
def test_files_that_are_none(
    turns: Played, student: Students, tmp_path: Path, content: str | bytes | None, words: str
) -> None:
    path = tmp_path / "chats.jsonl"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RowError, match=words):
        mixed(turns, student(), path)


def test_the_share_of_all_train_rows(turns: Played, student: Students, tmp_path: Path) -> None:
    """27 rows of turns; chats are drawn by the seed and their content, not by their place in the file."""
    learner, lines = student(), many(60)
    path, back = file_of(tmp_path, *lines), file_of(tmp_path, *reversed(lines), name="back.jsonl")
    alone = make_rows([Source(turns.file, turns.card)], learner, EVERYTHING)
    assert len(alone) == 27

    def taken(rows: RowSet) -> set[str]:
        return {row.content for row in rows.rows if row.target == "chat"}

    chosen = {}
    for share, count in ((0.1, 3), (0.25, 9), (0.5, 27), (0.001, 1)):
        told: list[int] = []
        rows = mixed(turns, learner, path, told, chat_share=share)
        assert rows.rows[:27] == alone.rows, "the rows of turns are the same as without chats"
        assert len(rows) == 27 + count and told == list(range(1, count + 1))
        assert rows.about["chats"]["wanted"] == rows.about["chats"]["rows"] == {"train": count, "validation": 0}
        assert "notes" not in rows.about and rows.counts()["chats"] == {"balance": {"dropped": 60 - count, "turns": 0}}
        assert f"balance {60 - count}" in rows.told()
        targets = [row.target_tokens for row in rows.rows]
        assert rows.about["chats"]["share_of_target_tokens"] == round(sum(targets[27:]) / sum(targets), 4)
        chosen[share] = taken(rows)
        assert taken(mixed(turns, learner, back, chat_share=share)) == chosen[share]
    assert chosen[0.001] < chosen[0.1] < chosen[0.25] < chosen[0.5]
    assert taken(mixed(turns, learner, path, seed=1)) != chosen[0.1]


def test_too_few_chats_are_said(turns: Played, student: Students, tmp_path: Path) -> None:
    rows = mixed(turns, student(), file_of(tmp_path, *many(2)), chat_share=0.5)
    assert len(rows) == 29
    (note,) = rows.about["notes"]
    assert "it gave 2 of the 27 train rows that a share of 0.5 needs; chats are 6.9% of the train rows" in note


def test_chats_do_not_stand_in_for_turns(student: Students, shared_videos: dict[str, Path], tmp_path: Path) -> None:
    run = played(tmp_path, question(shared_videos["silent"]), Speaker(student(), ["no JSON"]))
    with pytest.raises(NoRows, match="nothing to train on"):
        mixed(run, student(), file_of(tmp_path, *many(5)))


def test_a_chat_is_in_one_part(student: Students, tmp_path: Path) -> None:
    learner, lines = student(), many(120, replies=2)
    half = RowSettings(validation=0.3)
    rows, _ = made(file_of(tmp_path, *lines), learner, half)
    parts: dict[str, set[str]] = {}
    for row in rows:
        parts.setdefault(row.digest, set()).add(row.split)
    assert len(parts) == 120 and all(len(part) == 1 for part in parts.values())
    share = sum(part == {"validation"} for part in parts.values()) / 120
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 120) ** 0.5
    again, _ = made(file_of(tmp_path, *reversed(lines)), learner, half)
    assert {row.digest: row.split for row in again} == {row.digest: row.split for row in rows}
    other, _ = made(file_of(tmp_path, *lines), learner, RowSettings(validation=0.3, seed=1))
    assert {row.digest: row.split for row in other} != {row.digest: row.split for row in rows}


def test_validation_rows_have_the_share_too(student: Students, shared_videos: dict[str, Path], tmp_path: Path) -> None:
    learner = student()
    for number, film in enumerate(("silent", "sound")):
        asked = question(shared_videos[film], doc_id=str(number))
        run = played(tmp_path, asked, Speaker(learner, [*(look(0, n, 1) for n in range(1, 6)), answer("A")]))
    alone = make_rows([Source(run.file, run.card)], learner, RowSettings(validation=0.5))
    rows = mixed(run, learner, file_of(tmp_path, *many(80)), validation=0.5, chat_share=0.5)
    for part in ("train", "validation"):
        kinds = Counter(row.target == "chat" for row in rows.of(part))  # type: ignore[arg-type]
        assert kinds[False] == kinds[True] == len(alone.of(part)) > 1  # type: ignore[arg-type]


def test_which_replies_are_targets(student: Students, tmp_path: Path) -> None:
    learner = student()
    path = file_of(
        tmp_path,
        chat(user("a"), said("first"), user("b"), said("second", weight=0), user("c"), said("third"), user("bye")),
        chat(user("a"), said("<|im_end|>"), user("b"), said(""), user("c"), said("last")),
    )
    rows, drops = made(path, learner)
    assert [(row.key[2], row.turn) for row in rows] == [("1", 1), ("1", 3), ("2", 3)]
    assert {(drop.key[2], drop.turn, str(drop.reason)) for drop in drops if drop.key is not None} == {
        ("1", 2, "not_kept"),
        ("2", 1, "special_token"),
        ("2", 2, "empty_message"),
    }
    prompt, _ = RowLoader(learner).prompt(rows[-1])
    assert [m.text for m in prompt.messages] == ["a", "<|im_end|>", "b", "", "c"], "they stay in later prompts"
    last, drops = made(path, learner, RowSettings(validation=0.0, replies="last"))
    assert [(row.key[2], row.turn) for row in last] == [("1", 3), ("2", 3)] and reasons(drops) == {"not_kept": 4}
    assert {row.content for row in last} < {row.content for row in rows}


def test_equal_rows(student: Students, tmp_path: Path) -> None:
    """Chats that begin alike have equal first rows; equal lines are in the same part."""
    learner = student()
    begin = (user("a"), said("b"))
    path = file_of(
        tmp_path, chat(*begin), chat(*begin, user("c"), said("d")), chat(*begin), chat(*begin, user("c"), said("e"))
    )
    rows, drops = made(path, learner)
    assert len(rows) == 3 and reasons(drops) == {"duplicate": 3} and len({row.content for row in rows}) == 3
    every, drops = made(path, learner, RowSettings(validation=0.0, deduplicate=False))
    assert len(every) == 6 and not drops


def test_too_long_chats(student: Students, tmp_path: Path) -> None:
    learner = student()
    path = file_of(tmp_path, chat(*(m for n in range(5) for m in (user(f"{n} " * 20), said(f"so {n} " * 10)))))
    sizes = [row.tokens for row in made(path, learner)[0]]
    assert sizes == sorted(set(sizes))
    # The third just does not fit, but its prompt does; the prompt of the fourth is too long, and so are all later ones.
    rows, drops = made(path, student(context_tokens=sizes[2] - 1))
    assert [row.turn for row in rows] == [1, 2]
    assert [(drop.turn, drop.tokens, drop.turns) for drop in drops] == [(3, sizes[2], 1), (4, sizes[3], 2)]
    assert all(drop.reason is Reason.TOO_LONG for drop in drops)
    assert f"the longest row had {sizes[3]} tokens" in RowSet([], drops).told()


def test_a_template_that_opens_a_thought(student: Students, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = file_of(
        tmp_path, chat(user("a"), said("plain")), chat(user("b"), said("<think>\nhm\n</think>\n\nwith a thought"))
    )
    learner = student("qwen3_5")
    rows, drops = made(path, learner)
    assert reasons(drops) == {"opened_thought": 1}
    assert learner.text(RowLoader(learner).example(rows[0]).target) == "hm\n</think>\n\nwith a thought"
    quiet = Student.from_pretrained(str(tiny("qwen3_5")), template={"enable_thinking": False})
    rows, drops = made(path, quiet)
    assert not drops and quiet.text(RowLoader(quiet).example(rows[0]).target) == "plain"


def test_a_template_that_refuses(student: Students, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = student("qwen3_vl")
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    monkeypatch.setattr(learner.encoder, "chat_template", strict + str(learner.encoder.chat_template))
    path = file_of(tmp_path, chat(system("s"), user("a"), said("b")), chat(user("a"), said("b")))
    rows, drops = made(path, learner)
    assert [row.key[2] for row in rows] == ["2"]
    assert [(drop.reason, drop.detail) for drop in drops] == [(Reason.TEMPLATE, "no system role")]


def test_the_file_of_rows(turns: Played, student: Students, tmp_path: Path) -> None:
    """Chats and turns in one file and in one batch; what changed since is noticed."""
    learner = student()
    path = file_of(tmp_path / "data", *many(9, replies=2), "{")
    rows = mixed(turns, learner, path, chat_share=0.4)
    file = tmp_path / "rows" / "rows.jsonl"
    write_rows(file, rows)
    back = read_rows(file)
    assert Counter(row.target for row in back.rows) == {"canonical": 27, "chat": 18}
    assert {row.card for row in back.rows if row.target == "chat"} == {""}
    assert back.about["dropped"]["chats"] == {"broken_line": {"dropped": 1, "turns": 0}}
    collate, few = RowCollator(RowLoader(learner)), [back.rows[1], back.rows[-1], back.rows[-2]]
    batch = collate([row.model_dump(mode="json") for row in few])
    assert batch["labels"].ne(-100).sum(1).tolist() == [row.target_tokens for row in few]
    assert batch["attention_mask"].sum(1).tolist() == [row.tokens for row in few]
    text_only = collate([back.rows[-1]])
    assert text_only.keys() == {"input_ids", "labels", "position_ids"}
    with pytest.raises(RowError, match=r"the rows were made for another checkpoint|can't learn the reply"):
        RowLoader(student("qwen3_5")).example(back.rows[-1])
    path.write_bytes(path.read_bytes().replace(b"it is 8", b"is it 8"))
    changed = [row for row in back.rows if row.target == "chat" and row.key[2] == "9"]
    with pytest.raises(RowError, match="the line has changed since the rows were made"):
        RowLoader(learner).example(changed[0])
    path.unlink()
    with pytest.raises(Exception, match="cannot read"):
        RowLoader(learner).example(changed[0])


@pytest.mark.slow
def test_a_student_is_trained_on_turns_and_chats(
    turns: Played, student: Students, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two steps of the real trainer on the file of rows, and a chat that has changed since."""
    pytest.importorskip("trl")
    from sft_making import recipe_of

    from apr_plugin.training.sft.recipe import Recipe
    from apr_plugin.training.sft.running import run_sft

    path = file_of(tmp_path, *many(9))
    rows = mixed(turns, student(), path, chat_share=0.25)
    kinds = Counter(row.target for row in rows.rows)
    assert kinds == {"canonical": 27, "chat": 9}
    write_rows(tmp_path / "rows.jsonl", rows)
    steps = {"max_steps": 2, "save_strategy": "no"}
    recipe = Recipe.model_validate(
        recipe_of(tiny("qwen2_5_omni"), tmp_path / "rows.jsonl", rows_per_step=12, trainer=steps)
    )
    final = run_sft(recipe, tmp_path / "out")
    assert (final / "model.safetensors").is_file()
    path.write_bytes(path.read_bytes().replace(b"it is 8", b"is it 8"))
    with pytest.raises(AprError, match="the line has changed since the rows were made"):
        run_sft(recipe, tmp_path / "again")


def test_what_was_not_drawn_is_one_line_of_what_was_dropped(turns: Played, student: Students, tmp_path: Path) -> None:
    rows = mixed(turns, student(), file_of(tmp_path, *many(2000)))
    file = tmp_path / "rows.jsonl"
    write_rows(file, rows)
    lines = [json.loads(line) for line in (tmp_path / "rows.dropped.jsonl").read_text().splitlines()]
    assert [(line["reason"], line["many"]) for line in lines] == [("balance", 1997)]
    assert read_rows(file).about["dropped"]["chats"] == {"balance": {"dropped": 1997, "turns": 0}}


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["messages", "conversations", "role", "from", "content", "value", "type", "text", "system"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_chat_or_has_a_reason(value: object) -> None:
    try:
        found = read_chat(json.dumps({"messages": value} if isinstance(value, list) else value).encode())
    except NotRead as error:
        assert isinstance(error.reason, Reason) and str(error)
    else:
        assert found.replies
