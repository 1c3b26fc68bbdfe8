"""What outliers, as trained models have them, cost in eight bits: before `balance` and after it.

    .venv/bin/python perf/outliers.py CHECKPOINT TEXTS.jsonl [--contexts 100 2000] [--conversations 100] [--kinds ...]

From the checkpoint others are made that compute the same function with outliers in it: pairs of key channels, values,
inputs of down_proj and norms, each made up for where it is read; and one whose first token has a residual of a
thousand times the size, which is another function, and its own reference. For each: the labels of the 8-bit graph
(dq8r with int8 KV; Gen's with fp32 KV) that differ from those of its own fp32 graph, the flags that differ (debounce 2,
strict and loose, prompt and response), and the probability's error, largest and mean.

TEXTS has a JSON object a line with `prompt`, and `response` where there is one. A conversation is one of them, behind
as many others as fill the context; each token of its last message is judged. Prints a table and, last, the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from qwen3guard_client.labels import RISK_ORDER
from qwen3guard_client.manifest import GEN_OUTPUTS, GRAPH, INPUT_IDS, LOGIT_INDEX, POSITIONS
from qwen3guard_client.policy import runs
from qwen3guard_export.attention import CAPACITY_STEP, AttentionForm, fastest, kv_caches
from qwen3guard_export.balance import balance
from qwen3guard_export.checkpoint import EMBEDDING, Architecture, Checkpoint, block_tensor, open_checkpoint
from qwen3guard_export.graph import write_graph
from qwen3guard_export.quantize import WeightFormat
from qwen3guard_runtime.chat import ChatTemplate, Message
from qwen3guard_runtime.tokenizer import IM_END, IM_START, GuardTokenizer
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors, Architecture, np.random.Generator], None]

OWN_TEXTS = Path(__file__).parents[1] / "demo" / "everyday.jsonl"
OWN_TOKENS = 400
DEBOUNCE = 2
CHECKPOINT_FILES = "*.json"


def key_pairs(count: int, factor: float) -> Change:
    """`count` channel pairs of every layer's keys times `factor`, and the queries' divided by it."""

    def change(tensors: Tensors, architecture: Architecture, random: np.random.Generator) -> None:
        half = architecture.head_dim // 2
        for layer in range(architecture.layers):
            chosen = random.choice(half, min(count, half), replace=False)
            channels = np.concatenate([chosen, chosen + half])
            tensors[block_tensor(layer, "self_attn.k_norm")][channels] *= factor
            tensors[block_tensor(layer, "self_attn.q_norm")][channels] /= factor

    return change


def values(factor: float) -> Change:
    """One channel of every KV head's values times `factor`, and o_proj's columns divided by it."""

    def change(tensors: Tensors, architecture: Architecture, random: np.random.Generator) -> None:
        size, group = architecture.head_dim, architecture.query_heads // architecture.kv_heads
        for layer in range(architecture.layers):
            for head in range(architecture.kv_heads):
                channel = int(random.integers(size))
                tensors[block_tensor(layer, "self_attn.v_proj")][head * size + channel] *= factor
                read = [query * size + channel for query in range(head * group, (head + 1) * group)]
                tensors[block_tensor(layer, "self_attn.o_proj")][:, read] /= factor

    return change


def down_inputs(factor: float) -> Change:
    """One in a hundred of the inputs of every layer's down_proj times `factor`, its columns divided by it."""

    def change(tensors: Tensors, architecture: Architecture, random: np.random.Generator) -> None:
        for layer in range(architecture.layers):
            channels = random.choice(architecture.ffn, max(1, architecture.ffn // 100), replace=False)
            tensors[block_tensor(layer, "mlp.up_proj")][channels] *= factor
            tensors[block_tensor(layer, "mlp.down_proj")][:, channels] /= factor

    return change


def norms(factor: float) -> Change:
    """Two channels of both norms of every layer times `factor`, and the columns that read them divided by it."""

    def change(tensors: Tensors, architecture: Architecture, random: np.random.Generator) -> None:
        for layer in range(architecture.layers):
            for norm, readers in READERS.items():
                channels = random.choice(architecture.hidden, 2, replace=False)
                tensors[block_tensor(layer, norm)][channels] *= factor
                for reader in readers:
                    tensors[block_tensor(layer, reader)][:, channels] /= factor

    return change


READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def first_token(token: int, factor: float, *, one_channel: bool = False) -> Change:
    """The residual of every `token` times `factor`; or one channel of it that many times its root mean square."""

    def change(tensors: Tensors, _: Architecture, random: np.random.Generator) -> None:
        row = tensors[EMBEDDING][token]
        if one_channel:
            row[int(random.integers(len(row)))] = factor * np.sqrt(np.mean(row * row))
        else:
            row *= factor

    return change


def kinds(first: int) -> dict[str, tuple[Change, ...]]:
    """The outliers by name; `first` is the token that every conversation begins with."""
    each: dict[str, tuple[Change, ...]] = {
        "none": (),
        **{f"k pair x {factor}": (key_pairs(1, factor),) for factor in (20, 40, 60)},
        "three k pairs x 30": (key_pairs(3, 30),),
        "v x 20": (values(20),),
        "down x 100": (down_inputs(100),),
        "norms x 30": (norms(30),),
        "first token x 1000": (first_token(first, 1000),),
        "first token, one channel x 1000": (first_token(first, 1000, one_channel=True),),
    }
    together = ("k pair x 60", "three k pairs x 30", "v x 20", "down x 100", "norms x 30", "first token x 1000")
    return each | {"all together": tuple(change for name in together for change in each[name])}


def derive(checkpoint: Checkpoint, folder: Path, changes: Sequence[Change], seed: int = 0) -> Checkpoint:
    """Writes into `folder` the checkpoint with `changes`, in float32, and opens it."""
    tensors = {name: checkpoint.weights.float32(name) for name in checkpoint.weights.tensors}
    random = np.random.default_rng(seed)
    for change in changes:
        change(tensors, checkpoint.architecture, random)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    for path in checkpoint.folder.glob("*.json"):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    return open_checkpoint(str(folder))


@dataclass(frozen=True)
class Conversation:
    """Its tokens; `judged`: those of its last message; `prompt_end`: where its prompt is judged."""

    ids: np.ndarray
    judged: range
    prompt_end: int


class Reader:
    """Texts to conversations of one length, through the checkpoint's own template."""

    def __init__(self, checkpoint: Checkpoint, texts: Path) -> None:
        self._tokenizer = GuardTokenizer.load(checkpoint.folder)
        self._template = ChatTemplate.load(checkpoint.folder)
        self._variant, self._context = checkpoint.architecture.variant, checkpoint.architecture.context
        self._records = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]

    @property
    def first(self) -> int:
        return self._tokenizer.special[IM_START]

    def conversations(self, context: int, count: int) -> list[Conversation]:
        context = min(context, self._context)
        step = max(1, len(self._records) // count)
        return [self._conversation(number * step, context) for number in range(min(count, len(self._records)))]

    def rows(self, tokens: int) -> list[np.ndarray]:
        """The first conversations, whole, of `tokens` tokens in all."""
        found: list[np.ndarray] = []
        for record in self._records:
            ids = self._render(record["prompt"], record.get("response", ""))
            if sum(map(len, found)) + len(ids) > tokens:
                break
            found.append(ids)
        return found

    def _conversation(self, number: int, context: int) -> Conversation:
        record = self._records[number]
        empty = len(self._render("", "x" if record.get("response") else ""))
        left = max(16, context - empty)
        response = self._cut(record.get("response", ""), left // 2 if context < 500 else 100)
        left -= len(self._tokenizer.encode(response))
        prompt = self._cut(record["prompt"], left)
        before, other = [prompt], number
        while sum(len(self._tokenizer.encode(text)) + 2 for text in before) < left and context >= 500:
            other = (other + 1) % len(self._records)
            before.append(self._records[other]["prompt"] + "\n" + self._records[other].get("response", ""))
        prompt = self._cut("\n\n".join(reversed(before)), left, end=True)
        ids = self._render(prompt, response)
        ends = np.flatnonzero(ids == self._tokenizer.special[IM_END])
        last = int(ends[-1])
        if self._variant == "gen":
            return Conversation(ids, range(len(ids) - 1, len(ids)), len(ids) - 1)
        message = response or prompt
        start = last - len(self._tokenizer.encode(message))
        if not response:
            start = max(start, last - 100)
        return Conversation(ids, range(max(start, 0), last), int(ends[-2]) if response else last)

    def _render(self, prompt: str, response: str) -> np.ndarray:
        messages = [Message("user", prompt)] + ([Message("assistant", response)] if response else [])
        ids = list(self._template.render(messages, 1 << 20))
        if self._variant == "gen":
            ids += self._answers[0]
        return np.array(ids, np.int64)

    @property
    def _answers(self) -> tuple[list[int], list[int]]:
        """What a Gen answer has before the severity, and each severity's first token."""
        every = [self._tokenizer.encode(f"Safety: {risk.value}") for risk in RISK_ORDER]
        shared = next(place for place in range(99) if len({ids[place] for ids in every}) > 1)
        return every[0][:shared], [ids[shared] for ids in every]

    @property
    def severities(self) -> list[int]:
        return self._answers[1]

    def _cut(self, text: str, tokens: int, *, end: bool = False) -> str:
        ids = self._tokenizer.encode(text)
        if len(ids) <= tokens:
            return text
        return self._tokenizer.decode(ids[-tokens:] if end else ids[:tokens]).strip("\ufffd")


@dataclass(frozen=True)
class Judged:
    """Risk probabilities of one conversation's judged tokens [tokens, 3], and of its prompt [3]."""

    tokens: np.ndarray
    prompt: np.ndarray


def judge(
    checkpoint: Checkpoint,
    weights: WeightFormat,
    form: AttentionForm,
    conversations: Sequence[Conversation],
    severities: Sequence[int] = (),
) -> list[Judged]:
    """Each conversation in one pass through the graph of `checkpoint`; `severities`: Gen's three tokens."""
    architecture = checkpoint.architecture
    with tempfile.TemporaryDirectory() as folder:
        write_graph(checkpoint, Path(folder), weights, form)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        options.log_severity_level = 3  # that past and present are two arrays here
        session = onnxruntime.InferenceSession(Path(folder) / GRAPH, options, providers=["CPUExecutionProvider"])
        caches = [cache for layer in kv_caches(form, weights, architecture) for cache in layer]
        found = []
        for conversation in conversations:
            places = [*conversation.judged, conversation.prompt_end]
            capacity = -(-len(conversation.ids) // CAPACITY_STEP) * CAPACITY_STEP
            feeds: dict[str, Any] = {cache.past: np.zeros((1, *cache.shape(capacity)), cache.dtype) for cache in caches}
            feeds[INPUT_IDS], feeds[POSITIONS] = conversation.ids[None], np.zeros(1, np.int64)
            feeds[LOGIT_INDEX] = np.array([[0, place] for place in places], np.int64)
            if architecture.variant == "gen":
                (logits,) = session.run(list(GEN_OUTPUTS), feeds)
                shares = _softmax(logits[:, list(severities)])
                found.append(Judged(shares[:-1], shares[-1]))
            else:
                risk, query = session.run(["risk_logits", "query_risk_logits"], feeds)
                found.append(Judged(_softmax(risk[:-1]), _softmax(query[-1])))
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Difference:
    """Of 8-bit answers from those of fp32: labels changed of `labels` in all, flags of `flags`, probabilities."""

    labels: int
    labels_changed: int
    flags: int
    flags_changed: int
    largest: float
    mean: float

    @classmethod
    def of(cls, exact: Sequence[Judged], found: Sequence[Judged], debounce: int) -> Difference:
        one, other = (np.concatenate([np.vstack([each.tokens, each.prompt]) for each in all]) for all in (exact, found))
        flags, others = (np.array([_flags(each, debounce) for each in all]) for all in (exact, found))
        off = np.abs(one - other).max(axis=1)
        return cls(
            labels=len(one),
            labels_changed=int((one.argmax(axis=1) != other.argmax(axis=1)).sum()),
            flags=flags.size,
            flags_changed=int((flags != others).sum()),
            largest=float(off.max()),
            mean=float(off.mean()),
        )

    def __str__(self) -> str:
        percent = 100 * self.labels_changed / self.labels
        return f"{percent:.2f} %, {self.flags_changed}, {self.largest:.3f} ({self.mean:.4f})"


def _flags(judged: Judged, debounce: int) -> list[bool]:
    """Of the last message and of the prompt, strict and loose."""
    found = []
    for strict in (True, False):
        unsafe = [RISK_ORDER[level].is_unsafe(strict=strict) for level in judged.tokens.argmax(axis=1)]
        found.append(max(runs(unsafe)) >= debounce)
        found.append(RISK_ORDER[int(judged.prompt.argmax())].is_unsafe(strict=strict))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[100, 2000])
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", help="some of the outliers, by name")
    parser.add_argument("--own", type=Path, default=OWN_TEXTS, help="the texts that are balanced by")
    arguments = parser.parse_args()
    opened = open_checkpoint(arguments.checkpoint)
    reader = Reader(opened, arguments.texts)
    rows = Reader(opened, arguments.own).rows(OWN_TOKENS)
    variant = opened.architecture.variant
    form = fastest(variant, "dq8r")
    debounce = DEBOUNCE if variant == "stream" else 1
    chosen = {name: changes for name, changes in kinds(reader.first).items() if name in (arguments.kinds or [name])}
    print("| outliers | context | before: labels, flags, dP max (mean) | after |\n|---|---|---|---|")
    results = []
    for name, changes in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            derived = derive(opened, Path(folder), changes)
            started = time.perf_counter()
            balanced = balance(derived, rows, weights=True, kv=form == "int8")
            seconds = time.perf_counter() - started
            for context in arguments.contexts:
                count = arguments.conversations if context < 500 else -(-arguments.conversations // 4)
                conversations = reader.conversations(context, count)
                exact = judge(derived, "fp32", "decomposed", conversations, reader.severities)
                found = [
                    Difference.of(exact, judge(each, "dq8r", form, conversations, reader.severities), debounce)
                    for each in (derived, balanced)
                ]
                print(f"| {name} | {context} | {found[0]} | {found[1]} |", flush=True)
                before, after = map(asdict, found)
                results.append({"outliers": name, "context": context, "before": before, "after": after, "s": seconds})
    print(json.dumps({"checkpoint": arguments.checkpoint, "form": form, "results": results}))


if __name__ == "__main__":
    main()
