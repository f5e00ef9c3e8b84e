"""Export to other trainers: what a checkpoint's own processor reads of the files, what is left out and why, stops."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import answer, look, turn

pytest.importorskip("torch")
pytest.importorskip("transformers")

from export_making import (
    EVERYTHING,
    audio,
    chats_of,
    clip,
    data_of,
    export,
    moving,
    picture,
    prompt_of,
    rows_of,
    samples,
    skips,
)
from real_processor import real
from row_making import Speaker, played, question, tokens

from apr_plugin.errors import AprError
from apr_plugin.loop.policy import Generation
from apr_plugin.models.families import Pixels
from apr_plugin.training.export import FORMATS
from apr_plugin.training.export.media_files import MediaFolder
from apr_plugin.training.loading import RowLoader
from apr_plugin.training.making import Source, make_rows
from apr_plugin.training.rows import NoRows, RowSet
from apr_plugin.training.student import Student

Videos = dict[str, Path]
Students = Callable[..., Student]
Tiny = Callable[[str], Path]
BOTH = sorted(FORMATS)
LEFT_OUT = {
    ("qwen3_vl", "llamafactory"): {"medium": 2},
    ("qwen3_vl", "swift"): {"medium": 2},
    # Of sound that is no whole number of columns it makes one token more, and it lays out clips with sound differently.
    ("qwen3_omni_moe", "llamafactory"): {"media_tokens": 1, "medium": 2},
}
"""What the two trainers read differently of `every_look`."""


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen2_5_vl", "qwen3_vl", "qwen3_omni_moe"])
def test_the_processor_reads_the_same_of_the_files(to_export: Any, tmp_path: Path, form: str, name: str) -> None:
    """The checkpoint's own processor, on the messages and the media that were written."""
    learner, rows = to_export(name)
    done = export(rows, learner, form, tmp_path / "out")
    assert done.skipped == LEFT_OUT.get((name, form), {}), skips(tmp_path / "out")
    assert done.rows + sum(done.skipped.values()) == len(rows) and done.rows > 2
    assert any(row.rewritten for row in rows.rows), "a repaired turn is in later prompts"
    written, loader = iter(data_of(tmp_path / "out")), RowLoader(learner)
    out = {line["row"] for line in map(json.loads, (tmp_path / "out/skipped.jsonl").read_text().splitlines())}
    kinds: Counter[str] = Counter()
    for row in rows.rows:
        if row.where in out:
            continue
        record, example = next(written), loader.example(row)
        prompt, target = prompt_of(record, tmp_path / "out")
        theirs = real(learner.encoder, prompt)
        np.testing.assert_array_equal(theirs["input_ids"][0], example.encoded.ids)
        assert [*tokens(learner, target), learner.end] == list(example.target)
        for medium in example.encoded.media:
            kinds[type(medium.part).__name__] += 1
        seen = [medium for medium in example.encoded.media if medium.pixels is not None]
        for key in ("pixel_values", "pixel_values_videos"):
            if key in theirs:
                np.testing.assert_array_equal(theirs[key], np.concatenate([one.pixels.numpy() for one in seen]))
        if "input_features" in theirs:
            mel = example.encoded.media[0].mel
            np.testing.assert_array_equal(theirs["input_features"][0][:, : mel.shape[1]], mel)
        losses = [message.get("loss") for message in record["messages"] if message["role"] == "assistant"]
        assert losses == ([False] * (row.turn - 1) + [True] if form == "swift" else [None] * row.turn)
    assert next(written, None) is None
    assert kinds["ImagePart"] > 0 and (kinds["VideoPart"] > 0 or "medium" in done.skipped)
    assert (kinds["AudioPart"] > 0) == (learner.family.hears and "media_tokens" not in done.skipped)


def test_chats(student: Students, tiny: Tiny, tmp_path: Path) -> None:
    """Text alone; what a chat template adds where there is no system message is told to the trainer."""
    learner = student("qwen2_5_vl")
    rows = chats_of(learner, tmp_path)
    assert [row.turn for row in rows.rows] == [1, 2, 1, 1]
    assert export(rows, learner, "swift", tmp_path / "swift").skipped == {"roles": 1}
    assert [record["messages"][0]["content"] for record in data_of(tmp_path / "swift")] == [
        "Be brief.",
        "Be brief.",
        "",
    ]
    # LLaMA-Factory's template has a system message of its own where there is none.
    done = export(rows, learner, "llamafactory", tmp_path / "factory")
    assert done.skipped == {"roles": 1, "prompt_tokens": 1} and done.rows == 2
    adds = shutil.copytree(tiny("qwen2_5_vl"), tmp_path / "adds")
    template = adds / "chat_template.jinja"
    own = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    template.write_text(f"{{% if messages[0]['role'] != 'system' %}}{own}{{% endif %}}{template.read_text()}")
    other = Student.from_pretrained(str(adds))
    rows = chats_of(other, tmp_path)
    for form in BOTH:
        export(RowSet(rows.rows[2:3]), other, form, tmp_path / f"{form}_adds")
        (record,) = data_of(tmp_path / f"{form}_adds")
        assert [message["role"] for message in record["messages"]] == ["system", "user", "assistant"]
        assert record["messages"][0]["content"] == "You are a helpful assistant."
        assert record["images"] == record["videos"] == record["audios"] == []


def test_equal_media_is_one_file(to_export: Any, tmp_path: Path) -> None:
    learner, rows = to_export("qwen2_5_vl")
    export(RowSet([*rows.rows, *rows.rows]), learner, "swift", tmp_path / "twice")
    export(rows, learner, "swift", tmp_path / "once")

    def media(folder: Path) -> set[str]:
        return {file.name for kind in ("images", "videos", "audios") for file in (folder / kind).rglob("*.*")}

    assert media(tmp_path / "twice") == media(tmp_path / "once") and len(media(tmp_path / "once")) > 4
    assert len(data_of(tmp_path / "twice")) == 2 * len(data_of(tmp_path / "once"))


@pytest.mark.parametrize("fps", [2.0, 1.7, 0.5, 29.97])
def test_a_clip_keeps_its_pixels_its_sound_and_its_rate(tmp_path: Path, fps: float) -> None:
    noise = np.random.default_rng(0)
    frames = noise.integers(0, 256, (4, 28, 84, 3), np.uint8)
    sound = noise.uniform(-1, 1, 16_037).astype(np.float32)
    folder = MediaFolder(tmp_path)
    read = moving(tmp_path / folder.clip(frames, fps, sound))
    np.testing.assert_array_equal(read.frames, frames)
    assert read.fps == pytest.approx(fps, rel=1e-9) and read.audio is not None
    np.testing.assert_array_equal(read.audio.waveform, sound)
    assert moving(tmp_path / folder.clip(frames, fps, None)).audio is None
    np.testing.assert_array_equal(picture(tmp_path / folder.picture(frames[0])), frames[0])
    np.testing.assert_array_equal(samples(tmp_path / folder.sound(sound)), sound)
    assert len(samples(tmp_path / folder.sound(sound[:5]))) == 1600  # as the encoder pads it
    assert folder.written == 5 and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("form", BOTH)
def test_a_tag_in_words_becomes_no_medium(student: Students, shared_videos: Videos, tmp_path: Path, form: str) -> None:
    """In what the model reads, tags are broken up; in what it learns they can't be, so that the row is left out."""
    learner = student("qwen2_5_vl")
    action = {"type": "get_frames", "start": 1, "end": 3, "num": 2}
    turns = [look(0, 2, 2), turn(action, observation="I saw <image>, <video> and <audio>"), answer("A")]
    says = [Generation(text, token_ids=(*tokens(learner, text), learner.end)) for text in turns]
    rows = rows_of(learner, tmp_path, shared_videos["silent"], says=says, writer="own")
    done = export(rows, learner, form, tmp_path / "out")
    assert (done.rows, done.skipped) == (2, {"tag": 1})
    assert skips(tmp_path / "out") == [
        ("tag", f"its words contain '<image>', which {FORMATS[form].title} takes for a medium")
    ]
    first, last = data_of(tmp_path / "out")
    words = "".join(message["content"] for message in last["messages"])
    assert "I saw < image>, < video> and < audio>" in words and "< video> it?" in words
    assert len(last["images"]) == words.count("<image>") == 2 and not first["images"]


def test_tokens_that_the_words_do_not_give_again(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    """A model may write a word in other tokens than its tokenizer would; a trainer that reads words learns others."""
    learner = student("qwen2_5_vl")
    rows = rows_of(learner, tmp_path, shared_videos["silent"], says=[look(0, 2, 2), answer("A")], writer="own")
    with pytest.raises(NoRows, match=r"target_tokens 2; first target_tokens: .* tokens there with a line break, "):
        export(rows, learner, "swift", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("form", BOTH)
def test_a_student_that_reads_other_tokens_is_refused(to_export: Any, tiny: Tiny, tmp_path: Path, form: str) -> None:
    _, rows = to_export("qwen2_5_vl")
    other = Student.from_pretrained(str(tiny("qwen2_5_vl")), max_pixels=4 * 784)
    done = export(rows, other, form, tmp_path / "out")
    seen = sum(row.visual_tokens > 0 for row in rows.rows)
    assert done.skipped == {"other_student": seen} and done.rows == len(rows) - seen
    assert all(re.search(r"prompt \d+, not \d+, visual \d+, not \d+$", detail) for _, detail in skips(tmp_path / "out"))
    with pytest.raises(
        NoRows, match=rf"no row can be exported to .*: other_student {seen}; first other_student: .*turn"
    ):
        export(RowSet([row for row in rows.rows if row.visual_tokens]), other, form, tmp_path / "none")
    assert not list(tmp_path.glob("none*"))


def test_a_trainer_that_scales_pictures_is_refused(to_export: Any, tmp_path: Path) -> None:
    """LLaMA-Factory leaves the limits of the checkpoint's own processor in force, ms-swift does not."""
    import tiny_models

    _, rows = to_export("qwen2_5_vl")
    small = Student.from_pretrained(str(tiny_models.save_tiny("qwen2_5_vl", tmp_path / "small", vision_edge=56)))
    assert export(rows, small, "swift", tmp_path / "swift").skipped == {}
    done = export(rows, small, "llamafactory", tmp_path / "llamafactory")
    assert done.skipped == {"media_tokens": sum(row.visual_tokens > 0 for row in rows.rows)}
    assert "visual and 0 audio tokens there" in skips(tmp_path / "llamafactory")[0][1]


def test_a_sound_that_a_trainer_cuts_off_is_left_out(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    """The feature extractor of these checkpoints ends after 30 s; for Qwen3-Omni, ms-swift tells it not to."""
    says = [audio(0, 40), audio(0, 20), answer("A")]
    for name, form, count in (("omni", "swift", 1), ("omni", "llamafactory", 1), ("omni_3", "swift", 0)):
        learner = student({"omni": "qwen2_5_omni", "omni_3": "qwen3_omni_moe"}[name])
        folder = tmp_path / f"{name}-{form}"
        rows = rows_of(learner, folder, shared_videos["long"], says=says)
        done = export(rows, learner, form, folder / "out")
        assert done.skipped == ({"media_tokens": 1} if count else {}) and done.rows == 3 - count
        assert not count or skips(folder / "out")[0][1].startswith("the sound has 0 visual and 750 audio tokens there")


def test_clips_at_several_rates_and_with_and_without_sound(
    student: Students, shared_videos: Videos, tmp_path: Path
) -> None:
    """LLaMA-Factory has one rate for all clips, and ms-swift one switch for their sound."""
    learner = student("qwen2_5_omni")
    says = [clip(0, 4), clip(1, 5), answer("A")]
    usual = rows_of(learner, tmp_path / "a", shared_videos["sound"], says=says)
    slow = rows_of(learner, tmp_path / "b", shared_videos["sound"], says=[says[0], says[2]], budget={"clip_fps": 1.0})
    silent = rows_of(learner, tmp_path / "c", shared_videos["silent"], says=[says[0], says[2]])
    rows = RowSet([*usual.rows, *slow.rows, *silent.rows])
    done = export(rows, learner, "llamafactory", tmp_path / "factory")
    assert (
        done.skipped == {"clip_rate": 1}
        and "1 frames a second, the trainer takes 2" in skips(tmp_path / "factory")[0][1]
    )
    yaml = (tmp_path / "factory/train.yaml").read_text()
    assert "video_fps: 2.0\n" in yaml and "use_audio_in_video: true\n" in yaml
    done = export(rows, learner, "swift", tmp_path / "swift")
    assert done.skipped == {"clip_sound": 1}
    assert "export USE_AUDIO_IN_VIDEO=true\n" in (tmp_path / "swift/train.sh").read_text()
    rates = [
        moving(tmp_path / "swift" / file).fps for record in data_of(tmp_path / "swift") for file in record["videos"]
    ]
    assert rates == [2.0, 2.0, 1.0]
    assert export(RowSet(silent.rows), learner, "swift", tmp_path / "silent").skipped == {}
    assert "export USE_AUDIO_IN_VIDEO=false\n" in (tmp_path / "silent/train.sh").read_text()
    seeing = student("qwen2_5_vl")
    mixed = rows_of(seeing, tmp_path / "d", shared_videos["sound"], says=says, budget={"clip_fps": 0.5})
    assert export(mixed, seeing, "swift", tmp_path / "seeing").skipped == {}
    assert "AUDIO_IN_VIDEO" not in (tmp_path / "seeing/train.sh").read_text()


def test_what_is_gone_or_has_changed_is_counted(
    student: Students, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    learner = student("qwen2_5_vl")
    films = [make_video(f"{name}.mp4", frames=40) for name in ("stays", "goes", "changes")]
    says = [look(0, 2, 2), answer("A")]
    sets = [rows_of(learner, tmp_path / film.stem, film, says=says) for film in films]
    rows = RowSet([row for one in sets for row in one.rows])
    films[1].unlink()
    make_video("changes.mp4", frames=41)
    file = Path(sets[0].rows[0].file)
    before = file.read_text()
    file.write_text(before.replace("seen", "been"))
    with pytest.raises(NoRows, match=r"gone 2; first gone: .*: the line has changed"):
        export(sets[0], learner, "swift", tmp_path / "out")
    file.write_text(before)
    done = export(rows, learner, "swift", tmp_path / "out")
    assert (done.rows, done.skipped) == (4, {"gone": 2})  # a first turn has seen nothing yet
    details = [detail for _, detail in skips(tmp_path / "out")]
    assert all(any(name in detail for detail in details) for name in ("goes.mp4", "changes.mp4"))


@pytest.mark.parametrize("form", BOTH)
def test_a_family_that_a_trainer_writes_differently(student: Students, tmp_path: Path, form: str) -> None:
    learner = student("qwen3_5")
    with pytest.raises(AprError, match=r"rows of Qwen3.5 can't be exported to .*; the families are Qwen2.5-VL, "):
        export(RowSet([]), learner, form, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_template_that_differs_is_found(student: Students, shared_videos: Videos, tmp_path: Path) -> None:
    """ms-swift and LLaMA-Factory fill in numbers of rounds also where a question has such a mark."""
    learner = student("qwen2_5_vl")
    for mark, form in (("{{ROUND1}}", "swift"), ("{{idx}}", "llamafactory")):
        asked = question(shared_videos["silent"], text=f"What does {mark} mean?")
        run = played(tmp_path / form, asked, Speaker(learner, [answer("A")]))
        rows = make_rows([Source(run.file, run.card)], learner, EVERYTHING)
        with pytest.raises(NoRows, match=r"prompt_tokens 1; first prompt_tokens: .*, not equal"):
            export(rows, learner, form, tmp_path / form / "out")
        other = next(name for name in BOTH if name != form)
        assert export(rows, learner, other, tmp_path / form / "other").rows == 1


def test_pictures_have_the_size_in_which_the_student_reads_them(
    student: Students, tiny: Tiny, shared_videos: Videos, tmp_path: Path
) -> None:
    learner = Student.from_pretrained(str(tiny("qwen2_5_vl")), max_pixels=6 * 784)
    assert learner.pixels == Pixels(None, 6 * 784)
    rows = rows_of(learner, tmp_path, shared_videos["sound"], says=[look(0, 2, 2), clip(0, 3), answer("A")])
    done = export(rows, learner, "llamafactory", tmp_path / "out")
    assert done.skipped == {}
    for record, row in zip(data_of(tmp_path / "out"), rows.rows, strict=True):
        for file in [*record["images"], *(frame for frames in record["videos"] for frame in frames)]:
            height, width, _ = picture(tmp_path / "out" / file).shape
            assert height % 28 == width % 28 == 0 and 28 * 28 <= height * width <= 6 * 784
        pixels = real(learner.encoder, prompt_of(record, tmp_path / "out")[0])
        seen = RowLoader(learner).example(row).encoded.media
        for key in {"pixel_values", "pixel_values_videos"} & set(pixels):
            np.testing.assert_array_equal(pixels[key], np.concatenate([medium.pixels.numpy() for medium in seen]))
