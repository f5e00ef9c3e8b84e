"""lmms-eval's task files are parsed by libyaml to the same values."""

from __future__ import annotations

from pathlib import Path

import pytest

host = pytest.importorskip("lmms_eval.utils")

from apr_plugin.harnesses.lmms_eval.task_files import parsed_by_libyaml  # noqa: E402


def test_the_same_values_are_read(tmp_path: Path) -> None:
    """Of the host's own files without their functions, and of ours with them."""
    own = Path(__file__).parents[2] / "tasks" / "needle" / "apr_needle_glyph.yaml"
    theirs = sorted(Path(host.__file__).parent.glob("tasks/m*/*.yaml"))[:200]
    plain = [str(host.load_yaml_config(str(path), mode="simple")) for path in theirs]
    ours = host.load_yaml_config(str(own))
    before = host.yaml
    with parsed_by_libyaml():
        assert host.yaml is not before
        assert [str(host.load_yaml_config(str(path), mode="simple")) for path in theirs] == plain
        again = host.load_yaml_config(str(own))
        broken = tmp_path / "broken.yaml"
        broken.write_text("a: [1\n")
        with pytest.raises(host.yaml.YAMLError, match="expected"):
            host.load_yaml_config(str(broken))
    assert host.yaml is before and len(plain) > 50
    told = [{key: getattr(value, "__name__", value) for key, value in config.items()} for config in (ours, again)]
    assert told[0] == told[1] and any(callable(value) for value in again.values())
