"""From conversations and pieces of text to token ids, with the real Qwen3 tokenizer and the demo's."""

from __future__ import annotations

import json
import random
from pathlib import Path
from unicodedata import normalize

import pytest
from conftest import DEMO, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen3guard_client import errors
from qwen3guard_runtime.chat import ChatTemplate, Message, conversation, parse_messages
from qwen3guard_runtime.incremental import LOOKAHEAD, STRETCH, tokenize
from qwen3guard_runtime.tokenizer import IM_END, IM_START, GuardTokenizer
from texts import TEXTS, cut
from transformers import AutoTokenizer, PreTrainedTokenizerFast

LIMIT = 32768
SHARED = ROOT.parent / "shared" / "data" / "multilingual.jsonl"


@pytest.fixture(scope="module", params=["qwen", "demo"])
def folder(request: pytest.FixtureRequest, qwen_folder: Path) -> Path:
    return qwen_folder if request.param == "qwen" else DEMO / "gen"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> GuardTokenizer:
    return GuardTokenizer.load(folder)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def all_texts() -> list[str]:
    """Ours, and where it stands beside the project the large multilingual set."""
    texts = list(TEXTS)
    if SHARED.is_file():
        texts += [json.loads(line)["text"] for line in SHARED.read_text(encoding="utf-8").splitlines()]
    return texts


def stream(tokenizer: GuardTokenizer, pieces: list[str]) -> tuple[list[int], int]:
    """Final ids of a text in pieces, kept as the client keeps them, and the longest tail in bytes."""
    ids: list[int] = []
    tail, longest = "", 0
    for piece in pieces:
        tail += piece
        found = tokenize(tokenizer, tail, LIMIT, end=False)
        ids += found.ids[: found.final_tokens]
        tail = tail[found.final_characters :]
        longest = max(longest, len(tail.encode()))
    return ids + list(tokenize(tokenizer, tail, LIMIT, end=True).ids), longest


def test_text_in_any_pieces_gives_the_tokens_of_the_whole(tokenizer: GuardTokenizer) -> None:
    source = random.Random(7)
    for text in all_texts():
        ids, _ = stream(tokenizer, cut(text, source))
        assert ids == tokenizer.encode(text), text


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.text(
            alphabet=st.sampled_from("ab1 \n\r\t.'!éé\u0301\u0300\u0323가ᄀ\u1161\u11a8漢👍\u200d🏽\ufe0fநி\u0bbe")
            | st.characters(exclude_categories=["Cs"]),
            min_size=1,
            max_size=5,
        ),
        max_size=12,
    )
)
def test_hostile_pieces_give_the_tokens_of_the_whole(demo_tokenizer: GuardTokenizer, pieces: list[str]) -> None:
    ids, _ = stream(demo_tokenizer, pieces)
    assert ids == demo_tokenizer.encode("".join(pieces))


@pytest.fixture(scope="module")
def demo_tokenizer() -> GuardTokenizer:
    return GuardTokenizer.load(DEMO / "gen")


HOSTILE = {
    "spaces": " " * 5000 + "a" + " " * 3000,
    "one word": "word" + "abcdefg" * 900 + ". Then " + "x" * 4000,
    "newlines": "\n" * 4000 + " \n" * 1500,
    "Han": "\u6f22\u5b57" * 2000 + "\u3002" + "\u6f22" * 1500,
    "combining marks": "e" + "\u0301" * 3000 + " f" + "\u0323\u0302" * 1000,
    "punctuation": "=" * 5000 + "-" * 1030 + "!",
    "emoji": "\U0001f469\u200d" * 2000,
    "hangul": "\u1112\u1161\u11ab" * 1500,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("longest", [20, 700, 5000])
def test_text_without_boundaries_has_the_same_tokens_in_any_pieces_and_a_bounded_tail(
    demo_tokenizer: GuardTokenizer, name: str, longest: int
) -> None:
    text = HOSTILE[name]
    whole = list(tokenize(demo_tokenizer, text, LIMIT, end=True).ids)
    ids, tail = stream(demo_tokenizer, cut(text, random.Random(longest), longest))
    assert ids == whole
    assert tail <= 4 * (STRETCH + LOOKAHEAD)
    assert normalize("NFC", demo_tokenizer.decode(ids)) == normalize("NFC", text)


def test_the_kept_tail_is_short_for_ordinary_text(tokenizer: GuardTokenizer) -> None:
    _, longest = stream(tokenizer, cut(TEXTS[0] * 20, random.Random(1)))
    assert longest < 200


def test_plain_text_equals_the_oracles_tokens(tokenizer: GuardTokenizer, oracle: PreTrainedTokenizerFast) -> None:
    for text in all_texts():
        if not any(name in text for name in tokenizer.special):
            assert tokenizer.encode(text) == oracle(text, add_special_tokens=False)["input_ids"]


CONVERSATIONS = [
    [("user", "How do I bake bread?")],
    [("user", "Stop!!")],
    [("system", "You are kind."), ("user", "Hi."), ("assistant", "Hello."), ("user", "And now?\n")],
    *([("user", text)] for text in TEXTS if "<|" not in text),
    *([("user", "Say something."), ("assistant", text)] for text in TEXTS if "<|" not in text),
]


@pytest.mark.parametrize("variant", ["gen", "stream"])
@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_rendering_equals_transformers(variant: str, turns: list[tuple[str, str]]) -> None:
    oracle = AutoTokenizer.from_pretrained(DEMO / variant)
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = oracle.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False)
    template = ChatTemplate.load(DEMO / variant)
    assert template.render([Message(*turn) for turn in turns], LIMIT) == expected


def test_the_last_role_picks_what_is_judged() -> None:
    template = ChatTemplate.load(DEMO / "gen")
    prompt = template.tokenizer.decode(template.render([Message("user", "a")], LIMIT))
    response = template.tokenizer.decode(template.render([Message("user", "a"), Message("assistant", "b")], LIMIT))
    assert "Refusal" not in prompt
    assert "Refusal" in response


@pytest.mark.parametrize("variant", ["gen", "stream"])
def test_special_tokens_in_a_message_are_plain_text(variant: str) -> None:
    """Else a message could end its own turn, or hide in what the template takes for reasoning."""
    template = ChatTemplate.load(DEMO / variant)
    special = template.tokenizer.special
    hostile = "".join(special) + "<think>secret</think>shown" + "\ue000"

    def specials(content: str) -> list[int]:
        return [token for token in template.render([Message("user", content)], LIMIT) if token in special.values()]

    assert specials(hostile) == specials("harmless")
    text = template.tokenizer.decode(template.render([Message("user", hostile)], LIMIT))
    assert hostile in text


def test_a_stream_is_judged_after_the_scaffold() -> None:
    template = ChatTemplate.load(DEMO / "stream")
    ids = template.render([Message("user", "a"), Message("assistant", "b"), Message("user", "c")], LIMIT)
    end = len(ids) - 1 - ids[::-1].index(template.tokenizer.special[IM_END])
    scaffold = template.tokenizer.decode(ids[end + 1 :])
    assert scaffold == f"\n{IM_START}assistant\n<think>\n\n</think>\n\n"


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
        (b'[{"role": "user", "content": [{"type": "image_url"}]}]', errors.InvalidMessages),
        (b'[{"role": "user", "content": "\\ud800"}]', errors.InvalidEncoding),
    ],
)
def test_bad_messages_each_have_their_error(data: bytes, error: type[errors.GuardError]) -> None:
    with pytest.raises(error) as found:
        parse_messages(data)
    assert type(found.value) is error
    assert len(str(found.value)) < 200


def test_parts_of_text_are_one_message() -> None:
    data = b'[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]'
    assert parse_messages(data) == [Message("user", "ab")]


def test_a_request_names_one_conversation() -> None:
    with pytest.raises(errors.InvalidRequest):
        conversation(b"[]", b"prompt", None)
    with pytest.raises(errors.EmptyText):
        conversation(None, None, b"response")
    with pytest.raises(errors.EmptyText):
        conversation(None, b"", None)


def test_the_last_message_is_not_the_systems() -> None:
    with pytest.raises(errors.LastRole):
        ChatTemplate.load(DEMO / "gen").render([Message("user", "a"), Message("system", "b")], LIMIT)


@pytest.mark.parametrize("text", ["word " * 400_000, "x" * 2_000_000, " " * 2_000_000, "漢" * 300_000, "a b " * 3000])
def test_text_far_beyond_the_context_is_refused(text: str) -> None:
    with pytest.raises(errors.TextTooLong):
        ChatTemplate.load(DEMO / "gen").render([Message("user", f"a{text}b")], 2048)


@pytest.mark.parametrize("broken", ["", "{}", "[1", '{"model": 1}'])
def test_a_broken_tokenizer_is_a_mismatch(tmp_path: Path, broken: str) -> None:
    (tmp_path / "tokenizer.json").write_text(broken)
    with pytest.raises(errors.TokenizerMismatch):
        GuardTokenizer.load(tmp_path)


def test_a_folder_without_a_template_is_a_mismatch(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((DEMO / "gen" / "tokenizer.json").read_bytes())
    with pytest.raises(errors.TokenizerMismatch):
        ChatTemplate.load(tmp_path)
