"""Servers that are hostile or broken.

Replies without bound or end, odd numbers, redirects, text of every kind that is not a turn.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look
from chat_server import ChatServer, Mishap, body, half, head, moved, one_tls_context, raw, status  # noqa: F401 - a fixture
from conformance import GREEDY, after, opening

from apr_plugin.errors import AprError
from apr_plugin.loop import (
    Budget,
    Episode,
    EpisodeConfig,
    Generation,
    MediaRef,
    Option,
    PolicyUnavailable,
    Question,
    StopReason,
    Trajectory,
)
from apr_plugin.policies.openai import servers as openai_servers
from apr_plugin.policies.openai.policy import OpenAIPolicy
from apr_plugin.runs import TrajectoryStore, run_episodes

pytest.importorskip("openai")
KEY = "sk-very-secret-0123456789"
BIG = b"9" * 400
JSON_HEAD = head(content_type="application/json", connection="close")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_servers, "FIRST_BACKOFF_S", 0.005)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer([look(0, 2), answer("B")]) as running:
        yield running


def generate(policy: OpenAIPolicy) -> Generation | str:
    """One turn, or the message of its failure."""
    try:
        return asyncio.run(policy.generate(opening(), GREEDY))
    except PolicyUnavailable as error:
        return str(error)


def reply(content: Any = "A turn", **choice: Any) -> dict[str, Any]:
    message = choice.pop("message", {})
    return {
        "choices": [{"index": 0, "message": {"content": content} | message, "finish_reason": "stop"} | choice],
        "usage": None,
    }


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


def with_usage(prompt: bytes, written: bytes = b"2") -> bytes:
    return (
        b'{"choices":[{"message":{"content":"A turn"}}],"usage":{"prompt_tokens":'
        + prompt
        + b',"completion_tokens":'
        + written
        + b"}}"
    )


TURN = written(reply())
bare_deflate = zlib.compressobj(wbits=-15)
READ: dict[str, Mishap] = {
    "plain text": body(TURN, "text/plain; charset=utf-8"),
    "html": body(TURN, "text/html"),
    "octets": body(TURN, "application/octet-stream"),
    "no type": raw(head(content_length=str(len(TURN))) + TURN),
    "unknown charset": body(TURN, "application/json; charset=nosuch"),
    "utf-16": body(json.dumps(reply()).encode("utf-16")),
    "byte order mark": body(b"\xef\xbb\xbf" + TURN),
    "gzip": body(gzip.compress(TURN), content_encoding="gzip"),
    "x-gzip": body(gzip.compress(TURN), content_encoding="X-GZip"),
    "deflate": body(zlib.compress(TURN), content_encoding="deflate"),
    "deflate without its header": body(bare_deflate.compress(TURN) + bare_deflate.flush(), content_encoding="deflate"),
    "identity": body(TURN, content_encoding="identity"),
    "status 299": body(TURN, status=299),
    "parts": body(reply([1, None, {"type": "thinking", "thinking": "hm"}, {"text": {"a": 1}},
    {"type": "text", "text": "A turn"}])),
    "one part": body(reply({"type": "text", "text": "A turn"})),
    "usage without bound": body(with_usage(BIG, BIG)),
    "usage of 5,000 digits": body(with_usage(b"9" * 5000)),
    "usage below 0": body(with_usage(b"-1", b"-5")),
    "usage no number": body(with_usage(b"NaN", b"Infinity")),
    "usage words": body(reply() | {"usage": "many"}),
    "metrics without bound": body(
        b'{"metrics":{"queue_time_ms":'
        + BIG
        + b',"generation_time_ms":1e300,"time_to_first_token_ms":true},'
        + TURN[1:]
    ),
    "finish list": body(reply(finish_reason=["x"])),
    "finish long": body(reply(finish_reason="z" * 100_000)),
    "finish escape": body(reply(finish_reason="\x1b[31m")),
    "log-probs without bound": body(
        b'{"choices":[{"message":{"content":"A turn"},"token_ids":[' + b"9" * 4000
        + b',1],"logprobs":{"content":[{"logprob":'
        + BIG
        + b'},{"logprob":NaN,"top_logprobs":[{"logprob":-Infinity}]}]}}]}'
    ),
    "log-probs of every kind": body(reply(token_ids=[-1, True],
    logprobs={"content": [{"logprob": True}, {"logprob": -1e308, "top_logprobs": "x"}]})),
    "long": body(written(reply()) + b" " * 400_000),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_an_odd_reply_with_a_turn_in_it_is_read(server: ChatServer, kind: str) -> None:
    server.always = READ[kind]
    told = generate(OpenAIPolicy(base_url=server.url, retries=0, top_logprobs=2))
    assert isinstance(told, Generation) and told.text == "A turn" and told.finish_reason == "stop" and told.remark == ""
    numbers = [
        *vars(told.usage).values(),
        *vars(told.timings).values(),
        *(told.token_ids or ()),
        *(told.logprobs or ()),
    ]
    assert all(number is None or -10_000 <= number < 10_000 for number in numbers)
    assert told.token_ids is None and told.usage.prompt_tokens is None


NO_TURN: dict[str, tuple[Mishap, str]] = {
    "empty": (body(b""), "the reply is empty"),
    "no content": (body(b"", status=204), "the reply is empty"),
    "nulls": (body(b"\0" * 50), "the reply is not JSON"),
    "html": (body(b"<html>hi</html>", "text/html"), "the reply is not JSON but text/html: <html>hi</html>"),
    "a stream": (
        body(b'data: {"choices": []}\n\n', "text/event-stream"),
        "the reply is not JSON but text/event-stream: data:",
    ),
    "half a value": (body(b'{"choices": ['), "the reply is not JSON (Expecting value"),
    "deep": (
        body(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "the reply is not JSON (nested too deeply)",
    ),
    "no choice": (body({"choices": {"0": 1}}), "the reply has no choice: {'choices': {'0': 1}}"),
    "a null choice": (body({"choices": [None]}), "the reply has no choice"),
    "a message of words": (body({"choices": [{"message": "x"}]}), "the reply has no choice"),
    "a number": (body(reply(5)), "the reply's content is not text: 5"),
    "error in a good reply": (body({"error": {"message": "no provider"}}), "no provider"),
    "a great many": (body([[]] * 50_000), "the reply is not a JSON object: [[], [], [], [], [], [], [], [], ...]"),
    "unasked coding": (body(TURN, content_encoding="br"), "written as br (Content-Encoding)"),
    "twice packed": (body(TURN, content_encoding="gzip, gzip"), "written as gzip, gzip"),
    "no gzip": (body(TURN, content_encoding="gzip"), "the reply is not gzip, as its Content-Encoding says"),
    "half a gzip": (body(gzip.compress(TURN)[:-9], content_encoding="gzip"), "the reply breaks off (gzip)"),
    "too long": (
        body(b" " * (1 << 20) + TURN),
        "the reply is longer than 1 MiB; if that is right, raise max_reply_mib",
    ),
    "without end": (raw(JSON_HEAD, b" " * 65_536), "the reply is longer than 1 MiB"),
    "chunks without end": (
        raw(head(transfer_encoding="chunked"), b"1000\r\n" + b" " * 4096 + b"\r\n"),
        "the reply is longer than 1 MiB",
    ),
    "headers without end": (raw(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"b" * 60_000 + b"\r\n"), "the connection failed"),
    "early words without end": (raw(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), "no answer within 0.5 s"),
    "dripping": (raw(JSON_HEAD, b" ", 0.05), "no answer within 0.5 s"),
    "dripping headers": (raw(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", 0.05), "no answer within 0.5 s"),
    "an error without end": (raw(head(500), b"x" * 65_536), f"HTTP 500: {'x' * 300}"),
    "an error that is a bomb": (
        body(gzip.compress(b"x" * (1 << 24)), status=400, content_encoding="gzip"),
        f"HTTP 400: {'x' * 300}",
    ),
    "an error that is no gzip": (body(b"x", status=400, content_encoding="gzip"), "HTTP 400: "),
    "an error in an unasked coding": (body(b"x", status=400, content_encoding="br"), "HTTP 400: "),
    "a deep error": (body(b'{"error":' + b"[" * 20_000, status=400), "HTTP 400: {"),
    "an error with escapes": (status(400, "\x1b[31mred\r\n\x07 \u202e"), "HTTP 400: ?[31mred ? ?"),
    "the key, and its beginning": (status(401, f"{KEY} {KEY[:15]} {KEY[:9]}..."), "HTTP 401: [key] [key] [key]..."),
    "half": (half, "the connection failed"),
    "no HTTP": (raw(b"\x16\x03\x01\x02\x00 nonsense\r\n\r\n"), "the connection failed"),
    "two lengths": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\n{}   {}  "),
        "the connection failed",
    ),
}


@pytest.mark.parametrize("kind", NO_TURN)
def test_what_is_no_turn_ends_the_question_with_its_reason(
    server: ChatServer, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    mishap, words = NO_TURN[kind]
    policy = OpenAIPolicy(
        base_url=server.url, retries=0, timeout_s=0.5 if words.startswith("no answer") else 20.0, max_reply_mib=1
    )
    server.always = mishap
    told = generate(policy)
    assert (
        isinstance(told, str)
        and told.startswith(server.url)
        and words in told
        and len(told) < 800
        and told.isprintable()
    )
    assert KEY not in caplog.text + told
    server.always = None
    assert isinstance(generate(policy), Generation), "the next request goes well"


def bomb(mib: int) -> bytes:
    packed = zlib.compressobj(1, wbits=31)
    pieces = [
        packed.compress(b'{"choices":[{"message":{"content":"'),
        *(packed.compress(b"x" * (1 << 20)) for _ in range(mib)),
    ]
    return b"".join([*pieces, packed.compress(b'"}}]}'), packed.flush()])


def test_a_reply_that_unpacks_to_far_more_costs_no_more_than_the_limit(server: ChatServer) -> None:
    policy = OpenAIPolicy(base_url=server.url, retries=0, max_reply_mib=4)
    server.always = body(bomb(128), content_encoding="gzip")
    generate(OpenAIPolicy(base_url=server.url, retries=0, max_reply_mib=0.001))  # loads what is loaded only once
    tracemalloc.start()
    try:
        told = generate(policy)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert told == f"{server.url}: the reply is longer than 4 MiB; if that is right, raise max_reply_mib"
    assert peak < 32 << 20


def test_a_long_reply_is_decoded_beside_the_event_loop(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from apr_plugin.policies.openai import http as openai_http

    threads = []
    decode = openai_http.decode
    monkeypatch.setattr(
        openai_http, "decode", lambda *given: threads.append(threading.current_thread()) or decode(*given)
    )
    policy = OpenAIPolicy(base_url=server.url)
    threads.clear()
    generate(policy)
    server.always = body(reply("y" * 1_000_000))
    told = generate(policy)
    assert isinstance(told, Generation) and len(told.text) == 1_000_000
    assert [thread is threading.main_thread() for thread in threads[-2:]] == [True, False]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_leads_to_another_server(
    server: ChatServer, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with ChatServer(["stolen"]) as other:
        policy = OpenAIPolicy(base_url=server.url, retries=3)
        server.always = moved(code, f"{other.url}/chat/completions?token=query")
        told = generate(policy)
        assert told == (
            f"{server.url}: HTTP {code}: it points to {other.url}/chat/completions, another server, where "
            "nothing is sent; "
            "if that is the right one, give it as base_url="
        )
        server.always, server.models = None, moved(code, f"{other.url}/models")
        with pytest.raises(AprError, match=f"HTTP {code}: it points to {other.url}/models, another server"):
            OpenAIPolicy(base_url=server.url)
        assert not other.seen and KEY not in caplog.text


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("file:///etc/passwd", "another server"),
        ("/v1/chat/completions", "more than 5 redirects"),
        ("http://user:pa55word@127.0.0.1:{port}/v1/x", "with a user or password"),
        ("https://127.0.0.1:{port}/v1/chat/completions", "another server"),
        ("http://localhost:{port}/v1/chat/completions", "another server"),
        ("http://[::1:bad/", "127.0.0.1"),  # httpx and httpx2 say different things
    ],
)
def test_odd_redirects(server: ChatServer, target: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    policy = OpenAIPolicy(base_url=server.url, retries=0)
    server.always = moved(307, target.format(port=server.port))
    caplog.set_level(logging.INFO)
    told = generate(policy)
    assert isinstance(told, str) and words in told and "pa55word" not in told + caplog.text


def test_a_redirect_within_the_server_is_followed(server: ChatServer) -> None:
    policy = OpenAIPolicy(base_url=server.url, retries=0)
    server.mishaps.append(moved(307, "/v1/chat/completions"))
    assert isinstance(generate(policy), Generation) and len(server.chats) == 2 and server.chats[0] == server.chats[1]
    server.mishaps.append(moved(302, "/v1/chat/completions"))
    told = generate(policy)
    assert isinstance(told, str) and "without the request" in told


@pytest.mark.parametrize("asked", ["0", "-5", "nan", "0.001", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_server_that_asks_for_no_pause_gets_one(
    server: ChatServer, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_servers, "FIRST_BACKOFF_S", 0.04)
    policy = OpenAIPolicy(base_url=server.url, retries=3)
    server.always = status(429, retry_after=asked)
    told = generate(policy)
    assert isinstance(told, str) and "(4 tries in" in told
    pauses = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert [pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08), strict=True)] == [True] * 3


@pytest.mark.parametrize("asked", ["99999999", "Fri, 31 Dec 9999 23:59:59 GMT", "1e308"])
def test_a_pause_of_years_is_cut_short(server: ChatServer, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_servers, "LONGEST_RETRY_AFTER_S", 0.02)
    server.mishaps.append(status(503, retry_after=asked))
    assert isinstance(generate(OpenAIPolicy(base_url=server.url)), Generation)


EMPTY: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": (reply(""), ""),
    "null": (reply(None), ""),
    "thought, cut off": (reply(None, message={"reasoning_content": "I think"}, finish_reason="length"),
    "cut off while thinking, at its"),
    "thought of a newer server": (reply("", message={"reasoning": "hm"}, finish_reason="length"),
    "cut off while thinking"),
    "thought that is only counted": (
        reply("", finish_reason="length") | {"usage": {"completion_tokens_details": {"reasoning_tokens": 64}}},
            "cut off while thinking"
    ),
    "thought as a part": (reply([{"type": "thinking", "thinking": "hm"}], finish_reason="length"),
    "cut off while thinking"),
    "cut off in other words": (reply(None, message={"reasoning": "hm"}, finish_reason="MAX_TOKENS"),
    "cut off while thinking"),
    "cut off": (reply("", finish_reason="length"), "cut off, at its length limit (max_new_tokens)"),
    "thought alone": (reply(None, message={"reasoning_content": "I think"}), "thought alone"),
    "a tool": (
        reply(None, message={"tool_calls": [{"function": {"name": "get_frames", "arguments": "{}"}}]},
            finish_reason="tool_calls"),
        "a tool call (get_frames)",
    ),
    "an odd tool": (reply(None, message={"tool_calls": [{"function": {"name": "\x1b[31m<|im_end|>"}}, 7]}),
    "a tool call (without a name)"),
    "a function": (reply(None, message={"function_call": {"name": "f"}}), "a tool call (f)"),
    "the key as a tool": (reply(None, message={"function_call": {"name": KEY}}), "a tool call ([key])"),
    "a filter": (reply("", finish_reason="content_filter"), "content filter"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EMPTY)
def test_a_turn_without_words_is_named_as_what_it_is(
    server: ChatServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    given, words = EMPTY[kind]
    server.always = body(given)
    told = generate(OpenAIPolicy(base_url=server.url, retries=0))
    assert isinstance(told, Generation) and told.text == "" and told.remark.isprintable()
    assert told.remark == "" if words == "" else words in told.remark


@pytest.mark.parametrize("arm", ["agent", "passive"])
def test_the_reason_is_in_the_trajectory_and_the_model_reads_it(
    server: ChatServer, shared_videos: dict[str, Path], arm: str
) -> None:
    policy = OpenAIPolicy(base_url=server.url, retries=0)
    config = EpisodeConfig(budget=Budget(turns=3, frame_pixels=64 * 64), arm=arm, passive_frames=2)  # type: ignore[arg-type]
    server.mishaps.append(
        body(reply(None, message={"tool_calls": [{"function": {"name": "get_frames"}}]}, finish_reason="tool_calls"))
    )
    done = asyncio.run(Episode(question(shared_videos), policy, config).run())
    if arm == "passive":
        assert (done.stop_reason, done.answer) == (
            StopReason.TURNS,
            None,
        ) and "a tool call (get_frames)" in done.stop_detail
        return
    assert done.turns[0].error is not None and "a tool call (get_frames)" in done.turns[0].error.message
    assert "a tool call (get_frames)" in json.dumps(server.chats[1]["messages"]) and done.answer == "B"
    server.always = body(reply(None, message={"reasoning": "hm"}, finish_reason="length"))
    done = asyncio.run(Episode(question(shared_videos), policy, config).run())
    assert (
        done.answer is None
        and done.stop_detail.count("cut off while thinking") == 1
        and "empty" not in done.stop_detail
    )


def question(videos: dict[str, Path]) -> Question:
    options = (Option(label="A", text="red"), Option(label="B", text="blue"))
    return Question(
        text="Which?", kind="mcq", options=options, videos=(MediaRef(path=str(videos["sound"])),), doc_id="0"
    )  # type: ignore[arg-type]


def test_no_number_of_a_reply_poisons_a_run(server: ChatServer, shared_videos: dict[str, Path], tmp_path: Path) -> None:
    answered = written(reply(answer("B")))[1:]
    server.always = body(
        b'{"metrics":{"queue_time_ms":'
        + BIG
        + b"},"
        + answered.replace(b'"usage": null', b'"usage":{"prompt_tokens":%b,"completion_tokens":%b}' % (BIG, BIG))
    )
    server.models = body(b'{"data":[{"id":"small","owned_by":"vllm","max_model_len":' + BIG + b"}]}")
    server.counts = body(b'{"count":' + BIG + b"}")
    policy = OpenAIPolicy(base_url=server.url, retries=0, context_tokens=20_000)
    config = EpisodeConfig(budget=Budget(turns=3, min_turns=1, frame_pixels=64 * 64), arm="passive", passive_frames=2)  # type: ignore[arg-type]
    for n in range(2):  # the second time with what was stored
        with TrajectoryStore(tmp_path, config.hash(policy), config.describe(policy)) as store:
            asyncio.run(
                run_episodes(
                    [question(shared_videos).model_copy(update={"doc_id": str(n)})], policy, config, 1, store=store
                )
            )
        kept = [trajectory for file in tmp_path.rglob("*.jsonl") for trajectory in Trajectory.iterate(file)]
        assert [(t.answer, t.turns[0].usage.prompt_tokens) for t in kept][-1] == ("B", None)


MODELS: dict[str, tuple[Mishap, str]] = {
    "missing": (status(404), "name one with model="),
    "none": (body({"data": []}), "has none that it names"),
    "html": (body(b"<html>", "text/html"), "name one with model="),
    "ids of another kind": (body({"data": [{"id": 5}, "x"]}), "has none that it names"),
    "an escape": (body({"data": [{"id": "\x1b[31mevil\x07"}]}), "has none that it names"),
    "a long name": (body({"data": [{"id": "q" * 1_000_000}]}), "has none that it names"),
    "deep": (body(b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "name one with model="),
    "without end": (raw(JSON_HEAD, b" " * 65_536), "name one with model="),
    "dripping": (raw(JSON_HEAD, b" ", 0.05), "no server answers"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_list_of_models_that_is_none_is_found_out_at_the_start(server: ChatServer, kind: str) -> None:
    server.models, words = MODELS[kind]
    began = time.monotonic()
    with pytest.raises(AprError, match=words) as refused:
        OpenAIPolicy(base_url=server.url, timeout_s=0.3 if kind == "dripping" else 20.0, max_reply_mib=1)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400 and time.monotonic() - began < 30


@pytest.mark.parametrize("most", [BIG, b"-5", b'"8192"', b"NaN", b"0", b"true", b"8192.5"])
def test_a_context_that_is_no_number_is_unknown(server: ChatServer, most: bytes) -> None:
    server.models = body(b'{"data":[{"id":"m","root":"\\u001b","max_model_len":' + most + b"}]}")
    policy = OpenAIPolicy(base_url=server.url)
    assert policy.context_tokens is None and policy.describe()["weights"] is None


def test_a_server_that_calls_its_model_by_our_key(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.models = body({"data": [{"id": f"x {KEY}", "root": KEY}]})
    assert KEY not in json.dumps(OpenAIPolicy(base_url=server.url).describe())


@pytest.mark.parametrize(
    "told",
    [body({"count": -5}), body({"count": 0}), body(b'{"count":' + BIG + b"}"), body({"count": "5"}),
    body(b"<html>", "text/html"), status(500),
     raw(JSON_HEAD, b" " * 65_536), body(bomb(8), content_encoding="gzip"), moved(307, "http://127.0.0.2/tokenize")],
)  # fmt: skip
def test_a_count_that_is_none_is_estimated(server: ChatServer, told: Mishap, caplog: pytest.LogCaptureFixture) -> None:
    server.counts = told
    policy = OpenAIPolicy(base_url=server.url, max_reply_mib=1)
    size = asyncio.run(policy.count(after("frames")))
    assert size is not None and 100 < size.total < 5000
    assert [record.getMessage()[:25] for record in caplog.records if record.levelno == logging.WARNING] == [
        "tokens are estimated whil"
    ]
