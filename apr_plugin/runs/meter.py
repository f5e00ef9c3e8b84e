"""What a harness needs for a run: its token budget, its cost so far, a progress line, and a call that is not async."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from apr_plugin import interrupt
from apr_plugin.loop.policy import Generation, Policy, PolicyUnavailable, Prompt, PromptSize, Sampling, visual_token_of
from apr_plugin.loop.trajectory import Trajectory

_T = TypeVar("_T")


@dataclass(frozen=True)
class TokensSpent:
    """The tokens of one question, over all its turns."""

    prompt: int
    """Tokens read, media included; each turn's whole prompt counts."""

    completion: int
    """Tokens written."""


def tokens_spent(trajectory: Trajectory) -> TokensSpent | None:
    """The tokens of all turns that the policy counted; `None` if it counted none."""
    counted = [
        turn.usage
        for turn in trajectory.turns
        if turn.usage.prompt_tokens is not None and turn.usage.completion_tokens is not None
    ]
    if not counted:
        return None
    return TokensSpent(
        sum(usage.prompt_tokens or 0 for usage in counted), sum(usage.completion_tokens or 0 for usage in counted)
    )


def audio_s(trajectory: Trajectory) -> float:
    """Seconds of sound played in the whole episode."""
    return sum(look.audio_s for look in trajectory.looks)


def per_question(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The average cost of a question, by name; empty without trajectories."""
    n = len(trajectories)
    if not n:
        return {}
    return {
        "turns_per_question": sum(len(t.turns) for t in trajectories) / n,
        "frames_per_question": sum(t.frames for t in trajectories) / n,
        "audio_s_per_question": sum(audio_s(t) for t in trajectories) / n,
        "visual_tokens_per_question": sum(t.visual_tokens for t in trajectories) / n,
        "seconds_per_question": sum(t.timings.total_s for t in trajectories) / n,
        "media_seconds_per_question": sum(t.timings.media_s for t in trajectories) / n,
    }


class Metered:
    """A policy that stops answering when the budget of the whole run is used up.

    The remaining questions end as `policy_unavailable`.

    Args:
        policy: The policy that answers.
        used_up: Called before each generation; says which budget is used up, or nothing.
    """

    def __init__(self, policy: Policy, used_up: Callable[[], str]) -> None:
        self._policy = policy
        self._used_up = used_up
        self.name = policy.name
        self.modalities = policy.modalities
        self.context_tokens = policy.context_tokens
        self.visual_token = visual_token_of(policy)

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """Count as the policy does."""
        return await self._policy.count(prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Generate the policy's turn.

        Raises:
            PolicyUnavailable: the budget is used up, or the policy can't be reached.
        """
        if reason := self._used_up():
            raise PolicyUnavailable(reason)
        return await self._policy.generate(prompt, sampling)

    def describe(self) -> dict[str, Any]:
        """Describe the policy itself, because this budget does not change any answer."""
        return self._policy.describe()

    def close(self) -> None:
        """Close the policy."""
        self._policy.close()


class Bar(Protocol):
    """What draws the line; `tqdm` has these methods."""

    def set_postfix_str(self, s: str, refresh: bool) -> object:
        """Show text after the bar."""
        ...

    def update(self) -> object:
        """Count one more question."""
        ...

    def close(self) -> object:
        """End the line."""
        ...


class Progress:
    """A progress line that shows what is known without the right answers.

    Args:
        bar: The bar that draws it.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self.finished = 0
        """Questions that have ended, in this run or an earlier one."""
        self._asked = 0
        self._turns = 0
        self._frames = 0
        self._failed = 0
        self._seconds = 0.0

    def done(self, trajectory: Trajectory, resumed: bool) -> None:
        """Count a finished question; `resumed` says that an earlier run asked it; this method is an `OnDone`."""
        self.finished += 1
        self._turns += len(trajectory.turns)
        self._frames += trajectory.frames
        self._seconds += trajectory.timings.total_s
        self._failed += trajectory.stop_reason.failed
        self._asked += not resumed
        self._bar.set_postfix_str(self.text, refresh=False)
        self._bar.update()

    @property
    def text(self) -> str:
        """Means so far, and how many questions were resumed or failed."""
        n = self.finished
        if not n:
            return ""
        return (
            f"{self._turns / n:.1f} turns, {self._frames / n:.0f} frames, {self._seconds / n:.2f} s each"
            + (f", {n - self._asked} resumed" if n > self._asked else "")
            + (f", {self._failed} FAILED" if self._failed else "")
        )

    def close(self) -> None:
        """End the line."""
        self._bar.close()


def run_sync(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end from code that is not async.

    This also works when an event loop is already running in this thread (a Jupyter notebook). In that case the work
    gets its own thread and loop, and this thread waits. Ctrl-C cancels the work, and is raised after it has ended.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the work was cancelled, and has ended.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return interrupt.run(work)
    return _Beside(work).result()


class _Beside(Generic[_T]):
    """Work that runs in its own thread and event loop."""

    def __init__(self, work: Coroutine[Any, Any, _T]) -> None:
        self._work = work
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._results: list[_T] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="apr-episodes")

    def result(self) -> _T:
        self._thread.start()
        try:
            # not `join`: up to Python 3.12, a `join` that Ctrl-C interrupts treats the thread as ended
            self._ended.wait()
        except KeyboardInterrupt:
            self._cancel()
            self._ended.wait()
            raise
        if self._failure is not None:
            raise self._failure
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(asyncio.run(self._noted()))
        except BaseException as error:  # noqa: BLE001 - is raised in the calling thread
            self._failure = error
        finally:
            self._begun.set()
            self._ended.set()

    async def _noted(self) -> _T:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._begun.set()
        return await self._work

    def _cancel(self) -> None:
        self._begun.wait()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it has ended in the meantime
                self._loop.call_soon_threadsafe(self._task.cancel)
