"""The same work in llama.cpp on the CPU, timed in its own process.

    python with_llama.py GEN CACHE Q8_0|Q4_K_M

Writes GEN once into CACHE as GGUF in fp16, and quantizes it as `llama-quantize` does. Flash attention is on, KV is in
fp16, a pass has up to 512 tokens. Logits are computed for the last token alone, and for `step` and `prefill` not at
all, since Stream has no lm_head.

Reads one request from each line and answers {"ms": ...} on a line.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as api
import numpy as np
from lines import serve

THREADS, PASS_TOKENS, CONTEXT = 2, 512, 2560
KEPT_ROOM = 32
"""How far a stream grows before it is cut back to its context."""
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class Held:
    """One sequence of tokens in a context of its own."""

    def __init__(self, model: Any) -> None:
        options = api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = CONTEXT, CONTEXT, PASS_TOKENS
        options.n_threads = options.n_threads_batch = THREADS
        options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = api.llama_init_from_model(model, options)
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        self._batch = api.llama_batch_init(CONTEXT, 0, 1)
        self._ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self._ids)

    def keep(self, ids: list[int]) -> None:
        """Makes it hold `ids`, and forgets what comes after them."""
        if self._ids[: len(ids)] != ids:
            self._cut(0)
            self.add(ids)
        self._cut(len(ids))

    def _cut(self, length: int) -> None:
        api.llama_memory_seq_rm(api.llama_get_memory(self._context), 0, length, -1)
        del self._ids[length:]

    def add(self, ids: list[int], *, logits: bool = False) -> int:
        """Computes `ids` after the others; returns the likeliest next token if asked for logits, or 0."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for at, token in enumerate(ids):
            batch.token[at], batch.pos[at] = token, self.length + at
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            batch.logits[at] = logits and at + 1 == len(ids)
        if api.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        api.llama_synchronize(self._context)
        self._ids += ids
        if not logits:
            return 0
        values = np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, -1), (self._vocab,))
        return int(values.argmax())


class Peer:
    def __init__(self, gen: str, cache: str, kind: str) -> None:
        api.llama_backend_init()
        file = Path(cache) / f"{kind}.gguf"
        if not file.is_file():
            _quantize(Path(gen), Path(cache), kind, file)
        self.model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
        self.held: dict[str, Held] = {}

    def classify(self, ids: list[int], answer: int, held: int = 0) -> float:
        """Greedy; `held` tokens of `ids` are in the KV cache, as after a former request."""
        sequence = self._sequence("classify")
        sequence.keep(ids[:held])
        began = time.perf_counter()
        token = sequence.add(ids[held:], logits=True)
        for _ in range(answer - 1):
            token = sequence.add([token], logits=True)
        return time.perf_counter() - began

    def prefill(self, ids: list[int], held: int = 0) -> float:
        sequence = self._sequence("prefill")
        sequence.keep(ids[:held])
        began = time.perf_counter()
        sequence.add(ids[held:])
        return time.perf_counter() - began

    def step(self, context: int, tokens: int) -> float:
        sequence = self._sequence(f"step {context}")
        if not context <= sequence.length <= context + KEPT_ROOM:
            sequence.keep(list(range(1000, 1000 + context)))
        ids = list(range(1000, 1000 + tokens))
        began = time.perf_counter()
        sequence.add(ids)
        return time.perf_counter() - began

    def _sequence(self, name: str) -> Held:
        if name not in self.held:
            self.held[name] = Held(self.model)
        return self.held[name]


def _quantize(gen: Path, cache: Path, kind: str, file: Path) -> None:
    whole = cache / "fp16.gguf"
    if not whole.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _write_gguf(gen, whole)
    options = api.llama_model_quantize_default_params()
    options.ftype = {"Q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_K_M": api.LLAMA_FTYPE_MOSTLY_Q4_K_M}[kind]
    unfinished = file.with_suffix(f".{os.getpid()}.unfinished")
    if api.llama_model_quantize(str(whole).encode(), str(unfinished).encode(), options):
        raise RuntimeError(f"{whole} cannot be quantized to {kind}")
    unfinished.rename(file)


def _write_gguf(gen: Path, file: Path) -> None:
    """Without a tokenizer: the ids are given."""
    config = json.loads((gen / "config.json").read_text())
    unfinished = file.with_suffix(f".{os.getpid()}.unfinished")
    writer = gguf.GGUFWriter(unfinished, "qwen3")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for name, values in _tensors(gen / "model.safetensors"):
        writer.add_tensor(name, values if values.ndim == 1 else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(file)


def _tensors(file: Path) -> Any:
    """The name in GGUF and the fp32 values of each tensor of a safetensors file in bf16."""
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            opened.seek(8 + size + begin)
            halves = np.frombuffer(opened.read(end - begin), np.uint16)
            values = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
            yield _gguf_name(name.removesuffix(".weight")), values


def _gguf_name(name: str) -> str:
    if name in WHOLE:
        return f"{WHOLE[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def main() -> None:
    serve(Peer(*sys.argv[1:4]))


if __name__ == "__main__":
    main()
