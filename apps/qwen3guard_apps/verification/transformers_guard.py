"""What PyTorch and transformers make of a checkpoint, sharing no line with the export or the runtime's graphs.

No code of a checkpoint is run: Gen is transformers' Qwen3ForCausalLM, and Stream its Qwen3Model with the four heads of
the model cards, written here.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Sequence
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from qwen3guard_contract import labels
from qwen3guard_contract.errors import ServeError


class TransformersGuard:
    """A checkpoint's folder in float32. Raises ServeError where torch, transformers or safetensors is missing."""

    def __init__(self, folder: Path) -> None:
        self._torch, self._transformers, self._safetensors = _imported("torch", "transformers", "safetensors.torch")
        self._folder = folder
        self._json = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = self._transformers.Qwen3Config(
            **{key: value for key, value in self._json.items() if key != "architectures"}
        )
        config._attn_implementation = "eager"
        self._tensors = {
            name: tensor.float()
            for path in folder.glob("*.safetensors")
            for name, tensor in self._safetensors.load_file(path).items()
        }
        self._is_gen = self._json["architectures"] == ["Qwen3ForCausalLM"]
        # its own random initialization would take longer than the weights
        with self._torch.device("meta"):
            kind = self._transformers.Qwen3ForCausalLM if self._is_gen else self._transformers.Qwen3Model
            model = kind(config)
        state = dict(self._tensors)
        if self._is_gen:
            state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        else:
            state = {name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")}
        model.load_state_dict(state, strict=True, assign=True)
        backbone = model.model if self._is_gen else model
        backbone.rotary_emb.__init__(config)  # its buffers are in no file
        self._model = model.eval()

    def logits(self, tokens: npt.NDArray[np.int64], last: int = 0) -> dict[str, npt.NDArray[np.float32]]:
        """float32 [tokens, n] by the names of the graph's outputs, in the order of labels.py. For Gen those of the
        `last` tokens alone, or of all with 0."""
        ids = self._torch.from_numpy(np.asarray(tokens, np.int64))[None]
        with self._torch.no_grad():
            if self._is_gen:
                return {"logits": self._model(ids, use_cache=False, logits_to_keep=last).logits[0].numpy()}
            hidden = self._model(ids, use_cache=False).last_hidden_state[0]
            outputs = {}
            for prefix, kind in (("", "response"), ("query_", "query")):
                x = hidden @ self._tensors[f"{prefix}risk_level_category_pre.weight"].T
                x = x * self._torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._json["rms_norm_eps"])
                x = x * self._tensors[f"{prefix}risk_level_category_layernorm.weight"]
                risk = x @ self._tensors[f"{prefix}risk_level_head.weight"].T
                category = x @ self._tensors[f"{prefix}category_head.weight"].T
                order = labels.QUERY_CATEGORY_ORDER if prefix else labels.RESPONSE_CATEGORY_ORDER
                outputs[f"{prefix}risk_logits"] = self._ordered(risk, f"{kind}_risk_level_map", labels.RISK_ORDER)
                outputs[f"{prefix}category_logits"] = self._ordered(category, f"{kind}_category_map", order)
            return outputs

    def generate(self, tokens: Sequence[int], limit: int, ends: Sequence[int] = ()) -> list[int]:
        """What transformers' greedy `generate` appends, the end token with it; `ends` are those of the config without
        any."""
        ids = self._torch.tensor([list(tokens)])
        end = list(ends) or self._json["eos_token_id"]
        with self._torch.no_grad():
            made = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end if isinstance(end, int) else end[0],
            )
        return list(made[0, len(tokens) :].tolist())

    def tokenize(self, messages: list[dict[str, Any]]) -> list[int]:
        """The token ids that transformers' own tokenizer and template give for a conversation."""
        return list(
            self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, enable_thinking=False, return_dict=False
            )
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return self._transformers.AutoTokenizer.from_pretrained(self._folder)

    def _ordered(self, values: Any, map_name: str, order: Sequence[Enum]) -> npt.NDArray[np.float32]:
        index_of = {labels.normalize(label): int(index) for index, label in self._json[map_name].items()}
        return np.stack([values[:, index_of[label.value]].numpy() for label in order], axis=1)


def _imported(*names: str) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return [importlib.import_module(name) for name in names]
        except ImportError as missing:
            name = (missing.name or "transformers").partition(".")[0]
            raise ServeError(f"{name} is not installed.") from None
