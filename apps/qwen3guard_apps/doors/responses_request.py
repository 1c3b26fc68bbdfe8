"""A request for OpenAI's Responses, read as a chat: its items become messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qwen3guard_contract.errors import InputError
from qwen3guard_contract.message_text import EMPTY, text_of_message
from qwen3guard_contract.text import shown

from qwen3guard_apps.doors.door import JsonBody
from qwen3guard_apps.doors.sealed import opened
from qwen3guard_apps.openai import fields
from qwen3guard_apps.openai.api_error import invalid, of_guard
from qwen3guard_apps.openai.request import GuardedRequest, filtered, read_as_chat
from qwen3guard_apps.openai.shapes import Anything, Checked, Identifier, JsonText, ListOf, Name, Number, ObjectOf, Words

_OPERATOR = fields.REQUEST_FIELDS["metadata"]
RESPONSES_REQUEST_FIELDS: fields.Table = {
    "input": JsonText("a text, or items: messages, reasoning, calls of tools and their results; others are refused"),
    "instructions": JsonText("a text"),
    **dict.fromkeys(("model", "tool_choice"), Anything()),
    "tools": Anything("definitions of the client's own tools, which are not judged; the provider's are refused"),
    "text": Anything("what the answer may be; the answer is judged"),
    **dict.fromkeys(("user", "metadata", "safety_identifier", "prompt_cache_key"), _OPERATOR),
    **dict.fromkeys(("service_tier", "store"), _OPERATOR),
    **dict.fromkeys(("truncation", "prompt_cache_retention"), Name("a word")),
    "include": ListOf(Name(), "names"),
    "reasoning": ObjectOf(
        dict.fromkeys(("effort", "summary", "generate_summary"), Name()),
        "`effort`, `summary` and `generate_summary`, a word each",
    ),
    "background": Number("false"),
}
PHASES = ("commentary", "final_answer")
_ITEM: fields.Table = {"type": Name(), "id": Identifier(), "status": Words(("in_progress", "completed", "incomplete"))}
_CALL: fields.Table = _ITEM | {"call_id": Checked("a name without spaces"), "name": Checked("a name without spaces")}
_OUTPUT: fields.Table = _ITEM | {"call_id": Checked("a name without spaces"), "output": JsonText("text, or parts")}
ITEM_FIELDS: dict[str, fields.Table] = {
    "message": _ITEM | {"role": Checked("a role"), "content": JsonText("text, or parts"), "phase": Words(PHASES)},
    "function_call": _CALL | {"arguments": JsonText("text")},
    "custom_tool_call": _CALL | {"input": JsonText("text")},
    "function_call_output": _OUTPUT,
    "custom_tool_call_output": _OUTPUT,
    "reasoning": _ITEM
    | {
        **dict.fromkeys(("summary", "content"), JsonText("parts of text")),
        "encrypted_content": Checked("as an answer gave it"),
    },
}
"""The items of an input, and of each the fields that pass."""
_ELSEWHERE = ("previous_response_id", "conversation", "prompt")
"""Fields that name what the LLM reads from elsewhere."""
_OWN_TOOLS = ("function", "custom")


def read_responses_request(asked: JsonBody, passed_fields: Collection[str]) -> GuardedRequest:
    """Raises ApiError for what cannot be judged."""
    for name in _ELSEWHERE:
        if asked.get(name) not in EMPTY:
            raise invalid(
                f"The field {name} names what the guard cannot see: send the whole conversation as the input."
            )
    if asked.get("background"):
        raise invalid("A response in the background cannot be judged before it is read.")
    _check_tools(asked.get("tools"))
    items, sent, turns, removed = asked.get("input"), [], [], []
    instructions = asked.get("instructions")
    if not isinstance(instructions, str | None):
        raise invalid("The instructions must be a text.")
    if instructions:
        turns.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        turns.append({"role": "user", "content": items})
    elif not isinstance(items, list):
        raise invalid("The input must be a text, or a list of items.")
    for number, raw in enumerate(items if isinstance(items, list) else (), 1):
        where = f"Item {number} of the input"
        item, without = _read_item(raw, where)
        sent.append(item)
        removed += [f"input.{name}" for name in without]
        turns.append(_checked(chat_turn_of_item(item), where))
    body = asked if isinstance(items, str) else asked | {"input": sent}
    read = read_as_chat(body, RESPONSES_REQUEST_FIELDS, turns, passed_fields)
    return GuardedRequest(read.sent, read.conversations, (*read.removed, *dict.fromkeys(removed)))


def chat_turn_of_item(item: Any) -> JsonBody:
    """An item of an input or an output as a chat message. One of another kind is a part that the reader of messages
    refuses by name."""
    kind = kind_of_item(item)
    if kind == "message":
        return {key: value for key, value in item.items() if key in ("role", "content")}
    if kind in ("function_call", "custom_tool_call"):
        called = {key: item.get(key) for key in ("name", "arguments", "input") if key in item}
        return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": called}]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind == "reasoning":  # its encrypted content is read by nobody
        return {"role": "assistant", "reasoning": item.get("content"), "reasoning_content": item.get("summary")}
    return {"role": "user", "content": [item]}


def kind_of_item(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else None


def _read_item(raw: Any, where: str) -> tuple[JsonBody, list[str]]:
    """What passes of an item, and the names of what does not."""
    kind = kind_of_item(raw)
    if not isinstance(kind, str) or kind not in ITEM_FIELDS:
        named = f" of the type {shown(kind)}" if isinstance(kind, str) else ""
        raise invalid(f"{where} is{named or ' not an object'}, which the guard does not read.")
    item, removed, _ = filtered(raw, ITEM_FIELDS[kind], others=None)
    if item.get("encrypted_content") is not None:
        item["encrypted_content"] = opened(item["encrypted_content"], f"The encrypted_content of {where.lower()}")
    return item, removed


def _check_tools(tools: Any) -> None:
    if tools is not None and not isinstance(tools, list):
        raise invalid("The tools must be a list.")
    for tool in tools or ():
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if kind not in _OWN_TOOLS:
            raise invalid(f"A tool of the type {shown(str(kind))} brings what the guard cannot see.")


def _checked(turn: JsonBody, where: str) -> JsonBody:
    try:
        text_of_message(turn, where)
    except InputError as error:
        raise of_guard(error) from None
    return turn
