"""The same work in transformers on the CPU, timed in its own process.

    python with_transformers.py GEN STREAM bf16|fp32

Reads one request from each line and answers {"ms": ...} on a line. `classify` is greedy `generate`. `step` adds tokens
to a KV cache of `context` tokens. `reforward` computes the whole text again at every step, as the published streaming
code does.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import greedy
import torch
from lines import serve
from transformers import AutoConfig, DynamicCache, Qwen3ForCausalLM, Qwen3Model

torch.set_num_threads(2)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Peer:
    def __init__(self, gen: str, stream: str, dtype: str) -> None:
        self.gen, self.dtype = gen, DTYPES[dtype]
        self.stream_folder = stream
        self.causal: Any = None
        self.backbone: Any = None
        self.heads: Any = None
        self.caches: dict[int, DynamicCache] = {}

    def classify(self, ids: list[int], answer: int) -> float:
        if self.causal is None:
            self.causal = Qwen3ForCausalLM.from_pretrained(self.gen, dtype=self.dtype).eval()
        return greedy.seconds(self.causal, ids, answer)

    def step(self, context: int, tokens: int) -> float:
        self._load_stream()
        if context not in self.caches:
            self.caches[context] = DynamicCache(config=self.backbone.config)
            self.backbone(self._ids(context), past_key_values=self.caches[context])
        cache = self.caches[context]
        began = time.perf_counter()
        hidden = self.backbone(self._ids(tokens), past_key_values=cache).last_hidden_state
        self._read(hidden)
        took = time.perf_counter() - began
        cache.crop(context)
        return took

    def reforward(self, context: int, tokens: int) -> float:
        self._load_stream()
        ids = self._ids(context + tokens)
        began = time.perf_counter()
        self._read(self.backbone(ids, use_cache=False).last_hidden_state)
        return time.perf_counter() - began

    def _load_stream(self) -> None:
        if self.backbone is None:
            config = AutoConfig.from_pretrained(self.stream_folder)
            self.backbone = Qwen3Model.from_pretrained(self.stream_folder, config=config, dtype=self.dtype).eval()
            hidden = config.hidden_size
            self.heads = [
                torch.nn.Sequential(
                    torch.nn.Linear(hidden, 512, bias=False, dtype=self.dtype),
                    torch.nn.Linear(512, 3 + categories, bias=False, dtype=self.dtype),
                )
                for categories in (8, 9)
            ]

    def _read(self, hidden: torch.Tensor) -> None:
        for head in self.heads:
            head(hidden).float().softmax(-1)

    def _ids(self, count: int) -> torch.Tensor:
        return torch.arange(1000, 1000 + count)[None]


@torch.inference_mode()
def main() -> None:
    serve(Peer(*sys.argv[1:4]))


if __name__ == "__main__":
    main()
