"""`ServedPolicy`: turns of an external vLLM server whose weights follow those of a trainer.

It differs from `policy=openai` in what training needs: media without loss, sampling from the whole distribution
whatever the checkpoint's generation settings say, no tokens of media, the server's own token ids, and a prompt that is
the student's token for token.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from apr_plugin.loop.policy import Generation, Modality, PolicyUnavailable, Prompt, PromptSize, Sampling, Usage
from apr_plugin.models.prompt import Encoded
from apr_plugin.policies.openai.reply import BadReply, read_reply
from apr_plugin.policies.openai.servers import Servers
from apr_plugin.training.grpo.served.media import request_of, without_clip_sound
from apr_plugin.training.student import Student

NEVER = -100.0
"""The bias of tokens that are never written: the lowest that the protocol allows, a factor of exp(-100)."""

REPLY_BYTES = 256 * 1024 * 1024
"""Longest reply."""


class ServedPolicy:
    """Asks one vLLM server for turns.

    Args:
        student: Reads prompts as the trainer does.
        url: The address of the server's API, ending in `/v1`.
        model: Its name of the model.
        key: Sent with every request, if there is one.
        concurrency: Requests in flight.
        timeout_s: Most seconds of one attempt.
        retries: Attempts after the first.
    """

    name = "vllm_server"

    def __init__(
        self,
        student: Student,
        url: str,
        model: str,
        *,
        key: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 600.0,
        retries: int = 3,
    ) -> None:
        self.student = student
        self.model = model
        self.modalities: frozenset[Modality] = student.family.modalities
        self.context_tokens: int | None = student.context_tokens
        self.prompts = 0
        """Prompts that the server has read since the weights changed."""
        self.mismatches: list[str] = []
        """How the server's tokens of prompts differed from the student's, a line for each, since the weights
        changed."""
        self._weights: str | None = None
        self._bias = {str(token): NEVER for token in student.encoder.never_written}
        self._servers = Servers(
            [url],
            key,
            timeout_s=timeout_s,
            retries=retries,
            max_connections=concurrency,
            reply_bytes=REPLY_BYTES,
        )

    def weights_changed(self, weights: str | None = None) -> None:
        """Report that the server has other weights now, see `HfPolicy.weights_changed`."""
        self._weights = weights
        self.prompts = 0
        self.mismatches = []

    async def count(self, prompt: Prompt) -> PromptSize | None:
        """The number of tokens of the prompt, as the student reads it; `generate` compares."""
        return await asyncio.to_thread(self.student.encoder.count, without_clip_sound(prompt))

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Generation:
        """Write the next turn.

        Raises:
            PolicyUnavailable: the server can't be reached or refuses; or it reads the prompt as other tokens than the
                student, which is noted in `mismatches`.
            ValueError: the prompt has a medium that the model can't take.
        """
        prompt = without_clip_sound(prompt)
        laid, body = await asyncio.to_thread(self._request, prompt, sampling)
        episode = prompt.asked.episode if prompt.asked is not None else None

        def read(waited: float, data: Any) -> Generation:
            said = read_reply(
                data, top_logprobs=0, temperature=sampling.temperature, queue_s=waited, logprobs_of="scaled"
            )
            if said.token_ids is None or said.prompt_token_ids is None or said.logprobs is None:
                raise BadReply("the reply has no token ids or log-probabilities; the server must be vLLM 0.32 or later")
            return said

        said = await self._servers.ask("/chat/completions", body, read, episode)
        self._compare(prompt, laid, said.prompt_token_ids or ())
        size = laid.size
        usage = replace(said.usage, visual_tokens=size.visual, audio_tokens=size.audio)
        return replace(said, text=laid.opened + self.student.text(said.token_ids or ()), usage=_whole(usage, said))

    def describe(self) -> dict[str, Any]:
        """The settings that decide the answers; the server's address is left out."""
        return {
            "engine": "vllm server",
            "pretrained": self.student.name,
            "weights": self._weights,
            "student": self.student.digest,
            "context_tokens": self.context_tokens,
        }

    def close(self) -> None:
        """Close the connections."""
        self._servers.close()

    def _request(self, prompt: Prompt, sampling: Sampling) -> tuple[Encoded, dict[str, Any]]:
        student = self.student
        laid = student.encoder.lay_out(prompt)
        limit = min(sampling.max_new_tokens, student.context_tokens - laid.size.total)
        if limit < 1:
            raise PolicyUnavailable(
                f"a prompt of {laid.size.total} tokens leaves no room in the context of {student.context_tokens}"
            )
        body = request_of(prompt, student.encoder)
        body |= {"model": self.model, "max_tokens": limit, "seed": sampling.seed, "temperature": sampling.temperature}
        # vLLM's own defaults are the checkpoint's generation settings.
        body |= {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        body |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        body |= {"logit_bias": self._bias, "stop_token_ids": sorted(student.ends)}
        body |= {"logprobs": True, "top_logprobs": 0, "return_token_ids": True}
        if student.template:
            body["chat_template_kwargs"] = student.template
        return laid, body

    def _compare(self, prompt: Prompt, laid: Encoded, theirs: tuple[int, ...]) -> None:
        self.prompts += 1
        ours = laid.ids.tolist()
        if list(theirs) == ours:
            return
        at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        at = min(len(ours), len(theirs)) if at is None else at
        kinds = sorted({type(part).__name__ for message in prompt.messages for part in message.parts} - {"TextPart"})
        where = "" if prompt.asked is None else f"turn {prompt.asked.turn} of {prompt.asked.question.doc_id}: "
        words = (
            f"{where}the server reads the prompt ({', '.join(kinds) or 'text'}) as {len(theirs)} tokens and the "
            f"student as {len(ours)}; they differ from token {at} on: {self._shown(theirs, at)} against "
            f"{self._shown(ours, at)}"
        )
        self.mismatches.append(words)
        raise PolicyUnavailable(words)

    def _shown(self, ids: Any, at: int) -> str:
        return repr(self.student.tokenizer.decode(list(ids[at : at + 8])))


def _whole(usage: Usage, said: Generation) -> Usage:
    """The usage with the counts that the tokens themselves give."""
    return replace(usage, prompt_tokens=len(said.prompt_token_ids or ()), completion_tokens=len(said.token_ids or ()))
