"""LiteLLM's generic guardrail API: what is judged, as what, and what is blocked or let through by rule."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_apps.openai.batches import Batches
from qwen3guard_apps.openai.calls_in_progress import LONGEST_ID, MESSAGE_CHARACTERS, CallsInProgress
from qwen3guard_apps.openai.conversation import Conversation
from qwen3guard_apps.openai.litellm_guardrail import MAX_TEXTS, LiteLLMGuardrail
from qwen3guard_client import Category, Classification, Policy, RiskLevel, errors
from qwen3guard_contract.labels import AnswerStatus

USER = {"role": "user", "content": "How do I bake bread?"}


class Guard:
    """Keeps what it is asked, and finds the word `knife` unsafe in the last turn."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, str]]] = []
        self.failure: Exception | None = None

    async def classify(self, *, messages: list[dict[str, str]]) -> Classification:
        self.asked.append(messages)
        if self.failure:
            raise self.failure
        unsafe = "knife" in messages[-1]["content"]
        level = RiskLevel.UNSAFE if unsafe else RiskLevel.SAFE
        levels = dict.fromkeys(RiskLevel, 0.0) | {level: 1.0}
        named = (Category.VIOLENT,) if unsafe else ()
        return Classification(
            level,
            named,
            None,
            levels,
            dict.fromkeys(Category, 0.1),
            {},
            unsafe,
            unsafe,
            unsafe,
            "",
            "",
            AnswerStatus.COMPLETE,
        )


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def guardrail(guard: Guard) -> LiteLLMGuardrail:
    return LiteLLMGuardrail(guard, Policy(), Batches(0), gen=True, stream=False)  # type: ignore[arg-type]


def answer(guardrail: LiteLLMGuardrail, kind: str, **fields: Any) -> dict[str, Any]:
    return asyncio.run(guardrail.answer({"input_type": kind, "litellm_call_id": "1"} | fields))


def call(arguments: str) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "cut", "arguments": arguments}}


def test_an_answer_is_judged_in_the_conversation_of_its_request(guardrail: LiteLLMGuardrail, guard: Guard) -> None:
    asked = [USER, {"role": "assistant", "content": "So: "}]
    texts = [each["content"] for each in asked]
    assert answer(guardrail, "request", structured_messages=asked, texts=texts) == {"action": "NONE"}
    assert guard.asked == [[USER], asked]
    found = answer(guardrail, "response", texts=["Mix.", "Take a knife."], tool_calls=[call('{"with": "knife"}')])
    assert found == {"action": "BLOCKED", "blocked_reason": "The response is Unsafe, Violent."}
    said = ["So: Mix.", "So: Take a knife.", 'So: {"with": "knife"}']
    assert guard.asked[2:] == [[USER, {"role": "assistant", "content": each}] for each in said]


def test_an_answer_of_an_unknown_request_is_judged_alone(guardrail: LiteLLMGuardrail, guard: Guard) -> None:
    assert answer(guardrail, "response", texts=["Mix."])["action"] == "NONE"
    assert answer(guardrail, "response", texts=["A knife."])["action"] == "BLOCKED"
    assert guard.asked == [[{"role": "user", "content": each}] for each in ("Mix.", "A knife.")]


def test_texts_and_calls_that_the_messages_do_not_have_are_judged_too(
    guardrail: LiteLLMGuardrail, guard: Guard
) -> None:
    found = answer(guardrail, "request", structured_messages=[USER], texts=[USER["content"], "A knife."])
    assert found == {"action": "BLOCKED", "blocked_reason": "The text is Unsafe, Violent."}
    assert guard.asked == [[USER], [{"role": "user", "content": "A knife."}]]
    assert answer(guardrail, "request", structured_messages=[USER], tool_calls=[call("knife")])["action"] == "BLOCKED"
    assert answer(guardrail, "request", texts=["Bread.", "A knife."])["action"] == "BLOCKED"


@pytest.mark.parametrize("kind", ["request", "response"])
def test_a_request_has_a_bounded_number_of_texts_to_judge(guardrail: LiteLLMGuardrail, guard: Guard, kind: str) -> None:
    """Each costs a pass. Equal ones are judged once, and those of the messages with them."""
    turns = [USER] + [{"role": "user", "content": f"Question {number}."} for number in range(5000)]
    texts = [turn["content"] for turn in turns] if kind == "request" else []
    few, many = ([f"text {number}" for number in range(count)] for count in (MAX_TEXTS, MAX_TEXTS + 1))
    messages = {"structured_messages": turns} if kind == "request" else {}
    assert answer(guardrail, kind, texts=texts + few + few, **messages) == {"action": "NONE"}
    assert len(guard.asked) == MAX_TEXTS + (kind == "request")
    found = answer(guardrail, kind, texts=texts + many, **messages)
    assert found["action"] == "BLOCKED"
    assert f"{MAX_TEXTS + 1} different texts" in found["blocked_reason"]


@pytest.mark.parametrize("kind", ["request", "response"])
def test_what_has_no_text_is_let_through(guardrail: LiteLLMGuardrail, guard: Guard, kind: str) -> None:
    nothing: list[dict[str, Any]] = [
        {},
        {"texts": []},
        {"texts": [""]},
        {"texts": None, "tool_calls": [], "images": []},
    ]
    for fields in nothing:
        assert answer(guardrail, kind, **fields) == {"action": "NONE"}
    assert not guard.asked


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"texts": ["See."], "images": ["data:image/png;base64,AAAA"]}, "image"),
        ({"images": ["https://example.org/a.png"]}, "image"),
        ({"texts": ["a"], "structured_messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "audio"),
        ({"texts": ["a"], "structured_messages": [USER | {"documents": "knife"}]}, "documents"),
        ({"tool_calls": [{"function": "knife"}]}, "Call 1"),
        ({"text": "knife"}, "text"),
        ({"texts": ["a"], "files": ["knife"]}, "files"),
        ({"structured_messages": ["knife"]}, "Message 1"),
    ],
)
def test_what_cannot_be_read_is_blocked_by_its_name(
    guardrail: LiteLLMGuardrail, guard: Guard, fields: dict[str, Any], named: str
) -> None:
    found = answer(guardrail, "request", **fields)
    assert found["action"] == "BLOCKED"
    assert named in found["blocked_reason"]
    assert not guard.asked


def test_what_the_guard_refuses_is_blocked_and_what_fails_is_an_error(
    guardrail: LiteLLMGuardrail, guard: Guard
) -> None:
    guard.failure = errors.TextTooLong("It is too long.")
    assert "too long" in answer(guardrail, "request", texts=["Bread."])["blocked_reason"]
    guard.failure = errors.Unreachable("Nobody is there.")
    with pytest.raises(errors.Unreachable):
        answer(guardrail, "request", texts=["Bread."])


LISTS = ("texts", "tool_calls", "images", "structured_messages")


@pytest.mark.parametrize("kind", ["request", "response"])
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", [0, 0.0, False, "", {}, 1, True, "a", {"a": 1}], ids=repr)
def test_what_is_no_list_is_an_error(
    guardrail: LiteLLMGuardrail, guard: Guard, kind: str, name: str, value: object
) -> None:
    with pytest.raises(ApiError, match=name):
        answer(guardrail, kind, **{name: value})
    assert not guard.asked


@pytest.mark.parametrize("texts", [{}, {"texts": None}, {"texts": []}])
def test_a_conversation_is_judged_whether_or_not_its_texts_come(
    guardrail: LiteLLMGuardrail, guard: Guard, texts: dict[str, Any]
) -> None:
    asked = [{"role": "user", "content": "A knife."}]
    assert answer(guardrail, "request", structured_messages=asked, **texts)["action"] == "BLOCKED"
    assert guard.asked == [asked]
    found = answer(guardrail, "response", structured_messages=asked, **texts)
    assert "structured_messages" in found["blocked_reason"]


def test_what_says_nothing_of_the_conversation_is_passed_over(guardrail: LiteLLMGuardrail, guard: Guard) -> None:
    empty = {"role": "assistant", "content": None}
    others = dict.fromkeys(
        ("litellm_trace_id", "request_data", "request_headers", "litellm_version", "model", "tools", "new"), None
    )
    said = {"request_data": {"user_api_key_alias": "knife"}, "tools": [{"type": "knife"}], "model": "knife"}
    assert answer(guardrail, "request", structured_messages=[empty], **others) == {"action": "NONE"}
    assert answer(guardrail, "request", texts=["Bread."], **said) == {"action": "NONE"}
    assert guard.asked == [[{"role": "user", "content": "Bread."}]]


@pytest.mark.parametrize("wrong", [{"input_type": None}, {"texts": [1]}, {"litellm_call_id": 5}])
def test_what_litellm_does_not_send_is_an_error(guardrail: LiteLLMGuardrail, wrong: dict[str, Any]) -> None:
    with pytest.raises(ApiError):
        asyncio.run(guardrail.answer({"input_type": "request"} | wrong))


def test_conversations_are_kept_within_bounds_and_an_id_of_two_belongs_to_neither() -> None:
    calls = CallsInProgress(most_calls=2, most_characters=2 * MESSAGE_CHARACTERS + 10)
    one, two, long = (Conversation([{"role": "user", "content": each}], "") for each in ("one", "two", "x" * 9))
    for name, asked in (("a", one), ("b", two), ("a", one)):
        calls.begin(name, asked)
    assert (calls.conversation("a"), calls.conversation("b")) == (one, two)
    calls.begin("b", one)
    assert calls.conversation("b") is None
    calls.begin("b", one)
    assert calls.conversation("b") is None
    calls.begin("c", long)
    assert (calls.conversation("a"), calls.conversation("c")) == (None, long)
    for no_id in (None, 5, "", "x" * (LONGEST_ID + 1)):
        calls.begin(no_id, one)
        assert calls.conversation(no_id) is None
    calls.begin("d", Conversation([{"role": "user", "content": "x"}] * 3, ""))  # messages take more than their text
    assert calls.conversation("d") is None


def test_the_conversation_of_a_call_that_is_blocked_is_not_kept(guardrail: LiteLLMGuardrail) -> None:
    assert answer(guardrail, "request", structured_messages=[USER])["action"] == "NONE"
    assert guardrail._calls.conversation("1")
    blocked = answer(guardrail, "request", structured_messages=[{"role": "user", "content": "Take the knife."}])
    assert blocked["action"] == "BLOCKED"
    assert guardrail._calls.conversation("1") is None
