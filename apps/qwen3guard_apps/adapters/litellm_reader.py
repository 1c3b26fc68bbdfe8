"""What LiteLLM's calls ask and answer, read as the texts of chat messages.

Of an answer, what is not read is removed in place. What cannot be read is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3guard_contract.errors import InvalidMessages
from qwen3guard_contract.message_text import (
    EMPTY,
    IDENTIFIER,
    TextPlace,
    places,
    text_of_places,
    unread,
    with_decoded_calls,
)
from qwen3guard_contract.text import shown, unescaped

from qwen3guard_apps.doors.anthropic_request import chat_turns_of_blocks
from qwen3guard_apps.doors.responses_request import chat_turn_of_item
from qwen3guard_apps.openai import conversation
from qwen3guard_apps.openai.conversation import Conversation
from qwen3guard_apps.openai.escapes import Escapes
from qwen3guard_apps.openai.interleaved import Interleaved, owners_of

CHAT_CALLS = ("completion", "acompletion")
COMPLETION_CALLS = ("text_completion", "atext_completion")
ANTHROPIC_CALLS = ("anthropic_messages", "aanthropic_messages")
RESPONSES_CALLS = ("responses", "aresponses")
WITHOUT_READER = (
    *("embedding", "aembedding", "embeddings", "rerank", "arerank", "moderation", "amoderation"),
    *("token_counter", "list_models"),
)
"""Calls whose text goes to no reader: what answers them are numbers, or the caller's own text."""
_ANSWERS_WITHOUT_READER = ("EmbeddingResponse", "RerankResponse", "OpenAIModerationResponse")
_JUDGED = (*CHAT_CALLS, *COMPLETION_CALLS, *ANTHROPIC_CALLS, *RESPONSES_CALLS)
_ANSWER = {"id", "created", "model", "object", "system_fingerprint", "choices", "usage"}
_CHOICE = {"index", "finish_reason", "message", "delta"}
_COMPLETION = {"index", "finish_reason", "text", "reasoning_content"}
_MESSAGE = {"role", "content", "refusal", "reasoning_content", "reasoning", "function_call", "tool_calls"}
_IDENTIFIERS = {"id", "model", "object", "system_fingerprint", "finish_reason", "role"}
_SIGNATURE = re.compile(r"[A-Za-z0-9+/=_-]*")


def call_type_of(data: Mapping[str, Any], answer: Any) -> str:
    """The type of the call that had this answer, or the type of a stream's call if `answer` is None."""
    if isinstance(answer, dict) and answer.get("type") == "message":
        return ANTHROPIC_CALLS[0]
    if getattr(answer, "object", None) == "response":
        return RESPONSES_CALLS[0]
    if type(answer).__name__ in _ANSWERS_WITHOUT_READER:
        return WITHOUT_READER[0]
    logged = getattr(data.get("litellm_logging_obj"), "call_type", None)
    if isinstance(logged, str) and logged not in (*_JUDGED, *WITHOUT_READER):
        return logged
    if data.get("messages"):
        return CHAT_CALLS[0]
    return RESPONSES_CALLS[0] if "input" in data else COMPLETION_CALLS[0] if "prompt" in data else CHAT_CALLS[0]


@dataclass(frozen=True)
class Asked:
    """The conversations of a request: one, or one for each prompt of a text completion."""

    conversations: list[Conversation]
    choices: int
    """How many answers each of them is to have."""

    def of_choice(self, index: int) -> Conversation:
        """Raises InvalidMessages for a choice that was not asked for."""
        if not 0 <= index < self.choices * len(self.conversations):
            raise InvalidMessages(f"The answer has a choice {index} that was not asked for.")
        return self.conversations[index // self.choices]

    def prompts(self) -> list[tuple[Conversation, str]]:
        return [(each, "") for each in self.conversations]

    def answered(self, answer: Any) -> list[tuple[Conversation, str]]:
        """Each choice of a whole answer that has text, in its conversation. Raises InvalidMessages."""
        return [(self.of_choice(index), text) for index, text in texts_of(answer).items()]


def asked(data: Mapping[str, Any], call_type: str) -> Asked:
    """What a request asks. Raises ApiError and InvalidMessages where the guard cannot read it."""
    count = data.get("n") or 1
    if not isinstance(count, int) or count < 1:
        raise InvalidMessages("n must be a whole number from 1.")
    return Asked(_conversations_of(data, call_type), count)


def _conversations_of(data: Mapping[str, Any], call_type: str) -> list[Conversation]:
    if call_type not in _JUDGED:
        raise InvalidMessages(f"A call of the type {shown(str(call_type))} is not judged here.")
    if call_type in COMPLETION_CALLS:
        prompts = data.get("prompt")
        listed = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(listed, list) or not listed or not all(isinstance(each, str) for each in listed):
            raise InvalidMessages("The prompt of a text completion must be text; token ids cannot be read.")
        return [conversation.read_conversation({"messages": [_turn("user", each)]}) for each in listed]
    if call_type in RESPONSES_CALLS:
        items = data.get("input")
        turns = [_turn("user", items)] if isinstance(items, str) else [*map(chat_turn_of_item, items or ())]
        instructions = data.get("instructions")
        messages = [_turn("system", instructions), *turns] if instructions else turns
    elif call_type in ANTHROPIC_CALLS:
        messages = [turn for each in data.get("messages") or () for turn in chat_turns_of_blocks(each)]
        messages = (
            [*chat_turns_of_blocks(_turn("system", data["system"])), *messages] if data.get("system") else messages
        )
    else:
        return [conversation.read_conversation(data)]
    return [conversation.read_conversation({"messages": messages})]


def texts_of(answer: Any) -> dict[int, str]:
    """The text of each choice of an answer, or of a chunk of one. Raises InvalidMessages."""
    if isinstance(answer, dict) and answer.get("type") == "message":
        return {0: "\n".join(_text(turn, "The answer") for turn in chat_turns_of_blocks(answer))}
    if getattr(answer, "object", None) == "response":
        output = answer.model_dump(exclude_none=True).get("output") or []
        return {0: "\n".join(_text(chat_turn_of_item(each), "The answer") for each in output)}
    texts = StreamedTexts()
    found = texts(answer).items()
    return {index: "\n".join(texts.fields(index)) if text is None else text for index, text in found}


class StreamedTexts:
    """The text of each choice of the chunks of one answer, given one after the other."""

    def __init__(self) -> None:
        self._choices: dict[int, tuple[Escapes, Interleaved]] = {}

    def __call__(self, answer: Any) -> dict[int, str | None]:
        """As `texts_of`; before a field that the stream comes back to, with the end of that field. None for a text that
        waits for the end of the stream (`fields`). Raises InvalidMessages."""
        if not isinstance(getattr(answer, "choices", None), Sequence):
            raise InvalidMessages(f"An answer of the type {shown(type(answer).__name__)} cannot be judged.")
        _drop_unread(answer, _ANSWER)
        texts: dict[int, str | None] = {}
        for choice in answer.choices:
            raw, where = _of_choice(choice)
            index = choice.index or 0
            escapes, interleaved = self._choices.setdefault(index, (Escapes(), Interleaved()))
            of = owners_of({}, raw)
            found = escapes.decoded(of, _places(raw, where))
            again, before = interleaved.again(of, raw, found), texts.get(index, "")
            waits = again is None or before is None
            texts[index] = None if waits else f"{before}{again}{text_of_places(found)}"
        return {index: text for index, text in texts.items() if text != ""}

    def fields(self, index: int) -> list[str]:
        """The whole text of each field of a choice."""
        return self._choices[index][1].fields()


def _of_choice(choice: Any) -> tuple[dict[str, Any], str]:
    """The message, or the piece of one, and what an error's sentence calls it."""
    message = getattr(choice, "message", None) or getattr(choice, "delta", None)
    _drop_unread(choice, _COMPLETION if message is None else _CHOICE)
    if message is None:
        raw = {
            "reasoning_content": getattr(choice, "reasoning_content", None),
            "content": getattr(choice, "text", None),
        }
        return raw, "The text"
    blocks = getattr(message, "thinking_blocks", None) or []
    signed = all(set(each) <= {"type", "thinking", "data", "signature"} for each in blocks)
    if signed and all(_SIGNATURE.fullmatch(each.get(key) or "") for each in blocks for key in ("data", "signature")):
        thinking = "".join(each.get("thinking") or "" for each in blocks)
        _drop_unread(message, _MESSAGE | {"thinking_blocks"})
    else:
        thinking = ""
        _drop_unread(message, _MESSAGE)
    raw = message.model_dump(exclude_none=True, include=_MESSAGE)
    return ({"reasoning": thinking} if thinking else {}) | raw, "The message"


def _text(raw: dict[str, Any], where: str) -> str:
    """As `text_of_message`, of a piece, which may end within a surrogate pair."""
    return text_of_places(with_decoded_calls(_places(raw, where), lambda place: "".join(unescaped(place.text))))


def _places(raw: dict[str, Any], where: str) -> Iterator[TextPlace]:
    """Raises InvalidMessages for a field with text that is not read."""
    for _, key, place in unread(raw, where):
        raise InvalidMessages(f"{place} has a field {shown(key)}, which the guard does not read.")
    return places(raw, where)


def _drop_unread(holder: Any, read: set[str]) -> None:
    """Removes the fields that are not read and may have text."""
    extra = holder.model_extra or {}
    for name, value in [*vars(holder).items(), *extra.items()]:
        passes = name in read
        if name in _IDENTIFIERS:
            passes = passes and isinstance(value, str) and bool(IDENTIFIER.fullmatch(value))
        if not (passes or value in EMPTY or isinstance(value, bool | int | float)):
            if name in extra:
                del extra[name]
            else:
                setattr(holder, name, None)


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}
