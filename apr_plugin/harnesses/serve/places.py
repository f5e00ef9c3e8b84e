"""Where the files of a request are: under an allowed folder, or in the request itself as base64.

Nothing is fetched: an address of the network is refused, and so is everything that only libav would understand
(`concat:`, `subfile:`). A name reaches no decoder: files are opened by descriptor (`apr_plugin.media.opening`), which
reads no playlist.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from apr_plugin.harnesses.serve.limits import LONGEST_ADDRESS
from apr_plugin.harnesses.serve.refused import malformed
from apr_plugin.media.confine import confine
from apr_plugin.media.errors import MediaOpenError
from apr_plugin.media.opening import check_file
from apr_plugin.terminal import one_line, quoted

_DATA = re.compile(r"data:([\w.+-]{1,64}/[\w.+-]{1,64})?((?:;[\w.+-]{1,64}=[\w.+-]{1,64}){0,4});base64,", re.IGNORECASE)
_LONGEST_HEAD = 1024
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class Inline:
    """A file that is in the request itself."""

    base64: str
    mime: str
    """Its type as the client says; empty if it does not."""


def place(url: str, roots: Sequence[str], param: str) -> str | Inline:
    """The path of a file that may be read, or the file in the address itself.

    Args:
        url: `file:///…`, an absolute path, or a `data:` URL.
        roots: The folders that files may be in.
        param: Where the address is in the request, for messages.

    Raises:
        Refused: it is of another kind, is outside the folders, or is no file that can be read.
    """
    if url[:5].lower() == "data:":
        return _inline(url, param)
    if len(url) > LONGEST_ADDRESS:
        raise malformed(f"{param}: an address of {len(url):,} characters", param, "invalid_url")
    if url[:7].lower() == "file://":
        host, slash, rest = url[7:].partition("/")
        if host.lower() not in ("", "localhost") or not slash:
            raise malformed(f"{param}: {quoted(url)} names another machine; write file:///PATH", param, "invalid_url")
        names = dict.fromkeys((unquote(f"/{rest}"), f"/{rest}"))  # some clients don't quote what is in a name
    elif url.startswith("/"):
        names = {url: None}
    elif _SCHEME.match(url):
        raise malformed(
            f"{param}: {quoted(url)}: addresses are not fetched; send the file as data:…;base64,… or name one under an "
            "allowed folder as file:///PATH",
            param,
            "invalid_url",
        )
    else:
        raise malformed(f"{param}: {quoted(url)} is not an absolute path; write file:///PATH", param, "invalid_url")
    return _allowed(list(names), roots, param)


def _allowed(names: Sequence[str], roots: Sequence[str], param: str) -> str:
    told = "no folder of this server may be read (--root)"
    for name in names:
        try:
            confine(name, tuple(roots))
        except MediaOpenError:
            if roots:
                told = "it is outside the folders that may be read (--root)"
            continue
        try:
            check_file(name)
        except MediaOpenError as error:
            told = error.reason
            continue
        return str(Path(name))
    code = "media_unreadable" if "--root" not in told else "media_not_allowed"
    raise malformed(f"{param}: {quoted(names[0])}: {one_line(told)}", param, code)


def _inline(url: str, param: str) -> Inline:
    head = _DATA.match(url[:_LONGEST_HEAD])
    if head is None:
        raise malformed(f"{param}: {quoted(url[:60])}… is not data:TYPE;base64,…", param, "invalid_data_url")
    return Inline(url[head.end() :], (head[1] or "").lower())
