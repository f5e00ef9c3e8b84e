"""Reinforcement learning on whole investigations, without a trainer: pure functions of trajectories and arrays.

`rewards` (what an episode earned) -> `groups` (which questions are learned from, and the advantage of each trajectory)
-> `turns` (the turns of a batch as arrays) -> `credit` (the advantage of each turn). `across` is what they need of
several processes. Nothing here loads torch, except `across.TorchProcesses` when it is used.
"""
