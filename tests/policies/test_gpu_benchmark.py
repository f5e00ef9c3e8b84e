"""`benchmarks.gpu_7b` with its tiny model on the CPU: a real film, the loop and `policy=hf`; the published shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import gpu_7b, gpu_7b_episode  # noqa: E402 - after the libraries it needs
from benchmarks.random_7b import FIRST_SPECIAL, MODELS, PARAMETERS, processor_of, random_model, special_ids  # noqa: E402


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn once for all tests."""
    return tmp_path_factory.mktemp("films")


def test_the_small_configuration_runs_both_arms(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    words = ["--small", "--repeats", "1", "--film-folder", str(films), "--out", str(out)]
    assert gpu_7b.main(words) == 0
    kept = json.loads(out.read_text())
    agent, passive = kept["arms"]["agent"], kept["arms"]["passive"]
    assert (agent["turns"], agent["frames"]) == (10, 203)
    assert (passive["turns"], passive["frames"]) == (1, 192)
    assert agent["written_tokens"] == sum(gpu_7b_episode.SMALL.turn_tokens) + 7 * gpu_7b_episode.SMALL.turn_tokens[1]
    assert passive["written_tokens"] == gpu_7b_episode.SMALL.passive_tokens
    assert agent["reused_tokens"] > 0 and passive["reused_tokens"] == 0
    assert agent["computed_tokens"] + agent["reused_tokens"] == agent["prompt_tokens"]
    for arm in (agent, passive):
        assert 0 < arm["model_s"] < arm["wall_s"] and 0 < arm["media_s"] < arm["wall_s"]
        # The engine's own split of the time in the model leaves out only the hand-over between threads.
        parts = arm["preparing_s"] + arm["reading_s"] + arm["writing_s"]
        assert 0.5 * arm["model_s"] < parts <= arm["model_s"]
    assert kept["ratios"]["passive"]["wall_s"] == pytest.approx(agent["wall_s"] / passive["wall_s"])
    assert kept["stopped_early"] == "" and kept["machine"]["card"] is None
    shown = capsys.readouterr().out
    assert "words of the agent's turns are a script's" in shown and "nothing of a 7B model" in shown
    assert "agent / passive: wall" in shown


def test_time_that_is_up_ends_it_with_what_was_measured(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    words = ["--small", "--minutes", "0.0001", "--arms", "passive", "--film-folder", str(films), "--out", str(out)]
    assert gpu_7b.main(words) == 1
    kept = json.loads(out.read_text())
    assert kept["stopped_early"].startswith("the time was up") and kept["arms"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="finds no GPU here, so the 7B model was not timed") as ended:
        gpu_7b.main([])
    assert ended.value.code != 0


@pytest.mark.parametrize("name", MODELS)
def test_the_large_model_has_the_published_shape(name: str) -> None:
    model = random_model(name, "meta")
    assert sum(each.numel() for each in model.parameters()) == PARAMETERS[name]
    assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", MODELS)
def test_turns_are_as_long_as_the_published_ones(name: str) -> None:
    tokenizer = processor_of(name, [gpu_7b_episode.WORDS, json.dumps(list(gpu_7b_episode.actions(3600)))]).tokenizer
    assert len(tokenizer) == FIRST_SPECIAL + len(special_ids(name))
    turns = gpu_7b_episode.script(gpu_7b_episode.FULL, lambda text: len(tokenizer.backend_tokenizer.encode(text).ids))
    assert [tokens for _, tokens in turns] == [135, *[209] * 8, 265]
    assert all(-1 <= len(tokenizer(text)["input_ids"]) - tokens <= 0.04 * tokens for text, tokens in turns)
    asked = [json.loads(text)["action"] for text, _ in turns]
    assert sum(action.get("num", 0) for action in asked) == 203
    assert len({(action.get("start"), action.get("end")) for action in asked}) == 10
