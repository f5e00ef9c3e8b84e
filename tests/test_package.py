"""The wheel: built, installed into a fresh environment without any extra, and used there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("package")  # one environment is used by all


def _run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )


def _uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with nothing but the wheel and what it requires; the folder with its programs."""
    root = tmp_path_factory.mktemp("package")
    source = root / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt", "constraints-vllm.txt"):
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, source)
    for name in ("apr_plugin", "results", "tasks", "training"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    uv = _uv()
    venv = root / "venv"
    built = _run(
        *([uv, "build", "--wheel"] if uv else [sys.executable, "-m", "build", "--wheel"]),
        "--out-dir" if uv else "--outdir",
        root,
        source,
        cwd=root,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = root.glob("*.whl")
    made = _run(*([uv, "venv", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]), venv, cwd=root)
    assert made.returncode == 0, made.stderr
    install: list[str | Path] = (
        [uv, "pip", "install", "--python", venv / "bin" / "python"]
        if uv
        else [venv / "bin" / "python", "-m", "pip", "install"]
    )
    installed = _run(*install, "--constraint", REPOSITORY / "constraints.txt", wheel, cwd=root)
    assert installed.returncode == 0, installed.stderr
    return venv / "bin"


def test_every_package_is_in_the_wheel(fresh: Path) -> None:
    (wheel,) = fresh.parents[1].glob("*.whl")
    packed = {Path(name).parent for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/__init__.py")}
    roots = {"apr_plugin": "apr_plugin", **{name: f"apr_plugin/{name}" for name in ("results", "tasks", "training")}}
    there = {
        Path(inside, file.parent.relative_to(REPOSITORY / root))
        for root, inside in roots.items()
        for file in (REPOSITORY / root).rglob("__init__.py")
    }
    assert packed == there


def test_every_data_file_is_in_the_wheel(fresh: Path) -> None:
    (wheel,) = fresh.parents[1].glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    roots = {"apr_plugin": "apr_plugin", "results/published": "apr_plugin/results/published"}
    roots |= {name: f"apr_plugin/{name}" for name in ("tasks", "training")}
    for root, inside in roots.items():
        for file in (REPOSITORY / root).rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                assert f"{inside}/{file.relative_to(REPOSITORY / root)}" in packed, file


def test_data_files_travel(fresh: Path, tmp_path: Path) -> None:
    code = """
from importlib.resources import files
import apr_plugin.training
for package, name in [("apr_plugin", "py.typed"), ("apr_plugin.loop", "instructions.jinja"),
    ("apr_plugin.tasks.needle", "_needle.yaml"),
                      ("apr_plugin.tasks.needle", "apr_needle.yaml"), ("apr_plugin.tasks.needle", "README.md"),
                      ("apr_plugin.tasks.common", "stub.jsonl"), ("apr_plugin.results", "published/lvbench.json")]:
    file = files(package) / name
    assert file.is_file(), file
    print(file)
"""
    done = _run(fresh / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(str(fresh.parent) in line for line in done.stdout.splitlines()), (
        "found in the checkout, not in the wheel"
    )


def test_commands_work_without_an_extra(fresh: Path, tmp_path: Path) -> None:
    version = _run(fresh / "apr", "--version", cwd=tmp_path)
    assert version.returncode == 0 and version.stdout.startswith("apr-plugin ")
    doctor = _run(fresh / "apr", "doctor", cwd=tmp_path)
    assert doctor.returncode == 0 and "Traceback" not in doctor.stderr, doctor.stdout
    assert "Every package has the tested release" in doctor.stdout.replace("\n", " ")
    assert str(fresh.parent / "share" / "apr-plugin" / "constraints.txt") in doctor.stdout.replace("\n", "")
    assert "FFmpeg" in doctor.stdout and "pip install 'apr-plugin[lmms]'" in doctor.stdout.replace("\n", " ")
    tasks = _run(fresh / "apr", "tasks", "--path", cwd=tmp_path)
    assert tasks.returncode == 0 and (Path(tasks.stdout.strip()) / "needle" / "apr_needle.yaml").is_file()
    published = _run(fresh / "apr", "published", "lvbench", cwd=tmp_path)
    assert published.returncode == 0 and "OmniAgent" in published.stdout
    for missing in (["eval", "--tasks", "apr_needle"], ["demo"]):
        done = _run(fresh / "apr", *missing, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == "error: lmms_eval is not installed; add it with: pip install 'apr-plugin[lmms]'\n"


def test_policies_of_tasks_are_found(fresh: Path, tmp_path: Path) -> None:
    done = _run(
        fresh / "python",
        "-c",
        "from apr_plugin.policies import make_policy; print(make_policy('needle').name)",
        cwd=tmp_path,
    )
    assert done.stdout == "needle\n", done.stderr


def test_importing_loads_no_extra(fresh: Path, tmp_path: Path) -> None:
    done = _run(
        fresh / "python",
        "-c",
        "import apr_plugin.cli.app, apr_plugin.loop, apr_plugin.media, apr_plugin.runs.settings",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
