"""The needle task folder in lmms-eval itself: a made benchmark, a fake chat model, and numbers computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval")

from apr_plugin import config
from apr_plugin.errors import AprError
from apr_plugin.scoring.truth import score
from apr_plugin.tasks.common.catalogue import sources
from apr_plugin.tasks.needle import utils
from apr_plugin.tasks.needle.make import NeedleSpec, load_docs, make_needle

TASKS = Path(utils.__file__).parent
KINDS = ("glyph", "when", "sound", "count", "order")


@pytest.fixture(scope="module")
def needle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_needle(
        tmp_path_factory.mktemp("needle"),
        NeedleSpec(buckets=("1m",), videos_per_bucket=1, fps=2),
        workers=1,
        progress=False,
    )


def chat_model(reply: Callable[[dict[str, Any]], Any]) -> Any:
    """A chat model that answers each document with `reply(doc)` and keeps the messages it was sent."""
    from lmms_eval.api.model import lmms

    class Fake(lmms):
        is_simple = False

        def __init__(self) -> None:
            super().__init__()
            self.sent: list[tuple[dict[str, Any], Any]] = []

        def generate_until(self, requests: list[Any]) -> list[Any]:
            out = []
            for request in requests:
                _, doc_to_messages, _, doc_id, task, split = request.args
                doc = self.task_dict[task][split][doc_id]
                self.sent.append((doc, doc_to_messages(doc)))
                out.append(reply(doc))
            return out

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

        def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

    return Fake()


def evaluate(model: Any, tasks: list[str]) -> dict[str, Any]:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False, model_name="fake")
    results: dict[str, Any] = simple_evaluate(model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    return results


def right(doc: dict[str, Any]) -> str:
    return json.dumps(doc["answer_spans"]) if doc["kind"] == "when" else str(doc["answer"])


def test_right_wrong_and_garbage_through_lmms_eval(needle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_NEEDLE_DIR", str(needle))
    seen: dict[str, int] = {}

    def reply(doc: dict[str, Any]) -> str:
        """The first question of a kind is answered correctly, the second half correctly (`when`), wrongly, or badly."""
        nth = seen[doc["kind"]] = seen.get(doc["kind"], 0) + 1
        if nth == 1:
            return right(doc)
        (start, end), *_ = doc["answer_spans"] or [(0, 0)]
        half = f"from {start} to {(start + end) / 2} seconds"
        return {"when": half, "count": "99", "glyph": "A man walks, so I can't say", "sound": "", "order": "{}"}[
            doc["kind"]
        ]

    model = chat_model(reply)
    results = evaluate(model, ["apr_needle"])
    assert len(model.sent) == 10
    for kind in KINDS:
        got = results["results"][f"apr_needle_{kind}"]
        expected = 0.75 if kind == "when" else 0.5  # half of the span has IoU 0.5
        assert got["score,none"] == pytest.approx(expected, abs=1e-6)
        assert got["iou_set_1m,none" if kind == "when" else "acc_1m,none"] == pytest.approx(expected, abs=1e-6)
        assert got["n,none"] == got["n_present,none"] == got["n_1m,none"] == 2
        assert not any("10m" in name for name in got)
        assert results["versions"][f"apr_needle_{kind}"] == 2.0
    assert results["results"]["apr_needle_when"]["r1_set_0.5,none"] == pytest.approx(1.0)
    assert results["groups"]["apr_needle"]["score,none"] == pytest.approx((4 * 0.5 + 0.75) / 5, abs=1e-6)
    sample = results["samples"]["apr_needle_glyph"][0]
    assert sample["score"] in (0.0, 1.0)


def test_truths_score_as_lmms_eval_does(needle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of right and of wrong answers of every kind; the evidence is within the video."""
    monkeypatch.setenv("APR_NEEDLE_DIR", str(needle))
    for kind in KINDS:
        source = sources()[f"apr_needle_{kind}"]
        for doc in source.documents():
            truth, asked = source.truth(doc), source.question_of(doc)
            (right_one,) = truth.answers
            for answer in (right_one, "[[0, 1]]", "C", "99"):
                assert (
                    score(answer, truth, asked.kind, source.rules)
                    == utils.process_results(doc, [source.write(answer)])["score"]
                )
            assert score(right_one, truth, asked.kind, source.rules) == 1
            assert truth.spans() and all(0 <= start < end <= doc["duration_s"] for start, end in truth.spans())


def test_prompt_tells_the_question_and_nothing_else(needle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APR_NEEDLE_DIR", str(needle))
    model = chat_model(right)
    results = evaluate(model, ["apr_needle_sound", "apr_needle_count"])
    for doc, messages in model.sent:
        assert [part["type"] for part in messages[0]["content"]] == ["video", "text"]
        assert Path(messages[0]["content"][0]["url"]).is_file()
        lines = messages[0]["content"][1]["text"].splitlines()
        options = [f"{'ABCD'[i]}. {text}" for i, text in enumerate(doc["options"])]
        assert lines == [doc["question"], *options, utils.HINTS["option" if options else "number"]]
    assert results["results"]["apr_needle_sound"]["score,none"] == 1.0


def test_scores_stay_in_bounds_whatever_is_answered(needle: Path) -> None:
    answers = [
        "",
        "[[900, 810], [0, 100]]",
        "[[1e999, 2]]",
        "[" * 50_000,
        "NaN",
        "\x00",
        "9" * 5000,
        "the answer is B",
        None,
        ["B"],
        3.5,
    ]
    for doc in (dict(doc) | {"apr_present": True, "apr_buckets": [doc["bucket"]]} for doc in load_docs(needle)):
        for answer in answers:
            assert all(0.0 <= value <= 1.0 for value in utils.process_results(doc, [answer]).values())
        assert utils.process_results(doc, [])["score"] == 0.0
        assert {name: value for name, value in utils.process_results(doc, [right(doc)]).items() if value != 1} in (
            {},
            {"no_span": 0.0},
        )


def test_a_named_folder_without_a_set_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APR_NEEDLE_DIR", str(tmp_path / "nothing"))
    with pytest.raises(AprError, match=r"nothing.*apr needle make --out"):
        utils.glyph_docs(None)
    assert not (tmp_path / "nothing").exists()


def test_the_default_folder_is_filled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import apr_plugin.tasks.needle.read as read

    made = []

    def small(folder: Path, spec: NeedleSpec) -> Path:
        made.append(folder)
        return make_needle(folder, NeedleSpec(buckets=("1m",), videos_per_bucket=1, fps=1), workers=1, progress=False)

    monkeypatch.delenv("APR_NEEDLE_DIR", raising=False)
    monkeypatch.setenv("APR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(read, "make_needle", small)
    assert len(utils.glyph_docs(None)) == len(utils.order_docs(None)) == 2
    assert made == [tmp_path / "home" / "needle"]


def test_config_dirs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APR_HOME", "XDG_CACHE_HOME", "APR_NEEDLE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert config.cache_dir() == Path.home() / ".cache" / "apr"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert config.cache_dir() == Path("/xdg/apr")
    monkeypatch.setenv("APR_HOME", "/apr")
    assert config.needle_dir() == (Path("/apr/needle"), False)
    monkeypatch.setenv("APR_NEEDLE_DIR", "/data/needle")
    assert config.needle_dir() == (Path("/data/needle"), True)
