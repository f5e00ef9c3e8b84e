"""lmms-eval's model `apr`: it turns requests into episodes, and answers into the form that each task scores.

    lmms-eval --model apr --model_args policy=needle,max_turns=32,concurrency=4 --tasks videomme --batch_size 1

Scoring is lmms-eval's own. The trajectories are saved in addition to its results (`trajectories=DIR`, default
`apr_runs`), one line for each finished question; a killed run continues from them.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.models.model_utils.usage_metrics import is_budget_exceeded, log_usage
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from tqdm import tqdm

from apr_plugin import interrupt
from apr_plugin.errors import AprError
from apr_plugin.harnesses.lmms_eval.command import check_evaluation, name_run
from apr_plugin.harnesses.lmms_eval.ending import FAILURES, end_with, sum_up, under_its_command_line, watch
from apr_plugin.harnesses.lmms_eval.evidence import evidence_of, truths_of
from apr_plugin.harnesses.media import media_ref, nothing, picture
from apr_plugin.harnesses.readers import Reading, read
from apr_plugin.harnesses.replies import reply_of
from apr_plugin.loop.card import Card
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.episode import ReadPictures
from apr_plugin.loop.policy import ImagePart
from apr_plugin.loop.question import MediaRef, Question, QuestionKind
from apr_plugin.loop.trajectory import Trajectory
from apr_plugin.media.confine import Roots
from apr_plugin.runs.arguments import check_once
from apr_plugin.runs.meter import Metered, Progress, per_question, run_sync, tokens_spent
from apr_plugin.runs.runner import run_episodes
from apr_plugin.runs.settings import read_settings
from apr_plugin.runs.store import TrajectoryStore
from apr_plugin.runs.truths import write_truths
from apr_plugin.scoring.text import NO_ANSWER
from apr_plugin.terminal import guard_logs, one_line


class ActivePerception(lmms):  # type: ignore[misc]
    """The `apr` model; its arguments are in `docs/lmms-eval.md`."""

    is_simple = False

    def __init__(
        self,
        batch_size: int | str | None = None,
        device: str | None = None,
        max_batch_size: int | None = None,
        policy_args: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        watch()
        self.device = device or "cpu"
        self.batch_size_per_gpu = (
            1  # lmms-eval's own batching is not used: `concurrency` says how many episodes run at once
        )
        if under_its_command_line():
            guard_logs()
        try:
            check_evaluation()
            self.settings = read_settings({**arguments, **(policy_args or {})})
        except AprError as error:
            end_with(error, status=2)
        self._tasks: set[str] = set()

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> ActivePerception:
        """Create the model as lmms-eval does, but pass `batch_size` and `device` in model_args to the policy.

        lmms-eval's `--batch_size` and `--device` have the same names as a policy's arguments.
        """
        try:
            check_once(arg_string)
        except AprError as error:
            end_with(error, status=2)
        own = simple_parse_args_string(arg_string)
        flags = {key: value for key, value in (additional_config or {}).items() if value is not None}
        policy_args = {key: own.pop(key) for key in ("batch_size", "device") if key in own}
        return cls(**own, **flags, policy_args=policy_args)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request; the list has the order and length of the requests."""
        _keep_out_of_cache(requests)
        jobs = _jobs(requests, self.task_dict, self.settings.config.media.root)
        settings, asked = self.settings, [job for job in jobs if job is not None]
        questions = [job.question for job in asked]
        truths = truths_of(questions, self.task_dict)
        try:
            evidence = evidence_of(questions, truths) if settings.config.arm == "oracle" else None
        except AprError as error:
            end_with(error, status=2)
        self._tasks |= {job.question.task for job in asked}
        config_hash = settings.config.hash(settings.policy)
        policy = Metered(settings.policy, _used_up)
        began = time.perf_counter()
        progress = Progress(
            tqdm(total=len(asked), desc="apr", unit="question", disable=self.rank != 0, dynamic_ncols=True)
        )

        def done(trajectory: Trajectory, resumed: bool) -> None:
            progress.done(trajectory, resumed)
            # Now, not at the end: `--max_tokens` stops a run when this count reaches it.
            if not resumed and (spent := _tokens(trajectory)) is not None:
                log_usage(
                    settings.policy.name,
                    trajectory.question.task,
                    input_tokens=spent.input_tokens,
                    output_tokens=spent.output_tokens,
                )

        store = TrajectoryStore(
            settings.trajectories,
            config_hash,
            Card.of(settings.config, settings.policy),
            rank=self.rank,
            world_size=self.world_size,
            resume=settings.resume,
        )
        self._store = store
        name_run(config_hash, store.folder)
        reading = Decoding(settings.decode_threads, settings.decoded_bytes)
        try:
            # The bar ends before a message is printed, otherwise the message would be on its line.
            with (
                contextlib.closing(progress),
                store,
            ):
                write_truths(store.folder, truths)
                trajectories = run_sync(
                    run_episodes(
                        questions,
                        policy,
                        settings.config,
                        settings.concurrency,
                        store=store,
                        pictures={job.question.key: job.pictures for job in asked if job.pictures is not None},
                        evidence=evidence,
                        on_done=done,
                        decoding=reading,
                    )
                )
        except AprError as error:
            end_with(error)
        except KeyboardInterrupt:
            told = (
                f"stopped after {progress.finished} of {len(asked)} questions, which are saved; the same command "
                "continues there"
            )
            end_with(AprError(told), status=130)
        finally:
            reading.close()
        self._report(trajectories, time.perf_counter() - began)
        answered, strict = iter(trajectories), settings.config.parsing == "strict"
        return [GenerationResult(NO_ANSWER) if job is None else _result(job, next(answered), strict) for job in jobs]

    def clean(self) -> None:
        """Release what the policy holds, merge the trajectories of the ranks that have ended, and sum up.

        lmms-eval calls this after the last request of this rank.
        """
        super().clean()
        interrupt.check()
        self.settings.policy.close()
        if hasattr(self, "_store"):
            try:
                # Every rank does this: the one that ends last merges all, whether or not lmms-eval waits.
                self._store.merge(self._tasks)
            except AprError as error:
                end_with(error)
        sum_up()

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Refuse: an agent has no likelihood of a given answer."""
        end_with(AprError("model apr answers generate_until tasks; this task asks for loglikelihood"), status=2)

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        """Refuse: a loop that the model drives can't run rounds that the task drives."""
        end_with(
            AprError("model apr answers generate_until tasks; this task asks for generate_until_multi_round"), status=2
        )

    def _report(self, trajectories: Sequence[Trajectory], seconds: float) -> None:
        n = len(trajectories)
        if not n:
            return
        tokens = sum(turn.usage.completion_tokens or 0 for t in trajectories for turn in t.turns)
        stops = Counter(t.stop_reason for t in trajectories)
        metrics: dict[str, float] = {"total_requests": n} | per_question(trajectories)
        metrics |= {f"stop_{reason}": count for reason, count in sorted(stops.items())}
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=tokens,
            avg_speed=tokens / max(seconds, 1e-9),
            additional_metrics=metrics,
        )
        logger.info(
            "apr: {}; trajectories in {}",
            ", ".join(f"{reason} {count}" for reason, count in stops.most_common()),
            self._store.folder,
        )
        failed = [
            one_line(f"{t.question.task} doc {t.question.doc_id}: {t.stop_reason}: {t.stop_detail}", 600)
            for t in trajectories
            if t.stop_reason.failed
        ]
        FAILURES.extend(failed)
        for line in failed[:5]:
            logger.error("apr: {}", line)
        if failed:
            logger.error(
                "apr: {} of {} questions were NOT answered and count as wrong; the same command asks only those again",
                len(failed),
                n,
            )


class _Job:
    """A request that is being answered."""

    def __init__(self, question: Question, reading: Reading, pictures: ReadPictures | None) -> None:
        self.question = question
        self.reading = reading
        self.pictures = pictures


def _jobs(requests: Sequence[Instance], task_dict: Any, media_root: Roots) -> list[_Job | None]:
    """A job for each request; `None` for the clones that pad the ranks to equal length."""
    seen: Counter[tuple[str, str, str]] = Counter()
    jobs: list[_Job | None] = []
    for request in requests:
        interrupt.check()
        if (request.metadata or {}).get("__padding_only__"):
            jobs.append(None)
            continue
        _, _, _, doc_id, task, split = request.args
        key = (task, split, str(doc_id))
        try:
            jobs.append(_job(request, task_dict[task][split], seen[key], media_root))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a row comes from others and can raise anything
            reading = Reading(text="(this question can't be read)", kind=QuestionKind.FREE_FORM)
            question = Question(
                text=reading.text,
                kind=reading.kind,
                videos=(nothing("question", error),),
                task=task,
                split=split,
                doc_id=key[2],
                repeat=seen[key],
            )
            jobs.append(_Job(question, reading, None))
        seen[key] += 1
    return jobs


def _job(request: Instance, docs: Any, repeat: int, media_root: Roots) -> _Job:
    context, doc_to_messages, _, doc_id, task, split = request.args
    prompt, videos, pictures = _messages(str(context), doc_to_messages, docs, doc_id, media_root)
    name, reading = read(task, docs[doc_id], prompt)
    question = Question(
        text=reading.text,
        kind=reading.kind,
        options=reading.options,
        answer_hint=reading.answer_hint,
        videos=videos,
        task=task,
        split=split,
        doc_id=str(doc_id),
        repeat=repeat,
        reader=name,
    )
    return _Job(question, reading, pictures)


def _keep_out_of_cache(requests: Sequence[Instance]) -> None:
    """Keep lmms-eval's `--use_cache` from storing these answers; the trajectories are what a run continues from.

    lmms-eval knows nothing of our sampling, of the policy's files or of exchanged videos, and would keep a question
    that failed as answered.
    """
    for request in requests:
        request.args[2]["do_sample"] = (
            True  # lmms-eval's sign for "do not store"; the loop does not read the task's generation settings
        )


def _messages(
    context: str,
    doc_to_messages: Callable[[Any], Any],
    docs: Any,
    doc_id: Any,
    media_root: Roots,
) -> tuple[str, tuple[MediaRef, ...], ReadPictures | None]:
    """The text, videos and pictures of one request; pictures only if there is no video.

    The pictures are read again when their question is asked.

    The task's own code runs here. Whatever it raises for one doc (it calls `sys.exit` for a missing video) becomes a
    video that can't be opened. This question then ends as `media_unreadable` with that reason, and the others are
    asked.
    """
    try:
        messages = ChatMessages(messages=doc_to_messages(docs[doc_id]))
        images, videos, audios = messages.extract_media()
        prompt = "\n".join(
            part.text for message in messages.messages for part in message.content if part.type == "text"
        )
        refs = tuple(media_ref(item) for item in [*videos, *audios])
        return (
            prompt,
            refs,
            None if refs or not images else partial(_pictures, doc_to_messages, docs, doc_id, media_root),
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return context, (nothing("media", error),), None


def _pictures(
    doc_to_messages: Callable[[Any], Any],
    docs: Any,
    doc_id: Any,
    media_root: Roots,
    pixels: int | None,
) -> list[ImagePart]:
    """A doc's pictures, each with at most `pixels` pixels.

    Those of a whole task would not fit into memory.
    """
    try:
        images, _, _ = ChatMessages(messages=doc_to_messages(docs[doc_id])).extract_media()
        return [picture(image, media_root, pixels) for image in images]
    except SystemExit as error:  # tasks call `sys.exit` if a file is missing
        raise RuntimeError(str(error)) from error


def _result(job: _Job, trajectory: Trajectory, strict: bool) -> GenerationResult:
    """The result that is returned to lmms-eval."""
    return GenerationResult(reply_of(trajectory, job.reading.write, strict=strict), _tokens(trajectory))


def _tokens(trajectory: Trajectory) -> TokenCounts | None:
    """Tokens of all turns, if the policy counts them."""
    spent = tokens_spent(trajectory)
    return None if spent is None else TokenCounts(input_tokens=spent.prompt, output_tokens=spent.completion)


def _used_up() -> str:
    """The reason if lmms-eval's `--max_tokens`, which counts over the whole run, is used up."""
    return "the run's token budget (--max_tokens) is used up" if is_budget_exceeded() else ""
