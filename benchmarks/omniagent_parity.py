"""Compares our `profile=omniagent` with the official environment of OmniAgent, message by message.

Both sides get the same films and the same turns.

        git clone https://github.com/HarryHsing/OmniAgent              # commit 18725bc is the one compared with
        apt-get install ffmpeg                                         # for the official code, and torchcodec's
        libraries
        uv pip install -c constraints.txt torchcodec                   # with '.[lmms,dev]': the official scripts read
        clips
        python -m benchmarks.omniagent_parity --clone OmniAgent

    The clone's code is run (read it first): its `SingleVideoQAEnv` and its own readers of pictures, clips and sound,
    with stand-ins for ray, verl and storage (`omniagent_official.py`).

    These are compared: the prompt of each turn (roles, kinds of parts, headings, labels, placeholders, notices, the
    question's text, sizes of pictures, which frames they are, clips' frame rates, sound), whether a turn is an error,
    the number of turns, how the episode ends, and its reward. The text of our own instructions and of errors is not
    compared. After that, the texts of the released example rows are compared; if the code disagrees with them, the rows
    count.

    It was run with torchcodec 0.17, torch 2.15, torchvision 0.29 and ffmpeg 5.1.

    Each difference is printed once, with both sides. Exit status 1: there are differences that are not in `ACCEPTED`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from apr_plugin.cli.omniagent_prompt import omniagent_prompt
from apr_plugin.loop import (
    PROFILES,
    Budget,
    EpisodeConfig,
    Generation,
    MediaRef,
    Option,
    Prompt,
    Question,
    QuestionKind,
    Sampling,
)
from apr_plugin.loop.episode import Episode
from apr_plugin.loop.notebook import load_system_prompt
from apr_plugin.loop.policy import AudioPart, ImagePart, Part, PolicyDefaults, PromptSize, TextPart, VideoPart
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.scoring.answers import exact_number, mean_relative_accuracy
from apr_plugin.scoring.intervals import parse_spans, set_iou
from benchmarks.omniagent_cases import (
    FILMS,
    PUBLISHED,
    SHORT_PROMPT,
    Case,
    Film,
    Message,
    Piece,
    Played,
    cases,
    make_film,
    merged,
    number_of,
)
from benchmarks.omniagent_official import Official

KINDS = {
    "MCQ": QuestionKind.MCQ,
    "TR": QuestionKind.GROUNDING,
    "NUM": QuestionKind.NUMBER,
    "SIZE": QuestionKind.NUMBER,
    "FF": QuestionKind.FREE_FORM,
}

UNIT = "in metres"
"""The unit in which our side is told to write a size; it distinguishes a size from another number."""

END_S = 0.2
"""The official code moves a time that is this close to the end, or closer, to the end."""

NEAR_END = "near the end, "


@dataclass(frozen=True)
class Difference:
    """One difference between the two sides."""

    what: str
    official: str
    ours: str
    where: str = ""


@dataclass
class Tally:
    """The results of the comparison."""

    counts: Counter[str] = field(default_factory=Counter)
    found: dict[tuple[str, ...], tuple[Difference, list[str]]] = field(default_factory=dict)
    """Differences that are not accepted: the first of each kind, and all its places.

    Differences of one kind that differ only in their numbers are under one key.
    """
    accepted: Counter[str] = field(default_factory=Counter)
    pixels: float = 0.0
    """The largest mean difference of two pictures of the same frame, in grey levels of 255."""

    def add(self, where: str, differences: Iterator[Difference]) -> None:
        for each in differences:
            reason = next((reason for reason, accepts in ACCEPTED if accepts(each, where)), None)
            if reason is not None:
                self.accepted[reason] += 1
            else:
                key = tuple(re.sub(r"\d+", "0", text) for text in (each.what, each.official, each.ours))
                _, places = self.found.setdefault(key, (each, []))
                places.append(f"{where}, {each.where}" if each.where else where)


ACCEPTED: tuple[tuple[str, Callable[[Difference, str], bool]], ...] = (
    (
        "the official code shows the first frame at or after a time, and 0.2 s before the end at the latest; "
        "ours the frame on screen at that time",
        lambda it, _case: it.what == "frame one off",
    ),
    (
        "a size is asked for with its unit, which official questions hold in their own words",
        lambda it, _case: it.what == "unit",
    ),
    (
        "the official code ends clips and sound 0.2 s before the end of the film, and fails where nothing is left",
        lambda it, case: it.what.startswith(NEAR_END) or "last fifth of a second" in case,
    ),
    (
        "training and eval.sh let the processor take clips for 2 frames a second; only the demo's launcher "
        "tells it how many were sampled",
        lambda it, _case: it.what == "frames per second of a clip" and it.ours == "2.000",
    ),
    (
        "media is visible for one generation; the official code shows it once more after a clip of fewer than "
        "4 frames was refused",
        lambda it, case: (
            case in ("clip of 3 frames", "a clip too short after a clip") and it.what in ("heading", "parts")
        ),
    ),
    ("a time that is no number is an error", lambda _it, case: case == "frames from NaN"),
    (
        "a turn of over 20,000 characters, which 4,096 tokens can't reach, is cut",
        lambda it, case: it.what == "turn" and case == "turn of 25,000 letters",
    ),
    ("a span that begins before 0 is no span", lambda it, case: it.what == "reward" and case == "spans '[[-1, 2]]'"),
    ("the official code can't encode a clip with an odd side, and fails", lambda _it, case: case == "clips on odd"),
)
"""Intended differences: the reason, which differences they are, and in which case."""


class Playback(PolicyDefaults):
    """A policy that writes the given turns and keeps every prompt."""

    name = "playback"

    def __init__(self, turns: Sequence[str], tokens: int) -> None:
        self.turns = turns
        self.tokens = tokens
        self.prompts = list[Prompt]()

    async def count(self, prompt: Prompt) -> PromptSize:
        return PromptSize(self.tokens if len(prompt.messages) >= SHORT_PROMPT else 1000)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        if len(self.prompts) == len(self.turns):
            raise EOFError("the turns are played")
        self.prompts.append(prompt)
        return Generation(self.turns[len(self.prompts) - 1])

    def describe(self) -> dict[str, Any]:
        return {}


def play(case: Case, video: MediaRef) -> Played:
    """Play a case on our side."""
    limits, profile = PUBLISHED | dict(case.limits), PROFILES["omniagent"]
    told = {
        "frames_per_look": int(limits["frames"]),
        "audio_s": limits["audio_s"],
        "clip_s": limits["clip_s"],
        "max_turns": int(limits["steps"]),
    }
    budget = Budget.model_validate(profile.budget.model_dump() | told)
    config = EpisodeConfig(budget=budget, wire=profile.wire, parsing=profile.parsing)
    options = tuple(
        Option(label=label, text=text) for label, _, text in (option.partition(". ") for option in case.options)
    )
    kind = case.type.partition("_")[0]
    question = Question(
        text=case.question,
        kind=KINDS[kind],
        options=options,
        videos=(video,),
        answer_hint=UNIT if kind == "SIZE" else "",
    )
    policy = Playback(case.turns, case.tokens)
    trajectory = asyncio.run(Episode(question, policy, config).run())
    open_still = trajectory.stop_reason is StopReason.POLICY_UNAVAILABLE and len(trajectory.turns) == len(case.turns)
    answered = trajectory.stop_reason is StopReason.ANSWERED
    if trajectory.stop_reason.failed and not open_still:
        raise RuntimeError(f"{case.name}: {trajectory.stop_detail}")
    return Played(
        prompts=[
            [(message.role, merged([_piece(part) for part in message.parts])) for message in prompt.messages[1:]]
            for prompt in policy.prompts
        ],
        errors=[turn.error.code if turn.error is not None else None for turn in trajectory.turns],
        steps=trajectory.turns_allowed,
        ended="open" if open_still else "answer" if answered else "failed",
        reward=_reward(case, trajectory) if answered and trajectory.answer_valid else 0.0,
    )


def _piece(part: Part) -> Piece:
    match part:
        case TextPart(text):
            return Piece("text", text)
        case ImagePart(image):
            return Piece("image", pictures=image[None])
        case AudioPart(waveform, rate):
            return Piece("audio", sound=waveform, rate=rate)
        case VideoPart(frames, _, fps, audio):
            return Piece(
                "video",
                pictures=frames,
                fps=fps,
                sound=None if audio is None else audio.waveform,
                rate=16_000 if audio is None else audio.sample_rate,
            )


def _reward(case: Case, trajectory: Trajectory) -> float:
    answer = trajectory.answer or ""
    match case.type.partition("_")[0]:
        case "MCQ" | "FF":
            return float(answer == case.truth[0])
        case "TR":
            return set_iou(parse_spans(answer) or [], [(start, end) for start, end in case.truth])
        case "NUM":
            return exact_number(answer, case.truth[0], strict=True)
    return mean_relative_accuracy(answer, case.truth[0], strict=True)


def compare(official: Played, ours: Played, film: Film, tally: Tally) -> Iterator[Difference]:
    """Find everything that differs in an episode."""
    if official.steps != ours.steps:
        yield Difference("steps allowed", str(official.steps), str(ours.steps))
    for number, (theirs, mine) in enumerate(zip(official.prompts, ours.prompts, strict=False), 1):
        where = f"turn {number}"
        tally.counts["prompts"] += 1
        if [role for role, _ in theirs] != [role for role, _ in mine]:
            yield Difference("roles", " ".join(role for role, _ in theirs), " ".join(role for role, _ in mine), where)
            continue
        for index, (one, other) in enumerate(zip(theirs, mine, strict=True)):
            # Earlier messages were compared in the previous prompt, unless they are among these.
            if number == 1 or index >= len(theirs) - 3:
                yield from _message(one, other, index, film, tally, where)
            elif (said := _words(one)) != (told := _words(other)):
                yield Difference(
                    "unit" if told == f"{said} ({UNIT})" else "history", _short(said, told), _short(told, said), where
                )
    for number, (code, own) in enumerate(zip(official.errors, ours.errors, strict=False), 1):
        tally.counts["turns"] += 1
        if (code is None) != (own is None):
            yield Difference("error or not", code or "no error", own or "no error", f"turn {number}")
    if len(official.errors) != len(ours.errors):
        yield Difference("turns taken", str(len(official.errors)), str(len(ours.errors)))
    if official.ended != ours.ended:
        yield Difference(
            "end",
            f"{official.ended} ({official.errors[-1]})",
            f"{ours.ended} ({ours.errors[-1] if ours.errors else 'before a turn'})",
        )
    elif abs(official.reward - ours.reward) > 1e-6:
        yield Difference("reward", f"{official.reward:.4f}", f"{ours.reward:.4f}")


def _message(theirs: Message, mine: Message, index: int, film: Film, tally: Tally, where: str) -> Iterator[Difference]:
    tally.counts["messages"] += 1
    kinds, own = ([piece.kind for piece in pieces] for pieces in (theirs[1], mine[1]))
    if kinds != own:
        for one, other in zip(theirs[1][:1], mine[1][:1], strict=False):
            if one.kind == other.kind == "text":
                yield from _text(one.text, other.text, index, where, theirs[0])
        yield Difference("parts", _counted(kinds), _counted(own), where)
        return
    label = ""
    for one, other in zip(theirs[1], mine[1], strict=True):
        if one.kind == "text":
            label = one.text
            yield from _text(one.text, other.text, index, where, theirs[0])
            continue
        tally.counts[one.kind] += 1
        clamped = _clamped(label, film)
        for difference in (*_pictures(one, other, label, film, tally, where), *_sound(one, other, where)):
            yield replace(difference, what=f"{NEAR_END}{difference.what}") if clamped else difference
        if one.fps is not None and other.fps is not None and abs(one.fps - other.fps) > 0.005:
            yield Difference("frames per second of a clip", f"{one.fps:.3f}", f"{other.fps:.3f}", where)


def _clamped(label: str, film: Film) -> bool:
    """Whether a clip or a sound reaches into the last part of the film, which the official code leaves out."""
    found = re.search(r"(?:Clip|Audio) [\d.]+s-([\d.]+)s", label)
    return found is not None and float(found[1]) > film.frames / float(film.fps) - END_S


def _text(theirs: str, mine: str, index: int, where: str, role: str) -> Iterator[Difference]:
    """Differences of two texts, with the notice compared separately; the text of an error is left out."""
    for what, one, other in zip(("", "notice"), _split(theirs), _split(mine), strict=True):
        if one != other:
            name = what or (
                "unit"
                if other == f"{one} ({UNIT})"
                else "turn"
                if role == "assistant"
                else "question"
                if index == 0
                else _name(one)
            )
            yield Difference(name, _short(one, other), _short(other, one), where)


def _split(text: str) -> tuple[str, str]:
    """The text without the words of an error, and its notice."""
    at = text.rfind("[NOTICE]")
    at = len(text) if at < 0 else at - (text[:at].endswith("\n"))
    before = re.sub(r"\A\[ERROR\] .*\Z", "[ERROR] …", text[:at], flags=re.DOTALL)
    return before, text[at:]


def _name(text: str) -> str:
    if text.startswith("[ERROR]"):
        return "error"
    if "OMITTED" in text:
        return "placeholder"
    return "label" if re.fullmatch(r"\s*Frame [\d.]+s:", text) else "heading"


def _pictures(theirs: Piece, mine: Piece, label: str, film: Film, tally: Tally, where: str) -> Iterator[Difference]:
    if theirs.pictures is None or mine.pictures is None:
        return
    one, other = theirs.pictures, mine.pictures
    if one.shape[1:3] != other.shape[1:3]:
        height, width = film.size[1], film.size[0]
        yield Difference(
            f"size of {theirs.kind} of {width}x{height}",
            f"{one.shape[2]}x{one.shape[1]}",
            f"{other.shape[2]}x{other.shape[1]}",
            where,
        )
    numbers, own = ([number_of(image) for image in images] for images in (one, other))
    tally.counts["pictures"] += len(numbers)
    if len(numbers) != len(own):
        yield Difference("frames of a clip", f"{len(numbers)}: {_few(numbers)}", f"{len(own)}: {_few(own)}", where)
        return
    if numbers != own:
        what = (
            "frame one off"
            if all(_one_off(a, b, theirs.kind, label, film) for a, b in zip(numbers, own, strict=True))
            else f"which frames ({theirs.kind})"
        )
        yield Difference(what, f"{label.strip()[-40:]} {_few(numbers)}", _few(own), where)
    elif one.shape == other.shape:
        tally.pixels = max(tally.pixels, float(np.abs(one.astype(np.int16) - other).mean(axis=(1, 2, 3)).max()))


def _one_off(theirs: int, mine: int, kind: str, label: str, film: Film) -> bool:
    if abs(theirs - mine) <= 1:
        return True
    found = re.search(r"([\d.]+)s(?: \(num=1\)\.)?:?\s*\Z", label)
    if kind != "image" or found is None:
        return False
    asked_s, last_s = float(found[1]), film.frames / float(film.fps) - END_S
    return (
        asked_s > last_s
        and abs(theirs - last_s * film.fps) <= 1
        and abs(mine - min(asked_s * film.fps, film.frames - 1)) <= 1
    )


def _sound(theirs: Piece, mine: Piece, where: str) -> Iterator[Difference]:
    one, other = theirs.sound, mine.sound
    if theirs.pictures is None and one is None:  # an example row, which has no media
        return
    if one is None or other is None:
        if (one is None) != (other is None):
            yield Difference(
                f"sound of {theirs.kind}", "none" if one is None else "some", "none" if other is None else "some", where
            )
        return
    if theirs.rate != mine.rate:
        yield Difference("sample rate", str(theirs.rate), str(mine.rate), where)
    # The official clip is encoded again, in whole AAC frames.
    most = 0.03 if theirs.kind == "video" else 1.5 / theirs.rate
    if abs(len(one) - len(other)) > most * theirs.rate:
        yield Difference(
            f"seconds of sound of {theirs.kind}",
            f"{len(one) / theirs.rate:.4f}",
            f"{len(other) / mine.rate:.4f}",
            where,
        )
    lag_s, likeness = _aligned(np.asarray(one, np.float64), np.asarray(other, np.float64), theirs.rate)
    if abs(lag_s) > 0.001 or likeness < 0.95:
        yield Difference(
            f"samples of {theirs.kind}", "in step", f"{lag_s * 1000:.2f} ms later, correlation {likeness:.2f}", where
        )


def _aligned(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], rate: int) -> tuple[float, float]:
    """The delay of the second sound relative to the first, up to 50 ms, and the correlation at that delay."""
    size, reach = len(one) + len(other), min(rate // 20, len(other) - 1)
    products = np.fft.irfft(np.fft.rfft(other, size) * np.conj(np.fft.rfft(one, size)), size)
    lags = np.concatenate([products[-reach:], products[: reach + 1]])
    best = int(np.argmax(lags))
    n = min(len(one), len(other))
    return (best - reach) / rate, float(lags[best] / (np.linalg.norm(one[:n]) * np.linalg.norm(other[:n]) + 1e-12))


def _words(message: Message) -> str:
    return "".join(_split(piece.text)[0] if piece.kind == "text" else f"<{piece.kind}>" for piece in message[1])


def _short(text: str, other: str = "") -> str:
    """A text as it is written in Python, from shortly before the place where the other one differs."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, at - 30)
    return ("…" if start else "") + repr(text[start : start + 110]) + ("…" if len(text) > start + 110 else "")


def _few(numbers: Sequence[int]) -> str:
    shown = [str(number) for number in numbers]
    return " ".join(shown if len(shown) <= 12 else [*shown[:6], "…", *shown[-5:]])


def _counted(kinds: Sequence[str]) -> str:
    """Kinds of parts in order; repeated ones have their number."""
    pairs = [f"{a} {b}" for a, b in pairwise(kinds)]
    repeats = Counter(kinds)
    return (
        " ".join(kinds)
        if len(kinds) <= 6
        else f"{repeats['text']} texts, {repeats['image']} images, {repeats['video']} clips ({pairs[0]} …)"
    )


def system_prompt(official: Official, clone: Path, folder: Path) -> Iterator[Difference]:
    """Compare the text of the file that `apr omniagent-prompt` writes with the official function's return value."""
    limits = {
        "max_frames_len": PUBLISHED["frames"],
        "max_audio_len": PUBLISHED["audio_s"],
        "max_clip_len": PUBLISHED["clip_s"],
    }
    theirs = official.env.build_video_prompt_omniagent(PUBLISHED["steps"], **limits)
    path = folder / "omniagent_prompt.txt"
    path.write_bytes(omniagent_prompt(clone, limits).encode())
    if (mine := load_system_prompt(path)) != theirs:
        yield Difference("system prompt by apr omniagent-prompt", _short(theirs, mine), _short(mine, theirs))


def rows(clone: Path, folder: Path, tally: Tally) -> None:
    """Compare our texts with those of the released example rows.

    Their turns are played on made films of the same length, rate and sound.
    """
    episodes: dict[str, list[dict[str, Any]]] = {}
    for line in (clone / "data" / "example_train_sft.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        episodes.setdefault(row["traj_id"], []).append(row)
    for episode in episodes.values():
        extra, limits = episode[0]["extra_info"], episode[0]["extra_info"]["env_config"]
        duration_s = float(extra["duration_seconds"])
        film = Film((320, 240), FPS[round(extra["fps"], 2)], duration_s + 0.05, extra["has_audio"])
        path = make_film(folder / f"row_{episode[0]['question_id']}.mp4", film)
        case = Case(
            f"example row {episode[0]['question_id']}",
            "",
            tuple(row["output"] for row in episode),
            extra["question_type"],
            (extra["answer"],) if isinstance(extra["answer"], str) else extra["answer"],
            extra["question"],
            tuple(extra["options"] or ()),
            {
                "frames": int(limits["actual_max_frames"]),
                "audio_s": limits["actual_max_audio"],
                "clip_s": limits["actual_max_clip"],
            },
        )
        ours = play(case, MediaRef(path=str(path), end_s=duration_s))
        theirs = [
            [(message["role"], _row_pieces(message["content"])) for message in row["raw_input"][1:]] for row in episode
        ]
        last = episode[-1]
        official = Played(
            theirs, [None] * len(episode), int(limits["actual_max_steps"]), "answer", float(last["episode_reward"])
        )
        tally.add(case.name, compare(official, ours, film, tally))


FPS = {29.97: FILMS["720p"].fps * 30 / 24, 25.0: FILMS["long"].fps, 24.0: FILMS["720p"].fps * 1001 / 1000}


def _row_pieces(content: Any) -> tuple[Piece, ...]:
    parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return merged([Piece("text", part["text"]) if part["type"] == "text" else Piece(part["type"]) for part in parts])


def main() -> None:
    """Compare both sides and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", type=Path, required=True, help="A clone of HarryHsing/OmniAgent.")
    parser.add_argument(
        "--dir", type=Path, help="Folder for the films, which are used again; default: a temporary one."
    )
    parser.add_argument(
        "--reader",
        default="torchcodec",
        choices=("torchcodec", "decord"),
        help="The library with which the official code reads clips.",
    )
    parser.add_argument("--only", default="", help="Only cases whose name contains this.")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="Name every place of a difference, and what was accepted."
    )
    asked = parser.parse_args()
    tally, began = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as beside:
        folder = asked.dir or Path(scratch) / "films"
        folder.mkdir(parents=True, exist_ok=True)
        official = Official(asked.clone, Path(scratch), asked.reader)
        for case in cases():
            if asked.only not in case.name:
                continue
            video = folder / f"{case.film}.mp4"
            if not video.exists():
                make_film(video, FILMS[case.film])
            tally.counts["episodes"] += 1
            ours = beside.submit(play, case, MediaRef(path=str(video)))
            try:
                theirs = official.play(case, video)
            except Exception as error:  # noqa: BLE001 - the code is not ours and can raise anything
                tally.add(
                    case.name,
                    iter([Difference("the official code raises", f"{type(error).__name__}: {error}"[:160], "")]),
                )
                continue
            tally.add(case.name, compare(theirs, ours.result(), FILMS[case.film], tally))
        if asked.only in "system prompt":
            tally.add("system prompt", system_prompt(official, asked.clone, Path(scratch)))
        if asked.only in "example rows":
            rows(asked.clone, folder, tally)
    print_tally(tally, asked.verbose, time.monotonic() - began)
    sys.exit(1 if tally.found else 0)


def print_tally(tally: Tally, verbose: bool, seconds: float) -> None:
    for _, (first, places) in sorted(tally.found.items()):
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        print(f"{first.what}: {places[0]}{more}\n  official  {first.official}\n  ours      {first.ours}")
        if verbose:
            print("".join(f"  at {place}\n" for place in places[1:]), end="")
    for reason, number in tally.accepted.items():
        print(f"accepted, {number} times: {reason}")
    print(", ".join(f"{number} {what}" for what, number in tally.counts.items()) + f" compared in {seconds:.0f} s")
    print(
        f"pictures of the same frame differ by {tally.pixels:.2f} of 255 grey levels at most, on average over a picture"
    )
    found = len(tally.found)
    print(f"{found} difference{'' if found == 1 else 's'}" if found else "no difference but the accepted ones")


if __name__ == "__main__":
    main()
