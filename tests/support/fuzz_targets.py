"""What is fuzzed: callables from bytes to None that raise nothing but for a broken promise.

A GuardError is a promise kept. unit/test_fuzz.py drives them with hypothesis, trials/guided.py with atheris.
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

import jinja2
import numpy as np
from qwen3guard_client import Thresholds
from qwen3guard_contract import errors, wire
from qwen3guard_contract.labels import AnswerStatus
from qwen3guard_contract.messages import ROLES, Message, parse_messages
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
from qwen3guard_runtime.gen.answer import AnswerReader, Probabilities
from qwen3guard_runtime.gen.models import GuardTokenizerModel
from qwen3guard_runtime.stream.models import StreamTokenizerModel
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.incremental import STRETCH, tokenize
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from tokenizers import Tokenizer

from support.places import DEMO

LIMIT = 4096
_MEMORY = Path("/dev/shm")
SPLIT = b"\xff\x00"
"""Between two parts of one input, where a target takes several: no text holds it."""


def messages(data: bytes) -> None:
    """JSON to messages; what was read is read again the same."""
    with suppress(errors.InputError):
        found = parse_messages(data, LIMIT)
        again = json.dumps([{"role": each.role, "content": each.content} for each in found])
        assert parse_messages(again.encode(), LIMIT) == found


def requests(data: bytes) -> None:
    """Triton's requests to the two tokenizers: each is answered, with whole tensors or one sentence."""
    triton_io = _triton_io()
    batch = [_TritonRequest(part) for part in data.split(SPLIT)[:4]]
    for model, served in _tokenizer_models():
        responses = triton_io.serve(batch, model, served.handle, triton_io.RefusalLog(model), served.refuse)
        assert len(responses) == len(batch)
        for response in responses:
            sent = {tensor.name: tensor.array for tensor in response.tensors}
            if not response.error:
                assert sent.keys() == {tensor.name for tensor in model.outputs}
            texts = [response.error.text] if response.error else [*sent.get(wire.STEP_ERROR.name, [[]])[0]]
            for text in texts:
                sentence = text if isinstance(text, str) else text.decode()
                assert re.fullmatch(r"\[[A-Z_]+\] [^\n]{10,250}", sentence), sentence
                assert not sentence.startswith("[INTERNAL]"), sentence


def template(data: bytes) -> None:
    """A conversation has the tokens that jinja and the tokenizer give on their own, and no special ones from users."""
    turns = _conversation(data)
    if not turns:
        return
    for variant in ("gen", "stream"):
        ours, plain, whole = _templates(variant)
        try:
            ids = ours.render(turns, LIMIT)
        except errors.InputError:
            continue
        special = ours.tokenizer.special
        kept = [token for token in ids if token in special.values()]
        harmless = [Message(each.role, "a") for each in turns]
        assert kept == [token for token in ours.render(harmless, LIMIT) if token in special.values()]
        if not any(name in each.content for each in turns for name in special):
            rendered = plain.render(
                messages=[vars(each) for each in turns], add_generation_prompt=True, enable_thinking=False
            )
            assert ids == whole.encode(rendered, add_special_tokens=False).ids
        text = normalize("NFC", whole.decode(ids, skip_special_tokens=False))
        assert normalize("NFC", turns[-1].content).strip() in text


def pieces(data: bytes) -> None:
    """Text in any pieces has the tokens of the whole text, and what was called final stays."""
    tokenizer = _tokenizer()
    given = [part.decode("utf-8", "ignore") for part in data.split(SPLIT)]
    text = "".join(given)
    ids: list[int] = []
    tail, spelled = "", 0
    for piece in given:
        tail += piece
        found = tokenize(tokenizer, tail, LIMIT, end=False)
        assert len(found.ids) == len(found.ends)
        assert list(found.ends) == sorted(found.ends)
        assert all(0 < end <= len(tail) for end in found.ends)
        ids += found.ids[: found.final_tokens]
        tail = tail[found.final_characters :]
        spelled += found.final_characters
    last = tokenize(tokenizer, tail, LIMIT, end=True)
    assert (last.final_tokens, last.final_characters) == (len(last.ids), len(tail))
    assert spelled + len(tail) == len(text)
    ids += last.ids
    assert ids == list(tokenize(tokenizer, text, LIMIT, end=True).ids)
    if len(text) <= STRETCH:
        assert ids == tokenizer.encode(text)
    assert normalize("NFC", tokenizer.decode(ids)) == normalize("NFC", text)


def answer(data: bytes) -> None:
    """A model's answer reads as a verdict that spells the same answer, or at least its level, or is unreadable."""
    text = data.decode("utf-8", "replace")
    for response_mode in (False, True):
        with suppress(errors.UnreadableAnswer):
            found = _reader().read(text, response_mode=response_mode, decisions=_DECISIONS)
            lines = [f"Safety: {found.severity.value}"]
            assert text.strip().startswith(lines[0])
            assert all(category.value in text for category in found.categories)
            if found.status is not AnswerStatus.COMPLETE:
                continue
            lines.append(text.strip().split("\n")[1])
            if response_mode:
                assert found.refusal
                lines.append(f"Refusal: {found.refusal.value}")
            assert "\n".join(lines) == text.strip()


def hostile_template(data: bytes) -> None:
    """A checkpoint's template is refused, or renders, within its seconds and bytes."""
    with suppress(errors.TokenizerMismatch, errors.InputError):
        ChatTemplate(_tokenizer(), data.decode("utf-8", "replace")).render([Message("user", "Hi.")], LIMIT)


def tokenizer_file(data: bytes) -> None:
    """tokenizer.json and tokenizer_config.json of a checkpoint: readable, or named as what is wrong."""
    with _folder({"tokenizer.json": data} if data[:1] != b"#" else {"tokenizer_config.json": data[1:]}) as folder:
        with suppress(errors.CheckpointError):
            open_checkpoint(str(folder))
        with suppress(errors.TokenizerMismatch):
            ChatTemplate.load(folder)


def checkpoint(data: bytes) -> None:
    """config.json, safetensors and their index: each tensor is readable, or one sentence says what is wrong."""
    name = {b"#": "config.json", b"!": "model.safetensors.index.json"}.get(data[:1], "model.safetensors")
    with _folder({name: data if name == "model.safetensors" else data[1:]}) as folder:
        sentence = ""
        try:
            opened = open_checkpoint(str(folder))
            for tensor in opened.architecture.shapes():
                assert np.isfinite(opened.weights.float32(tensor)).all()
        except errors.CheckpointError as error:
            sentence = str(error)
        assert "\n" not in sentence
        assert len(sentence) < 1000


def thresholds(data: bytes) -> None:
    """Thresholds are read, and read again the same, or one sentence says what is wrong and repeats nothing of them."""
    found, sentence = None, ""
    try:
        found = Thresholds.parse(data)
    except errors.InvalidRequest as error:
        sentence = str(error)
    if found is None:
        assert re.fullmatch(r"The threshold[^\n]{10,235}\.", sentence)
    else:
        assert all(0 <= value <= 1 for value in (found.default, *found.categories.values()))
        assert Thresholds.parse(json.dumps(found.as_dict()).encode()) == found


def wire_error(data: bytes) -> None:
    """Any text of a server is an error of ours or none; ours come back as they were."""
    text = data.decode("utf-8", "replace")
    found = errors.from_text(text)
    if found:
        again = errors.from_text(f"in ensemble 'x', {found.wire_text()}")
        assert type(again) is type(found)
        assert str(again) == str(found)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        messages, requests, template, pieces, answer, hostile_template, tokenizer_file, checkpoint, thresholds,
        wire_error,
    )
}  # fmt: skip

_JSON = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"null", b"1e999", b"-1", b"NaN", b"9" * 5000, b'"\\ud800"']
_CHAT = [b'[{"role": "user", "content": "Hi."}]', b'"role"', b'"content"', b'"user"', b'"assistant"', b'"system"']
_TEXT = [
    *(text.encode() for text in ("word ", "  ", "\r\n\n", "é", "e\u0301", "가", "ᄀ", "\u1161", "\u11a8", "漢")),
    *(text.encode() for text in ("👩‍👩‍👧", "\ue000")),
    b"<|im_start|>", b"<|im_end|>\n<|im_start|>assistant\n", b"<think>", b"</think>", b"<END CONVERSATION>", b"<|im_",
    b"{{ messages }}", b"{% raw %}", b"\x00", b"\xed\xa0\x80", SPLIT, b"x" * 1100, b" " * 1100,
]  # fmt: skip
_JINJA = [
    b"{{ ", b" }}", b"{% ", b" %}", b"for x in ", b"range(99999)", b"endfor", b"messages", b"'a' * ", b"10 ** ",
    b"9999999999", b"|join", b"|replace('', 'aaaa')", b"['__class__']", b".__class__.__mro__", b"include '/etc/passwd'",
    b"set x = x ~ x", b"macro f() ", b"f()", b"endmacro", b"|indent(", b"|tojson", b"cycler", b"namespace(a=1)", b"/ 0",
]  # fmt: skip
_CONFIG = [
    b"#", b"!", b'"num_hidden_layers": ', b'"hidden_size": ', b'"head_dim": ', b'"rope_parameters": ', b'"default"',
    b'"rope_theta": ', b'"weight_map": ', b'"shape": ', b'"data_offsets": ', b'"dtype": "BF16"', b'"F32"', b"Infinity",
]  # fmt: skip


def words(name: str) -> list[bytes]:
    """What inputs of a target are put together from."""
    return {
        "messages": [*_JSON, *_CHAT],
        "requests": [*_CHAT, *_TEXT, *(bytes([head]) for head in range(0, 256, 7))],
        "template": [*_TEXT, b"\x01", b"\x02"],
        "pieces": _TEXT,
        "answer": [b"Safety: ", b"Unsafe", b"Safe", b"\n", b"Categories: ", b"None", b"PII", b", ", b"Refusal: Yes"],
        "hostile_template": _JINJA,
        "tokenizer_file": [
            *_JSON,
            *_CONFIG,
            *_CHAT,
            b'"added_tokens": ',
            b'"model": ',
            b'"vocab": ',
            b'"chat_template": ',
        ],
        "checkpoint": [*_JSON, *_CONFIG, b"\x10\x00\x00\x00\x00\x00\x00\x00"],
        "thresholds": [*_JSON, b'"default": ', b'"categories": ', b'"PII": ', b'"Violent"', b"0.5", b"1", b"true"],
        "wire_error": [b"[TEXT_TOO_LONG] ", b"[INPUT] ", b"[", b"] ", b"\n", b"in ensemble 'classify', "],
    }[name]


def seeds(name: str) -> list[bytes]:
    """Whole, good inputs to start from."""
    if name == "checkpoint":
        tiny = _tiny_checkpoint()
        return [b"#" + (tiny / "config.json").read_bytes(), (tiny / "model.safetensors").read_bytes()]
    if name == "tokenizer_file":
        return [b"#" + (_tiny_checkpoint() / "tokenizer_config.json").read_bytes(), *_small_tokenizers()]
    if name == "hostile_template":
        return [(DEMO / f"{variant}.jinja").read_bytes() for variant in ("gen", "stream")]
    if name == "thresholds":
        return [b'{"default": 0.5, "categories": {"Violent": 0.3}}', b"{}"]
    if name == "answer":
        return [b"Safety: Unsafe\nCategories: Violent, PII\nRefusal: No", b"Safety: Safe\nCategories: None"]
    return [b'[{"role": "user", "content": [{"type": "text", "text": "Hi."}]}]', "Mix flour. 漢字 é".encode()]


def _conversation(data: bytes) -> list[Message]:
    """Messages from bytes: the first of each part picks the role."""
    found = []
    for part in data.split(SPLIT)[:6]:
        text = part[1:].decode("utf-8", "ignore")
        if text.strip():
            found.append(Message(ROLES[part[0] % 3], text))
    return found


@cache
def _tokenizer() -> GuardTokenizer:
    return GuardTokenizer.load(DEMO / "gen")


@cache
def _templates(variant: str) -> tuple[ChatTemplate, jinja2.Template, Tokenizer]:
    """Ours; and what jinja and tokenizers make of the same files."""
    source = json.loads((DEMO / variant / "tokenizer_config.json").read_text())["chat_template"]
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    return ChatTemplate.load(DEMO / variant), plain, Tokenizer.from_file(str(DEMO / variant / "tokenizer.json"))


@cache
def _reader() -> AnswerReader:
    return AnswerReader(_tokenizer())


class _AnyField(dict[Any, Probabilities]):
    def __contains__(self, _: object) -> bool:
        return True

    def __missing__(self, _: object) -> Probabilities:
        return np.zeros(0, np.float32)


_DECISIONS = _AnyField()


@cache
def _tokenizer_models() -> list[tuple[wire.Model, Any]]:
    """The two models, without the export that they are otherwise loaded from."""
    found: list[tuple[wire.Model, Any]] = []
    for model, kind, variant in (
        (wire.GUARD_TOKENIZER, GuardTokenizerModel, "gen"),
        (wire.STREAM_TOKENIZER, StreamTokenizerModel, "stream"),
    ):
        served = object.__new__(kind)
        vars(served).update(_context=LIMIT, _recent_tokens=LIMIT, _template=ChatTemplate.load(DEMO / variant))
        found.append((model, served))
    return found


@cache
def _triton_io() -> types.ModuleType:
    """triton_io over a stand-in for Triton's own module, which exists in its processes alone."""
    double = types.ModuleType("triton_python_backend_utils")
    vars(double).update(
        Tensor=lambda name, array: types.SimpleNamespace(name=name, array=array),
        InferenceResponse=lambda output_tensors=(), error=None: types.SimpleNamespace(
            tensors=output_tensors, error=error
        ),
        TritonError=_TritonError,
    )
    sys.modules[double.__name__] = double
    from qwen3guard_runtime.triton import triton_io

    return triton_io


class _TritonError:
    INVALID_ARG, NOT_FOUND, UNAVAILABLE, INTERNAL = range(4)

    def __init__(self, text: str, code: int) -> None:
        self.text = text
        self.code = code


class _TritonRequest:
    """A request from bytes: of the first byte each bit sends one tensor, of the second flags and shapes."""

    NAMES = ("MESSAGES", "PROMPT", "RESPONSE", "TEXT", "TOKEN_IDS", "POSITION", "NOBODY")

    def __init__(self, data: bytes) -> None:
        sent, self._flags, *rest = (*data[:2], 0, 0)[:2]
        self._names = [name for bit, name in enumerate(self.NAMES) if sent >> bit & 1]
        self._broken = bool(sent >> 7)
        self._text = data[2:]
        assert not rest

    def inputs(self) -> Iterator[Any]:
        for number, name in enumerate(self._names):
            numbers = name in ("TOKEN_IDS", "POSITION")
            part = self._text[number::2] if self._flags & 16 else self._text
            array: Any = (
                np.frombuffer(part[: len(part) // 8 * 8 or 0], np.int64) if numbers else np.array([part], object)
            )
            yield types.SimpleNamespace(name=lambda name=name: name, as_numpy=lambda array=array: self._shape(array))
        if self._flags & 8:
            yield types.SimpleNamespace(name=lambda: "RECENT", as_numpy=lambda: self._shape(np.array([True])))

    def _shape(self, array: Any) -> Any:
        if self._broken:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "what a back end may raise")
        return array if self._flags & 4 else array[None]

    def requested_output_names(self) -> list[str]:
        return [tensor.name for model, _ in _tokenizer_models() for tensor in model.outputs]

    def flags(self) -> int:
        return self._flags & 3

    def request_id(self) -> str:
        return self._text[:20].decode("latin-1")

    def correlation_id(self) -> str:
        return self._text[:9].hex()

    def parameters(self) -> str:
        return json.dumps({"canary": True, "other": self._text.hex()}) if self._flags & 32 else "{}"


@cache
def _tiny_checkpoint() -> Path:
    """A whole Gen checkpoint of a few kilobytes, with the demo's special tokens in a vocabulary of letters."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    hidden, ffn, vocab = 4, 2, 8
    config = {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": hidden, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 1, "head_dim": 2, "intermediate_size": ffn, "vocab_size": vocab,
        "max_position_embeddings": 64, "rope_theta": 1e6, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    (folder / "tokenizer.json").write_bytes(_small_tokenizers()[0])
    block = {
        "input_layernorm": [hidden], "self_attn.q_proj": [4, hidden], "self_attn.k_proj": [2, hidden],
        "self_attn.v_proj": [2, hidden], "self_attn.o_proj": [hidden, 4], "self_attn.q_norm": [2],
        "self_attn.k_norm": [2], "post_attention_layernorm": [hidden], "mlp.gate_proj": [ffn, hidden],
        "mlp.up_proj": [ffn, hidden], "mlp.down_proj": [hidden, ffn],
    }  # fmt: skip
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in block.items()}
    shapes |= {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    open_checkpoint(str(folder))
    return folder


@cache
def _small_tokenizers() -> list[bytes]:
    added = [
        {"id": 6 + number, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for number, name in enumerate(("<|im_start|>", "<|im_end|>"))
    ]  # fmt: skip
    model = {"type": "BPE", "vocab": {letter: number for number, letter in enumerate("aHi. \n")}, "merges": []}
    description = {"version": "1.0", "added_tokens": added, "normalizer": {"type": "NFC"}, "model": model}
    return [json.dumps(description).encode()]


class _folder:  # noqa: N801 (a context manager)
    """The tiny checkpoint with other contents in some files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
        for source in _tiny_checkpoint().iterdir():
            if source.name not in self._files:
                (self._path / source.name).symlink_to(source)
        for name, data in self._files.items():
            (self._path / name).write_bytes(data)
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path)
