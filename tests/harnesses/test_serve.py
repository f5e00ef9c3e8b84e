"""The endpoint with OpenAI's own client: answers, streams, files, errors, and what is stored."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import answer, look
from PIL import Image
from serve_testing import Served, busy, chat, choices, data_url, letters, user, video_part, wait_for

from apr_plugin import open_run
from apr_plugin.harnesses.serve.limits import ServeLimits
from apr_plugin.loop.policy import Generation, PolicyDefaults, PolicyUnavailable, Prompt, Sampling, Usage
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.scoring.text import NO_ANSWER

openai = pytest.importorskip("openai")


class Plays(PolicyDefaults):
    """Writes turns in order, by the number of turns in the prompt; counts its tokens."""

    name = "plays"

    def __init__(self, *turns: str) -> None:
        self.turns = turns
        self.prompts: list[Prompt] = []

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        self.prompts.append(prompt)
        at = min(sum(message.role == "assistant" for message in prompt.messages), len(self.turns) - 1)
        return Generation(self.turns[at], Usage(prompt_tokens=100 + at, completion_tokens=10, cached_tokens=50 * at))

    def describe(self) -> dict[str, Any]:
        return {"turns": list(self.turns)}


@pytest.fixture(scope="module")
def served(
    served_needles: Path, shared_videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The scripted agent on needle videos; the shared videos may be named, too."""
    roots = (served_needles, shared_videos["sound"].parent)
    with Served(tmp_path_factory.mktemp("out"), *roots, limits=ServeLimits(upload_bytes=4 * 2**20)) as server:
        yield server


def test_a_question_is_answered_in_the_harness_s_form_and_stored(served: Served, served_needles: Path) -> None:
    docs = choices(served_needles)
    client = served.client()
    assert [model.id for model in client.models.list()] == ["apr"] and client.models.retrieve("apr").id == "apr"
    done = {}
    for doc in docs:
        done[doc["id"]] = client.chat.completions.create(
            model="apr", messages=user(letters(doc), video_part(doc["video"])), temperature=0, max_tokens=16
        )
    assert [reply.choices[0].message.content for reply in done.values()] == [doc["answer"] for doc in docs]
    first = done[docs[0]["id"]]
    assert first.choices[0].finish_reason == "stop" and first.usage is None, "this policy counts no tokens"
    assert first.apr["ignored"] == ["max_tokens", "temperature"] and first.apr["frames"] > 0
    run = open_run(served.service.store.folder)
    kept = run["serve", "", first.id, 0]
    assert kept.answer == docs[0]["answer"] and kept.question.options[0].label == "A" and not run.failed
    assert kept.question.videos[0].path == docs[0]["video"] and len(kept.turns) == first.apr["turns"]


def test_an_async_client_and_an_uploaded_video(served: Served, served_needles: Path) -> None:
    doc = choices(served_needles)[0]
    upload = {"type": "video_url", "video_url": {"url": data_url(Path(doc["video"]))}}

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
            return await client.chat.completions.create(
                model="apr", messages=user(letters(doc), upload), extra_body={"apr": {"trajectory": True}}
            )

    reply = asyncio.run(ask())
    assert reply.choices[0].message.content == doc["answer"]
    told = json.dumps(reply.apr["trajectory"])
    trajectory = Trajectory.from_json(told)
    assert trajectory.answer == doc["answer"] and trajectory.question.videos[0].path == "upload-1"
    assert str(served.service.uploads.folder) not in reply.model_dump_json()
    wait_for(served.idle)  # the uploaded file is deleted


def test_a_stream_has_the_thought_before_the_look_ends(served: Served, served_needles: Path) -> None:
    doc = choices(served_needles)[0]
    messages = user(letters(doc), video_part(doc["video"]))
    seen = []
    with busy(served):
        stream = served.client().chat.completions.create(
            model="apr", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        for chunk in stream:
            seen.append(chunk)
            if getattr(chunk, "apr", {}).get("event") == "thought":
                break
        assert "→ get_frames" in seen[-1].choices[0].delta.reasoning_content
        assert seen[-1].apr["action"]["type"] == "get_frames" and seen[-1].apr["turn"] == 1
        assert served.service.slots.running == 1
    seen += list(stream)
    events = [chunk.apr["event"] for chunk in seen if "event" in getattr(chunk, "apr", {})]
    assert events[:3] == ["opened", "thought", "turn"] and events[-1] == "turn"
    assert [chunk.choices[0].delta.content for chunk in seen if chunk.choices and chunk.choices[0].delta.content] == [
        doc["answer"]
    ]
    assert seen[-2].choices[0].finish_reason == "stop" and seen[-2].apr["stop_reason"] == "answered"
    assert not seen[-1].choices and len({chunk.id for chunk in seen}) == 1


def test_tokens_are_those_of_the_whole_episode(tmp_path: Path, shared_videos: dict[str, Path]) -> None:
    video = shared_videos["sound"]
    with Served(tmp_path, video.parent, policy=Plays(look(0, 2), look(2, 4), answer("B"))) as server:
        reply = server.client().chat.completions.create(
            model="apr", messages=user("Which?\nA. red\nB. blue", video_part(video))
        )
        stream = server.client().chat.completions.create(
            model="apr",
            messages=user("Which?\nA. red\nB. blue", video_part(video)),
            stream=True,
            stream_options={"include_usage": True},
        )
        last = list(stream)[-1]
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (303, 30, 333)
    assert reply.usage.prompt_tokens_details.cached_tokens == 150
    assert reply.apr["turn_tokens"] == [[100, 10], [101, 10], [102, 10]]
    assert last.usage.total_tokens == 333
    assert reply.choices[0].message.reasoning_content.count("Turn ") == 3


def _sound(path: Path) -> dict[str, Any]:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": "flac"}}


def test_several_videos_sound_alone_and_a_part_of_a_file(tmp_path: Path, shared_videos: dict[str, Path]) -> None:
    sound, ears = shared_videos["sound"], shared_videos["ears"]
    hears = json.dumps({"observation": "", "think": "", "action": {"type": "get_audio", "start": 0, "end": 2}})
    part = {"type": "video_url", "video_url": {"url": str(sound), "start_s": 1, "end_s": 3}}
    with Served(tmp_path, sound.parent, policy=Plays(look(0, 1, video=1), answer("two"))) as server:
        status, _, two = server.post(chat("What?", video_part(sound), part, apr={"trajectory": True}))
    with Served(tmp_path, policy=Plays(hears, answer("a chirp"))) as server:
        heard, _, alone = server.post(chat("What is heard?", _sound(ears), apr={"trajectory": True}))
    assert status == 200 and two["apr"]["trajectory"]["video_durations_s"] == [6.0, 2.0]
    assert two["apr"]["trajectory"]["turns"][0]["shown"]["video"] == 1
    assert heard == 200 and alone["choices"][0]["message"]["content"] == "a chirp" and alone["apr"]["audio_s"] == 2


def test_pictures_and_words_alone_get_one_passive_turn(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    picture = {"type": "image_url", "image_url": {"url": data_url(tmp_path / "grey.png", "image/png"), "detail": "low"}}
    policy = Plays("B")
    with Served(tmp_path / "out", policy=policy) as server:
        for parts in ([picture, picture], []):
            status, _, reply = server.post(chat("Which?\nA. red\nB. grey", *parts))
            assert status == 200 and reply["choices"][0]["message"]["content"] == "B"
            assert reply["apr"]["turns"] == 1
        shown = [prompt.text.count("<image 60x40>") for prompt in policy.prompts]
        status, _, reply = server.post(chat("Which?", picture, _sound(tmp_path / "grey.png")))
    assert shown == [2, 0] and status == 400 and "pictures beside a video" in reply["error"]["message"]


def test_a_conversation_and_the_extra_fields(tmp_path: Path, shared_videos: dict[str, Path]) -> None:
    policy = Plays(look(0, 1), answer("2"))
    messages = [
        {"role": "system", "content": "You know films."},
        *user("What is it?", video_part(shared_videos["silent"])),
        {"role": "assistant", "content": "A count."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "Best option:("},
    ]
    options = {"options": ["one", "two", "three"], "kind": "mcq"}
    with Served(tmp_path, shared_videos["silent"].parent, policy=policy) as server:
        number = server.post({"model": "apr", "messages": messages, "apr": {"kind": "number", "hint": "in words"}})[2]
        chosen = server.post({"model": "apr", "messages": messages, "apr": options})
        wrong = server.post({"model": "apr", "messages": messages, "apr": {"kind": "mcq"}})
        asked = [trajectory.question for trajectory in server.stored()]
    assert number["apr"]["kind"] == "number" and number["choices"][0]["message"]["content"] == "2"
    assert asked[0].answer_hint == "in words" and [option.label for option in asked[1].options] == ["A", "B", "C"]
    assert asked[0].text.startswith("You know films.") and asked[0].text.endswith("How many?")
    assert "assistant: A count." in asked[0].text and "Best option" not in asked[0].text
    assert chosen[0] == 200 and wrong[0] == 400 and "needs options" in wrong[2]["error"]["message"]


class Fails(PolicyDefaults):
    """Can't be reached."""

    name = "fails"

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        raise PolicyUnavailable("http://10.0.0.7/secret is gone")

    def describe(self) -> dict[str, Any]:
        return {}


class Sleeps(PolicyDefaults):
    """Looks once, then thinks for an hour."""

    name = "sleeps"

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        if any(message.role == "assistant" for message in prompt.messages):
            await asyncio.sleep(3600)
        return Generation(look(0, 1))

    def describe(self) -> dict[str, Any]:
        return {}


def test_an_unanswered_question_is_never_an_answer(tmp_path: Path, shared_videos: dict[str, Path]) -> None:
    video = shared_videos["silent"]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"these are words, not a video\n" * 50)
    roots = (video.parent, tmp_path)
    request = chat("Which?\nA. red\nB. blue", video_part(video))
    ends = {}
    with Served(tmp_path / "1", *roots, policy=Fails()) as server:
        ends["policy"] = server.post(request)
        ends["stream"] = server.post(request | {"stream": True})
        ends["media"] = server.post(chat("Which?", video_part(broken)))
        assert {t.stop_reason for t in server.stored()} == {
            StopReason.POLICY_UNAVAILABLE,
            StopReason.MEDIA_UNREADABLE,
        }
    with Served(tmp_path / "2", *roots, policy=Sleeps(), limits=ServeLimits(timeout_s=1)) as server:
        ends["time"] = server.post(request)
        (late,) = server.stored()
        with pytest.raises(openai.InternalServerError, match="took longer than 1s"):
            server.client().with_options(max_retries=2).chat.completions.create(**request)
        assert len(server.stored()) == 2, "the client does not repeat what took too long"
    for name, (status, code) in {
        "policy": (503, "policy_unavailable"),
        "stream": (503, "policy_unavailable"),
        "media": (400, "media_unreadable"),
        "time": (504, "time_limit"),
    }.items():
        assert ends[name][0] == status and ends[name][2]["error"]["code"] == code, name
        assert "10.0.0.7" not in json.dumps(ends[name][2]), "what is behind the endpoint is not told"
    assert ends["policy"][1]["retry-after"] and late.stop_reason is StopReason.WALL_CLOCK and len(late.turns) == 1
    assert ends["time"][2]["error"]["apr"]["id"] == late.question.doc_id
    with Served(tmp_path / "3", *roots, policy=Fails(), unanswered="null") as server:
        status, _, reply = server.post(request)
        assert status == 200 and reply["choices"][0]["message"]["content"] == NO_ANSWER
        assert reply["choices"][0]["finish_reason"] == "error" and "10.0.0.7" not in json.dumps(reply)
        away = {"type": "video_url", "video_url": {"url": "https://example.org/film.mp4"}}
        status, _, reply = server.post(chat("Which?", away))
        assert status == 200 and reply["apr"]["stop_reason"] == "media_unreadable"
        assert "addresses are not fetched" in reply["apr"]["stop_detail"] and str(tmp_path) not in json.dumps(reply)
    with Served(tmp_path / "4", *roots, policy=Plays(look(0, 1)), max_turns=2, on_last_turn="fail") as server:
        status, _, reply = server.post(request)
        assert status == 200 and reply["choices"][0]["message"]["content"] == NO_ANSWER
        assert reply["choices"][0]["finish_reason"] == "length" and reply["apr"]["stop_reason"] == "turns"
        thoughts = reply["choices"][0]["message"]["reasoning_content"]
        assert thoughts.count("so\n") == 2 and "only an answer counts" in thoughts, "also of the turn that was refused"


def test_a_stream_that_fails_on_its_way_says_so(tmp_path: Path, shared_videos: dict[str, Path]) -> None:
    video = shared_videos["silent"]
    with Served(tmp_path, video.parent, policy=Sleeps(), limits=ServeLimits(timeout_s=1)) as server:
        stream = server.client().chat.completions.create(
            model="apr", messages=user("Which?", video_part(video)), stream=True
        )
        with pytest.raises(openai.APIError, match="took longer than 1s") as raised:
            list(stream)
    assert raised.value.code == "time_limit"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n": 2}, "only one answer"),
        ({"logprobs": True}, "log-probabilities"),
        ({"tools": [{"type": "function"}]}, "tools of a request"),
        ({"modalities": ["text", "audio"]}, "only text"),
        ({"response_format": {"type": "json_object"}}, "only text is written"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "   "}]}, "no text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: Field required"),
        ({"apr": {"trajectories": True}}, "apr.trajectories"),
        ({"apr": {"options": ["A. x", "A. y"]}}, "same label"),
    ],
)
def test_a_request_that_cannot_apply_is_refused_clearly(served: Served, change: dict[str, Any], told: str) -> None:
    status, _, reply = served.post(chat("Which?") | change)
    assert status == 400 and told in reply["error"]["message"]
    assert reply["error"]["type"] == "invalid_request_error"


def test_wrong_model_wrong_path_wrong_method_wrong_type(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'apr'"):
        served.client().chat.completions.create(model="gpt", messages=user("Which?"))
    assert served.post({}, path="/v1/embeddings")[0] == 404
    assert served.post({}, path="/v1/models")[0] == 405
    assert served.post({}, path="/v1/models/other")[0] == 405
    assert served.post(b"{}", {"Content-Type": "text/plain"})[0] == 415


def test_a_key_and_the_name_of_the_server(tmp_path: Path) -> None:
    with Served(tmp_path, policy=Plays("yes"), key="s3cret") as server:
        assert server.client().chat.completions.create(model="apr", messages=user("Yes?")).choices[0].message.content
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            status, told, reply = server.post(chat("Yes?"), headers)
            assert status == 401 and told["www-authenticate"] == "Bearer"
            assert reply["error"]["type"] == "authentication_error"
        key = {"Authorization": "Bearer s3cret"}
        assert server.post(chat("Yes?"), key | {"Host": "evil.example"})[0] == 421
        assert server.post(chat("Yes?"), key | {"Host": "localhost:1"})[0] == 200


def test_a_small_real_model_answers_several_at_once(
    tiny: Callable[[str], Path], tmp_path: Path, shared_videos: dict[str, Path]
) -> None:
    pytest.importorskip("torch")
    video = shared_videos["silent"]
    arguments = {"pretrained": str(tiny("qwen2_5_vl")), "max_turns": 2, "max_new_tokens": 8, "frame_pixels": 3136}
    with Served(tmp_path, video.parent, policy="hf", **arguments) as server:

        async def ask() -> Sequence[Any]:
            async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
                texts = [f"Which, number {n}?\nA. red\nB. blue" for n in range(4)]
                requests = [
                    client.chat.completions.create(model="apr", messages=user(text, video_part(video)))
                    for text in texts
                ]
                return await asyncio.gather(*requests)

        replies = asyncio.run(ask())
        stored = {trajectory.question.doc_id: trajectory for trajectory in server.stored()}
    assert len(stored) == 4 == len({reply.id for reply in replies})
    for reply in replies:
        turns = stored[reply.id].turns
        assert reply.usage.prompt_tokens == sum(turn.usage.prompt_tokens or 0 for turn in turns) > 0
        assert reply.usage.completion_tokens == sum(turn.usage.completion_tokens or 0 for turn in turns) > 0
