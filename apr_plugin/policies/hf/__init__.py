"""`policy=hf`: a transformers model in this process."""

from apr_plugin.policies.hf.policy import HfPolicy

__all__ = ["HfPolicy"]
