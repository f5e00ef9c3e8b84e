"""Servers that fail: they are tried again, skipped, given up; and a key that is never shown."""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from apr_testing import answer, look
from chat_server import ChatServer, Mishap, body, drop, garbage, half, hang, html, no_choices, one_tls_context, status  # noqa: F401 - a fixture
from conformance import GREEDY, after, notebook, opening

from apr_plugin.errors import AprError
from apr_plugin.loop import (
    Budget,
    Episode,
    EpisodeConfig,
    MediaRef,
    Option,
    PolicyUnavailable,
    Question,
    StopReason,
    Trajectory,
)
from apr_plugin.policies.openai import servers as openai_servers
from apr_plugin.policies.openai.failure import retry_after
from apr_plugin.policies.openai.policy import OpenAIPolicy
from apr_plugin.policies.openai.servers import Server
from apr_plugin.runs import TrajectoryStore, run_episodes

pytest.importorskip("openai")
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_servers, "FIRST_BACKOFF_S", 0.005)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer([look(0, 2), answer("B")]) as running:
        yield running


def turns(policy: OpenAIPolicy, n: int = 1) -> list[str | Exception]:
    """Ask for `n` turns at once; return the outcome of each."""

    async def together() -> list[Any]:
        return await asyncio.gather(*(policy.generate(opening(), GREEDY) for _ in range(n)), return_exceptions=True)

    return [done if isinstance(done, Exception) else done.text for done in asyncio.run(together())]


def test_every_passing_fault_is_tried_again(server: ChatServer) -> None:
    policy = OpenAIPolicy(base_url=server.url, timeout_s=1.0)
    faults = [drop, half, garbage, html, no_choices, hang, *(status(code) for code in (408, 409, 429, 500, 502, 503))]
    faults.append(body({"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}))
    (right,) = turns(policy)
    for fault in faults:
        server.mishaps.append(fault)
        before = len(server.chats)
        assert turns(policy) == [right] and len(server.chats) == before + 2
    server.mishaps += [status(500)] * 5
    assert turns(policy) == [right]


def spent(handler: Any) -> None:
    handler.reply({"error": {"message": "you have no credit left", "code": "insufficient_quota"}}, 429)


@pytest.mark.parametrize(
    ("fault", "words", "tries"),
    [
        (status(400, "too many\nimages \x1b[31m"), "HTTP 400: too many images ?[31m", 1),
        (status(401, f"bad key {KEY}"), "HTTP 401: bad key [key]", 1),
        (status(404, "no such model"), "HTTP 404: no such model", 1),
        (spent, "HTTP 429: you have no credit left", 1),
        (status(500), "HTTP 500: the engine is unwell (3 tries in 0 s)", 3),
        (no_choices, "the reply has no choice: {'choices': [], 'usage': {}} (3 tries in 0 s)", 3),
        (
            body(f"<p>{KEY}</p>".encode(), "text/html"),
            "the reply is not JSON but text/html: <p>[key]</p> (3 tries in 0 s)",
            3,
        ),
        (status(403, "x" * 490 + KEY), f"HTTP 403: {'x' * 490}[key]", 1),
    ],
)
def test_a_turn_that_is_given_up_says_which_server_and_its_words(
    server: ChatServer, fault: Mishap, words: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    policy = OpenAIPolicy(base_url=server.url, retries=2)
    server.always = fault
    (error,) = turns(policy)
    assert isinstance(error, PolicyUnavailable) and str(error) == f"{server.url}: {words}"
    assert error.__cause__ is None and error.__suppress_context__, "a traceback would show the server's own words"
    assert len(server.chats) == tries


def test_tokens_are_counted_by_a_server_that_is_there(caplog: pytest.LogCaptureFixture) -> None:
    """A dead server has no requests in flight, so it would always be the least loaded one."""

    def counts(policy: OpenAIPolicy, first: int) -> list[int]:
        prompts = [
            notebook(Question(text=f"What is it, {first + n}?", kind="free_form")).prompt(1, 5) for n in range(4)
        ]  # type: ignore[arg-type]
        sizes = [asyncio.run(policy.count(prompt)) for prompt in prompts]
        return [size.total for size in sizes if size is not None]

    with ChatServer() as dead, ChatServer() as server:
        policy, alone = OpenAIPolicy(base_url=f"[{dead.url},{server.url}]"), OpenAIPolicy(base_url=server.url)
        dead.stop()
        assert counts(policy, 0) == counts(alone, 0) and not caplog.records
        server.stop()
        assert len(counts(policy, 4)) == 4
    (told,) = caplog.records
    assert told.getMessage().startswith("tokens are estimated while they can't be counted: the connection failed"), (
        "said once, not for each turn"
    )


def test_a_server_that_hangs_is_left_after_the_timeout(server: ChatServer) -> None:
    policy = OpenAIPolicy(base_url=server.url, timeout_s=0.4, retries=1)
    server.always = hang
    (error,) = turns(policy)
    assert str(error).startswith(f"{server.url}: no answer within 0.4 s (2 tries in ")


def test_the_episodes_own_clock_ends_a_request(server: ChatServer, shared_videos: dict[str, Path]) -> None:
    policy = OpenAIPolicy(base_url=server.url)
    server.always = hang
    began = time.monotonic()
    done = asyncio.run(Episode(question(shared_videos), policy, EpisodeConfig(budget=Budget(wall_clock_s=1.0))).run())
    assert done.stop_reason is StopReason.WALL_CLOCK and time.monotonic() - began < 20


def test_retry_after_holds_back_everything_for_that_server(server: ChatServer) -> None:
    policy = OpenAIPolicy(base_url=server.url, max_connections=1)
    server.mishaps.append(status(429, retry_after="0.5"))
    assert all(isinstance(done, str) for done in turns(policy, 3))
    first, *others = server.times
    assert len(others) == 3 and min(others) - first >= 0.5


def test_retry_after_is_read_as_seconds_or_as_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        retry_after({"retry-after": "7"}) == 7 and retry_after({"retry-after": "0.5", "retry-after-ms": "20"}) == 0.02
    )
    date = retry_after({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)})
    assert date is not None and 55 < date <= 60
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert [retry_after({"retry-after": odd}) for odd in ("", "soon", "-3", "inf", "nan")] == [
        None
    ] * 5 and retry_after({}) is None
    monkeypatch.setattr(openai_servers, "LONGEST_RETRY_AFTER_S", 0.05)
    with ChatServer(["x"]) as server:
        policy = OpenAIPolicy(base_url=server.url)
        server.mishaps.append(status(503, retry_after="86400"))
        assert turns(policy) == ["x"], "a pause of a day is cut short"


def test_connections_are_bounded() -> None:
    with ChatServer(["x"], latency_s=0.05) as server:
        assert turns(OpenAIPolicy(base_url=server.url, max_connections=3), 12) == ["x"] * 12
        assert server.busiest == 3


def test_new_episodes_are_spread_and_old_ones_stay() -> None:
    with ChatServer(["x"]) as one, ChatServer(["x"]) as two:
        policy = OpenAIPolicy(base_url=f"[{one.url},{two.url}]")
        books = [notebook(question(None, f"number {n}")) for n in range(6)]

        async def go() -> None:
            for number in (1, 2, 3):
                for book in books:
                    await policy.generate(book.prompt(number, 5), GREEDY)
                    book.add("a note", None)

        asyncio.run(go())
        for server in (one, two):
            asked = [json.dumps(chat["messages"][1]).partition("[NOTICE]")[0][:400] for chat in server.chats]
            assert len(asked) == 9 and len({words[words.index("number") :][:8] for words in asked}) == 3


def test_when_one_server_dies_the_other_takes_over() -> None:
    with ChatServer(["x"], latency_s=0.02) as one, ChatServer(["x"], latency_s=0.02) as two:
        policy = OpenAIPolicy(base_url=f"{one.url};{two.url}", max_connections=2)
        one.always = drop
        assert turns(policy, 8) == ["x"] * 8
        one.stop()
        assert turns(policy, 8) == ["x"] * 8
        assert OpenAIPolicy(base_url=f"{one.url};{two.url}").describe()["model"] == "small", (
            "one that is away at the start is passed over"
        )
        before = len(two.chats)
        two.mishaps += [status(429, retry_after="30")]
        (error,) = turns(OpenAIPolicy(base_url=two.url, retries=0))
        assert "HTTP 429" in str(error) and len(two.chats) == before + 1


def test_a_held_server_is_passed_over() -> None:
    with ChatServer(["x"]) as one, ChatServer(["x"]) as two:
        policy = OpenAIPolicy(base_url=f"{one.url}|{two.url}", max_connections=1)
        one.always = status(429, retry_after="60")
        two.mishaps.append(status(500))
        began = time.monotonic()
        assert turns(policy, 6) == ["x"] * 6
        assert time.monotonic() - began < 30 and len(one.chats) <= 2


def test_dead_servers_are_found_out_once_and_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_servers, "LONGEST_BACKOFF_S", 0.02)
    with ChatServer(["x"]) as server:
        policy, port = OpenAIPolicy(base_url=server.url, retries=3), server.port
        assert turns(policy) == ["x"]
    (error,) = turns(policy)
    assert "the connection failed" in str(error) and "(4 tries in" in str(error)
    (error,) = turns(policy)
    assert "the connection failed" in str(error) and "tries" not in str(error), (
        "the next question does not wait as long"
    )
    with ChatServer(["back"], port=port) as server:
        assert turns(policy) == ["back"]
        server.mishaps += [drop] * 3
        assert turns(policy) == ["back"], "and its faults are waited out again"


def test_every_event_loop_has_its_connections_and_leaves_none_open(server: ChatServer) -> None:
    policy = OpenAIPolicy(base_url=server.url)
    first = turns(policy, 4)
    assert [turns(policy, 4) for _ in range(3)] == [first] * 3
    deadline = time.monotonic() + 10
    while server._http._open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not server._http._open and not policy._servers._lines
    policy.close()


def question(videos: dict[str, Path] | None, text: str = "Which one?", doc_id: str = "0") -> Question:
    options = (Option(label="A", text="red"), Option(label="B", text="blue"))
    refs = (MediaRef(path=str(videos["sound"])),) if videos else ()
    return Question(text=text, kind="mcq", options=options, videos=refs, doc_id=doc_id)  # type: ignore[arg-type]


def answer_all(policy: OpenAIPolicy, questions: Sequence[Question], folder: Path) -> list[Trajectory]:
    config = EpisodeConfig(budget=Budget(turns=3, frame_pixels=64 * 64))
    with TrajectoryStore(folder, config.hash(policy), config.describe(policy)) as store:
        return asyncio.run(run_episodes(questions, policy, config, concurrency=3, store=store))


@pytest.mark.parametrize("fault", [drop, status(503, retry_after="0.01"), no_choices])
def test_an_outage_in_mid_episode_is_never_a_wrong_answer(
    fault: Mishap, shared_videos: dict[str, Path], tmp_path: Path
) -> None:
    questions = [question(shared_videos, doc_id=str(n)) for n in range(6)]
    with ChatServer([look(0, 2), look(2, 4), answer("B")]) as server:
        policy = OpenAIPolicy(base_url=server.url, retries=1)
        calm = itertools.repeat(None, 7)  # the first seven turns succeed, everything after them fails
        server.always = lambda handler: type(handler).chat(handler) if next(calm, 0) is None else fault(handler)
        done = answer_all(policy, questions, tmp_path)
        failed = [t for t in done if t.stop_reason is StopReason.POLICY_UNAVAILABLE]
        assert failed and all(t.stop_reason.failed or t.answer == "B" for t in done)
        assert all(t.answer is None and not t.answer_valid and server.url in t.stop_detail for t in failed)
        server.always = None
        server.chats.clear()
        again = answer_all(OpenAIPolicy(base_url=server.url), questions, tmp_path)
        assert [t.answer for t in again] == ["B"] * 6 and len(server.chats) == 3 * len(failed)


def test_the_key_is_sent_and_never_shown(
    shared_videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    with ChatServer([look(0, 2), answer(f"B {KEY}")], key=KEY) as server:
        with pytest.raises(AprError, match="needs a key: set the environment variable OPENAI_API_KEY"):
            OpenAIPolicy(base_url=server.url)
        monkeypatch.setenv("MY_KEY", f" {KEY}\n")
        policy = OpenAIPolicy(base_url=server.url, api_key_env="MY_KEY", retries=1)
        server.mishaps += [status(500, f"Bearer {KEY}"), half, body({"error": KEY})]
        done = answer_all(policy, [question(shared_videos, doc_id=str(n)) for n in range(3)], tmp_path)
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        server.key = "another-secret-key"
        (error,) = turns(policy)
        with pytest.raises(AprError, match="refuses the key in MY_KEY") as refused:
            OpenAIPolicy(base_url=server.url, api_key_env="MY_KEY")
    assert any("[key]" in turn.text for t in done for turn in t.turns), "even where a model writes it"
    shown = [
        repr(policy),
        repr(vars(error)),
        str(error),
        str(refused.value),
        json.dumps(policy.describe()),
        caplog.text,
        *capfd.readouterr(),
    ]
    shown += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in shown if KEY in text]


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for url in ("https://api.openai.com/v1", "http://node12:8000/v1", "http://127.0.0.1:1/v1;http://10.0.0.7:8000/v1"):
        with pytest.raises(AprError, match="needs a key: set the environment variable OPENAI_API_KEY"):
            OpenAIPolicy(base_url=url, model="m")
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    with pytest.raises(AprError, match="characters that are not allowed in an HTTP header"):
        OpenAIPolicy(base_url="http://127.0.0.1:1/v1", model="m")
    assert all(
        Server(url).local
        for url in ("http://localhost:1/v1", "http://127.1.2.3/v1", "http://[::1]:8000/v1", "http://0.0.0.0:8000")
    )
    assert not any(
        Server(url).local for url in ("http://localhost.example/v1", "http://10.0.0.1/v1", "https://x.org/v1")
    )
    assert (
        Server("http://a:b@host:1/v1?key=c").name == "http://host:1/v1"
        and Server("http://host:1/v1/").root == "http://host:1"
    )


def test_a_stopped_request_is_taken_back(server: ChatServer) -> None:
    policy = OpenAIPolicy(base_url=server.url, max_connections=1)
    server.mishaps.append(hang)

    async def go() -> str:
        task = asyncio.create_task(policy.generate(after("frames"), GREEDY))
        while not server.chats:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (await policy.generate(opening(), GREEDY)).text

    assert asyncio.run(go()) and not any(s.in_flight for s in policy._servers.servers)
