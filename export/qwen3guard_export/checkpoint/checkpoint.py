"""Reads a Qwen3Guard checkpoint: which guard it is, its dimensions, its label order, its tensors by name.

This module knows Hugging Face's folder layout and Qwen3's names, and nothing of ONNX. It reads JSON and safetensors and
ignores all other files in the folder, so remote code is never loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from qwen3guard_contract import labels
from qwen3guard_contract.errors import CheckpointNotFound, MissingTensor, WrongArchitecture, WrongShape
from qwen3guard_contract.layout import Variant
from qwen3guard_contract.manifest import STREAM_OUTPUTS

from qwen3guard_export.checkpoint import config_fields as fields
from qwen3guard_export.checkpoint.sources import checkpoint_folder
from qwen3guard_export.checkpoint.tokenizer_files import carried_files
from qwen3guard_export.checkpoint.weight_files import WeightFiles, read_json_object

_VARIANTS: dict[str, Variant] = {"Qwen3ForCausalLM": "gen", "Qwen3ForGuardModel": "stream"}

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class StreamHead:
    """One of Stream's four heads. `rows[i]` is the checkpoint's index of our label i.

    `output` names its logits in the graph, and `tensor` is its last matrix. Both heads of a side share the tensors that
    begin with `prefix`.
    """

    output: str
    prefix: str
    tensor: str
    rows: tuple[int, ...]

    @property
    def pre(self) -> str:
        return f"{self.prefix}risk_level_category_pre.weight"

    @property
    def layernorm(self) -> str:
        return f"{self.prefix}risk_level_category_layernorm.weight"


# Stream's heads in the order of STREAM_OUTPUTS: prefix, last matrix, label map in config.json, our order of the labels.
_STREAM_HEADS: tuple[tuple[str, str, str, Sequence[Enum]], ...] = (
    ("", "risk_level_head.weight", "response_risk_level_map", labels.RISK_ORDER),
    ("", "category_head.weight", "response_category_map", labels.RESPONSE_CATEGORY_ORDER),
    ("query_", "query_risk_level_head.weight", "query_risk_level_map", labels.RISK_ORDER),
    ("query_", "query_category_head.weight", "query_category_map", labels.QUERY_CATEGORY_ORDER),
)


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a Qwen3 model with an lm_head (Gen), or with Stream's four heads (`stream_heads`).

    `inner` is the width inside Stream's heads, 0 for Gen. Raises WrongArchitecture for heads that do not fit.
    """

    variant: Variant
    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rms_eps: float
    rope_theta: float
    tied: bool
    inner: int
    stream_heads: tuple[StreamHead, ...]

    def __post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise WrongArchitecture(
                f"{self.query_heads} query heads cannot be shared out over {self.kv_heads} key-value heads."
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise WrongArchitecture(f"a head_dim of {self.head_dim} cannot be rotated: it must be even, and not 0.")

    def block_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        queries, keys = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "self_attn.q_norm": (self.head_dim,),
            "self_attn.k_norm": (self.head_dim,),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }
        return {block_tensor(layer, part): shape for part, shape in shapes.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the graph needs, with the shape that it must have."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab, self.hidden)}
        for layer in range(self.layers):
            shapes |= self.block_shapes(layer)
        shapes[FINAL_NORM] = (self.hidden,)
        if self.variant == "gen" and not self.tied:
            shapes[LM_HEAD] = (self.vocab, self.hidden)
        for head in self.stream_heads:
            shapes[head.pre] = (self.inner, self.hidden)
            shapes[head.layernorm] = (self.inner,)
            shapes[head.tensor] = (len(head.rows), self.inner)
        return shapes


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config, tensor shapes and tokenizer were checked. `source` is the name that the user gave,
    followed by @ and the revision if there was one.

    `carried` are the files that the export copies as they are.
    """

    source: str
    folder: Path
    architecture: Architecture
    weights: WeightFiles
    carried: tuple[Path, ...]
    demo: bool
    parameters: int


def block_tensor(layer: int, part: str) -> str:
    return f"model.layers.{layer}.{part}.weight"


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Opens what `checkpoint_folder` finds: a folder, or a model of a hub.

    Reads headers and JSON, and of the weights only an lm_head that should equal the embedding. Raises a CheckpointError
    other than ParityError.
    """
    folder = checkpoint_folder(source, revision)
    if not (folder / "config.json").is_file():
        raise CheckpointNotFound(f"{folder} has no config.json, so it is not a checkpoint.")
    config = read_json_object(folder / "config.json")
    try:
        architecture = _architecture(config)
    except (AttributeError, OverflowError, TypeError, ValueError):
        raise WrongArchitecture(f"{folder / 'config.json'} holds a dimension that is not a number.") from None
    if (folder / "adapter_config.json").is_file():
        raise WrongArchitecture(f"{folder} holds a LoRA adapter, which is not read: merge it into the weights first.")
    weights = WeightFiles.open(folder)
    _refuse_adapters(weights)
    if architecture.layers > len(weights.tensors):  # `shapes` would be as long as config.json says
        raise MissingTensor(f"the checkpoint has {len(weights.tensors)} tensors, but {architecture.layers} layers.")
    shapes = architecture.shapes()
    for name, shape in shapes.items():
        if name not in weights.tensors:
            raise MissingTensor(f"the checkpoint has no tensor {name}.")
        if weights.shape(name) != shape:
            actual = list(weights.shape(name))
            raise WrongShape(f"{name} has the shape {actual}; config.json requires {list(shape)}.")
    _refuse_unread(weights, architecture, shapes)
    return Checkpoint(
        source=source if revision is None else f"{source}@{revision}",
        folder=folder,
        architecture=architecture,
        weights=weights,
        carried=carried_files(folder, architecture.vocab),
        demo=bool(config.get("demo_weights", False)),
        parameters=sum(math.prod(shape) for shape in shapes.values()),
    )


_ADAPTER = re.compile(r"lora_|\.base_layer\.|^base_model\.|adapter")
_BUFFER = re.compile(r"(model\.|model\.layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""A tensor that old versions of transformers stored; it is computed from rope_theta."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def _refuse_adapters(weights: WeightFiles) -> None:
    """Raises WrongArchitecture for a tensor of an adapter."""
    for name in weights.tensors:
        if _ADAPTER.search(name):
            raise WrongArchitecture(
                f"the checkpoint has the tensor {name!r:.100} of a LoRA adapter: merge it into the weights first."
            )


def _refuse_unread(weights: WeightFiles, architecture: Architecture, shapes: Mapping[str, object]) -> None:
    """Raises WrongArchitecture for a tensor that the graph does not read: the checkpoint computes something else."""
    for name in weights.tensors.keys() - shapes.keys():
        if _BUFFER.fullmatch(name):
            continue
        if name == LM_HEAD and architecture.variant == "gen":
            if not weights.same(LM_HEAD, EMBEDDING):
                raise WrongArchitecture(
                    f"{LM_HEAD} differs from {EMBEDDING}, though config.json has tie_word_embeddings set."
                )
            continue
        layer = _LAYER.match(name)
        if layer and int(layer[1][:9]) >= architecture.layers:
            raise WrongArchitecture(
                f"the checkpoint has the tensor {name!r:.100}, but config.json says {architecture.layers} layers."
            )
        raise WrongArchitecture(f"the checkpoint has the tensor {name!r:.100}, which is not implemented.")


def _architecture(config: dict[str, Any]) -> Architecture:
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and len(named) == 1 else named
    variant = _VARIANTS.get(name) if isinstance(name, str) else None
    if variant is None:
        raise WrongArchitecture(
            f"the architecture is {name!r:.100}; a guard is {' or '.join(_VARIANTS)} (Qwen3Guard-Gen or -Stream)."
        )
    fields.refuse_what_is_not_computed(config)
    hidden, query_heads = fields.size(config, "hidden_size"), fields.size(config, "num_attention_heads")
    return Architecture(
        variant=variant,
        layers=fields.size(config, "num_hidden_layers"),
        hidden=hidden,
        query_heads=query_heads,
        kv_heads=fields.size(config, "num_key_value_heads"),
        head_dim=hidden // query_heads if config.get("head_dim") is None else fields.size(config, "head_dim"),
        ffn=fields.size(config, "intermediate_size"),
        vocab=fields.size(config, "vocab_size"),
        context=fields.size(config, "max_position_embeddings"),
        rms_eps=fields.number(config, "rms_norm_eps", 1e-6),
        rope_theta=fields.rope_theta(config),
        tied=fields.tied(config),
        inner=fields.size(config, "guard_inner_size") if variant == "stream" else 0,
        stream_heads=_stream_heads(config) if variant == "stream" else (),
    )


def _stream_heads(config: dict[str, Any]) -> tuple[StreamHead, ...]:
    return tuple(
        StreamHead(output, prefix, tensor, _rows(config, map_name, order))
        for output, (prefix, tensor, map_name, order) in zip(STREAM_OUTPUTS, _STREAM_HEADS, strict=True)
    )


def _rows(config: dict[str, Any], map_name: str, order: Sequence[Enum]) -> tuple[int, ...]:
    """The checkpoint's index of each label in `order`, by the label map. Raises WrongArchitecture."""
    stated = config.get(map_name)
    if not isinstance(stated, dict):
        raise WrongArchitecture(f"config.json has no {map_name}, so that head's label order is unknown.")
    index_of = {labels.normalize(str(label)): int(index) for index, label in stated.items()}
    wanted = [str(label.value) for label in order]
    if sorted(index_of) != sorted(wanted) or sorted(index_of.values()) != list(range(len(wanted))):
        raise WrongArchitecture(
            f"{map_name} in config.json must number exactly these labels from 0: {', '.join(wanted)}; "
            f"it has {index_of!r:.400}."
        )
    return tuple(index_of[label] for label in wanted)
