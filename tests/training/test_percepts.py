"""Replay with a cache of percepts: bit by bit what decoding gives, only for the same video, and in loader workers."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import struct
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from apr_testing import Playback, answer, look, picture, turn
from percept_making import MANY, cache_in, entries, same

from apr_plugin.loop import (
    Budget,
    Card,
    Episode,
    EpisodeConfig,
    MediaRef,
    Question,
    ReplayError,
    Trajectory,
    percepts,
    replay,
)
from apr_plugin.loop.percepts import Decoded, LookKey, look_key
from apr_plugin.loop.policy import AudioPart, ImagePart, Prompt, TextPart, VideoPart
from apr_plugin.media import MediaSettings, Video
from apr_plugin.media.pool import POOL
from apr_plugin.training.percepts import PerceptCache

Videos = dict[str, Path]


def clip(start: float, end: float, **more: Any) -> str:
    return turn({"type": "get_clip", "start": start, "end": end} | more)


def audio(start: float, end: float, **more: Any) -> str:
    return turn({"type": "get_audio", "start": start, "end": end} | more)


def play(refs: list[MediaRef], texts: list[str], **more: Any) -> tuple[Trajectory, Card]:
    question = Question(text="what?", kind="free_form", videos=tuple(refs), task="t", doc_id="7")
    policy, config = Playback([*texts, answer("a pot")]), EpisodeConfig(budget=Budget(turns=len(texts) + 1), **more)
    done = asyncio.run(Episode(question, policy, config).run())
    assert [turn_.error for turn_ in done.turns] == [None] * (len(texts) + 1)
    return Trajectory.from_json(done.to_json()), Card.of(config, policy)


def media(prompts: list[Prompt]) -> list[np.ndarray]:
    """Every array of these prompts."""
    found: list[np.ndarray] = []
    for part in (part for prompt in prompts for message in prompt.messages for part in message.parts):
        match part:
            case TextPart():
                continue
            case ImagePart():
                found.append(part.image)
            case AudioPart():
                found.append(part.waveform)
            case VideoPart():
                found += [part.frames, *([] if part.audio is None else [part.audio.waveform])]
    return found


def arrays(done: Trajectory, card: Card, cache: Any = None, **more: Any) -> list[np.ndarray]:
    return media([prompt for prompt, _ in replay(done, card, percepts=cache, **more)])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a video was opened, and how often frames and sound were decoded."""
    counted: Counter[str] = Counter()
    POOL.close()

    def counting(name: str, real: Any) -> Any:
        def wrapped(*args: Any, **more: Any) -> Any:
            counted[name] += 1
            return real(*args, **more)

        return wrapped

    for name in ("frames", "audio", "__init__"):
        monkeypatch.setattr(Video, name, counting(name, getattr(Video, name)))
    return counted


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 bits a sample, to be turned by 90 degrees."""
    path = tmp_path_factory.mktemp("tall") / "tall.mp4"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=10)
        stream.width, stream.height = 160, 48
        stream.pix_fmt, stream.gop_size = "yuv420p10le", 12
        stream.options = {"preset": "ultrafast"}
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(picture(number, 160, 48), format="rgb24").reformat(format="yuv420p10le")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    with Video.open(path) as video:
        assert video.size == (48, 160) and video.info.pixel_format == "yuv420p10le"
    return path


def test_what_is_found_is_what_decoding_gives(
    shared_videos: Videos, tall: Path, tmp_path: Path, reads: Counter[str]
) -> None:
    """Frames, sound, clips with and without sound, a window of a file, a turned film of 10 bits, sound alone; both
    arms."""
    refs = [
        MediaRef(path=str(shared_videos["sound"]), start_s=0.37, end_s=5.21),
        MediaRef(path=str(shared_videos["silent"])),
        MediaRef(path=str(tall)),
        MediaRef(path=str(shared_videos["ears"])),
    ]
    texts = [look(0, 4.2, 5), audio(0.3, 2.1), clip(0.4, 2.9), audio(0.3, 2.1, video=3)]
    texts += [text for n in (1, 2) for text in (look(0.1, 3, 3, video=n), clip(0.4, 2.9, video=n))]
    for config in ({}, {"arm": "passive", "passive_frames": 4}, {"media": MediaSettings(mode="keyframe")}):
        passive = config.get("arm") == "passive"
        done, card = play(refs[:3] if passive else refs, [] if passive else texts, **config)
        plain = arrays(done, card)
        assert len(plain) == (4 if passive else 5 + 1 + 2 + 2 * (3 + 1) + 1)
        cache = cache_in(tmp_path / str(len(config)) / str(passive))
        for epoch in range(3):
            again = PerceptCache(cache.folder, most_bytes=MANY) if epoch == 2 else cache
            reads.clear()
            found = arrays(done, card, again)
            assert same(found, plain)
            assert all(array.flags.writeable for array in found)
            if epoch:
                assert not reads, "nothing is opened or decoded"
        assert cache.counts.hits == cache.counts.misses == len(done.looks)
        assert not cache.counts.damaged and cache.counts.bytes_read == cache.counts.bytes_written > 0


def test_blank_media_is_not_kept(shared_videos: Videos) -> None:
    class Refusing:
        def get(self, key: LookKey) -> Decoded | None:
            raise AssertionError

        put: Any = get

    done, card = play([MediaRef(path=str(shared_videos["sound"]))], [look(0, 4, 3)])
    assert len(arrays(done, card, Refusing(), blank=True)) == 3
    with pytest.raises(AssertionError):
        arrays(done, card, Refusing())


def test_another_video_is_an_error_although_its_looks_are_kept(shared_videos: Videos, tmp_path: Path) -> None:
    path, cache = tmp_path / "film.mp4", cache_in(tmp_path / "cache")
    shutil.copy(shared_videos["sound"], path)
    done, card = play([MediaRef(path=str(path))], [look(0, 5, 3), clip(0.4, 2.9)])
    plain = arrays(done, card, cache)

    def refused(words: str, trajectory: Trajectory = done, other: Card = card, hits: int = 1, **more: Any) -> None:
        before = cache.counts.hits
        with pytest.raises(ReplayError, match=words):
            arrays(trajectory, other, cache, **more)
        assert cache.counts.hits == before + hits

    moved = tmp_path / "elsewhere" / "film.mp4"
    moved.parent.mkdir()
    shutil.move(path, moved)
    refused("no such file")
    assert same(arrays(done, card, cache, find=lambda _: moved), plain)
    confined = card.model_copy(
        update={"config": card.config.model_copy(update={"media": MediaSettings(root=str(tmp_path / "cache"))})}
    )
    refused("outside media_root", other=confined, find=lambda _: moved)
    refused("has another name", find=lambda _: shutil.copy(moved, tmp_path / "other.mp4"))
    content = bytearray(moved.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused("is another file now")
    os.truncate(path, 0)
    refused("the file is empty")
    path.unlink()
    path.mkdir()
    refused("it is a folder")
    path.rmdir()
    shutil.copy(shared_videos["sound"], path)
    assert same(arrays(done, card, cache), plain)
    told = done.videos[0].model_copy(update={"fps": 11.0})
    refused("is read differently now", done.model_copy(update={"videos": (told,)}), hits=0)


def test_the_key_holds_everything_that_decides_the_bytes(
    shared_videos: Videos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, card = play([MediaRef(path=str(shared_videos["sound"]))], [clip(0.4, 2.9)])
    shown, film, ref, settings = done.turns[0].shown, done.videos[0], done.question.videos[0], card.config.media
    assert shown is not None and shown.sound_file_s is not None
    about = json.loads(look_key(shown, film, ref, settings).text)
    assert about["video"]["digest"] == film.digest and ["av", av.__version__] in about["decoder"]
    keys = [look_key(shown, film, ref, settings)]
    for name, value in {
        "kind": "frames",
        "width": shown.width + 1,
        "height": shown.height + 1,
        "mode": "mixed",
        "file_s": (*shown.file_s[:-1], np.nextafter(shown.file_s[-1], 0)),
        "sound_file_s": (shown.sound_file_s[0], np.nextafter(shown.sound_file_s[1], 0)),
    }.items():
        keys.append(look_key(shown.model_copy(update={name: value}), film, ref, settings))
    for name, value in {
        "duration_s": 5.0,
        "fps": None,
        "has_audio": False,
        "audio_s": 9.0,
        "size": film.size + 1,
        "digest": "0" * 16,
    }.items():
        keys.append(look_key(shown, film.model_copy(update={name: value}), ref, settings))
    keys.append(look_key(shown, film, ref.model_copy(update={"start_s": 0.0}), settings))
    keys.append(look_key(shown, film, ref.model_copy(update={"end_s": 6.0}), settings))
    cache = cache_in(tmp_path)
    plain = arrays(done, card, cache)
    for place, other in (
        ("decoder_versions", lambda _: (("av", "99.0"),)),
        ("__version__", "99.0"),
        ("FORMAT", 2),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(percepts, place, other)
            keys.append(look_key(shown, film, ref, settings))
            assert same(arrays(done, card, cache), plain)
    with monkeypatch.context() as patched:
        patched.setattr(percepts.platform, "machine", lambda: "pdp11")
        keys.append(look_key(shown, film, ref, settings))
    assert len({key.text for key in keys}) == len({key.name for key in keys}) == len(keys) == 6 + 6 + 2 + 3 + 2
    assert (cache.counts.hits, cache.counts.misses) == (0, 4), "another release decodes again"
    assert same(arrays(done, card, cache), plain) and cache.counts.hits == 1
    assert look_key(shown, film, ref.model_copy(update={"path": "/elsewhere.mp4"}), settings) == keys[0]


def test_one_warning_for_all_damaged_entries(
    shared_videos: Videos, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done, card = play([MediaRef(path=str(shared_videos["sound"]))], [look(0, 5, 3), audio(0.3, 2.1), clip(0.4, 2.9)])
    cache = cache_in(tmp_path)
    plain = arrays(done, card, cache)
    for path in entries(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    assert same(arrays(done, card, cache), plain) and same(arrays(done, card, cache), plain)
    assert (cache.counts.damaged, cache.counts.misses, cache.counts.hits) == (3, 6, 3)
    assert len(caplog.records) == 1 and "is decoded again" in caplog.text


def test_where_nothing_can_be_written_training_goes_on(shared_videos: Videos, caplog: pytest.LogCaptureFixture) -> None:
    done, card = play([MediaRef(path=str(shared_videos["sound"]))], [look(0, 5, 3), clip(0.4, 2.9)])
    cache = cache_in(Path("/proc/percepts"))
    for _ in range(2):
        assert same(arrays(done, card, cache), arrays(done, card))
    assert (cache.counts.not_kept, cache.counts.misses, cache.counts.bytes_written) == (4, 4, 0)
    assert len(caplog.records) == 1 and "no more percepts are kept by this process" in caplog.text


@pytest.fixture(scope="module")
def rows(student: Any, shared_videos: Videos, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """A student, and rows with frames, a clip and sound."""
    from row_making import Speaker, played, question

    from apr_plugin.training.making import RowSettings, Source, make_rows

    folder, learner = tmp_path_factory.mktemp("rows"), student("qwen2_5_omni")
    run = played(
        folder,
        question(shared_videos["sound"]),
        Speaker(learner, [look(0, 4, 3), clip(0.4, 2.9), audio(0.3, 2.1), answer("A")]),
    )
    made = make_rows([Source(run.file, run.card)], learner, RowSettings(validation=0.0)).rows
    assert len(made) == 4
    return learner, made


def test_the_second_epoch_decodes_nothing(rows: tuple[Any, list[Any]], tmp_path: Path, reads: Counter[str]) -> None:
    import torch

    from apr_plugin.training.loading import RowCollator, RowLoader

    learner, made = rows
    cache = cache_in(tmp_path)
    plain, keeping = (RowCollator(RowLoader(learner, percepts=place)) for place in (None, cache))
    wanted = plain(made)
    epochs = []
    for _ in range(3):
        reads.clear()
        batch = keeping(made)
        epochs.append((reads["frames"], reads["audio"]))
        assert wanted.keys() == batch.keys() and all(torch.equal(wanted[name], batch[name]) for name in wanted)
    assert epochs == [(2, 2), (0, 0), (0, 0)]
    assert (cache.counts.misses, cache.counts.hits) == (3, 6)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_loader_share_it(rows: tuple[Any, list[Any]], tmp_path: Path, start: str) -> None:
    import torch
    from torch.utils.data import DataLoader

    from apr_plugin.training.loading import RowCollator, RowLoader

    learner, made = rows
    cache = cache_in(tmp_path)
    wanted = [RowCollator(RowLoader(learner))([row]) for row in made]
    collate = RowCollator(RowLoader(learner, percepts=cache))
    workers = multiprocessing.get_context(start)
    loader = DataLoader(
        made, num_workers=2 if start == "fork" else 1, collate_fn=collate, multiprocessing_context=workers,
        persistent_workers=True,
    )  # fmt: skip
    for epoch in range(1, 3):
        for batch, right in zip(loader, wanted, strict=True):
            assert all(torch.equal(batch[name], right[name]) for name in right)
        assert (cache.counts.misses, cache.counts.hits) == (3, 3 * (epoch - 1))
    assert len(entries(tmp_path)) == 3
