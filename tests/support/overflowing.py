"""A Stream or Gen checkpoint in which one token's values in the first layer are more than a float can hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from qwen3guard_runtime.text.tokenizer import GuardTokenizer

from support.random_checkpoint import make

LETTER = "~"
"""The token: one that neither the chat template nor the proof of an export writes."""
FLOAT32, FLOAT16 = 3e38, 6e4
"""Near the largest finite ones."""


def overflowing(folder: Path, variant: str, *, largest: float) -> Path:
    """`largest` is what one weight holds; the token's first value is about eight times as much. All others have nothing
    in the dimension of the embedding that it reads."""
    make(folder, variant, dtype="fp32")
    [token] = GuardTokenizer.load(folder).encode(LETTER)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])

    def tensor(name: str) -> np.ndarray:
        begin, end = (8 + size + offset for offset in header[name]["data_offsets"])
        return np.frombuffer(memoryview(data)[begin:end], np.float32).reshape(header[name]["shape"])

    embedding = tensor("model.embed_tokens.weight")
    embedding[:, 0] = 0
    embedding[token] = 0
    embedding[token, 0] = 1
    for layer in range(json.loads((folder / "config.json").read_text())["num_hidden_layers"]):
        for part in ("q", "k", "v"):
            tensor(f"model.layers.{layer}.self_attn.{part}_proj.weight")[:, 0] = 0
    tensor("model.layers.0.self_attn.v_proj.weight")[0, 0] = largest
    path.write_bytes(data)
    return folder
