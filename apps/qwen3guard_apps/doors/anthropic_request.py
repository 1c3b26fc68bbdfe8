"""A request for Anthropic's messages, read as a chat: its blocks become parts, tool calls and results of tools."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from qwen3guard_contract.errors import InputError
from qwen3guard_contract.message_text import EMPTY, text_of_message
from qwen3guard_contract.messages import ROLES
from qwen3guard_contract.text import shown

from qwen3guard_apps.doors.door import JsonBody
from qwen3guard_apps.doors.sealed import opened
from qwen3guard_apps.openai import fields
from qwen3guard_apps.openai.api_error import invalid, of_guard
from qwen3guard_apps.openai.request import GuardedRequest, filtered, read_as_chat
from qwen3guard_apps.openai.shapes import Anything, Checked, JsonText, ListOf, Name, Number, ObjectOf

_FORM = fields.REQUEST_FIELDS["stop"]
_OPERATOR = fields.REQUEST_FIELDS["metadata"]
MESSAGES_REQUEST_FIELDS: fields.Table = {
    "messages": JsonText("messages of text, thinking, calls of tools and their results; other blocks are refused"),
    "system": JsonText("a text, or blocks of text"),
    **dict.fromkeys(("model", "tool_choice"), Anything()),
    "tools": Anything("definitions of the client's own tools, which are not judged; the provider's are refused"),
    **dict.fromkeys(("stop_sequences", "output_format", "output_config"), _FORM),
    **dict.fromkeys(("metadata", "service_tier", "cache_control"), _OPERATOR),
    "thinking": ObjectOf(
        {**dict.fromkeys(("type", "display"), Name()), "budget_tokens": Number()},
        "`type` and `display`, a word each, and `budget_tokens`",
    ),
    "betas": ListOf(Name(), "names"),
    "speed": Name("a word"),
    "inference_geo": Name("a word"),
}
ANTHROPIC_MESSAGE_FIELDS: fields.Table = {
    "role": Checked("`user` or `assistant`"),
    "content": JsonText("a text, or blocks"),
}
_BLOCK: fields.Table = {
    "type": Name(),
    "cache_control": ObjectOf(dict.fromkeys(("type", "ttl"), Name()), "`type` and `ttl`, a word each"),
}
_AS_GIVEN = Checked("as an answer gave it")
_NAME = Checked("a name without spaces")
BLOCK_FIELDS: dict[str, fields.Table] = {
    "text": _BLOCK | {"text": JsonText("text")},
    "thinking": _BLOCK | {"thinking": JsonText("text"), "signature": _AS_GIVEN},
    "redacted_thinking": _BLOCK | {"data": _AS_GIVEN},
    "tool_use": _BLOCK | {**dict.fromkeys(("id", "name"), _NAME), "input": JsonText("any JSON")},
    "tool_result": _BLOCK
    | {"tool_use_id": _NAME, "content": JsonText("text, or blocks of text"), "is_error": Number("a truth value")},
}
"""The blocks of a message, and of each the fields that pass."""
_UNSEEN = ("container", "mcp_servers")
"""Fields that give the LLM what the request does not show."""
_OWN_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
"""How the types of tools begin that the client runs, so that their results come with a request."""


def read_messages_request(asked: JsonBody, passed_fields: Collection[str]) -> GuardedRequest:
    """Raises ApiError for what cannot be judged."""
    for name in _UNSEEN:
        if asked.get(name) not in EMPTY:
            raise invalid(f"The field {name} brings what the guard cannot see.")
    for tool in _listed(asked, "tools"):
        kind = tool.get("type") if isinstance(tool, dict) else ""
        if kind is not None and not (isinstance(kind, str) and kind.startswith(_OWN_TOOLS)):
            raise invalid(f"A tool of the type {shown(str(kind))} brings what the guard cannot see.")
    messages = asked.get("messages")
    if not isinstance(messages, list):
        raise invalid("The messages must be a list.")
    sent, turns, removed = [], [], []
    if asked.get("system") not in EMPTY:
        turns.append(_checked({"role": "system", "content": asked["system"]}, "The system prompt"))
    for number, raw in enumerate(messages, 1):
        if not isinstance(raw, dict):
            raise invalid("A message must be an object with a role.")
        where = f"Message {number}"
        message, without, _ = filtered(raw, ANTHROPIC_MESSAGE_FIELDS, others=None)
        if message.get("role") not in ROLES:  # a message of results alone has no other reader of it
            raise invalid(f"The role of message {number} is none of {', '.join(ROLES)}.")
        if isinstance(message.get("content"), list):
            blocks = [_read_block(block, where) for block in message["content"]]
            message["content"] = [block for block, _ in blocks]
            without += [f"content.{name}" for _, names in blocks for name in names]
        sent.append(message)
        removed += [f"messages.{name}" for name in without]
        turns += [_checked(turn, where) for turn in chat_turns_of_blocks(message)]
    read = read_as_chat(asked | {"messages": sent}, MESSAGES_REQUEST_FIELDS, turns, passed_fields)
    return GuardedRequest(read.sent, read.conversations, (*read.removed, *dict.fromkeys(removed)))


def chat_turns_of_blocks(message: JsonBody) -> list[JsonBody]:
    """A message as chat messages: tool results are turns of their own, before the other blocks.

    Nothing of a block is left out that may be text, so that the reader of messages refuses what it does not know.
    """
    content = message.get("content")
    if not isinstance(content, list):
        return [message]
    results, parts, calls = [], [], []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            turn = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": block.get("content")}
            results.append(_with_rest(turn, block, "type", "tool_use_id", "content"))
        elif kind == "tool_use":
            given = block.get("input")
            # A call without arguments is an answer too, and is written as OpenAI's LLMs write it.
            called = {"name": block.get("name"), "arguments": "{}" if given == {} else given}
            call = {"id": block.get("id"), "type": "function", "function": called}
            calls.append(_with_rest(call, block, "id", "type", "name", "input", "caller"))
        elif kind == "thinking":
            parts.append(_with_rest({}, block, "signature"))
        elif kind == "redacted_thinking":  # encrypted: read by nobody
            parts.append(_with_rest({"type": "text"}, block, "type", "data"))
        else:
            parts.append(block)
    rest = {"role": message.get("role"), "content": parts} | ({"tool_calls": calls} if calls else {})
    return [*results, *([rest] if parts or calls else [])]


def _read_block(block: Any, where: str) -> tuple[Any, list[str]]:
    """A block as it is sent on, and the names of what does not pass of it. One of another kind stays for the reader of
    messages, which refuses it by name."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str) or kind not in BLOCK_FIELDS:
        return block, []
    read, removed, _ = filtered(block, BLOCK_FIELDS[kind], others=None)
    for name in ("signature", "data"):
        if read.get(name) is not None:
            read[name] = opened(read[name], f"The {name} of a {kind} in {where.lower()}")
    return read, removed


def _checked(turn: JsonBody, where: str) -> JsonBody:
    """Raises ApiError for what the guard does not read in it."""
    try:
        text_of_message(turn, where)
    except InputError as error:
        raise of_guard(error) from None
    return turn


def _with_rest(read: JsonBody, block: JsonBody, *names: str) -> JsonBody:
    """`read`, and what else the block has beside `names`, for the reader of messages to refuse."""
    rest = {name: value for name, value in block.items() if name not in names}
    return read | {f"block_{name}" if name in read else name: value for name, value in rest.items()}


def _listed(asked: JsonBody, name: str) -> list[Any]:
    value = asked.get(name)
    if value is not None and not isinstance(value, list):
        raise invalid(f"The {name} must be a list.")
    return value or []
