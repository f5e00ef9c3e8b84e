"""The messages of `apr needle make` about bad values: the option as typed, its limit, and the value, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apr_plugin.cli.needle import run_make
from apr_plugin.errors import AprError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"videos_per_bucket": 0}, "--videos must be at least 1, not 0"),
        ({"questions_per_kind": 0}, "--questions must be at least 1, not 0"),
        ({"questions_per_kind": 3}, "--questions is 3, but a video of bucket 1m has no more than 2"),
        ({"buckets": ("7m",)}, "--buckets must be different names out of 1m, 10m, 30m, 60m, 120m, not 7m"),
        ({"buckets": ()}, "--buckets must be different names out of 1m, 10m, 30m, 60m, 120m, not none"),
        ({"width": 8}, "--width must be at least 112, not 8"),
        ({"height": 225}, "--height must be a multiple of 2, not 225"),
        ({"fps": 0.0}, "--fps must be at least 1, not 0.0"),
        ({"fps": float("nan")}, "--fps can't be nan"),
        ({"gop_s": 50.0}, "--gop must be at most 10, not 50.0"),
        ({"decoys": 2.0}, "--decoys must be at most 1, not 2.0"),
        ({"event_length": 9.0}, "--event-length must be at most 3, not 9.0"),
        ({"seed": "x"}, "--seed can't be 'x'"),
    ],
)
def test_bad_values(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AprError) as caught:
        run_make(tmp_path / "set", None, **values)
    assert str(caught.value) == f"needle make: {message}"
    assert not (tmp_path / "set").exists()


def test_bad_workers(tmp_path: Path) -> None:
    with pytest.raises(AprError, match=r"^needle make: --workers must be at least 1, not 0$"):
        run_make(tmp_path / "set", 0)


def test_a_folder_of_another_set(tmp_path: Path) -> None:
    small: dict[str, Any] = {"buckets": ("1m",), "videos_per_bucket": 1, "width": 112, "height": 112}
    run_make(tmp_path / "set", 1, **small)
    with pytest.raises(AprError, match=r"\(--gop: 5\.0 there, 4\.0 wanted, --questions: 2 there, 1 wanted\)"):
        run_make(tmp_path / "set", 1, **small, gop_s=4.0, questions_per_kind=1)
