"""lmms-eval runs the agent, as the model id `apr`."""
