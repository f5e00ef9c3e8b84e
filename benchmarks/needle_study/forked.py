"""Imported by the process from which evaluations are forked, and by nothing else."""

from benchmarks.needle_study import preloaded

preloaded.load()
