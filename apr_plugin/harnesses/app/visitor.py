"""`Visitor`: one open tab. Its video, its running investigation, and the finished one; `Visitors` has all of them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from apr_plugin.errors import AprError
from apr_plugin.harnesses.app.desk import Desk
from apr_plugin.harnesses.app.form import Form, config_of, question_of
from apr_plugin.harnesses.app.records import Finished, Records, Reporting, without_places
from apr_plugin.harnesses.app.scene import Scene
from apr_plugin.harnesses.app.uploads import Film, Limits, discard, examined
from apr_plugin.harnesses.app.view import (
    Began,
    Ended,
    Event,
    Refused,
    Ticked,
    View,
    Waiting,
    after,
)
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.question import MediaRef, Question
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.media.pool import POOL
from apr_plugin.runs.settings import Settings

MOST_VISITORS = 500
"""Open tabs that are known; of more, the one that came first and runs nothing is forgotten."""

TICK_S = 1.0
"""How often the seconds on the page are renewed."""

BUSY = "an investigation of this tab is still running; stop it first"


@dataclass(frozen=True)
class House:
    """What all visitors share."""

    settings: Settings
    """The policy and its limits."""
    desk: Desk
    """How many investigations run and wait."""
    decoding: Decoding
    """How many looks are read at once."""
    records: Records
    """Where trajectories are kept."""
    reporting: Reporting
    """How pictures are made small, and a report page is written."""
    limits: Limits
    """What an upload may be."""
    timeout_s: float | None
    """Seconds that an investigation may take."""


class Visitor:
    """One open tab.

    Args:
        house: What it shares with the others.
        folder: Its own folder, made when it is needed, and removed when it leaves.
    """

    def __init__(self, house: House, folder: Path) -> None:
        self.house = house
        self.folder = folder
        self.token = secrets.token_urlsafe(24)
        """Names the visitor in the addresses of its upload and its video; nobody else knows it."""
        self.film: Film | None = None
        """What it asks about."""
        self.finished: dict[str, Finished] = {}
        """The latest finished investigation, by the name in its downloads' addresses."""
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.uploading = False
        """Whether an upload is on its way; a visitor has one at a time."""
        self._number = 0

    @property
    def busy(self) -> bool:
        """Whether an investigation waits or runs."""
        return self._task is not None and not self._task.done()

    async def uploaded(self, file: Path) -> Film:
        """Ask about this upload from now on; an earlier upload is removed.

        Raises:
            AprError: the file can't be used, or an investigation runs; then it is removed.
        """
        try:
            if self.busy:
                raise AprError(BUSY)
            film = await asyncio.to_thread(examined, file, self.house.settings.config.media, self.house.limits)
            self.choose(film)
        except BaseException:
            discard(file)
            raise
        return film

    def choose(self, film: Film | None) -> None:
        """Ask about this video from now on.

        Raises:
            AprError: an investigation runs.
        """
        if self.busy:
            raise AprError(BUSY)
        if self.film is not None and self.film.own and self.film != film:
            self.finished.clear()  # its page could not show the removed video's pictures
            POOL.close()  # an unused file that is kept open would keep its place on disk
            discard(self.film.path)
        self.film = film

    async def investigate(self, form: Form) -> AsyncIterator[View]:
        """Ask, and give a view after each event, at least one each second; the last says how it ended.

        If the caller stops listening, the investigation is stopped.
        """
        view = View()
        if self.busy:
            yield after(view, Refused(BUSY))
            return
        try:
            question, config = self._asked(form)
        except AprError as error:
            yield after(view, Refused(str(error)))
            return
        view = replace(view, question=question, budget=config.budget)
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._task = task = asyncio.create_task(self._answer(question, config, events.put_nowait))
        task.add_done_callback(lambda _: events.put_nowait(None))
        began = None
        try:
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), TICK_S)
                except TimeoutError:
                    event = Ticked(0.0 if began is None else time.perf_counter() - began)
                if event is None:
                    return
                if isinstance(event, Began):
                    began = time.perf_counter()
                view = after(view, event)
                yield view
        finally:
            task.cancel()

    async def stop(self) -> None:
        """Stop the investigation, and return when its place is free; without one nothing happens."""
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])

    async def page(self, name: str) -> Path:
        """The report page of the finished investigation of that name.

        Raises:
            KeyError: there is none.
            AprError: it can't be made.
        """
        finished = self.finished[name]
        async with self._lock:
            return await asyncio.to_thread(finished.page, self.house.settings.policy, self.house.reporting)

    async def leave(self) -> None:
        """Stop, and remove everything that the visitor brought."""
        await self.stop()
        self.film = None
        self.finished.clear()
        POOL.close()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    def _asked(self, form: Form) -> tuple[Question, EpisodeConfig]:
        film = self.film
        if film is None:
            raise AprError("choose an example, or upload a video first")
        question = question_of(form, MediaRef(path=str(film.path)), secrets.token_hex(8))
        config = config_of(form, self.house.settings.config, self.house.timeout_s)
        apart = {"root": str(film.root)} | ({"isolation": "always"} if film.own else {})
        return question, config.model_copy(update={"media": config.media.model_copy(update=apart)})

    async def _answer(self, question: Question, config: EpisodeConfig, tell: Callable[[Event], None]) -> None:
        """Wait for a place, run the episode, keep what came of it. A stop is an end like any other."""
        house = self.house
        try:
            async with house.desk.place(lambda ahead: tell(Waiting(ahead))):
                tell(Began())
                scene = Scene(house.settings.policy, house.decoding, house.reporting, question, config, tell)
                try:
                    trajectory = await scene.episode.run()
                except asyncio.CancelledError:
                    trajectory = scene.episode.cancelled()
        except AprError as error:
            tell(Refused(str(error)))
            return
        except asyncio.CancelledError:
            tell(Refused("stopped before it began"))
            return
        told = self._finish(trajectory, config)
        try:
            await asyncio.shield(asyncio.to_thread(house.records.keep, trajectory, config))
        except AprError as error:
            detail = f"{trajectory.stop_detail} It could not be stored: {error}".strip()
            trajectory = trajectory.model_copy(update={"stop_detail": detail})
        except asyncio.CancelledError:
            pass  # the visitor has left; the thread goes on writing
        tell(Ended(without_places(trajectory), told))

    def _finish(self, trajectory: Trajectory, config: EpisodeConfig) -> str:
        self._number += 1
        name = secrets.token_urlsafe(24)
        self.finished = {name: Finished(trajectory, config, self.folder / f"finished-{self._number}")}
        return name


class Visitors:
    """Every open tab.

    Args:
        house: What they share.
        folder: In it each visitor has a folder.
    """

    def __init__(self, house: House, folder: Path) -> None:
        self.house = house
        self.folder = folder
        self._by_session: dict[str, Visitor] = {}
        self._leaving: asyncio.Future[None] | None = None

    def of(self, session: str) -> Visitor:
        """The visitor of a session, who may be new."""
        if session not in self._by_session:
            if len(self._by_session) >= MOST_VISITORS:
                idle = next((known for known, visitor in self._by_session.items() if not visitor.busy), None)
                if idle is not None:
                    self._leaving = asyncio.ensure_future(self._by_session.pop(idle).leave())
            self._by_session[session] = Visitor(self.house, self.folder / secrets.token_hex(8))
        return self._by_session[session]

    def with_token(self, token: str) -> Visitor | None:
        """The visitor of that token."""
        given = token.encode("utf-8", "replace")
        return next((v for v in self._by_session.values() if secrets.compare_digest(v.token.encode(), given)), None)

    def with_finished(self, name: str) -> Visitor | None:
        """The visitor whose finished investigation has that name."""
        return next((one for one in self._by_session.values() if name in one.finished), None)

    async def leave(self, session: str) -> None:
        """A tab was closed."""
        visitor = self._by_session.pop(session, None)
        if visitor is not None:
            await visitor.leave()

    async def close(self) -> None:
        """Every visitor leaves."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(self.leave(session) for session in list(self._by_session)))
