"""What NeMo Guardrails tells an action, read as chat messages in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen3guard_contract.message_text import text_of_message

from qwen3guard_apps.openai import conversation
from qwen3guard_apps.openai.conversation import Conversation

Json = dict[str, Any]
_WRITTEN = {"BotThinking": "content", "BotToolCalls": "tool_calls"}


def judged_messages(name: str, context: Mapping[str, Any], events: Sequence[Json]) -> list[Json]:
    """What the rail of this name judges: the last message, in its conversation. Empty if it has nothing to judge."""
    readers = {"input": prompt, "output": response, "tool_output": tool_output, "tool_input": tool_input}
    return readers[name](context, events)


def answered(messages: list[Json]) -> list[tuple[Conversation, str]]:
    """The model's message and the conversation before it. Raises ApiError and InvalidMessages."""
    *before, last = messages or [{}]
    return (
        [(conversation.read_conversation({"messages": before}), text_of_message(last, "The answer"))] if before else []
    )


def prompt(context: Mapping[str, Any], events: Sequence[Json]) -> list[Json]:
    """The conversation that ends with the user's message. Empty if that has nothing to judge."""
    message = context.get("user_message")
    if not message or (isinstance(message, str) and not message.strip()):
        return []
    turns = _history(events)
    said = _turn("user", message)
    return turns if turns[-1:] == [said] else [*turns, said]


def response(context: Mapping[str, Any], events: Sequence[Json]) -> list[Json]:
    """The conversation that ends with the model's message, its reasoning first. Empty if it has nothing to judge."""
    message, thinking = context.get("bot_message"), context.get("bot_thinking")
    if not thinking and (not message or (isinstance(message, str) and not message.strip())):
        return []
    return [*prompt(context, events), _turn("assistant", message) | {"reasoning": thinking}]


def tool_output(context: Mapping[str, Any], events: Sequence[Json]) -> list[Json]:
    """The conversation that ends with the model's tool calls. Empty if there are none."""
    calls = context.get("tool_calls")
    if not calls:
        return []
    thinking = context.get("bot_thinking")
    return [*prompt(context, events), {"role": "assistant", "reasoning": thinking, "tool_calls": _calls(calls)}]


def tool_input(context: Mapping[str, Any], events: Sequence[Json]) -> list[Json]:
    """The conversation that ends with a tool's result. Empty if that has nothing to judge."""
    result = context.get("tool_message")
    if not result or (isinstance(result, str) and not result.strip()):
        return []
    return [*prompt(context, events), _turn("tool", result)]


def withhold(events: Sequence[Json]) -> None:
    """Empties reasoning and tool calls. NeMo returns those of its events, also of an answer that a rail has stopped."""
    for event in events:
        if field := _WRITTEN.get(event.get("type", "")):
            event[field] = type(event[field])() if event.get(field) else event.get(field)


def _history(events: Sequence[Json]) -> list[Json]:
    """The turns that NeMo has events of, up to the last one of the user's."""
    turns: list[Json] = []
    for event in events:
        kind = event.get("type")
        if kind == "SystemMessage":
            turns.append(_turn("system", event.get("content")))
        elif kind == "UtteranceUserActionFinished":
            turns.append(_turn("user", event.get("final_transcript")))
        elif kind == "StartUtteranceBotAction":
            turns.append(_turn("assistant", event.get("script")))
    while turns and turns[-1]["role"] != "user":
        turns.pop()
    return turns


def _turn(role: str, content: Any) -> Json:
    return {"role": role, "content": content}


def _calls(calls: Any) -> Any:
    """In OpenAI's form; LangChain's has name and args at the top. What is neither, the reader refuses."""
    if not isinstance(calls, list):
        return calls
    return [
        {"function": {"name": call.get("name"), "arguments": call["args"]}}
        if isinstance(call, dict) and "args" in call and "function" not in call
        else call
        for call in calls
    ]
