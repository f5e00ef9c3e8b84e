"""`policy=vllm`: a vLLM engine in this process."""

from apr_plugin.policies.vllm.policy import VllmPolicy

__all__ = ["VllmPolicy"]
