"""Runs one model for many prompts: one thread prepares media, one runs the model.

A waiting prompt is read by itself; what a kept prompt shares with it is reused (see `cache.py`). Then its row joins the
batch that writes, one token for each row at a time. A row leaves when it is done. So reading never pads, every prompt
has its own positions and media, and rows that are written at the same time share the cost of reading the weights.
Batching and the cache can be used together.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_plugin.loop.policy import Generation, GenerationTimings, PolicyUnavailable, Prompt, Sampling, Usage
from apr_plugin.models.checkpoint import Checkpoint
from apr_plugin.models.positions import positions
from apr_plugin.models.prompt import Encoded, PromptEncoder
from apr_plugin.policies.hf.cache import PrefixStore, cache_of, joined, layers_of, rows_of
from apr_plugin.policies.hf.sample import Draws, choose

STOP_TOKENS = 32
"""How many of a turn's last tokens are searched, after each token, for a text that ends it."""


@dataclass
class _Job:
    prompt: Prompt | None
    draws: Draws
    future: Future[Generation] = field(default_factory=Future)
    encoded: Encoded | None = None
    asked: float = field(default_factory=time.perf_counter)
    began: float = 0.0
    first: float = 0.0
    cached: int = 0
    position: float = 0.0
    """Position of the next token, the same in all three dimensions."""
    weights: int = 0
    """The number of the weights that it was read with."""

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled in the meantime
            self.future.set_exception(error)


class Engine:
    """The model and its two threads.

    Args:
        checkpoint: The loaded checkpoint.
        encoder: The encoder for its prompts.
        batch_size: Rows that write at the same time.
        store: Kept prompts, or `None` to read every prompt from its first token.
        context_tokens: A turn is cut off (`length`) when prompt and answer reach it.
        repetition_penalty: See `Draws`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: PromptEncoder,
        *,
        batch_size: int,
        store: PrefixStore | None,
        context_tokens: int,
        repetition_penalty: float = 1.0,
    ) -> None:
        self.checkpoint = checkpoint
        self.encoder = encoder
        self.batch_size = batch_size
        self.store = store
        self.context_tokens = context_tokens
        self.repetition_penalty = repetition_penalty
        self._weights = 0
        """How often the weights changed; a turn that began with other weights is given up."""
        self._keeping = threading.Lock()
        """A lock that is held while kept prompts are used, and while they are dropped."""
        self._asked: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ready: queue.Queue[_Job | None] = queue.Queue(maxsize=max(2, batch_size))
        self._closed = False
        self._rows: list[_Job] = []
        self._lengths: list[int] = []
        self._cache: Any = None
        self._threads = [
            threading.Thread(target=work, name=f"apr-hf-{work.__name__}", daemon=True)
            for work in (self._prepare, self._run)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, prompt: Prompt, sampling: Sampling) -> Future[Generation]:
        """Ask for a turn; cancelling the future drops the prompt, also while it is being written.

        Raises:
            PolicyUnavailable: the engine is closed.
        """
        if self._closed:
            raise PolicyUnavailable("the model has been closed")
        job = _Job(prompt, Draws(sampling, self.repetition_penalty))
        self._asked.put(job)
        return job.future

    def weights_changed(self) -> None:
        """Forget what was computed with the old weights.

        Turns that are being written fail (`PolicyUnavailable`).
        """
        with self._keeping:
            self._weights += 1
            if self.store is not None:
                self.store.clear()

    def close(self) -> None:
        """Stop both threads; prompts that are still waiting fail."""
        if self._closed:
            return
        self._closed = True
        self._asked.put(None)
        for thread in self._threads:
            thread.join()
        if self.store is not None:
            self.store.clear()

    def _prepare(self) -> None:
        """Run the first thread, which turns text into tokens and pictures into patches.

        It waits while enough is ready, which bounds the memory of prepared media.
        """
        while (job := self._asked.get()) is not None:
            if self._closed:
                job.fail(PolicyUnavailable("the model has been closed"))
            elif not job.future.cancelled() and job.prompt is not None:
                try:
                    job.encoded = self.encoder.encode(job.prompt)
                    job.prompt = None
                except Exception as error:  # noqa: BLE001 - is passed to the caller
                    job.fail(error)
                else:
                    self._ready.put(job)
        self._ready.put(None)

    def _run(self) -> None:
        """Run the second thread, which runs the model."""
        import torch

        if self.checkpoint.model.device.type == "cuda":
            torch.cuda.set_device(self.checkpoint.model.device)  # each thread has its own
        closing = False
        with self.checkpoint.without_gradients():
            while True:
                while not closing and len(self._rows) < self.batch_size:
                    try:
                        job = self._ready.get(block=not self._rows)
                    except queue.Empty:
                        break
                    if job is None:
                        closing = True
                    elif self._closed:
                        job.fail(PolicyUnavailable("the model has been closed"))
                    elif not job.future.cancelled():
                        self._guarded(job)
                if self._closed:
                    self._fail_rows(PolicyUnavailable("the model has been closed"))
                if closing:
                    return
                if self._rows:
                    self._write_guarded()

    def _guarded(self, job: _Job) -> None:
        """Read one prompt; a failure affects only that prompt."""
        import torch

        try:
            self._read(job)
            return
        except torch.OutOfMemoryError:
            if self.store is not None:
                self.store.clear()
        except Exception as error:  # noqa: BLE001 - is passed to the caller
            job.fail(error)
            return
        torch.cuda.empty_cache()
        try:
            self._read(job)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            job.fail(
                PolicyUnavailable(
                    "out of GPU memory while reading a prompt: lower batch_size, kv_cache_gb, frame_pixels or "
                    "frames_per_look"
                )
            )
        except Exception as error:  # noqa: BLE001 - is passed to the caller
            job.fail(error)

    def _write_guarded(self) -> None:
        import torch

        try:
            self._write()
        except Exception as error:  # noqa: BLE001 - is passed to the caller
            short = isinstance(error, torch.OutOfMemoryError)
            self._fail_rows(
                PolicyUnavailable("out of GPU memory while writing: lower batch_size or kv_cache_gb")
                if short
                else error
            )
            torch.cuda.empty_cache()

    def _fail_rows(self, error: Exception) -> None:
        for job in self._rows:
            job.fail(error)
        self._rows = []
        self._lengths = []
        self._cache = None

    def _read(self, job: _Job) -> None:
        """Compute the prompt's keys and values and its first token, then add it to the batch."""
        encoded = job.encoded
        assert encoded is not None
        job.began = time.perf_counter()
        n = len(encoded.ids)
        if n >= self.context_tokens:
            self._done(job, "length")
            return
        places = positions(encoded, self.checkpoint.family)
        with self._keeping:
            job.weights = self._weights
            known, layers = self.store.longest(encoded.keys, places) if self.store is not None else (0, [])
        cache = cache_of(layers, self.checkpoint.cache_config)
        job.cached = known
        job.position = float(places.max()) + 1
        # In the next prompt, media after turns is text, so only what comes before it is used again; a first prompt may
        # be used again as a whole.
        keep = encoded.media[0].start if encoded.turns and encoded.media else n
        # States can't be cut back: stop where the next prompt still begins in the same way.
        if self.store is not None and self.store.whole:
            keep = encoded.history
            if known < keep:
                self._go_through(encoded, places, known, keep, cache)
                self._keep(job, keep, places, cache)
                known = keep
        logits = self._go_through(encoded, places, known, n, cache)
        if self.store is not None and not self.store.whole:
            self._keep(job, keep, places, cache)
        if job.draws.repetition_penalty != 1.0:
            job.draws.prompt = self.checkpoint.tensor(encoded.ids)
        choose(logits, [job.draws], self.encoder.never_written)
        job.first = time.perf_counter()
        for medium in encoded.media:
            medium.pixels = medium.mel = None
        if not self._finished(job):
            self._join(job, cache, n)

    def _keep(self, job: _Job, length: int, places: NDArray[Any], cache: Any) -> None:
        """Keep the beginning of a prompt for the next one, unless the weights changed in the meantime."""
        assert job.encoded is not None and self.store is not None
        with self._keeping:
            if job.weights == self._weights:
                self.store.keep(job.encoded.keys[:length], places[:, :length], layers_of(cache))

    def _go_through(self, encoded: Encoded, places: NDArray[Any], first: int, end: int, cache: Any) -> Any:
        """Read a part of a prompt, add it to the cache, and return the logits of its last token."""
        media = [medium for medium in encoded.media if first <= medium.start < end]
        return self.checkpoint.forward(encoded.ids[None, first:end], places[:, None, first:end], cache, media=media)

    def _write(self) -> None:
        """Write one more token for each row."""
        tokens = np.array([[job.draws.tokens[-1]] for job in self._rows])
        places = np.array([job.position + len(job.draws.tokens) - 1 for job in self._rows], np.float32)
        longest = max(self._lengths)
        mask = None
        if min(self._lengths) < longest:
            mask = np.arange(longest + 1)[None] >= longest - np.array(self._lengths)[:, None]
        logits = self.checkpoint.forward(tokens, np.tile(places[:, None], (3, 1, 1)), self._cache, mask=mask)
        self._lengths = [length + 1 for length in self._lengths]
        choose(logits, [job.draws for job in self._rows], self.encoder.never_written)
        self._leave([number for number, job in enumerate(self._rows) if job.future.cancelled() or self._finished(job)])

    def _join(self, job: _Job, cache: Any, length: int) -> None:
        """Put a row into the batch; shorter rows are padded on the left."""
        if self._rows:
            both = joined(layers_of(self._cache), layers_of(cache), max([length, *self._lengths]))
            cache = cache_of(both, self.checkpoint.cache_config)
        self._cache = cache
        self._rows.append(job)
        self._lengths.append(length)

    def _leave(self, gone: list[int]) -> None:
        """Take rows out of the batch, and the padding that only they needed."""
        if not gone:
            return
        stay = [number for number in range(len(self._rows)) if number not in gone]
        self._rows = [self._rows[n] for n in stay]
        self._lengths = [self._lengths[n] for n in stay]
        if stay:
            left = rows_of(layers_of(self._cache), stay, max(self._lengths))
            self._cache = cache_of(left, self.checkpoint.cache_config)
        else:
            self._cache = None

    def _finished(self, job: _Job) -> bool:
        """Whether the row is done; if so, its turn has been returned."""
        assert job.encoded is not None
        draws = job.draws
        if job.weights != self._weights:
            job.fail(PolicyUnavailable("the model's weights changed while the turn was written"))
        elif draws.broken:
            job.fail(
                PolicyUnavailable(
                    f"the model's output is not finite in {self.checkpoint.dtype_name}; dtype=bfloat16 or "
                    "float32 may help"
                )
            )
        elif draws.tokens[-1] in self.checkpoint.eos or self._stopped(draws):
            self._done(job, "stop")
        elif (
            len(draws.tokens) >= draws.sampling.max_new_tokens
            or len(job.encoded.ids) + len(draws.tokens) >= self.context_tokens
        ):
            self._done(job, "length")
        else:
            return False
        return True

    def _stopped(self, draws: Draws) -> bool:
        stops = draws.sampling.stop
        return bool(stops) and _first_of(stops, self._text(draws.tokens[-STOP_TOKENS:])) is not None

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.encoder.tokenizer.decode(tokens, skip_special_tokens=True))

    def _done(self, job: _Job, reason: str) -> None:
        assert job.encoded is not None
        size, draws, now = job.encoded.size, job.draws, time.perf_counter()
        first = job.first or now
        text = self._text(draws.tokens)
        generation = Generation(
            job.encoded.opened + text[: _first_of(draws.sampling.stop, text)],
            Usage(size.total, job.cached, len(draws.tokens), size.visual, size.audio),
            reason,
            token_ids=tuple(draws.tokens),
            logprobs=tuple(draws.logprobs),
            logprobs_of="scaled" if draws.sampling.temperature > 0 else "raw",
            prompt_token_ids=tuple(job.encoded.ids.tolist()),
            entropies=tuple(draws.entropies),
            timings=GenerationTimings(job.began - job.asked, first - job.began, now - first),
        )
        with contextlib.suppress(InvalidStateError):  # cancelled in the meantime
            job.future.set_result(generation)


def _first_of(stops: Sequence[str], text: str) -> int | None:
    """Where the first of these texts begins, or `None` if none is there."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
