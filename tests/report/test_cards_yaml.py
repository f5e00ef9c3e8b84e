"""`card.yaml` and `card.md`: what is in them, what is never in them, and that hostile text stays text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stored_runs import HOSTILE, stored

pytest.importorskip("yaml")
import yaml
from making import answered, look, trajectory
from markdown_it import MarkdownIt

from apr_plugin.errors import AprError
from apr_plugin.loop.trajectory import Film, StopReason
from apr_plugin.report.card_files import LISTED, card_data, content_digest, to_yaml, write_cards
from apr_plugin.report.card_read import read_card
from apr_plugin.report.cleaning import LEFT_OUT, clean, code, without_secrets
from apr_plugin.runs.arguments import without_arguments
from apr_plugin.runs.opened import open_run

FILM = {"videos": (Film(duration_s=100.0, digest="d" * 16),)}


def _made(n: int = 3) -> list:
    return [trajectory(number, [look(0, 50), answered("A")], "A") for number in range(n)]


def test_a_card_says_what_makes_the_run_repeatable(tmp_path: Path) -> None:
    made = [*_made(), trajectory(3, [], None, stop_reason=StopReason.MEDIA_UNREADABLE, stop_detail="no such file")]
    run = stored(tmp_path / "run", made, scores={"score": 0.25}, of=9)
    path, page = write_cards(run, tmp_path / "card", command="apr compare …")
    data = yaml.safe_load(path.read_text())
    assert data["config_hash"] == run.config_hash and data["arm"] == "agent" and data["seeds"]["run"] == 0
    assert data["configuration"]["budget"]["max_turns"] > 0 and "instructions" in data["prompts"]
    assert data["versions"]["av"] == data["decoder"]["av"] == data["environment"]["packages"]["av"]
    assert data["environment"]["hardware"]["cores"] > 0 and data["environment"]["hardware"]["memory_gib"] > 0
    counts = {name: data["questions"][name] for name in ("asked", "answered", "failed")}
    assert counts == {"asked": 4, "answered": 3, "failed": 1}
    (missing,) = data["missing"]["questions"]
    assert missing["doc_id"] == "3" and missing["why"] == "media_unreadable: no such file"
    assert data["missing"]["reasons"] == {"media_unreadable": 1}
    task = data["tasks"]["apr_made"]
    assert (task["n"], task["of"], task["version"], task["scores"]) == (4, 9, 1.0, {"score,none": 0.25})
    assert data["time"]["questions_s"] == pytest.approx(3 * 1.1) and data["time"]["evaluations"][0]["seconds"] == 12.5
    assert data["commands"] == [
        {"model_args": "policy=guess,seed=0", "limit": None, "offset": 0, "repeats": 1, "seed": "0,1234,1234,1234",
         "own_tasks": False, "tasks": ["apr_made"]}
    ]  # fmt: skip
    assert data["answers"]["apr_made"] == {"test/0/0": "A", "test/1/0": "A", "test/2/0": "A", "test/3/0": None}
    assert data["content_digest"] == content_digest(data) and not read_card(path).edited
    words = page.read_text()
    assert "3 of 4 answered, 1 failed" in words and "4 of 9" in words and "no such file" in words


def test_data_digests_follow_the_data_and_not_the_order(tmp_path: Path) -> None:
    made = [one.model_copy(update=FILM) for one in _made()]
    cards = [
        yaml.safe_load(write_cards(stored(tmp_path / str(n), some), tmp_path / f"card{n}")[0].read_text())["data"]
        for n, some in enumerate(
            (made, made[::-1], made[:2], [one.model_copy(update={"question_hash": "x"}) for one in made])
        )
    ]
    assert cards[0] == cards[1] and cards[0]["videos"] == 1 and cards[0]["videos_without_digest"] == 0
    assert cards[0]["questions_sha256"] != cards[2]["questions_sha256"]
    assert cards[0]["questions_sha256"] != cards[3]["questions_sha256"]
    assert cards[0]["videos_sha256"] == cards[2]["videos_sha256"]


def test_no_secret_reaches_a_card(tmp_path: Path) -> None:
    secrets = ("hunter2secret", "sk-abcdefghijklmnop1234", "hf_abcdefghijklmnopqrst", "tok123456")
    args = (
        f"policy=openai,base_url=https://me:{secrets[0]}@host/v1?api_key={secrets[3]},api_key={secrets[1]},"
        f'max_new_tokens=77,api_key_env=MY_KEY,extra_body={{"auth_token": "{secrets[2]}"}}'
    )
    run = stored(tmp_path / "run", _made(), model_args=args)
    for path in write_cards(run, tmp_path / "card", command=f"apr report --token={secrets[3]}"):
        text = path.read_text()
        assert not [secret for secret in secrets if secret in text]
        assert "max_new_tokens=77" in text and "api_key_env=MY_KEY" in text and "https://host/v1" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1,b=max_tokens", "a=1,b=max_tokens"),
        ("token=abc,tokens=3", f"token={LEFT_OUT},tokens=3"),
        ("http://u:p@h:1/x", "http://h:1/x"),
        ("Authorization: Bearer abcdefgh12", f"Authorization: Bearer {LEFT_OUT}"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_what_is_a_secret(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


def test_secrets_by_name_and_values_that_json_lacks() -> None:
    found = clean({"api_key": "x", "nested": [{"hf_token": "y"}], "n": float("nan"), "text": "a\x00\ud800"})
    assert found == {"api_key": LEFT_OUT, "nested": [{"hf_token": LEFT_OUT}], "n": None, "text": "a�?"}


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    made = [
        trajectory(0, [answered(HOSTILE)], HOSTILE, text=HOSTILE),
        trajectory(1, [], None, stop_reason=StopReason.ERROR, stop_detail=HOSTILE),
        trajectory(2, [answered("x" * 5000)], "x" * 5000),
    ]
    path, page = write_cards(stored(tmp_path / "run", made), tmp_path / "card")
    raw = path.read_bytes()
    assert b"\x1b" not in raw and not read_card(path).edited
    answers = yaml.safe_load(raw)["answers"]["apr_made"]
    assert "!!python" in answers["test/0/0"] and answers["test/2/0"].startswith("sha256:")
    html = MarkdownIt("commonmark").enable("table").render(page.read_text())
    assert "<table>" in html and "&lt;/script&gt;" in html
    assert "\x1b" not in html and "</script" not in html and "<img" not in html


@pytest.mark.parametrize("text", ["a", "a`b", "``a``", "`", "a|b\nc", "</script>", ""])
def test_code_in_markdown_is_never_ended_by_its_text(text: str) -> None:
    made = code(text)
    fence = made[: len(made) - len(made.lstrip("`"))]
    assert "\n" not in made and (
        not text or (made.endswith(fence) and fence not in made[len(fence) : -len(fence)].strip("`"))
    )


def test_yaml_goes_back_to_the_same_values() -> None:
    values = {
        "a": [1e-7, 1e22, 0.1, -0.0, 3, True, None],
        "b": "yes\n- no: 1 \t\x85 \u2028 é",
        "2026-01-01": "2026-01-01",
        "": {},
    }
    assert yaml.safe_load(to_yaml(values)) == values
    shared = [1]
    assert "&" not in to_yaml({"a": shared, "b": shared})


def test_arguments_of_a_list_are_left_out_whole() -> None:
    text = "policy=openai,base_url=[http://a/v1,http://b/v1],trajectories=[x,y],seed=0"
    assert without_arguments(text, "trajectories", "seed") == "policy=openai,base_url=[http://a/v1,http://b/v1]"


def test_many_missing_questions_are_counted(tmp_path: Path) -> None:
    made = [trajectory(n, [], None, stop_reason=StopReason.POLICY_UNAVAILABLE) for n in range(LISTED + 5)]
    data = yaml.safe_load(write_cards(stored(tmp_path / "run", made), tmp_path / "card")[0].read_text())
    assert len(data["missing"]["questions"]) == LISTED and data["missing"]["more"] == 5


def test_a_run_without_results_has_a_card_without_commands(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", _made())
    for file in (tmp_path / "run").glob("*.json*"):
        file.unlink()
    data = yaml.safe_load(write_cards(open_run(run.folder), tmp_path / "card")[0].read_text())
    assert data["commands"] == [] and data["harness"]["name"] is None and data["problems"]


def test_an_empty_run_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", _made())
    file = next(run.folder.glob("*.jsonl"))
    (tmp_path / "taken").write_text("")
    with pytest.raises(AprError, match="cannot write the card"):
        write_cards(run, tmp_path / "taken" / "card")
    file.write_text("")
    for samples in (tmp_path / "run").glob("*samples*"):
        samples.write_text("")
    with pytest.raises(AprError, match="no question yet"):
        write_cards(open_run(run.folder), tmp_path / "card")


def test_results_that_are_damaged_are_said(tmp_path: Path) -> None:
    stored(tmp_path / "run", _made())
    next((tmp_path / "run").glob("*_results.json")).write_text(json.dumps({"config": [], "results": 3})[:-4])
    data = yaml.safe_load(write_cards(open_run(tmp_path / "run"), tmp_path / "card")[0].read_text())
    assert data["commands"] == [] and any("cannot read these results" in problem for problem in data["problems"])


def test_a_group_is_asked_again_as_a_group(tmp_path: Path) -> None:
    """lmms-eval gives a group scores of its own, so a card that named its tasks alone could never be met."""
    run = stored(tmp_path / "run", _made())
    (path,) = run.evaluations[0].folder.glob("*_results.json")
    data = json.loads(path.read_text())
    for asked, parts, tasks in (
        ("apr_all", {"apr_all": ["apr_made"]}, ["apr_all"]),
        ("apr_all,apr_made", {"apr_all": ["apr_part"], "apr_part": ["apr_made"]}, ["apr_all"]),
        ("apr_all", {"apr_all": ["apr_made", "apr_elsewhere"]}, ["apr_made"]),
        ("apr_all", {"apr_all": ["apr_all"]}, ["apr_made"]),
        ("apr_*", {}, ["apr_made"]),
    ):
        data["group_subtasks"] = parts
        data["config"]["resolved_cli_args"]["tasks"] = asked
        path.write_text(json.dumps(data))
        assert [command["tasks"] for command in card_data(open_run(tmp_path / "run"))["commands"]] == [tasks]
