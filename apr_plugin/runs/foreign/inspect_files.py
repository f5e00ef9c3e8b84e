"""The parts of inspect_ai's logs as plain values: `.eval` (a zip of JSON) and `.json`, without inspect_ai.

Form: log version 2, inspect_ai 0.3.285 (`log/_log.py`, `log/_recorders/eval.py`): `header.json` (in a log of a run that
goes on or was killed only `_journal/start.json`) and `samples/<id>_epoch_<n>.json`. Newer releases compress the parts
with zstd, which Python reads from 3.14 on; here the package `zstandard` reads it, which inspect_ai itself depends on.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError, MissingExtra
from apr_plugin.files import check_regular
from apr_plugin.runs.foreign.found import LeftOut
from apr_plugin.runs.foreign.records import Left, Unmapped, whole_json

LONGEST_PART = 512 * 2**20
"""Bytes of one part of a zip at most, decompressed."""

MOST_PARTS = 1_000_000
"""Parts of a zip at most."""

_ZSTD = 93
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


def read_log(file: Path, left: LeftOut) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    """The header of a log, and its samples one at a time with their places.

    Raises:
        AprError: it is no log of inspect_ai, or can't be read.
        MissingExtra: it is compressed in a way that needs a package.
    """
    try:
        check_regular(file)
        return _zipped(file, left) if file.suffix == ".eval" else _plain(file, left)
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile, struct.error) as error:
        raise AprError(f"{file}: cannot read this log: {getattr(error, 'strerror', None) or error}") from error


def is_log(data: object) -> bool:
    """Whether the value of a `.json` file is a log of inspect_ai."""
    return isinstance(data, dict) and isinstance(data.get("eval"), dict) and "version" in data


def _plain(file: Path, left: LeftOut) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    data = whole_json(file)
    if not is_log(data):
        raise AprError(f"{file}: this is no log of inspect_ai")
    samples = data.pop("samples", None) or []

    def each() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, sample in enumerate(samples if isinstance(samples, list) else [], 1):
            place = f"{file.name}, sample {number}"
            if isinstance(sample, dict):
                yield place, sample
            else:
                left(Left(Unmapped.BAD_RECORD, "it is no object"), place)

    return data, each()


def _zipped(file: Path, left: LeftOut) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    with zipfile.ZipFile(file) as opened:
        parts = {info.filename: info for info in opened.infolist()}
    if len(parts) > MOST_PARTS:
        raise AprError(f"{file}: {len(parts):,} parts; a log has at most {MOST_PARTS:,}")
    head = next((parts[name] for name in ("header.json", "_journal/start.json") if name in parts), None)
    if head is None:
        raise AprError(f"{file}: this is no log of inspect_ai: it has no header.json")
    data = json.loads(_part(file, head))
    if not is_log(data):
        raise AprError(f"{file}: this is no log of inspect_ai")
    if head.filename != "header.json":
        data.setdefault("status", "started")

    def each() -> Iterator[tuple[str, dict[str, Any]]]:
        for name in sorted(name for name in parts if name.startswith("samples/") and name.endswith(".json")):
            place = f"{file.name}, {name}"
            try:
                sample = json.loads(_part(file, parts[name]))
                if not isinstance(sample, dict):
                    raise ValueError("it is no object")
            except (OSError, ValueError, RecursionError, struct.error) as error:
                left(Left(Unmapped.BAD_RECORD, f"it can't be read: {error}"), place)
            except Left as why:
                left(why, place)
            else:
                yield place, sample

    return data, each()


def _part(file: Path, info: zipfile.ZipInfo) -> bytes:
    """One part, decompressed.

    Raises:
        Left: it is larger than `LONGEST_PART`.
        ValueError: it is damaged or encrypted.
        MissingExtra: zstandard is not installed.
    """
    with file.open("rb") as opened:
        opened.seek(info.header_offset)
        head = _LOCAL_HEADER.unpack(opened.read(_LOCAL_HEADER.size))
        if head[0] != b"PK\3\4" or info.flag_bits & 1:
            raise ValueError("it is damaged or encrypted")
        opened.seek(head[9] + head[10], io.SEEK_CUR)
        packed = opened.read(min(info.compress_size, LONGEST_PART + 1))
    if info.compress_type == zipfile.ZIP_STORED:
        data = packed
    elif info.compress_type == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, LONGEST_PART + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
    elif info.compress_type == _ZSTD:
        data = _unpacked(packed)
    else:
        raise ValueError(f"its compression {info.compress_type} is unknown")
    if len(data) > LONGEST_PART:
        raise Left(Unmapped.TOO_LARGE, f"more than {LONGEST_PART:,} bytes")
    if zlib.crc32(data) != info.CRC:
        raise ValueError("its checksum is wrong; the file is damaged")
    return data


def _unpacked(packed: bytes) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("zstandard", "inspect") from None
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as reader:
            return bytes(reader.read(LONGEST_PART + 1))
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
