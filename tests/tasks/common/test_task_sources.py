"""`Source`: where rows come from, how videos are found, and the messages if something is wrong."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_testing import write

from apr_plugin.config import data_dir
from apr_plugin.errors import AprError
from apr_plugin.tasks.common import OTHER, Bins, File, Source, doc_to_visual, macro_mean, macro_stderr, reply
from apr_plugin.tasks.common.lmms import docs as docs_of
from apr_plugin.tasks.common.media import Library

SOURCE = Source(
    task="apr_films",
    folder="films",
    title="Films",
    kind="mcq",
    n=3,
    licence="none",
    homepage="https://example.org",
    files=(File("annotations/films.json"),),
    videos_of=lambda row: row["videos"],
    seconds_of=lambda row: row.get("seconds"),
    labels_of=lambda row, seconds: [row["length"]],
    buckets=("short", "long"),
)
ROWS: list[dict[str, Any]] = [
    {"videos": ["a.mp4"], "length": "short", "seconds": 2.0},
    {"videos": ["b.mp4", "a.mp4"], "length": "long", "seconds": 5.0},
    {"videos": ["c.mp4"], "length": "long", "seconds": 5.0},
]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("APR_HOME", str(tmp_path / "home"))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["films/annotations/films.json", "films/films.json"])
def test_annotations_stand_under_their_official_name_or_beside_the_videos(data: Path, name: str) -> None:
    write(data / name, ROWS)
    assert SOURCE.rows() == ROWS
    assert SOURCE.local_file(SOURCE.files[0]) == data / name


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_rows(data: Path, suffix: str) -> None:
    rows = [{"name": "ä\u2028b", "answer": "A"}, {"name": "b, c", "answer": "B"}]
    write(data / f"films/x.{suffix}", rows)
    assert replace(SOURCE, files=(File(f"x.{suffix}"),)).rows() == rows


def test_a_file_from_a_url_is_fetched_once(tmp_path: Path, data: Path) -> None:
    origin = write(tmp_path / "origin.json", ROWS)
    source = replace(SOURCE, files=(File("films.json", url=origin.as_uri()),))
    assert source.rows() == ROWS
    origin.unlink()
    assert source.rows() == ROWS and (data / "films/films.json").is_file()


def test_missing_annotations_are_one_line_that_says_what_to_do(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AprError) as nowhere:
        SOURCE.rows()
    assert str(data / "films/annotations/films.json") in str(nowhere.value)
    with pytest.raises(AprError) as unreachable:
        replace(SOURCE, files=(File("x.json", url=(data / "no.json").as_uri()),)).rows()
    assert "curl -L" in str(unreachable.value) and "\n" not in str(unreachable.value)
    import huggingface_hub

    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("no\nnet")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(AprError) as offline_hub:
        replace(SOURCE, files=(File("x.json", hub="someone/films", revision="abc"),)).rows()
    assert f"hf download someone/films x.json --repo-type dataset --revision abc --local-dir {data / 'films'}" in str(
        offline_hub.value
    )
    assert "(no)" in str(offline_hub.value)


def test_the_hub_is_asked_for_the_pinned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def download(repo: str, name: str, **more: Any) -> str:
        asked.append((repo, name, more))
        return str(write(tmp_path / "cached.json", ROWS))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert replace(SOURCE, files=(File("x.json", hub="someone/films", revision="abc"),)).rows() == ROWS
    assert asked == [("someone/films", "x.json", {"repo_type": "dataset", "revision": "abc"})]


@pytest.mark.parametrize(
    "content", ["[{", "{}", "[]", '[{"videos": ["a.mp4"]}]', '[{"videos": 3, "length": "short"}]', "[3]", '"words"']
)
def test_annotations_of_another_shape_are_an_error_of_one_line(data: Path, content: str) -> None:
    path = write(data / "films/films.json", content)
    with pytest.raises(AprError, match="Films: ") as error:
        SOURCE.documents()
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", '[{"videos": ["a.mp4"]', "can't read {}: Expecting ',' delimiter"),
        ("x.json", b"\xff\xfe", "can't read {}: Expecting value"),
        (
            "x.jsonl",
            '{"a": 1}\n\n{"a"',
            "{} is not as its README says: question 0 (counted from 0): no column or value 'videos'",
        ),
        ("x.parquet", b"PAR1 cut off", "can't read {}: "),
        ("x.csv", "videos\n", "{} has no question"),
        (
            "x.json",
            [{"videos": ["b.mp4"], "seconds": 5.0}],
            "{} is not as its README says: question 0 (counted from 0): no column or value 'length'",
        ),
        ("x.json", {"videos": 3}, "{} is not as its README says: question 0 (counted from 0): str instead of a row"),
    ],
)
def test_a_file_of_which_nothing_can_be_read_is_an_error_that_names_it(
    data: Path, name: str, content: Any, words: str
) -> None:
    path = write(data / "films" / name, content)
    with pytest.raises(AprError) as error:
        replace(SOURCE, files=(File(name),)).documents()
    assert words.format(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        (3, "int instead of a row"),
        ({"videos": ["b.mp4"], "seconds": 5.0}, "no column or value 'length'"),
        ({**ROWS[0], "videos": None}, "'NoneType' object is not iterable"),
        ({**ROWS[0], "videos": [7]}, "7 instead of a video's name"),
        ({**ROWS[0], "videos": ["x" * 5000]}, "[Errno 36] File name too long"),
        (
            {**ROWS[0], "length": "endless"},
            "it is in bucket 'endless', which apr_films does not know: another version of the annotations?",
        ),
        ({**ROWS[0], "length": ["long"]}, "unhashable type: 'list'"),
        ({**ROWS[0], "seconds": float("nan")}, "'nan' is not a number"),
        ({**ROWS[0], "seconds": True}, "'True' is not a number"),
        ({**ROWS[0], "more": 10**30}, "a whole number of 100 bits; at most 64 are allowed"),
        ({**ROWS[0], "more": {"a": [float("inf")]}}, "an infinite number"),
        ({**ROWS[0], "note": 3}, "column 'note': int64 where other rows have string"),
        ({**ROWS[0], "tags": ["a", 3]}, "column 'tags': "),
        ({**ROWS[0], "tags": "a"}, "column 'tags': string where other rows have list<item: string>"),
        ({**ROWS[0], "views": True}, "column 'views': bool where other rows have "),
        ({**ROWS[0], "views": (1 << 60) + 1}, "column 'views': Integer value "),
    ],
    ids=range(16),
)
def test_a_row_that_cannot_be_read_costs_its_own_question(data: Path, spoiled: Any, why: str) -> None:
    rows = [
        {**row, "note": "x", "tags": ["a"], "views": views} for row, views in zip(ROWS, (1, 2.5, None), strict=True)
    ]
    write(
        data / "films/films.json",
        [rows[0], spoiled, *rows[1:], {**rows[0], "apr_unreadable": "says the row", "extra": 1}],
    )
    docs = list(docs_of(SOURCE))
    assert len(docs) == 5 and str(docs[1]["apr_unreadable"]).startswith(why)
    assert all(doc.get("apr_unreadable") is None and doc["length"] in ("short", "long") for doc in (docs[0], *docs[2:]))
    assert SOURCE.scored(docs[1], 0.0)["n"] == 1 and docs[1]["length"] is None
    with pytest.raises(AprError, match="can't be read"):
        doc_to_visual(docs[1])


def test_lines_and_numbers_that_python_refuses(data: Path) -> None:
    lines = [json.dumps(row).encode() for row in ROWS]
    lines[1:1] = [
        b'{"videos": ["a.mp4"], "length": "sho',
        b"[" * 100_000,
        b'{"videos": ["\xff.mp4"], "length": "long"}',
    ]
    lines.append(lines[0][:-1] + b', "n": ' + b"9" * 5000 + b"}")
    (data / "films").mkdir(parents=True)
    (data / "films/x.jsonl").write_bytes(b"\n".join(lines))
    docs = list(docs_of(replace(SOURCE, files=(File("x.jsonl"),))))
    assert [doc["apr_unreadable"] and doc["apr_unreadable"].split(":")[0] for doc in docs] == [
        None,
        "line 2",
        "line 3",
        None,
        None,
        None,
        "an infinite number",
    ]
    (data / "films/x.json").write_text(
        json.dumps(ROWS)[:-1] + ', {"videos": [], "length": "long", "n": ' + "9" * 5000 + "}]"
    )
    assert [doc["apr_unreadable"] for doc in docs_of(replace(SOURCE, files=(File("x.json"),)))] == [
        None,
        None,
        None,
        "an infinite number",
    ]


def test_columns_that_only_scoring_reads_are_asked_for(data: Path) -> None:
    source = replace(SOURCE, needs=("length", "seconds"))
    write(data / "films/films.json", ROWS)
    assert source.rows() == ROWS
    for without in (
        {name: value for name, value in ROWS[1].items() if name != "seconds"},
        {**ROWS[1], "seconds": None},
    ):
        write(data / "films/films.json", [ROWS[0], without])
        assert source.rows() == ROWS[:1]
        assert source.documents()[1]["apr_unreadable"] in ("no seconds", "no column or value 'seconds'")


def test_an_unknown_bucket_is_an_error(data: Path) -> None:
    write(data / "films/films.json", [{**ROWS[0], "length": "endless"}])
    with pytest.raises(AprError, match="'endless'"):
        SOURCE.documents()


def test_documents_carry_paths_durations_buckets_and_presence(data: Path) -> None:
    write(data / "films/films.json", ROWS)
    write(data / "films/videos/a.mp4", b"x")
    write(data / "films/videos/c.mp4", b"x")
    documents = SOURCE.documents()
    assert [document["apr_present"] for document in documents] == [True, False, True]
    assert documents[1]["apr_videos"] == [str(data / "films/videos/b.mp4"), str(data / "films/videos/a.mp4")]
    assert [document["apr_seconds"] for document in documents] == [2.0, 5.0, 5.0]
    assert [document["apr_buckets"] for document in documents] == [["short"], ["long"], ["long"]]


def test_scored_counts_a_question_once_overall_and_in_each_bucket(data: Path) -> None:
    write(data / "films/films.json", ROWS)
    write(data / "films/videos/a.mp4", b"x")
    short, long, _ = SOURCE.documents()
    assert SOURCE.scored(short, True, more=3) == {
        "score": 1.0, "n": 1, "score_present": 1.0, "n_present": 1, "acc_short": 1.0, "n_short": 1, "more": 3,
    }  # fmt: skip
    assert SOURCE.scored(long, 0.25) == {"score": 0.25, "n": 1, "acc_long": 0.25, "n_long": 1}
    named = replace(SOURCE, prefix="miou", prefixes={"long": "acc"})
    assert named.scored(long, 0.5) == {"score": 0.5, "n": 1, "acc_long": 0.5, "n_long": 1}
    assert named.bucket_metrics == (
        "score",
        "n",
        "score_present",
        "n_present",
        "miou_short",
        "n_short",
        "acc_long",
        "n_long",
    )


def test_scoring_in_threads_is_what_it_is_without(data: Path) -> None:
    write(data / "films/films.json", ROWS * 50)
    documents = SOURCE.documents()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda document: SOURCE.scored(document, 1.0), documents)) == [
            SOURCE.scored(document, 1.0) for document in documents
        ]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("videos/data/a.mp4", "data/a.mp4"),
        ("videos/a.mp4", "data/a.mp4"),
        ("videos/a.mkv", "data/a.mp4"),
        ("videos/part_3/deep/a.webm", "data/a.mp4"),
        ("videos/v_360.0_510.0.mp4", "v_360.0_510.0"),
        ("videos/x/v_360.0_510.0.mp4", "v_360.0_510.0"),
        ("videos/a.MP4", "a.mp4"),
    ],
)
def test_videos_are_found_however_they_were_unpacked(tmp_path: Path, there: str, wanted: str) -> None:
    path = write(tmp_path / there, b"x")
    assert Library((tmp_path / "videos", tmp_path / "other")).find(wanted) == path


def test_a_name_that_stands_for_two_files_is_neither(tmp_path: Path) -> None:
    write(tmp_path / "videos/x/a.mp4", b"x")
    write(tmp_path / "videos/y/a.mp4", b"x")
    library = Library((tmp_path / "videos",))
    assert library.find("z/a.mp4") == tmp_path / "videos/z/a.mp4"  # where it is expected, although it is not there
    assert library.find("y/a.mp4") == tmp_path / "videos/y/a.mp4"


def test_folders_are_looked_through_in_order(tmp_path: Path) -> None:
    second = write(tmp_path / "second/deep/a.mp4", b"x")
    folders = (tmp_path / "first", tmp_path / "second")
    assert Library(folders).find("a.mp4") == second
    first = write(tmp_path / "first/deep/a.mp4", b"x")
    assert Library(folders).find("a.mp4") == first
    assert Library(folders).find("b") == tmp_path / "first/b.mp4"


def test_the_data_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("APR_DATA")
    assert data_dir() == tmp_path / "home" / "data"


def test_bins() -> None:
    bins = Bins.of_minutes(20, 40, inf)
    assert bins.names == ("20-40min", "over_40min")
    assert [bins.name(seconds) for seconds in (None, 1199.9, 1200, 2399.9, 2400, 1e9)] == [
        OTHER,
        OTHER,
        "20-40min",
        "20-40min",
        "over_40min",
        "over_40min",
    ]
    for edges, names in [((0, 1), ()), ((0, 2, 1), ("a", "b")), ((0, 0), ("a",))]:
        with pytest.raises(ValueError, match="rising edges"):
            Bins(edges, names)


def test_macro_mean_and_its_error_by_hand() -> None:
    items = [(["a"], 1.0), (["a"], 0.0), (["b", "x"], 1.0), (["b", "x"], 1.0), (["b", "y"], 0.0), (["b", "y"], 1.0)]
    assert macro_mean(items) == pytest.approx((0.5 + (1 + 0.5) / 2) / 2)
    # Each pair of 0 and 1 has variance 0.5, so 0.25 of its mean; b is half of x and y: 0.25 / 4; the whole half of a
    # and b.
    assert macro_stderr(items) == pytest.approx(((0.25 + 0.25 / 4) / 4) ** 0.5)
    assert macro_mean([]) is None and macro_stderr([]) is None
    assert macro_stderr([*items, (["c"], 1.0)]) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=1))
def test_macro_mean_lies_between_its_scores(items: list[tuple[str, float]]) -> None:
    mean = macro_mean([([group], score) for group, score in items])
    assert (
        mean is not None and min(score for _, score in items) - 1e-9 <= mean <= max(score for _, score in items) + 1e-9
    )


def test_the_text_of_a_reply() -> None:
    assert [reply(results) for results in ([], [None], [""], [" (null) "], [" \n"])] == [""] * 5
    assert [reply(results) for results in (["A"], [" A "], [3.5], [["B"]])] == ["A", " A ", "3.5", "['B']"]
