"""How files are read, as one value that a run records."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from apr_plugin.media.local import Mode
from apr_plugin.media.video import Decoder, Isolation


class MediaSettings(BaseModel):
    """What decides the pixels besides the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "exact"
    """`exact` frames, or the nearest `keyframe` where a look is wider than the keyframes lie apart."""

    decoder: Decoder = "pyav"
    """`pyav`, or `decord` for parity with harnesses that use it."""

    root: str | None = None
    """A folder in which every file must lie, links followed; others are not opened. `None` is no limit. It decides no pixels."""

    isolation: Isolation = "auto"
    """Whether files are read in a process of their own: `auto` once they misbehave, `always`, or `never`."""
