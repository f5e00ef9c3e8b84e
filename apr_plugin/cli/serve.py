"""`apr serve`: an OpenAI-compatible endpoint that answers with episodes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from apr_plugin import interrupt
from apr_plugin.errors import AprError, WrongUsage, require
from apr_plugin.files import read_regular
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.settings import check_arguments, read_settings
from apr_plugin.terminal import console

_OPTIONS = {"media_root": "--root", "concurrency": "--max-concurrent", "trajectories": "--out"}
"""model_args that are options of this command."""


def run_serve(
    model_args: str,
    *,
    roots: Sequence[Path],
    host: str,
    port: int,
    out: Path,
    name: str,
    max_concurrent: int,
    queue: int,
    timeout_s: float,
    max_upload_mib: float,
    drain_s: float,
    api_key_env: str | None,
    api_key_file: Path | None,
    unanswered: str,
    quiet: bool,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        AprError: a bad argument, a port that is taken, or a folder that can't be written.
    """
    given = parse_model_args(model_args)
    for argument, option in _OPTIONS.items():
        if argument in given:
            raise WrongUsage(f"model_arg {argument} is the option {option} of this command")
    if unanswered not in ("status", "null"):
        raise WrongUsage(f"--unanswered must be status or null, not {unanswered!r}")
    key = _key(api_key_env, api_key_file)
    for module in ("fastapi", "uvicorn"):
        require(module, "serve")
    from apr_plugin.harnesses.serve.guard import is_loopback
    from apr_plugin.harnesses.serve.limits import MIB, ServeLimits
    from apr_plugin.harnesses.serve.service import Service
    from apr_plugin.harnesses.serve.serving import listen, serve

    if key is None and not is_loopback(host):
        raise WrongUsage(
            f"--host {host} can be reached from other machines, so requests need a key: --api-key-env NAME names the "
            "environment variable that holds it, --api-key-file FILE a file"
        )
    arguments: dict[str, Any] = given | {"concurrency": max_concurrent, "trajectories": str(out)}
    check_arguments(arguments)
    limits = ServeLimits(max_concurrent, queue, timeout_s, int(max_upload_mib * MIB), drain_s)
    with listen(host, port) as sock:
        with console(stderr=True).status("loading the policy …"):
            settings = read_settings(arguments)
        try:
            service = Service(settings, limits, roots=roots, model=name, unanswered=unanswered)  # type: ignore[arg-type]
        except BaseException:
            settings.policy.close()
            raise
        if not quiet:
            _log_requests()
        with service:
            shown = f"[{host}]" if ":" in host else host
            where = f"http://{shown}:{sock.getsockname()[1]}/v1"

            def started() -> None:
                told = f"{where}  model {name} ({settings.policy.name}); trajectories in {service.store.folder}"
                console(soft_wrap=True).print(Text(f"{told}  (Ctrl-C stops)"))
                sys.stdout.flush()

            interrupt.run(serve(service, sock, host=host, key=key, started=started))


def _key(variable: str | None, file: Path | None) -> str | None:
    """The API key, from an environment variable or a file; on the command line every user of the machine would see it.

    Raises:
        WrongUsage: it is empty, missing, or given twice.
    """
    if variable is None and file is None:
        return None
    if variable is not None and file is not None:
        raise WrongUsage("give --api-key-env or --api-key-file, not both")
    if variable is not None:
        key, where = os.environ.get(variable, ""), f"--api-key-env: the environment variable {variable}"
    else:
        assert file is not None
        where = f"--api-key-file {file}:"
        try:
            key = read_regular(file.expanduser()).decode()
        except (OSError, ValueError) as error:
            raise AprError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not (key := key.strip()) or not key.isprintable() or not key.isascii() or " " in key:
        raise WrongUsage(f"{where} holds no key; a key is one word of ASCII characters")
    return key


def _log_requests() -> None:
    """Print a line for each request on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("apr_plugin.harnesses.serve")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
