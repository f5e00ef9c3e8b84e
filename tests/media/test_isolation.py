"""Reading in a separate process: whatever happens to that process, the caller gets the right bytes or a typed error,
and nothing is left over."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from apr_testing import make_video_file, number_of

from apr_plugin.media import (
    MediaDecodeError,
    MediaError,
    MediaOpenError,
    MediaTimeout,
    MediaWorkerKilled,
    Video,
    isolated,
    video,
)

Maker = Callable[..., Path]
REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts processes and files with /proc")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No worker, no socket and no zombie remains after a test that closed its files."""
    isolated.close_workers()
    gc.collect()
    before = _open_files()
    yield
    gc.collect()
    assert not isolated._idle and not isolated._all
    assert _children() == set()
    assert _open_files() <= before


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _children() -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and (b"apr_plugin.media.worker" in command or fields[0] == "Z"):
            found.add(int(stat.parent.name))
    return found


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose end takes a large part of a second to decode."""
    return make_video_file(tmp_path_factory.mktemp("heavy") / "heavy.mp4", frames=500, fps=25, size=(640, 368), gop=500)


def _busy() -> isolated._Worker | None:
    """A worker that has begun to carry out a request."""
    return next((w for w in list(isolated._all) if w not in isolated._idle and w.heard), None)


def _while_reading(film: Video, blow: Callable[[int], None]) -> tuple[MediaError | None, float]:
    """Call `blow` for the worker during a read; return the error of the reader, and the seconds after the call."""
    caught: list[MediaError] = []
    returned: list[float] = []
    blown = threading.Event()

    def read() -> None:
        try:
            for _ in range(50):
                film.frames([film.duration_s - 0.1, film.duration_s / 2])
                if blown.is_set():
                    break
        except MediaError as error:
            caught.append(error)
        returned.append(time.monotonic())

    thread = threading.Thread(target=read)
    thread.start()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        busy = _busy()
        time.sleep(0.03)
        if busy is not None and busy is _busy():
            break
    assert busy is not None
    struck = time.monotonic()
    blow(busy.process.pid)
    blown.set()
    thread.join(60)
    assert not thread.is_alive()
    return (caught[0] if caught else None), returned[0] - struck


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_worker_that_dies_is_replaced_and_the_read_goes_on(heavy: Path, number: signal.Signals) -> None:
    with Video.open(heavy, isolation="always") as film:
        killed = isolated.KILLS
        error, _ = _while_reading(film, lambda pid: os.kill(pid, number))
        assert error is None and killed + 1 == isolated.KILLS
        assert number_of(film.frames([1.0]).images[0]) == 25


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_second_death_over_one_read_is_a_typed_error_and_the_next_look_works(
    make_video: Maker, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    path = make_video()
    beat = r"b'\0\0\0\x0b{\"beat\": 0}'"
    serve = f"s = socket.socket(fileno=0); s.sendall(b'ready'); s.recv(99999); s.sendall({beat})"
    dies = f"import socket, os; {serve}; os.kill(os.getpid(), {number.value})"
    with Video.open(path, isolation="always") as film:
        isolated.close_workers()
        killed = isolated.KILLS
        with monkeypatch.context() as changed:
            changed.setattr(isolated, "_START", dies)
            with pytest.raises(MediaWorkerKilled) as caught:
                film.frames([1.0])
        assert killed + 2 == isolated.KILLS
        error = caught.value
        assert error.path == str(path) and error.stage == "decode frames"
        assert f"signal {number.value}" in error.reason and "and 1 before it died too" in error.reason
        assert ("memory" in error.reason) == (number is signal.SIGKILL)
        assert number_of(film.frames([1.0]).images[0]) == 10


def test_a_worker_that_hangs_is_killed(heavy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "STALL_S", 1.5)
    with Video.open(heavy, isolation="always") as film:
        error, seconds = _while_reading(film, lambda pid: os.kill(pid, signal.SIGSTOP))
        assert isinstance(error, MediaWorkerKilled) and "no progress" in error.reason
        assert seconds < 5
        assert number_of(film.frames([1.0]).images[0]) == 25


def test_a_request_longer_than_a_pipe_does_not_wait_for_a_worker_that_hangs(
    make_video: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "STALL_S", 1.0)
    with Video.open(make_video(), isolation="always") as film:
        film.frames([1.0])
        os.kill(isolated._idle[0].process.pid, signal.SIGSTOP)
        with pytest.raises(MediaWorkerKilled):
            film.frames([i / 20_000 for i in range(100_000)])


def test_a_worker_that_died_between_two_looks_is_replaced_without_a_word(make_video: Maker) -> None:
    with Video.open(make_video(), isolation="always") as film:
        for _ in range(3):
            worker = isolated._idle[0]
            os.kill(worker.process.pid, signal.SIGKILL)
            assert number_of(film.frames([2.0]).images[0]) == 20
            assert worker not in isolated._all


def test_the_memory_of_a_worker_is_limited(make_video: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video("wide.mp4", frames=12, size=(4096, 2160))
    monkeypatch.setattr(isolated, "MEMORY_BYTES", 200 << 20)  # less than a worker uses when it starts
    with pytest.raises(MediaError) as caught, Video.open(path, isolation="always") as film:
        film.frames([0.1, 0.9])
    assert isinstance(caught.value, MediaDecodeError | MediaWorkerKilled | MediaOpenError)
    monkeypatch.undo()
    isolated.close_workers()
    with Video.open(path, isolation="always") as film:
        assert [number_of(image) for image in film.frames([0.1, 0.9], max_pixels=100_000).images] == [1, 9]
        assert film.frames([i / 10 for i in range(12)]).images.shape == (12, 2160, 4096, 3)


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.ts", "odd name é 空.mp4"])
def test_the_same_bytes_with_and_without_a_worker(make_video: Maker, name: str) -> None:
    path = make_video(name, frames=120, bframes=2, gop=24, sound_s=12.0)
    times = [11.2, 0.0, 3.33, 3.34, 7.0]
    with Video.open(path, isolation="always") as apart, Video.open(path, isolation="never") as here:
        assert apart.info == here.info
        assert apart.isolated and not here.isolated
        for mode in ("exact", "keyframe"):
            one, other = apart.frames(times, 9_000, mode), here.frames(times, 9_000, mode)  # type: ignore[arg-type]
            assert np.array_equal(one.images, other.images)
            assert (one.times_s, one.mode, one.missing_s, one.packets) == (
                other.times_s,
                other.mode,
                other.missing_s,
                other.packets,
            )
        assert np.array_equal(apart.audio(1.5, 4.25).samples, here.audio(1.5, 4.25).samples)
        one_clip, other_clip = apart.clip(2.0, 3.0, 8.0), here.clip(2.0, 3.0, 8.0)
        assert np.array_equal(one_clip.frames.images, other_clip.frames.images)


def test_a_file_that_misbehaves_moves_to_a_worker(make_video: Maker) -> None:
    path = make_video("torn.mp4", frames=120, gop=12)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)
    with Video.open(path) as film, Video.open(path, isolation="never") as here:
        assert number_of(film.frames([0.5]).images[0]) == 5
        assert not film.isolated
        times = [i / 2 for i in range(24)]
        shown, expected = film.frames(times), here.frames(times)
        assert film.isolated and shown.missing_s == expected.missing_s != ()
        assert np.array_equal(shown.images, expected.images)
        assert number_of(film.frames([0.5]).images[0]) == 5


def test_a_read_that_is_stuck_moves_to_a_worker(make_video: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "STALL_S", 0.3)
    with Video.open(make_video()) as film:
        local = film._file
        waiting = threading.Event()
        monkeypatch.setattr(local, "frames", lambda *_: waiting.wait(30))
        began = time.monotonic()
        assert number_of(film.frames([1.0]).images[0]) == 10
        assert film.isolated and time.monotonic() - began < 10
        waiting.set()


def test_a_worker_that_crashes_under_auto_is_replaced_too(heavy: Path) -> None:
    with Video.open(heavy) as film:
        film._isolate(time.monotonic() + 60)
        error, _ = _while_reading(film, lambda pid: os.kill(pid, signal.SIGSEGV))
        assert error is None
        assert number_of(film.frames([0.0]).images[0]) == 0


def test_cancelling_ends_the_worker_at_once(heavy: Path) -> None:
    with Video.open(heavy, isolation="always") as film:
        cancelled = threading.Event()
        threading.Timer(0.2, cancelled.set).start()
        began = time.monotonic()
        with pytest.raises(MediaTimeout, match="cancelled"):
            for _ in range(50):
                film.frames([film.duration_s - 0.1], cancelled=cancelled)
        assert time.monotonic() - began < 5
        assert number_of(film.frames([1.0]).images[0]) == 25


def test_a_deadline_is_kept_and_typed(heavy: Path) -> None:
    with Video.open(heavy, isolation="always") as film:
        began = time.monotonic()
        with pytest.raises((MediaTimeout, MediaWorkerKilled)):
            for _ in range(100):
                film.frames([film.duration_s - 0.1], timeout_s=0.02)
        assert time.monotonic() - began < 5


def test_a_file_that_was_exchanged_is_not_mixed_up(make_video: Maker) -> None:
    path = make_video("one.mp4")
    with Video.open(path, isolation="always") as old:
        old.frames([1.0])
        make_video("one.mp4", frames=90, fps=30)
        with pytest.raises(MediaOpenError, match="changed"):
            old.frames([1.0])
        with Video.open(path, isolation="always") as new:
            assert number_of(new.frames([1.0]).images[0]) == 30
            with pytest.raises(MediaOpenError, match="changed"):
                old.frames([1.0])
            assert number_of(new.frames([2.0]).images[0]) == 60


def test_many_threads_many_workers(make_video: Maker) -> None:
    path = make_video(frames=60)
    with Video.open(path, isolation="always") as film:
        wrong: list[object] = []

        def read(number: int) -> None:
            try:
                got = [number_of(image) for image in film.frames([number / 2, 3.0]).images]
                if got != [number * 5, 30]:
                    wrong.append(got)
            except MediaError as error:
                wrong.append(error)

        threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(isolated._idle) <= isolated.IDLE_WORKERS


@pytest.mark.parametrize(
    "message", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\7nonsens", b'\0\0\0\x0d{"blobs": []}', b""]
)
def test_a_worker_that_was_taken_over_can_only_fail(
    make_video: Maker, monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    code = (
        "import socket, os; s = socket.socket(fileno=0); s.sendall(b'ready'); s.recv(99999); "
        f"s.sendall({message!r}); os._exit(0)"
    )
    path = make_video()
    monkeypatch.setattr(isolated, "_START", code)
    with pytest.raises(MediaWorkerKilled):
        Video.open(path, isolation="always")


def test_an_interpreter_that_is_not_there_is_a_typed_error(make_video: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_python", lambda: "/nowhere/python3")
    with pytest.raises(MediaWorkerKilled, match="No such file"):
        Video.open(make_video(), isolation="always")


def test_an_embedding_program_is_not_started_as_a_worker(make_video: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("", "/usr/bin/some-server"):
        monkeypatch.setattr(sys, "executable", program)
        with Video.open(make_video(), isolation="always") as film:
            assert number_of(film.frames([1.0]).images[0]) == 10


def test_a_folder_with_modules_of_the_same_names_does_no_harm(
    make_video: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "av", "numpy", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with Video.open(make_video(), isolation="always") as film:
        assert number_of(film.frames([1.0]).images[0]) == 10


def _run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )


def _gone(pid: int, within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


READ = """
import os, signal, sys, threading, time
from apr_plugin.media import Video, isolated
film = Video.open(sys.argv[1], isolation="always")
film.frames([1.0])
print(isolated._idle[0].process.pid, flush=True)
"""


def test_workers_end_with_the_interpreter(make_video: Maker) -> None:
    done = _run(READ, make_video())
    assert done.returncode == 0 and done.stderr == ""
    assert _gone(int(done.stdout))


def test_workers_end_when_their_parent_is_killed(make_video: Maker) -> None:
    done = _run(READ + "os.kill(os.getpid(), signal.SIGKILL)", make_video())
    assert done.returncode == -signal.SIGKILL
    assert _gone(int(done.stdout))


def test_a_busy_worker_ends_when_its_parent_is_killed(heavy: Path) -> None:
    busy = (
        "threading.Thread(target=lambda: [film.frames([19.0]) for _ in range(99)], daemon=True).start(); "
        "time.sleep(0.5)\n"
    )
    done = _run(READ + busy + "os.kill(os.getpid(), signal.SIGKILL)", heavy)
    assert done.returncode == -signal.SIGKILL
    assert _gone(int(done.stdout))


def test_the_interpreter_ends_although_a_read_is_stuck(make_video: Maker) -> None:
    stuck = """
from apr_plugin.media import MediaTimeout
film = Video.open(sys.argv[1], isolation="never")
film._file.frames = lambda *_: time.sleep(600)
try:
    film.frames([1.0], timeout_s=-1.5)
except MediaTimeout:
    print("left")
"""
    done = _run(READ + stuck, make_video())
    assert done.returncode == 0 and "left" in done.stdout


def test_a_process_that_was_forked_off_starts_workers_of_its_own(make_video: Maker) -> None:
    fork = """
pid = os.fork()
if not pid:
    assert not isolated._all
    film.frames([2.0])
    print(isolated._idle[0].process.pid, flush=True)
    here = Video.open(sys.argv[1], isolation="never")
    here.frames([2.0])
    isolated.close_workers()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
film.frames([3.0])
print(isolated._idle[0].process.pid, flush=True)
"""
    done = _run(READ + fork, make_video())
    assert done.returncode == 0, done.stderr
    first, of_child, again = map(int, done.stdout.split())
    assert first == again != of_child


def test_a_file_opened_before_a_fork_is_read_right_on_both_sides(make_video: Maker) -> None:
    code = """
import os, sys
import numpy as np
from apr_plugin.media import Video
film = Video.open(sys.argv[1])
times = [i / 10 for i in range(60)]
want = film.frames(times).images
pid = os.fork()
for _ in range(20):
    assert np.array_equal(film.frames(times).images, want)
if not pid:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    done = _run(code, make_video(bframes=2))
    assert done.returncode == 0, done.stderr


def test_starting_a_worker_loads_little(make_video: Maker) -> None:
    code = "import sys, apr_plugin.media.worker; print('pydantic' in sys.modules, 'rich' in sys.modules)"
    assert _run(code).stdout.split() == ["False", "False"]
