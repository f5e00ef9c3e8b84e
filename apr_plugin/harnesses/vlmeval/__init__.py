"""VLMEvalKit runs the agent, as the model `apr` (docs/vlmeval.md).

VLMEvalKit has no plugin hook. A program that drives it changes its registries in the process that evaluates, then runs
its own runner: EvalScope does it too (modelscope/evalscope, `evalscope/backend/vlm_eval_kit/backend_manager.py`). Only
`host`, `model` and the data set modules import VLMEvalKit, and only while an evaluation runs.
"""
