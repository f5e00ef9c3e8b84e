"""Settings of this package from YAML: frozen records, with errors that name the file and the field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from apr_plugin.errors import AprError
from apr_plugin.policies import did_you_mean
from apr_plugin.terminal import quoted
from apr_plugin.training.recipe_file import RecipeError, read_yaml


class SettingsError(AprError):
    """Settings can't be read; the message names the file and the field."""


class GrpoSettings(BaseModel):
    """What all settings here have in common: no unknown fields, no text in place of a number, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def of(cls, data: Any, where: str = "settings") -> Self:
        """Settings from a mapping, such as a part of a larger YAML file; `None` gives the defaults.

        Args:
            data: The values by name.
            where: What the values are from, for messages.

        Raises:
            SettingsError: a name is unknown, or a value is not allowed.
        """
        if data is None:
            return cls()
        if not isinstance(data, Mapping):
            raise SettingsError(f"{where}: it must be a mapping of names to values, not {quoted(data, 60)}")
        for name in data:
            if name not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                raise SettingsError(
                    f"{where}: there is no setting {quoted(name, 60)}{did_you_mean(str(name), cls.model_fields)}; the "
                    f"settings are {known}"
                )
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            told = [
                f"{'.'.join(map(str, fault['loc']))}={quoted(fault['input'], 60)}: "
                + fault["msg"].removeprefix("Value error, ")
                for fault in error.errors(include_context=False, include_url=False)
            ]
            raise SettingsError(f"{where}: {'; '.join(told)}") from error

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Settings from a YAML file; an empty one gives the defaults.

        Raises:
            SettingsError: it can't be read, is no YAML mapping, or has a wrong field.
            MissingExtra: pyyaml is not installed.
        """
        try:
            data = read_yaml(path)
        except RecipeError as error:
            raise SettingsError(str(error)) from error
        return cls.of(data, str(path))
