"""The tensors of a checkpoint in safetensors, from a single file or shards, with bfloat16. Pickles are never opened.

A file is opened for one tensor at a time: the library maps it, and what was read of a map counts as this process's
memory until it is closed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import CheckpointNotFound, CorruptFile, MissingTensor, WrongArchitecture
from safetensors import SafetensorError, safe_open

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = ("BF16", "F16", "F32")
_BLOCK = 1 << 24
"""How many numbers are looked at in one go."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises CorruptFile where `path` holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptFile(f"{path} is not readable JSON ({_first_line(error)}).") from None
    if not isinstance(data, dict):
        raise CorruptFile(f"{path} does not hold a JSON object.")
    return data


@dataclass(frozen=True)
class StoredTensor:
    """In which file a tensor is, under which name there, and its dtype in the words of safetensors."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a checkpoint by name; a tensor is read when it is asked for."""

    tensors: dict[str, StoredTensor]

    @classmethod
    def open(cls, folder: Path) -> WeightFiles:
        """Reads the headers of the files in `folder`. Raises CheckpointNotFound, CorruptFile, MissingTensor or
        WrongArchitecture."""
        index, single = folder / INDEX, folder / SINGLE
        if index.is_file():
            sharded = _open_sharded(folder, index)
            if single.is_file() and all(tensor.path != single for tensor in sharded.values()):
                raise CorruptFile(f"{folder} has both {SINGLE} and {INDEX}; remove the one that is not the checkpoint.")
            return cls(sharded)
        if single.is_file():
            return cls(_read_header(single))
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "pkl") for path in folder.glob(f"*.{suffix}"))
        if pickles:
            raise CheckpointNotFound(
                f"{folder} has no safetensors but only pickle files ({', '.join(pickles[:3])}), which are never opened."
            )
        raise CheckpointNotFound(f"{folder} has neither {SINGLE} nor {INDEX}.")

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape

    def stored(self, name: str) -> Array:
        """The tensor in the checkpoint's own dtype (ml_dtypes.bfloat16, float16 or float32), C-contiguous.

        Raises MissingTensor, or CorruptFile where it cannot be read or is not finite.
        """
        stored = self._find(name)
        with _opened(stored.path) as file:
            tensor: Array = file.get_tensor(stored.name)
        flat = tensor.reshape(-1)
        if not all(_finite(flat[start : start + _BLOCK]) for start in range(0, flat.size, _BLOCK)):
            raise CorruptFile(f"{stored.path} holds NaN or infinity in {name}.")
        return tensor

    def same(self, name: str, other: str) -> bool:
        """Whether two matrices have the same dtype, shape and bytes. Reads some rows of each at a time."""
        first, second = self._find(name), self._find(other)
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        rows, columns = first.shape
        step = max(1, _BLOCK // max(1, columns))
        for start in range(0, rows, step):
            end = min(start + step, rows)
            if _rows(first, start, end) != _rows(second, start, end):
                return False
        return True

    def float32(self, name: str) -> FloatArray:
        """The tensor's exact values as a C-contiguous float32 array, which the caller may change."""
        return self.stored(name).astype(np.float32, copy=False)

    def _find(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            raise MissingTensor(f"the checkpoint has no tensor {name}.")
        return self.tensors[name]


def _open_sharded(folder: Path, index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptFile(f"{index} has no weight_map of file names.")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CorruptFile(f"{index} names {shard!r:.100}, which is not a file beside it.")
        header = _read_header(folder / shard)
        placed = {name for name, file in weight_map.items() if file == shard}
        if lacking := sorted(placed - header.keys()):
            raise MissingTensor(f"{folder / shard} lacks {lacking[0]!r:.100}, which {INDEX} places there.")
        if unread := sorted(header.keys() - placed):
            raise CorruptFile(f"{folder / shard} has {unread[0]!r:.100}, which {INDEX} does not place there.")
        tensors |= header
    return tensors


def _read_header(path: Path) -> dict[str, StoredTensor]:
    tensors = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            view = file.get_slice(name)
            tensors[name] = StoredTensor(path, name, view.get_dtype(), tuple(view.get_shape()))
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise WrongArchitecture(
                f"{path} stores {name!r:.100} as {tensor.dtype!r:.100}; only BF16, F16 and F32 checkpoints are read."
            )
    return tensors


def _rows(tensor: StoredTensor, start: int, end: int) -> bytes:
    with _opened(tensor.path) as file:
        block: Array = file.get_slice(tensor.name)[start:end]
    return block.tobytes()


def _finite(block: Array) -> bool:
    if block.dtype == ml_dtypes.bfloat16:  # its own isfinite takes five times as long
        return bool(((block.view(np.uint16) & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(block).all())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file as safetensors reads it, which checks its header against its size. Raises CorruptFile."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"{path} cannot be read as safetensors ({_first_line(error)}).") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
