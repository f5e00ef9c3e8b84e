"""Exports read by the trainers' own code: the same tokens, labels, pixels and sound as the student's.

They need environments of their own, because each wants other releases of transformers than this package. Make them and
name their Python, else these tests are skipped:

    python3.11 -m venv ENV_SWIFT && ENV_SWIFT/bin/pip install 'ms-swift==4.6.0' 'transformers<5.17' qwen-vl-utils \
        qwen-omni-utils torchvision decord librosa soundfile av
    python3.11 -m venv ENV_FACTORY && ENV_FACTORY/bin/pip install 'llamafactory==0.9.5' torchcodec
    APR_SWIFT_PYTHON=ENV_SWIFT/bin/python APR_LLAMAFACTORY_PYTHON=ENV_FACTORY/bin/python \
        python -m pytest -n0 tests/training/test_export_foreign.py

They were run with ms-swift 4.6.0 (transformers 5.16.1, qwen-vl-utils 0.0.14, qwen-omni-utils 0.0.9, torchcodec 0.17.0)
and LLaMA-Factory 0.9.5 (transformers 5.6.0, torchaudio 2.11.0, torchcodec 0.17.0), both with the torch of this package.
torchcodec, which also torchaudio reads sound with, needs FFmpeg's libraries.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from export_making import chats_of, rows_of
from row_making import tokens

from apr_plugin.training.export import FORMATS
from apr_plugin.training.export.exporting import export_rows
from apr_plugin.training.loading import RowLoader
from apr_plugin.training.student import Student

SCRIPT = Path(__file__).parent / "foreign_trainers.py"
PYTHONS = {form: os.environ.get(f"APR_{form.upper()}_PYTHON", "") for form in FORMATS}
CASES = [
    pytest.param(
        form,
        name,
        marks=pytest.mark.skipif(
            not PYTHONS[form], reason=f"APR_{form.upper()}_PYTHON names no Python with {FORMATS[form].title}"
        ),
    )
    for form in sorted(FORMATS)
    for name in ("qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_omni_moe")
]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("form", "name"), CASES)
def test_a_trainer_reads_what_the_student_reads(
    tiny: Callable[[str], Path], shared_videos: dict[str, Path], tmp_path: Path, form: str, name: str
) -> None:
    # Both trainers load an Omni model as a whole.
    checkpoint = tiny(f"{name}_full" if "omni" in name else name)
    learner = Student.from_pretrained(str(checkpoint))
    rows = rows_of(learner, tmp_path, shared_videos["sound"], shared_videos["silent"])
    rows.rows += chats_of(learner, tmp_path).rows
    out, got, loader = tmp_path / "out", tmp_path / "got", RowLoader(learner)
    done = export_rows(rows.rows, loader, FORMATS[form], out)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    ran = subprocess.run(
        [PYTHONS[form], str(SCRIPT), form, str(out), str(checkpoint), str(got)],
        capture_output=True,
        text=True,
        check=False,
        env=kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    left_out = {json.loads(line)["row"] for line in (out / "skipped.jsonl").read_text().splitlines()}
    exported = [row for row in rows.rows if row.where not in left_out]
    assert len(exported) == done.rows == len(list(got.glob("*.npz")))
    line_break = tokens(learner, "\n")
    for number, row in enumerate(exported):
        example, read = loader.example(row), np.load(got / f"{number}.npz")
        prompt, learned = example.encoded.ids.tolist(), [*example.target, *line_break]
        assert read["ids"].tolist() == prompt + learned, row.where
        assert read["labels"].tolist() == [-100] * len(prompt) + learned, row.where
        media: list[Any] = [medium for medium in example.encoded.media if medium.pixels is not None]
        for key in {"pixel_values", "pixel_values_videos"} & set(read.files):
            np.testing.assert_array_equal(read[key], np.concatenate([medium.pixels.numpy() for medium in media]))
        if "input_features" in read.files:
            mel = example.encoded.media[0].mel.numpy()
            # ms-swift cuts sound to whole columns for Qwen3-Omni, so that the end of the last column is not there.
            columns = mel.shape[1] - (name == "qwen3_omni_moe")
            np.testing.assert_array_equal(read["input_features"][0][:, :columns], mel[:, :columns])
        for key in {"second_per_grid_ts", "video_second_per_grid"} & set(read.files):
            assert read[key].tolist() == [2 / media[0].part.fps]
