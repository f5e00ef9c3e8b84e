"""One chat: the messages in a line of a file of chats; anything that is no chat of text has its reason.

Two forms are read, that of OpenAI and that of ShareGPT:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}

A message of role `system` may come first (or stand in a field `system` of the line). Each reply of the assistant comes
after a message of the user. `content` may also be a list of parts of type `text`. With `"weight": 0` a reply is no
target, as in OpenAI's format (FineTuneChatCompletionRequestAssistantMessage of its API). Other fields are not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from apr_plugin.loop.policy import Message, Prompt, Role, TextPart
from apr_plugin.loop.text import printable
from apr_plugin.terminal import quoted
from apr_plugin.training.targets import Reason

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The roles of both forms."""

TOOLS = ("tool", "function", "function_call", "observation")
"""Roles of messages in which a tool is called or replies."""

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Fields of a line, or of a message, that name media."""

_DECLARED = ("tools", "functions")


class NotRead(Exception):
    """A line is no chat; it has a reason and the same in words."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Chat:
    """One conversation."""

    messages: tuple[Message, ...]
    """Each has one part of text."""
    replies: tuple[int, ...]
    """Where the assistant's messages are."""
    unwanted: frozenset[int] = frozenset()
    """Of these, those that the file gives no weight."""

    def prompt(self, turn: int) -> Prompt:
        """What comes before the reply of this number, counted from 1."""
        return Prompt(self.messages[: self.replies[turn - 1]])

    def reply(self, turn: int) -> str:
        """The words of the reply of this number."""
        return self.messages[self.replies[turn - 1]].text


def read_chat(line: bytes) -> Chat:
    """Read a line.

    Raises:
        NotRead: it is no chat of text.
    """
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise NotRead(Reason.BROKEN_LINE, f"it is not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise NotRead(Reason.BROKEN_LINE, f"it is not JSON ({error})") from error
    if not isinstance(data, dict):
        _refuse(Reason.NO_CHAT, "it is no JSON object")
    if named := next((name for name in _DECLARED if data.get(name)), None):
        _refuse(Reason.TOOL_CALL, f"it has {named}")
    if named := next((name for name in MEDIA if data.get(name)), None):
        _refuse(Reason.CHAT_MEDIA, f"it has {named}")
    given = data.get("messages") if data.get("messages") is not None else data.get("conversations")
    if not isinstance(given, list) or not given:
        _refuse(Reason.NO_CHAT, "it has no list of messages or conversations")
    found = [_message(one, number) for number, one in enumerate(given, 1)]
    if data.get("system"):
        found.insert(0, _message({"role": "system", "content": data["system"]}, 0))
    before: Role | None = None
    for number, message in enumerate(found, 1):
        if message.role == "system" and before is not None:
            _refuse(Reason.WRONG_ROLE, f"message {number}: a system message comes after another message")
        if message.role == "assistant" and before != "user":
            _refuse(Reason.WRONG_ROLE, f"message {number}: a reply does not come after a message of the user")
        before = message.role
    replies = tuple(number for number, message in enumerate(found) if message.role == "assistant")
    if not replies:
        _refuse(Reason.NO_REPLY, "the assistant says nothing in it")
    first = len(found) - len(given)
    unwanted = frozenset(number for number in replies if given[number - first].get("weight") in (0, False))
    return Chat(tuple(found), replies, unwanted)


def _refuse(reason: Reason, detail: str) -> NoReturn:
    raise NotRead(reason, detail)


def _message(given: object, number: int) -> Message:
    if not isinstance(given, dict):
        _refuse(Reason.NO_CHAT, f"message {number} is no object")
    if named := next((name for name in MEDIA if given.get(name)), None):
        _refuse(Reason.CHAT_MEDIA, f"message {number} has {named}")
    role = given.get("role", given.get("from"))
    if role in TOOLS or given.get("tool_calls") or given.get("function_call"):
        _refuse(Reason.TOOL_CALL, f"message {number} is of a tool")
    if not isinstance(role, str) or role not in ROLES:
        _refuse(Reason.WRONG_ROLE, f"message {number}: its role is {quoted(role, 40)}, not one of {', '.join(ROLES)}")
    if "content" not in given and "value" not in given:
        _refuse(Reason.NO_CHAT, f"message {number} has no content")
    content = given.get("content", given.get("value"))
    text = _text(content, number)
    if printable(text) != text:
        _refuse(Reason.BROKEN_LINE, f"message {number} has half a character (a lone surrogate)")
    return Message(ROLES[role], (TextPart(text),))


def _text(content: object, number: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts: list[Any] = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
        _refuse(Reason.NO_CHAT, f"message {number}: its content is no text and no list of parts")
    if other := next((part["type"] for part in parts if part["type"] != "text"), None):
        _refuse(Reason.CHAT_MEDIA, f"message {number} has a part of type {quoted(other, 40)}")
    if not all(isinstance(part.get("text"), str) for part in parts):
        _refuse(Reason.NO_CHAT, f"message {number}: a part has no text")
    return "".join(part["text"] for part in parts)
