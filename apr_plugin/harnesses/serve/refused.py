"""`Refused`: a request that gets an error, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request gets an error.

    Args:
        status: The HTTP status.
        message: What is wrong, where, and what to do. A client reads it, so it names nothing of this machine that the
            client did not name itself.
        code: One word for programs.
        param: The part of the request that is wrong.
        retry_after_s: When to try again.
        about: What the extra field `apr` of the error contains.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.about = about

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error: dict[str, Any] = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error if self.about is None else error | {"apr": self.about}}

    def headers(self) -> dict[str, str]:
        """Headers of the response besides the usual ones.

        OpenAI's client repeats a request that failed with 408, 429 or 5xx, unless the server tells it not to; an
        episode that took too long would take too long again.
        """
        again = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return again | ({"X-Should-Retry": "false"} if self.status in (500, 504) else {})


def malformed(message: str, param: str | None = None, code: str = "invalid_value") -> Refused:
    """The error for a request that can't be carried out as it is: status 400."""
    return Refused(400, message, code, param=param)
