"""`policy=hf` on small random models of every family.

The conformance suite, transformers' own `generate` as the reference, kept caches, batches.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conformance import GREEDY, QUESTION, Make, PolicyConformance, after, big_clip, notebook, opening, percept
from real_processor import real

from apr_plugin.loop import Budget, EpisodeConfig, Generation, MediaRef, PolicyUnavailable, Prompt, Sampling
from apr_plugin.loop.policy import EVERY_MODALITY, Message, TextPart, VideoPart
from apr_plugin.models.positions import positions
from apr_plugin.policies.hf.policy import HfPolicy
from apr_plugin.runs import run_episodes
from apr_plugin.runs.settings import read_settings

Tiny = Callable[[str], Path]
NAMES = ("qwen2_5_vl", "qwen2_5_omni_full", "qwen3_vl", "qwen3_5", "qwen3_omni_moe_full")


@pytest.fixture(scope="module")
def loaded(tiny: Tiny) -> Iterator[Callable[..., HfPolicy]]:
    """Policies by name and arguments, each loaded once for the module."""
    made: dict[tuple[Any, ...], HfPolicy] = {}

    def make(name: str, **arguments: Any) -> HfPolicy:
        key = (name, *sorted(arguments.items()))
        if key not in made:
            made[key] = HfPolicy.from_pretrained(str(tiny(name)), device="cpu", **arguments)
        return made[key]

    yield make
    for policy in made.values():
        policy.close()


class _Conformance(PolicyConformance):
    model: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tiny: Tiny) -> Iterator[Make]:
        yield lambda: HfPolicy.from_pretrained(str(tiny(cls.model)), device="cpu", batch_size=4)


class TestQwen25VL(_Conformance):
    model = "qwen2_5_vl"


class TestQwen25Omni(_Conformance):
    model = "qwen2_5_omni_full"


class TestQwen3VL(_Conformance):
    model = "qwen3_vl"


class TestQwen35(_Conformance):
    model = "qwen3_5"


class TestQwen3Omni(_Conformance):
    model = "qwen3_omni_moe_full"


def one(policy: HfPolicy, prompt: Prompt, sampling: Sampling = GREEDY) -> Generation:
    return asyncio.run(policy.generate(prompt, sampling))


def same(a: Generation, b: Generation) -> None:
    """Equal tokens, and close log-probabilities and entropies."""
    assert a.token_ids == b.token_ids and a.text == b.text and a.finish_reason == b.finish_reason
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-4)  # type: ignore[arg-type]
    np.testing.assert_allclose(a.entropies, b.entropies, atol=2e-4)  # type: ignore[arg-type]


def episode(looks: list[str], audio: bool) -> list[Prompt]:
    """The prompts of an episode, turn by turn."""
    book = notebook(audio=audio)
    prompts = [book.prompt(1, 9)]
    for number, kind in enumerate(looks):
        said = (
            f'{{"observation": "look {number} showed {"red" if number % 2 else "blue"}", "think": "{kind}", '
            f'"confidence": 0.{number}}}'
        )
        book.add(said, percept(kind, frames=2 + number % 3, sound=audio))
        prompts.append(book.prompt(number + 2, 9))
    return [*prompts, book.forced_prompt("All turns are used up.")]


@pytest.mark.parametrize("name", (*NAMES, "qwen3_5_moe"))
def test_what_is_written_is_what_transformers_writes(loaded: Callable[..., HfPolicy], tiny: Tiny, name: str) -> None:
    """Positions, media and stops, compared with `generate` on the real processor's output.

    The policy's cache and batch are on.
    """
    import transformers

    policy = loaded(name)
    model = getattr(transformers, policy.family.model_class).from_pretrained(tiny(name)).eval()
    hears = policy.family.hears
    prompts = [opening(), after("frames", frames=3), big_clip(5, sound=hears), *([after("audio")] if hears else [])]

    async def together() -> list[Generation]:
        return await asyncio.gather(
            *(policy.generate(prompt, replace(GREEDY, max_new_tokens=12)) for prompt in prompts)
        )

    for prompt, mine in zip(prompts, asyncio.run(together()), strict=True):
        given = real(policy._encoder, prompt)
        clip = hears and "pixel_values_videos" in given
        banned = list(policy._encoder.never_written)
        wanted = model.generate(
            **given,
            do_sample=False,
            max_new_tokens=12,
            suppress_tokens=banned,
            **({"use_audio_in_video": True} if clip else {}),
        )
        assert mine.token_ids == tuple(wanted[0, given["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize(
    ("fps", "times"), [(2.0, [0, 2, 4, 6]), (1.0, [0, 4, 8, 12]), (3.0, [0, 1, 2, 4]), (4.0, [0, 1, 2, 3])]
)
def test_positions_of_a_clip_of_qwen2_5_vl(loaded: Callable[..., HfPolicy], fps: float, times: list[int]) -> None:
    """Pairs of frames are at 2 positions a second, rounded down, and text continues above them all.

    transformers 5 continues from the clip's width instead.
    """
    policy = loaded("qwen2_5_vl")
    clip = VideoPart(np.zeros((8, 84, 112, 3), np.uint8), tuple(n / fps for n in range(8)), fps)
    encoded = policy._encoder.encode(
        Prompt(
            (
                Message(
                    "user",
                    (TextPart("What is it?"), clip, TextPart("Tell.")),
                ),
            )
        )
    )
    (time, row, column), start = positions(encoded, policy.family).tolist(), encoded.media[0].start
    seen = slice(start, start + 4 * 3 * 4)
    assert time[: start + 1] == row[: start + 1] == column[: start + 1] == list(range(start + 1))
    assert time[seen] == [start + t for t in times for _ in range(12)]
    assert (
        row[seen] == [start + r for _ in times for r in range(3) for _ in range(4)]
        and column[seen] == [start + c for c in range(4)] * 12
    )
    after_it = start + max(times[-1], 3) + 1
    assert (
        time[seen.stop :]
        == row[seen.stop :]
        == column[seen.stop :]
        == list(range(after_it, after_it + len(time) - seen.stop))
    )


@pytest.mark.parametrize("name", NAMES)
def test_kept_caches_change_nothing(loaded: Callable[..., HfPolicy], name: str) -> None:
    with_it, without = loaded(name), loaded(name, kv_cache=False)
    hears = with_it.family.hears
    looks = ["frames", "clip", "audio" if hears else "frames", "clip"]
    before: list[int] = []
    for prompt in episode(looks, hears):
        cached, computed = one(with_it, prompt), one(without, prompt)
        same(cached, computed)
        assert computed.usage.cached_tokens == 0
        assert cached.usage.cached_tokens is not None and cached.usage.prompt_tokens is not None
        if before:
            kept = with_it._encoder.encode(prompt)
            shared = min(before[-1], len(kept.ids))
            first = kept.media[0].start if kept.media else len(kept.ids)
            assert shared * 0.5 < cached.usage.cached_tokens <= first, (
                "everything but the newest percept comes from the cache, and no purged media"
            )
        history = with_it._encoder.encode(prompt)
        before.append(history.media[0].start if history.media else len(history.ids))


def test_states_are_taken_over_whole(loaded: Callable[..., HfPolicy]) -> None:
    """Linear attention has no state of half a prompt.

    So each turn continues from the point where the turn before it saw its newest percept.
    """
    policy, without = loaded("qwen3_5"), loaded("qwen3_5", kv_cache=False)
    prompts = episode(["frames", "clip", "frames"], False)
    before = [policy._encoder.encode(prompt).history for prompt in prompts]
    assert before == sorted(before) and len(set(before[:-1])) == len(before) - 1, (
        "the forced prompt follows the same turns as the last one"
    )
    policy._engine.store.clear()  # type: ignore[union-attr]
    told = [one(policy, prompt) for prompt in prompts]
    assert [generation.usage.cached_tokens for generation in told] == [0, *before[:-1]]
    for _ in range(2):  # also backwards, when longer beginnings than the prompt are kept
        for prompt, generation in zip(reversed(prompts), reversed(told), strict=True):
            same(one(policy, prompt), generation)
            same(one(without, prompt), generation)


def test_a_thought_that_the_template_opens_belongs_to_the_turn(tiny: Tiny, loaded: Callable[..., HfPolicy]) -> None:
    thinking = loaded("qwen3_5")
    free = one(thinking, opening())
    assert free.text == "<think>\n" + thinking._encoder.tokenizer.decode(free.token_ids, skip_special_tokens=True)
    plain = HfPolicy.from_pretrained(
        str(tiny("qwen3_5")), device="cpu", chat_template_kwargs='{"enable_thinking": false}'
    )
    told = one(plain, notebook(QUESTION.model_copy(update={"text": "What does <think> mean?"})).prompt(1, 5))
    plain.close()
    assert "<think>" not in told.text
    assert plain.describe() == thinking.describe() | {"chat_template_kwargs": {"enable_thinking": False}}
    assert one(loaded("qwen2_5_vl"), opening()).text.startswith("<think>") is False


def test_media_at_the_beginning_is_taken_over_if_it_is_the_same(loaded: Callable[..., HfPolicy]) -> None:
    """The passive arm asks several questions about the same frames of a video."""
    policy, without = loaded("qwen2_5_omni_full"), loaded("qwen2_5_omni_full", kv_cache=False)
    other = QUESTION.model_copy(update={"text": "What happens at the end?"})
    shown, brighter = percept("frames", frames=4), percept("frames", frames=4)
    brighter = replace(brighter, images=brighter.images + 1)  # type: ignore[operator]
    first, second, third = (
        notebook(q).passive_prompt([look]) for q, look in ((QUESTION, shown), (other, shown), (other, brighter))
    )
    one(policy, first)
    again, changed = one(policy, second), one(policy, third)
    media = policy._encoder.encode(second).media
    assert again.usage.cached_tokens is not None and changed.usage.cached_tokens is not None
    assert again.usage.cached_tokens > media[-1].start + media[-1].runs[0].tokens
    assert changed.usage.cached_tokens <= media[0].start
    same(again, one(without, second))
    same(changed, one(without, third))


@pytest.mark.parametrize("name", NAMES)
def test_prompts_written_together_are_written_as_alone(loaded: Callable[..., HfPolicy], name: str) -> None:
    policy = loaded(name)
    hears = policy.family.hears
    prompts = episode(["frames", "clip", "audio" if hears else "frames"], hears)
    # Rows leave one by one.
    samplings = [Sampling(max_new_tokens=3 + 4 * n, temperature=n % 2, top_p=0.9, seed=n) for n in range(len(prompts))]

    async def together() -> list[Generation]:
        return await asyncio.gather(
            *(policy.generate(prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True))
        )

    many = asyncio.run(together())
    for prompt, sampling, generation in zip(prompts, samplings, many, strict=True):
        same(generation, one(loaded(name, kv_cache=False), prompt, sampling))


def test_entropies_and_log_probabilities_are_of_the_whole_vocabulary(
    loaded: Callable[..., HfPolicy], tiny: Tiny
) -> None:
    import torch
    import transformers

    policy = loaded("qwen2_5_vl")
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny("qwen2_5_vl")).eval()
    for sampling, what in ((GREEDY, "raw"), (Sampling(temperature=0.7, top_p=0.5, seed=3, max_new_tokens=8), "scaled")):
        mine = one(policy, opening(), sampling)
        assert mine.token_ids is not None and mine.entropy_top_k is None and mine.logprobs_of == what
        assert mine.prompt_token_ids == tuple(policy._encoder.encode(opening()).ids.tolist())
        ids = torch.tensor([[*policy._encoder.encode(opening()).ids, *mine.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1 - len(mine.token_ids) : -1].double()
        logits[:, list(policy._encoder.never_written)] = -1e9
        logprobs = torch.log_softmax(logits / (sampling.temperature or 1.0), -1)
        np.testing.assert_allclose(
            mine.logprobs, logprobs.gather(1, ids[0, -len(mine.token_ids) :, None])[:, 0], atol=1e-4
        )  # type: ignore[arg-type]
        np.testing.assert_allclose(mine.entropies, -(logprobs.exp() * logprobs).sum(-1), atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_stand_for_media_are_never_written(
    loaded: Callable[..., HfPolicy], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even though the model prefers these tokens: its head is changed accordingly."""
    policy = loaded(name)
    banned = set(policy._encoder.never_written)
    known = policy._encoder.tokenizer.get_vocab()
    marks = policy.family.marks
    assert (
        banned == {known[token] for token in vars(marks).values() if token != marks.turn and token in known}
        and len(banned) >= 4
    )
    assert set(policy._encoder.ids_of.values()) < banned
    raw = policy._engine.checkpoint.forward

    def wanting(*given: Any, **more: Any) -> Any:
        logits = raw(*given, **more).clone()
        logits[:, list(banned)] += 100
        return logits

    monkeypatch.setattr(policy._engine.checkpoint, "forward", wanting)
    for sampling in (
        GREEDY,
        Sampling(temperature=1.5, seed=2, max_new_tokens=20),
        Sampling(temperature=1.0, top_k=2, max_new_tokens=8),
    ):
        made = one(policy, opening(), sampling)
        assert (
            made.token_ids
            and not banned & set(made.token_ids)
            and all(math.isfinite(value) for value in made.logprobs or ())
        )


def test_a_seed_fixes_a_turn_and_another_changes_it(loaded: Callable[..., HfPolicy]) -> None:
    policy = loaded("qwen2_5_vl")
    warm = replace(GREEDY, temperature=1.0)
    texts = [one(policy, opening(), replace(warm, seed=seed)).token_ids for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1] and len(set(texts)) == 3
    greedy = one(policy, opening())
    assert one(policy, opening(), replace(warm, top_k=1)).token_ids == greedy.token_ids
    assert one(policy, opening(), replace(warm, top_p=1e-6)).token_ids == greedy.token_ids


def test_a_turn_ends_before_the_first_text_that_stops_it(loaded: Callable[..., HfPolicy]) -> None:
    policy = loaded("qwen2_5_vl")
    whole = one(policy, opening(), replace(GREEDY, temperature=1.0, seed=4, max_new_tokens=24))
    stop = whole.text[len(whole.text) // 2 :][:3]
    cut = one(
        policy, opening(), replace(GREEDY, temperature=1.0, seed=4, max_new_tokens=24, stop=("never written", stop))
    )
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish_reason == "stop"
    assert whole.token_ids is not None and cut.token_ids is not None
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)] and len(cut.token_ids) < len(whole.token_ids)


def test_a_turn_ends_at_its_stop_token_or_its_limit(
    tiny: Tiny, tmp_path: Path, loaded: Callable[..., HfPolicy]
) -> None:
    import json

    free = one(loaded("qwen2_5_vl"), opening(), Sampling(max_new_tokens=6))
    assert free.finish_reason == "length" and free.usage.completion_tokens == 6 and free.token_ids is not None
    folder = shutil.copytree(tiny("qwen2_5_vl"), tmp_path / "stops")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps(settings | {"eos_token_id": [settings["eos_token_id"], free.token_ids[3]]})
    )
    policy = HfPolicy.from_pretrained(str(folder), device="cpu", repetition_penalty=1.0)
    stopped = one(policy, opening(), Sampling(max_new_tokens=6))
    policy.close()
    assert stopped.finish_reason == "stop" and stopped.token_ids == free.token_ids[:4]
    size = len(loaded("qwen2_5_vl")._encoder.encode(opening()).ids)
    for room, tokens in ((size + 2, 2), (size, 0)):
        tight = HfPolicy.from_pretrained(str(tiny("qwen2_5_vl")), device="cpu", context_tokens=room)
        cut = one(tight, opening(), Sampling(max_new_tokens=6))
        tight.close()
        assert (
            cut.finish_reason == "length"
            and cut.usage.completion_tokens == tokens
            and cut.token_ids == free.token_ids[:tokens]
        )


def test_a_repetition_penalty_spreads_the_words(loaded: Callable[..., HfPolicy]) -> None:
    plain, spread = (
        one(loaded("qwen2_5_omni_full", repetition_penalty=value), opening(), Sampling(max_new_tokens=40))
        for value in (1.0, 3.0)
    )
    assert plain.token_ids is not None and spread.token_ids is not None and plain.token_ids != spread.token_ids
    prompt = set(loaded("qwen2_5_omni_full")._encoder.encode(opening()).ids.tolist())
    assert len(prompt & set(spread.token_ids)) <= len(prompt & set(plain.token_ids))
    assert len(set(spread.token_ids)) >= len(set(plain.token_ids))


def test_what_the_families_perceive(loaded: Callable[..., HfPolicy]) -> None:
    assert loaded("qwen2_5_vl").modalities == loaded("qwen3_vl").modalities == EVERY_MODALITY - {"audio"}
    assert loaded("qwen2_5_omni_full").modalities == loaded("qwen3_omni_moe_full").modalities == EVERY_MODALITY
    with_sound = after("clip", sound=True)
    assert (
        one(loaded("qwen2_5_vl"), with_sound).token_ids
        == one(loaded("qwen2_5_vl"), after("clip", sound=False)).token_ids
    )
    assert (
        one(loaded("qwen2_5_omni_full"), with_sound).token_ids
        != one(loaded("qwen2_5_omni_full"), after("clip", sound=False)).token_ids
    )


def test_a_whole_checkpoint_and_its_thinker_answer_alike(loaded: Callable[..., HfPolicy]) -> None:
    for family in ("qwen2_5_omni", "qwen3_omni_moe"):
        for prompt in (opening(), after("clip")):
            same(one(loaded(family), prompt), one(loaded(f"{family}_full"), prompt))


def test_the_event_loop_stays_free_and_stopped_prompts_are_dropped(tiny: Tiny) -> None:
    policy = HfPolicy.from_pretrained(str(tiny("qwen2_5_vl")), device="cpu", batch_size=1)
    policy._engine.checkpoint.eos = frozenset()  # whatever a random model writes, no turn ends before its limit

    async def crowd() -> tuple[bool, int, float]:
        long = asyncio.create_task(policy.generate(opening(), Sampling(max_new_tokens=400)))
        waiting = [
            asyncio.create_task(policy.generate(after("frames"), Sampling(max_new_tokens=20_000))) for _ in range(3)
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        free = not long.done()  # it would be done if it were written in the loop's own thread
        assert (await long).usage.completion_tokens == 400
        for task in waiting:
            task.cancel()
        dropped = sum(
            isinstance(result, asyncio.CancelledError)
            for result in await asyncio.gather(*waiting, return_exceptions=True)
        )
        began = time.perf_counter()
        await policy.generate(opening(), GREEDY)  # 20,000 tokens three times would take minutes
        return free, dropped, time.perf_counter() - began

    free, dropped, seconds = asyncio.run(crowd())
    assert free and dropped == 3 and seconds < 30
    policy.close()
    with pytest.raises(PolicyUnavailable, match="closed"):
        one(policy, opening())


def test_closing_ends_what_is_under_way(tiny: Tiny) -> None:
    policy = HfPolicy.from_pretrained(str(tiny("qwen2_5_vl")), device="cpu", batch_size=2)
    policy._engine.checkpoint.eos = frozenset()

    async def run() -> list[BaseException | Generation]:
        tasks = [asyncio.create_task(policy.generate(opening(), Sampling(max_new_tokens=20_000))) for _ in range(5)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(policy.close)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(result, PolicyUnavailable) for result in asyncio.run(run()))
    assert policy._engine.checkpoint.model is None and len(policy._engine.store or ()) == 0


def test_one_bad_prompt_harms_no_other(loaded: Callable[..., HfPolicy]) -> None:
    policy = loaded("qwen2_5_vl")

    async def mixed() -> list[BaseException | Generation]:
        prompts = [opening(), after("audio"), after("frames")]
        return await asyncio.gather(*(policy.generate(prompt, GREEDY) for prompt in prompts), return_exceptions=True)

    good, bad, also = asyncio.run(mixed())
    assert isinstance(good, Generation) and isinstance(also, Generation) and isinstance(bad, ValueError)


def test_output_that_is_not_finite_is_no_answer(tiny: Tiny) -> None:
    policy = HfPolicy.from_pretrained(str(tiny("qwen2_5_vl")), device="cpu")
    policy._engine.checkpoint.model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(PolicyUnavailable, match="not finite in float32"):
        one(policy, opening())
    policy.close()


def test_episodes_answer_the_same_however_many_run_at_once(tiny: Tiny, shared_videos: dict[str, Path]) -> None:
    """Random weights write nonsense: every question still ends, with the same turns at concurrency 1 and 8."""
    questions = [
        QUESTION.model_copy(
            update={
                "doc_id": str(n),
                "text": f"What is shown at second {n}?",
                "videos": (MediaRef(path=str(shared_videos["sound"])),),
            }
        )
        for n in range(8)
    ]
    seen = []
    for concurrency, batch_size in ((1, 1), (8, 4)):
        arguments = {
            "policy": "hf",
            "pretrained": str(tiny("qwen2_5_omni_full")),
            "device": "cpu",
            "batch_size": batch_size,
            "turns": 2,
        }
        arguments |= {"temperature": 0.8, "max_new_tokens": 12, "concurrency": concurrency, "seed": 5}
        settings = read_settings(arguments)
        done = asyncio.run(run_episodes(questions, settings.policy, settings.config, concurrency=settings.concurrency))
        settings.policy.close()
        assert all(not trajectory.stop_reason.failed for trajectory in done), [
            trajectory.stop_detail for trajectory in done
        ]
        seen.append([[turn.text for turn in trajectory.turns] for trajectory in done])
        assert {trajectory.config_hash for trajectory in done} == {settings.config.hash(settings.policy)}
    assert seen[0] == seen[1] and len({tuple(turns) for turns in seen[0]}) == 8


def test_a_real_look_reaches_the_model(tiny: Tiny, shared_videos: dict[str, Path]) -> None:
    """An episode whose turns replace the model's, so that frames, a clip and sound of a real file are read."""
    policy = HfPolicy.from_pretrained(str(tiny("qwen2_5_omni_full")), device="cpu")
    looks = ['{"type": "get_frames", "start": 0, "end": 5, "num": 4}', '{"type": "get_clip", "start": 1, "end": 3}']
    looks += ['{"type": "get_audio", "start": 2, "end": 5}', '{"type": "answer", "content": "A"}']
    said = iter([f'{{"observation": "seen", "think": "t", "confidence": 0.5, "action": {look}}}' for look in looks])
    usages = []

    class Prompted(HfPolicy):
        def __init__(self) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return getattr(policy, name)

        async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
            generation = await policy.generate(prompt, sampling)
            usages.append(generation.usage)
            return replace(generation, text=next(said))

    question = QUESTION.model_copy(update={"videos": (MediaRef(path=str(shared_videos["sound"])),)})
    config = EpisodeConfig(budget=Budget(turns=6, frame_pixels=112 * 112, clip_pixels=112 * 112), sampling=GREEDY)
    (done,) = asyncio.run(run_episodes([question], Prompted(), config))
    policy.close()
    assert done.answer == "A" and [turn.shown.kind for turn in done.turns if turn.shown] == ["frames", "clip", "audio"]
    assert [(bool(usage.visual_tokens), bool(usage.audio_tokens)) for usage in usages] == [
        (False, False),
        (True, False),
        (True, True),
        (False, True),
    ]
    assert all(usage.cached_tokens for usage in usages[1:])
