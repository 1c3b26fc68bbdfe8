"""A request as the models see it, without anything of Triton."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
from qwen3guard_contract.errors import GuardError
from qwen3guard_contract.wire import Tensor

Outputs = Mapping[str, Any]
"""The values of outputs by tensor name, without the batch dimension."""


def never() -> bool:
    return False


@dataclass(frozen=True)
class Request:
    """One request: its tensors by name, without the batch dimension; the names of the outputs that it wants; its
    sequence id, with the flags of its first and last request; whether it is the supervisor's canary; the scope within
    which computed prefixes may be shared (engine.prefixes); whether it is of a stream's replay; and a function that
    asks whether its caller has hung up. Whoever keeps that function keeps Triton's request, so it goes when the request
    is answered."""

    tensors: Mapping[str, npt.NDArray[Any]]
    wanted: frozenset[str]
    sequence: int | str = 0
    start: bool = False
    end: bool = False
    canary: bool = False
    scope: str | None = None
    replay: bool = False
    is_abandoned: Callable[[], bool] = field(default=never, compare=False)

    def has(self, tensor: Tensor) -> bool:
        return tensor.name in self.tensors

    def text(self, tensor: Tensor) -> bytes | None:
        """The value of a BYTES [1] tensor, or None if it was not sent."""
        return bytes(self.tensors[tensor.name][0]) if self.has(tensor) else None

    def number(self, tensor: Tensor, default: int) -> int:
        """The value of an INT64 or BOOL [1] tensor, or `default` if it was not sent."""
        return int(self.tensors[tensor.name][0]) if self.has(tensor) else default


Handler = Callable[[Sequence[Request]], Sequence[Outputs | GuardError]]
"""Returns one result, or its own error, for each request."""
Refuse = Callable[[Request, GuardError], Outputs | GuardError]
"""Returns the answer to a request that failed: its error, or outputs that hand the error on. The request may be without
its tensors, because they could not be read."""
