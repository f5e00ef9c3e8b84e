"""What VLMEvalKit's own scorers make of the answers that come back to them; run in the process of `vlmeval_warm`.

For each class: a table of four equal rows in its schema. Its own code builds the message, our reader reads the row, and
its own `evaluate` scores the right answer, a wrong one, no answer, and the right one again. The result is written as
JSON to the file that the variable `VLMEVAL_TEST_OUT` names.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import traceback
from pathlib import Path
from typing import Any

MCQ = "What colour is the bell?"
COLOURS = ["red", "green", "blue", "black"]
LETTERED = ["A. red", "B. green", "C. blue", "D. black"]


def first(module: str, *names: str) -> dict[str, Any]:
    """The first value of lists of categories that a scorer knows."""
    found = importlib.import_module(f"vlmeval.dataset.utils.{module}")
    return {name: getattr(found, name)[0] for name in names}


def rows() -> dict[str, tuple[str, dict[str, Any], str, str, str]]:
    """Class -> name of the data set, row, file of its video below the root, right answer, wrong answer."""
    world = first(
        "worldsense", "DURATIONS", "DOMAINS", "SUB_CATEGORIES", "TASK_DOMAINS", "TASK_CATEGORIES", "AUDIO_CLASSES"
    )
    asked = {"question": MCQ}
    in_words = MCQ + "\n" + "\n".join(LETTERED)
    return {
        "VideoMMEv2": (
            "Video-MME-v2",
            asked | {"video": 1, "options": "\n".join(LETTERED), "answer": "B", "level": 1}
            | {"group_type": "logic", "group_structure": "[1, 2, 3, 4]", "second_head": "x", "third_head": "x"},
            "video/001.mp4", "B", "C",
        ),
        "WorldSense": (
            "WorldSense",
            asked
            | {"video": "f", "candidates": LETTERED, "answer": "B", "duration": world["DURATIONS"]}
            | {"domain": world["DOMAINS"], "sub_category": world["SUB_CATEGORIES"], "subtitle_path": ""}
            | {"task_domain": world["TASK_DOMAINS"], "task_type": world["TASK_CATEGORIES"]}
            | {"audio_class": [world["AUDIO_CLASSES"]]},
            "videos/f.mp4", "B", "C",
        ),
        "Video_Holmes": (
            "Video_Holmes",
            asked | {"video": "f", "candidates": LETTERED, "answer": "B", "question_type": "SR"},
            "video/f.mp4", "B", "C",
        ),
        "VideoTT": (
            "Video-TT",
            asked | {"video": "f", "question_prompt": "\n".join(LETTERED), "answer": "B", "duration": "short"}
            | {"capability": first("videott", "DOMAINS")["DOMAINS"]},
            "video/f.mp4", "B", "C",
        ),
        "TempCompass_MCQ": (
            "TempCompass_MCQ",
            {"question": in_words, "answer": "B. green", "candidates": LETTERED, "task_type": "multi-choice"}
            | {"dim": "action", "prefix": ".", "video": "f", "suffix": ".mp4"},
            "f.mp4", "B", "C",
        ),
        "TempCompass_YorN": (
            "TempCompass_YorN",
            {"question": "Is the bell green?", "answer": "yes", "candidates": ["yes", "no"], "task_type": "yes_no"}
            | {"dim": "action", "prefix": ".", "video": "f", "suffix": ".mp4"},
            "f.mp4", "A", "B",
        ),
        "MVBench_MP4": (
            "MVBench_MP4",
            asked | {"task_type": "Action Sequence", "prefix": ".", "data_type": "video", "bound": False, "start": 0}
            | {"end": 1, "video": "f.mp4", "answer": "green", "candidates": COLOURS},
            "f.mp4", "B", "C",
        ),
        "VsiBench": (
            "VSI-Bench",
            asked | {"video": "f.mp4", "candidates": LETTERED, "answer": "B", "question_type": "object_rel_distance"},
            "f.mp4", "B", "C",
        ),
        "VsiSuperRecall": (
            "VsiSuperRecall_10mins",
            asked | {"video": "f.mp4", "options": LETTERED, "answer": "B", "question_type": "10mins"},
            "f.mp4", "B", "C",
        ),
        "VsiSuperCount": (
            "VsiSuperCount_10mins",
            {"question": "How many bells?", "video": "f.mp4", "answer": 12, "question_type": "10mins"},
            "f.mp4", "12", "3",
        ),
        "STIBench": (
            "STI-Bench",
            asked | {"video": "f.mp4", "options": COLOURS, "answer": "B", "time_start": 0, "time_end": 2}
            | {"task": "Spatial Relation", "candidates": COLOURS, "scene": "Indoor"},
            "f.mp4", "B", "C",
        ),
        "DSRBench": (
            "DSRBench",
            asked | {"video": "f.mp4", "options": LETTERED, "answer": "B", "task_type": "abs_dis"},
            "f.mp4", "B", "C",
        ),
        "SiteBenchVideo": (
            "SiteBenchVideo",
            asked | {"video": "ROOT/f.mp4", "candidates": COLOURS, "answer": "B"}
            | {"category": "counting & existence", "dataset": "x"},
            "f.mp4", "B", "C",
        ),
        "MVUEval": (
            "MVU-Eval",
            asked | {"video": "f", "video_paths": "video/f.mp4;video/f.mp4", "options": json.dumps(LETTERED)}
            | {"ground_truth": "B"},
            "f.mp4", "B", "C",
        ),
        "QBench_Video_MCQ": (
            "QBench_Video_MCQ",
            {"question": in_words, "video": "f", "video_path": "f.mp4", "answer": "B. green", "dimensions": "['x']"}
            | {"question_type": "Yes-or-No", "candidates": LETTERED},
            "f.mp4", "B", "C",
        ),
        "AVSpeakerBench": (
            "AV-SpeakerBench",
            asked | {"video": "f", "audio_visual_path": "f.mp4", "visual_path": "f.mp4", "audio_path": "f.mp4"}
            | {"choices": LETTERED, "answer": "B", "task_id": "1"},
            "f.mp4", "B", "C",
        ),
        "CGAVCounting": (
            "CG-AV-Counting",
            {"question": "How many bells ring?", "video": "f.mp4", "video_uid": "f", "ref_video_path": "f.mp4"}
            | {"ref_video_uid": "f", "answer": 12, "task_mode": "long_acc", "category": "event"},
            "f.mp4", "12", "3",
        ),
        "CGAVCounting events": (
            "CG-AV-Counting",
            {"question": "How many bells ring?", "video": "f.mp4", "video_uid": "f", "ref_video_path": "f.mp4"}
            | {"ref_video_uid": "f", "answer": "[[1.0, 3.0], [4.0, 5.0]]", "task_mode": "clue_acc"}
            | {"category": "event"},
            "f.mp4", "[[1.0, 3.0], [4.0, 5.0]]", "[[5.5, 6.0]]",
        ),
        "VideoMMMU": (
            "VideoMMMU",
            asked | {"id": "validation_Art_1", "video": "f.mp4", "options": json.dumps(COLOURS), "answer": "B"}
            | {"category": "Perception", "question_type": "multiple-choice", "image": ""},
            "f.mp4", "B", "C",
        ),
    }  # fmt: skip


def scored(name: str, root: Path, film: Path, host: Any) -> dict[str, Any]:
    """One class."""
    import pandas as pd
    import vlmeval.dataset as sets
    from vlmeval.smp import dump

    from apr_plugin.harnesses.vlmeval.aliases import aliases
    from apr_plugin.harnesses.vlmeval.asked import read_request
    from apr_plugin.harnesses.vlmeval.cells import cell
    from apr_plugin.harnesses.vlmeval.results import _scores
    from apr_plugin.scoring.text import NO_ANSWER

    kind = name.partition(" ")[0]
    dataset, row, video, right, wrong = rows()[name]
    (root / video).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(film, root / video)
    row = {key: value.replace("ROOT", str(root)) if isinstance(value, str) else value for key, value in row.items()}
    table = root / "table.tsv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["index", *row], delimiter="\t")
        writer.writeheader()
        writer.writerows([{"index": at, **row} for at in range(4)])
    getattr(sets, kind).prepare_dataset = lambda self, *more, **named: {"root": str(root), "data_file": str(table)}
    alias = next(each for each, what in aliases(host).items() if what.dataset == dataset and not what.subtitles)
    made = host.video_datasets[alias]()
    asked = read_request(made.build_prompt(0, video_llm=True), dataset, None)
    question = asked.asking.question
    written = cell(asked.write(right))
    answers = [written, cell(asked.write(wrong)), NO_ANSWER, written]
    place = root / f"apr_{alias}.xlsx"
    dump(pd.DataFrame({**made.data, "prediction": answers}), str(place))
    problem = ""
    try:
        made.evaluate(str(place), model="exact_matching", nproc=1)
    except Exception as error:  # noqa: BLE001 - the test knows which of them fail, and how
        problem = f"{type(error).__name__}: {error}"
    scores = _scores(place, ())
    own = [made.score(str(at), answer) for at, answer in enumerate(answers)]
    return {
        "alias": alias,
        "kind": str(question.kind),
        "text": question.text,
        "options": [[option.label, option.text] for option in question.options],
        "videos": [ref.path for ref in question.videos],
        "reader": question.reader,
        "answers": answers,
        "own": own,
        "problem": problem,
        "scores": {index: {key: one[key] for key in one if key in WANTED} for index, one in scores.items()},
    }


WANTED = ("score", "hit", "MRA:.5:.95:.05", "acc", "rating", "correct")


def main() -> None:
    from apr_plugin.harnesses.vlmeval.registry import register

    host = register()
    out = Path(os.environ["VLMEVAL_TEST_OUT"])
    found: dict[str, Any] = {}
    for name in rows():
        root = out.parent / name.replace(" ", "_")
        root.mkdir()
        try:
            found[name] = scored(name, root, Path(os.environ["VLMEVAL_TEST_FILM"]), host)
        except Exception:  # noqa: BLE001 - a class of others; the test says which failed
            found[name] = {"error": traceback.format_exc()}
    out.write_text(json.dumps(found, default=str))


if __name__ == "<run_path>":
    main()
