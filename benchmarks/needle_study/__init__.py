r"""The small agent against passive models of its family on the needle benchmark, by one command.

    python -m benchmarks.needle_study --agent sft=RUN/final --agent grpo=RL/final \
        --rival passive-64=RIVAL/final@64 --videos 20 --out results/runs/needle-study

Every answer comes from `apr eval` (lmms-eval, its tasks, real video files). The first agent is the one that the others
are compared with. Parts (`--parts`):

- main: agents, the scripted policy, rivals, and the controls blind, single frame, shuffled and oracle. Scores by kind
  and bucket, aiming, ladder, costs and their growth, and entropy at the pivotal turn.
- scaling: the first agent with 2 to 16 turns.
- ablations: the first agent with nearest keyframes, with media kept in its prompts, with notes without observations;
  and checkpoints of `--other` (trained without recovery from errors, say).
- transfer: lengths and numbers of chapters that training has not met.

`--work` keeps videos and runs: after a kill the same command goes on, and repeats no finished arm. What is stored there
is reported, whether or not its part was asked for; parts without a run are listed as not run. `--parts none` only
writes the report again. Each part also gets the package's own page (WORK/PART/report.html).
"""
