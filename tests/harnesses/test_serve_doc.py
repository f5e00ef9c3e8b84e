"""The examples of docs/serve.md, as they are printed, against `apr serve` in a process of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

DOC = Path(__file__).parents[2] / "docs" / "serve.md"


def test_the_examples_of_the_doc_run(
    served_needles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(served_needles, "needle")
    text = DOC.read_text("utf-8")
    (command,) = re.findall(r"^    (apr serve --model_args policy=needle .*) --port 8000$", text, re.MULTILINE)
    server = subprocess.Popen(
        [sys.executable, "-m", "apr_plugin", *command.split()[1:], "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        where = server.stdout.readline().split("/v1")[0]
        session: dict[str, Any] = {"__name__": "__main__"}
        blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
        assert len(blocks) == 3
        for block in blocks:
            code = block[1].replace("http://127.0.0.1:8000", where)
            line = text[: block.start(1)].count("\n")
            exec(compile("\n" * line + code, str(DOC), "exec"), session)  # a failure shows the line of the document
        printed = capsys.readouterr().out
        assert printed.count("→ get_frames") == 2 and "shown: " in printed
        (shell,) = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if shutil.which("curl") and shutil.which("base64"):
            script = shell.replace("http://127.0.0.1:8000", where)
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
            reply = json.loads(done.stdout)
            assert reply["object"] == "chat.completion" and reply["apr"]["frames"] > 0, reply
    finally:
        server.terminate()
        _, told = server.communicate(timeout=30)
    assert server.returncode == 0 and "Traceback" not in told, told
