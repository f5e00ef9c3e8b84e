"""GRPO with rollouts on a real vLLM server on the CPU, with a small Qwen2.5-Omni: words, frames, clips and sound.

The server is started with a random checkpoint, and every weight that it samples with comes from the trainer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("openai")

from conformance import ATTACK, after, attacked, big_clip, opening  # noqa: E402
from grpo_making import LISTENS, LOOKS, WATCHES, recipe_of, said, taught, write_questions  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from vllm_server import MODEL, serve, vllm_python  # noqa: E402

from apr_plugin.loop.policy import Prompt, Sampling  # noqa: E402
from apr_plugin.runs.opened import open_run  # noqa: E402
from apr_plugin.training.grpo.forward import RowForward  # noqa: E402
from apr_plugin.training.grpo.recipe import GrpoRecipe  # noqa: E402
from apr_plugin.training.grpo.rows import TurnRow  # noqa: E402
from apr_plugin.training.grpo.running import run_grpo  # noqa: E402
from apr_plugin.training.grpo.served import policy as served_policy  # noqa: E402
from apr_plugin.training.grpo.served.control import ServerControl, ServerFault  # noqa: E402
from apr_plugin.training.grpo.served.media import without_clip_sound  # noqa: E402
from apr_plugin.training.grpo.served.policy import ServedPolicy  # noqa: E402
from apr_plugin.training.grpo.served.rollouts import ServedRollouts  # noqa: E402
from apr_plugin.training.grpo.served.weights import save_weights  # noqa: E402
from apr_plugin.training.sft.learner import load_learner  # noqa: E402
from apr_plugin.training.sft.recipe import LoraSettings, StudentSettings  # noqa: E402
from apr_plugin.training.student import Student  # noqa: E402

pytestmark = [pytest.mark.xdist_group("vllm"), pytest.mark.slow, pytest.mark.timeout(1200)]

WHOLE = "qwen2_5_omni_full"
CONTEXT = 8192
EQUAL = 1e-4
"""Most by which log-probabilities of the server and of the trainer may differ in float32; 5e-5 was measured."""
OPTIONS: tuple[str, ...] = ("--trust-request-mm-kwargs", "--mm-processor-cache-gb", "0")
OPTIONS += ("--logprobs-mode", "processed_logprobs", "--limit-mm-per-prompt", '{"image": 64, "video": 1, "audio": 1}')


@pytest.fixture(scope="module")
def address(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in development mode."""
    log = tmp_path_factory.mktemp("served") / "server.log"
    with serve(vllm_python(), tiny(WHOLE), log, *OPTIONS, variables={"VLLM_SERVER_DEV_MODE": "1"}) as server:
        yield server.base_url.removesuffix("/v1")


@pytest.fixture(scope="module")
def prepare(
    address: str, tiny: Any, shared_videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., GrpoRecipe]:
    """A recipe whose student looks, listens and answers A or B."""
    folder = tmp_path_factory.mktemp("taught")
    questions = write_questions(folder / "q.jsonl", shared_videos, ["sound"])

    def says(_: str, repeat: int) -> list[str]:
        return [LOOKS[0], LISTENS, WATCHES, said(type="answer", content="AB"[repeat])]

    plain = recipe_of(tiny(WHOLE), questions)
    made = taught(tiny(WHOLE), GrpoRecipe.model_validate(plain), says, folder / "student")

    def make(**more: Any) -> GrpoRecipe:
        trainer = {"max_steps": 2, "optim": "sgd", "learning_rate": 1e-3, "max_grad_norm": 0.0}
        trainer |= more.pop("trainer", {})
        data = recipe_of(made, questions, generations=6, rollouts={"servers": [address]}, trainer=trainer, **more)
        return GrpoRecipe.model_validate(data | {"student": {"pretrained": str(made), "context_tokens": CONTEXT}})

    return make


def gaps(address: str, model: Any, student: Student, prompts: dict[str, Prompt]) -> dict[str, float]:
    """By how much log-probabilities of turns that the server samples differ from those of this model, at most."""
    policy = ServedPolicy(student, f"{address}/v1", MODEL)
    sampling = Sampling(temperature=0.8, seed=3, max_new_tokens=24)

    async def ask() -> list[Any]:
        return await asyncio.gather(*(policy.generate(prompt, sampling) for prompt in prompts.values()))

    forward, found = RowForward(student, sampling.temperature), {}
    for (name, prompt), turn in zip(prompts.items(), asyncio.run(ask()), strict=True):
        row = TurnRow(without_clip_sound(prompt), turn.prompt_token_ids, turn.token_ids)
        with torch.no_grad():
            scored = forward(model, model.get_output_embeddings(), (row,), "cpu")
        found[name] = float((scored.logprobs[0] - torch.tensor(turn.logprobs)).abs().max())
    policy.close()
    return found


def test_rows_caches_and_every_weight(address: str, tiny: Any, tmp_path: Path) -> None:
    """Log-probabilities are the trainer's for every medium, before and after all weights changed, towers included.

    With the prefix cache of old weights they are not.
    """
    student = Student.from_pretrained(str(tiny(WHOLE)), context_tokens=CONTEXT)
    model = load_learner(StudentSettings(pretrained=str(tiny(WHOLE)))).eval()
    control = ServerControl(address)
    assert control.look(None, CONTEXT) == MODEL
    prompts = {
        "words": opening(),
        "hostile words": attacked(ATTACK),
        "frames": after("frames", frames=3),
        "sound": after("audio"),
        "clip": big_clip(6),
        "clip, 3 a second": big_clip(9, fps=3.0),
    }
    control.load(str(tiny(WHOLE)), "first")
    found = gaps(address, model, student, prompts)
    assert max(found.values()) < EQUAL, found
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path / "w"
    save_weights(model, model.state_dict(), folder, processor=student.encoder.processor)
    control._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
    for cache in ("mm", "encoder"):
        control._reset(cache)
    stale = gaps(address, model, student, prompts)
    assert min(stale.values()) > 100 * EQUAL, stale
    control.load(str(folder), "changed")
    found = gaps(address, model, student, prompts)
    assert max(found.values()) < EQUAL, found
    changed = control._ask("/weight_checker", {"action": "checksum"})["checksums"]
    control.load(str(tiny(WHOLE)), "first again")
    first = control._ask("/weight_checker", {"action": "checksum"})["checksums"]
    # On the CPU, vLLM packs the weights of linear layers elsewhere; what is left of them is empty.
    left = {name for name in first if first[name] != hashlib.sha256().hexdigest()}
    assert first.keys() == changed.keys() and [name for name in left if first[name] == changed[name]] == []
    names = {name.split(":")[-1] for name in left}
    assert {"visual.patch_embed.proj.weight", "language_model.lm_head.weight"} <= names
    assert any(name.startswith("audio_tower.") for name in names)


def test_two_steps(prepare: Any, address: str, tmp_path: Path) -> None:
    """Rollouts of two steps have the trainer's numbers; the server's last weights are those before the last step."""
    recipe = prepare()
    out = tmp_path / "out"
    run_grpo(recipe, out)
    logs = json.loads((out / "final" / "training.json").read_text())["log"]
    assert [log["step"] for log in logs] == [1, 2]
    for log in logs:
        assert log["rows"] >= 20 and log["reward_std"] > 0 and log["grad_norm"] > 0, log
        assert 0 < log["sampling/logp_difference"] < EQUAL and log["sampling/entropy_difference"] < EQUAL
        assert log["entropy/turn_04"] > 0 and log["credit/std"] > 0, "entropies for the credit"
        assert 0 < log["time/extra_pass_share"] < 1 and log["time/rollout_share"] > 0 and log["time/weights"] > 0
    assert ServerControl(address).version().endswith(" step 1")
    weights = out / "rollout-weights"
    assert [folder.name for folder in weights.iterdir()] == ["step-1"]
    pushed = load_file(weights / "step-1" / "model.safetensors")
    first, last = (
        load_file(folder / "model.safetensors") for folder in (Path(recipe.student.pretrained), out / "final")
    )
    for name in ("thinker.visual.patch_embed.proj.weight", "thinker.lm_head.weight"):
        assert not torch.equal(pushed[name], first[name]) and not torch.equal(pushed[name], last[name])
    runs = [open_run(next((out / "samples" / f"step-00000{step}").glob("*/"))) for step in (0, 1)]
    assert [run.card["policy"]["weights"] for run in runs] == ["step 0", "step 1"]
    assert runs[0].card["config_hash"] != runs[1].card["config_hash"]


def test_a_fault_stops_the_run_with_its_step_saved(
    prepare: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that can't be loaded, a server with other weights, other tokens of prompts; then it goes on."""
    out, recipe = tmp_path / "out", prepare()

    def fails(words: str) -> None:
        with pytest.raises(ServerFault, match=words):
            run_grpo(recipe, out)
        assert not (out / "final").exists()

    load, sample = ServedRollouts.load, ServedRollouts.sample

    def broken(self: Any, folder: Path, version: str) -> None:
        if version.endswith("step 1"):
            folder = folder.with_name("nothing")
        load(self, folder, version)

    def replaced(self: Any, *given: Any) -> Any:
        done = sample(self, *given)
        self.own._ask("/update_weight_version", {"new_version": "default"})
        return done

    def worded(prompt: Prompt, encoder: Any) -> dict[str, Any]:
        body = request(prompt, encoder)
        body["messages"][0]["content"].append({"type": "text", "text": " Hurry."})
        return body

    request = served_policy.request_of
    with monkeypatch.context() as patched:
        patched.setattr(ServedRollouts, "load", broken)
        fails(r"step 1, loading the weights: .*could not load .*checkpoint-1, and the same command continues")
    assert (out / "checkpoint-1" / "trainer_state.json").is_file()
    assert ServerControl(address).version().startswith("loading ")
    with monkeypatch.context() as patched:
        patched.setattr(ServedRollouts, "sample", replaced)
        fails(r"step 1, after the rollout, .*'default' \(it was started again\).*trajectories .*step-000001")
    assert list((out / "stopped" / "step-000001").glob("*/q.jsonl"))
    with monkeypatch.context() as patched:
        patched.setattr(served_policy, "request_of", worded)
        fails(r"step 1, after the rollout, .*6 of 6 prompts: turn 1 of sound: the server reads the prompt")
    run_grpo(recipe, out)
    logs = json.loads((out / "final" / "training.json").read_text())["log"]
    assert [log["step"] for log in logs] == [1, 2]


def test_processes_shards_and_adapters(prepare: Any, address: str, tmp_path: Path) -> None:
    """Two processes on gloo: DDP with adapters, and FSDP2. What the server gets is what they train, at each step."""
    gloo = {"ddp_backend": "gloo", "ddp_timeout": 240}
    lora = {"what": "lora", "towers": "frozen", "lora": {"r": 8, "alpha": 16}}
    more = {"ddp": {"learn": lora, "trainer": gloo | {"learning_rate": 0.05}}, "fsdp": {"trainer": gloo}}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("grpo_ranks.py"))]
    for way, changes in more.items():
        (path := tmp_path / f"{way}.yaml").write_text(prepare(**changes).model_dump_json())
        command += [way, str(path), str(tmp_path / way)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    for way in more:
        told = json.loads((tmp_path / way / "final" / "training.json").read_text())
        assert told["processes"] == 2 and [log["step"] for log in told["log"]] == [1, 2]
        for log in told["log"]:
            assert log["rows"] > 0 and 0 < log["sampling/logp_difference"] < EQUAL, (way, log)
        assert [folder.name for folder in (tmp_path / way / "rollout-weights").iterdir()] == ["step-1"]
    pushed = load_file(tmp_path / "ddp" / "rollout-weights" / "step-1" / "model.safetensors")
    first = load_file(Path(prepare().student.pretrained) / "model.safetensors")
    changed = {name for name in pushed if not torch.equal(pushed[name], first[name])}
    assert {name.split(".")[-2] for name in changed} == set(LoraSettings().targets)
