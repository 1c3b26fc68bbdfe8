"""How far the outliers of a checkpoint stand out: in its weights, and in what flows through it.

In eight bits a row of weights has one scale, and a token's row of activations has one, so a number that is many times
as large as its neighbours leaves few levels to them. The export moves the outliers of activations into their readers
(qwen3guard_export.balance) before it quantizes; both states are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt
from qwen3guard_export.balance.balance import balance
from qwen3guard_export.balance.channel_sizes import ChannelSizes, channel_sizes
from qwen3guard_export.checkpoint.checkpoint import EMBEDDING, LM_HEAD, Checkpoint, block_tensor
from qwen3guard_export.proof.texts import proof_rows

FAR = 8
"""A channel so many times as large as the median one is what `balance` calls an outlier."""
MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Outliers:
    """How far the largest stand out in one kind of tensor.

    `largest` is the largest of all ratios, in `layer` (-1 outside of the layers), and `by_layer` has the largest of
    each layer. For a matrix the ratio is that of a row's largest number to the row's root mean square. For activations
    it is that of a channel's root mean square over the texts to the median channel's, and `far` counts channels beyond
    FAR.
    """

    largest: float
    layer: int
    median: float
    far: int
    by_layer: tuple[float, ...]


def weight_outliers(checkpoint: Checkpoint) -> dict[str, Outliers]:
    """By the kind of matrix. Reads every matrix once. Raises CorruptFile."""
    found = {
        kind: _outliers(
            [_crests(checkpoint.weights.float32(block_tensor(layer, part))) for layer in _layers(checkpoint)]
        )
        for kind, part in MATRICES.items()
    }
    for name, tensor in (("embedding", EMBEDDING), ("lm_head", LM_HEAD)):
        if tensor in checkpoint.weights.tensors:
            found[name] = _outliers([_crests(checkpoint.weights.float32(tensor))], layer=-1)
    return found


def activation_outliers(checkpoint: Checkpoint, *, kv: bool) -> dict[str, dict[str, Outliers]]:
    """By the kind of activation, over the texts of the export's proof: as they are, and "balanced" as the export in
    eight bits has them, with keys and values of eight bits for `kv`. Raises a CheckpointError."""
    rows = proof_rows(checkpoint.folder, checkpoint.architecture.context)
    balanced = balance(checkpoint, rows, weights=True, kv=kv)
    return {
        state: _of_sizes(channel_sizes(each, rows)[0])
        for state, each in (("original", checkpoint), ("balanced", balanced))
    }


def as_json(found: Mapping[str, Outliers]) -> dict[str, object]:
    return {kind: asdict(each) for kind, each in found.items()}


def _of_sizes(layers: Sequence[ChannelSizes]) -> dict[str, Outliers]:
    return {
        each.name: _outliers([_relative(getattr(sizes, each.name)) for sizes in layers])
        for each in fields(ChannelSizes)
    }


def _layers(checkpoint: Checkpoint) -> Iterator[int]:
    yield from range(checkpoint.architecture.layers)


def _crests(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[N, K] -> float32 [N]: each row's largest absolute number by its root mean square; 0 for a row of zeros."""
    largest = np.maximum(matrix.max(axis=1), -matrix.min(axis=1))
    rms = np.sqrt(np.einsum("nk,nk->n", matrix, matrix) / np.float32(matrix.shape[1]))
    crests: npt.NDArray[np.float32] = np.divide(largest, rms, out=np.zeros_like(largest), where=rms > 0)
    return crests


def _relative(sizes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[K] -> float32 [K], in units of the median channel; 0 where that is 0."""
    median = np.median(sizes)
    return np.asarray(sizes / median, np.float32) if median > 0 else np.zeros_like(sizes)


def _outliers(ratios: Sequence[npt.NDArray[np.float32]], layer: int | None = None) -> Outliers:
    by_layer = [float(each.max()) for each in ratios]
    everything = np.concatenate(ratios)
    return Outliers(
        largest=max(by_layer),
        layer=int(np.argmax(by_layer)) if layer is None else layer,
        median=float(np.median(everything)),
        far=int((everything > FAR).sum()),
        by_layer=tuple(by_layer),
    )
