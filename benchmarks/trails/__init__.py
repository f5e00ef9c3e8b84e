"""A small world in which reinforcement can be seen to work on a CPU: films, teacher, student (`grpo_learning`)."""
