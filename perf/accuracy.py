"""How much accuracy few bits cost: a checkpoint's formats against its own fp32 graph, on labelled or plain texts.

    .venv/bin/python perf/accuracy.py CHECKPOINT TEXTS.jsonl [--rows 300]

TEXTS has one JSON object on each line, with `prompt` or `text`. Stream judges every token of a text in one pass. Gen
judges a text as a prompt, by the probabilities of the levels after "Safety:". A label is flipped where the likeliest
level is not that of fp32. A judgement is firm where fp32 preferred its level to the next one by more than 0.2.

Beside the formats that are exported stands what four bits would cost: the layers' matrices rounded to 16 levels from
the least to the largest of each 32 weights of a row, as 4-bit formats of other engines do, and computed in fp32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16
from qwen3guard_contract.integer_products import products
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.messages import Message
from qwen3guard_export import export
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner
from qwen3guard_runtime.engine.runner import Row
from qwen3guard_runtime.gen.answer import SAFETY, AnswerReader
from qwen3guard_runtime.text.chat import ChatTemplate

FORMATS = (("fp32", "decomposed"), ("dq8r", "decomposed"), ("fp32", "int8"), ("dq8r", "int8"))
FIRM = 0.2
LONGEST = 400
FOUR_BITS = ("4 bits", "decomposed")
LEVELS, BLOCK = 16, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.texts.read_text().splitlines()]
    lines = lines[:: max(1, len(lines) // arguments.rows)]
    texts = [line.get("prompt") or line["text"] for line in lines]
    probabilities = {}
    with tempfile.TemporaryDirectory() as folder:
        for weights, attention in FORMATS:
            output = Path(folder) / f"{weights}-{attention}"
            exported = export(arguments.checkpoint, output, weights=weights, attention=attention, say=lambda _: None)
            probabilities[weights, attention] = level_probabilities(output / f"{exported.variant}_guard" / "1", texts)
        rounded, output = Path(folder) / "rounded", Path(folder) / "4bits"
        shutil.copytree(arguments.checkpoint, rounded)
        for file in rounded.glob("*.safetensors"):
            round_to_four_bits(file)
        export(str(rounded), output, weights="fp32", say=lambda _: None)
        probabilities[FOUR_BITS] = level_probabilities(output / f"{exported.variant}_guard" / "1", texts)
    exact = probabilities[FORMATS[0]]
    first, second = np.sort(exact, axis=1)[:, :-3:-1].T
    firm = first - second > FIRM
    print(
        f"{arguments.checkpoint}: {len(texts)} texts, {len(exact)} judgements, {firm.sum()} of them firm in fp32;"
        f" 8-bit products {products()}"
    )
    for name in (*FORMATS[1:], FOUR_BITS):
        off = np.abs(probabilities[name] - exact).max(axis=1)
        flipped = probabilities[name].argmax(axis=1) != exact.argmax(axis=1)
        print(
            f"{' '.join(name):<18} probability off by {off.mean():.5f} on average, {np.quantile(off, 0.99):.4f} at p99,"
            f" {off.max():.4f} at most; {100 * flipped.mean():.2f} % of labels flipped, "
            f"{100 * flipped[firm].mean():.3f} % of the firm ones"
        )


def round_to_four_bits(file: Path) -> None:
    """Rounds the layers' matrices of a safetensors file where they stand. The file's own format rounds them once more,
    by a tenth as much at most."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        for name, entry in header.items():
            if "layers." in name and "_proj." in name:
                kind = {"BF16": bfloat16, "F16": np.float16, "F32": np.float32}[entry["dtype"]]
                begin, end = entry["data_offsets"]
                opened.seek(8 + size + begin)
                blocks = np.frombuffer(opened.read(end - begin), kind).astype(np.float32).reshape(-1, BLOCK)
                least = blocks.min(axis=1, keepdims=True)
                step = np.maximum((blocks.max(axis=1, keepdims=True) - least) / (LEVELS - 1), 1e-30)
                opened.seek(8 + size + begin)
                opened.write((least + step * np.round((blocks - least) / step)).astype(kind).tobytes())


def level_probabilities(folder: Path, texts: list[str]) -> np.ndarray:
    """The probabilities of the levels, in wire order, for each judgement: Stream's [tokens, 3], or Gen's [texts, 3]."""
    manifest = Manifest.read(folder)
    runner, cache = OnnxRunner(folder, manifest), KVCache(manifest, slots=1)
    template = ChatTemplate.load(folder)
    reader = AnswerReader(template.tokenizer) if manifest.variant == "gen" else None
    rows = []
    for text in texts:
        if reader:
            ids = template.render([Message("user", text)], manifest.context - 8)
            ids += template.tokenizer.encode(SAFETY.label)
        else:
            ids = template.tokenizer.encode(text)[: min(LONGEST, manifest.context)]
        slot = cache.acquire(len(ids))
        asked = [len(ids) - 1] if reader else range(len(ids))
        ((logits, *_),) = runner.forward([Row(slot, np.array(ids, np.int64), asked)])
        cache.release(slot)
        if reader:
            rows.append(reader.probabilities(SAFETY, logits[0])[None])
        else:
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            rows.append(shifted / shifted.sum(axis=1, keepdims=True))
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
