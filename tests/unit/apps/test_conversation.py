"""Which turns a guard is given of a request, and that nothing new in it is only context."""

from __future__ import annotations

from typing import Any

import pytest
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_apps.openai.conversation import read_conversation
from support.door_apis import Chat, Completions, Messages, Responses

ROLES = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}


def turns(short: str) -> list[dict[str, str]]:
    """`"u1 a2"`: a user's message with the text u1, and an assistant's with a2. A role alone has no text."""
    return [{"role": ROLES[each[0]], "content": each if each[1:] else " "} for each in short.split()]


@pytest.mark.parametrize(
    ("asked", "judged", "begun"),
    [
        ("u1", "u:u1", ""),
        ("s0 u1 u2", "s:s0 u:u1|u2", ""),
        ("u1 a2 t3 t4 u5", "u:u1 a:a2 u:t3|t4|u5", ""),
        ("u1 s2", "u:u1|s2", ""),
        ("s0 u1 d2 u3", "s:s0 u:u1|d2|u3", ""),
        ("u1 a2 s3 u4", "u:u1 a:a2 s:s3 u:u4", ""),
        ("u1 a2 s3", "u:u1 a:a2 u:s3", ""),
        ("s1 s2", "s:s1 u:s2", ""),
        ("u1 a u2", "u:u1|u2", ""),
        ("u1 a2 a3 u4 u5", "u:u1 a:a2 a:a3 u:u4|u5", ""),
        ("u1 u2 a3", "u:u1|u2", "a3"),
        ("u1 a2 u3 u4 a5 a6", "u:u1 a:a2 u:u3|u4", "a5|a6"),
        ("u1 u2 a", "u:u1|u2", ""),
        ("u1 a2 u", "u:u1|a2", ""),
    ],
)
def test_messages_without_an_answer_between_them_are_one_turn(asked: str, judged: str, begun: str) -> None:
    read = read_conversation({"messages": turns(asked)})
    told = " ".join(f"{each['role'][0]}:{each['content']}" for each in read.messages).replace("\n\n", "|")
    assert (told, read.begun.replace("\n\n", "|")) == (judged, begun)


def test_a_conversation_that_goes_on_begins_as_before() -> None:
    """So a guard that has computed the one has not to compute it again for the other."""
    before, after = (
        read_conversation({"messages": turns(each)}).messages for each in ("s0 u1 u2", "s0 u1 u2 a3 u4 u5")
    )
    assert after[: len(before)] == before


def test_answers_alone_are_no_conversation() -> None:
    with pytest.raises(ApiError, match="no message with text"):
        read_conversation({"messages": turns("a1 a2")})


def _result(name: str, content: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": name, "content": content}


_CALLS = [{"id": name, "function": {"name": "cook", "arguments": "{}"}} for name in ("1", "2")]
_USED: list[dict[str, Any]] = [{"type": "tool_use", "id": name, "name": "cook", "input": {}} for name in ("1", "2")]
REQUESTS: list[tuple[Any, dict[str, Any]]] = [
    (Chat(), {"messages": turns("u1 u2")}),
    (Chat(), {"messages": [*turns("u0"), {"role": "assistant", "tool_calls": _CALLS}, *turns("t1 t2")]}),
    (Messages(), {"messages": turns("u1 u2")}),
    (
        Messages(),
        {"messages": [{"role": "user", "content": [{"type": "text", "text": each} for each in ("u1", "u2")]}]},
    ),
    (
        Messages(),
        {
            "messages": [
                *turns("u0"),
                {"role": "assistant", "content": _USED},
                {"role": "user", "content": [_result("1", "t1"), _result("2", "t2")]},
            ]
        },
    ),
    (Messages(), {"messages": [{"role": "user", "content": [_result("1", "t1"), {"type": "text", "text": "u2"}]}]}),
    (Responses(), {"input": turns("u1 u2")}),
    (
        Responses(),
        {"input": [{"type": "function_call_output", "call_id": each[1], "output": each} for each in ("t1", "t2")]},
    ),
    (Completions(), {"prompt": "u1", "suffix": "u2"}),
]


@pytest.mark.parametrize(("api", "asked"), REQUESTS)
def test_all_that_is_new_is_in_the_turn_that_is_judged(api: Any, asked: dict[str, Any]) -> None:
    (read,) = api.door.read({"model": "fake"} | asked, ()).conversations
    last = read.messages[-1]
    assert (last["role"], "1" in last["content"], "2" in last["content"]) == ("user", True, True)
    assert "0" not in last["content"]
