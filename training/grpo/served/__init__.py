"""Rollouts on external vLLM servers: turns are sampled there, and weights go over as saved checkpoints.

`settings` (what a recipe says) -> `media`, `policy` (turns) and `weights`, `control` (weights) -> `rollouts` (whole
episodes) -> `stepping` (what a training step does with them). vLLM is not imported: servers are reached by HTTP only.
"""
