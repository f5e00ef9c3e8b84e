"""vLLM's `AsyncLLM` on an event loop of its own, in a thread of its own.

A harness may run one event loop after the other (lmms-eval does, one for each call of `generate_until`), while the engine's tasks and sockets belong
to the loop they were made in. So the engine has a loop that lives as long as it does, and callers of any loop wait for it across the threads.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from apr_plugin.loop.policy import PolicyUnavailable

_T = TypeVar("_T")


class VllmEngine:
    """A running engine.

    Args:
        arguments: Of vLLM's `AsyncEngineArgs`.
        adapter: Folder of a LoRA adapter that every generation uses.

    Raises:
        TypeError: an argument that vLLM does not know.
        ValueError: one whose value it refuses.
        RuntimeError: the engine did not start; its own log says why.
    """

    def __init__(self, arguments: Mapping[str, Any], adapter: str | None = None) -> None:
        # The engine's processes are children of this one, which has threads: a forked child would inherit their locks, held.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        wanted = AsyncEngineArgs(**_safe(arguments))
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
        """The finished `RequestOutput` of one prompt; cancelling the caller aborts the request.

        Raises:
            PolicyUnavailable: the engine has died, was closed, or could not take the prompt.
        """
        return await self._over_there(self._generate(prompt, sampling))

    async def _generate(self, prompt: Mapping[str, Any], sampling: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        last = None
        try:
            async for output in self._llm.generate(dict(prompt), sampling, uuid.uuid4().hex, lora_request=self._adapter):
                last = output
        except EngineDeadError as error:
            raise PolicyUnavailable("the vLLM engine has died; its log says why") from error
        except Exception as error:
            raise PolicyUnavailable(f"vLLM could not take the prompt: {error.__cause__ or error!s:.500}") from error
        if last is None or not last.finished:
            raise PolicyUnavailable("vLLM ended a generation before it was finished")
        return last

    async def _over_there(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._closed:
            work.close()
            raise PolicyUnavailable("the vLLM engine was closed")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """End the engine and its processes; a second time does nothing."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(30)  # else its reader takes the end for a fault and prints it
            engine, self._llm = self._llm, None  # its finaliser, which shuts it down again, must not wait for the interpreter's end
            engine.shutdown()
            self._end_loop()

    def _end_loop(self) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


async def _cancel_others() -> None:
    """End every other task of this loop."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _safe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, and on the CPU without prefill in chunks.

    There the engine dies when the prompt of a seeded, sampled generation is split ("CPU Generator does not use offset", vLLM 0.32).
    """
    from vllm.platforms import current_platform

    return ({"enable_chunked_prefill": False} if current_platform.is_cpu() else {}) | dict(arguments)
