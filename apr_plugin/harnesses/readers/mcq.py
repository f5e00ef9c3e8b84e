"""Readers of multiple-choice tasks. What each scorer does with an answer is in `docs/readers.md`."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase, digits
from typing import Any

from apr_plugin.harnesses.readers.choices import by_columns, by_key, by_position, by_prefix, context_of, mcq, printed
from apr_plugin.harnesses.readers.prompt import paragraphs, read_prompt, split_options, strip_instructions
from apr_plugin.harnesses.readers.reading import DocError, Reading, column
from apr_plugin.harnesses.readers.registry import register_reader
from apr_plugin.loop.question import Option, QuestionKind

Doc = Mapping[str, Any]


@register_reader("videomme*")
def read_videomme(doc: Doc, prompt: str) -> Reading:
    """Video-MME: `question`, `options` ("A. …").

    Some of its tasks show subtitles although their name does not say so (`videomme_long`).
    """
    question, options = column(doc, "question"), by_prefix(column(doc, "options"))
    return mcq(question, options, context=context_of(prompt, question, options))


@register_reader("videomme_number_option")
def read_videomme_number(doc: Doc, prompt: str) -> Reading:
    """Video-MME with options "1. …" to "4. …": its scorer compares the digit."""
    question, options = column(doc, "question"), by_prefix(column(doc, "options"), labels=digits[1:])
    return mcq(question, options, context=context_of(prompt, question, options))


@register_reader("videomme_video_only_abcd")
def read_videomme_unseen(doc: Doc, prompt: str) -> Reading:
    """Video-MME as a guess: the task hides the question and the options, and this reader does too."""
    return mcq(
        "There is no question. Guess which option is the right one.",
        tuple(Option(label=label, text="(not shown)") for label in "ABCD"),
    )


@register_reader("videomme_v2*")
def read_videomme_v2(doc: Doc, prompt: str) -> Reading:
    """Video-MME-v2: `question`, `options` (one string of lines "A. …" to "H. …").

    The `_w_subtitle` tasks put subtitles before the question.
    """
    question, options = column(doc, "question"), printed(column(doc, "options"))
    return mcq(question, options, context=context_of(prompt, question, options))


@register_reader("worldsense*")
def read_worldsense(doc: Doc, prompt: str) -> Reading:
    """WorldSense: `question`, `candidates` ("A. …", three or four).

    The `_w_subtitle` tasks put subtitles before the question.
    """
    question, options = column(doc, "question"), by_prefix(column(doc, "candidates"))
    return mcq(question, options, context=context_of(prompt, question, options))


@register_reader("longvideobench*")
def read_longvideobench(doc: Doc, prompt: str) -> Reading:
    """LongVideoBench: `question`, `option0` to `option4` ("N/A" is none).

    The `_i` tasks put subtitles and `<image>` marks before the question.
    """
    question, options = column(doc, "question"), by_columns(doc, "option", 5, absent=("N/A",))
    return mcq(question, options, context=context_of(prompt, question, options))


@register_reader("cgbench*")
def read_cgbench(doc: Doc, prompt: str) -> Reading:
    """CG-Bench: `question`, `choices` without labels; `cgbench_subtitles` puts subtitles before the question."""
    question, options = column(doc, "question"), by_position(column(doc, "choices"))
    return mcq(question, options, context=context_of(prompt, question, options))


@register_reader("video_mmmu_*")
def read_video_mmmu(doc: Doc, prompt: str) -> Reading:
    """Video-MMMU: `question`, `question_type`, `options`.

    The prompt is kept, because it says where in the video the question's image is.
    """
    question = column(doc, "question")
    if column(doc, "question_type") != "multiple-choice":
        text = paragraphs(context_of(prompt, question, ()), str(question).strip())
        return Reading(text=text, kind=QuestionKind.FREE_FORM, answer_hint="a short answer, or a number with its unit")
    texts = column(doc, "options")
    options = by_prefix(texts)
    if "".join(option.label for option in options) != ascii_uppercase[: len(options)]:
        options = by_position(texts)  # the task labels options itself unless they are A., B., C., … already
    return mcq(question, options, context=context_of(prompt, question, options))


@register_reader("cinepile")
def read_cinepile(doc: Doc, prompt: str) -> Reading:
    """CinePile: `question`, `choices` without labels, `subtitles` of the scene."""
    subtitles = str(doc.get("subtitles") or "").strip()
    return mcq(
        column(doc, "question"),
        by_position(column(doc, "choices")),
        context=f"Subtitles:\n{subtitles}" if subtitles else "",
    )


@register_reader("lvbench*")
def read_lvbench(doc: Doc, prompt: str) -> Reading:
    """LVBench: `question`, and `options` if the copy of the data set has that column.

    Otherwise the options are in the question.
    """
    if doc.get("options"):
        return mcq(column(doc, "question"), by_position(doc["options"]))
    return _embedded(column(doc, "question"))


@register_reader("mlvu*", "tempcompass_multi_choice", "temporalbench_*_qa")
def read_question_column(doc: Doc, prompt: str) -> Reading:
    """Tasks with the options in the `question` column too: MLVU "(A) …", TempCompass and TemporalBench "A. …"."""
    return _embedded(column(doc, "question"))


@register_reader("timescope", "longtimescope", "egoplan2", "vinoground")
def read_whole_prompt(doc: Doc, prompt: str) -> Reading:
    """Tasks with a prompt that is one column, or a separate file of the data set, and lists the options itself."""
    return _embedded(prompt)


@register_reader("minerva*", "neptune_*", "perceptioncomp*")
def read_answer_choices(doc: Doc, prompt: str) -> Reading:
    """Minerva, Neptune, PerceptionComp: `question`, `answer_choice_0`, `answer_choice_1`, …."""
    return mcq(column(doc, "question"), by_columns(doc, "answer_choice_", 6, absent=("",)))


@register_reader("video_holmes*")
def read_video_holmes(doc: Doc, prompt: str) -> Reading:
    """Video-Holmes: `Question`, `Options` (dict of A to F)."""
    return mcq(column(doc, "Question"), by_key(column(doc, "Options")))


@register_reader("mvbench*", "tvbench*")
def read_candidates(doc: Doc, prompt: str) -> Reading:
    """MVBench, TVBench: `question`, `candidates` without labels.

    `start` and `end` are not used: the tasks pass clips that are cut already.
    """
    return mcq(column(doc, "question"), by_position(column(doc, "candidates")))


@register_reader("egoschema*")
def read_egoschema(doc: Doc, prompt: str) -> Reading:
    """EgoSchema: `question`, `option` ("A. …"). The scorer turns the letter into a 0-based index itself."""
    return mcq(column(doc, "question"), by_prefix(column(doc, "option")))


@register_reader("nextqa_mc*")
def read_nextqa_mc(doc: Doc, prompt: str) -> Reading:
    """NExT-QA, multiple choice: `question`, `a0` to `a4`; the scorer compares letters, the data set indices."""
    return mcq(column(doc, "question"), by_columns(doc, "a", 5))


@register_reader("perceptiontest_*_mc", "tomato")
def read_plain_options(doc: Doc, prompt: str) -> Reading:
    """Perception Test, TOMATO: `question`, `options` without labels."""
    return mcq(column(doc, "question"), by_position(column(doc, "options")))


@register_reader("mmr_v*", "videoevalpro_mcq")
def read_printed_options(doc: Doc, prompt: str) -> Reading:
    """MMR-V "(A) …", VideoEval-Pro "A. …": `question`, `options` with their labels."""
    return mcq(column(doc, "question"), printed(column(doc, "options")))


@register_reader("lsdbench", "mmou*", "scivideobench")
def read_options_by_label(doc: Doc, prompt: str) -> Reading:
    """LSDBench, MMOU, SciVideoBench: `question`, `options` (dict of label -> text, its JSON text, or a plain list).

    SciVideoBench's prompt turns the question's times into frame numbers of frames the loop never sees; the question
    itself is kept.
    """
    options = column(doc, "options")
    return mcq(column(doc, "question"), by_position(options) if isinstance(options, list) else by_key(options))


@register_reader("motionbench*")
def read_motionbench(doc: Doc, prompt: str) -> Reading:
    """MotionBench: `question`, `options` (list of {label, text})."""
    return mcq(column(doc, "question"), by_key({option["label"]: option["text"] for option in column(doc, "options")}))


@register_reader("tempcompass_yes_no")
def read_tempcompass_yes_no(doc: Doc, prompt: str) -> Reading:
    """TempCompass, yes or no: `question`; the scorer looks at how the answer begins."""
    return mcq(column(doc, "question"), by_position(("yes", "no")), written={"A": "yes", "B": "no"})


@register_reader("tempcompass_caption_matching")
def read_tempcompass_captions(doc: Doc, prompt: str) -> Reading:
    """TempCompass, caption matching: the captions are the lines of `question` after the first.

    They begin with a head: "Sentence A: …", "Option 1: …" and the like.

    The scorer identifies the options by these heads, so a head is returned.
    """
    stem, *lines = str(column(doc, "question")).split("\n")
    heads = dict(line.split(": ", 1) for line in lines)
    labels = {head.split()[-1]: head for head in heads}
    if len(labels) < 2:
        raise DocError("no captions in column 'question'")
    return mcq(stem, tuple(Option(label=label, text=heads[head]) for label, head in labels.items()), written=labels)


def _embedded(text: object) -> Reading:
    """Question and options of one text."""
    if not split_options(str(text)).options:
        raise DocError("no options in the question")
    return read_prompt({}, strip_instructions(str(text)))
