"""lmms-eval drives the agent: model id `apr`."""
