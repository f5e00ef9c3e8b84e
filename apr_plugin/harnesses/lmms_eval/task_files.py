"""lmms-eval's task files, parsed with libyaml: at each start it parses some 3,000 of them in pure Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def parsed_by_libyaml() -> Iterator[None]:
    """Within it, `lmms_eval.utils.load_yaml_config` uses libyaml; what it returns is the same.

    It does nothing where PyYAML was built without libyaml, or where a release of lmms-eval reads its files otherwise.
    """
    import lmms_eval.utils as host
    import yaml  # type: ignore[import-untyped]

    if not yaml.__with_libyaml__ or getattr(host, "yaml", None) is not yaml:
        yield
        return

    class Loader(yaml.CFullLoader):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.name = getattr(stream, "name", "<unicode string>")  # `!function` finds its file beside this one

    class Yaml:
        """What lmms-eval calls of PyYAML, and everything else as it is."""

        def add_constructor(self, tag: str, constructor: Callable[..., Any]) -> None:
            yaml.add_constructor(tag, constructor)
            yaml.add_constructor(tag, constructor, Loader=Loader)

        def full_load(self, stream: Any) -> Any:
            return yaml.load(stream, Loader=Loader)

        def __getattr__(self, name: str) -> Any:
            return getattr(yaml, name)

    host.yaml = Yaml()
    try:
        yield
    finally:
        host.yaml = yaml
