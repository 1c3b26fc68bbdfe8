"""Qwen3 in plain PyTorch, without a cache. It shares no line with the export: in float32 it says what is right, and in
two bytes how much PyTorch itself loses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch_device import device

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STREAM_HEADS = {"": ("risk_logits", "category_logits"), "query_": ("query_risk_logits", "query_category_logits")}
LOGPROB, CANDIDATES = "logprob", "candidate_logits"
Outputs = dict[str, npt.NDArray[np.float32]]


class Reference:
    """The checkpoint in `folder`, with weights and products in `kind`: fp32, fp16 or bf16.

    Norms and rotations are in float32, as in transformers. Raises OSError for a missing file, KeyError for a tensor.
    """

    def __init__(self, folder: Path, kind: str, *, fake: bool) -> None:
        torch.set_float32_matmul_precision("highest")  # without TF32, whose products have ten bits
        self._config = json.loads((folder / "config.json").read_text())
        self._type, self._device = TYPES[kind], device(fake)
        self._weights: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._weights |= {name: each.to(self._device, self._type) for name, each in load_file(path).items()}
        self.vocab = int(self._config["vocab_size"])

    @torch.inference_mode()
    def outputs(self, ids: npt.NDArray[np.int64], candidates: Sequence[int]) -> Outputs:
        """What the graph gives at every token of one sequence, float32 [tokens, width] each.

        Stream: its four outputs by name, in the order of the random checkpoints' label maps. Gen: `logprob`, the
        likeliest token's log-probability [tokens, 1], and `candidate_logits`, those of the ids `candidates`.
        """
        hidden = self._hidden(torch.from_numpy(ids).to(self._device))
        found = self._stream(hidden) if "risk_level_head.weight" in self._weights else self._gen(hidden, candidates)
        return {name: each.float().cpu().numpy() for name, each in found.items()}

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        config, size = self._config, self._config["head_dim"]
        halves = torch.arange(0, size, 2, device=self._device, dtype=torch.float32) / size
        places = torch.arange(len(ids), device=self._device, dtype=torch.float32)
        angles = places[:, None] * config["rope_theta"] ** -halves
        cos, sin = angles.cos(), angles.sin()
        state = self._weights["model.embed_tokens.weight"][ids]
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            normed = self._norm(state, name + "input_layernorm")
            query, key, value = (
                self._product(normed, f"{name}self_attn.{each}_proj").unflatten(-1, (-1, size)).transpose(0, 1)
                for each in "qkv"
            )
            query = self._rotated(self._norm(query, name + "self_attn.q_norm"), cos, sin)
            key = self._rotated(self._norm(key, name + "self_attn.k_norm"), cos, sin)
            seen = functional.scaled_dot_product_attention(
                query[None], key[None], value[None], is_causal=True, enable_gqa=True
            )
            state = state + self._product(seen[0].transpose(0, 1).flatten(1), name + "self_attn.o_proj")
            normed = self._norm(state, name + "post_attention_layernorm")
            gate, up = (self._product(normed, f"{name}mlp.{each}_proj") for each in ("gate", "up"))
            state = state + self._product(functional.silu(gate) * up, name + "mlp.down_proj")
        return self._norm(state, "model.norm")

    def _stream(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for prefix, (risk, category) in STREAM_HEADS.items():
            inner = self._product(hidden, prefix + "risk_level_category_pre")
            inner = self._norm(inner, prefix + "risk_level_category_layernorm")
            found[risk] = self._product(inner, prefix + "risk_level_head")
            found[category] = self._product(inner, prefix + "category_head")
        return found

    def _gen(self, hidden: torch.Tensor, candidates: Sequence[int]) -> dict[str, torch.Tensor]:
        head = "lm_head" if "lm_head.weight" in self._weights else "model.embed_tokens"
        logits = self._product(hidden, head).float()
        likeliest = torch.log_softmax(logits, -1).max(-1, keepdim=True).values
        return {LOGPROB: likeliest, CANDIDATES: logits[:, list(candidates)]}

    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self._weights[name + ".weight"].T

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._config["rms_norm_eps"])
        return wide.to(self._type) * self._weights[name + ".weight"]

    def _rotated(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        one, other = x.float().chunk(2, -1)
        return torch.cat([one * cos - other * sin, other * cos + one * sin], -1).to(self._type)
