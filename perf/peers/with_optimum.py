"""The same work in the graph that Optimum exports to ONNX, in fp32 on the CPU, timed in its own process.

    python with_optimum.py GEN CACHE

optimum-onnx converts GEN once into CACHE. A pass returns all keys and values anew, with the new ones behind those that
it was given. `classify` is greedy `generate`. `step` has the lm_head, which the exported graph cannot leave out.

Reads one request from each line and answers {"ms": ...} on a line.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import greedy
import onnxruntime
import torch
from lines import serve
from optimum.onnxruntime import ORTModelForCausalLM

THREADS = 2


class Peer:
    def __init__(self, gen: str, cache: str) -> None:
        folder = Path(cache)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        if not (folder / "made").is_file():
            ORTModelForCausalLM.from_pretrained(gen, export=True).save_pretrained(folder)
            (folder / "made").touch()
        self.model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
        self.model.embed_size_per_head = self.model.config.head_dim  # optimum-onnx 0.1.0 takes hidden size / heads
        self.held: dict[int, Any] = {}

    def classify(self, ids: list[int], answer: int) -> float:
        return greedy.seconds(self.model, ids, answer)

    def step(self, context: int, tokens: int) -> float:
        if context not in self.held:
            self.held[context] = self._pass(context, 0, None).past_key_values
        began = time.perf_counter()
        self._pass(tokens, context, self.held[context])
        return time.perf_counter() - began

    def _pass(self, tokens: int, held: int, cells: Any) -> Any:
        return self.model(
            input_ids=torch.arange(1000, 1000 + tokens)[None],
            attention_mask=torch.ones((1, held + tokens), dtype=torch.int64),
            position_ids=torch.arange(held, held + tokens)[None],
            past_key_values=cells,
            use_cache=True,
        )


@torch.inference_mode()
def main() -> None:
    serve(Peer(*sys.argv[1:3]))


if __name__ == "__main__":
    main()
