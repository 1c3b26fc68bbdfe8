"""Reads the fields of a checkpoint's config.json, and refuses those that ask for what the graph does not compute."""

from __future__ import annotations

import math
import re
from typing import Any

from qwen3guard_contract.errors import WrongArchitecture

Config = dict[str, Any]


def size(config: Config, name: str) -> int:
    """A whole number of at least 1. Raises WrongArchitecture."""
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise WrongArchitecture(f"config.json gives {name} = {value!r:.100}; it must be a whole number of at least 1.")
    return value


def number(config: Config, name: str, default: float) -> float:
    """A positive, finite number. Raises WrongArchitecture."""
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise WrongArchitecture(f"config.json gives {name} = {value!r:.100}, which must be positive and finite.")
    return float(value)


def tied(config: Config) -> bool:
    """Whether the lm_head is the embedding. Raises WrongArchitecture."""
    value = config.get("tie_word_embeddings")
    if not isinstance(value, bool | None):
        raise WrongArchitecture(f"config.json gives tie_word_embeddings = {value!r:.100}; it must be true or false.")
    return bool(value)


def rope_theta(config: Config) -> float:
    """The base of the rotary frequencies, 10000 by default. Raises WrongArchitecture where two values are given.

    transformers 4 keeps it at the top of config.json, transformers 5 inside rope_parameters.
    """
    inside = [config.get(key) or {} for key in _ROPE]
    stated = {number(each, "rope_theta", 0.0) for each in (config, *inside) if each.get("rope_theta") is not None}
    if len(stated) > 1:
        raise WrongArchitecture(f"config.json gives rope_theta as {min(stated)} and as {max(stated)}.")
    return stated.pop() if stated else 10000.0


_ROPE = ("rope_scaling", "rope_parameters")
_READ = {
    *_ROPE, "rope_theta", "rms_norm_eps", "attention_bias", "use_sliding_window", "sliding_window", "max_window_layers",
    "layer_types", "hidden_act", "quantization_config",
}  # fmt: skip
_COMPUTES = re.compile(
    r"bias|soft_?cap|logit_cap|scal(e|ing|ar)|multiplier|rope|rotary|sliding|window|expert|moe|norm|alibi|lora|adapter"
    r"|bidirectional|causal|chunk_size|residual|parallel_attn|sparse|gate|sink|mamba|conv_|linear_attn|temperature_tuning"
    r"|compression|quant|prun|activation|_act$|act_fn|^clip_|temperature|attn_type|position_embedding_type|^skip_"
    r"|kv_shared|zero_centered|is_encoder_decoder|peft"
)
"""Matches the names of config fields, of any model, that change what is computed, except those that _HARMLESS
matches."""
_HARMLESS = re.compile(r"dropout|initializer|fp32|^output_|^router_aux|norm_grad")


def refuse_what_is_not_computed(config: Config) -> None:
    """Raises WrongArchitecture, with the field's name, for a field that asks for what the graph does not compute."""
    kind = config.get("model_type")
    if kind is not None and (not str(kind).startswith("qwen3") or "moe" in str(kind)):
        raise WrongArchitecture(f"model_type is {kind!r:.100}; a guard is a dense qwen3.")
    for key in _ROPE:
        _refuse_rope(key, config.get(key))
    if config.get("attention_bias"):
        raise WrongArchitecture("attention_bias is set; biases in the attention are not implemented.")
    if config.get("use_sliding_window"):
        raise WrongArchitecture("the checkpoint uses sliding-window attention, which is not implemented.")
    types = config.get("layer_types")
    if types is not None and (not isinstance(types, list) or any(each != "full_attention" for each in types)):
        raise WrongArchitecture(f"layer_types is {types!r:.100}; only full_attention is implemented.")
    if types and len(types) != config.get("num_hidden_layers"):
        raise WrongArchitecture(f"layer_types names {len(types)} layers, which is not num_hidden_layers.")
    if config.get("hidden_act", "silu") != "silu":
        raise WrongArchitecture(f"hidden_act is {config['hidden_act']!r:.100}; only silu is implemented.")
    if config.get("quantization_config"):
        raise WrongArchitecture("quantization_config is set; export the original in BF16, F16 or F32.")
    for name, value in config.items():
        if name not in _READ and _COMPUTES.search(name) and not _HARMLESS.search(name) and not _neutral(name, value):
            raise WrongArchitecture(f"config.json gives {name!r:.100} = {value!r:.100}, which is not implemented.")


def _refuse_rope(key: str, rope: Any) -> None:
    """Raises WrongArchitecture unless the rotary embeddings are the default ones, in all layers and in whole heads."""
    if rope is None:
        return
    if not isinstance(rope, dict):
        raise WrongArchitecture(f"{key} asks for {rope!r:.100} rotary embeddings, which are not implemented.")
    kinds = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
    for kind in kinds:
        if kind != "default":
            raise WrongArchitecture(f"{key} asks for {kind!r:.100} rotary embeddings, which are not implemented.")
    for name, value in rope.items():
        if isinstance(value, dict):
            raise WrongArchitecture(f"{key} is nested by layer type ({name!r:.100}), which is not implemented.")
        if name not in ("rope_type", "type", "rope_theta") and not _neutral(name, value):
            raise WrongArchitecture(
                f"{key} has {name!r:.100} = {value!r:.100}{'' if kinds else ' and no type'}, which is not implemented."
            )


def _neutral(name: str, value: Any) -> bool:
    """Whether a field of a config asks for nothing, or for what every Qwen3 computes."""
    if isinstance(value, bool):
        return value == bool(re.search(r"causal|qk_(layer)?norm|rms_norm|scale_attn_weights", name))
    if isinstance(value, int | float):
        return value == (1 if re.search("scal|multiplier|factor|cap", name) else 0)
    return value in (None, "", [], {}, "silu")
