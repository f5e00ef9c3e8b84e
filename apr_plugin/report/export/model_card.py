"""Evaluation results for a model's page on the hub: a `model-index` block, and the newer `.eval_results` file.

Sources: https://github.com/huggingface/hub-docs/blob/main/modelcard.md (`model-index`) and
https://huggingface.co/docs/hub/eval-results (`.eval_results/*.yaml`); both are made by `huggingface_hub`'s own classes,
so that what they refuse is not written. Scores are in percent. A score over a part of a benchmark says so in its name
and in `args`, and is left out of the second file, which only holds whole benchmarks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apr_plugin.errors import AprError, require
from apr_plugin.report.card_files import card_data, to_yaml
from apr_plugin.report.export.submission import Submission
from apr_plugin.runs.opened import Run
from apr_plugin.tasks.common.catalogue import Source, sources

TASK_TYPE = "video-text-to-text"
"""The hub's name of what is evaluated."""

HOW = [
    "`model_index.yaml`: copy its `model-index` between the `---` lines at the top of the model's README.md, or "
    "merge it with `huggingface_hub.metadata_update`.",
    "`eval_results.yaml`, where it is written: put it into the model's repository as `.eval_results/NAME.yaml`. The "
    "hub shows it only for data sets that are registered as benchmarks, and `task_id` must be one that the data "
    "set's `eval.yaml` names: `default` is a guess to check.",
    "Keep card.yaml beside them (`apr export card`): a percentage without its budget can't be compared.",
]


def submission(run: Run, annotations: Path | None) -> Submission:
    """The scores of every task of the run as metadata of a model card.

    Raises:
        AprError: no task of the run has a score, or the hub's client refuses a value.
        MissingExtra: huggingface_hub or pyyaml is not installed.
    """
    require("huggingface_hub", "lmms")
    from huggingface_hub import EvalResult, ModelCardData

    if annotations is not None:
        raise AprError("--annotations has no meaning for model_card; leave it out")
    card = card_data(run)
    known = sources()
    results, whole, notes = [], [], []
    for task, one in card["tasks"].items():
        source = known.get(task)
        metric = source.metric if source and f"{source.metric},none" in one["scores"] else "score"
        value = one["scores"].get(f"{metric},none")
        if value is None:
            notes.append(f"{task}: lmms-eval reports no metric '{metric}', so it is left out")
            continue
        n, official = one["n"], source.n if source else 0
        partial = bool(official and n != official) or (one["of"] not in (None, n))
        failed = (card["questions"]["by_task"].get(task) or {}).get("failed", 0)
        if partial:
            notes.append(f"{task}: {n} of {official or one['of']} questions were asked, which its name says")
        if failed:
            notes.append(f"{task}: {failed} questions could not be answered and count as wrong")
        dataset, split = _dataset(source, task), next((key[1] for key in run.keys if key[0] == task and key[1]), None)
        kind = "accuracy" if source is None or source.kind == "mcq" else source.prefix
        percent = round(100 * float(value), 2)
        args = {"questions": n, "arm": card["arm"], "config_hash": card["config_hash"]}
        title = f"{source.title} ({task})" if source and not dataset else source.title if source else task
        results.append(
            EvalResult(
                task_type=TASK_TYPE,
                dataset_type=dataset or task,
                dataset_name=f"{title} ({n} questions)" if partial else title,
                dataset_split=split,
                metric_type=kind,
                metric_name=f"{metric} (%), arm {card['arm']}",
                metric_value=percent,
                metric_args={name: value for name, value in args.items() if value is not None},
            )
        )
        if dataset and not partial:
            whole.append((dataset, percent, f"arm {card['arm']}, {n} questions, apr-plugin"))
    if not results:
        raise AprError(
            f"{run.folder}: no task of this run has a score to report; {'; '.join(notes) or 'it has no results'}"
        )
    name = str(card["model"]["name"] or "model")
    try:
        made: dict[str, Any] = ModelCardData(model_name=name, eval_results=results).to_dict()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError) as error:
        raise AprError(f"the hub's client refuses this metadata: {error}") from error
    made = {"model-index": made["model-index"]}
    if failing := card["questions"]["failed"]:
        notes.append(f"{failing} of {card['questions']['asked']} questions could not be answered")
    more = {"eval_results.yaml": _eval_results(whole)} if whole else {}
    if not whole:
        notes.append("no eval_results.yaml: no task was asked whole and has a data set on the hub")
    return Submission("Model card", "model_index.yaml", to_yaml(made), HOW, notes, more)


def _dataset(source: Source | None, task: str) -> str | None:
    """The id of its data set on the hub, where it has one."""
    return next((file.hub for file in source.files if file.hub), None) if source else None


def _eval_results(whole: list[tuple[str, float, str]]) -> str:
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries = [
        EvalResultEntry(dataset_id=name, task_id="default", value=value, notes=notes) for name, value, notes in whole
    ]
    return to_yaml(eval_result_entries_to_yaml(entries))
