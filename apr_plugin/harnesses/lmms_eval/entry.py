"""The function that lmms-eval's entry point `lmms_eval.models` calls.

This module imports little on purpose: an error here would silently disable every plugin after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> list[ModelManifest]:
    """The model id `apr`; its class is imported when it is chosen."""
    # Imported here and not above: importing it first would make lmms-eval look for this module while it is half
    # imported.
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id="apr", chat_class_path="apr_plugin.harnesses.lmms_eval.model.ActivePerception")]
