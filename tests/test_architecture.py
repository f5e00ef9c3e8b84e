"""Imports have one direction, and importing the package costs little."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "apr_plugin"
HEAVY = (
    "torch",
    "lmms_eval",
    "vlmeval",
    "transformers",
    "datasets",
    "vllm",
    "scipy",
    "statsmodels",
    "matplotlib",
    "pandas",
)


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_is_quick() -> None:
    code = "import time; t = time.perf_counter(); import apr_plugin; print(time.perf_counter() - t)"
    assert min(float(_python(code)) for _ in range(5)) < 0.3


@pytest.mark.parametrize(
    "module",
    [
        "apr_plugin",
        "apr_plugin.media",
        "apr_plugin.loop",
        "apr_plugin.scoring.answers",
        "apr_plugin.scoring.intervals",
        "apr_plugin.scoring.retrieval",
        "apr_plugin.scoring.truth",
        "apr_plugin.scoring.vue_tr",
        "apr_plugin.report.published",
        "apr_plugin.policies.scripted",
        "apr_plugin.harnesses.lmms_eval.ending",
        "apr_plugin.runs.settings",
        "apr_plugin.runs.opened",
        "apr_plugin.agent",
        "apr_plugin.harnesses.readers",
        "apr_plugin.harnesses.lmms_eval.entry",
        "apr_plugin.cli.app",
    ],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    loaded = _python(
        f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    )
    assert loaded.split() == []


_PLACE = re.compile(r"apr_plugin(?:\.\w+)+(?::[\w.]+)?")


def _imports(file: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    package = file.relative_to(PACKAGE.parent).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
                if node.level
                else str(node.module)
            )
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        # A registry names what it will import.
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _PLACE.fullmatch(node.value):
            found.add(node.value.partition(":")[0])
    return found


FLOORS = ("media", "scoring", "loop", "models", "policies", "runs", "harnesses", "compare", "report", "cli", "training")
"""The packages from the lowest up; a package imports none above it.

`tasks` is beside them; it uses scoring, media and loop, and its adapter lmms-eval.
"""
FORBIDDEN = {
    "media": ("scoring", *FLOORS[2:], "tasks"),
    "scoring": ("media", *FLOORS[2:], "tasks"),
    **{room: (*FLOORS[FLOORS.index(room) + 1 :], "tasks") for room in ("loop", "models", "policies")},
    **{room: FLOORS[FLOORS.index(room) + 1 :] for room in ("runs", "harnesses", "compare", "report")},
    "compare": ("harnesses", "report", "cli", "training"),
    "report": ("harnesses", "cli", "training"),
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_one_way(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for file in files:
        for name in _imports(file):
            for other in FORBIDDEN[room]:
                assert not f"{name}.".startswith(f"apr_plugin.{other}."), f"{file} imports {name}"
            if room in ("media", "loop", "scoring"):
                assert name.partition(".")[0] not in HEAVY, f"{file} imports {name}"


def test_no_backend_takes_from_another() -> None:
    """Code that two of them need belongs to `models`, or to `policies` itself."""
    backends = [
        folder.name for folder in sorted((PACKAGE / "policies").iterdir()) if (folder / "__init__.py").is_file()
    ]
    assert {"hf", "openai", "vllm"} <= set(backends)
    for own in backends:
        for file in (PACKAGE / "policies" / own).rglob("*.py"):
            taken = {
                other
                for other in backends
                for name in _imports(file)
                if f"{name}.".startswith(f"apr_plugin.policies.{other}.")
            }
            assert taken <= {own}, f"{file} imports {taken}"


TASKS = PACKAGE.parent / "tasks"


def test_of_the_tasks_only_the_adapter_of_lmms_eval_imports_a_harness() -> None:
    """A task folder's `utils.py`, which only lmms-eval runs, may call lmms-eval's own scorers, inside its functions."""
    files = sorted(TASKS.rglob("*.py"))
    assert {"catalogue.py", "rows.py", "lmms.py"} <= {file.name for file in files}
    for file in files:
        own = ("harnesses",) if file == TASKS / "common" / "lmms.py" else ()
        for name in _imports(file):
            for other in ("models", "policies", "runs", "harnesses", "cli", "compare", "report", "training"):
                assert other in own or not f"{name}.".startswith(f"apr_plugin.{other}."), f"{file} imports {name}"
            if file.name != "utils.py":
                assert name.partition(".")[0] not in ("lmms_eval", "vlmeval"), f"{file} imports {name}"
    text = "".join((TASKS / "common" / name).read_text("utf-8") for name in ("catalogue.py", "rows.py"))
    assert "SystemExit" not in text and "end_with" not in text and "sys.exit" not in text


def test_the_catalogue_loads_no_harness() -> None:
    """The rows, the questions and the truths of a task do not either."""
    code = (
        "import sys; from apr_plugin.tasks.common.catalogue import sources; assert len(sources()) > 20; "
        "print(*sorted(sys.modules))"
    )
    loaded = _python(code).split()
    assert not [name for name in loaded if name.startswith("apr_plugin.harnesses") or name.partition(".")[0] in HEAVY]
