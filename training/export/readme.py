"""The README of an export: how it is used, what is exact, and what is not."""

from __future__ import annotations

from apr_plugin.training.export.format import About, Format

_USE = {
    "swift": "Run `sh train.sh --output_dir DIR` (an absolute path), with further arguments of `swift sft`. The\n"
    "environment variables in it are needed. For an Omni model, `--model` must be the whole checkpoint, not a Thinker\n"
    "alone.",
    "llamafactory": "In this folder: `llamafactory-cli train train.yaml output_dir=DIR`, with further settings as\n"
    "KEY=VALUE. For an Omni model, `model_name_or_path` must be the whole checkpoint, not a Thinker alone.",
}


def readme(form: Format, about: About) -> str:
    """The text for one export."""
    skipped = "".join(f"| `{reason}` | {count:,} |\n" for reason, count in about.skipped.items())
    counts = f"| not exported | rows |\n|---|---|\n{skipped}" if skipped else "No row was left out.\n"
    return f"""# Rows for {form.title}

{about.rows:,} rows in `{about.file}`, at most {about.longest:,} tokens long, for {about.checkpoint}
({form.family.title}).

{counts}
`skipped.jsonl` has a line for each row that was left out.

{_USE[form.name]}

For every row that was written, the tokens that {form.title} reads (by its rules, as this package applies them) were
compared with those of apr-plugin, media included: prompt and target are equal. After the target {form.title} writes a
line break and learns it too: one token more. Only the last turn of a row is learned.

Pictures have the size in which the student reads them, so that nothing is scaled again: keep the settings of pixels,
frames and sound as they are here. Paths are relative to this folder.
{_positions(form)}"""


def _positions(form: Format) -> str:
    if form.family.clip != "plain":
        return ""
    return f"""
**Clips are not position-exact.** {form.title} computes the positions of tokens with the model's class in transformers,
which for {form.family.title} since 5.3 counts the text after a clip from within the clip. That differs if the seconds
of the clip, times {form.family.positions_per_s:g}, are more than its frames have tokens in a row or a column. Measured
on a clip of 30 s with a small random model: the 73 tokens after it have other positions, and log-probabilities of the
target are up to 3.8 nats off. Rows with frames, and rows of text alone, are exact.
"""
