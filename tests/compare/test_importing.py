"""Runs that were made elsewhere: what is read of them, what is said to be missing, and what they are compared as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from foreign_logs import CLIP, LOOKS, as_zip, assistant, call, lines, log, result, rows, sample, text, tooled
from making import answered, look, store_run, trajectory

from apr_plugin.cli.app import main
from apr_plugin.compare.joined import arm_of_run, join
from apr_plugin.compare.running import matched_frames, opened
from apr_plugin.compare.summary import summarise
from apr_plugin.errors import AprError, WrongUsage
from apr_plugin.loop.action import Answer, GetFrames
from apr_plugin.loop.card import Card, CardError
from apr_plugin.loop.feedback import ErrorCode
from apr_plugin.loop.imported import Figure
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.report.card_files import card_data
from apr_plugin.report.card_page import page
from apr_plugin.report.inspect_log import log_data
from apr_plugin.report.payload import details
from apr_plugin.report.payload import row as row_of
from apr_plugin.report.tables import markdown
from apr_plugin.runs.foreign.importing import import_run
from apr_plugin.runs.opened import Run, open_run
from apr_plugin.scoring.truth import Evidence, Truth


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_rows_of_omniagent_say_what_was_shown(tmp_path: Path) -> None:
    made = [
        *rows("film"),
        *rows("clip", [*LOOKS[:1], CLIP], "A", reward=0.0),
        *rows("spans", LOOKS[:2], "[[1.0, 4.0]]", reward=0.6, question_type="TR_x", answer=[[1.0, 5.0]], options=None),
        *[row for row in rows("gap") if row["step"] in (2, 4)],
    ]
    done = import_run(lines(tmp_path / "rows.jsonl", made), tmp_path / "out")
    assert done.tasks == {"omniagent": 4} and done.left == {} and done.scored == 4
    run = open_run(tmp_path / "out")
    film, clip, spans, gap = run
    first, second, third, last = film.turns
    assert first.shown is not None and first.shown.times_s == (0.0, 5.0) and film.frames == 2
    assert second.shown is not None and (second.shown.kind, second.shown.audio_s) == ("audio", 3.0)
    assert third.error is not None and third.error.code is ErrorCode.OUT_OF_RANGE and third.shown is None
    assert isinstance(third.action, GetFrames) and isinstance(last.action, Answer) and last.confidence == 1.0
    assert film.answer == "B" and film.answer_valid and film.stop_reason is StopReason.ANSWERED
    assert film.video_durations_s == (60.0,) and film.turns_allowed == 5 and film.question.videos[0].path == "film.mp4"
    assert film.imported is not None and film.imported.place == "rows.jsonl, line 1 to line 4"
    assert film.has(Figure.FRAMES) and not film.has(Figure.VISUAL_TOKENS) and not film.has(Figure.SEED)
    assert not clip.has(Figure.FRAMES) and not clip.has(Figure.AUDIO), "a clip's frames and sound are not in its rows"
    assert [len(one.turns) for one in (spans, gap)] == [3, 4]
    assert spans.answer == "[[1.0, 4.0]]" and run.scores[spans.question.key].value == 0.6
    assert run.truths["omniagent", "", "q-film"].answer == "B"
    assert run.truths["omniagent", "", "q-spans"].spans() == [(1.0, 5.0)]
    assert run.card["imported"]["not_recorded"]["frames"] == 1 and run.card["policy"] == {"name": "imported:omniagent"}
    assert [problem for problem in run.problems if "card" in problem] == []


def test_what_was_not_recorded_is_absent_and_not_zero(tmp_path: Path) -> None:
    made = [*rows("film"), *rows("clip", [CLIP])]
    import_run(lines(tmp_path / "rows.jsonl", made), tmp_path / "out")
    run = open_run(tmp_path / "out")
    film, clip = run.rows()
    assert (film["frames"], film["audio_s"], film["duration_s"]) == (2, 3.0, 60.0)
    for name in ("visual_tokens", "prompt_tokens", "seconds"):
        assert film[name] is None and clip[name] is None
    assert clip["frames"] is None and clip["audio_s"] is None
    turns = list(run.turn_rows())
    assert [turn["frames"] for turn in turns] == [2, 0, 0, 0, None, None] and turns[0]["model_s"] is None
    frame = run.frame()
    assert frame["frames"].isna().tolist() == [False, True] and frame["seconds"].isna().all()
    arm = opened("theirs", tmp_path / "out")
    assert arm.about["imported"] == "omniagent"
    assert any("visual tokens (2 of 2)" in note and "frames (1 of 2)" in note for note in arm.notes)
    with pytest.raises(AprError, match="no visual tokens"):
        matched_frames(arm)


def test_lines_that_cannot_be_read_are_counted_with_their_places(tmp_path: Path) -> None:
    odd = [
        *rows("whole"),
        "{broken",
        "[" * 100_000,
        {"traj_id": 7},
        rows("no output")[0] | {"output": None},
        rows("late")[3] | {"raw_input": []},
        *rows("essay", question_type="ESSAY"),
        *rows("endless", done="False"),
        *rows("whole")[:1],
    ]
    done = import_run(lines(tmp_path / "rows.jsonl", odd), tmp_path / "out")
    assert done.left == {"bad_record": 5, "missing_steps": 1, "unknown_kind": 1} and done.tasks == {"omniagent": 2}
    assert any(named.startswith("rows.jsonl, line 5: bad_record") for named in done.named)
    endless = open_run(tmp_path / "out")["omniagent", "", "q-endless", 0]
    assert endless.stop_reason is StopReason.ERROR and "before the episode did" in endless.stop_detail
    lines(tmp_path / "none.jsonl", ["{broken", {"a": 1}])
    with pytest.raises(AprError, match=r"nothing in it can be read as omniagent: none.jsonl, line 1: bad_record"):
        import_run(tmp_path / "none.jsonl", tmp_path / "none", format_name="omniagent")
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".*")), "nothing is left of it"


def test_the_same_import_twice_is_the_same(tmp_path: Path) -> None:
    source = lines(tmp_path / "rows.jsonl", rows("film"))
    out = tmp_path / "out"
    import_run(source, out)
    before = _tree(out)
    again = import_run(source, out)
    assert again.already and again.tasks == {"omniagent": 1} and _tree(out) == before
    import_run(source, out, force=True)
    assert _tree(out) == before
    other = lines(tmp_path / "more.jsonl", rows("other"))
    with pytest.raises(AprError, match="import of something else"):
        import_run(other, out)
    assert _tree(out) == before
    (tmp_path / ".out.importing").mkdir()  # what a killed import leaves
    (tmp_path / ".out.importing" / "half").write_text("x")
    import_run(other, out, force=True)
    assert [key[2] for key in open_run(out).keys] == ["q-other"] and "half" not in _tree(out)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(AprError, match="no import"):
        import_run(source, mine, force=True)
    assert (mine / "thesis.txt").read_text() == "x"


def _agent_sample() -> dict[str, Any]:
    thought = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "attachment://aa"}]
    wrote = [
        assistant(1, thought, call(1, "get_frames", start=0, end=50.0, num=4)),
        assistant(2, "", call(2, "get_frames", start=0.0, end=500.0, num=4)),
        assistant(3, "crop", call(3, "crop", path="/etc/passwd")),
        assistant(4, "", call(4, "submit", answer="red")),
    ]
    messages = [
        {"role": "user", "content": "What colour?"},
        wrote[0], result(1, "4 frames"), wrote[1], result(2, "", "past the end"), wrote[2], result(3, "ok"), wrote[3],
    ]  # fmt: skip
    asked = [{"role": "user", "content": [{"type": "video", "video": "/their/disk/film.mp4"}, text("What colour?")]}]
    made = sample("a", messages, input=asked, attachments={"aa": "I look."}, scores={"includes": {"value": "C"}})
    grader = {"event": "model", "output": {"choices": [{"message": assistant(99, "grade: C")}]}}
    made["events"] += [tooled(1), tooled(2), tooled(3), tooled(4), grader]
    return made


def test_logs_of_inspect(tmp_path: Path) -> None:
    choice = {"choices": ["one", "two"], "target": "B", "scores": {"choice": {"value": "I", "answer": "A"}}}
    said = [{"role": "user", "content": "Which?"}, assistant(1, "ANSWER: A")]
    samples = [
        _agent_sample(),
        sample("b", said, **choice),
        sample("b", said, epoch=2, **(choice | {"scores": {"choice": {"value": "C", "answer": "B"}}})),
        sample("c", [], error={"message": "ConnectionError: gone"}, scores={}),
        sample("d", [assistant(1, "I look.")], limit={"type": "token", "limit": 9}, scores={"includes": {"value": 0}}),
        {"id": None, "epoch": 1},
        "nothing",
    ]
    accuracy = {"scores": [{"name": "includes", "metrics": {"accuracy": {"name": "accuracy", "value": 0.5}}}]}
    (tmp_path / "one.json").write_text(json.dumps(log(samples, results=accuracy)))
    done = import_run(tmp_path / "one.json", tmp_path / "out")
    assert done.tasks == {"films": 5} and done.left == {"bad_record": 2} and done.scored == 4
    assert "one.json, sample 7: bad_record: it is no object" in done.named
    assert any("events alone" in note for note in done.notes)
    run = open_run(tmp_path / "out")
    agent = run["films", "", "a", 0]
    first, second, third, last = agent.turns
    assert (first.text, first.think, first.action) == ("I look.", "hm", GetFrames(start=0, end=50.0, num=4))
    assert first.usage.prompt_tokens == 40 and first.usage.cached_tokens == 30 and first.usage.completion_tokens == 5
    assert (first.model_s, first.media_s, agent.timings.total_s) == (0.25, 0.5, 2.0)
    assert second.error is not None and (second.error.code, second.error.message) == (
        ErrorCode.ELSEWHERE,
        "past the end",
    )
    assert third.action is None and json.loads(third.text.partition("\n")[2])["function"] == "crop"
    assert last.action == Answer(content="red") and agent.answer == "red"
    assert agent.question.videos[0].path == "film.mp4", "a foreign path is only a name"
    assert not agent.has(Figure.FRAMES) and agent.has(Figure.TOTAL_SECONDS) and agent.has(Figure.MODEL_SECONDS)
    scores = {key[2:]: score.value for key, score in run.scores.items()}
    assert scores == {("a", 0): 1.0, ("b", 0): 0.0, ("b", 1): 1.0, ("d", 0): 0.0}
    assert [run["films", "", "b", n].answer for n in (0, 1)] == ["A", "B"]
    assert run["films", "", "c", 0].stop_reason is StopReason.ERROR and run.failed == [("films", "", "c", 0)]
    assert run["films", "", "d", 0].stop_reason is StopReason.TOKENS
    assert run.metrics == {"films": {"accuracy,none": 0.5}} and run.card["policy"]["model"] == "mockllm/model"
    arm = opened("theirs", tmp_path / "out")
    assert {key[2:]: one.status for key, one in arm.outcomes.items()}["c", 0] == "failed", "it stays in the denominator"


@pytest.mark.parametrize("form", ["json", "deflate", "zstd", "killed"])
def test_every_form_of_log_gives_the_same(tmp_path: Path, form: str) -> None:
    if form == "zstd":
        pytest.importorskip("zstandard")
    data = log([_agent_sample()])
    if form == "json":
        (tmp_path / "one.json").write_text(json.dumps(data))
    else:
        header = "_journal/start.json" if form == "killed" else "header.json"
        data = {name: value for name, value in data.items() if form != "killed" or name != "status"}
        as_zip(tmp_path / "one.eval", data, zstd=form == "zstd", header=header)
    done = import_run(tmp_path, tmp_path / "out")
    (made,) = open_run(tmp_path / "out")
    assert made.answer == "red" and len(made.turns) == 4
    assert any("status is 'started'" in note for note in done.notes) == (form == "killed")


def test_several_scorers_need_a_choice(tmp_path: Path) -> None:
    given = {"includes": {"value": "C"}, "match": {"value": "I"}, "judge": {"value": {"clear": 0.5}}}
    (tmp_path / "one.json").write_text(json.dumps(log([sample("a", [assistant(1, "red")], scores=given)])))
    import_run(tmp_path / "one.json", tmp_path / "open")
    (score,) = open_run(tmp_path / "open").scores.values()
    assert score.value is None and dict(score.metrics) == {"includes": 1.0, "match": 0.0, "judge.clear": 0.5}
    import_run(tmp_path / "one.json", tmp_path / "match", scorer="match")
    (score,) = open_run(tmp_path / "match").scores.values()
    assert score.value == 0.0


def test_hostile_logs_cost_only_themselves(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    bad = [
        sample("deep", [assistant(1, deep)]),
        sample("long", [assistant(1, "y" * 1_100_000)]),
        sample("odd", [assistant(1, "\ud800\x1b[31m\0")], scores={"s": {"value": 1e999}}, total_time=-1),
        sample("calls", [assistant(1, "", {"id": [], "function": {}, "arguments": 3})], target={"a": 1}),
        sample("/../x", [assistant(1, "z")], metadata={"apr": {"stop_reason": "won", "question": 3}}),
    ]
    file = tmp_path / "one.eval"
    as_zip(file, log(bad))
    done = import_run(file, tmp_path / "out")
    assert done.tasks == {"films": 4} and done.left == {"bad_record": 1}
    run = open_run(tmp_path / "out")
    assert len(run["films", "", "long", 0].turns[0].text) < 1_010_000 and not run["films", "", "odd", 0].has(
        Figure.TOTAL_SECONDS
    )
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(AprError, match="cannot read this log"):
        import_run(file, tmp_path / "cut")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(AprError, match="its format is not known"):
        import_run(tmp_path / "other.json", tmp_path / "new")
    with pytest.raises(WrongUsage, match="there are omniagent, inspect"):
        import_run(tmp_path / "other.json", tmp_path / "new", format_name="eval")
    logs = tmp_path / "two"
    logs.mkdir()
    for number, model in enumerate(("a", "b")):
        told = log([sample("a", [assistant(1, "z")])])
        told["eval"]["model"] = model
        (logs / f"{number}.json").write_text(json.dumps(told))
    with pytest.raises(AprError, match="a run is of one model"):
        import_run(logs, tmp_path / "new")


def _ours(out: Path) -> Run:
    made = [
        trajectory(0, [look(0, 50), look(10, 20, kind="audio"), answered("A")], "A"),
        trajectory(1, [look(0, 9)], None, stop_reason=StopReason.TURNS),
        trajectory(2, [], None, stop_reason=StopReason.MEDIA_UNREADABLE, stop_detail="no such file"),
    ]
    return store_run(out, made, {"0": 1.0, "1": 0.0}, {"0": Truth("A", (Evidence(10.0, 20.0),))})


def test_our_own_log_comes_back_as_it_was(tmp_path: Path) -> None:
    run = _ours(tmp_path / "run")
    (data,) = log_data(run)
    (tmp_path / "log.json").write_text(json.dumps(data))
    import_run(tmp_path / "log.json", tmp_path / "out")
    back = open_run(tmp_path / "out")
    assert back.keys == run.keys
    for before, after in zip(run, back, strict=True):
        same = before.model_dump(exclude={"config_hash", "imported"})
        assert after.model_dump(exclude={"config_hash", "imported"}) == same
        assert after.imported is not None and after.imported.absent == ()
    assert {key: score.value for key, score in back.scores.items()} == {
        key: score.value for key, score in run.scores.items()
    }
    assert back.truths == run.truths
    one, other = arm_of_run("ours", run), arm_of_run("theirs", back)
    comparison = join([one, other])
    assert len(comparison.keys) == 3 and not any("version" in note for note in comparison.notes)


def test_an_imported_run_can_be_exported_and_imported_again(tmp_path: Path) -> None:
    import_run(lines(tmp_path / "rows.jsonl", rows("clip", [CLIP])), tmp_path / "first")
    (before,) = open_run(tmp_path / "first")
    (data,) = log_data(open_run(tmp_path / "first"))
    (tmp_path / "log.json").write_text(json.dumps(data))
    import_run(tmp_path / "log.json", tmp_path / "second")
    (after,) = open_run(tmp_path / "second")
    assert before.imported is not None and after.imported is not None
    assert after.imported.absent == before.imported.absent and Figure.FRAMES in after.imported.absent
    assert (after.turns, after.question, after.answer) == (before.turns, before.question, before.answer)


def test_questions_take_the_names_of_another_run(tmp_path: Path) -> None:
    run = _ours(tmp_path / "run")
    choices = {"choices": ["Blue", "red"], "target": "B", "scores": {"choice": {"value": "C", "answer": "B"}}}
    video = [{"type": "video", "video": "x/film0.mp4"}]
    asked = [{"role": "user", "content": [*video, text("what  happens in 0?")]}]
    samples = [sample("q1", [assistant(1, "B")], input=asked, **choices), sample("q2", [assistant(1, "B")], **choices)]
    (tmp_path / "one.json").write_text(json.dumps(log(samples)))
    done = import_run(tmp_path / "one.json", tmp_path / "out", like=tmp_path / "run")
    assert [note for note in done.notes if "1 questions are not among" in note]
    theirs = open_run(tmp_path / "out")
    assert [key[:3] for key in theirs.keys] == [run.keys[0][:3], ("films", "", "q2")]
    comparison = join([arm_of_run("ours", run), arm_of_run("theirs", theirs)])
    assert comparison.keys == [run.keys[0]] and theirs.scores[run.keys[0]].value == 1.0


def _beside(tmp_path: Path) -> tuple[Run, Run]:
    """A run of ours, and one of OmniAgent on the same question."""
    run = _ours(tmp_path / "run")
    asked = {
        "question": "What happens in 0?",
        "options": ["A. red", "B. blue"],
        "answer": "A",
        "duration_seconds": None,
    }
    made = [row | {"extra_info": row["extra_info"] | {"video": "film0.mp4"}} for row in rows("x", reply="A", **asked)]
    import_run(lines(tmp_path / "rows.jsonl", made), tmp_path / "theirs", like=tmp_path / "run")
    return run, open_run(tmp_path / "theirs")


def test_tables_pages_and_cards_say_not_recorded(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    run, theirs = _beside(tmp_path)
    comparison = join([arm_of_run("ours", run), arm_of_run("theirs", theirs)])
    summary = summarise(comparison)
    costs = next(line for line in markdown(summary).partition("## Cost")[2].splitlines() if line.startswith("| theirs"))
    names = next(line for line in markdown(summary).partition("## Cost")[2].splitlines() if line.startswith("| arm"))
    told = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (names, costs)), strict=True))
    assert told["turns"] == "4" and told["frames"] == "2"
    assert {told[name] for name in ("visual tok.", "prompt tok.", "written tok.", "s")} == {"not recorded"}
    assert "visual tokens (1 of 1)" in markdown(summary)
    assert summary["aiming"].keys() == {"ours", "theirs"}, "frames and sound of OmniAgent's looks are known"
    ((_, detail),) = details(comparison)
    ours, other = detail["arms"]
    assert ours["absent"] == [] and "visual_tokens" in other["absent"] and other["seconds"] is None
    assert other["looks"][0]["tokens"] is None and other["looks"][0]["hit"] is False
    assert row_of(detail)[-1][1][5:7] == [2, None]
    card = card_data(theirs)
    assert card["commands"] == [] and card["harness"]["name"] == "OmniAgent" and card["time"]["model_s"] is None
    assert "not recorded (model not recorded, media not recorded)" in page(card)
    with pytest.raises(CardError, match="made elsewhere"):
        Card.read(theirs.folder)


def test_looks_that_are_not_known_are_not_called_misses(tmp_path: Path) -> None:
    run = _ours(tmp_path / "run")
    wrote = [assistant(1, "", call(1, "get_frames", start=0.0, end=9.0, num=2)), assistant(2, "A")]
    choices = {"choices": ["red", "blue"], "target": "A", "input": "What happens in 0?"}
    made = sample("a", [wrote[0], result(1, "frames"), wrote[1]], scores={"choice": {"value": "C"}}, **choices)
    (tmp_path / "one.json").write_text(json.dumps(log([made])))
    import_run(tmp_path / "one.json", tmp_path / "theirs", like=tmp_path / "run")
    comparison = join([arm_of_run("ours", run), arm_of_run("theirs", open_run(tmp_path / "theirs"))])
    assert summarise(comparison)["aiming"].keys() == {"ours"}
    ((_, detail),) = details(comparison)
    first = detail["arms"][1]["looks"][0]
    assert detail["truth"]["evidence"] and first["hit"] is None and not first["counted"]
    assert not {"miss", "unsupported", "no look", "repeat"} & set(detail["arms"][1]["flags"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def apr(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["apr", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    lines(tmp_path / "rows.jsonl", [*rows("film"), "{broken\x1b[31m"])
    status, out, err = apr("import", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"))
    assert status == 0 and "with a score" in out and "left out: bad record" in out and "rows.jsonl, line 5" in err
    assert "not recorded: visual tokens" in out and "\x1b" not in out + err
    status, out, _ = apr("show", str(tmp_path / "out"), "--id", "q-film")
    assert status == 0 and "2 frames, 0.00s to 5.00s" in out and "not recorded: " in out and "seed not recorded" in out
    assert "0 visual tokens" not in out and "0.00 s" not in out
    (tmp_path / "bad.jsonl").write_text("nothing\n")
    status, _, err = apr("import", str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "c"), "--format", "omniagent")
    assert status == 1 and "nothing in it can be read" in err and not (tmp_path / "c").exists()
    assert apr("import", str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "c"), "--format", "x")[0] == 2
