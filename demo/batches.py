"""Shared by both trainings: batches of samples of similar length, and the optimizer with its learning-rate schedule."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW

Sample = TypeVar("Sample")


def batches(
    samples: Sequence[Sample], length: Callable[[Sample], int], tokens: int, rng: random.Random
) -> list[list[Sample]]:
    """Batches of samples of similar length, with about `tokens` tokens each, padding included, in random order."""
    made: list[list[Sample]] = []
    batch: list[Sample] = []
    for sample in sorted(samples, key=lambda sample: length(sample) + rng.random() * 4):
        batch.append(sample)
        if length(sample) * len(batch) >= tokens:
            made.append(batch)
            batch = []
    made += [batch] if batch else []
    rng.shuffle(made)
    return made


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """int64 [rows, longest], padded on the right with 0, which causal attention never sees."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def corrupted(ids: Sequence[int], text: Iterable[int], vocab_size: int, rng: random.Random, rate: float) -> list[int]:
    """A copy of `ids` in which the tokens at the positions `text` are replaced by random ones at the given rate."""
    noisy = list(ids)
    for position in text:
        if rng.random() < rate:
            noisy[position] = rng.randrange(vocab_size)
    return noisy


class Descent:
    """AdamW with a linear warm-up and a cosine decay to zero."""

    def __init__(self, model: nn.Module, peak: float, warmup: int, steps: int) -> None:
        self.model, self.peak, self.warmup, self.steps, self.step = model, peak, warmup, steps, 0
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        vectors = [weight for weight in model.parameters() if weight.dim() == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)

    def remaining(self) -> bool:
        return self.step < self.steps

    def take(self, loss: Tensor) -> None:
        done = self.step / self.steps
        rate = self.peak * min(1.0, (self.step + 1) / self.warmup) * (1 + math.cos(math.pi * done)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1


def in_chunks(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]
