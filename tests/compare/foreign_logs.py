"""Logs of inspect_ai and rows of OmniAgent, written by hand in their forms, for the tests of imports."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODEL = "mockllm/model"


def assistant(number: int, words: Any, *calls: Mapping[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "id": f"m{number}", "content": words, "model": MODEL}
    return message | ({"tool_calls": list(calls)} if calls else {})


def call(number: int, function: str, **arguments: Any) -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": function, "arguments": arguments}


def result(number: int, words: str, fault: str = "") -> dict[str, Any]:
    error = {"type": "unknown", "message": fault} if fault else None
    return {"role": "tool", "content": words, "tool_call_id": f"c{number}", "error": error}


def generated(message: Mapping[str, Any], seconds: float | None = 0.25, stop: str = "stop") -> dict[str, Any]:
    """The `model` event of a message."""
    usage = {"input_tokens": 10, "input_tokens_cache_read": 30, "output_tokens": 5, "total_tokens": 45}
    output = {"model": MODEL, "choices": [{"message": dict(message), "stop_reason": stop}], "usage": usage}
    return {"event": "model", "model": MODEL, "input": [], "output": output, "working_time": seconds}


def tooled(number: int, seconds: float = 0.5) -> dict[str, Any]:
    return {"event": "tool", "id": f"c{number}", "working_time": seconds}


def sample(name: Any, messages: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    wrote = [one for one in messages if one["role"] == "assistant"]
    last = wrote[-1]["content"] if wrote else ""
    made: dict[str, Any] = {
        "id": name,
        "epoch": 1,
        "input": "What colour?",
        "target": "red",
        "messages": list(messages),
    }
    made |= {"events": [generated(one) for one in wrote], "output": {"completion": last}, "total_time": 2.0}
    return made | more


def log(samples: Sequence[Any], *, task: str = "films", **more: Any) -> dict[str, Any]:
    told = {"task": task, "model": MODEL, "created": "2026-11-27T08:00:00+00:00", "packages": {"inspect_ai": "0.3.285"}}
    told |= {"task_version": 2, "model_generate_config": {"temperature": 0.5}}
    return {"version": 2, "status": "success", "eval": told, "samples": list(samples)} | more


def as_zip(file: Path, data: Mapping[str, Any], *, zstd: bool = False, header: str = "header.json") -> Path:
    """A log in the form `.eval`; with zstd as releases from 0.3.2xx on write it."""
    parts = {header: {name: value for name, value in data.items() if name != "samples"}}
    parts |= {f"samples/{one['id']}_epoch_{one['epoch']}.json": one for one in data["samples"]}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, value in parts.items():
            out.writestr(name, json.dumps(value))
    if zstd:
        _compress_again(file, {name: json.dumps(value).encode() for name, value in parts.items()})
    return file


def _compress_again(file: Path, parts: Mapping[str, bytes]) -> None:
    """Write the same zip with method 93, which Python's own writer does not have before 3.14."""
    import struct
    import zlib

    import zstandard

    body, index = b"", b""
    for name, data in parts.items():
        packed, encoded = zstandard.compress(data), name.encode()
        sizes = (zlib.crc32(data), len(packed), len(data), len(encoded), 0)
        index += struct.pack("<4s6H3I5H2I", b"PK\1\2", 63, 63, 0, 93, 0, 33, *sizes, 0, 0, 0, 0, len(body)) + encoded
        body += struct.pack("<4s5H3I2H", b"PK\3\4", 63, 0, 93, 0, 33, *sizes) + encoded + packed
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(parts), len(parts), len(index), len(body), 0)
    file.write_bytes(body + index + end)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def written(action: Mapping[str, Any], confidence: float = 0.5) -> str:
    return json.dumps({"observation": "seen", "think": "next", "confidence": confidence, "action": dict(action)})


PICTURE = {"type": "image"}
LOOKS = [
    ({"type": "get_frames", "start": 0.0, "end": 5.0, "num": 2},
     [text("Frames 0.00s-5.00s (num=2)."), text("Frame 0.00s:"), PICTURE, text("Frame 5.00s:"), PICTURE],
     "Frames 0.00s-5.00s (num=2). Timestamps: [0.00s, 5.00s] [MEDIA OMITTED - Refer to your Observation]"),
    ({"type": "get_audio", "start": 0.0, "end": 3.0}, [text("Audio 0.00s-3.00s"), {"type": "audio"}],
     "Audio 0.00s-3.00s [MEDIA OMITTED - Refer to your Observation]"),
    ({"type": "get_frames", "start": 4.0, "end": 99.0, "num": 2},
     [text("[ERROR] FRAME_TS_OOB: Range [4.0, 99.0] OOB for 60.0s\n[SYSTEM] The previous action was invalid.")],
     "[ERROR] FRAME_TS_OOB: Range [4.0, 99.0] OOB for 60.0s\n[SYSTEM] The previous action was invalid."),
]  # fmt: skip
CLIP = (
    {"type": "get_clip", "start": 1.0, "end": 4.0},
    [text("Clip 1.00s-4.00s"), {"type": "video"}],
    "Clip 1.00s-4.00s",
)


def rows(
    name: str, looks: Sequence[Any] = LOOKS, reply: str = "B", *, reward: float = 1.0, done: Any = "True", **info: Any
) -> list[dict[str, Any]]:
    """The rows of one trajectory: its looks, then the answer."""
    outputs = [written(action) for action, _, _ in looks] + [written({"type": "answer", "content": reply}, 1.0)]
    about = {"video": f"videos/{name}.mp4", "question_type": "MCQ", "question": "What colour?", "answer": "B. two"}
    about |= {"options": ["B. two", "A. one"], "duration_seconds": 60.0, "fps": 25.0, "has_audio": True}
    limits = {"actual_max_steps": 5, "actual_max_frames": "7", "actual_max_audio": 4.0, "actual_max_clip": 3.5}
    about |= {"env_config": limits, **info}
    made = []
    for step in range(1, len(outputs) + 1):
        prompt = [{"role": "system", "content": [text("look")]}, {"role": "user", "content": [text("Video META: …")]}]
        for before in range(1, step):
            _, media, words = looks[before - 1]
            prompt.append({"role": "assistant", "content": [text(outputs[before - 1])]})
            prompt.append({"role": "user", "content": list(media) if before == step - 1 else [text(words)]})
        prompt[-1]["content"].append(text(f"\n[NOTICE] Step {step - 1}/5."))  # type: ignore[attr-defined]
        last = step == len(outputs)
        row = {
            "question_id": f"q-{name}",
            "traj_id": name,
            "step": step,
            "raw_input": prompt,
            "output": outputs[step - 1],
        }
        row |= {"done": done if last else "False", "episode_reward": reward, "extra_info": about}
        made.append(row)
    return made


def lines(file: Path, records: Sequence[Any]) -> Path:
    file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    return file
