"""What PyTorch and transformers make of a checkpoint: the oracle, sharing no line with the export."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
from qwen3guard_contract import labels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # the workers share the cores


class Oracle:
    """`logits(tokens)` gives float32 [tokens, n] by output name, in the order of labels.py."""

    def __init__(self, folder: Path) -> None:
        self._json = json.loads((folder / "config.json").read_text())
        config = Qwen3Config(**{key: value for key, value in self._json.items() if key != "architectures"})
        config._attn_implementation = "eager"
        self._tensors = {
            name: tensor.float() for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()
        }
        self._is_gen = self._json["architectures"] == ["Qwen3ForCausalLM"]
        # the oracle's own random initialization would take longer than the test
        with torch.device("meta"):
            model = Qwen3ForCausalLM(config) if self._is_gen else Qwen3Model(config)
        model = model.to_empty(device="cpu")
        state = dict(self._tensors)
        if self._is_gen:
            state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        else:
            state = {name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")}
        model.load_state_dict(state, strict=True)
        backbone = model.model if self._is_gen else model
        backbone.rotary_emb.__init__(config)
        self._model = model.eval()

    @torch.no_grad()
    def logits(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        ids = torch.from_numpy(np.asarray(tokens, np.int64))[None]
        if self._is_gen:
            return {"logits": self._model(ids, use_cache=False).logits[0].numpy()}
        hidden = self._model(ids, use_cache=False).last_hidden_state[0]
        outputs = {}
        for prefix, kind in (("", "response"), ("query_", "query")):
            x = hidden @ self._tensors[f"{prefix}risk_level_category_pre.weight"].T
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._json["rms_norm_eps"])
            x = x * self._tensors[f"{prefix}risk_level_category_layernorm.weight"]
            risk = x @ self._tensors[f"{prefix}risk_level_head.weight"].T
            category = x @ self._tensors[f"{prefix}category_head.weight"].T
            order = labels.QUERY_CATEGORY_ORDER if prefix else labels.RESPONSE_CATEGORY_ORDER
            outputs[f"{prefix}risk_logits"] = self._ordered(risk, f"{kind}_risk_level_map", labels.RISK_ORDER)
            outputs[f"{prefix}category_logits"] = self._ordered(category, f"{kind}_category_map", order)
        return outputs

    @torch.no_grad()
    def generate(self, tokens: list[int], limit: int) -> list[int]:
        """What transformers' greedy `generate` appends, the end token with it."""
        ids = torch.tensor([tokens])
        end = self._json["eos_token_id"]
        made = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        return made[0, len(tokens) :].tolist()

    def _ordered(self, values: torch.Tensor, map_name: str, order: tuple) -> np.ndarray:
        index_of = {label.strip('"'): int(index) for index, label in self._json[map_name].items()}
        return np.stack([values[:, index_of[label.value]].numpy() for label in order], axis=1)


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """max |found - expected| over max |expected|, the worst of the outputs."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, values in expected.items():
        assert found[name].shape == values.shape
        worst = max(worst, float(np.abs(found[name] - values).max() / np.abs(values).max()))
    return worst
