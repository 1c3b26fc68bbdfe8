"""Complete checkpoints with seeded random weights, in the layout of the real ones.

    python tests/support/random_checkpoint.py FOLDER gen --hidden 1024 --layers 28 --heads 16 --kv-heads 8 \
        --head-dim 128 --ffn 3072 --vocab 151936 --dtype bf16 --tied

Only numpy and safetensors' documented layout are used, so a true 0.6B takes seconds and little memory.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, tuple[str, Any]] = {
    "bf16": ("BF16", ml_dtypes.bfloat16),
    "fp16": ("F16", np.float16),
    "fp32": ("F32", np.float32),
}
RISKS = ("Safe", "Unsafe", "Controversial")
CATEGORIES = (
    '"Violent"',
    "Sexual Content or Sexual Acts",
    "Suicide & Self-Harm",
    "Politically Sensitive Topics",
    "PII",
    "Copyright Violation",
    "Non-violent Illegal Acts",
    "Unethical Acts",
    "Jailbreak",
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
)
_HEADS: dict[str, Any] = {"kv_heads": 8, "head_dim": 128, "vocab": 151936, "inner": 512, "context": 8192}
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": _HEADS | {"hidden": 1024, "layers": 28, "heads": 16, "ffn": 3072},
    "4B": _HEADS | {"hidden": 2560, "layers": 36, "heads": 32, "ffn": 9728},
    "8B": _HEADS | {"hidden": 4096, "layers": 36, "heads": 32, "ffn": 12288, "tied": False},
}
"""Qwen3Guard's. Gen's real context is longer, which costs nothing until it is used; `inner` of 4B and 8B is a guess."""
SHAPE_06B = SHAPES["0.6B"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make(
    folder: Path,
    variant: str,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ffn: int = 96,
    vocab: int = 300,
    inner: int = 32,
    tied: bool = True,
    dtype: str = "bf16",
    shards: int = 1,
    seed: int = 0,
    context: int = 512,
    rope_theta: float = 1e6,
    tokenizer_from: Path | None = None,
) -> Path:
    """Writes config.json, the safetensors and a tokenizer into `folder`; returns it. `variant`: gen or stream."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM" if variant == "gen" else "Qwen3ForGuardModel"],
        "model_type": "qwen3",
        "attention_bias": False,
        "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "max_position_embeddings": context,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": rope_theta,
        "tie_word_embeddings": tied and variant == "gen",
        "torch_dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype],
        "use_sliding_window": False,
        "vocab_size": vocab,
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        for part, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (heads * head_dim, hidden),
            "self_attn.k_proj": (kv_heads * head_dim, hidden),
            "self_attn.v_proj": (kv_heads * head_dim, hidden),
            "self_attn.o_proj": (hidden, heads * head_dim),
            "self_attn.q_norm": (head_dim,),
            "self_attn.k_norm": (head_dim,),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    shapes["model.norm.weight"] = (hidden,)
    if variant == "gen" and not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    if variant == "stream":
        config |= {"guard_inner_size": inner, "use_cache": False}
        for kind, prefix, categories in (("response", "", CATEGORIES[:8]), ("query", "query_", CATEGORIES)):
            config[f"{kind}_risk_level_map"] = {str(index): label for index, label in enumerate(RISKS)}
            config[f"{kind}_category_map"] = {str(index): label for index, label in enumerate(categories)}
            config[f"num_{prefix}risk_level"] = len(RISKS)
            config[f"num_{prefix}category"] = len(categories)
            shapes[f"{prefix}risk_level_category_pre.weight"] = (inner, hidden)
            shapes[f"{prefix}risk_level_category_layernorm.weight"] = (inner,)
            shapes[f"{prefix}risk_level_head.weight"] = (len(RISKS), inner)
            shapes[f"{prefix}category_head.weight"] = (len(categories), inner)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"do_sample": False, "eos_token_id": config["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    _write_weights(folder, shapes, dtype, shards, np.random.default_rng(seed))
    if tokenizer_from is None:
        _write_tokenizer(folder)
    else:
        for name in TOKENIZER_FILES:
            if (tokenizer_from / name).is_file():
                shutil.copyfile(tokenizer_from / name, folder / name)
    return folder


def write_safetensors(path: Path, tensors: dict[str, tuple[tuple[int, ...], Callable[[], Any]]], dtype: str) -> None:
    """Name -> (shape, maker of the array), made and written one at a time."""
    stored, kind = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, _) in tensors.items():
        begin, end = end, end + math.prod(shape) * np.dtype(kind).itemsize
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, maker in tensors.values():
            file.write(np.ascontiguousarray(maker().astype(kind)).tobytes())


def _write_weights(
    folder: Path, shapes: dict[str, tuple[int, ...]], dtype: str, shards: int, random: np.random.Generator
) -> None:
    def maker(name: str) -> Callable[[], Any]:
        shape = shapes[name]
        if len(shape) == 1:  # norms
            return lambda: 1 + random.standard_normal(shape, np.float32) * np.float32(0.1)
        # 1 / sqrt(fan in) keeps every activation near 1, and so the logits
        gain = np.float32(1 / math.sqrt(shape[1]))
        return lambda: random.standard_normal(shape, np.float32) * gain

    tensors = {name: (shape, maker(name)) for name, shape in shapes.items()}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        weight_map |= dict.fromkeys(part, file)
        write_safetensors(folder / file, {name: tensors[name] for name in part}, dtype)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _write_tokenizer(folder: Path) -> None:
    """Special tokens and the 256 bytes, without merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    vocabulary = {letter: index for index, letter in enumerate(letters, len(SPECIAL_TOKENS))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token, **flags} for index, token in enumerate(SPECIAL_TOKENS)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(zip(SPECIAL_TOKENS, range(len(SPECIAL_TOKENS)), strict=True)) | vocabulary,
            "merges": [],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a Qwen3Guard checkpoint with seeded random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("variant", choices=("gen", "stream"))
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "kv-heads": 2, "head-dim": 16, "ffn": 96, "vocab": 300}
    for name, default in (sizes | {"inner": 32, "shards": 1, "seed": 0, "context": 512}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--tokenizer-from", type=Path)
    arguments = vars(parser.parse_args())
    make(arguments.pop("folder"), arguments.pop("variant"), **arguments)


if __name__ == "__main__":
    main()
