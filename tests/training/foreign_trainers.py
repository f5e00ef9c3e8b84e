"""What another trainer reads of an exported folder, by its own code, in its own environment.

    PYTHON tests/training/foreign_trainers.py swift FOLDER CHECKPOINT OUT
    PYTHON tests/training/foreign_trainers.py llamafactory FOLDER CHECKPOINT OUT

PYTHON is that of an environment with ms-swift 4.6 or LLaMA-Factory 0.9.5; this package is not needed there. OUT becomes
a folder with `N.npz` for row N of the data file: `ids`, `labels` and the tensors of its media. The environment
variables of the export's `train.sh`, and the settings of its `train.yaml`, are used. `test_export_foreign.py` calls it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

MEDIA = ("pixel_values", "pixel_values_videos", "input_features", "image_grid_thw", "video_grid_thw")
TIMES = ("second_per_grid_ts", "video_second_per_grid")


def swift(folder: Path, checkpoint: str, out: Path) -> None:
    """Rows as ms-swift encodes them: its data set, its preprocessor and its template."""
    script = (folder / "train.sh").read_text()
    os.environ.update(re.findall(r"^export (\w+)=(\S+)$", script, re.MULTILINE))
    from swift import get_processor, get_template
    from swift.dataset import load_dataset

    options = dict(re.findall(r"--(\w+) (\S+)", script))
    processor = get_processor(checkpoint, model_type=options["model_type"])
    template = get_template(processor, template_type=options["template"], loss_scale=options["loss_scale"])
    template.set_mode("train")
    # The ids of a released checkpoint are written in ms-swift; a small one has others.
    for name, mark in (("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>")):
        if hasattr(template, name) and mark in processor.tokenizer.get_vocab():
            setattr(template, name, processor.tokenizer.convert_tokens_to_ids(mark))
    os.chdir(folder)
    rows, _ = load_dataset([options["dataset"]], split_dataset_ratio=0, strict=True)
    for number, row in enumerate(rows):
        _save(out / f"{number}.npz", template.encode(dict(row)))


def llamafactory(folder: Path, checkpoint: str, out: Path) -> None:
    """Rows as LLaMA-Factory encodes them: its arguments, its data set, and its plugin for the tensors."""
    os.chdir(folder)
    lines = (Path("train.yaml").read_text()).splitlines()
    wanted = dict(line.split(": ", 1) for line in lines if not line.startswith("#"))
    values = {key: json.loads(value) for key, value in wanted.items()}
    values |= {"model_name_or_path": checkpoint, "bf16": False, "output_dir": str(out / "saves"), "report_to": "none"}
    values |= {"overwrite_cache": True, "use_cpu": True}
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, _, _ = get_train_args(values)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    for number, row in enumerate(rows):
        media = {name: row.get(name) or [] for name in ("images", "videos", "audios")}
        counts = [[len(media[name])] for name in ("images", "videos", "audios")]
        made = template.mm_plugin.get_mm_inputs(*media.values(), *counts, [row["input_ids"]], module["processor"])
        _save(out / f"{number}.npz", {**row, **made})


def _save(file: Path, made: dict[str, Any]) -> None:
    found = {name: np.asarray(made[name]) for name in (*MEDIA, *TIMES) if made.get(name) is not None}
    np.savez(file, ids=np.asarray(made["input_ids"]), labels=np.asarray(made["labels"]), **found)


if __name__ == "__main__":
    trainer, place, model, target = sys.argv[1:]
    Path(target).mkdir(parents=True, exist_ok=True)
    {"swift": swift, "llamafactory": llamafactory}[trainer](Path(place), model, Path(target).absolute())
