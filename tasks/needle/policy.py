"""`NeedlePolicy`: a scripted reference policy that looks coarse to fine, and uses only its prompt.

It keeps no state. Every turn it reads the question from the first user message, its own notes from the assistant
messages, and pixels or samples from the last user message. Then it writes a note on what it just saw, and takes the
next step of its ladder (`ladder.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from contextlib import suppress
from typing import Any

from apr_plugin.loop.policy import (
    AudioPart,
    Generation,
    ImagePart,
    Part,
    PolicyDefaults,
    Prompt,
    Sampling,
    TextPart,
    VideoPart,
)

from .ladder import Case, decide
from .perceive import GOOD_FIT, hear, read_frame
from .questions import parse_question

UNCLEAR = "unclear"

_META = re.compile(r"^Video(?: \d+)? META:\n((?:- .*\n?)*)", re.MULTILINE)
_FORM = re.compile(
    r"\banswer (?:is|must be) (the label of|one of|every matching time span|time spans|one number|a short text)"
)
_FORMS = {
    "the label of": "label", "one of": "label", "every matching time span": "span", "time spans": "span",
    "one number": "number", "a short text": "words",
}  # fmt: skip


class NeedlePolicy(PolicyDefaults):
    """The scripted reference policy, an upper bound for the needle tasks and a policy for tests without a model."""

    name = "needle"

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn; the same prompt always gives the same turn."""
        return Generation(await asyncio.to_thread(write_turn, prompt))

    def describe(self) -> dict[str, Any]:
        """There are no settings; the version counts changes of behaviour."""
        return {"policy": self.name, "version": 2}


def write_turn(prompt: Prompt) -> str:
    """The whole policy as a pure function: prompt in, one JSON object out."""
    users = [message for message in prompt.messages if message.role == "user"]
    case = read_case(users[0].text if users else "")
    for message in prompt.messages:
        if message.role == "assistant":
            _recall(case, message.text)
            continue
        for form in _FORM.findall(message.text):
            case.form = _FORMS[form]
        if message.role == "user":
            case.errors += re.findall(r"^\[ERROR\] (\w+):", message.text, re.MULTILINE)
    note = describe_media(users[-1].parts) if users else ""
    case.take(note)
    step = decide(case, prompt.final)
    refused = re.match(r"\[ERROR\] (\w+):", users[-1].text) if users else None
    observation = note or (
        f"My last action was refused ({refused[1]}); nothing new was seen." if refused else "Nothing has been seen yet."
    )
    think = step.think + (" I look at video 0 only, whatever the others show." if case.videos > 1 else "")
    return json.dumps(
        {"observation": observation, "think": think, "confidence": step.confidence, "action": step.action}
    )


def read_case(text: str) -> Case:
    """Read the question, and the data of the first video, from the first user message."""
    asked = None
    with suppress(ValueError):
        asked = parse_question(text)
    options = re.findall(r"^([A-Z])\. (.+)$", text, re.MULTILINE)
    videos = _META.findall(text)
    meta = videos[0] if videos else ""
    numbers = {
        key: float(value) for key, value in re.findall(r"^- (duration_seconds|fps): ([\d.]+)", meta, re.MULTILINE)
    }
    question, has_audio = text[text.find("Question:") :], "has_audio: false" not in meta.lower()
    return Case(
        question,
        asked,
        options,
        numbers.get("duration_seconds", 0.0),
        numbers.get("fps", 0.0),
        has_audio,
        videos=len(videos),
    )


def _recall(case: Case, turn: str) -> None:
    with suppress(ValueError, KeyError, TypeError):  # a turn that is not this policy's own gives no information
        said = json.loads(turn)
        case.take(str(said["observation"]))
        action = said["action"]
        if "start" in action:
            case.tried.add((action["type"], float(action["start"]), float(action["end"])))
        elif action["type"] == "answer":
            case.answered.add(str(action["content"]))


def describe_media(parts: tuple[Part, ...]) -> str:
    """The note on what the first video's media in a message shows; empty if there is none."""
    frames: list[tuple[float, str]] = []
    notes: list[str] = []
    label, video = "", 0
    for part in parts:
        if isinstance(part, TextPart) and (heading := re.match(r"\s*Video (\d+): ", part.text)):
            video = int(heading[1])
        if video:
            continue
        match part:
            case TextPart():
                label = part.text
            case ImagePart():
                at = re.search(r"Frame ([\d.]+)s:\s*$", label)
                frames += [(float(at[1]), _say(part))] if at else []
            case VideoPart():
                frames += [(at, _say(ImagePart(image))) for at, image in zip(part.times_s, part.frames, strict=True)]
                if part.audio is not None and part.times_s:
                    notes.append(_say_sounds(part.audio, part.times_s[0]))
            case AudioPart():
                at = re.search(r"Audio ([\d.]+)s-", label)
                notes.append(_say_sounds(part, float(at[1]) if at else 0.0))
    if frames:
        frames.sort()
        runs = [list(run) for _, run in itertools.groupby(frames, key=lambda frame: frame[1])]
        said = [f"{run[0][0]:.2f}" + (f"-{run[-1][0]:.2f}" if len(run) > 1 else "") + f"s {run[0][1]}" for run in runs]
        notes.insert(0, f"[frames {frames[0][0]:.2f}-{frames[-1][0]:.2f}s x{len(frames)}] " + "; ".join(said))
    return " ".join(notes)


def _say(part: ImagePart) -> str:
    reading = read_frame(part.image) if min(part.image.shape[:2]) >= 8 else None
    if reading is None or reading.fit < GOOD_FIT:
        return UNCLEAR
    return f"{reading.background}/{reading.pattern}" + (f" {reading.glyph.name}" if reading.glyph else "")


def _say_sounds(part: AudioPart, start: float) -> str:
    said = [f"{h.sound} {start + h.start_s:.2f}-{start + h.end_s:.2f}s" for h in hear(part.waveform, part.sample_rate)]
    return f"[audio {start:.2f}-{start + len(part.waveform) / part.sample_rate:.2f}s] " + (
        "; ".join(said) or "no sound that I know"
    )
