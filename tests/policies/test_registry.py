"""Policies by name: ours, those of tasks, and those of other packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apr_plugin.errors import AprError
from apr_plugin.policies import GROUP, POLICIES, known_policies, make_policy, policy_arguments, policy_maker

ECHO = """
from apr_plugin.loop.policy import Generation, PolicyDefaults

class Echo(PolicyDefaults):
    name = "echo"

    @classmethod
    def spoken(cls, word, times=1):
        made = cls()
        made.said = word * int(times)
        return made

    async def generate(self, prompt, sampling):
        return Generation(self.said)

    def describe(self):
        return {"said": self.said}
"""


def test_every_policy_calls_itself_as_it_is_called() -> None:
    assert {"needle", *POLICIES} <= set(known_policies()) and "needle" not in POLICIES
    for name in (*POLICIES, "needle"):
        maker = policy_maker(name)
        assert getattr(maker, "__self__", maker).name == name
    assert make_policy("needle").name == "needle"
    with pytest.raises(
        AprError,
        match=r"there is no policy 'neddle' \(did you mean 'needle'\?\); the policies are guess, hf, needle, ",
    ):
        policy_arguments("neddle")


def test_looking_up_a_name_loads_no_task() -> None:
    code = (
        "import sys; from apr_plugin.policies import known_policies, make_policy; known_policies(); "
        "make_policy('guess')\n"
    )
    code += (
        "print([name for name in sys.modules if name.startswith(('apr_plugin.tasks', 'torch', 'lmms_eval', "
        "'transformers'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def _installed(folder: Path, entries: str) -> dict[str, str]:
    """An environment in which another package is installed."""
    (folder / "echoing.py").write_text(ECHO)
    (folder / "echoing-1.0.dist-info").mkdir()
    (folder / "echoing-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: echoing\nVersion: 1.0\n")
    (folder / "echoing-1.0.dist-info" / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
    return os.environ | {"PYTHONPATH": str(folder)}


def test_a_policy_of_another_package(tmp_path: Path) -> None:
    environment = _installed(
        tmp_path, "echo = echoing:Echo.spoken\nguess = echoing:Echo.spoken\nbroken = echoing.missing:Echo"
    )
    code = """if True:
        import json
        from apr_plugin.errors import AprError
        from apr_plugin.policies import known_policies, make_policy, policy_arguments
        from apr_plugin.runs.settings import check_arguments, read_settings
        settings = read_settings({"policy": "echo", "word": "A", "times": 2})
        errors = []
        for arguments in ({"policy": "echo"}, {"policy": "echo", "wrod": "A", "word": "B"}, {"policy": "broken"}):
            try:
                check_arguments(arguments)
            except AprError as error:
                errors.append(str(error))
        guess = type(make_policy("guess")).__name__
        print(json.dumps([settings.policy.describe(), policy_arguments("echo"), guess, errors]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    described, arguments, guess, errors = json.loads(done.stdout)
    assert described == {"said": "AA"} and arguments == ["word", "times"] and guess == "GuessPolicy", (
        "our names can't be taken"
    )
    assert (
        errors[0] == "policy echo: it needs word=…"
        and "did you mean 'word'" in errors[1]
        and "policy broken can't be imported" in errors[2]
    )
