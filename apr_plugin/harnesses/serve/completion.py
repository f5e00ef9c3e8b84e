"""A trajectory becomes a completion: the answer, why it ended, its tokens, and the stored episode on request.

A question that was not answered is never an answer that looks like one. If a limit of the episode was reached without
an answer, the content is `(null)` (`apr_plugin.scoring.text.NO_ANSWER`) and `finish_reason` is `length`. If the
question could not be asked, it is an error (`fault_of`); with `--unanswered null` it is `(null)` with the finish reason
`error`, for harnesses that would score the words of an error.
"""

from __future__ import annotations

import json
from typing import Any

from apr_plugin.harnesses.replies import reply_of
from apr_plugin.harnesses.serve.question import Asked
from apr_plugin.harnesses.serve.refused import Refused
from apr_plugin.harnesses.serve.uploads import Received
from apr_plugin.loop.action import describe
from apr_plugin.loop.describing import describe_shown
from apr_plugin.loop.events import Event, Opened, Thought, TurnEnded
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.runs.meter import audio_s, tokens_spent
from apr_plugin.terminal import one_line


def fault_of(trajectory: Trajectory, received: Received) -> Refused | None:
    """The error of a question that was not answered for a reason outside the policy's turns, if there is one."""
    about = {"id": trajectory.question.doc_id, "stop_reason": str(trajectory.stop_reason)}
    match trajectory.stop_reason:
        case StopReason.MEDIA_UNREADABLE:
            told = one_line(received.told(trajectory.stop_detail), 600)
            return Refused(400, told, "media_unreadable", param="messages", about=about)
        case StopReason.POLICY_UNAVAILABLE:
            told = "the policy can't answer now; the server's log and the stored trajectory say why"
            return Refused(503, told, "policy_unavailable", retry_after_s=5, about=about)
        case StopReason.WALL_CLOCK:
            told = f"{trajectory.stop_detail}; its {len(trajectory.turns)} turns are stored"
            return Refused(504, told, "time_limit", about=about)
        case StopReason.CANCELLED:
            return Refused(503, "the episode was stopped; it is stored", "stopping", retry_after_s=5, about=about)
        case StopReason.ERROR:
            told = "the question could not be answered; the server's log and the stored trajectory say why"
            return Refused(500, told, "internal_error", about=about)
    return None


def finish_reason(trajectory: Trajectory) -> str:
    """`stop` with an answer, `length` if a limit was reached without one, `error` if it could not be asked."""
    if trajectory.stop_reason in (StopReason.ANSWERED, StopReason.FORCED):
        return "stop"
    return "length" if trajectory.stop_reason in (StopReason.TURNS, StopReason.TOKENS) else "error"


def content_of(asked: Asked, trajectory: Trajectory, *, strict: bool) -> str:
    """The answer in the form that the request asks for, or `NO_ANSWER`."""
    return reply_of(trajectory, asked.write, strict=strict)


def usage_of(trajectory: Trajectory) -> dict[str, Any] | None:
    """The tokens of the whole episode; `None` if the policy counts none.

    Each turn's whole prompt counts, as it would be billed.
    """
    spent = tokens_spent(trajectory)
    if spent is None:
        return None
    usage: dict[str, Any] = {
        "prompt_tokens": spent.prompt,
        "completion_tokens": spent.completion,
        "total_tokens": spent.prompt + spent.completion,
    }
    details = {
        name: sum(counts)
        for name in ("cached_tokens", "visual_tokens", "audio_tokens")
        if (counts := [n for turn in trajectory.turns if (n := getattr(turn.usage, name)) is not None])
    }
    return usage | ({"prompt_tokens_details": details} if details else {})


def about(trajectory: Trajectory, received: Received, *, whole: bool, ignored: list[str]) -> dict[str, Any]:
    """The extra field `apr`: how the episode ended and what it cost, and the trajectory if it was asked for."""
    told: dict[str, Any] = {
        "stop_reason": str(trajectory.stop_reason),
        "stop_detail": received.told(trajectory.stop_detail),
        "answer": trajectory.answer,
        "answer_valid": trajectory.answer_valid,
        "kind": str(trajectory.question.kind),
        "arm": trajectory.arm,
        "turns": len(trajectory.turns),
        "frames": trajectory.frames,
        "audio_s": round(audio_s(trajectory), 3),
        "visual_tokens": trajectory.visual_tokens,
        "seconds": trajectory.timings.total_s,
        "turn_tokens": [[turn.usage.prompt_tokens, turn.usage.completion_tokens] for turn in trajectory.turns],
        "config_hash": trajectory.config_hash,
        "ignored": ignored,
    }
    if trajectory.stop_reason in (StopReason.POLICY_UNAVAILABLE, StopReason.ERROR):
        told["stop_detail"] = ""  # it may name addresses and paths of this server
    if whole:
        told["trajectory"] = json.loads(received.told(trajectory.without_token_values().to_json()))
    return told


def reasoning(event: Event, thought: int) -> str:
    """What the response says of an event in words; empty if nothing.

    Args:
        event: The event.
        thought: Number of the turn whose thought was told last. What its look showed is then told alone; every other
            turn comes with its thought.
    """
    match event:
        case Thought(number=number, parsed=parsed) if parsed.action is not None:
            return _lines(f"Turn {number}.", parsed.observation, parsed.think, f"→ {describe(parsed.action)}")
        case TurnEnded(number=number, turn=turn):
            shown = f"shown: {describe_shown(turn.shown)}" if turn.shown is not None else ""
            outcome = f"{turn.error.code}: {turn.error.message}" if turn.error is not None else ""
            if number == thought:
                return _lines(shown, outcome)
            return _lines(f"Turn {number}.", turn.observation, turn.think, shown, outcome)
    return ""


def _lines(*parts: str) -> str:
    return "".join(f"{part}\n" for part in parts if part)


def told_event(event: Event) -> dict[str, Any]:
    """An event as JSON, for the field `apr` of a chunk."""
    match event:
        case Opened(films=films):
            return {
                "event": "opened",
                "videos": [{"duration_s": f.duration_s, "fps": f.fps, "has_audio": f.has_audio} for f in films],
            }
        case Thought(number=number, parsed=parsed):
            return {
                "event": "thought",
                "turn": number,
                "observation": parsed.observation,
                "think": parsed.think,
                "confidence": parsed.confidence,
                "action": None if parsed.action is None else parsed.action.model_dump(mode="json"),
            }
        case TurnEnded(number=number, turn=turn):
            kept = {"token_ids", "logprobs", "logprobs_of", "entropies", "entropy_top_k", "timings"}
            return {"event": "turn", "turn": number, "record": turn.model_dump(mode="json", exclude=kept)}


class Completion:
    """Writes the responses to one request.

    Args:
        model: The model's name.
        name: The id of the response, which is the stored question's doc id.
        created: When the request came, in seconds since 1970.
        fingerprint: The hash of the configuration.
    """

    def __init__(self, model: str, name: str, created: int, fingerprint: str) -> None:
        self._head = {"id": name, "created": created, "model": model, "system_fingerprint": f"apr_{fingerprint}"}

    def whole(self, trajectory: Trajectory, content: str, told: dict[str, Any], thoughts: str) -> dict[str, Any]:
        """The response without streaming."""
        message = {"role": "assistant", "content": content, "reasoning_content": thoughts, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(trajectory)}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_of(trajectory),
            "apr": told,
        }

    def chunk(
        self,
        delta: dict[str, Any] | None,
        *,
        finish: str | None = None,
        usage: dict[str, Any] | None = None,
        told: dict[str, Any] | None = None,
    ) -> bytes:
        """One line of a stream; without a `delta` it has no choice (the last one, with the usage)."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        body = {**self._head, "object": "chat.completion.chunk", "choices": [] if delta is None else [choice]}
        body |= {"usage": usage} if delta is None else {}
        return data_line(body if told is None else body | {"apr": told})


def data_line(value: object) -> bytes:
    """A value as an event of a stream."""
    return f"data: {json.dumps(value, ensure_ascii=True, separators=(',', ':'), allow_nan=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
"""The end of a stream."""
