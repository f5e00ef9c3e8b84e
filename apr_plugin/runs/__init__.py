"""Many questions answered by one arm under one configuration.

Settings, the runner, the store, the meter, and opening a finished run.
"""

from apr_plugin.runs.config import ConfigPerQuestion, RunConfig
from apr_plugin.runs.finding import find_runs
from apr_plugin.runs.opened import Run, open_run
from apr_plugin.runs.runner import run_episodes
from apr_plugin.runs.store import TrajectoryStore

__all__ = ["ConfigPerQuestion", "Run", "RunConfig", "TrajectoryStore", "find_runs", "open_run", "run_episodes"]
