"""Many questions answered by one arm under one configuration: settings, the runner, the store."""

from apr_plugin.runs.runner import run_episodes
from apr_plugin.runs.store import TrajectoryStore

__all__ = ["TrajectoryStore", "run_episodes"]
