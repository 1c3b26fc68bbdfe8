"""The same work in OpenVINO on the CPU, timed in its own process.

    python with_openvino.py GEN CACHE bf16|int8

optimum-intel converts GEN once into CACHE, to a stateful model that keeps its KV inside: bf16 unchanged, int8 with
weights compressed by nncf. bf16 is requested as inference precision if the CPU has it. Without it OpenVINO would
emulate bf16 (minutes for a request), so its default, fp32, is used; the answer to `precision` says which.

Reads one request from each line and answers {"ms": ...} on a line. `classify` runs the lm_head for the last token
alone, `step` the same graph without it, since Stream has none. A step continues the stream, as it is used: a state that
is set is copied by the next pass, so such a pass is not timed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from lines import serve
from openvino import opset13

KEPT_ROOM = 32
"""How far a stream grows before it is set back to its context."""


class Peer:
    def __init__(self, gen: str, cache: str, kind: str) -> None:
        self.folder = Path(cache) / kind
        if not (self.folder / "openvino_model.xml").is_file():
            from optimum.intel import OVModelForCausalLM

            model = OVModelForCausalLM.from_pretrained(gen, export=True, compile=False, load_in_8bit=kind == "int8")
            model.save_pretrained(self.folder)
        self.core = ov.Core()
        self.options = {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 1}
        if kind == "bf16" and "bf16" in Path("/proc/cpuinfo").read_text():
            self.options["INFERENCE_PRECISION_HINT"] = "bf16"
        self.causal: Any = None
        self.backbone: Any = None
        self.states: dict[int, Any] = {}
        self.continued = (0, 0)
        """The context whose state the backbone holds, and how many tokens it has."""

    def precision(self) -> str:
        if self.causal is None:
            model = self._read()
            states = self._lm_head(model).input(0)
            last = opset13.slice(states.get_source_output(), [-1], [np.iinfo(np.int64).max], [1], [1])
            states.replace_source_output(last.output(0))
            self.causal = self._compile(ov.Model(model.get_results(), model.get_sinks(), model.get_parameters()))
        return str(self.causal.get_compiled_model().get_property("INFERENCE_PRECISION_HINT"))

    def classify(self, ids: list[int], answer: int) -> float:
        self.precision()
        self.causal.reset_state()
        began = time.perf_counter()
        tokens, at = np.array([ids], np.int64), 0
        for _ in range(answer):
            logits = self._run(self.causal, tokens, at)
            at += tokens.shape[1]
            tokens = logits[:, -1:].argmax(-1).astype(np.int64)
        return time.perf_counter() - began

    def step(self, context: int, tokens: int) -> float:
        if self.backbone is None:
            model = self._read()
            hidden = opset13.result(self._lm_head(model).input_value(0))
            self.backbone = self._compile(ov.Model([hidden], model.get_sinks(), model.get_parameters()))
        before, length = self.continued
        if before != context or length > context + KEPT_ROOM:
            self._restore(context)
            self._run(self.backbone, self._ids(1), context)
            length = context + 1
        began = time.perf_counter()
        self._run(self.backbone, self._ids(tokens), length)
        took = time.perf_counter() - began
        self.continued = context, length + tokens
        return took

    def _restore(self, context: int) -> None:
        if context not in self.states:
            self.backbone.reset_state()
            self._run(self.backbone, self._ids(context), 0)
            self.states[context] = [np.array(each.state.data) for each in self.backbone.query_state()]
        for each, held in zip(self.backbone.query_state(), self.states[context], strict=True):
            each.state = ov.Tensor(held)

    @staticmethod
    def _lm_head(model: Any) -> Any:
        product = model.get_results()[0].input_value(0).get_node()
        while product.get_type_name() != "MatMul":
            product = product.input_value(0).get_node()
        return product

    def _read(self) -> Any:
        return self.core.read_model(self.folder / "openvino_model.xml")

    def _compile(self, model: Any) -> Any:
        return self.core.compile_model(model, "CPU", self.options).create_infer_request()

    def _run(self, request: Any, ids: np.ndarray, at: int) -> np.ndarray:
        count = ids.shape[1]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((1, at + count), np.int64),
            "position_ids": np.arange(at, at + count)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for each in request.model_inputs for name in each.names}
        request.infer({name: value for name, value in feeds.items() if name in names})
        return request.get_output_tensor(0).data

    def _ids(self, count: int) -> np.ndarray:
        return np.arange(1000, 1000 + count)[None]


def main() -> None:
    serve(Peer(*sys.argv[1:4]))


if __name__ == "__main__":
    main()
