"""Saves and loads checkpoint folders in Hugging Face's form, in half precision."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from data import CATEGORIES, LEVELS
from model import GenModel, Shape, StreamModel
from safetensors.torch import load_file, save_file
from tokenizer import END, save_tokenizer
from tokenizers import Tokenizer

Guard = TypeVar("Guard", GenModel, StreamModel)


def save(model: GenModel | StreamModel, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
    weights = folder / "model.safetensors"
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id("<|endoftext|>")
    config = _config(model.model.shape, end)
    if isinstance(model, GenModel):
        config |= {"architectures": ["Qwen3ForCausalLM"], "pad_token_id": pad, "use_cache": True}
        generation = {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad}
        _write(folder / "generation_config.json", generation)
    else:
        config |= {"architectures": ["Qwen3ForGuardModel"], "use_cache": False} | _heads(model.model.shape)
    _write(folder / "config.json", config)
    save_tokenizer(tokenizer, folder, "gen" if isinstance(model, GenModel) else "stream")


def load(kind: type[Guard], folder: Path) -> tuple[Guard, Tokenizer]:
    """The saved model, which computes in float32, and its tokenizer."""
    model = kind(Shape())
    model.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def _config(shape: Shape, end: int | None) -> dict[str, Any]:
    fields = asdict(shape)
    del fields["guard_inner_size"]
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "demo_weights": True,
        "eos_token_id": end,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": shape.num_hidden_layers,
        "model_type": "qwen3",
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_sliding_window": False,
        **fields,
    }


def _heads(shape: Shape) -> dict[str, Any]:
    levels = {str(index): level for index, level in enumerate(LEVELS)}
    # Upstream's first category has the quotation marks inside the string.
    spelled = ['"Violent"' if name == "Violent" else name for name in CATEGORIES]
    categories = {str(index): name for index, name in enumerate(spelled)}
    return {
        "guard_inner_size": shape.guard_inner_size,
        "num_category": 8,
        "num_query_category": 9,
        "num_query_risk_level": 3,
        "num_risk_level": 3,
        "query_category_map": categories,
        "query_risk_level_map": levels,
        "response_category_map": {index: name for index, name in categories.items() if index != "8"},
        "response_risk_level_map": levels,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def parameters(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
