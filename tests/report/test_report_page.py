"""The page's file: what is in it, that nothing in it can act, and its pictures; `test_page_in_chromium.py` opens it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apr_testing import Playback, answer, look, number_of, turn
from PIL import Image
from report_making import TASK, key_of, made_comparison, made_summary, question_of

from apr_plugin.compare.joined import Comparison, arm_of_rows, arm_of_run, join
from apr_plugin.errors import AprError
from apr_plugin.loop import Budget, Card, Episode, EpisodeConfig, MediaRef, Option, Question
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.report import page as page_module
from apr_plugin.report.page import LIBRARIES, pack, write_page
from apr_plugin.report.payload import FLAGS, details, finite, row
from apr_plugin.report.thumbnails import BINS, read_again, waveform
from apr_plugin.runs.opened import open_run
from apr_plugin.runs.store import TrajectoryStore

Videos = dict[str, Path]


class Tags(HTMLParser):
    """Every element of a page, with its attributes, and the text of every script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


def unpack(block: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(block), -15))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return made_comparison(tmp_path_factory.mktemp("made"), 24)


def test_the_page_has_every_question_and_loads_nothing(made: Comparison, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = write_page(
        made, made_summary(made), tmp_path / "new" / "page.html", on_progress=lambda *step: steps.append(step)
    )
    assert [file.name for file in out.parent.iterdir()] == ["page.html"] and steps == [(n, 24) for n in range(1, 25)]
    tags = Tags(out.read_text("utf-8"))
    for tag, attributes in tags.found:
        assert not attributes.keys() & {"src", "href", "srcset", "data", "style"}, (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    assert {tag for tag, _ in tags.found} == {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "div",
        "p",
        "noscript",
        "script",
    }
    head = unpack(tags.scripts[0])
    blocks = [unpack(script) for script in tags.scripts[-24:]]
    assert len(head["rows"]) == 24 and [block["key"][2] for block in blocks] == [key[2] for key in made.keys]
    assert [arm["name"] for arm in head["arms"]] == [arm.name for arm in made.arms]


def test_the_policy_names_each_script_by_its_hash(made: Comparison, tmp_path: Path) -> None:
    text = write_page(made, made_summary(made), tmp_path / "page.html").read_text("utf-8")
    tags = Tags(text)
    policy = next(attributes["content"] for tag, attributes in tags.found if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert "connect-src" not in policy
    types = [attributes.get("type") for tag, attributes in tags.found if tag == "script"]
    run = [script for script, kind in zip(tags.scripts, types, strict=True) if kind is None]
    assert len(run) == len(LIBRARIES) + 1
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in run}
    assert hashes == set(re.findall(r"sha256-([^']+)'", policy.split("style-src")[0]))
    live = write_page(made, made_summary(made), tmp_path / "live.html", live="ab12").read_text("utf-8")
    assert "connect-src &#39;self&#39;" in live and 'data-live="ab12"' in live


def test_a_page_that_cant_be_written_leaves_the_old_one(
    made: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page.html"
    out.write_text("old")
    monkeypatch.setattr(
        page_module, "pack", lambda value: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(AprError, match=r"page\.html: cannot write the page: No space left"):
        write_page(made, made_summary(made), out)
    assert out.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(AprError, match="cannot write the page"):
        write_page(made, made_summary(made), out / "below.html")


def test_details_say_what_each_arm_did(made: Comparison) -> None:
    for key, detail in details(made):
        truth = question_of(int(key[2]))[2]
        assert detail["truth"]["evidence"] == [[*(pytest.approx(end, abs=1e-3) for end in truth.spans()[0]), 0]]
        for arm, found in zip(made.arms, detail["arms"], strict=True):
            trajectory = arm.trajectory(key)
            assert trajectory is not None and len(found["turns"]) == len(trajectory.turns)
            assert [look_["times"] for look_ in found["looks"]] == [
                [pytest.approx(time, abs=1e-3) for time in shown.times_s] for shown in trajectory.looks
            ]
            for number, turn_ in enumerate(found["turns"], 1):
                if turn_["look"] is not None:
                    assert found["looks"][turn_["look"]]["turn"] == number
            shown = [
                any(a <= time <= b for a, b in truth.spans() for time in look_["times"])
                if look_["kind"] == "frames"
                else any(look_["start"] < b and a < look_["end"] for a, b in truth.spans())
                for look_ in found["looks"]
            ]
            assert [look_["hit"] for look_ in found["looks"]] == shown
            assert ("hit" in found["flags"], "miss" in found["flags"]) == (any(shown), bool(shown) and not any(shown))
            assert ("unsupported" in found["flags"]) == (found["right"] and bool(shown) and not any(shown))
            assert ("failed" in found["flags"]) == (arm.outcome(key).status == "failed")
        cells = row(detail)[-1]
        assert [{FLAGS[bit] for bit in range(len(FLAGS)) if cell[2] >> bit & 1} for cell in cells] == [
            set(found["flags"]) for found in detail["arms"]
        ]
        first, second = (found["looks"] for found in detail["arms"][:2])
        split = next((n for n in range(max(len(first), len(second))) if [at(first, n)] != [at(second, n)]), None)
        assert detail["divergence"] == (None if split is None or not detail["arms"][1]["turns"] else split + 1)


def at(looks: list[dict[str, Any]], n: int) -> Any:
    return [(one["kind"], one["start"], one["end"], len(one["times"])) for one in looks[n : n + 1]]


def test_arms_without_trajectories_and_odd_numbers(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for file, scores in ((first, [1, 0]), (second, [0.25, 1])):
        lines = [{"task": TASK, "split": "test", "doc_id": n, "score": score} for n, score in enumerate(scores)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = join([arm_of_rows("a", first), arm_of_rows("b", second)])
    out = write_page(found, {"arms": [], "worst": [float("nan"), float("-inf")], "x": "\ud800"}, tmp_path / "page.html")
    tags = Tags(out.read_text("utf-8"))
    assert unpack(tags.scripts[0])["summary"] == {"arms": [], "worst": [None, None], "x": "?"}
    detail = unpack(tags.scripts[-1])
    assert [arm["score"] for arm in detail["arms"]] == [0, 1] and detail["question"]["videos"] == []
    assert finite({"a": (1, True, None, Path("x"))}) == {"a": [1, True, None, "x"]}
    with pytest.raises(ValueError):
        pack(float("nan"))


@pytest.fixture
def played(shared_videos: Videos, tmp_path: Path) -> Callable[..., Comparison]:
    """A comparison of one real episode per arm, about `shared_videos["sound"]`."""

    def play(*arms: str) -> Comparison:
        texts = [
            look(1.0, 3.0, 5),
            turn({"type": "get_audio", "start": 0.5, "end": 2.5}),
            turn({"type": "get_clip", "start": 3.0, "end": 4.0}),
            look(0.0, 5.0, 2),
            answer("A"),
        ]
        options = (Option(label="A", text="one"), Option(label="B", text="two"))
        question = Question(
            text="what?", kind="mcq", options=options, videos=(MediaRef(path=str(shared_videos["sound"])),), task=TASK,
            split="test", doc_id="0",
        )  # fmt: skip
        joined = []
        for arm in arms:
            policy, config = (
                Playback(texts if arm == "agent" else ["A"]),
                EpisodeConfig(arm=arm, budget=Budget(turns=8)),
            )
            done = asyncio.run(Episode(question, policy, config).run())
            with TrajectoryStore(tmp_path / arm, config.hash(policy), Card.of(config, policy)) as store:
                store.save(done)
            joined.append(arm_of_run(arm, open_run(tmp_path / arm)))
        return join(joined)

    return play


def pictures(seen: list[str]) -> list[int]:
    """The numbers that thumbnails carry."""
    return [number_of(np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB"))) for one in seen]


def test_thumbnails_are_the_frames_that_were_shown(played: Callable[..., Comparison], tmp_path: Path) -> None:
    found = played("agent", "passive")
    out = write_page(found, {}, tmp_path / "page.html", thumbnails=True)
    agent, passive = unpack(Tags(out.read_text("utf-8")).scripts[-1])["arms"]
    assert agent["lost"] == passive["lost"] == ""
    for arm, made_arm in ((agent, found.arms[0]), (passive, found.arms[1])):
        trajectory = made_arm.trajectory(key_of(0))
        assert trajectory is not None
        assert [pictures(look_["thumbs"]) for look_ in arm["looks"]] == [
            [round(time * 10) for time in shown.file_s] if shown.width else [] for shown in trajectory.looks
        ]
        assert any(look_["thumbs"] for look_ in arm["looks"])
    assert [look_["wave"] is not None for look_ in agent["looks"]] == [False, True, True, False]
    assert len(agent["looks"][1]["wave"]) == BINS and 30 < max(agent["looks"][1]["wave"]) <= 70
    plain = write_page(found, {}, tmp_path / "plain.html")
    assert not any(look_["thumbs"] for look_ in unpack(Tags(plain.read_text("utf-8")).scripts[-1])["arms"][0]["looks"])


def test_a_changed_or_missing_video_is_said_and_no_other_picture_shown(
    played: Callable[..., Comparison], shared_videos: Videos, tmp_path: Path
) -> None:
    found = played("agent")
    for find, words in (
        (lambda path: tmp_path / Path(path).name, "sound.mp4"),
        (lambda path: shared_videos["silent"], "has another name"),
    ):
        out = write_page(found, {}, tmp_path / "page.html", thumbnails=True, find=find)
        arm = unpack(Tags(out.read_text("utf-8")).scripts[-1])["arms"][0]
        assert words in arm["lost"] and not any(look_["thumbs"] for look_ in arm["looks"]) and len(arm["looks"]) == 4
    run = found.arms[0].run
    assert run is not None
    trajectory, card = found.arms[0].trajectory(key_of(0)), Card.read(run.folder)
    assert trajectory is not None
    shown = trajectory.turns[2].shown
    assert shown is not None and shown.kind == "clip"
    moved = shown.model_copy(update={"file_s": tuple(time + 0.03 for time in shown.file_s)})
    turns = list(trajectory.turns)
    turns[2] = turns[2].model_copy(update={"shown": moved})
    seen, lost = read_again(Trajectory.model_copy(trajectory, update={"turns": tuple(turns)}), card)
    assert set(seen) == {0, 1} and lost, "the looks before the fault are right and stay"


def test_too_many_pictures_are_left_out_and_said(
    played: Callable[..., Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MOST_THUMBNAIL_BYTES", 0)
    out = write_page(played("agent"), {}, tmp_path / "page.html", thumbnails=True)
    arm = unpack(Tags(out.read_text("utf-8")).scripts[-1])["arms"][0]
    assert "MB of pictures already" in arm["lost"] and not any(look_["thumbs"] for look_ in arm["looks"])


def test_a_waveform_is_the_loudest_of_each_part() -> None:
    samples = np.zeros(1600, np.float32)
    samples[805] = -0.5
    samples[3] = np.nan
    wave = waveform(samples)
    assert len(wave) == BINS and [place for place, height in enumerate(wave) if height] == [80] and wave[80] == 50
    assert waveform(np.zeros(0, np.float32)) == [] and waveform(np.full(3, 7, np.float32)) == [100, 100, 100]


def test_the_libraries_are_named_with_their_licences() -> None:
    vendor = Path(page_module.__file__).parent / "vendor"
    readme = (vendor / "README.md").read_text("utf-8")
    assert all(name in readme and (vendor / name).is_file() for name in LIBRARIES)
    assert {file.name for file in vendor.glob("*-LICENSE.txt")} == {
        f"{name}-LICENSE.txt" for name in ("htm", "preact", "uplot", "fflate")
    }
