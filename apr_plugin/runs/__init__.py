"""Many questions answered by one arm under one configuration: settings, the runner, the store, the meter, and opening what a run has left."""

from apr_plugin.runs.config import ConfigPerQuestion, RunConfig
from apr_plugin.runs.runner import run_episodes
from apr_plugin.runs.store import TrajectoryStore

__all__ = ["ConfigPerQuestion", "RunConfig", "TrajectoryStore", "run_episodes"]
