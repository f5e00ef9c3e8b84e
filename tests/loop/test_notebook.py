"""Prompts: golden files of whole prompts, and the rule that the rewritten history is a strict prefix of every later
prompt.

To write the golden files again, run `pytest tests/loop/test_notebook.py --update-golden`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from apr_testing import answer, look, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_plugin.loop import ActionError, Budget, ErrorCode, Option, Percept, Prompt, Question
from apr_plugin.loop.notebook import MAX_TURN_CHARS, Notebook, answer_form, is_template, load_system_prompt, prompt_hash
from apr_plugin.loop.policy import Message, TextPart
from apr_plugin.loop.wires import WIRES, VideoMeta, Wire, wire_of

GOLDEN = Path(__file__).parent / "golden"
KINDS = {
    "mcq": Question(
        text="Which glyph?", kind="mcq", options=(Option(label="A", text="a star"), Option(label="B", text="a ring"))
    ),  # type: ignore[arg-type]
    "grounding": Question(text="When is the star visible?", kind="grounding"),  # type: ignore[arg-type]
    "number": Question(text="How tall is the tower?", kind="number", answer_hint="in metres"),  # type: ignore[arg-type]
    "free_form": Question(text="What is said?\nQuote it.", kind="free_form"),  # type: ignore[arg-type]
}
META = VideoMeta(125.678, 29.97, True)


def frames_seen(several: bool = False, remark: str = "", number: int = 1) -> Percept:
    return Percept(
        "frames",
        int(several),
        0.0,
        60.0,
        images=np.zeros((3, 56, 84, 3), np.uint8),
        times_s=(0.0, 29.97, 60.0),
        asked_s=(0.0, 30.0, 60.0),
        several=several,
        remark=remark,
        look=number,
    )


def audio_heard() -> Percept:
    return Percept("audio", 0, 10.0, 12.5, waveform=np.zeros(40_000, np.float32), look=2)


def clip_seen() -> Percept:
    return Percept(
        "clip",
        0,
        5.0,
        7.0,
        images=np.zeros((4, 56, 56, 3), np.uint8),
        times_s=(5.0, 5.5, 6.0, 6.5),
        fps=2.0,
        waveform=np.zeros(32_000, np.float32),
        look=3,
    )


def book(kind: str = "mcq", videos: int = 1, **more: object) -> Notebook:
    metas = [META, VideoMeta(10.0, None, False)][:videos]
    return Notebook(KINDS[kind], metas, Budget(), **more)  # type: ignore[arg-type]


OMNIAGENT, COMPACT = WIRES["omniagent"], WIRES["compact"]
NUMBERED, UNTIMED = wire_of("apr", references=True), wire_of("compact", frame_times=False)
NOTICES = {"compact": ("\nAnswer now", *(f"\n{left} left" for left in range(1, 9)))}


def _after_frames(
    wire: Wire = WIRES["apr"], remark: str = "(Scaled down to 84x56 to fit the token limit.)"
) -> Notebook:
    notebook = book(wire=wire)
    notebook.add(look(0, 60, 3), frames_seen(remark=remark))
    return notebook


def _mid(wire: Wire = WIRES["apr"]) -> Notebook:
    notebook = _after_frames(wire)
    notebook.add(turn({"type": "get_audio", "start": 10, "end": 12.5}), audio_heard())
    notebook.add(turn({"type": "get_clip", "start": 5, "end": 7}), clip_seen())
    return notebook


def _after_error(wire: Wire = WIRES["apr"]) -> Notebook:
    notebook = _after_frames(wire)
    notebook.add(
        "no JSON", ActionError(ErrorCode.MALFORMED_JSON, "the turn holds no JSON object; it begins with 'no JSON'.")
    )
    return notebook


def _two_videos(wire: Wire = WIRES["apr"]) -> Notebook:
    notebook = book(videos=2, wire=wire)
    notebook.add(look(0, 60, 3, video=1), frames_seen(several=True))
    return notebook


PROMPTS = {
    **{f"first_{kind}": (lambda kind=kind: book(kind).prompt(1, 7)) for kind in KINDS},
    "after_frames": lambda: _after_frames().prompt(2, 7),
    "mid_episode": lambda: _mid().prompt(4, 7),
    "after_error": lambda: _after_error().prompt(3, 7),
    "one_step_left": lambda: _after_frames().prompt(6, 7),
    "last_turn": lambda: _after_frames().prompt(7, 7),
    "forced": lambda: _mid().forced_prompt("All 3 turns are used up."),
    "forced_shortened": lambda: _mid().forced_prompt("The model's context of 4096 tokens is full.", left_out=2),
    "forced_without_notes": lambda: _mid().forced_prompt("The model's context of 4096 tokens is full.", left_out=3),
    "without_audio": lambda: book(modalities=frozenset({"frames", "clip"})).prompt(1, 7),
    "frames_alone": lambda: book(modalities=frozenset({"frames"})).prompt(1, 7),
    "audio_alone": lambda: book(modalities=frozenset({"audio"})).prompt(1, 7),
    "two_videos": lambda: _two_videos().prompt(2, 7),
    "own_system_prompt": lambda: book(system_prompt="Look, then answer.").prompt(1, 7),
    **{f"passive_{kind}": (lambda kind=kind: book(kind).passive_prompt([frames_seen()])) for kind in KINDS},
    **{f"omniagent_first_{kind}": (lambda kind=kind: book(kind, wire=OMNIAGENT).prompt(1, 7)) for kind in KINDS},
    "omniagent_after_frames": lambda: _after_frames(OMNIAGENT, "").prompt(2, 7),
    "omniagent_mid_episode": lambda: _mid(OMNIAGENT).prompt(4, 7),
    "omniagent_last_turn": lambda: _after_frames(OMNIAGENT, "").prompt(7, 7),
    "omniagent_without_audio": lambda: book(modalities=frozenset({"frames", "clip"}), wire=OMNIAGENT).prompt(1, 7),
    **{f"compact_first_{kind}": (lambda kind=kind: book(kind, wire=COMPACT).prompt(1, 7)) for kind in KINDS},
    "compact_after_frames": lambda: _after_frames(COMPACT).prompt(2, 7),
    "compact_after_frames_untimed": lambda: _after_frames(UNTIMED, "").prompt(2, 7),
    "compact_after_frames_unnamed": lambda: _after_frames(wire_of("compact", references=False), "").prompt(2, 7),
    "compact_mid_episode": lambda: _mid(COMPACT).prompt(4, 7),
    "compact_after_error": lambda: _after_error(COMPACT).prompt(3, 7),
    "compact_two_videos": lambda: _two_videos(COMPACT).prompt(7, 7),
    "compact_forced_shortened": lambda: _mid(COMPACT).forced_prompt("All 3 turns are used up.", left_out=2),
    "compact_empty_system": lambda: book(wire=COMPACT, system_prompt="").prompt(1, 7),
    "named_mid_episode": lambda: _mid(NUMBERED).prompt(4, 7),
    "named_two_videos": lambda: _two_videos(NUMBERED).prompt(2, 7),
    "named_omniagent": lambda: _after_frames(wire_of("omniagent", references=True), "").prompt(2, 7),
    "passive_blind": lambda: book().passive_prompt([]),
}


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    path, text = GOLDEN / f"{name}.txt", PROMPTS[name]().text + "\n"
    if request.config.getoption("--update-golden"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8") == text, "the prompt changed; if that is intended, run pytest with --update-golden"


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(PROMPTS)


def _has_media(message: Message) -> bool:
    return any(not isinstance(part, TextPart) for part in message.parts)


OUTCOMES = st.one_of(
    st.builds(frames_seen, st.booleans(), st.sampled_from(["", "(remark)"])),
    st.builds(audio_heard),
    st.builds(clip_seen),
    st.builds(ActionError, st.sampled_from(ErrorCode), st.text(max_size=30)),
    st.none(),
)
TURNS = st.lists(
    st.tuples(st.one_of(st.text(max_size=60), st.just(look(0, 1)), st.just(answer("A"))), OUTCOMES), max_size=8
)


@settings(deadline=None)
@given(TURNS, st.integers(1, 2), st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(WIRES)))
def test_history_is_a_strict_prefix_and_media_stands_only_in_the_last_message(
    turns: list[tuple[str, Percept | ActionError | None]], videos: int, kind: str, wire: str
) -> None:
    notebook = book(kind, videos, wire=WIRES[wire])
    histories: list[tuple[Message, ...]] = []
    total = len(turns) + 1
    for number in range(1, total + 1):
        prompt = notebook.prompt(number, total)
        for history in histories:  # every earlier history opens this prompt, and is shorter
            assert prompt.messages[: len(history)] == history
            assert len(history) < len(prompt.messages)
        assert prompt.final == (number == total)
        for checked in (prompt, notebook.forced_prompt("why.")):
            assert [m.role for m in checked.messages] == ["system", "user"] + ["assistant", "user"] * (number - 1)
            assert not any(_has_media(message) for message in checked.messages[:-1])
            notice = checked.messages[-1].parts[-1]
            assert isinstance(notice, TextPart) and notice.text.startswith(NOTICES.get(wire, ("\n[NOTICE] ",)))
        assert not _has_media(notebook.forced_prompt("why.").messages[-1])
        if number > 1:
            latest = turns[number - 2][1]
            assert _has_media(prompt.messages[-1]) == isinstance(latest, Percept)
            # the text of the prompt also begins with the history: none of its messages was changed
            written = Prompt(notebook.history()).text
            assert prompt.text.startswith(written)
        if number < total:
            notebook.add(*turns[number - 1])
            histories.append(notebook.history())


def test_a_runaway_turn_is_cut_in_the_prompt() -> None:
    notebook = book()
    notebook.add("x" * 100_000, None)
    text = notebook.prompt(2, 3).messages[2].text
    assert len(text) < MAX_TURN_CHARS + 10 and text.endswith("[cut]")


def test_another_system_prompt_is_used_word_for_word(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Look {{ twice }}.\n", "utf-8")
    prompt = book(system_prompt=load_system_prompt(path)).prompt(1, 2)
    assert prompt.messages[0].text == "Look {{ twice }}.\n"
    assert (
        len(
            {
                prompt_hash("Look {{ twice }}."),
                prompt_hash(None),
                prompt_hash(None),
                prompt_hash(None, wire=OMNIAGENT),
                prompt_hash(None, wire=COMPACT),
                prompt_hash(None, wire=UNTIMED),
                prompt_hash(None, wire=NUMBERED),
            }
        )
        == 6
    )


def test_an_own_system_prompt_keeps_the_form_of_the_answer(tmp_path: Path) -> None:
    """It is said once: in a template that names it, or otherwise in the first user message."""
    form = answer_form(KINDS["grounding"])
    for wire in WIRES.values():
        prompt = book("grounding", system_prompt="Look, then answer.", wire=wire).prompt(1, 2)
        assert prompt.messages[0].text == "Look, then answer."
        assert prompt.text.count(form) == (0 if wire.tells_form else 1)
        own = {"omniagent": "When answering, set action.content to", "compact": "\nAnswer: spans"}
        assert own.get(wire.name, form) in prompt.messages[1].text
    path = tmp_path / "own.jinja"
    path.write_text(
        "{{ budget.frames_per_look }} frames of {{ videos }}. {{ answer_form }}{% if audio %} Listen.{% endif %}\n"
    )
    text = load_system_prompt(path)
    assert is_template(path)
    prompt = book("grounding", system_prompt=text, template=True).prompt(1, 2)
    assert prompt.messages[0].text == f"60 frames of 1. {form} Listen." and form not in prompt.messages[1].text
    path.write_text("{% if audio %}Listen.{% endif %}")
    prompt = book("grounding", system_prompt=load_system_prompt(path), template=True).prompt(1, 2)
    assert prompt.messages[0].text == "Listen." and prompt.messages[1].text.count(form) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [("{{ what }}", "'what' is undefined"), ("{% if %}", "line 1"), ("{{ ''.__class__.__mro__ }}", "unsafe")],
)
def test_a_template_that_cannot_be_rendered_is_refused_when_it_is_read(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        load_system_prompt(path)


def test_a_question_cannot_reach_the_template() -> None:
    hostile = Question(text="{{ 7 * 7 }}", kind="number", answer_hint="{% raw %}")  # type: ignore[arg-type]
    text = Notebook(hostile, [META], Budget()).prompt(1, 2).text
    assert "{{ 7 * 7 }}" in text and "{% raw %}" in text and "49" not in text
