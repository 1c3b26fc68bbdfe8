"""What eight bits cost: a checkpoint's formats against its own fp32 graph, on labelled or plain texts.

    .venv/bin/python perf/accuracy.py CHECKPOINT TEXTS.jsonl [--rows 300]

TEXTS has a JSON object a line with `prompt` or `text`. Of Stream, every token of every text is judged in one pass; of
Gen, every text as a prompt, by the probabilities of the levels behind "Safety:". A label counts as flipped where the
likeliest level is another than in fp32, and as firmly flipped where fp32 was sure of it by 0.2.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from qwen3guard_contract.integer_products import products
from qwen3guard_contract.manifest import Manifest
from qwen3guard_export import export
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner
from qwen3guard_runtime.engine.runner import Row
from qwen3guard_runtime.gen.answer import SAFETY, AnswerReader
from qwen3guard_runtime.text.chat import ChatTemplate, Message

FORMATS = (("fp32", "decomposed"), ("dq8r", "decomposed"), ("fp32", "int8"), ("dq8r", "int8"))
FIRM = 0.2
LONGEST = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.texts.read_text().splitlines()]
    lines = lines[:: max(1, len(lines) // arguments.rows)]
    texts = [line.get("prompt") or line["text"] for line in lines]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for weights, attention in FORMATS:
            output = Path(folder) / f"{weights}-{attention}"
            exported = export(arguments.checkpoint, output, weights=weights, attention=attention, say=lambda _: None)
            found[weights, attention] = probabilities(output / f"{exported.variant}_guard" / "1", texts)
    exact = found[FORMATS[0]]
    first, second = np.sort(exact, axis=1)[:, :-3:-1].T
    firm = first - second > FIRM
    print(
        f"{arguments.checkpoint}: {len(texts)} texts, {len(exact)} judgements, {firm.sum()} of them firm in fp32;"
        f" 8-bit products {products()}"
    )
    for name in FORMATS[1:]:
        off = np.abs(found[name] - exact).max(axis=1)
        flipped = found[name].argmax(axis=1) != exact.argmax(axis=1)
        print(
            f"{' '.join(name):<18} probability off by {off.mean():.5f} on average, {np.quantile(off, 0.99):.4f} at p99,"
            f" {off.max():.4f} at most; {100 * flipped.mean():.2f} % of labels flipped, "
            f"{100 * flipped[firm].mean():.3f} % of the firm ones"
        )


def probabilities(folder: Path, texts: list[str]) -> np.ndarray:
    """Of the levels, in wire order, for each judgement: [tokens of all texts, 3] of Stream, [texts, 3] of Gen."""
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
