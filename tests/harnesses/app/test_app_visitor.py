"""Visitors without a browser and without Gradio: places, stops, uploads, examples, what is kept and what is removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from app_making import Several, house

from apr_plugin.errors import AprError
from apr_plugin.harnesses.app import examples, uploads
from apr_plugin.harnesses.app.about import about_policy
from apr_plugin.harnesses.app.desk import Desk, DeskFull
from apr_plugin.harnesses.app.form import Form
from apr_plugin.harnesses.app.render import pieces as pieces_of
from apr_plugin.harnesses.app.uploads import Film, Limits, TooLarge
from apr_plugin.harnesses.app.view import View
from apr_plugin.harnesses.app.visitor import Visitor, Visitors
from apr_plugin.loop.trajectory import StopReason
from apr_plugin.media import MediaSettings
from apr_plugin.runs.opened import open_run
from apr_plugin.runs.settings import read_settings
from apr_plugin.tasks.needle.make import NeedleSpec, load_docs, make_needle


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


@pytest.fixture(scope="module")
def needle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("needle")
    return Path(make_needle(folder, NeedleSpec(buckets=("1m",), videos_per_bucket=1, questions_per_kind=1), 1))


def film(needle: Path) -> Film:
    return examples.found(needle)[0].film


def form(needle: Path, kind: str) -> tuple[Form, dict[str, Any]]:
    doc = dict(next(doc for doc in load_docs(needle) if doc["kind"] == kind))
    return Form(doc["question"], "\n".join(doc["options"])), doc


async def watch(visitor: Visitor, asked: Form) -> list[View]:
    return [view async for view in visitor.investigate(asked)]


async def until(holds: Any) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def test_places_are_given_in_order_and_a_wait_can_be_left() -> None:
    async def work() -> None:
        desk = Desk(1, 2)
        told: dict[str, list[int]] = {"b": [], "c": []}
        leave = {name: asyncio.Event() for name in "abc"}
        inside: list[str] = []

        async def sit(name: str) -> None:
            async with desk.place(told.get(name, []).append):
                inside.append(name)
                await leave[name].wait()

        tasks = {name: asyncio.create_task(sit(name)) for name in "abc"}
        await asyncio.sleep(0)
        assert inside == ["a"] and told == {"b": [0], "c": [1]}
        with pytest.raises(DeskFull, match="1 investigations are running and 2 wait"):
            async with desk.place(lambda _: None):
                pass
        tasks["b"].cancel()
        await asyncio.wait([tasks["b"]])
        assert told["c"] == [1, 0] and desk.taken == 1
        leave["a"].set()
        await tasks["a"]
        await asyncio.sleep(0)
        assert inside == ["a", "c"] and desk.taken == 1
        leave["c"].set()
        await tasks["c"]
        assert desk.taken == 0

    run(work())


def test_a_place_that_was_given_to_a_wait_that_is_cancelled_goes_on() -> None:
    async def work() -> None:
        desk = Desk(1, 2)
        first = desk.place(lambda _: None)
        await first.__aenter__()

        async def sit() -> None:
            async with desk.place(lambda _: None):
                pass

        waiting = [asyncio.create_task(sit()) for _ in range(2)]
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # gives the place to the first that waits, which ends before it runs
        waiting[0].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert desk.taken == 0 and not waiting[1].cancelled()

    run(work())


def test_one_stops_one_waits_and_one_is_refused(needle: Path, tmp_path: Path) -> None:
    async def work() -> None:
        policy = Several()
        visitors = Visitors(house(policy, tmp_path), tmp_path / "visitors")
        first, second, third = (visitors.of(name) for name in "abc")
        for visitor in (first, second, third):
            visitor.choose(film(needle))
        asked, doc = form(needle, "glyph")
        policy.held.add(asked.text)
        running = asyncio.create_task(watch(first, asked))
        await until(lambda: visitors.house.desk.taken == 1)
        waiting = asyncio.create_task(watch(second, form(needle, "sound")[0]))
        await asyncio.sleep(0.05)
        (refused,) = [view.message for view in await watch(third, asked) if view.stage == "refused"]
        assert "try again in a minute" in refused
        (busy,) = [view.message for view in await watch(first, asked)]
        assert "still running" in busy
        with pytest.raises(AprError, match="still running"):
            first.choose(None)
        await asyncio.sleep(0.1)
        await first.stop()
        views = await running
        assert views[-1].trajectory is not None and views[-1].trajectory.stop_reason is StopReason.CANCELLED
        assert "Investigation" in (await first.page(views[-1].downloads)).read_text("utf-8"), "of a stopped one, too"
        with pytest.raises(KeyError):
            await first.page("another name")
        done = (await waiting)[-1].trajectory
        assert done is not None and done.answer == form(needle, "sound")[1]["answer"]
        assert visitors.house.desk.taken == 0 and not first.busy
        policy.held.clear()
        again = (await watch(first, asked))[-1].trajectory
        assert again is not None and again.answer == doc["answer"]
        visitors.house.records.close()
        await visitors.close()

    run(work())
    kept = open_run(tmp_path / "kept", latest=True)
    assert sorted(str(one.stop_reason) for one in kept) == ["answered", "answered", "cancelled"]


def test_a_stop_before_a_place_is_free_and_a_tab_that_closes(needle: Path, tmp_path: Path) -> None:
    async def work() -> None:
        policy = Several()
        visitors = Visitors(house(policy, tmp_path), tmp_path / "visitors")
        first, second = visitors.of("a"), visitors.of("b")
        own = await uploads.receive(pieces(Path(film(needle).path).read_bytes()), first.folder, "../mine.mp4", Limits())
        assert own.is_relative_to(first.folder) and own.name == "mine.mp4"
        assert (await first.uploaded(own)).own and first.film is not None
        second.choose(film(needle))
        asked, _ = form(needle, "glyph")
        policy.held.add(asked.text)
        running = asyncio.create_task(watch(first, asked))
        await until(lambda: visitors.house.desk.taken == 1)
        waiting = asyncio.create_task(watch(second, asked))
        await until(lambda: second.busy)
        await asyncio.sleep(0.05)
        await second.stop()
        assert (await waiting)[-1].message == "stopped before it began"
        await until(lambda: first.busy and visitors.with_token(first.token) is first)
        await visitors.leave("a")
        views = await running
        assert views[-1].stage == "ended" and not first.folder.exists() and visitors.with_token(first.token) is None
        assert visitors.house.desk.taken == 0 and Path(film(needle).path).is_file(), "an example is not removed"
        visitors.house.records.close()

    run(work())


def test_an_upload_takes_the_place_of_the_one_before(needle: Path, tmp_path: Path) -> None:
    async def work() -> None:
        visitor = Visitors(house(Several(), tmp_path), tmp_path / "visitors").of("a")
        data = Path(film(needle).path).read_bytes()
        first = await uploads.receive(pieces(data), visitor.folder, "1.mp4", Limits())
        await visitor.uploaded(first)
        second = await uploads.receive(pieces(data), visitor.folder, "2.mp4", Limits())
        await visitor.uploaded(second)
        assert not first.exists() and second.exists()
        visitor.choose(film(needle))
        assert not second.exists() and list(visitor.folder.iterdir()) == []
        text = await uploads.receive(pieces(b"Dear Sir"), visitor.folder, "letter.mp4", Limits())
        with pytest.raises(AprError, match="can't be used") as error:
            await visitor.uploaded(text)
        assert str(visitor.folder) not in str(error.value) and list(visitor.folder.iterdir()) == []

    run(work())


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


def test_of_an_upload_that_fails_nothing_is_left(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise RuntimeError("the client has gone")

    async def work() -> None:
        with pytest.raises(TooLarge, match="larger than 1 MiB"):
            await uploads.receive(pieces(bytes(2**20 + 1)), tmp_path, "large.mp4", Limits(1))
        with pytest.raises(AprError, match="empty"):
            await uploads.receive(pieces(b""), tmp_path, "none.mp4", Limits(1))
        with pytest.raises(RuntimeError, match="has gone"):
            await uploads.receive(broken(), tmp_path, "half.mp4", Limits(1))

    run(work())
    assert list(tmp_path.iterdir()) == []
    for declared, error in ((str(2**20 + 1), TooLarge), ("many", AprError), ("-1", AprError), ("²", AprError)):
        with pytest.raises(error):
            uploads.check_size(declared, Limits(1))
    uploads.check_size(str(2**20), Limits(1))
    uploads.check_size(None, Limits(1))


def test_a_video_may_be_too_long(shared_videos: dict[str, Path]) -> None:
    with pytest.raises(AprError, match=r"lasts 1\.2 minutes; at most 1 minutes"):
        uploads.examined(shared_videos["long"], MediaSettings(), Limits(100, 1.0))


def test_examples_are_only_what_lies_in_their_folder(
    needle: Path, tmp_path: Path, shared_videos: dict[str, Path]
) -> None:
    offered = examples.found(needle)
    assert {example.kind for example in offered} == {"by the options", "time spans", "a number"}
    assert all(example.text and example.film.path.is_file() and not example.film.own for example in offered)
    folder = tmp_path / "films"
    (folder / "more").mkdir(parents=True)
    (folder / "more" / "in.mp4").write_bytes(shared_videos["silent"].read_bytes())
    (folder / "out.mp4").symlink_to(shared_videos["sound"])
    (folder / "notes.txt").write_text("not a film")
    (inside,) = examples.found(folder)
    assert inside.label == "more/in.mp4" and inside.text == ""
    assert examples.labelled([inside], "more/in.mp4") is inside and examples.labelled([inside], ["more/in.mp4"]) is None
    with pytest.raises(AprError, match="no video is in it that lies inside"):
        examples.found(folder, tmp_path / "films" / "more" / "..").clear()
        examples.found(folder, needle)
    with pytest.raises(AprError, match="no such folder"):
        examples.found(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_real_model_is_watched_with_its_entropy(needle: Path, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    async def work() -> None:
        shared = house(Several(), tmp_path)
        arguments = {"policy": "hf", "pretrained": str(tiny("qwen2_5_vl")), "device": "cpu", "max_turns": 2}
        settings = read_settings(arguments | {"max_new_tokens": 12, "frames_per_look": 4})
        visitor = Visitors(replace(shared, settings=settings), tmp_path / "visitors").of("a")
        visitor.choose(film(needle))
        views = await watch(visitor, form(needle, "glyph")[0])
        assert str(tmp_path.parent) not in about_policy(settings.policy) and "hf" in about_policy(settings.policy)
        settings.policy.close()
        done = views[-1]
        assert done.trajectory is not None and not done.trajectory.stop_reason.failed, done.trajectory
        assert done.cost.prompt_tokens and done.cost.completion_tokens == 12 * len(done.cards)
        assert pieces_of(done).turns.count("nats a token") == len(done.cards) >= 2

    run(work())
