"""What of a request is sent on to the LLM: what the allow-list of its API names, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen3guard_contract.message_text import CALLED, EMPTY

from qwen3guard_apps.openai import conversation, fields
from qwen3guard_apps.openai.api_error import invalid
from qwen3guard_apps.openai.conversation import Conversation
from qwen3guard_apps.openai.shapes import REMOVED, Shape, is_name, may_be_prose

_CALLED = (*CALLED, "function_call")
MOST_REPEATED = 2**22
"""The most characters that are judged with each of several conversations, all of them together."""
MOST_UNKNOWN = 8
"""Of more fields that no table names, the names are judged: in their order they may be prose."""


@dataclass(frozen=True)
class GuardedRequest:
    """`sent` goes to the LLM, and `conversations` to the guard: one, or one for each prompt of a text completion.
    `removed` names the fields that go to neither. `n` is how many answers each conversation is to have, unchecked."""

    sent: dict[str, Any]
    conversations: tuple[Conversation, ...]
    removed: tuple[str, ...]
    n: Any = None

    @property
    def conversation(self) -> Conversation:
        return self.conversations[0]


def read_request(asked: Mapping[str, Any], passed_fields: Collection[str] = ()) -> GuardedRequest:
    """Reads a request for a chat completion. The text of `passed_fields`, which the operator lets through, and names
    that may be prose are judged with the last turn.

    Raises ApiError for what cannot be judged.
    """
    read = read_as_chat(asked, fields.REQUEST_FIELDS, asked.get("messages"), passed_fields)
    return replace(read, n=asked.get("n"))


def read_as_chat(
    asked: Mapping[str, Any],
    table: fields.Table,
    messages: Any,
    passed_fields: Collection[str] = (),
    also: Collection[str] = (),
    *,
    others: Sequence[list[dict[str, Any]]] = (),
) -> GuardedRequest:
    """As `read_request`, of a request whose fields are those of `table`, and whose conversation is `messages` in the
    form of chat completions. The texts `also` are judged with the last turn. `others` are further conversations, whose
    messages have a role and a content alone.

    Where `messages` are the request's own, they are sent as they are read. Another form of a conversation is sent as
    `asked` has it: who translates it has left out of it what is not in `messages`.
    """
    sent, removed, extra = filtered(asked, table, passed_fields)
    names = list(_unknown_names(sent, {*table, *passed_fields}))
    if not isinstance(asked.get("stream"), bool | None):
        raise invalid("stream must be true or false.")
    read_messages = []
    read_as_they_are = messages is asked.get("messages")
    sent_messages: list[Any] = []
    if isinstance(messages, list):
        for raw in messages:
            if not isinstance(raw, dict):
                raise invalid("A message must be an object with a role.")
            message, without, more = filtered(raw, fields.REQUEST_MESSAGE_FIELDS, passed_fields)
            sent_messages.append(message)
            names += _unknown_names(message, {*fields.REQUEST_MESSAGE_FIELDS, *passed_fields})
            extra += filter(may_be_prose, _own_names(message))
            read_messages.append({name: value for name, value in message.items() if name not in passed_fields})
            removed += [f"messages.{name}" for name in without]
            extra += more
        if read_as_they_are:
            sent["messages"] = sent_messages
    names = list(dict.fromkeys(names))
    if len(names) > MOST_UNKNOWN or any(map(may_be_prose, names)):
        extra.append(" ".join(names))
    extra = list(dict.fromkeys([*also, *extra]))
    if sum(map(len, extra)) * len(others) > MOST_REPEATED:
        raise invalid("What is judged with each conversation is too long for so many.")
    every = [read_messages if isinstance(messages, list) else messages, *others]
    conversations = tuple(conversation.read_conversation({"messages": each}) for each in every)
    if extra:
        for each in conversations:
            each.messages[-1]["content"] += "\n" + "\n".join(extra)
    return GuardedRequest(sent, conversations, tuple(dict.fromkeys(removed)))


def _unknown_names(passed: Mapping[str, Any], tables: Collection[str]) -> Iterator[str]:
    """The names of the fields that pass and stand in no table, and of those in them."""
    for name, value in passed.items():
        if name not in tables:
            yield from _names_in({name: value})


def _names_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (name for name in value if name not in fields.KNOWN_NAMES)
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names_in(each)


def _own_names(message: Mapping[str, Any]) -> Iterator[str]:
    """The names and ids in a message, which the LLM may read."""
    calls = message.get("tool_calls")
    called = [message, *(calls if isinstance(calls, list) else ())]
    called += [each[kind] for each in called if isinstance(each, dict) for kind in _CALLED if kind in each]
    for each in called:
        if isinstance(each, dict):
            yield from (each[key] for key in ("name", "id", "tool_call_id") if isinstance(each.get(key), str))


def filtered(
    raw: Mapping[str, Any],
    table: fields.Table,
    passed_fields: Collection[str] = (),
    others: Shape | None = fields.OTHERS,
) -> tuple[dict[str, Any], list[str], list[str]]:
    """What passes of `raw`, the names of what does not, and the texts of the fields that the operator lets through.
    `others` is the shape of what passes under other names; None lets nothing pass."""
    passed: dict[str, Any] = {}
    removed, texts = [], []
    for name, value in raw.items():
        if name in passed_fields and name not in table:
            passed[name] = value
            if value not in EMPTY:
                texts.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            continue
        shape = table.get(name, others)
        read = REMOVED if shape is None else None if value is None else shape.read(value)
        if read is not REMOVED and (name in table or is_name(name)):
            passed[name] = read
            removed += _missing(name, value, read)
        elif value not in EMPTY:
            removed.append(name if is_name(name) else "?")
    return passed, removed, texts


def _missing(name: str, value: Any, passed: Any) -> list[str]:
    """What of the field `name`, whose value is `value`, is not in what passes of it."""
    if passed is value or passed == value:
        return []
    if isinstance(value, dict) and isinstance(passed, dict):
        found = []
        for key, inner in value.items():
            where = f"{name}.{key if is_name(key) else '?'}"
            found += _missing(where, inner, passed[key]) if key in passed else [where]
        return found
    return [name]
