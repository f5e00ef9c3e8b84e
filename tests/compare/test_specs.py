"""What `--agent` and `--against` are read as."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_plugin.compare.specs import read_specs, with_frames
from apr_plugin.errors import AprError
from apr_plugin.runs.arguments import split_arguments

AGENT = 'policy=hf,pretrained=a/A,stop=["x,y"],max_turns=6'


def test_every_arm() -> None:
    against = [
        "passive:matched",
        "passive:frames=768,pretrained=b/B-72B",
        "blind",
        "single_frame,label=one: 1",
        "shuffled",
        "oracle:frames=8",
    ]
    against += ["lmms:qwen2_5_vl,pretrained=b/B,max_num_frames=64", "run:out/old,label=old", "rows:x/theirs.jsonl"]
    specs = read_specs([AGENT, "policy=needle,label=scripted"], [*against, "published:lvbench"])
    assert [spec.name for spec in specs] == [
        "agent 1", "scripted", "passive matched", "passive 768 B-72B", "blind", "one: 1", "shuffled", "oracle 8",
        "qwen2_5_vl", "old", "theirs.jsonl", "published lvbench",
    ]  # fmt: skip
    passive = split_arguments(specs[3].arguments)
    assert passive == {
        "policy": "hf", "pretrained": "b/B-72B", "stop": '["x,y"]', "max_turns": "6", "passive_frames": "768",
        "arm": "passive",
    }  # fmt: skip
    assert [spec.is_run for spec in specs] == [True] * 9 + [False] * 3 and specs[2].matched
    assert specs[8].model == "qwen2_5_vl" and "arm" not in split_arguments(specs[8].arguments)
    assert split_arguments(with_frames(specs[2], 40).arguments)["passive_frames"] == "40"


def test_folders_as_they_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here, old = read_specs([], ["run:.", "run:~/old/"])  # a shell leaves the ~ after a colon alone
    assert (here.name, here.source) == (tmp_path.name, ".")
    assert (old.name, old.source) == ("old", str(tmp_path / "home" / "old"))


@pytest.mark.parametrize(
    ("agents", "against", "words"),
    [
        ([AGENT], ["pasive:matched"], "did you mean 'passive'"),
        ([AGENT], ["blind:matched"], "only passive can be matched"),
        ([AGENT], ["blind:frames=3"], "frames= is for passive"),
        ([AGENT], ["passive:frames=0"], "a whole number from 1"),
        ([AGENT], ["passive:frames=3,frames=4"], "given 2 times"),
        ([AGENT], ["passive:arm=blind"], "set by the comparison"),
        ([AGENT + ",trajectories=x"], [], "set by the comparison"),
        ([AGENT], ["blind", "blind"], "two arms are called 'blind'"),
        ([AGENT], ["lmms:"], "name a model of lmms-eval"),
        ([AGENT], ["lmms:pretrained=x"], "name a model of lmms-eval"),
        ([AGENT], ["rows:"], "say which: rows:PATH"),
        ([AGENT], ["published:"], "say which: published:NAME"),
        ([], ["passive:matched"], "give --agent"),
        (["needle"], [], "is not key=value"),
    ],
)
def test_what_cannot_be_read_is_refused(agents: list[str], against: list[str], words: str) -> None:
    with pytest.raises(AprError, match=words):
        read_specs(agents, against)
