"""A card as a page to read, in Markdown. What a model or a file wrote is shown as code, so nothing of it is markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apr_plugin.report.cleaning import code

_SHOWN = 20
"""Questions with a reason that the page lists; `card.yaml` has more."""

_LONGEST = 400


def page(data: Mapping[str, Any]) -> str:
    """The page of a card.

    Args:
        data: The content of `card.yaml` (`card_files`).
    """
    model, environment = data["model"], data["environment"]
    hardware, questions, time = environment["hardware"], data["questions"], data["time"]
    lines = [
        f"# Run {code(data['config_hash'] or 'without a name')}",
        "",
        f"Written {data['made']}. `card.yaml` beside this page holds everything; "
        "`apr reproduce card.yaml` runs it again and says what differs.",
        "",
        *_table(
            ("", ""),
            [
                ("model", _value(model["name"])),
                ("revision", _value(model["revision"])),
                ("arm", _value(data["arm"])),
                ("questions", _counted(questions)),
                ("decoder", _value(" ".join(str(value) for value in data["decoder"].values() if value))),
                ("seed", _value(data["seeds"]["run"])),
                (
                    "seconds, summed over questions",
                    f"{_seconds(time['questions_s'])} (model {_seconds(time['model_s'])}, "
                    f"media {_seconds(time['media_s'])})",
                ),
                ("seconds of wall clock", ", ".join(f"{one['seconds']}" for one in time["evaluations"]) or "unknown"),
                ("harness", _value(" ".join(filter(None, (data["harness"]["name"], data["harness"]["version"]))))),
                ("Python", _value(environment["python"])),
                ("processor", f"{_value(hardware['cpu'])}, {hardware['cores']} cores, {hardware['memory_gib']} GiB"),
                ("GPUs", ", ".join(map(_value, hardware["gpus"])) or "none"),
            ],
        ),
        "",
        "Hardware and installed packages are those of the machine on which this card was written.",
        "",
        "## Scores",
        "",
        *_table(
            ("task", "version", "n", "metric", "value"),
            (
                (code(task), _value(one["version"]), _of(one), code(name.partition(",")[0]), f"{value:.4f}")
                for task, one in data["tasks"].items()
                for name, value in one["scores"].items()
                if "stderr" not in name
            ),
        ),
        "",
        "## How to run it again",
        "",
        *_commands(data["commands"]),
        "## Missing or failed",
        "",
        *_missing(data["missing"]),
        "",
        "## Data",
        "",
        *_table(("", ""), [(name.replace("_", " "), code(str(value))) for name, value in data["data"].items()]),
        "",
        "## Budget and configuration",
        "",
        *_table(("setting", "value"), ((code(name), _value(value)) for name, value in _flat(data["configuration"]))),
        "",
        "## Policy",
        "",
        *_table(("", ""), ((code(name), _value(value)) for name, value in _flat(data["policy"]))),
        "",
        "## Packages that decide pixels and answers",
        "",
        *_table(("package", "release"), ((code(name), _value(value)) for name, value in data["versions"].items())),
        "",
        f"All {len(environment['packages'])} installed packages are in `card.yaml`.",
        "",
        f"## Prompts ({_value(data['prompt_hash'])})",
        "",
        *(line for name, text in data["prompts"].items() for line in _block(name, str(text))),
    ]
    if data["problems"]:
        lines += ["## Problems", "", *(f"- {code(problem[:_LONGEST])}" for problem in data["problems"]), ""]
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.1f}"


def _counted(questions: Mapping[str, Any]) -> str:
    parts = [f"{questions['answered']} of {questions['asked']} answered"]
    for name in ("failed", "no_answer", "wrong_form", "missing"):
        if questions[name]:
            parts.append(f"{questions[name]} {name.replace('_', ' ')}")
    return ", ".join(parts)


def _commands(commands: Sequence[Mapping[str, Any]]) -> list[str]:
    if not commands:
        return ["No results of a harness that name the command belong to this run.", ""]
    lines = []
    for one in commands:
        about = ", ".join(
            f"{name} {_value(one[name])}"
            for name in ("limit", "offset", "repeats", "seed", "judge")
            if one.get(name) is not None
        )
        what = "VLMEvalKit, data" if one.get("harness") == "vlmeval" else "tasks"
        lines += [f"- {what} {code(', '.join(one['tasks']))}, model_args {code(one['model_args'])}; {about}"]
        lines += ["  (with a task folder of its own)"] if one.get("own_tasks") else []
    return [*lines, ""]


def _missing(missing: Mapping[str, Any]) -> list[str]:
    listed = missing["questions"]
    if not listed:
        return ["Nothing."]
    reasons = ", ".join(f"{code(reason)} {count}" for reason, count in missing["reasons"].items())
    rows = ((code(q["task"]), code(q["doc_id"]), q["state"].replace("_", " "), code(q["why"])) for q in listed[:_SHOWN])
    more = len(listed) + missing["more"] - min(len(listed), _SHOWN)
    return [
        f"By reason: {reasons}.",
        "",
        *_table(("task", "doc", "state", "why"), rows),
        *(["", f"and {more} more."] if more else []),
    ]


def _of(task: Mapping[str, Any]) -> str:
    n, of = task["n"], task["of"]
    return "?" if n is None else str(n) if of in (None, n) else f"{n} of {of}"


def _flat(values: Mapping[str, Any], head: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{head}{name}.")
        else:
            yield f"{head}{name}", value


def _value(value: Any) -> str:
    return "none" if value in (None, "") else code(str(value)[:_LONGEST])


def _block(name: str, text: str) -> list[str]:
    """A text in a block that it can't end, indented by four blanks."""
    return [f"### {code(name)}", "", *(f"    {line}" for line in text.splitlines()), ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
