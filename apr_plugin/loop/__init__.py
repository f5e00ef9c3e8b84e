"""The loop: question, action, environment, notebook, episode, trajectory. No torch, no harness, no decoder details.

Read `question`, `action` and `policy` first (the nouns), then `notebook` (what a model sees), then `episode` (what
happens).
"""

from apr_plugin.loop.action import Action, Answer, GetAudio, GetClip, GetFrames, Look
from apr_plugin.loop.arms import ARMS
from apr_plugin.loop.budget import Budget
from apr_plugin.loop.card import Card, CardError
from apr_plugin.loop.config import EpisodeConfig
from apr_plugin.loop.decoding import Decoding
from apr_plugin.loop.environment import Environment
from apr_plugin.loop.episode import Episode
from apr_plugin.loop.events import Event, Opened, Thought, TurnEnded
from apr_plugin.loop.feedback import ActionError, ErrorCode
from apr_plugin.loop.notebook import Notebook
from apr_plugin.loop.parse import ParsedTurn, parse_turn
from apr_plugin.loop.percept import Percept
from apr_plugin.loop.policy import (
    Generation,
    GenerationTimings,
    Modality,
    Policy,
    PolicyDefaults,
    PolicyUnavailable,
    Prompt,
    PromptSize,
    Sampling,
    Usage,
)
from apr_plugin.loop.profiles import PROFILES, Profile
from apr_plugin.loop.question import MediaRef, Option, Question, QuestionKind
from apr_plugin.loop.replay import ReplayError, replay
from apr_plugin.loop.timeline import Phase
from apr_plugin.loop.trajectory import StopReason, Trajectory, TrajectoryError, Turn
from apr_plugin.loop.wires import WIRES, VideoMeta, Wire

__all__ = [
    "ARMS",
    "PROFILES",
    "WIRES",
    "Action",
    "ActionError",
    "Answer",
    "Budget",
    "Card",
    "CardError",
    "Decoding",
    "Environment",
    "Episode",
    "EpisodeConfig",
    "ErrorCode",
    "Event",
    "Generation",
    "GenerationTimings",
    "GetAudio",
    "GetClip",
    "GetFrames",
    "Look",
    "MediaRef",
    "Modality",
    "Notebook",
    "Opened",
    "Option",
    "ParsedTurn",
    "Percept",
    "Phase",
    "Policy",
    "PolicyDefaults",
    "PolicyUnavailable",
    "Profile",
    "Prompt",
    "PromptSize",
    "Question",
    "QuestionKind",
    "ReplayError",
    "Sampling",
    "StopReason",
    "Thought",
    "Trajectory",
    "TrajectoryError",
    "Turn",
    "TurnEnded",
    "Usage",
    "VideoMeta",
    "Wire",
    "parse_turn",
    "replay",
]
