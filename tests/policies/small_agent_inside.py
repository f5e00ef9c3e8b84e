"""What the small agent writes for a first turn and for turns with frames, by its name, as JSON in a file.

    python tests/policies/small_agent_inside.py vllm FOLDER CASE.npz OUT.json

`CASE.npz` has the pictures of two looks (`frames`, `other`), and `text` and `hint` of the question: in the environment
of vLLM there are no tasks, which make them. `test_small_agent_on_vllm.py` runs this with `policy=hf`, and in the
environment of vLLM (`scripts/vllm_cpu.py`).
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import Prompt, Sampling
from apr_plugin.loop.profile_file import read_profile
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.loop.wires import VideoMeta, wire_of
from apr_plugin.models import bundled
from apr_plugin.policies import make_policy

TOKENS = 48

ARGUMENTS: dict[str, dict[str, Any]] = {
    "hf": {"device": "cpu"},
    "vllm": {
        "dtype": "float32",
        "max_model_len": 8192,
        "engine_args": {"enforce_eager": True, "max_num_seqs": 4},
        "limit_mm_per_prompt": {"image": 24, "video": 1, "audio": 1},
    },
}


def prompts(folder: Path, given: Path) -> dict[str, Prompt]:
    """The first turn of an episode, the turn after a look, and the same after a look at other pictures."""
    profile = read_profile(folder)
    wire = wire_of(profile.wire, profile.frame_references, profile.frame_times)
    with np.load(given) as case:
        looks = {name: case[name] for name in ("frames", "other")}
        question = Question(text=str(case["text"]), kind=QuestionKind.GROUNDING, answer_hint=str(case["hint"]))
    perceives = frozenset({"frames", "audio", "clip"})
    meta = VideoMeta(60.0, 10.0, True)
    book = Notebook(question, [meta], profile.limits, profile.instructions, perceives, wire)  # type: ignore[arg-type]
    turns = profile.limits.turns or 9
    count = len(looks["frames"])
    first = '{"observation": "none", "think": "overview", "confidence": 0.10, "action": {"type": "get_frames", '
    first += f'"start": "#0.1", "end": "#0.2", "num": {count}}}}}'
    return {"first": book.prompt(1, turns)} | {
        name: book.with_turn(first, _look(images)).prompt(2, turns) for name, images in looks.items()
    }


def _look(images: NDArray[np.uint8]) -> Percept:
    times = tuple(3.0 * n for n in range(len(images)))
    return Percept("frames", 0, 0.0, 60.0, images=images, times_s=times, asked_s=times, look=1)


async def _written(policy: Any, asked: dict[str, Prompt]) -> dict[str, Any]:
    found: dict[str, Any] = {"described": policy.describe()}
    for name, prompt in asked.items():
        made = await policy.generate(prompt, Sampling(temperature=0.0, max_new_tokens=TOKENS))
        size = await policy.count(prompt)
        found[name] = {
            "tokens": list(made.token_ids),
            "logprobs": list(made.logprobs),
            "prompt": list(made.prompt_token_ids),
            "counted": size.total,
            "visual": made.usage.visual_tokens,
        }
    return found


def main(kind: str, folder: Path, given: Path, out: Path) -> None:
    """Write down what a policy writes with the agent in a folder."""
    bundled.FOLDER = folder
    policy = make_policy(kind, pretrained=bundled.NAME, **ARGUMENTS[kind])
    try:
        out.write_text(json.dumps(asyncio.run(_written(policy, prompts(folder, given)))))
    finally:
        policy.close()


if __name__ == "__main__":
    main(sys.argv[1], *(Path(name) for name in sys.argv[2:]))
