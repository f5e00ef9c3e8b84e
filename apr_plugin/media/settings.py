"""How files are read, as one value that is recorded with a run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from apr_plugin.media.confine import Roots
from apr_plugin.media.local import Mode
from apr_plugin.media.video import Decoder, Isolation


class MediaSettings(BaseModel):
    """Everything that decides the pixels, except the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "exact"
    """`exact` frames, or the nearest `keyframe` if the times of a look are further apart than the keyframes."""

    decoder: Decoder = "pyav"
    """`pyav`, or `decord` for parity with harnesses that use it."""

    root: Roots = None
    """A folder that must contain every file, with links followed, or several, of which one must; other files are not
    opened. `None` is no limit. It does not affect pixels."""

    isolation: Isolation = "auto"
    """Whether files are read in a separate process: `auto` after an error or a stall, `always`, or `never`."""
