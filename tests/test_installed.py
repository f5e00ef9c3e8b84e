"""Why an import fails, in one line: with real packages that break each other, and with small ones written here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apr_plugin import installed
from apr_plugin.installed import BrokenInstall, explain, importing, moved_packages, try_import

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def write_package(folder: Path, name: str, version: str, source: str) -> None:
    """A package that is installed in a folder of the path."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    record = folder / f"{name}-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (record / "top_level.txt").write_text(f"{name}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on the path, and the test's own constraints."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "constraints.txt").write_text(
        "# tested\nlower==1.0\nupper==2.0 ; python_version >= '3.11'\nupper==1.0 ; python_version < '3.11'\n"
    )
    monkeypatch.setattr(installed, "constraints_file", lambda: tmp_path / "constraints.txt")
    return tmp_path


def why(module: str) -> str:
    try:
        __import__(module)
    except Exception as error:  # noqa: BLE001 - whatever an import raises
        return explain(error, "lmms")
    finally:
        for name in ("lower", "upper"):
            sys.modules.pop(name, None)
    raise AssertionError(f"{module} can be imported")


@pytest.mark.parametrize(
    ("asks", "reason"),
    [
        ("import lower._api", "ModuleNotFoundError: No module named 'lower._api'"),
        ("from lower import name", "ImportError: cannot import name 'name' from 'lower'"),
        ("import lower; lower.name", "AttributeError: module 'lower' has no attribute 'name'"),
        ("import lower; lower.take(new=1)", "TypeError: take() got an unexpected keyword argument 'new'"),
        (
            "try:\n    import lower._api\nexcept ImportError as error:\n    raise RuntimeError('cannot load') "
            "from error",
            "ModuleNotFoundError",
        ),
    ],
)
def test_the_package_that_moved_is_named_with_the_command_that_mends_it(site: Path, asks: str, reason: str) -> None:
    write_package(site, "lower", "4.3.1", "def take(old=0): pass\n")
    write_package(site, "upper", "2.0", asks)
    told = why("upper")
    assert "\n" not in told and reason in told
    assert told.endswith("Fix it with: pip install 'lower==1.0'") or (
        "TypeError" in reason and "lower 4.3.1 (tested: 1.0)" in told
    ), told
    assert "upper 2.0" in told and "lower 4.3.1" in told


def test_a_package_that_is_not_there_is_named_with_who_needs_it(site: Path) -> None:
    write_package(site, "upper", "2.0", "import lower\n")
    assert why("upper") == "upper 2.0 needs lower, which is not installed. Fix it with: pip install 'lower==1.0'"
    (site / "upper" / "__init__.py").write_text("import no_such_package_at_all.part\n")
    assert (
        why("upper") == "upper 2.0 needs no_such_package_at_all, which is not installed. Fix it with: pip install "
        "no-such-package-at-all"
    )


def test_where_nothing_moved_everything_is_installed_again(site: Path) -> None:
    write_package(site, "upper", "2.0", "raise OSError('libnothing.so: cannot open shared object file')\n")
    told = why("upper")
    assert "upper 2.0: OSError: libnothing.so" in told and told.endswith(
        f"pip install -c {site / 'constraints.txt'} 'apr-plugin[lmms]'"
    )


def test_the_one_asking_may_be_the_one_that_moved(site: Path) -> None:
    write_package(site, "lower", "1.0", "")
    write_package(site, "upper", "3.0", "from lower import name\n")
    assert "lower 1.0 does not work with upper 3.0" in why("upper") or "upper 3.0" in why("upper")
    assert why("upper").endswith("pip install 'upper==2.0'")


def test_moved_packages(site: Path) -> None:
    write_package(site, "lower", "1.0+cpu", "")
    write_package(site, "upper", "3.0", "")
    # A build of the same release has not moved.
    assert [(m.name, m.here, m.tested) for m in moved_packages()] == [("upper", "3.0", "2.0")]


def test_importing_lets_our_own_errors_and_interrupts_through() -> None:
    with (
        pytest.raises(BrokenInstall, match=r"lmms-eval can't be imported: .*no_such_module, which is not installed"),
        importing("lmms-eval", "lmms"),
    ):
        import no_such_module  # noqa: F401
    with pytest.raises(KeyboardInterrupt), importing("lmms-eval", "lmms"):
        raise KeyboardInterrupt


def test_constraints_are_those_of_the_checkout() -> None:
    assert installed.constraints_file() == CONSTRAINTS
    assert installed.tested_releases()["filelock"].startswith("3.")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import time; time.sleep(60)", "did not end within 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by signal 9"),
        ("import os; print('last words', flush=True); os._exit(7)", "ended with status 7"),
        ("raise SystemExit(0)", "ended with status 0"),
        ("print('x' * 100); import nowhere_at_all", "needs nowhere_at_all"),
    ],
)
def test_what_hangs_or_dies_is_told(code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_module.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tried = try_import(["odd_module"], "lmms", limit_s=1.0 if "sleep" in code else 60.0)
    assert not tried.works and words in tried.told and "\n" not in tried.told, tried.told


def test_what_works_hands_back_its_line() -> None:
    assert try_import(["json", "apr_plugin.cli.doctor:read_a_clip()"], "all") == installed.Tried(
        True, "a clip was written and read"
    )


@pytest.mark.xdist_group("package")
def test_filelock_4_beside_lmms_eval(tmp_path: Path) -> None:
    """A failure with real packages, seen in November 2026: lmms-eval 0.7.3 imports `filelock._api` for evaluating.

    The report is of two extras: to try all of them takes four times as long.
    """
    pytest.importorskip("lmms_eval")
    uv = Path(sys.executable).with_name("uv")
    newer = tmp_path / "newer"
    got = subprocess.run(
        [uv, "pip", "install", "--quiet", "--no-deps", "--target", newer, "filelock==4.3.1"],
        capture_output=True,
        check=False,
    )
    if got.returncode != 0:
        pytest.skip("filelock 4 can't be had here")
    environment = os.environ | {"PYTHONPATH": str(newer), "COLUMNS": "160"}
    two = (
        "from apr_plugin.cli import doctor; doctor.EXTRAS = {name: doctor.EXTRAS[name] for name in ('lmms', 'openai')}"
    )
    doctor = subprocess.run(
        [sys.executable, "-c", f"{two}; raise SystemExit(doctor.run_doctor())"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert doctor.returncode == 1, doctor.stdout + doctor.stderr
    # As `apr eval` told it.
    (said,) = (
        line for line in doctor.stdout.splitlines() if line.startswith("lmms does not work: lmms-eval can't run: ")
    )
    assert (
        "lmms-eval 0.7.3 does not work with filelock 4.3.1 (ModuleNotFoundError: No module named 'filelock._api'). "
        in said
    )
    assert said.endswith(f"Fix it with: pip install 'filelock=={installed.tested_releases()['filelock']}'")
    assert "filelock 4.3.1 (tested: 3." in doctor.stdout
    rows = {
        row[1]: row[2]
        for line in doctor.stdout.splitlines()
        if len(row := [cell.strip() for cell in line.split("\u2502")]) > 3
    }
    assert rows["lmms"] == "0.7.3, BROKEN" and rows["openai"].endswith(", works")
    assert "apr eval" not in doctor.stdout.splitlines()[-2] and "openai" in doctor.stdout.splitlines()[-1]
