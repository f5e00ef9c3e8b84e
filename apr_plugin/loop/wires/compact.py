"""`CompactWire`: the form for small models that are trained on it, with as few tokens as possible.

Shown frames have short names (`#1`, `#2`, …), and the model names them in place of times (`loop.references`), so that
it never has to copy digits. The texts around a frame, a look, a turn are few and always the same (`fixed_strings`): as
added tokens of a tokenizer, each of them is one token. Numbers have one decimal and six characters.

A turn has the four keys of every other wire, so there is one parser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence

from apr_plugin.loop.feedback import ActionError
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.question import Question, QuestionKind
from apr_plugin.loop.trajectory import Turn
from apr_plugin.loop.wires.apr import VideoMeta, Wire, arguments

INSTRUCTIONS = (
    "You answer a question about a video that you cannot see all at once. Each turn is one JSON object: observation, "
    "think, confidence, action.{% if references %} #4 is frame 4 of the newest look, #2.4 frame 4 of look 2.{% endif %}"
)
"""The default instructions: what a small model, which learned the rest in training, is reminded of."""

_GONE = " gone"
_FORMS = {
    QuestionKind.MCQ: "option",
    QuestionKind.GROUNDING: "spans",
    QuestionKind.NUMBER: "number",
    QuestionKind.FREE_FORM: "text",
}
_ANSWER_NOW = "\nAnswer now"


class CompactWire(Wire):
    """Short, fixed strings; frames have names."""

    name = "compact"
    references = True
    tells_form = True
    edge_s = 0.1
    instructions = INSTRUCTIONS
    noted = "noted"
    heading_end = ""

    def opening(self, question: Question, videos: Sequence[VideoMeta], modalities: Collection[str]) -> str:
        """Start and end of each video, whether it has sound, the question, and one word on the answer's form."""
        lines = []
        for n, video in enumerate(videos):
            which = "Video" if len(videos) == 1 else f"Video {n}:"
            heard = " sound" if video.has_audio and "audio" in modalities else ""
            edges = [number(0.0), number(math.floor(video.duration_s * 10) / 10)]
            if self.references:
                edges = [f"#0.{n} {edge}" for n, edge in enumerate(edges, 1)]
            lines.append(f"{which} {' '.join(edges)}{heard}")
        lines.append(f"Question: {question.text}")
        if question.options:
            lines.append("Options:")
            lines += [f"{option.label}. {option.text}" for option in question.options]
        hint = f" ({question.answer_hint})" if question.answer_hint.strip() else ""
        return "\n".join([*lines, f"Answer: {_FORMS[question.kind]}{hint}"])

    def notice(self, turn: int, turns: int) -> str:
        """How many turns are left after this one."""
        left = turns - turn
        return _ANSWER_NOW if left <= 0 else f"\n{left} left"

    def forced_notice(self, reason: str) -> str:
        """The same as on the last turn; the model can't change the reason."""
        return _ANSWER_NOW

    def left_out(self, which: str) -> str:
        """The same words without a sentence around them."""
        return f"\n{which}{_GONE}"

    def error(self, error: ActionError) -> str:
        """The code and the sentence that names the given value and the limit."""
        return f"[ERROR] {error.code}: {error.message}"

    def placeholder(self, percept: Percept) -> str:
        """The window, and the names of its frames or their number."""
        if percept.kind != "frames" or percept.untimed:
            return f"{self.heading(percept)}{_GONE}"
        count = len(self.times(percept))
        shown = ("#1" + (f"-#{count}" if count > 1 else "")) if self.references else f"x{count}"
        return f"{self.heading(percept)} {shown}{_GONE}"

    def heading(self, percept: Percept) -> str:
        """`Look 2 frames    0.0   60.0`; the edges of a sound or a clip have names."""
        look = f"Look {percept.look} " if self.references and percept.look else ""
        video = f"video {percept.video} " if percept.several else ""
        if percept.untimed:
            return f"{look}{video}{percept.kind} in no order"
        edges = [number(percept.start_s), number(percept.end_s)]
        if look and percept.kind != "frames":
            edges = [f"#{percept.look}.{n} {edge}" for n, edge in enumerate(edges, 1)]
        return f"{look}{video}{percept.kind} {' '.join(edges)}"

    def _label(self, number: int, time_s: float) -> str:
        return self._stamp(number, time_s)

    def _stamp(self, number_: int, time_s: float) -> str:
        name, time = f"#{number_}" if self.references else "", number(time_s) if self.frame_times else ""
        return " ".join(part for part in (name, time) if part)

    def written(self, turn: Turn, several: bool = False) -> str:
        """Like the default, with numbers in the fixed form."""
        assert turn.action is not None and turn.confidence is not None
        words = [json.dumps(text, ensure_ascii=False) for text in (turn.observation, turn.think)]
        given = arguments(turn, several)
        action = ", ".join(
            f'"{key}": {number(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)}'
            for key, value in given.items()
        )
        return (
            f'{{"observation": {words[0]}, "think": {words[1]}, "confidence": {turn.confidence:.2f}, '
            f'"action": {{{action}}}}}'
        )


def number(value: float) -> str:
    """Seconds in the fixed form: one decimal, at least six characters, which JSON accepts too."""
    return f"{value:6.1f}"


def fixed_strings(most_frames: int, most_looks: int = 0) -> tuple[str, ...]:
    """The strings of this wire that are always the same, longest first: candidates for added tokens of a tokenizer.

    Args:
        most_frames: Names of frames (`#1`, …) up to this number.
        most_looks: Names with the look (`#1.1`, …) up to this one.
    """
    found = {
        INSTRUCTIONS.partition("{%")[0],
        "#0.1",
        "#0.2",
        *(f"#{n}" for n in range(1, most_frames + 1)),
        *(f"#{look}.{n}" for look in range(1, most_looks + 1) for n in range(1, most_frames + 1)),
        *(f"\nAnswer: {form}" for form in _FORMS.values()),
        '{"observation": "', '", "think": "', '", "confidence": ', ', "action": {"type": "get_frames", "start": ',
        ', "action": {"type": "get_audio", "start": ', ', "action": {"type": "get_clip", "start": ', ', "end": ',
        ', "num": ', ', "action": {"type": "answer", "content": "', '"}}', "}}", "Video", "\nQuestion: ", "\nOptions:",
        "Look ", " frames ", " audio ", " clip ", " sound", " left", _ANSWER_NOW, _GONE, "[ERROR] ",
    }  # fmt: skip
    return tuple(sorted(found, key=lambda text: (-len(text), text)))
