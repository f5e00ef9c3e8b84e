"""Uniform frames of a video as JPEG files, for VLMEvalKit's models that take pictures and no video."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from PIL import Image

from apr_plugin.media import Video


def save_frames(path: str, folder: Path, count: int = 0, fps: float = -1.0) -> list[str]:
    """Write frames of a video, and return their paths; files that are there already are kept.

    Args:
        path: The video.
        folder: Where the files go, in a folder for each video.
        count: How many, at the times `duration * i / (count + 1)`, as VLMEvalKit's own data sets cut them.
        fps: Frames a second, in place of `count`.

    Raises:
        MediaError: the video can't be read.
    """
    stat = Path(path).stat()
    key = hashlib.sha256(f"{Path(path).resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    with Video.open(path, workers=1) as video:
        duration = video.duration_s
        if count <= 0:
            count = max(1, int(duration * fps))
            times = [i / fps for i in range(count)]
        else:
            times = [duration * i / (count + 1) for i in range(1, count + 1)]
        own = folder / f"{Path(path).stem[:80]}-{key}"
        paths = [own / f"frame-{i}-of-{count}{f'-{fps:g}fps' if fps > 0 else ''}.jpg" for i in range(1, count + 1)]
        missing = [i for i, place in enumerate(paths) if not place.exists()]
        if missing:
            own.mkdir(parents=True, exist_ok=True)
            for i, image in zip(missing, video.frames([times[i] for i in missing]).images, strict=True):
                part = paths[i].with_suffix(f".{os.getpid()}.part")
                Image.fromarray(image).save(part, "JPEG", quality=90)
                part.replace(paths[i])
    return [str(place) for place in paths]
