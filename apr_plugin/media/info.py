"""What the reader knows about a file: its streams, which were chosen and why, its length, and its irregularities."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Self

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from apr_plugin.media.duration import read_length
from apr_plugin.media.errors import MediaOpenError
from apr_plugin.media.index import Index, needs_index, packets_of, read_index
from apr_plugin.media.indexed import first_picture
from apr_plugin.media.orientation import Orientation, orientation_of
from apr_plugin.media.reader import demux, rewind

MAX_SIDE_PX = 16_384
"""A header with a wider or higher picture than this is not believed."""

OUTLASTS_S = 1.0
"""A warning says so if the sound ends later than this after the last picture."""

_LEAD_S = 0.1  # sound may begin this much before the picture (codec priming) without moving second 0


@dataclass(frozen=True)
class MediaInfo:
    """Facts about one file, as plain values."""

    format: str
    """Container format, by libav's name."""
    duration_s: float
    """Seconds from second 0 to the end of the picture (of the sound if there is no picture)."""
    duration_from: str
    """Where the duration was read."""
    start_s: float
    """Time stamp in the file that is second 0."""
    fps: float | None
    """Average frames per second, or `None` if there is no picture or the file does not give it."""
    frame_count: int | None
    """Number of frames by the header, or `None` if it does not give one."""
    size: tuple[int, int] | None
    """(width, height) as shown, after rotation; `None` if there is no picture."""
    rotation: int
    """Rotation that the file asks for, counter-clockwise, in degrees, a multiple of 90; `mirrored` comes after it."""
    pixel_format: str
    """libav's name of the pixel format, such as `yuv420p`; empty if there is no picture."""
    video_stream: int | None
    """Index of the chosen picture stream."""
    video_codec: str
    """Its codec."""
    video_why: str
    """Why this one."""
    audio_stream: int | None
    """Index of the chosen sound stream."""
    audio_codec: str
    """Its codec."""
    audio_why: str
    """Why this one."""
    streams: tuple[str, ...]
    """A description of every stream, one line each."""
    warnings: tuple[str, ...]
    """Irregularities of the file, in sentences."""
    mirrored: bool = False
    """Whether the picture is mirrored left to right after the rotation, because the file asks for it."""
    sound_s: float | None = None
    """Seconds from second 0 to the end of the sound, if it is longer than the picture; sound may be read to there."""

    @property
    def has_video(self) -> bool:
        """Whether there is a picture."""
        return self.video_stream is not None

    @property
    def has_audio(self) -> bool:
        """Whether there is sound."""
        return self.audio_stream is not None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The reverse of `to_json`."""
        lists = {key: tuple(data[key]) for key in ("streams", "warnings")}
        return cls(**data | lists | {"size": tuple(data["size"]) if data["size"] else None})


@dataclass(frozen=True)
class Opened:
    """What is known about a file after it was opened."""

    info: MediaInfo
    """Its facts."""
    zero: Fraction
    """Second 0 as an exact time stamp."""
    reorder: int | None
    """What `PacketReader` (or `IndexedReader`) needs to know about presentation times."""
    orientation: Orientation
    """How its pictures are turned and mirrored."""
    index: Index | None
    """Its packets, if it had to be read through."""


def read_info(path: str, container: InputContainer) -> Opened:
    """Read the headers, the first picture and the last packets.

    Raises:
        MediaOpenError: nothing in the file can be used.
    """
    warnings: list[str] = []
    video, video_why = _choose_video(path, container, warnings)
    audio, audio_why = _choose_audio(container)
    if video is None and audio is None:
        raise MediaOpenError(path, "open", "; ".join(warnings) or "it has neither picture nor sound")
    index: Index | None = None
    if needs_index(path, container, video, audio):
        index = read_index(path, container, [stream for stream in (video, audio) if stream is not None])
    first, reorder = None, None
    if video is not None:
        track = index.tracks.get(video.index) if index is not None else None
        first, reorder = _first_picture(container, video) if track is None else first_picture(container, video, track)
        if track is not None and track.counted:
            warnings.append("most of its pictures have no time stamp; they are counted at the frame rate")
    zero = _second_zero(video, audio, index, first)
    if video is None and audio is not None and 0 < zero < _LEAD_S and _begins_before_zero(container, audio):
        zero = Fraction(0)  # PyAV 18 counts priming from 0 on
    length = read_length(path, container, video, audio, zero, index)
    duration = length.seconds
    warnings += length.warnings
    if index is not None and index.restarts_s:
        warnings.append(_restarts(index.restarts_s, zero))
    size, orientation = None, Orientation()
    if video is not None:
        context = video.codec_context
        size = (context.width, context.height)
        if first is None:
            warnings.append("the first picture can't be decoded")
        else:
            orientation = orientation_of(first)
            size = (first.width, first.height)
            warnings += _picture_warnings(first, video)
        if not (0 < size[0] <= MAX_SIDE_PX and 0 < size[1] <= MAX_SIDE_PX):
            unknown = "its pictures have no size, or one far too large"
            raise MediaOpenError(
                path, "open", f"its pictures would be {size[0]}x{size[1]} pixels" if all(size) else unknown
            )
        if orientation.sideways:
            size = (size[1], size[0])
        if orientation.warning:
            warnings.append(orientation.warning)
    sound_s = (
        length.sound_end_s
        if video is not None and length.sound_end_s is not None and length.sound_end_s > duration
        else None
    )
    if sound_s is not None and sound_s > duration + OUTLASTS_S:
        warnings.append(f"the pictures end at {duration:.2f} s, the sound at {sound_s:.2f} s")
    rate = (video.average_rate or video.guessed_rate) if video is not None else None
    info = MediaInfo(
        format=container.format.name,
        duration_s=duration,
        duration_from=length.source,
        start_s=float(zero),
        fps=float(rate) if rate else None,
        frame_count=video.frames or None if video is not None else None,
        size=size,
        rotation=orientation.turns * 90,
        mirrored=orientation.mirrored,
        pixel_format=first.format.name
        if first is not None
        else _pixel_format(video.codec_context)
        if video is not None
        else "",
        video_stream=video.index if video is not None else None,
        video_codec=video.codec_context.name if video is not None else "",
        video_why=video_why,
        audio_stream=audio.index if audio is not None else None,
        audio_codec=audio.codec_context.name if audio is not None else "",
        audio_why=audio_why,
        streams=tuple(_describe(stream) for stream in container.streams),
        warnings=tuple(warnings),
        sound_s=sound_s,
    )
    return Opened(info, zero, reorder, orientation, index)


def _restarts(at_s: tuple[float, ...], zero: Fraction) -> str:
    """A sentence about a clock that starts again."""
    times = ", ".join(f"{at - float(zero):.2f} s" for at in at_s[:5]) + (", ..." if len(at_s) > 5 else "")
    return f"its clock starts again at {times}; the pieces are shown one after the other"


def _choose_video(path: str, container: InputContainer, warnings: list[str]) -> tuple[VideoStream | None, str]:
    pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if len(pictures) < len(container.streams.video):
        warnings.append("a cover picture is not taken for a video")
    usable = [s for s in pictures if s.codec_context is not None and s.time_base]
    for stream in pictures:
        if stream not in usable:
            warnings.append(f"no decoder for its video stream {stream.index}")
    if not usable:
        return None, "there is none"
    if len(usable) == 1:
        return usable[0], "the only one"
    best = container.streams.best("video")
    if best in usable:
        return best, f"libav's choice of {len(usable)}: default tracks first, then the larger picture"
    return usable[0], f"the first of {len(usable)}"


def _choose_audio(container: InputContainer) -> tuple[AudioStream | None, str]:
    usable = [s for s in container.streams.audio if s.codec_context is not None and s.time_base]
    if not usable:
        return None, "there is none"
    if len(usable) == 1:
        return usable[0], "the only one"
    marked = [s for s in usable if s.disposition & Disposition.default]
    if len(marked) == 1:
        return marked[0], f"the container's default of {len(usable)}"
    best = container.streams.best("audio")
    pool = marked or usable
    if best in pool:
        return best, f"libav's choice of {len(usable)}; the container marks {len(marked)} as default"
    return pool[0], f"the first of {len(usable)}"


def _second_zero(
    video: VideoStream | None, audio: AudioStream | None, index: Index | None, first: VideoFrame | None
) -> Fraction:
    """Where a player's clock begins: at the first picture or sound, whichever is earlier.

    Sound that is earlier only because of priming does not count.
    """
    picture, sound = _start(video, index), _start(audio, index)
    if sound is not None and -_LEAD_S < sound < 0:
        sound = Fraction(0)
    if video is None:
        return sound or Fraction(0)
    if picture is None:
        if first is None or first.pts is None or first.time_base is None:
            return Fraction(0)
        picture = first.pts * first.time_base
    if sound is not None and float(picture - sound) > _LEAD_S:
        return sound
    return picture


def _begins_before_zero(container: InputContainer, audio: AudioStream) -> bool:
    """Whether the first packet of the sound is before time stamp 0; everything before it is priming."""
    try:
        first = next(packets_of(container, [audio]), None)
    except (av.FFmpegError, OSError):
        return False
    return first is not None and first.pts is not None and first.pts < 0


def _start(stream: VideoStream | AudioStream | None, index: Index | None) -> Fraction | None:
    """Time stamp of the first packet, by the header or by the packets."""
    if stream is None or not stream.time_base:
        return None
    if stream.start_time is not None:
        return Fraction(stream.start_time) * stream.time_base
    track = index.tracks.get(stream.index) if index is not None else None
    return int(track.times.min()) * stream.time_base if track is not None else None


def _first_picture(container: InputContainer, video: VideoStream) -> tuple[VideoFrame | None, int | None]:
    """The first picture and, if presentation times can't be trusted, its delay in ticks of decoding order.

    The delay is how much later than its packet the picture came out. AVI counts packets in decoding order and has no
    presentation times; the times that libav derives are wrong by the reordering.
    """
    context = video.codec_context
    began: int | None = None
    guessed = "avi" in container.format.name
    try:
        with contextlib.suppress(av.FFmpegError):
            rewind(container, video)
        for number, packet in enumerate(demux(container, video)):
            ended = not packet.size and packet.pts is None and packet.dts is None
            if not ended and not packet.size:
                continue
            if began is None and not ended:
                began, guessed = packet.dts, (guessed or packet.pts is None) and packet.dts is not None
            for frame in context.decode(None if ended else packet):
                return frame, (
                    max(0, frame.dts - began) if frame.dts is not None and began is not None else 0
                ) if guessed else None
            if number > 100 or ended:
                break
    except (av.FFmpegError, OSError):
        pass
    return None, 0 if guessed else None


def _picture_warnings(frame: VideoFrame, video: VideoStream) -> list[str]:
    found = []
    context = video.codec_context
    aspect = video.sample_aspect_ratio
    if aspect and aspect != 1:
        found.append(f"pixels are not square ({aspect}); frames are shown as coded")
    if frame.interlaced_frame:
        found.append("the picture is interlaced; frames are shown woven")
    if context.color_trc in (16, 18):  # SMPTE ST 2084 and ARIB STD-B67
        found.append("the picture is HDR; frames are shown without tone mapping")
    if frame.width % 2 or frame.height % 2:
        found.append(f"the picture has an odd side ({frame.width}x{frame.height})")
    if not (video.average_rate or video.guessed_rate):
        found.append("the file gives no frame rate")
    return found


def _describe(stream: Stream) -> str:
    context: Any = getattr(stream, "codec_context", None)
    marks = " (default)" if stream.disposition & Disposition.default else ""
    # PyAV 15 crashes if the type of a stream without one is read.
    kind = stream.type if type(stream) is not Stream else "unknown"
    text = f"{stream.index} {kind} {context.name if context is not None else 'no decoder'}{marks}"
    if kind == "video" and context is not None:
        return f"{text} {context.width}x{context.height} {_pixel_format(context)}"
    if kind == "audio" and context is not None:
        return f"{text} {context.sample_rate} Hz {context.layout.name}"
    return text


def _pixel_format(context: Any) -> str:
    """The pixel format, by libav's name.

    PyAV's `pix_fmt` crashes the process if the format is unknown; its `format` does not.
    """
    return context.format.name if context.format is not None else "unknown"
