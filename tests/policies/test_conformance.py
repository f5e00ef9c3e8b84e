"""The conformance suite for the policies that need no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from apr_testing import answer, look
from conformance import Make, PolicyConformance

from apr_plugin.policies import make_policy


class TestGuess(PolicyConformance):
    obeys_limit = False

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls) -> Iterator[Make]:
        yield lambda: make_policy("guess")


class TestScripted(PolicyConformance):
    obeys_limit = False

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
        script: Path = tmp_path_factory.mktemp("script") / "turns.jsonl"
        script.write_text("\n".join([look(0, 2), answer("B")]))
        yield lambda: make_policy("scripted", script=str(script))


class TestNeedle(PolicyConformance):
    obeys_limit = False

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls) -> Iterator[Make]:
        yield lambda: make_policy("needle")
