"""The check for forgetting, on small models that really learned answers and really lost them, and its verdicts."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("scipy")
pytest.importorskip("statsmodels")

from row_making import Speaker
from typer.testing import CliRunner, Result

from apr_plugin.compare.joined import Arm, Comparison, Outcome, join
from apr_plugin.errors import AprError, WrongUsage
from apr_plugin.loop import EpisodeConfig
from apr_plugin.models.batch import Example, batch_of
from apr_plugin.runs import open_run, run_episodes
from apr_plugin.training.chats import ChatSource, chat_rows
from apr_plugin.training.commands import app
from apr_plugin.training.forgetting import Verdict, weigh
from apr_plugin.training.loading import RowCollator, RowLoader
from apr_plugin.training.making import RowSettings
from apr_plugin.training.student import Student
from apr_plugin.training.synthesis.questions import read_questions

ASKED = 10


@dataclass(frozen=True)
class Trained:
    """Three checkpoints, and questions about small films."""

    questions: Path
    fresh: Path
    """Random weights."""
    before: Path
    """Learned the answers to the questions."""
    after: Path
    """The same after training on chats alone, which lost them."""
    adapter: Path
    """A LoRA adapter for `before` that changes nothing."""


def fitted(model: Any, batch: dict[str, Any], steps: int, rate: float) -> float:
    """Train a model on one batch; the last loss."""
    import torch

    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return float(loss.detach())


@pytest.fixture(scope="module")
def trained(
    tiny: Callable[[str], Path],
    student: Callable[..., Student],
    shared_videos: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder, learner, fresh = tmp_path_factory.mktemp("forgetting"), student("qwen2_5_vl"), tiny("qwen2_5_vl")
    chance, lines = random.Random(3), []
    for number in range(ASKED):
        film = folder / f"film{number}.mp4"
        os.link(shared_videos["silent"], film)
        words = chance.sample(["red", "green", "blue", "black", "white"], 2)
        lines.append({"id": number, "video": film.name, "question": f"Which is number {number}?", "kind": "mcq"})
        lines[-1] |= {"options": words, "answer": chance.choice("AB")}
    (folder / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = read_questions(folder / "set.jsonl")

    reader = Speaker(learner, ["A"])
    config = EpisodeConfig(arm="passive", passive_frames=2)
    asyncio.run(run_episodes([one.question for one in asked], reader, config))
    assert len(reader.seen) == ASKED
    answers = {one.question.text: str(one.truth.answer) for one in asked}
    examples = [
        Example(
            learner.encoder.encode(prompt),
            (*learner.encoder.turn_ids(answers[prompt.asked.question.text]), learner.end),
        )
        for prompt in reader.seen
        if prompt.asked is not None
    ]
    batch = batch_of(examples, learner.family, pad=learner.pad)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(fresh)
    assert fitted(model, batch, 20, 3e-3) < 0.3

    def save(name: str) -> Path:
        model.save_pretrained(folder / name)
        learner.encoder.processor.save_pretrained(folder / name)
        return folder / name

    before = save("before")
    chats = folder / "chats.jsonl"
    with chats.open("w") as out:
        for ask in ("Which is number 3?", "What do you see?", "Answer the question about the video."):
            messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": "Never mind."}]
            out.write(json.dumps({"messages": messages}) + "\n")
    rows, _ = chat_rows(ChatSource(chats), learner, RowSettings(validation=0.0))
    fitted(model, RowCollator(RowLoader(learner))(rows), 30, 1e-2)
    after = save("after")

    from peft import LoraConfig, get_peft_model

    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(before)
    adapter = folder / "adapter"
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    return Trained(folder / "set.jsonl", fresh, before, after, adapter)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for several checks, which share the run of the checkpoint before."""
    return tmp_path_factory.mktemp("checks")


def check(before: Path | str, after: Path | str, questions: Path, out: Path, *more: object) -> Result:
    args = ["--frames", "2", "--policy-args", "max_new_tokens=4,device=cpu,dtype=float32", *more]
    arguments = ["check-forgetting", before, after, "-q", questions, "--out", out, *args]
    return CliRunner().invoke(app, [str(one) for one in arguments])


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "forgetting.json").read_text())
    return found


def test_a_model_that_forgot(trained: Trained, out: Path) -> None:
    """A drop is proved; both runs are stored, and the same command asks only what is missing."""
    told = check(trained.before, trained.after, trained.questions, out)
    assert told.exit_code == 1 and "FORGOT: right answers dropped by" in told.output, told.output
    assert "that is more than the 5.0 points allowed" in told.output
    found, asked = result(out), read_questions(trained.questions)
    right = {str(one.question.doc_id): one.truth.answer for one in asked}
    assert found["verdict"] == "forgot" and found["failed"] == {"before": 0, "after": 0} and found["arm"] == "passive"
    counts = {}
    for name, place in (("before", trained.before), ("after", trained.after)):
        run = open_run(out / name)
        assert run.card["policy"]["pretrained"] == str(place) and run.card["config"]["passive_frames"] == 2
        assert len(run) == len(run.truths) == ASKED and {t.arm for t in run} == {"passive"}
        assert all(t.frames == 2 for t in run)
        answers = {t.question.doc_id: t.answer for t in run}
        assert answers == {one["id"]: one[name]["answer"] for one in found["questions"]}
        counts[name] = sum(answers[number] == right[number] for number in right)
        assert counts[name] == sum(one[name]["right"] for one in found["questions"])
    assert counts["before"] > 7 and found["drop"]["value"] == pytest.approx(
        (counts["before"] - counts["after"]) / ASKED
    )
    assert found["only_before"] - found["only_after"] == counts["before"] - counts["after"]
    assert found["drop"]["low"] > 0.05 and found["p"] < 0.05

    (before,), (after,) = (list((out / name).glob("*/*.jsonl")) for name in ("before", "after"))
    stored, whole = before.read_bytes(), after.read_bytes()
    after.write_bytes(b"".join(whole.splitlines(keepends=True)[:-3]) + b'{"half a line')
    again = check(trained.before, trained.after, trained.questions, out)
    assert again.exit_code == 1 and "10 of an earlier run" in again.output and "7 of an earlier run" in again.output
    assert before.read_bytes() == stored and after.read_bytes().startswith(
        b"".join(whole.splitlines(keepends=True)[:7])
    )
    assert result(out) == found


def test_an_adapter_that_changes_nothing(trained: Trained, out: Path) -> None:
    """Ten questions without any difference exclude a drop of 30 points, and not one of 5."""
    told = check(trained.before, trained.adapter, trained.questions, out, "--worst", "0.3")
    assert told.exit_code == 0 and "KEPT: right answers dropped by 0.0 points" in told.output, told.output
    assert "a drop of more than 30.0 points is excluded" in told.output
    run = open_run(out / "after", config=result(out)["runs"]["after"]["config_hash"])
    assert run.card["policy"]["adapter"]["path"] == str(trained.adapter)
    told = check(trained.before, trained.adapter, trained.questions, out)
    assert told.exit_code == 0 and "CANNOT TELL: right answers dropped by 0.0 points" in told.output, told.output
    needed = result(out)["needed"]
    assert needed > 100 and f"about {needed:,} such questions would tell" in told.output


def test_other_weights_in_the_same_folder_are_asked_again(trained: Trained, out: Path, tmp_path: Path) -> None:
    """A checkpoint that was trained on and saved in its place has other answers than the stored ones."""
    place = shutil.copytree(trained.after, tmp_path / "trained")
    assert check(trained.before, place, trained.questions, out).exit_code == 1
    shutil.copy(trained.before / "model.safetensors", place / "model.safetensors")
    told = check(trained.before, place, trained.questions, out)
    assert told.exit_code == 0 and result(out)["drop"]["value"] == 0.0, told.output


def test_a_model_that_had_nothing_to_lose(trained: Trained, tmp_path: Path) -> None:
    """A film that is gone is left out, and the exit status says so."""
    lines = [json.loads(line) for line in trained.questions.read_text().splitlines()]
    lines[0]["video"] = "none.mp4"
    some = trained.questions.with_name("some.jsonl")
    some.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = check(trained.fresh, trained.before, some, tmp_path)
    words = " ".join(told.output.split())
    assert told.exit_code == 3, told.output
    assert "1 videos were not found" in words and "1 of 10 questions could not be asked (before 1, after 1)" in words
    assert "CANNOT TELL" in words and "before is right on only 0.0%" in words and "guessing would be on 50.0%" in words
    assert result(tmp_path)["questions"][0]["after"]["status"] == "failed"


def test_what_is_refused(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, asked = trained.before, trained.after, trained.questions
    gone = asked.with_name("gone.jsonl")
    gone.write_text(asked.read_text().replace("film", "none"))
    (tmp_path / "empty").mkdir()
    cases: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
        (WrongUsage, "are the same checkpoint", (before, f"{before}/../before", asked)),
        (AprError, "there is no folder", (before, tmp_path / "none", asked)),
        (AprError, "there is no folder", (tmp_path / "none", after, asked)),
        (AprError, "cannot read the checkpoint", (before, tmp_path / "empty", asked)),
        (AprError, "no video of any question was found", (before, after, gone)),
        (AprError, "cannot read the questions", (before, after, tmp_path / "none.jsonl")),
        (WrongUsage, "there is no arm 'pasive'", (before, after, asked, "--arm", "pasive")),
        (WrongUsage, "--worst 5: it is a share", (before, after, asked, "--worst", "5")),
        (WrongUsage, "--worst nan", (before, after, asked, "--worst", "nan")),
        (WrongUsage, "unknown model_arg 'dtipe'", (before, after, asked, "--policy-args", "dtipe=float32")),
        (WrongUsage, "pretrained= is set by the check", (before, after, asked, "--policy-args", "pretrained=x")),
        (WrongUsage, "there is no policy 'hg'", (before, after, asked, "--policy-args", "policy=hg")),
    ]
    for kind, words, (one, two, questions, *more) in cases:
        told = check(one, two, questions, tmp_path / "out", *more)
        assert type(told.exception) is kind and words in str(told.exception), (words, told.output, told.exception)
    assert not (tmp_path / "out").exists(), "a mistake is found before anything runs"


def compared(before: Sequence[float], after: Sequence[float], per_video: int = 1) -> Comparison:
    arms = []
    for name, scores in (("before", before), ("after", after)):
        keys = [("t", "", str(number), 0) for number in range(len(scores))]
        outcomes = {
            key: Outcome(key, "scored", score, video=f"film {n // per_video}")
            for n, (key, score) in enumerate(zip(keys, scores, strict=True))
        }
        arms.append(Arm(name, "passive", outcomes))
    return join(arms)


def drawn(n: int, lost: int, gained: int, both: int) -> tuple[list[float], list[float]]:
    """Scores of n questions of which `lost` only before has right, and `gained` only after."""
    before = [1.0] * (lost + both) + [0.0] * (n - lost - both)
    after = [0.0] * lost + [1.0] * (both + gained) + [0.0] * (n - lost - both - gained)
    return before, after


@pytest.mark.parametrize(
    ("case", "worst", "verdict"),
    [
        ((400, 70, 10, 250), 0.05, Verdict.FORGOT),
        ((400, 70, 10, 250), 0.14, Verdict.UNCLEAR),
        ((400, 70, 10, 250), 0.25, Verdict.KEPT),
        ((400, 4, 4, 300), 0.05, Verdict.KEPT),
        ((400, 10, 70, 250), 0.0, Verdict.KEPT),
        ((60, 4, 4, 40), 0.05, Verdict.UNCLEAR),
        ((400, 20, 0, 0), 0.05, Verdict.UNCLEAR),
        ((400, 0, 100, 20), 0.05, Verdict.UNCLEAR),
    ],
)
def test_verdicts(case: tuple[int, int, int, int], worst: float, verdict: Verdict) -> None:
    found = weigh(compared(*drawn(*case)), worst)
    drop = found.paired.diff
    assert found.verdict is verdict, found.told
    assert drop.value == pytest.approx((case[1] - case[2]) / case[0])
    assert drop.low is not None and drop.high is not None
    if verdict is Verdict.FORGOT:
        assert drop.low > worst and found.needed is None
    if verdict is Verdict.KEPT:
        assert drop.high <= worst and found.needed is None
    if verdict is Verdict.UNCLEAR and case[1] + case[3] > worst * case[0]:
        assert drop.low <= worst < drop.high
        assert found.needed is None or (found.needed > case[0] and f"{found.needed:,}" in found.told)


def test_as_many_questions_as_it_says_do_tell() -> None:
    """The number that would be needed is about right: with twice as many alike, the verdict is no longer open."""
    one = weigh(compared(*drawn(60, 4, 4, 40)), 0.05)
    assert one.needed is not None and 60 < one.needed < 2000
    times = 1 + 2 * one.needed // 60
    assert weigh(compared(*drawn(60 * times, 4 * times, 4 * times, 40 * times)), 0.05).verdict is Verdict.KEPT


def test_questions_of_one_film_have_no_interval() -> None:
    found = weigh(compared(*drawn(40, 20, 0, 20), per_video=40), 0.05)
    assert found.verdict is Verdict.UNCLEAR and "no interval" in found.told and "about several videos" in found.told
    few = weigh(compared(*drawn(400, 70, 10, 250), per_video=100), 0.05)
    assert few.verdict is Verdict.UNCLEAR, "four films say little, whatever the number of questions"


def test_nothing_that_both_answered() -> None:
    whole = compared([1.0], [1.0])
    whole.keys.clear()
    with pytest.raises(AprError, match="no question was answered by both"):
        weigh(whole)
