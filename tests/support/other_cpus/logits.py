"""Runs exported guards on whatever CPU this process sees, and writes what came out: natively, and under qemu-x86_64.

python tests/support/other_cpus/logits.py REPOSITORY OUT.npz [--unrepaired]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from qwen3guard_contract import integer_products
from qwen3guard_contract.manifest import Manifest
from qwen3guard_runtime.engine import onnx_runner
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_runtime.engine.runner import Row
from qwen3guard_runtime.text.tokenizer import GuardTokenizer

TEXTS = (
    "How do I bake bread without an oven, and what does it cost?",
    "First I will stab him in the neck, then burn down his house with everybody in it.",
    "你好，请告诉我怎么做面包。 كيف حالك؟ Привет! 한국어 नमस्ते 🙂",  # noqa: RUF001
    "def f(x):\n    return [y ** 2 for y in x if y % 3 == 0]\n" * 6,
)
LENGTHS = (7, 1, 40)
"""Of the pieces that a text is written in, the last repeated: other kernels serve other sizes."""


def main(repository: str, out: str, *options: str) -> None:
    if "--unrepaired" in options:  # as before the products were tried
        vars(onnx_runner)["ensure_exact"] = lambda _: "exact"
    found: dict[str, np.ndarray] = {"products": np.array(integer_products.products())}
    for folder in sorted(Path(repository).glob("*_guard/1")):
        found |= {f"{folder.parent.name} {name}": values for name, values in logits(folder).items()}
    np.savez(out, **found)


def logits(folder: Path) -> dict[str, np.ndarray]:
    """Of each text, by its number and the output's: every token's logits; and those of the canary's tokens."""
    manifest, tokenizer = Manifest.read(folder), GuardTokenizer.load(folder)
    runner = onnx_runner.OnnxRunner(folder, manifest, range(manifest.vocab_size), threads=2)
    cache = KVCache(manifest, slots=1)
    rows = [np.array(tokenizer.encode(text), np.int64) for text in TEXTS] + [np.array(manifest.canary.input_ids)]
    found: dict[str, list[np.ndarray]] = {}
    for number, ids in enumerate(rows):
        slot = cache.acquire(len(ids))
        start = piece = 0
        while start < len(ids):
            part = ids[start : start + LENGTHS[min(piece, len(LENGTHS) - 1)]]
            (outputs,) = runner.forward([Row(slot, part, range(len(part)))])
            if manifest.variant == "gen":
                outputs = (outputs[1], outputs[0][:, :2])  # a log-probability is a sum of the vocabulary
            for output, values in enumerate(outputs):
                found.setdefault(f"{number} {output}", []).append(values)
            start, piece = start + len(part), piece + 1
        cache.release(slot)
    return {name: np.concatenate(values) for name, values in found.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
