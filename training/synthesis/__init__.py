"""Training data: a teacher explores questions, and two filters keep the trajectories that are worth learning from.

`questions` (what is asked, with its truth) -> `contamination` (nothing of a benchmark) -> `synthesize` (a teacher,
with `budgets` drawn for each attempt) -> `outcome` (is the answer right) -> `audit` (does each step follow) -> `funnel`
(what is kept, and why the rest is not). docs/training.md shows each command.
"""
