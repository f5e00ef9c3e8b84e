"""The profile that a checkpoint carries (`loop.profile_file`), found in its folder or on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_plugin import options
from apr_plugin.errors import AprError, told
from apr_plugin.loop.profile_file import PROFILE_FILE, ProfileFile, read_profile
from apr_plugin.models.checkpoint import checkpoint_source


def profile_of_checkpoint(
    pretrained: str, policy: str, revision: str | None = None, *, fetch: bool = True
) -> ProfileFile | None:
    """The profile of a checkpoint; `None` if it has none.

    On the hub, the file is fetched into the cache like the checkpoint's other files. Without a connection, a profile
    that is not in the cache is not known to exist.

    Args:
        pretrained: The checkpoint's folder, or its name on the hub.
        policy: The policy that loads it, for messages.
        revision: Branch, tag or commit on the hub.
        fetch: Whether the hub is asked; otherwise only a folder has a profile.

    Raises:
        AprError: the checkpoint is not there, or its profile can't be read.
    """
    try:
        source = checkpoint_source(pretrained, policy)
        folder = Path(source)
        if folder.is_dir():
            return read_profile(folder) if (folder / PROFILE_FILE).exists() else None
        if folder.exists():
            return None  # a file; loading it says what is wrong
    except (OSError, ValueError):  # no name of a file: too long, a null; loading it says what is wrong
        return None
    found = _from_hub(source, revision) if fetch else None
    return None if found is None else read_profile(found)


def profile_of_arguments(policy: str, arguments: Mapping[str, Any], *, fetch: bool = True) -> ProfileFile | None:
    """The profile that the arguments of a policy lead to: that of its adapter, or else of its checkpoint.

    Args:
        policy: A policy that loads checkpoints in this process.
        arguments: Its arguments (`pretrained`, `revision`, `adapter`).
        fetch: Whether the hub is asked.

    Raises:
        AprError: as `profile_of_checkpoint`.
    """
    adapter = options.given(arguments.get("adapter"))
    if adapter is not None and (folder := Path(str(adapter)).expanduser() / PROFILE_FILE).exists():
        return read_profile(folder)
    revision = options.given(arguments.get("revision"))
    return profile_of_checkpoint(
        str(arguments["pretrained"]), policy, None if revision is None else str(revision), fetch=fetch
    )


def _from_hub(name: str, revision: str | None) -> Path | None:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
    except ImportError:
        return None  # nothing of the hub can be loaded either
    try:
        return Path(hf_hub_download(name, PROFILE_FILE, revision=revision))
    except EntryNotFoundError:  # also without a connection and without the file in the cache
        return None
    except (HfHubHTTPError, HFValidationError):
        return None  # a name or a revision that is not there: loading the checkpoint says so
    except OSError as error:
        raise AprError(f"{name}: cannot fetch its {PROFILE_FILE}: {told(error)}") from error
