"""The YAML file of a recipe: found by name, read, changed from the command line, checked; every fault is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from apr_plugin.errors import AprError, require
from apr_plugin.files import read_regular
from apr_plugin.policies import did_you_mean
from apr_plugin.terminal import one_line, quoted

LONGEST = 1_000_000
"""Most bytes of a YAML file."""

R = TypeVar("R", bound=BaseModel)


class RecipeError(AprError):
    """A recipe can't be read or used; the message names the file, the field and what to do."""


def recipe_path(name: str, folder: Path) -> Path:
    """The file of a recipe: a path, or the name of one in this package's folder.

    Raises:
        RecipeError: there is none.
    """
    path = Path(name).expanduser()
    own = sorted(file.stem for file in folder.glob("*.yaml"))
    # A folder is no recipe: one that is called like a recipe does not hide it.
    if path.suffix in (".yaml", ".yml") or (path.exists() and not (path.is_dir() and name in own)):
        return path
    if name in own:
        return folder / f"{name}.yaml"
    raise RecipeError(f"there is no recipe {name!r}{did_you_mean(name, own)}; this package has {', '.join(own)}")


def load_recipe(model: type[R], name: str, folder: Path, changes: Mapping[str, Any]) -> R:
    """Read a recipe.

    Args:
        model: What it must be.
        name: Its file, or the name of one in `folder`.
        folder: The recipes of this package.
        changes: Fields that replace the file's; `None` and an empty list change nothing; the fields of a mapping are
            replaced one by one: `{"student": {"pretrained": "tiny"}}`.

    Raises:
        RecipeError: it can't be read, or a field is wrong.
    """
    path = recipe_path(name, folder)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping ({', '.join(list(model.model_fields)[:4])}, …)")
    for key, value in changes.items():
        if isinstance(value, Mapping):
            given = {field: new for field, new in value.items() if new is not None}
            if given:
                was = data.get(key)
                data[key] = {**(was if isinstance(was, Mapping) else {}), **given}
        elif value is not None and value != []:
            data[key] = value
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_fault(error, model)}") from error


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file, without tags and anchors, with which a small file can become a very large value.

    Raises:
        RecipeError: it can't be read, or is no such YAML.
        MissingExtra: pyyaml is not installed.
    """
    require("yaml", "train")
    import yaml  # type: ignore[import-untyped]

    try:
        text = read_regular(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot read it: {getattr(error, 'strerror', None) or error}") from error
    if len(text) > LONGEST:
        raise RecipeError(f"{path}: {len(text):,} bytes; such a file has at most {LONGEST:,}")
    try:
        if any(getattr(event, "anchor", None) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise RecipeError(f"{path}: it has YAML anchors, which are not read")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot read this YAML: {one_line(str(error), 300)}") from error


def refuse_ours(given: Mapping[str, Any], ours: Mapping[str, str]) -> None:
    """Check that a recipe's `trainer` sets nothing that this package decides.

    Raises:
        ValueError: it does; the message says why it can't.
    """
    for name in given:
        if name in ours:
            raise ValueError(f"{name} is not set in a recipe: {ours[name]}")


def check_names(given: Iterable[str], config: str) -> None:
    """Compare the names in a recipe's `trainer` with the fields of TRL's configuration.

    Args:
        given: The names.
        config: The name of the class: `SFTConfig`.

    Raises:
        AprError: TRL is not installed, or has no such field.
    """
    require("trl", "train")
    import dataclasses

    import trl

    known = sorted(field.name for field in dataclasses.fields(getattr(trl, config)))
    for name in given:
        if name not in known:
            raise RecipeError(f"recipe: trainer: {config} has no field {name!r}{did_you_mean(name, known)}")


def _fault(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    at = ".".join(str(part) for part in first["loc"])
    told = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _names(model, first["loc"][:-1])
        return f"there is no setting {quoted(at, 80)}{did_you_mean(str(first['loc'][-1]), known)}"
    return f"{at}: {told}" if at and not told.startswith(at) else told


def _names(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The fields of a part of a recipe."""
    for part in path:
        kind = model.model_fields[str(part)].annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return list(model.model_fields)
