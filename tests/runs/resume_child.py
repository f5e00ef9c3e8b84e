"""A run of questions that kills itself at a chosen moment.

`python resume_child.py` forks one for each order (a line of JSON) on its standard input.

All modules are imported in the process that forks, so twenty runs cost little. Orders are `{"folder": …, "policy": {…},
"docs": …, "kill": {"at": MOMENT, "n": N}}`; the reply is how the run ended. The moments, each at its N-th time, are:
`write` (before a line is written), `half` (half a line is written), `fsync` (after the write), `synced` (after the
sync, before anybody is told), `generate` (a policy is asked), `look` (media is read), `merge` (the merged file is about
to replace the others); or `seconds`, at any point.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apr_plugin.loop import Budget, Environment, EpisodeConfig, MediaRef, Option, Question, QuestionKind
from apr_plugin.policies import make_policy
from apr_plugin.runs import TrajectoryStore, run_episodes
from apr_plugin.tasks.needle.policy import NeedlePolicy  # noqa: F401 - imported once, before the forks

KINDS = {"when": QuestionKind.GROUNDING, "count": QuestionKind.NUMBER}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _kill_at(at: str, n: float) -> None:
    if at == "seconds":
        threading.Timer(n, _die).start()
        return
    count = 0

    def due() -> bool:
        nonlocal count
        count += 1
        return count == n

    def line_file(fd: int) -> bool:
        return ".jsonl" in Path(f"/proc/self/fd/{fd}").readlink().name

    write, fsync, look, replace = os.write, os.fsync, Environment.look, Path.replace

    def killing_write(fd: int, data: bytes) -> int:
        if at in ("write", "half") and line_file(fd) and due():
            if at == "half":
                write(fd, data[: len(data) // 2])
            _die()
        return write(fd, data)

    def killing_fsync(fd: int) -> None:
        hit = at in ("fsync", "synced") and line_file(fd) and due()
        if hit and at == "fsync":
            _die()
        fsync(fd)
        if hit:
            _die()

    def killing_look(self: Environment, plan: Any) -> Any:
        if at == "look" and due():
            _die()
        return look(self, plan)

    def killing_replace(self: Path, target: Any) -> Any:
        if at == "merge" and self.suffix == ".merging" and due():
            _die()
        return replace(self, target)

    os.write = killing_write  # type: ignore[assignment]
    os.fsync = killing_fsync  # type: ignore[assignment]
    Environment.look = killing_look  # type: ignore[method-assign]
    Path.replace = killing_replace  # type: ignore[method-assign,assignment]
    if at == "generate":
        from apr_plugin.loop import asking

        generate = asking.Asking.generate

        async def killing_generate(self: Any, prompt: Any, number: int) -> Any:
            if due():
                _die()
            return await generate(self, prompt, number)

        asking.Asking.generate = killing_generate  # type: ignore[method-assign]


def _questions(docs: list[dict[str, Any]], repeats: int) -> list[Question]:
    return [
        Question(
            text=doc["question"],
            kind=KINDS.get(doc["kind"], QuestionKind.MCQ),
            options=tuple(Option(label="ABCD"[i], text=text) for i, text in enumerate(doc["options"])),
            videos=(MediaRef(path=doc["video"]),),
            task="needle",
            doc_id=doc["id"],
            repeat=repeat,
        )
        for doc in docs
        for repeat in range(repeats)
    ]


def run(
    folder: str,
    policy: dict[str, Any],
    docs: list[dict[str, Any]],
    repeats: int = 1,
    kill: dict[str, Any] | None = None,
) -> None:
    if kill is not None:
        _kill_at(**kill)
    answering, config = make_policy(**policy), EpisodeConfig(budget=Budget(max_turns=9), seed=3)
    with TrajectoryStore(folder, config.hash(answering), config.describe(answering)) as store:
        done = asyncio.run(run_episodes(_questions(docs, repeats), answering, config, 3, store=store))
    store.merge(["needle"])
    assert len(done) == len(docs) * repeats


def _forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - it must not return into the parent's loop
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    for order in sys.stdin:
        print(_forked(lambda: run(**json.loads(order))), flush=True)  # noqa: B023 - used before the next round
