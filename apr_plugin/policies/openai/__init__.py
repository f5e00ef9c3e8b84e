"""`policy=openai`: any server of OpenAI's chat protocol."""

from apr_plugin.policies.openai.policy import OpenAIPolicy

__all__ = ["OpenAIPolicy"]
