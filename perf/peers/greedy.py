"""An answer of the likeliest tokens, as transformers writes it."""

from __future__ import annotations

import time
from typing import Any

import torch


def seconds(model: Any, ids: list[int], answer: int) -> float:
    """How long `model` takes for an answer of exactly `answer` tokens."""
    tokens = torch.tensor([ids])
    began = time.perf_counter()
    made = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=answer,
        min_new_tokens=answer,
        do_sample=False,
        pad_token_id=0,
    )
    took = time.perf_counter() - began
    assert made.shape[1] == len(ids) + answer
    return took
