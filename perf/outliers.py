"""How much outliers, as trained models have them, cost in eight bits, before `balance` and after it.

    .venv/bin/python perf/outliers.py CHECKPOINT TEXTS.jsonl [--contexts 100 2000] [--conversations 100] [--kinds ...]

Other checkpoints are derived from the given one. They compute the same function with outliers in it: in pairs of key
channels, values, inputs of down_proj, or norms, each compensated where it is read. Two more checkpoints have a first
token whose residual, or one channel of it, is a thousand times as large; they compute another function, and each has
its own reference. For each checkpoint, the 8-bit graph (dq8r with int8 KV; Gen's with fp32 KV) is compared with the
checkpoint's own fp32 graph: the labels that differ, the flags that differ (debounce 2, strict and loose, last message
and prompt), and the largest and the mean error of a probability.

TEXTS has one JSON object on each line, with `prompt`, and `response` where there is one. A conversation is one of them;
in a long context, others before it fill the context. Stream judges each token of the last message, and the prompt.
`balance` uses the same texts as in an export. Prints a table and then the same as JSON, where `margin` is by how much
fp32 preferred its label, the most among the labels that changed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from qwen3guard_contract.forms import Form
from qwen3guard_contract.integer_products import ensure_exact
from qwen3guard_contract.labels import RISK_ORDER
from qwen3guard_contract.manifest import (
    GEN_CHOICES,
    GRAPH,
    GRAPH_CANDIDATES,
    GRAPH_INPUT_IDS,
    GRAPH_LOGIT_INDEX,
    GRAPH_POSITIONS,
)
from qwen3guard_contract.messages import Message
from qwen3guard_contract.policy import DEFAULT_DEBOUNCE, runs
from qwen3guard_contract.slots import whole_blocks
from qwen3guard_export.balance.balance import balance
from qwen3guard_export.checkpoint.checkpoint import EMBEDDING, Architecture, Checkpoint, block_tensor, open_checkpoint
from qwen3guard_export.graph.attention import kv_caches
from qwen3guard_export.graph.write import write_graph
from qwen3guard_export.proof.texts import proof_rows
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.tokenizer import IM_END, IM_START, GuardTokenizer
from safetensors.numpy import save_file

Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors, Architecture, np.random.Generator], None]

LONG = 500
"""A context of at least this many tokens is filled with other conversations; in a shorter one, half is the response."""
LAST_MESSAGE = 100
"""The most tokens of the last message in a long context, and the most of its tokens that are judged."""
LONGEST = 1 << 20
REPLACEMENT = "\ufffd"  # stands for a character that was cut in two

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def key_pairs(count: int, factor: float) -> Change:
    """Multiplies `count` channel pairs of every layer's keys by `factor`, and divides those of the queries by it."""

    def change(tensors: Tensors, architecture: Architecture, random: np.random.Generator) -> None:
        half = architecture.head_dim // 2
        for layer in range(architecture.layers):
            chosen = random.choice(half, min(count, half), replace=False)
            channels = np.concatenate([chosen, chosen + half])
            tensors[block_tensor(layer, "self_attn.k_norm")][channels] *= factor
            tensors[block_tensor(layer, "self_attn.q_norm")][channels] /= factor

    return change


def values(factor: float) -> Change:
    """Multiplies one channel of every KV head's values by `factor`, and divides the columns of o_proj by it."""

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
    """Multiplies one in a hundred inputs of every layer's down_proj by `factor`, and divides its columns by it."""

    def change(tensors: Tensors, architecture: Architecture, random: np.random.Generator) -> None:
        for layer in range(architecture.layers):
            channels = random.choice(architecture.ffn, max(1, architecture.ffn // 100), replace=False)
            tensors[block_tensor(layer, "mlp.up_proj")][channels] *= factor
            tensors[block_tensor(layer, "mlp.down_proj")][:, channels] /= factor

    return change


def norms(factor: float) -> Change:
    """Multiplies two channels of both norms of every layer by `factor`, and divides the columns that read them by
    it."""

    def change(tensors: Tensors, architecture: Architecture, random: np.random.Generator) -> None:
        for layer in range(architecture.layers):
            for norm, readers in READERS.items():
                channels = random.choice(architecture.hidden, 2, replace=False)
                tensors[block_tensor(layer, norm)][channels] *= factor
                for reader in readers:
                    tensors[block_tensor(layer, reader)][:, channels] /= factor

    return change


def first_token(token: int, factor: float, *, one_channel: bool = False) -> Change:
    """Multiplies the embedding of `token` by `factor`, or sets one channel of it to `factor` times its root mean
    square."""

    def change(tensors: Tensors, _: Architecture, random: np.random.Generator) -> None:
        row = tensors[EMBEDDING][token]
        if one_channel:
            row[int(random.integers(len(row)))] = factor * np.sqrt(np.mean(row * row))
        else:
            row *= factor

    return change


def kinds(first: int) -> dict[str, tuple[Change, ...]]:
    """The changes of each kind of outlier by name; `first` is the token that every conversation begins with."""
    changes: dict[str, tuple[Change, ...]] = {
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
    return changes | {"all together": tuple(change for name in together for change in changes[name])}


def derive(checkpoint: Checkpoint, folder: Path, changes: Sequence[Change], seed: int = 0) -> Checkpoint:
    """Writes the checkpoint with `changes` into `folder`, in float32, and opens it."""
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
    """The tokens `ids` of a conversation, with the indices at which it is judged.

    `judged` are the tokens of the last message (none for Gen), and `verdict` is where Stream judges the prompt, or
    where Gen answers.
    """

    ids: np.ndarray
    judged: range
    verdict: int


class Reader:
    """Makes conversations of one length from texts, with the checkpoint's own template."""

    def __init__(self, checkpoint: Checkpoint, texts: Path) -> None:
        self._tokenizer = GuardTokenizer.load(checkpoint.folder)
        self._template = ChatTemplate.load(checkpoint.folder)
        self._architecture = checkpoint.architecture
        self._records = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
        answers = [self._tokenizer.encode(f"Safety: {risk.value}") for risk in RISK_ORDER]
        place = next(place for place in range(len(answers[0])) if len({ids[place] for ids in answers}) > 1)
        self._asked = answers[0][:place]
        self.severities = [ids[place] for ids in answers]
        """The token of each level where Gen's answer decides the severity, in the order of RISK_ORDER."""

    @property
    def first(self) -> int:
        return self._tokenizer.special[IM_START]

    def conversations(self, context: int, count: int) -> list[Conversation]:
        """At most `count` conversations, spread over the texts, of about `context` tokens each, if there are as
        many."""
        context = min(context, self._architecture.context)
        step = max(1, len(self._records) // count)
        return [self._conversation(number, context) for number in range(0, len(self._records), step)][:count]

    def _conversation(self, number: int, context: int) -> Conversation:
        prompt, response = (self._records[number].get(key, "") for key in ("prompt", "response"))
        left = max(2, context - len(self._render("", "." if response else "")))
        response = self._end(response, left // 2 if context < LONG else LAST_MESSAGE, start=True)
        left = max(1, left - len(self._tokenizer.encode(response)))
        while context >= LONG and len(self._tokenizer.encode(prompt)) < left:
            number = (number + 1) % len(self._records)
            prompt = f"{self._records[number]['prompt']}\n{self._records[number].get('response', '')}\n\n{prompt}"
        prompt = self._end(prompt, left)
        ids = self._render(prompt, response)
        if self._architecture.variant == "gen":
            return Conversation(ids, range(0), len(ids) - 1)
        *_, before, last = (0, *(int(place) for place in np.flatnonzero(ids == self._tokenizer.special[IM_END])))
        message = min(len(self._tokenizer.encode(response or prompt)), LAST_MESSAGE)
        return Conversation(ids, range(max(0, last - message), last), before if response else last)

    def _render(self, prompt: str, response: str) -> np.ndarray:
        messages = [Message("user", prompt), *([Message("assistant", response)] if response else [])]
        ids = list(self._template.render(messages, LONGEST))
        return np.array(ids + self._asked if self._architecture.variant == "gen" else ids, np.int64)

    def _end(self, text: str, tokens: int, *, start: bool = False) -> str:
        """The last `tokens` of a text, or the first with `start`."""
        ids = self._tokenizer.encode(text)
        if len(ids) <= tokens:
            return text
        return self._tokenizer.decode(ids[:tokens] if start else ids[-tokens:]).strip(REPLACEMENT)


@dataclass(frozen=True)
class Judged:
    """The risk probabilities of a conversation's judged tokens [tokens, 3], and of its prompt or Gen's answer [1,
    3]."""

    tokens: np.ndarray
    verdict: np.ndarray


def judge(
    checkpoint: Checkpoint,
    form: Form,
    conversations: Sequence[Conversation],
    severities: Sequence[int] = (),
) -> list[Judged]:
    """Judges each conversation in one pass of the graph of `checkpoint`; `severities` are Gen's three tokens."""
    architecture = checkpoint.architecture
    with tempfile.TemporaryDirectory() as folder:
        write_graph(checkpoint, Path(folder), form)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        options.log_severity_level = 3  # no warning that past and present are two arrays here
        ensure_exact(options)
        session = onnxruntime.InferenceSession(Path(folder) / GRAPH, options, providers=["CPUExecutionProvider"])
        caches = kv_caches(form, architecture)
        judgements = []
        for conversation in conversations:
            places = [*conversation.judged, conversation.verdict]
            capacity = whole_blocks(len(conversation.ids))
            feeds: dict[str, Any] = {cache.past: np.zeros((1, *cache.shape(capacity)), cache.dtype) for cache in caches}
            feeds[GRAPH_INPUT_IDS], feeds[GRAPH_POSITIONS] = conversation.ids[None], np.zeros(1, np.int64)
            feeds[GRAPH_LOGIT_INDEX] = np.array([[0, place] for place in places], np.int64)
            if architecture.variant == "gen":
                feeds[GRAPH_CANDIDATES] = np.array(severities, np.int32)
                (logits,) = session.run(GEN_CHOICES[1:], feeds)
                shares = _softmax(logits)
                judgements.append(Judged(shares[:-1], shares[-1:]))
            else:
                risk, query = session.run(["risk_logits", "query_risk_logits"], feeds)
                judgements.append(Judged(_softmax(risk[:-1]), _softmax(query[-1:])))
    return judgements


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Difference:
    """The difference between 8-bit answers and those of fp32.

    `largest` and `mean` are errors of probabilities. `margin` is by how much fp32 preferred its label, the most among
    the labels that changed.
    """

    labels: int
    labels_changed: int
    flags: int
    flags_changed: int
    largest: float
    mean: float
    margin: float

    @classmethod
    def of(cls, exact: Sequence[Judged], eight_bits: Sequence[Judged]) -> Difference:
        one, other = (
            np.concatenate([part for judged in answers for part in (judged.tokens, judged.verdict)])
            for answers in (exact, eight_bits)
        )
        flags, others = (np.array([_flags(judged) for judged in answers]) for answers in (exact, eight_bits))
        off = np.abs(one - other).max(axis=1)
        changed = one.argmax(axis=1) != other.argmax(axis=1)
        first, second = np.sort(one, axis=1)[:, :-3:-1].T
        return cls(
            labels=len(one),
            labels_changed=int(changed.sum()),
            flags=flags.size,
            flags_changed=int((flags != others).sum()),
            largest=float(off.max()),
            mean=float(off.mean()),
            margin=float((first - second)[changed].max(initial=0)),
        )

    def __str__(self) -> str:
        percent = 100 * self.labels_changed / self.labels
        return f"{percent:.2f} %, {self.flags_changed}, {self.largest:.3f} ({self.mean:.4f})"


def _flags(judged: Judged) -> list[bool]:
    """The flags of the last message and of the prompt (or of Gen's answer), strict and loose."""
    flags = []
    for strict in (True, False):
        unsafe = [RISK_ORDER[level].is_unsafe(strict=strict) for level in judged.tokens.argmax(axis=1)]
        flags.append(max(runs(unsafe), default=0) >= DEFAULT_DEBOUNCE)
        flags.append(RISK_ORDER[int(judged.verdict[0].argmax())].is_unsafe(strict=strict))
    return flags


def measure(
    checkpoint: Checkpoint, conversations: Sequence[Conversation], severities: Sequence[int]
) -> list[Difference]:
    """The differences of the 8-bit graph from the fp32 graph of `checkpoint`, before and after it is balanced."""
    form = Form.fastest(checkpoint.architecture.variant, "dq8r")
    rows = proof_rows(checkpoint.folder, checkpoint.architecture.context)
    balanced = balance(checkpoint, rows, weights=True, kv=form.has_integer_kv)
    exact = judge(checkpoint, Form("fp32", "decomposed"), conversations, severities)
    return [Difference.of(exact, judge(each, form, conversations, severities)) for each in (checkpoint, balanced)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[100, 2000])
    parser.add_argument("--conversations", type=int, default=100, help="a quarter of them in a long context")
    parser.add_argument("--kinds", nargs="+", help="some of the outliers, by name")
    parser.add_argument("--seed", type=int, default=0, help="which channels")
    arguments = parser.parse_args()
    opened = open_checkpoint(arguments.checkpoint)
    reader = Reader(opened, arguments.texts)
    conversations = {
        context: reader.conversations(context, -(-arguments.conversations // (4 if context >= LONG else 1)))
        for context in arguments.contexts
    }
    print("| outliers | context | before: labels, flags, dP largest (mean) | after |\n|---|---|---|---|")
    results = []
    for name, changes in kinds(reader.first).items():
        if arguments.kinds and name not in arguments.kinds:
            continue
        with tempfile.TemporaryDirectory() as folder:
            derived = derive(opened, Path(folder), changes, arguments.seed)
            for context, each in conversations.items():
                before, after = measure(derived, each, reader.severities)
                print(f"| {name} | {context} | {before} | {after} |", flush=True)
                results.append({"outliers": name, "context": context, "before": asdict(before), "after": asdict(after)})
    print(json.dumps({"checkpoint": arguments.checkpoint, "seed": arguments.seed, "results": results}))


if __name__ == "__main__":
    main()
