"""Qwen3 as a torch module, with names such that its `state_dict` has the published tensor layout.

It is written for training on a CPU: padding on the right needs no mask of its own, and a prefix that a whole batch
shares (the fixed prefix of the guard's template) is computed once and passed on as keys and values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """The fields of a Qwen3 config.json that fix the size of its tensors."""

    vocab_size: int = 8192
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 384
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    guard_inner_size: int = 64


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotary(shape: Shape, start: int, length: int) -> tuple[Tensor, Tensor]:
    """The cosines and sines of `length` positions from `start` on, [length, head_dim]."""
    exponent = torch.arange(0, shape.head_dim, 2) / shape.head_dim
    angles = torch.arange(start, start + length)[:, None] / shape.rope_theta**exponent
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        rows, length, _ = x.shape
        heads = (rows, length, -1, self.shape.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if past is not None:
            k = torch.cat((past[0].expand(rows, -1, -1, -1), k), dim=2)
            v = torch.cat((past[1].expand(rows, -1, -1, -1), v), dim=2)
        # The query heads of a key head are stacked along the time axis, so that no key is repeated.
        groups = self.shape.num_attention_heads // self.shape.num_key_value_heads
        q = q.reshape(rows, -1, groups * length, self.shape.head_dim)
        scores = q @ k.transpose(2, 3) * self.shape.head_dim**-0.5 + mask.repeat(groups, 1)
        mixed = (scores.softmax(dim=-1) @ v).view(rows, -1, length, self.shape.head_dim)
        attended: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        return attended, (k, v)


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        narrowed: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return narrowed


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        attended, present = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Backbone(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, ids: Tensor, past: list[KeyValue] | None = None) -> tuple[Tensor, list[KeyValue]]:
        """The hidden states of `ids` after the final norm, [rows, length, hidden], and all keys and values.

        All rows of `ids` share a `past` of one row.
        """
        length = ids.shape[1]
        start = past[0][0].shape[2] if past else 0
        cos, sin = rotary(self.shape, start, length)
        mask = torch.full((length, start + length), float("-inf")).triu(start + 1)
        x, present = self.embed_tokens(ids), []
        for index, layer in enumerate(self.layers):
            x, pair = layer(x, cos, sin, mask, past[index] if past else None)
            present.append(pair)
        return self.norm(x), present


def initialise(module: nn.Module) -> None:
    for name, weight in module.named_parameters():
        if weight.dim() == 2:
            deep = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=0.02 if deep or "embed" in name else 0.06)


class GenModel(nn.Module):
    """Qwen3ForCausalLM with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Backbone(shape)
        initialise(self)

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.model.embed_tokens.weight)


class StreamModel(nn.Module):
    """Qwen3ForGuardModel: risk and category at every token, with a pair of heads for responses and one for prompts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Backbone(shape)
        inner = shape.guard_inner_size
        for side, categories in (("", 8), ("query_", 9)):
            pre = nn.Linear(shape.hidden_size, inner, bias=False)
            self.add_module(f"{side}risk_level_category_pre", pre)
            norm = RMSNorm(inner, shape.rms_norm_eps)
            self.add_module(f"{side}risk_level_category_layernorm", norm)
            self.add_module(f"{side}risk_level_head", nn.Linear(inner, 3, bias=False))
            self.add_module(f"{side}category_head", nn.Linear(inner, categories, bias=False))
        initialise(self)

    def judge(self, hidden: Tensor, side: str) -> tuple[Tensor, Tensor]:
        """Risk logits [..., 3] and category logits [..., 8 or 9]; `side` is "" or "query_"."""
        x = self.get_submodule(f"{side}risk_level_category_pre")(hidden)
        x = self.get_submodule(f"{side}risk_level_category_layernorm")(x)
        risk = self.get_submodule(f"{side}risk_level_head")(x)
        return risk, self.get_submodule(f"{side}category_head")(x)
