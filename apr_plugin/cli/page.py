"""`apr app`: a page to try the agent on."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from rich.text import Text

from apr_plugin import interrupt
from apr_plugin.errors import AprError, require
from apr_plugin.harnesses.app.about import about_policy, default_model_args
from apr_plugin.harnesses.app.records import Reporting
from apr_plugin.harnesses.app.server import AppServer, Options
from apr_plugin.models import bundled
from apr_plugin.runs.arguments import parse_model_args
from apr_plugin.runs.settings import read_settings
from apr_plugin.terminal import console, warn


def run_app(model_args: str | None, examples: Path | None, root: Path | None, options: Options) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        AprError: Gradio is not installed, an argument is wrong, a folder is missing, or the port is taken.
    """
    for module in ("gradio", "fastapi", "uvicorn"):
        require(module, "demo")
    from apr_plugin.harnesses.app.examples import found, made

    if root is not None and examples is None:
        examples = root
    chosen = default_model_args() if model_args is None else model_args
    settings = read_settings(parse_model_args(chosen))
    try:
        # Of the page's own questions, those that the agent of this package was taught to answer.
        kinds = bundled.needle_kinds() if examples is None and chosen == bundled.MODEL_ARGS else None
        offered = found(made() if examples is None else examples, root, kinds)
        with AppServer(settings, reporting(), offered, options) as server:
            if not server.loopback:
                warn(
                    f"{options.host}: everybody who reaches this address can upload videos and use the policy; there "
                    "is no login"
                )
            with console(stderr=True).status("starting the page …"):
                server.start()
            out = console()
            out.print(Text(f"Who answers: {about_policy(settings.policy)}"), soft_wrap=True)
            out.print(Text(f"{server.url}  (Ctrl-C stops)"), soft_wrap=True)
            sys.stdout.flush()
            signal.signal(signal.SIGTERM, _ended)
            try:
                server.wait()
            except KeyboardInterrupt:
                raise SystemExit(interrupt.STATUS) from None
    finally:
        settings.policy.close()


def _ended(number: int, _: object) -> None:
    """End in the usual way, so that no upload is left."""
    raise SystemExit(128 + number)


def reporting() -> Reporting:
    """Small pictures and the report page, as `apr view` makes them."""
    from apr_plugin.report.thumbnails import thumbnail, waveform

    return Reporting(thumbnail, waveform, write_report)


def write_report(run: Path, out: Path) -> Path:
    """The report page of one investigation.

    Args:
        run: The folder of its trajectory and card.
        out: The file to write.

    Raises:
        AprError: it can't be written.
    """
    from apr_plugin.compare.joined import arm_of_run, join
    from apr_plugin.report.page import write_page
    from apr_plugin.report.view import plain_summary
    from apr_plugin.runs.opened import open_run

    opened = open_run(run)
    if not len(opened):
        raise AprError("the investigation was not kept")
    arm = arm_of_run("agent", opened)
    arm.about = {"policy": opened.card.get("policy", {}).get("name", "")}  # no folder of this machine
    comparison = join([arm])
    return write_page(comparison, plain_summary(comparison) | {"title": "Investigation"}, out, thumbnails=True)
