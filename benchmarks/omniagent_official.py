"""The official environment of OmniAgent, run from a user's clone.

It shows what a model is shown while the turns of a case are played.

Its own `SingleVideoQAEnv`, `qwen-vl-utils` and `qwen-omni-utils` are loaded from their files and run as they are. There
are stand-ins in memory for ray (calls are made at once), verl's reward judge (a free-form answer counts if it is
equal), the object storage, librosa and audioread (imported there, not used for local files) and the processor (a prompt
is as long as the case says). Waiting between retries is left out, and the output of an ffmpeg command is kept for the
next run of the same command.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import shlex
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.omniagent_cases import PUBLISHED, SHORT_PROMPT, Case, Message, Piece, Played, merged

SETTINGS = {
    "DELETE_MEDIA_WHEN_ERROR": "True",
    "STRICT_CONFIDENCE_CHECK": "True",
    "USE_DYNAMIC_STEP": "True",
    "MIN_MAX_STEPS": "5",
    "BYPASS_DURATION_CHECK": "True",
    "USE_OSS_IN_VIDEOENV": "False",
    "VIDEO_ENV_AUTO_CLEANUP": "True",
    "OMNIAGENT_QUIET_LOGS": "true",
    "TORCHCODEC_NUM_THREADS": "2",
}
"""The settings of the official `examples/omniagent_eval/eval.sh`, quiet and with fewer threads."""

UNSET: tuple[str, ...] = (
    "RANDOM_RESOURCE_SFT",
    "FORMAT_REWARD",
    "REASONING_REWARD",
    "LEN_BONUS_ENABLE",
    "USE_TITO",
    "MAX_AUDIO_LEN",
    "VIDEO_MAX_PIXELS",
)
UNSET += ("OMNI_IMAGE_MAX_PIXELS", "OMNI_VIDEO_FRAME_MAX_PIXELS", "FFMPEG_PATH", "OSS_CONFIG_PATH")

ENVIRONMENT = "agent_system/environments/env_package/video_env.py"


class Official:
    """The official code, loaded once.

    Args:
        clone: The clone's folder.
        scratch: The folder for the frames and clips that it writes.
        reader: The library that reads its clips: `torchcodec` (as in its scripts) or `decord`.
    """

    def __init__(self, clone: Path, scratch: Path, reader: str) -> None:
        if not (clone / ENVIRONMENT).is_file():
            sys.exit(f"{clone} has no {ENVIRONMENT}: give the folder of a clone of github.com/HarryHsing/OmniAgent")
        for program in ("ffmpeg", "ffprobe"):
            if shutil.which(program) is None:
                sys.exit(f"the official code runs {program}, which is not installed: apt-get install ffmpeg")
        try:
            importlib.import_module("torchcodec.decoders" if reader == "torchcodec" else reader)
        except (ImportError, OSError, RuntimeError) as error:
            sys.exit(
                f"the official code reads clips with {reader}, which can't be loaded (see the command at the "
                f"top of omniagent_parity): {error}"
            )
        for name in UNSET:
            os.environ.pop(name, None)
        os.environ |= SETTINGS | {"FORCE_QWENVL_VIDEO_READER": reader, "VIDEO_ENV_TMP_DIR": str(scratch)}
        self._stand_in()
        prompts = _load(
            "agent_system.environments.prompts.video_prompt",
            clone / "agent_system/environments/prompts/video_prompt.py",
        )
        _module("agent_system.environments.prompts", build_video_prompt_omniagent=prompts.build_video_prompt_omniagent)
        self.vision = _load("qwen_vl_utils.vision_process", clone / "qwen-vl-utils/src/qwen_vl_utils/vision_process.py")
        _module("qwen_vl_utils", process_vision_info=self._see)
        self.audio = _load(
            "qwen_omni_utils.v2_5.audio_process", clone / "qwen-omni-utils/src/qwen_omni_utils/v2_5/audio_process.py"
        )
        _module("qwen_omni_utils", process_audio_info=self._hear)
        self.env = _load("agent_system.environments.env_package.video_env", clone / ENVIRONMENT)
        for module in (self.vision, self.audio, self.env):
            module.time = types.SimpleNamespace(time=time.time, sleep=lambda _seconds: None)
        self.env.SingleVideoQAEnv._run_ffmpeg = self._keeping(self.env.SingleVideoQAEnv._run_ffmpeg)
        self._pictures: list[Any] = []
        self._clips: list[tuple[Any, float]] = []
        self._sounds: list[Any] = []

    def play(self, case: Case, video: Path) -> Played:
        """Play a case: record the prompt of each turn, its errors, and how the episode ended."""
        limits = PUBLISHED | dict(case.limits)
        template = _Remote(lambda history, **_named: "." * len(history))
        count = _Remote(lambda prompt, **_named: case.tokens if len(prompt) >= SHORT_PROMPT else 1000)
        processor = types.SimpleNamespace(apply_chat_template=template, count_tokens=count)
        sample = probe(video) | {
            "video": str(video),
            "question_type": case.type,
            "question": case.question,
            "mode": "OmniAgent",
        }
        sample |= {
            "answer": list(case.truth) if isinstance(case.truth, tuple) else case.truth,
            "options": list(case.options),
        }
        played = Played([], [], 0, "open", 0.0)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            environment = self.env.SingleVideoQAEnv(
                sample,
                max_frames_len=int(limits["frames"]),
                max_audio_len=int(limits["audio_s"]),
                max_clip_len=int(limits["clip_s"]),
                max_steps=int(limits["steps"]),
                processor=processor,
                max_prompt_len=65_536,
                max_response_len=4_096,
                is_train=False,
            )
            self._pictures = []
            self._clips = []
            self._sounds = []
            environment.reset()
            played.steps = environment.max_steps
            for text in case.turns:
                played.prompts.append(list(self._messages(environment.history, bool(sample["has_audio"]))))
                _history, played.reward, done, info = environment.step(text)
                played.errors.append(info.get("error_code"))
                if done:
                    played.ended = "failed" if info.get("error_code") else "answer"
                    break
            environment.close()
        return played

    def _messages(self, history: list[dict[str, Any]], has_audio: bool) -> Iterator[Message]:
        """The history as a policy gets it, with the media of the official readers.

        The readers made the media when the tokens of the last step were counted.
        """
        pictures, clips, sounds = iter(self._pictures), iter(self._clips), iter(self._sounds)
        for message in history[1:]:
            pieces = []
            for part in message["content"]:
                match part["type"]:
                    case "text":
                        pieces.append(Piece("text", part["text"]))
                    case "image":
                        pieces.append(Piece("image", pictures=np.asarray(next(pictures))[None]))
                    case "audio":
                        pieces.append(Piece("audio", sound=next(sounds)))
                    case "video":
                        shown, fps = next(clips)
                        images = shown.permute(0, 2, 3, 1).round().clamp(0, 255).byte().numpy()
                        pieces.append(
                            Piece("video", pictures=images, fps=float(fps), sound=next(sounds) if has_audio else None)
                        )
            yield message["role"], merged(pieces)

    @staticmethod
    def _keeping(run: Callable[..., None]) -> Callable[..., None]:
        written: dict[str, bytes] = {}

        def again(environment: Any, command: str, **more: Any) -> None:
            *words, out = shlex.split(command)
            key = shlex.join(words)
            if key not in written:
                run(environment, command, **more)
                written[key] = Path(out).read_bytes()
            Path(out).write_bytes(written[key])

        return again

    def _see(self, history: list[dict[str, Any]]) -> tuple[Any, Any]:
        images, clips, more = self.vision.process_vision_info(history, return_video_kwargs=True)
        self._pictures = images or []
        self._clips = list(zip(clips or [], more["fps"], strict=True))
        return images, clips

    def _hear(self, history: list[dict[str, Any]], use_audio_in_video: bool) -> Any:
        sounds = self.audio.process_audio_info(history, use_audio_in_video=use_audio_in_video)
        self._sounds = sounds or []
        return sounds

    @staticmethod
    def _stand_in() -> None:
        nothing = types.SimpleNamespace
        remote = lambda *given, **named: given[0] if given and callable(given[0]) and not named else (lambda made: made)  # noqa: E731
        _module("ray", remote=remote, get=lambda value: value)
        reader = type("OssReader", (), {"__init__": lambda self: None})
        for name in (
            "verl",
            "agent_system",
            "agent_system.environments",
            "agent_system.environments.env_package",
            "librosa",
            "audioread",
        ):
            _module(name)
        _module("verl.utils", hf_processor=nothing)
        _module("verl.utils.reward_score")
        equal = lambda predicted, true, _question: float(predicted == true)  # noqa: E731
        _module("verl.utils.reward_score.omni_agent", compute_score_free_form=equal, evaluate_reasoning_quality=nothing)
        _module("agent_system.environments.env_package.oss_reader", OssReader=reader)
        _module("qwen_vl_utils")
        _module("qwen_omni_utils")
        _module("qwen_omni_utils.v2_5")
        _module("qwen_omni_utils.v2_5.oss_reader", OssReader=reader)


class _Remote:
    """A method that ray would call in another process."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


@cache
def probe(video: Path) -> dict[str, Any]:
    """What the official demo asks ffprobe about a file: length of the container, frame rate, sound."""
    ask = ("ffprobe", "-v", "error", "-of", "default=nw=1:nk=1")

    def told(*entries: str) -> str:
        return subprocess.run([*ask, *entries, str(video)], capture_output=True, text=True, check=True).stdout.strip()

    rate = float(Fraction(told("-select_streams", "v:0", "-show_entries", "stream=r_frame_rate")))
    duration = float(told("-show_entries", "format=duration"))
    return {
        "duration_seconds": duration,
        "fps": rate,
        "has_audio": "audio" in told("-show_entries", "stream=codec_type"),
    }


def _module(name: str, **holds: Any) -> None:
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    vars(module).update(holds)


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"{path} does not exist")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
