"""The same work in the graphs that onnxruntime-genai's model builder makes, on the CPU, timed in its own process.

    python with_builder.py GEN CACHE int4

The builder converts GEN once into CACHE, with weights of 4 bits in blocks of 32 and 8-bit products (MatMulNBits,
accuracy level 4) and GroupQueryAttention over one buffer of KV: once with the lm_head for the last token alone, and
once without, as Stream has none. ONNX Runtime runs them with the buffer bound, so that nothing is copied and a sequence
is cut back by its length.

Reads one request from each line and answers {"ms": ...} on a line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from lines import serve

THREADS, CONTEXT = 2, 2560


class Held:
    """One sequence of tokens, whose keys and values are in buffers of `CONTEXT` tokens."""

    def __init__(self, session: onnxruntime.InferenceSession, head_dim: int) -> None:
        self._session = session
        self._cells = {
            each.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros([1, each.shape[1], CONTEXT, head_dim], np.float32)
            )
            for each in session.get_inputs()
            if each.name.startswith("past_key_values.")
        }
        self.ids: list[int] = []

    def keep(self, ids: list[int]) -> None:
        """Makes it hold `ids`, and forgets what comes after them."""
        if self.ids[: len(ids)] != ids:
            self.ids = []
            self.add(ids)
        del self.ids[len(ids) :]

    def add(self, ids: list[int]) -> np.ndarray | None:
        """Computes `ids` after the others; returns the graph's output."""
        if not ids:
            return None
        self.ids += ids
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(self.ids)), np.int64),
            "position_ids": np.arange(len(self.ids) - len(ids), len(self.ids))[None],
        }
        binding = self._session.io_binding()
        wanted = {each.name for each in self._session.get_inputs()}
        for name, value in feeds.items():
            if name in wanted:
                binding.bind_cpu_input(name, value)
        for name, cells in self._cells.items():
            binding.bind_ortvalue_input(name, cells)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cells)
        output = self._session.get_outputs()[0].name
        binding.bind_output(output)
        self._session.run_with_iobinding(binding)
        result: np.ndarray = binding.get_outputs()[-1].numpy()
        return result


class Peer:
    def __init__(self, gen: str, cache: str, kind: str) -> None:
        self.gen, self.cache, self.kind = gen, Path(cache), kind
        self.head_dim = json.loads((Path(gen) / "config.json").read_text())["head_dim"]
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.held: dict[str, Held] = {}

    def classify(self, ids: list[int], answer: int, held: int = 0) -> float:
        """Greedy; `held` tokens of `ids` are in the KV cache, as after a former request."""
        sequence = self._sequence("classify", "prune_lm_head")
        sequence.keep(ids[:held])
        began = time.perf_counter()
        new = ids[held:]
        for _ in range(answer):
            logits = sequence.add(new)
            assert logits is not None
            new = [int(logits[0, -1].argmax())]
        return time.perf_counter() - began

    def prefill(self, ids: list[int], held: int = 0) -> float:
        sequence = self._sequence("prefill", "exclude_lm_head")
        sequence.keep(ids[:held])
        return self._timed(sequence, ids[held:])

    def step(self, context: int, tokens: int) -> float:
        sequence = self._sequence(f"step {context}", "exclude_lm_head")
        sequence.keep(list(range(1000, 1000 + context)))
        return self._timed(sequence, list(range(1000, 1000 + tokens)))

    @staticmethod
    def _timed(sequence: Held, ids: list[int]) -> float:
        began = time.perf_counter()
        sequence.add(ids)
        return time.perf_counter() - began

    def _sequence(self, name: str, head: str) -> Held:
        if name not in self.held:
            self.held[name] = Held(self._open(head), self.head_dim)
        return self.held[name]

    def _open(self, head: str) -> onnxruntime.InferenceSession:
        if head not in self.sessions:
            folder = self.cache / f"{self.kind}-{head}"
            if not (folder / "made").is_file():
                builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", self.gen, "-o", str(folder)]
                builder += ["-p", self.kind, "-e", "cpu", "-c", str(self.cache / "hub")]
                builder += ["--extra_options", f"{head}=true", "int4_accuracy_level=4"]
                subprocess.run(builder, check=True, stdout=sys.stderr)
                (folder / "made").touch()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = THREADS
            self.sessions[head] = onnxruntime.InferenceSession(folder / "model.onnx", options)
        return self.sessions[head]


def main() -> None:
    serve(Peer(*sys.argv[1:4]))


if __name__ == "__main__":
    main()
