"""Ctrl-C: the command stops even if the first is swallowed; a second one ends it at once.

Each case is a process that presses Ctrl-C on itself.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest

START = """
import asyncio, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from apr_plugin import interrupt

def press():
    os.kill(os.getpid(), signal.SIGINT)

def command(work):
    try:
        with interrupt.heard():
            work()
    except KeyboardInterrupt:
        print("stopped")
        sys.exit(interrupt.STATUS)
    print("not stopped")
"""


def run(code: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "command(press)",
        """
        def work():
            try:
                press(); time.sleep(60)
            except BaseException:
                print("swallowed")
        command(work)
        """,
        """
        def work():
            try:
                try:
                    press(); time.sleep(60)
                except BaseException:
                    sys.exit(0)
            finally:
                print("cleaned up")
        command(work)
        """,
        """
        class Finaliser:
            def __del__(self):
                press(); time.sleep(0.01)
        def work():
            Finaliser()
            time.sleep(60)  # not slept to its end: what vanished in the finaliser is raised here
            print("slept")
        command(work)
        """,
        """
        async def work():
            try:
                press(); await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "swallowed"
        command(lambda: print(interrupt.run(work())))
        """,
        """
        async def work():
            press(); await asyncio.sleep(0)
        def first():
            try:
                press()
                time.sleep(1)
            except KeyboardInterrupt:
                pass
            interrupt.run(work())
            print("not stopped")
        command(first)
        """,
    ],
    ids=["heard", "bare except", "exit 0", "finaliser", "cancellation", "before the loop"],
)
def test_a_first_one_always_stops(code: str) -> None:
    began = time.monotonic()
    status, out, err = run(code)
    assert time.monotonic() - began < 50, "it waited for the end of a sleep of 60 s"
    assert status == 130 and out.endswith("stopped\n") and "not stopped" not in out and "slept" not in out, (out, err)
    assert "Traceback" not in err and "Exception ignored" not in err


def test_a_second_one_ends_at_once_and_the_same_one_twice_is_one() -> None:
    code = """
        async def work():
            press(); press()
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaning up", flush=True)
                threading.Timer(0.6, press).start()
                while True:
                    try:
                        await asyncio.sleep(0.1)
                    except asyncio.CancelledError:
                        pass
        command(lambda: interrupt.run(work()))
    """
    status, out, err = run(code)
    assert (status, out) == (130, "cleaning up\n"), err
    assert err == "\nstopping; Ctrl-C again ends at once\n\nended at once\n"


def test_a_failure_keeps_its_own_status() -> None:
    status, _, _ = run("""
        def work():
            try:
                press(); time.sleep(60)
            except BaseException:
                sys.exit(3)
        command(work)
    """)
    assert status == 3


def test_handlers_of_others_are_left_alone() -> None:
    status, out, err = run("""
        def theirs(number, frame): print("theirs")
        signal.signal(signal.SIGINT, theirs)
        assert not interrupt.install()
        async def work():
            press(); await asyncio.sleep(0.01); return 7
        command(lambda: print(interrupt.run(work())))
        assert signal.getsignal(signal.SIGINT) is theirs
        signal.signal(signal.SIGINT, signal.default_int_handler)
        elsewhere = threading.Thread(target=lambda: print(interrupt.install())); elsewhere.start(); elsewhere.join()
        command(lambda: None)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert sys.unraisablehook is sys.__unraisablehook__
    """)
    assert (status, out) == (0, "theirs\n7\nnot stopped\nFalse\nnot stopped\n"), err
