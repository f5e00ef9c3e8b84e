"""vLLM's `AsyncLLM` on its own event loop, in its own thread.

A harness may run one event loop after the other (lmms-eval does, one for each call of `generate_until`), but the
engine's tasks and sockets belong to the loop in which they were made. So the engine has its own loop for its whole
life, and callers in any loop wait for it across the threads.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from apr_plugin.loop.policy import PolicyUnavailable

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_ABORT_S = 10.0
"""Longest wait for a request that is cancelled."""


@dataclass
class _Request:
    began: float
    """When it was submitted, in seconds of this process's clock."""
    moved: float = 0.0
    """When its newest token came; 0 before the first."""


class VllmEngine:
    """A running engine.

    Args:
        arguments: Fields of vLLM's `AsyncEngineArgs`.
        adapter: Folder of a LoRA adapter that every generation uses.
        linear: Whether the model has linear attention.
        stall_s: Seconds without a token after which a request is given up. If the request has no token yet, tokens of
            any request of this engine count.

    Raises:
        TypeError: vLLM does not know an argument.
        ValueError: vLLM refuses the value of an argument.
        RuntimeError: the engine did not start; its own log says why.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        adapter: str | None = None,
        *,
        linear: bool = False,
        stall_s: float = math.inf,
    ) -> None:
        self.stall_s = stall_s
        self._moved = 0.0
        """When the engine last returned a token for any request, on this process's clock."""
        # The engine's processes are children of this one, which has threads: a forked child would inherit their held
        # locks.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        wanted = AsyncEngineArgs(**_safe(arguments, linear))
        self._adapter: Any = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest("adapter", 1, adapter)
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

        async def start() -> Any:
            return AsyncLLM.from_engine_args(wanted)

        try:
            self._llm: Any = asyncio.run_coroutine_threadsafe(start(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise
        self.max_model_len = int(self._llm.model_config.max_model_len)
        """Most tokens of prompt and completion together."""

    async def generate(self, prompt: Mapping[str, Any], sampling: Any) -> Any:
        """Return the finished `RequestOutput` of one prompt; cancelling the caller aborts the request.

        Raises:
            PolicyUnavailable: the engine has died, was closed, could not take the prompt, or has returned no token for
                `stall_s` seconds.
        """
        return await self._over_there(self._generate(prompt, sampling))

    async def _generate(self, prompt: Mapping[str, Any], sampling: Any) -> Any:
        request = _Request(began=time.monotonic())
        reading = asyncio.create_task(self._read(request, prompt, sampling))
        try:
            while not reading.done():
                # A request that waits for its turn is not stuck while others get tokens.
                moved = request.moved or max(request.began, self._moved)
                left = moved + self.stall_s - time.monotonic()
                if left <= 0:
                    raise PolicyUnavailable(
                        f"vLLM returned no token for {self.stall_s:g} s (stall_s), so the turn was given up and "
                        "its request was cancelled"
                    )
                await asyncio.wait({reading}, timeout=None if math.isinf(left) else left)
            return reading.result()
        finally:
            reading.cancel()  # AsyncLLM then tells the engine to drop the request
            await asyncio.wait({reading}, timeout=_ABORT_S)

    async def _read(self, request: _Request, prompt: Mapping[str, Any], sampling: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        whole = None
        try:
            async for output in self._llm.generate(
                dict(prompt), sampling, uuid.uuid4().hex, lora_request=self._adapter
            ):
                request.moved = self._moved = time.monotonic()
                if whole is None:
                    whole = output
                else:
                    whole.add(output, aggregate=True)
                    whole.metrics = output.metrics
        except EngineDeadError as error:
            raise PolicyUnavailable("the vLLM engine has died; its log says why") from error
        except Exception as error:
            raise PolicyUnavailable(f"vLLM could not take the prompt: {error.__cause__ or error!s:.500}") from error
        if whole is None or not whole.finished:
            raise PolicyUnavailable("vLLM ended a generation before it was finished")
        return whole

    async def _over_there(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._closed:
            work.close()
            raise PolicyUnavailable("the vLLM engine was closed")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """End the engine and its processes; a second call does nothing."""
        if not self._closed:
            self._closed = True
            # Otherwise its reader reports the end as an error.
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(30)
            # Its finaliser, which shuts it down again, must not wait for the interpreter's end.
            engine = self._llm
            self._llm = None
            engine.shutdown()
            self._end_loop()

    def _end_loop(self) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


async def _cancel_others() -> None:
    """Cancel every other task of this loop."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _safe(arguments: Mapping[str, Any], linear: bool) -> dict[str, Any]:
    """The arguments, on the CPU without chunked prefill.

    On the CPU the engine dies when the prompt of a seeded, sampled generation is split ("CPU Generator does not use
    offset", vLLM 0.32). The prefix cache of linear attention needs such chunks, so it is off on the CPU.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return dict(arguments)
    safe = {"enable_chunked_prefill": False} | dict(arguments)
    if linear and safe.get("enable_prefix_caching") and not safe["enable_chunked_prefill"]:
        _log.warning(
            "vLLM's prefix cache is off: with linear attention it reads prompts in chunks, which the CPU "
            "engine can't do for sampled turns"
        )
        safe["enable_prefix_caching"] = False
    return safe
