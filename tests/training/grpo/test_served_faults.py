"""Faults of rollout servers, on a small HTTP server: nothing wrong is taken for a step's weights or turns."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("openai")

from conformance import after, big_clip, opening  # noqa: E402
from dev_server import NAME, dev_server  # noqa: E402
from grpo_making import recipe_of, write_questions  # noqa: E402
from PIL import Image  # noqa: E402
from vllm_server import free_port  # noqa: E402

from apr_plugin.errors import AprError  # noqa: E402
from apr_plugin.loop.policy import AudioPart, PolicyUnavailable, Sampling, VideoPart  # noqa: E402
from apr_plugin.policies.vllm.prompt import TICKS  # noqa: E402
from apr_plugin.training.grpo.making import episode_config  # noqa: E402
from apr_plugin.training.grpo.recipe import GrpoRecipe, read_recipe  # noqa: E402
from apr_plugin.training.grpo.running import run_grpo  # noqa: E402
from apr_plugin.training.grpo.served.control import ServerControl, ServerFault  # noqa: E402
from apr_plugin.training.grpo.served.media import request_of, wav_bytes, without_clip_sound  # noqa: E402
from apr_plugin.training.grpo.served.policy import ServedPolicy  # noqa: E402
from apr_plugin.training.grpo.served.rollouts import ServedRollouts  # noqa: E402
from apr_plugin.training.grpo.served.settings import RolloutSettings  # noqa: E402

VL, OMNI = "qwen2_5_vl", "qwen2_5_omni"


def test_loading_drops_every_cache_and_names_the_weights_last() -> None:
    with dev_server(held=2) as server:
        control = ServerControl(server.address, "secret-key")
        assert control.look(None, 4096) == NAME
        server.asked.clear()
        control.load("/shared/step-3", "run step 3")
        resets = ["/reset_prefix_cache"] * 3 + ["/reset_mm_cache", "/reset_encoder_cache"]
        version = ["/update_weight_version"]
        assert server.paths() == [*version, "/collective_rpc", *resets, *version, "/weight_info"]
        loading, (_, reload), *_ = server.asked
        assert loading[1] == {"new_version": "loading run step 3"}
        assert reload == {"method": "reload_weights", "kwargs": {"weights_path": "/shared/step-3"}}
        assert server.version == "run step 3"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"faults": {"/collective_rpc": 500}}, r"could not load the weights in /w: .*HTTP 500: Worker failed.* read"),
        ({"faults": {"/collective_rpc": "slow"}}, r"could not load the weights in /w: .*no answer within 0\.5 s"),
        ({"faults": {"/collective_rpc": "drop"}}, r"could not load the weights in /w: .*can't be reached"),
        ({"faults": {"/reset_encoder_cache": 500}}, r"/reset_encoder_cache: HTTP 500"),
        ({"forgets": True}, r"its weights are 'default' \(it was started again\), not 'run step 1'"),
    ],
)
def test_a_server_that_fails_to_load_has_no_version(state: dict[str, Any], words: str) -> None:
    with dev_server(**state) as server:
        with pytest.raises(ServerFault, match=words) as raised:
            ServerControl(server.address, reload_s=0.5).load("/w", "run step 1")
        assert server.address in str(raised.value) and server.version != "run step 1"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"context_tokens": 2048}, r"takes 2048 tokens .* student has a context of 4096.*--max-model-len"),
        ({"logprobs_mode": "raw_logprobs"}, r"raw_logprobs, .*--logprobs-mode processed_logprobs"),
        ({"faults": {"/server_info": 404}}, r"HTTP 404.*VLLM_SERVER_DEV_MODE=1"),
        ({"faults": {"/weight_info": "text"}}, r"not JSON.*VLLM_SERVER_DEV_MODE=1"),
        ({"faults": {"/v1/models": 401}}, r"/v1/models: HTTP 401"),
    ],
)
def test_a_server_that_can_not_be_used_is_refused(state: dict[str, Any], words: str) -> None:
    with dev_server(**state) as server, pytest.raises(ServerFault, match=words):
        ServerControl(server.address).look(None, 4096)
    with dev_server() as server, pytest.raises(ServerFault, match=r"no model 'other' .*it has tiny"):
        ServerControl(server.address).look("other", 4096)


def test_a_run_does_not_begin_without_its_server(
    tiny: Any, student: Any, shared_videos: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    questions = write_questions(tmp_path / "q.jsonl", shared_videos, ["sound"])
    address = f"http://127.0.0.1:{free_port()}"
    made = recipe_of(tiny(VL), questions, rollouts={"servers": [f"{address}/v1/"]})
    recipe = GrpoRecipe.model_validate(made)
    assert recipe.rollouts.servers == (address,)
    with pytest.raises(AprError, match=rf"rollout server {address}: it can't be reached \(.*refused.*is it running"):
        run_grpo(recipe, tmp_path / "out")


def test_each_process_has_its_server_and_all_servers_get_the_weights(
    tiny: Any, student: Any, shared_videos: dict[str, Path], tmp_path: Path
) -> None:
    made = recipe_of(tiny(VL), write_questions(tmp_path / "q.jsonl", shared_videos, ["sound"]))
    recipe = GrpoRecipe.model_validate(made)
    config = episode_config(recipe, {})
    with dev_server(context_tokens=65_536) as one, dev_server(context_tokens=65_536) as two:
        settings = RolloutSettings(servers=(one.address, two.address))
        ranks = [
            ServedRollouts(student(VL), config, recipe.sampling, settings, tmp_path, rank=rank, quiet=True)
            for rank in range(3)
        ]
        assert [rank.own.address for rank in ranks] == [one.address, two.address, one.address]
        version = ranks[0].version_of("step 1")
        ranks[0].load(tmp_path / "step-1", version)
        assert one.version == two.version == version
        two.faults["/collective_rpc"] = 500
        with pytest.raises(ServerFault, match=rf"{two.address}.*HTTP 500") as raised:
            ranks[0].load(tmp_path / "step-2", ranks[0].version_of("step 2"))
        assert one.address not in str(raised.value)


def test_settings_are_checked(tmp_path: Path) -> None:
    for url in ("127.0.0.1:8000", "ftp://a", "http://", "http://a:b"):
        with pytest.raises(ValueError, match="must be like"):
            RolloutSettings(servers=(url,))
    with pytest.raises(ValueError, match="host has a user") as raised:
        RolloutSettings(servers=("http://user:hidden@host:8000",))
    assert "hidden" not in str(raised.value).partition("[type=")[0]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("student: {pretrained: x}\nrollouts: {server: [a]}\n")
    with pytest.raises(AprError, match=r"no setting .*rollouts\.server.*servers"):
        read_recipe(str(recipe))


@pytest.fixture
def reply() -> Callable[..., dict[str, Any]]:
    def make(prompt: list[int], ids: list[int]) -> dict[str, Any]:
        content = [{"token": "x", "logprob": -0.5}] * len(ids)
        choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop", "token_ids": ids}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        return {"choices": [choice | {"logprobs": {"content": content}}], "prompt_token_ids": prompt, "usage": usage}

    return make


def test_other_tokens_than_the_students_are_noted_and_not_returned(student: Any, reply: Any) -> None:
    reads = student(VL)
    sampling = Sampling(temperature=0.7, seed=5, max_new_tokens=9)
    ours = reads.encoder.lay_out(opening()).ids.tolist()
    ids = [*reads.encoder.turn_ids("hello"), reads.end]
    with dev_server(reply=reply(ours, ids)) as server:
        policy = ServedPolicy(reads, f"{server.address}/v1", NAME, retries=0)
        policy.weights_changed("step 3")
        said = asyncio.run(policy.generate(opening(), sampling))
        assert (said.text, said.token_ids, said.prompt_token_ids) == ("hello", tuple(ids), tuple(ours))
        assert (said.logprobs_of, said.entropies) == ("scaled", None)
        body = server.asked[-1][1]
        sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")}
        assert sent == {
            "temperature": 0.7, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 5
        }  # fmt: skip
        assert set(body["logit_bias"]) == {str(token) for token in reads.encoder.never_written}
        assert policy.describe()["weights"] == "step 3" and policy.mismatches == []

        server.reply = reply([*ours[:7], ours[7] + 1, *ours[8:]], ids)
        with pytest.raises(PolicyUnavailable, match=r"differ from token 7 on"):
            asyncio.run(policy.generate(opening(), sampling))
        assert policy.prompts == 2 and len(policy.mismatches) == 1
        policy.weights_changed("step 4")
        assert policy.describe()["weights"] == "step 4" and policy.mismatches == []

        del server.reply["prompt_token_ids"]
        with pytest.raises(PolicyUnavailable, match="no token ids or log-probabilities"):
            asyncio.run(policy.generate(opening(), sampling))
        policy.close()


def test_media_is_sent_without_loss(student: Any) -> None:
    """Pixels and samples that the server decodes are those of the prompt; a clip has its true times and no sound."""
    encoder = student(OMNI).encoder
    prompt = after("frames", frames=2)
    pictures = [part for message in prompt.messages for part in message.parts if hasattr(part, "image")]
    body = request_of(prompt, encoder)
    urls = [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    for url, part in zip(urls, pictures, strict=True):
        assert np.array_equal(_picture(url.partition(",")[2]), part.image)
    assert body["mm_processor_kwargs"]["size"] == encoder.size_limits()

    loud = big_clip(5, fps=3.0)
    clip = next(part for message in loud.messages for part in message.parts if isinstance(part, VideoPart))
    quiet = without_clip_sound(loud)
    assert clip.audio is not None and without_clip_sound(quiet) is quiet
    body = request_of(quiet, encoder)
    (url,) = [part["video_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "video_url"]
    frames = [_picture(text) for text in url.partition(",")[2].split(",")]
    assert np.array_equal(frames, [*clip.frames, clip.frames[-1]]), "an even number"
    timing = body["media_io_kwargs"]["video"]
    assert len(frames) / timing["total_num_frames"] * timing["fps"] == 3.0
    times = [number / timing["fps"] for number in timing["frames_indices"]]
    assert times == pytest.approx([*clip.times_s, clip.times_s[-1]], abs=1 / (3 * TICKS))

    heard = next(p for message in after("audio").messages for p in message.parts if isinstance(p, AudioPart))
    with av.open(io.BytesIO(wav_bytes(heard))) as file:
        blocks = [frame.to_ndarray() for frame in file.decode(audio=0)]
    assert np.array_equal(np.concatenate(blocks, axis=-1).ravel(), heard.waveform)


def _picture(text: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
