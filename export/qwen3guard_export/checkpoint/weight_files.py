"""Reads safetensors one tensor at a time, from a single file or shards, with bfloat16; nothing is mapped or cached.

This module knows the file layout (https://huggingface.co/docs/safetensors: an 8-byte little-endian header length, a
JSON header, the bytes) and nothing of models. The numpy reader of safetensors has no bfloat16. Pickles are never
opened.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from qwen3guard_contract.errors import CheckpointNotFound, CorruptFile, MissingTensor, WrongArchitecture

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
_LONGEST_HEADER = 100_000_000
_MOST_DIMENSIONS = 8
_BLOCK = 1 << 24


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
    """Where the bytes of one tensor are. `offset` counts from the beginning of `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a checkpoint by name; a tensor's bytes are read when it is asked for."""

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
        """The tensor in the checkpoint's own dtype (ml_dtypes.bfloat16, float16 or float32).

        Raises MissingTensor, or CorruptFile where it cannot be read or is not finite.
        """
        tensor = self._find(name)
        count = math.prod(tensor.shape)
        try:
            flat = np.fromfile(tensor.path, _DTYPES[tensor.dtype], count, offset=tensor.offset)
        except OSError as error:
            raise CorruptFile(f"{tensor.path} cannot be read ({_first_line(error)}).") from None
        if flat.size != count:
            raise CorruptFile(f"{tensor.path} ends inside {name}.")
        _require_finite(flat, name, tensor.path)
        return flat.reshape(tensor.shape)

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors have the same dtype, shape and bytes. Reads a block of each at a time."""
        first, second = self._find(name), self._find(other)
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        left = math.prod(first.shape) * _DTYPES[first.dtype].itemsize
        try:
            with first.path.open("rb") as one, second.path.open("rb") as two:
                one.seek(first.offset)
                two.seek(second.offset)
                while left > 0:
                    size = min(left, _BLOCK)
                    block = one.read(size)
                    if len(block) != size or block != two.read(size):
                        return False
                    left -= size
        except OSError as error:
            raise CorruptFile(f"{first.path} cannot be read ({_first_line(error)}).") from None
        return True

    def float32(self, name: str) -> FloatArray:
        """The tensor's exact values as a C-contiguous float32 array, which the caller may change."""
        stored = self.stored(name)
        if stored.dtype == np.float32:
            return stored
        if stored.dtype == np.float16:
            return stored.astype(np.float32)
        bits = stored.view(np.uint16).astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)

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
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise CorruptFile(f"{path} is no complete safetensors file: its header does not fit its {size} bytes.")
            entries = json.loads(file.read(length))
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read ({_first_line(error)}).") from None
    except (ValueError, RecursionError):
        raise CorruptFile(f"{path} is no safetensors file: its header is not JSON.") from None
    if not isinstance(entries, dict):
        raise CorruptFile(f"{path} is no safetensors file: its header is not a JSON object.")
    entries.pop("__metadata__", None)
    return {name: _entry(path, name, entry, 8 + length, size) for name, entry in entries.items()}


def _entry(path: Path, name: str, entry: Any, base: int, size: int) -> StoredTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise CorruptFile(f"{path} describes {name!r:.100} in no safetensors way.") from None
    if len(shape) > _MOST_DIMENSIONS or not all(type(each) is int and each >= 0 for each in (*shape, begin, end)):
        raise CorruptFile(f"{path} describes {name!r:.100} in no safetensors way.")
    if dtype not in _DTYPES:
        raise WrongArchitecture(
            f"{path} stores {name!r:.100} as {dtype!r:.100}; only BF16, F16 and F32 checkpoints are read."
        )
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise CorruptFile(f"{path} gives {name!r:.100} a size that does not match its shape.")
    if base + end > size:
        raise CorruptFile(f"{path} is truncated: {name!r:.100} ends at byte {base + end} of {size}.")
    return StoredTensor(path, dtype, shape, base + begin)


def _require_finite(flat: Array, name: str, path: Path) -> None:
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if block.dtype == ml_dtypes.bfloat16:
            finite = bool(((block.view(np.uint16) & 0x7F80) != 0x7F80).all())
        else:
            finite = bool(np.isfinite(block).all())
        if not finite:
            raise CorruptFile(f"{path} holds NaN or infinity in {name}.")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
