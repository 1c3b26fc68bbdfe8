"""The one reader of conversations: what it reads, in which order, and what it refuses."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qwen3guard_contract import errors
from qwen3guard_contract.json_values import MOST_VALUES
from qwen3guard_contract.message_text import PART_FIELDS, TEXT_FIELDS, places, text_of_message, text_of_places
from qwen3guard_contract.messages import TURNS, Message, conversation, parse_messages, read
from qwen3guard_contract.text import unescaped
from qwen3guard_runtime.text.chat import ChatTemplate
from support.places import DEMO
from support.texts import cut as cut_text


def text_of(**fields: Any) -> str:
    return text_of_message({"role": "assistant", **fields}, "Message 1")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\xff\xfe", errors.InvalidEncoding),
        (b'["\\ud800"', errors.InvalidMessages),
        (b"{", errors.InvalidMessages),
        (b'{"role": "user"}', errors.InvalidMessages),
        (b"[" * 100_000, errors.InvalidMessages),
        (b"[]", errors.EmptyText),
        (b"[1]", errors.InvalidMessages),
        (b'[{"content": "x"}]', errors.InvalidMessages),
        (b'[{"role": "robot", "content": "x"}]', errors.UnknownRole),
        (b'[{"role": "user"}]', errors.EmptyText),
        (b'[{"role": "user", "content": " \\n"}]', errors.EmptyText),
        (b'[{"role": "user", "content": 7}]', errors.InvalidMessages),
        (b'[{"role": "user", "content": {"text": "x"}}]', errors.InvalidMessages),
        (b'[{"role": "user", "content": [{"type": "image_url"}]}]', errors.InvalidMessages),
        (b'[{"role": "user", "content": "\\ud800"}]', errors.InvalidEncoding),
        (b'[{"role": "assistant", "tool_calls": {"a": 1}}]', errors.InvalidMessages),
        (b'[{"role": "assistant", "tool_calls": ["text"]}]', errors.InvalidMessages),
        (b'[{"role": "assistant", "tool_calls": [{"function": "text"}]}]', errors.InvalidMessages),
        (b'[{"role": "assistant", "function_call": "text"}]', errors.InvalidMessages),
    ],
)
def test_bad_messages_each_have_their_error(data: bytes, error: type[errors.GuardError]) -> None:
    with pytest.raises(error) as found:
        parse_messages(data)
    assert type(found.value) is error
    assert len(str(found.value)) < 200


def test_a_message_is_read_in_one_order() -> None:
    message = {
        "tool_calls": [
            {"id": "call_1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "g"}},
            {"custom": {"name": "c", "input": "h"}},
            {"name": "flat", "arguments": {"i": [1, "\u00e9"]}},
        ],
        "function_call": {"name": "f", "arguments": "f"},
        "refusal": "e",
        "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "c"}]}, "d"],
        "reasoning": "b",
        "reasoning_content": "a",
    }
    assert text_of(**message) == 'abcdefgh{"i": [1, "\u00e9"]}'


@pytest.mark.parametrize("kind", PART_FIELDS)
@pytest.mark.parametrize("field", TEXT_FIELDS)
def test_every_type_of_text_is_read_in_every_field(kind: str, field: str) -> None:
    parts = [{"type": kind, PART_FIELDS[kind]: "one "}, {"type": kind, PART_FIELDS[kind]: "two"}]
    assert text_of(**{field: parts}) == text_of(**{field: "one two"}) == "one two"


def test_a_mirrored_field_is_read_once() -> None:
    assert text_of(reasoning="one", reasoning_content="one", content="two") == "onetwo"
    assert text_of(reasoning="one two", content=[{"text": "one "}, {"text": "two"}]) == "one two"
    assert text_of(reasoning="a", content="b", refusal="a") == "ab"
    assert text_of(content="aa", tool_calls=[{"function": {"arguments": "aa"}}]) == "aaaa"


@given(st.fixed_dictionaries({}, optional={name: st.text("ab", max_size=3) for name in TEXT_FIELDS}))
def test_places_are_the_text_where_it_stands(fields: dict[str, str]) -> None:
    message = {**fields, "tool_calls": [{"function": {"arguments": "xy"}}]}
    text = text_of_places(places(message, "It"))
    for place in places(message, "It"):
        assert place.holder[place.key] == place.text == text[place.start :][: len(place.text)]
    assert set(text) == set("".join(fields.values())) | set("xy")


@pytest.mark.parametrize("characters", range(9))
def test_a_message_can_be_cut_in_its_places(characters: int) -> None:
    message: dict[str, Any] = {
        "reasoning": "abc", "reasoning_content": "abc", "content": ["d", {"type": "text", "text": "e"}],
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
    }  # fmt: skip
    whole = text_of(**message)
    cut = deepcopy(message)
    for place in list(places(cut, "It")):
        place.holder[place.key] = place.text[: max(0, characters - place.start)]
    assert text_of(**cut) == whole[:characters]
    assert cut["reasoning"] == cut["reasoning_content"]


@pytest.mark.parametrize("field", ["audio", "thinking_blocks", "documents", "x", "token_ids", "parsed"])
@pytest.mark.parametrize("value", [[{"text": "secret"}], {"a": "secret"}, "secret", [None], [1, 2], {"secret": 1}])
@pytest.mark.parametrize("place", ["Message 2", "Part 1 of message 2", "Call 1 of message 2"])
def test_a_field_that_is_not_read_is_refused_by_its_name(field: str, value: object, place: str) -> None:
    holder: dict[str, Any] = {field: value}
    turn: dict[str, Any] = {
        "Message 2": {"content": "Sure.", **holder},
        "Part 1 of message 2": {"content": [{"type": "text", "text": "Sure.", **holder}]},
        "Call 1 of message 2": {"content": "Sure.", "tool_calls": [{"function": {"arguments": "{}", **holder}}]},
    }[place]
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", **turn}]
    with pytest.raises(errors.InvalidMessages, match=f"^{place} has a field '{field}'") as found:
        parse_messages(json.dumps(turns).encode())
    assert "secret" not in str(found.value)


@pytest.mark.parametrize("inner", ["function", "custom"])
def test_no_field_is_read_where_it_does_not_belong(inner: str) -> None:
    for called in ({inner: {"arguments": "secret"}}, {"content": "secret"}, {"tool_calls": "secret"}):
        with pytest.raises(errors.InvalidMessages, match="has a field"):
            text_of(tool_calls=[{"function": {"arguments": "{}", **called}}])
    with pytest.raises(errors.InvalidMessages, match="has a field 'text'"):
        text_of(content="Sure.", text="secret")
    with pytest.raises(errors.InvalidMessages, match="has a field 'refusal'"):
        text_of(content=[{"type": "text", "text": "Sure.", "refusal": "secret"}])


@pytest.mark.parametrize("value", [None, "", [], {}, 0, 7, 0.5, False, True, " \n"])
def test_a_field_without_text_is_harmless(value: object) -> None:
    part = {"type": "text", "text": "Sure.", "annotations": value}
    turn = {"role": "assistant", "content": [part], "audio": value, "x": value}
    assert parse_messages(json.dumps([turn]).encode()) == [Message("assistant", "Sure.")]


def test_a_field_whose_name_is_a_text_is_refused() -> None:
    with pytest.raises(errors.InvalidMessages):
        text_of(content="Sure.", **{"This is text.": True})


def test_names_and_ids_are_accepted_where_they_can_hold_no_sentence() -> None:
    ids = {"id": "msg_1-2", "name": "ann.b@c", "tool_call_id": "call_9:0", "type": "message", "status": "completed"}
    cached = {"type": "text", "text": "Sure.", "cache_control": {"type": "ephemeral", "ttl": "5m"}}
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    assert text_of(content=[cached], tool_calls=[call], **ids) == "Sure."
    for name in ids:
        for value in ("a b", "n" * 129, "a\n", "\u00e9", ["a", "b"], {"a": "b"}):
            with pytest.raises(errors.InvalidMessages, match=f"Message 1 has a {name} that is not an identifier"):
                text_of(content="Sure.", **{name: value})
    for value in ({"type": "a b"}, {"text": "ephemeral"}, "secret", ["a"]):
        with pytest.raises(errors.InvalidMessages, match="'cache_control'"):
            text_of(content=[cached | {"cache_control": value}])
    with pytest.raises(errors.InvalidMessages, match=r"^Call 1 of message 1 has a name"):
        text_of(tool_calls=[{"function": {"name": "do harm"}}])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}, "text": "harmless"}, "has the type 'image_url'"),
        ({"type": "input_audio", "text": "harmless"}, "has the type 'input_audio'"),
        ({"type": "file", "text": "harmless"}, "has the type 'file'"),
        ({"type": "thinking", "text": "harmless"}, "has a field 'text'"),
        ({"type": "", "text": "harmless"}, "has the type ''"),
        ({"type": ["text"], "text": "harmless"}, "has a type that is not a string"),
        ({"type": "text", "text": "harmless", "image_url": {"url": "x"}}, "has a field 'image_url'"),
        ({"text": "harmless", "input_audio": "x"}, "has a field 'input_audio'"),
        ({"type": "text", "text": ["harmless"]}, "has no string as its text"),
        ({"type": "thinking", "thinking": [{"type": "thinking", "thinking": ["x"]}]}, "has no string as its thinking"),
        ({"type": "thinking", "thinking": [{"type": "image_url"}]}, "has the type 'image_url'"),
        ({"type": "thinking", "thinking": [{"text": "a", "x": "b"}]}, "has a field 'x'"),
        (None, "is not an object"),
        (7, "is not an object"),
    ],
)
def test_a_part_that_is_not_text_alone_is_refused(part: object, words: str) -> None:
    data = json.dumps([{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]).encode()
    with pytest.raises(errors.InvalidMessages, match=f"[Pp]art 2 of message 1 {words}"):
        parse_messages(data)


@pytest.mark.parametrize("number", [7, 0, 0.5, True, False])
@pytest.mark.parametrize("field", TEXT_FIELDS)
def test_a_number_is_not_text(field: str, number: float) -> None:
    with pytest.raises(errors.InvalidMessages, match=f"The {field} of message 1 is not text"):
        text_of(**{field: number})
    with pytest.raises(errors.InvalidMessages, match="The text of part 1 of message 1 is not text"):
        text_of(**{field: [{"text": number}]})


def test_of_two_fields_with_one_name_neither_is_dropped() -> None:
    for data in (
        b'[{"role": "user", "content": "harmful", "content": "harmless"}]',
        b'[{"role": "user", "content": [{"text": "harmful", "text": "harmless"}]}]',
        b'[{"role": "user", "role": "user", "content": "harmless"}]',
    ):
        with pytest.raises(errors.InvalidMessages, match=r"two fields '(content|text|role)'"):
            parse_messages(data)


@pytest.mark.parametrize(
    "name", ["n" * 1000, "a\nb\x00\x1b[31m\u2028\u202e", "\ud800", "[EMPTY_TEXT] x\r\n", "\x9b" * 99]
)
def test_a_name_that_the_caller_chose_is_shown_short_and_in_one_line(name: str) -> None:
    for turn in (
        {"role": "user", "content": "x", name: "secret"},
        {"role": "user", "content": [{"text": "x", name: "secret"}]},
        {"role": "user", "content": [{"text": "x", "type": name}]},
    ):
        with pytest.raises(errors.InvalidMessages) as found:
            parse_messages(json.dumps([turn]).encode())
        assert str(found.value).isprintable()
        assert len(str(found.value)) < 150
        told = errors.from_text(found.value.wire_text())
        assert (type(told), str(told)) == (errors.InvalidMessages, str(found.value))


@pytest.mark.parametrize("role", TURNS)
def test_each_role_is_one_of_three(role: str) -> None:
    assert read([{"role": role, "content": "x"}]) == [Message(TURNS[role], "x")]
    assert set(TURNS.values()) == {"system", "user", "assistant"}


@pytest.mark.parametrize("variant", ["gen", "stream", "qwen"])
def test_templates_write_every_turn_of_what_is_read(variant: str, qwen_folder: Path) -> None:
    """Several user's turns in a row, and the system's in the middle, as tools and developers give them."""
    raw = [
        {"role": "user", "content": "First."},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"second": 2}}}]},
        {"role": "tool", "content": "Third."},
        {"role": "tool", "content": "Fourth."},
        {"role": "developer", "content": "Fifth."},
        {"role": "assistant", "content": None, "reasoning": "Sixth.", "tool_calls": None},
        {"role": "assistant", "content": "Seventh."},
        {"role": "user", "content": [{"type": "text", "text": "Eighth."}]},
    ]
    messages = read(raw)
    template = ChatTemplate.load(qwen_folder if variant == "qwen" else DEMO / variant)
    text = template.tokenizer.decode(template.render(messages, 4096))
    places = [text.index(each.content) for each in messages]
    assert places == sorted(places)
    if variant != "gen":  # Gen's template writes all turns into one
        assert text.count("<|im_start|>") == len(messages) + 1
        for each in messages:
            assert f"<|im_start|>{each.role}\n{each.content}<|im_end|>\n" in text


def test_messages_without_text_are_left_out_but_never_the_last() -> None:
    def turn(role: str, content: object = None) -> dict[str, object]:
        return {"role": role, "content": content}

    spoken = turn("user", "Hi.")
    assert read([turn("assistant"), spoken, turn("tool", " "), spoken]) == [Message("user", "Hi.")] * 2
    with pytest.raises(errors.EmptyText, match="Message 2, the last one, has no text"):
        read([spoken, turn("assistant", [])])
    with pytest.raises(errors.EmptyText, match="The messages have no text"):
        read([turn("user"), turn("assistant", "")])
    with pytest.raises(errors.EmptyText, match="The list of messages is empty"):
        read([])


def test_a_request_names_one_conversation() -> None:
    with pytest.raises(errors.InvalidRequest):
        conversation(b"[]", b"prompt", None)
    with pytest.raises(errors.EmptyText):
        conversation(None, None, b"response")
    with pytest.raises(errors.EmptyText):
        conversation(None, b"", None)


def test_messages_that_cannot_fit_are_refused_before_they_are_parsed() -> None:
    for data in (b"[" + b"{}," * 200_000 + b"{}]", b" " * 400_000, b"\xff" * 400_000):
        with pytest.raises(errors.TextTooLong):
            conversation(data, None, None, limit=4096)
    with pytest.raises(errors.TextTooLong, match="messages"):
        read([{"role": "user", "content": "a"}] * 5000, 4096)
    with pytest.raises(errors.TextTooLong, match="messages"):
        ChatTemplate.load(DEMO / "stream").render([Message("user", "a")] * 5000, 4096)


@pytest.mark.parametrize("number", ["9" * 5000, "1e999", "-Infinity"])
def test_a_number_in_the_messages_is_not_text(number: str) -> None:
    with pytest.raises(errors.InvalidMessages):
        parse_messages(f'[{{"role": "user", "content": {number}}}]'.encode())


def test_arguments_that_no_json_can_hold_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, {"a": b"bytes"}, {1, 2}):
        with pytest.raises(errors.InvalidMessages, match="The arguments of call 1 of message 1 cannot be read"):
            text_of(tool_calls=[{"function": {"arguments": value}}])


def test_escapes_of_arguments_are_read_as_characters_however_they_are_cut() -> None:
    source = random.Random(5)
    for _ in range(500):
        value = {"x": "".join(source.choice('abu\\"é猫\U0001f600\n k') for _ in range(20))}
        text = json.dumps(value)
        whole, rest = unescaped(text)
        assert json.loads(whole) == value
        assert not rest
        pieces, cut = "", ""
        for piece in cut_text(text, source, 4):
            decoded, cut = unescaped(cut + piece)
            pieces += decoded
        assert pieces == whole
    call = {"function": {"arguments": json.dumps({"x": "猫"})}}
    assert text_of_message({"role": "assistant", "tool_calls": [call]}, "It") == '{"x": "猫"}'
    odd = {r"\ud83d": "\ufffd", r"\u00": r"\u00", r"\uZZZZ": r"\uZZZZ", r"\\u0041": r"\\u0041", r"\u000a": r"\u000a"}
    odd[r"\\ud83d"] = r"\\ud83d"
    assert unescaped(r"\uZZ \u00") == (r"\uZZ ", r"\u00")
    for escape, said in odd.items():
        assert "".join(unescaped(escape + "!")) == said + "!"


def test_more_values_than_a_conversation_can_have_are_refused_before_they_are_read() -> None:
    """Each is refused or read in microseconds, and a million of them keep everybody else waiting."""
    calls: list[dict[str, Any]] = [{}] * (MOST_VALUES - 3)
    for more, error in ((calls, errors.EmptyText), ([*calls, {}, {}], errors.TextTooLong)):
        data = json.dumps([{"role": "user", "tool_calls": more}]).encode()
        with pytest.raises(error):
            parse_messages(data)
