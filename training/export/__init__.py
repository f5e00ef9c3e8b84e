"""`apr train export`: rows as the data files of other trainers, with their media as files.

`FORMATS` has a class for each trainer: how it marks the places of media, what it makes of a picture, a clip or a sound,
and which settings it needs. `exporting.export_rows` writes a folder.

A row is written only if the trainer reads the same tokens as the student does in this package: the same prompt, and the
same target with one line break after its end, which these trainers always write and learn. Everything else is counted
with its reason (`Skip`). Positions are not compared: these trainers compute them again with the model's own class,
which is wrong by up to several nats for the clips of Qwen2.5-VL (see `models.positions`).
"""

from __future__ import annotations

from apr_plugin.training.export.format import Format, Skip
from apr_plugin.training.export.llamafactory import LlamaFactory
from apr_plugin.training.export.swift import Swift

__all__ = ["FORMATS", "Format", "Skip"]

FORMATS: dict[str, type[Format]] = {form.name: form for form in (Swift, LlamaFactory)}
"""By name on the command line."""
