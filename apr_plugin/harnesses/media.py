"""A harness's media items, as the references and pictures that a question has."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from apr_plugin.errors import told
from apr_plugin.loop.policy import ImagePart
from apr_plugin.loop.question import MediaRef
from apr_plugin.loop.text import printable
from apr_plugin.media import fit
from apr_plugin.media.confine import Roots, confine
from apr_plugin.media.opening import descriptor


def media_ref(item: Any) -> MediaRef:
    """A media item of a request: a path, or a mapping with a path and a window.

    The window is `video_start` and `video_end`, in seconds.
    """
    if isinstance(item, str):
        return MediaRef(path=item)
    if isinstance(item, dict):
        path = next(
            (item[key] for key in ("url", "path", "video", "video_path") if isinstance(item.get(key), str)), None
        )
        if path is not None:
            start, end = item.get("video_start"), item.get("video_end")
            return MediaRef(
                path=path, start_s=None if start is None else float(start), end_s=None if end is None else float(end)
            )
    return MediaRef(path=f"<{type(item).__name__} in place of a file>")  # opening it fails, and the question says so


def nothing(what: str, error: BaseException) -> MediaRef:
    """A reference in place of a file: opening it fails, and the question says why."""
    return MediaRef(path=f"<no {what}: {printable(told(error))[:500]}>")


def picture(image: Any, media_root: Roots, pixels: int | None) -> ImagePart:
    """A picture, from an image or its path, with at most `pixels` pixels."""
    if isinstance(image, str):
        confine(image, media_root)
        with descriptor(image) as fd, open(fd, "rb", closefd=False) as file:
            return picture(Image.open(file), None, pixels)
    image = image.convert("RGB")
    return ImagePart(np.asarray(image.resize(fit(image.width, image.height, pixels)), np.uint8))
