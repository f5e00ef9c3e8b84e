"""decord, for parity: it is right on plain files; `docs/media.md` lists what it gets wrong.

It runs in a separate process with a time limit, because decord can hang.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from films import write_film

from apr_plugin.errors import MissingExtra
from apr_plugin.media import Video

_COMPARE = """
import json, sys
import numpy as np
from apr_plugin.media import Video
path = sys.argv[1]
with Video.open(path, decoder="decord") as theirs, Video.open(path) as ours:
    times = [ours.duration_s * i / 23 for i in range(23)]
    a, b = theirs.frames(times), ours.frames(times)
    far = max(float(np.abs(x.astype(int) - y).mean()) for x, y in zip(a.images, b.images, strict=True))
    print(json.dumps([max(abs(s - t) for s, t in zip(a.times_s, b.times_s, strict=True)), far, a.mode]))
"""


@pytest.mark.parametrize(
    "name", ["closed-pyramid.mp4", "closed-pyramid.mkv", "gop250.mkv", "hevc.mp4", "vp9.webm", "starts.mp4"]
)
def test_plain_files_are_read_the_same(tmp_path: Path, name: str) -> None:
    pytest.importorskip("decord")
    path = (
        write_film(tmp_path / name, "closed-pyramid", first=240)
        if name == "starts.mp4"
        else write_film(tmp_path / name, name.partition(".")[0])
    )
    done = subprocess.run(
        [sys.executable, "-c", _COMPARE, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    off_s, far, mode = json.loads(done.stdout.splitlines()[-1])
    assert off_s < 1e-3 and far < 4.0 and mode == "exact"


def test_without_decord_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(MissingExtra, match=r"apr-plugin\[decord\]"):
        Video.open(write_film(tmp_path / "film.mp4", "gop12"), decoder="decord")
