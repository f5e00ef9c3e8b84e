"""What a recipe says about servers that sample turns."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator


class RolloutSettings(BaseModel):
    """Where turns are sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: tuple[str, ...] = ()
    """Addresses of vLLM servers, `http://127.0.0.1:8000`, which get the weights of each step; process r uses server
    r mod n. Default: none; the model that is trained samples in its own process."""
    weights_dir: str | None = None
    """Folder for the weights of each step, which every server must be able to read under this path. Default:
    `rollout-weights` in the folder of the run."""
    model: str | None = None
    """The servers' name of the model; default: the only one that they have."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the servers' key, if they need one."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Most seconds of one turn."""
    retries: int = Field(default=3, ge=0)
    """Attempts after the first at a turn; then its trajectory fails."""
    reload_s: float = Field(default=900.0, gt=0)
    """Most seconds in which a server loads weights."""

    @field_validator("servers")
    @classmethod
    def _addresses(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_address(url) for url in given)


def _address(url: str) -> str:
    """The address without `/v1`; a message shows nothing that could be a secret."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError("an address must be like http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            f"the address of {parts.hostname} has a user, a password or a query, which logs would show; put a key into "
            "the environment variable that api_key_env names"
        )
    return url.rstrip("/").removesuffix("/v1")
