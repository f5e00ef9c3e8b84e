"""The scripted reference policy in the real loop, on worlds drawn in memory and on a real file."""

from __future__ import annotations

import asyncio
import functools
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from apr_plugin.loop import open_video
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.episode import Episode, EpisodeConfig
from apr_plugin.loop.policy import ImagePart, Message, Policy, Prompt, Sampling, TextPart
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.trajectory import StopReason, Trajectory
from apr_plugin.media import Frames, Waveform
from apr_plugin.scoring.intervals import parse_spans, set_iou
from apr_plugin.tasks.needle.make import BUCKETS, NeedleSpec, load_docs, make_needle
from apr_plugin.tasks.needle.palette import draw_frame
from apr_plugin.tasks.needle.policy import NeedlePolicy, describe_media, write_turn
from apr_plugin.tasks.needle.questions import Doc, LetterDeck, ask
from apr_plugin.tasks.needle.render import audio_chunks
from apr_plugin.tasks.needle.world import Difficulty, World

RATE = 16_000


class WorldVideo:
    """A stand-in for `apr_plugin.media.Video` that draws a world when it is asked; there is no file."""

    has_video, has_audio, size = True, True, (128, 128)

    def __init__(self, world: World, fps: float = 10.0) -> None:
        self.world = world
        self.fps = fps
        self.duration_s = world.duration_s
        self.sound_s = world.duration_s
        self.segments = list(world.segments())
        self.ends = [segment.end_s for segment in self.segments]

    def frames(
        self, times_s: list[float], *, mode: str = "exact", size: object = None, cancelled: object = None
    ) -> Frames:
        shown = [
            min(np.floor(t * self.fps + 1e-6), np.ceil(self.duration_s * self.fps) - 1) / self.fps for t in times_s
        ]
        return Frames(
            np.stack([self.picture(int(np.searchsorted(self.ends, t + 1e-6, side="right"))) for t in shown]),
            tuple(map(float, shown)),
        )

    @functools.lru_cache(maxsize=512)  # noqa: B019 - lives as long as the test
    def picture(self, i: int) -> np.ndarray:
        segment = self.segments[i]
        return draw_frame(segment.colour, segment.pattern, segment.glyph, self.size)

    @functools.cached_property
    def sound(self) -> np.ndarray:
        return np.concatenate([*audio_chunks(self.world)])

    def audio(self, start_s: float, end_s: float, *, cancelled: object = None) -> Waveform:
        return Waveform(self.sound[round(start_s * RATE) : round(end_s * RATE)], start_s)

    def close(self) -> None:
        pass


def question(doc: Doc) -> Question:
    kind = {"when": QuestionKind.GROUNDING, "count": QuestionKind.NUMBER}.get(doc["kind"], QuestionKind.MCQ)
    options = tuple(Option(label="ABCD"[i], text=text) for i, text in enumerate(doc["options"]))
    return Question(
        text=doc["question"], kind=kind, options=options, videos=(MediaRef(path=doc["video"]),), doc_id=doc["id"]
    )


def score(doc: Doc, trajectory: Trajectory) -> float:
    answer = trajectory.answer or ""
    if doc["kind"] == "when":
        return set_iou(parse_spans(answer), [(s, e) for s, e in doc["answer_spans"]])
    return float(answer == doc["answer"])


def run(doc: Doc, config: EpisodeConfig) -> Trajectory:
    return asyncio.run(Episode(question(doc), NeedlePolicy(), config).run())


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Videos by path, which `Video.open` returns."""
    videos: dict[str, object] = {}
    monkeypatch.setattr(
        open_video, "POOL", SimpleNamespace(borrow=lambda path, settings: videos[path], give_back=lambda video: None)
    )
    monkeypatch.setattr(open_video, "media_digest", lambda path: (0, ""))  # there is no file
    return videos


def ask_worlds(
    opens: dict[str, object], seeds: int, bucket: str, difficulty: Difficulty | None = None, fps: float = 10.0
) -> list[Doc]:
    docs: list[Doc] = []
    letters = LetterDeck(0)
    for seed in range(seeds):
        world = World.from_seed(seed, BUCKETS[bucket], difficulty)
        opens[f"{bucket}-{seed}"] = WorldVideo(world, fps)
        docs += ask(world, f"{bucket}-{seed}", bucket, 2, letters)
    return docs


def test_it_is_a_policy() -> None:
    policy = NeedlePolicy()
    assert isinstance(policy, Policy)
    assert json.dumps(policy.describe())
    policy.close()


def test_right_in_every_bucket_and_turns_hardly_grow(opens: dict[str, object]) -> None:
    turns: dict[str, float] = {}
    for bucket in BUCKETS:
        scores, counted = defaultdict(list), []
        for doc in ask_worlds(opens, 2, bucket):
            trajectory = run(doc, EpisodeConfig())
            assert trajectory.stop_reason is StopReason.ANSWERED
            assert not any(turn.error for turn in trajectory.turns)
            assert all(not turn.repairs for turn in trajectory.turns)
            scores[doc["kind"]].append(score(doc, trajectory))
            counted.append(len(trajectory.turns))
        turns[bucket] = float(np.mean(counted))
        assert all(np.mean(values) >= 0.9 for values in scores.values()), (bucket, dict(scores))
    assert turns["120m"] <= 1.5 * turns["10m"]
    assert max(turns.values()) <= 6


@pytest.mark.parametrize("difficulty", [Difficulty(decoys=1.0), Difficulty(lookalike=True, event_length=2.0)])
def test_harder_worlds(opens: dict[str, object], difficulty: Difficulty) -> None:
    docs = ask_worlds(opens, 1, "30m", difficulty=difficulty)
    assert np.mean([score(doc, run(doc, EpisodeConfig())) for doc in docs]) >= 0.9


@pytest.mark.parametrize("fps", [2.0, 29.97])
def test_other_frame_rates(opens: dict[str, object], fps: float) -> None:
    docs = ask_worlds(opens, 1, "10m", fps=fps)
    assert np.mean([score(doc, run(doc, EpisodeConfig())) for doc in docs]) >= 0.9


@pytest.mark.parametrize(
    ("budget", "least"),
    [
        (Budget(frames_per_look=16), 0.9),
        (Budget(audio_s=20.0), 0.9),
        (Budget(visual_tokens_per_episode=1500), 0.2),
        (Budget(turns=2), 0.1),
        (Budget(turns=1), 0.0),
    ],
)
def test_tight_budgets_are_met(opens: dict[str, object], budget: Budget, least: float) -> None:
    scores = []
    for doc in ask_worlds(opens, 1, "10m"):
        trajectory = run(doc, EpisodeConfig(budget=budget))
        assert trajectory.answer_valid, trajectory.stop_detail
        scores.append(score(doc, trajectory))
    assert np.mean(scores) >= least


def test_passive_arm_answers_from_what_is_in_view(opens: dict[str, object]) -> None:
    docs = ask_worlds(opens, 2, "1m")
    dense = [
        score(d, run(d, EpisodeConfig(arm="passive", passive_frames=60)))
        for d in docs
        if d["kind"] in ("glyph", "when", "order")
    ]
    assert np.mean(dense) >= 0.75  # a frame a second sees every event of a minute
    long = ask_worlds(opens, 2, "120m")
    for doc in long:
        blind, sparse = (run(doc, EpisodeConfig(arm="passive", passive_frames=n)) for n in (0, 32))
        assert blind.answer_valid and sparse.answer_valid
        assert len(sparse.turns) == 1
    assert np.mean([score(d, run(d, EpisodeConfig(arm="passive", passive_frames=32))) for d in long]) < 0.6


def test_no_sound_track_still_ends_in_an_answer(opens: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorldVideo, "has_audio", False)
    for doc in ask_worlds(opens, 1, "1m"):
        trajectory = run(doc, EpisodeConfig())
        assert trajectory.answer_valid
        assert not any(turn.error for turn in trajectory.turns)


def test_other_videos_and_questions_get_a_first_option_and_a_plain_word(
    opens: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    doc = ask_worlds(opens, 1, "1m")[0]
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    options = (Option(label="A", text="cats"), Option(label="B", text="dogs"))
    other = Question(
        text="What is on the sofa?", kind=QuestionKind.MCQ, options=options, videos=(MediaRef(path=doc["video"]),)
    )
    for asked, picture in ((other, None), (question(doc), noise)):
        if picture is not None:
            monkeypatch.setattr(WorldVideo, "picture", lambda self, i: noise)
        trajectory = asyncio.run(Episode(asked, NeedlePolicy(), EpisodeConfig()).run())
        assert trajectory.answer_valid
        assert "guess" in trajectory.turns[-1].think
        assert len(trajectory.turns) <= 3
    grounding = Question(
        text="When does the cat jump?", kind=QuestionKind.GROUNDING, videos=(MediaRef(path=doc["video"]),)
    )
    assert asyncio.run(Episode(grounding, NeedlePolicy(), EpisodeConfig(arm="passive")).run()).answer_valid


def ask_freely(
    doc: Doc, kind: QuestionKind, text: str | None = None, videos: int = 1, config: EpisodeConfig | None = None
) -> Trajectory:
    asked = Question(text=text or doc["question"], kind=kind, videos=(MediaRef(path=doc["video"]),) * videos)
    return asyncio.run(Episode(asked, NeedlePolicy(), config or EpisodeConfig()).run())


def test_without_options_it_answers_in_words(opens: dict[str, object]) -> None:
    for doc in ask_worlds(opens, 1, "1m"):
        trajectory = ask_freely(doc, QuestionKind.FREE_FORM)
        if doc["kind"] == "when":
            assert score(doc, trajectory) >= 0.9
        else:
            assert trajectory.answer == (
                doc["options"]["ABCD".index(doc["answer"])] if doc["options"] else doc["answer"]
            )


def test_what_it_does_not_know_it_says_in_words(opens: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    docs = ask_worlds(opens, 1, "1m")
    assert ask_freely(docs[0], QuestionKind.FREE_FORM, "What is on the sofa?").answer == "unknown"
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    monkeypatch.setattr(WorldVideo, "picture", lambda self, i: noise)
    monkeypatch.setattr(WorldVideo, "has_audio", False)
    for doc in docs:
        answer = ask_freely(doc, QuestionKind.FREE_FORM).answer or ""
        assert answer.isdecimal() if doc["kind"] == "count" else answer == "unknown" or doc["kind"] == "when"


@pytest.mark.parametrize("kind", [QuestionKind.GROUNDING, QuestionKind.NUMBER, QuestionKind.FREE_FORM])
@pytest.mark.parametrize("text", [None, "When does the cat jump?"])
def test_answers_have_the_form_that_is_asked_for(
    opens: dict[str, object], kind: QuestionKind, text: str | None
) -> None:
    for doc in ask_worlds(opens, 1, "1m"):
        trajectory = ask_freely(doc, kind, text)
        assert trajectory.answer_valid and not any(turn.error for turn in trajectory.turns)


@pytest.mark.parametrize("kind", [QuestionKind.GROUNDING, QuestionKind.NUMBER])
@pytest.mark.parametrize("text", [None, "Where is the cat?"])
def test_a_refused_answer_is_corrected_once(opens: dict[str, object], kind: QuestionKind, text: str | None) -> None:
    """The instructions don't say how to write an answer; the refusal does."""
    for doc in ask_worlds(opens, 1, "1m"):
        trajectory = ask_freely(doc, kind, text, config=EpisodeConfig(system_prompt="Answer the question."))
        assert trajectory.answer_valid
        assert sum(turn.error is not None for turn in trajectory.turns) <= 1


def test_no_answer_is_given_twice() -> None:
    messages: list[Message] = [Message("user", (TextPart("Question: What is it?\nOptions:\nA. cats"),))]
    given = []
    for _ in range(4):
        turn = write_turn(Prompt(tuple(messages), final=True))
        given.append(json.loads(turn)["action"]["content"])
        messages += [Message("assistant", (TextPart(turn),)), Message("user", (TextPart("[ERROR] ANSWER_FORM: no."),))]
    assert given == ["A", "[[0.0, 0.00]]", "0", "unknown"]


def test_of_several_videos_it_looks_at_the_first(opens: dict[str, object]) -> None:
    first = ask_worlds(opens, 1, "10m")
    opens["other"] = WorldVideo(World.from_seed(9, 60.0))
    both = (MediaRef(path=first[0]["video"]), MediaRef(path="other"))
    for doc in first:
        asked = question(doc).model_copy(update={"videos": both})
        trajectory = asyncio.run(Episode(asked, NeedlePolicy(), EpisodeConfig()).run())
        assert score(doc, trajectory) >= 0.9
        assert all("video 0 only" in turn.think for turn in trajectory.turns)
    one = run(first[0], EpisodeConfig())
    assert not any("video 0 only" in turn.think for turn in one.turns)


def test_frames_of_other_videos_are_left_out() -> None:
    red, blue = (ImagePart(draw_frame(colour, "dotted", None, (128, 128))) for colour in ("red", "blue"))
    parts = (TextPart("Video 0: Frames 0.00s-9.00s (num=1)."), TextPart("\nFrame 5.00s:"), red, TextPart("\n\n"))
    parts += (TextPart("Video 1: Frames 0.00s-9.00s (num=1)."), TextPart("\nFrame 5.00s:"), blue, TextPart("\n\n"))
    assert describe_media(parts) == "[frames 5.00-5.00s x1] 5.00s red/dotted"


def test_a_real_file(tmp_path: Path) -> None:
    docs = load_docs(make_needle(tmp_path, NeedleSpec(buckets=("1m",), videos_per_bucket=1), workers=1, progress=False))
    for doc in docs:
        assert score(doc, run(doc, EpisodeConfig())) >= 0.9


def test_same_prompt_same_turn_and_garbage_prompts() -> None:
    frame = draw_frame("red", "dotted", None, (128, 128))
    prompt = Prompt(
        (
            Message(
                "user",
                (TextPart("nothing to read"), TextPart("Frame 1.00s:"), ImagePart(frame), ImagePart(frame[:4, :4])),
            ),
        )
    )
    assert write_turn(prompt) == write_turn(prompt)
    for messages in ((), (Message("assistant", (TextPart("{]"),)), Message("user", (TextPart("[ERROR] X: y"),)))):
        for final in (False, True):
            assert set(json.loads(write_turn(Prompt(messages, final)))) == {
                "observation",
                "think",
                "confidence",
                "action",
            }
    assert asyncio.run(NeedlePolicy().generate(prompt, Sampling())).text == write_turn(prompt)


def test_notes_are_compact_and_true() -> None:
    frames = [ImagePart(draw_frame(colour, "dotted", None, (128, 128))) for colour in ("red", "red", "red", "blue")]
    parts = [part for t, frame in enumerate(frames) for part in (TextPart(f"\nFrame {t}.00s:"), frame)]
    assert describe_media(tuple(parts)) == "[frames 0.00-3.00s x4] 0.00-2.00s red/dotted; 3.00s blue/dotted"
