"""A Stream guard without a graph: logits that are a sum of the tokens, and sessions on a list for a clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qwen3guard_contract.errors import GuardError
from qwen3guard_contract.manifest import Canary, Manifest
from qwen3guard_contract.policy import Policy
from qwen3guard_runtime.engine.kv_cache import HostArena, KVCache
from qwen3guard_runtime.engine.prefixes import PrefixCache, PrefixLimits
from qwen3guard_runtime.engine.runner import Logits, Row
from qwen3guard_runtime.stream.session import SessionLimits
from qwen3guard_runtime.stream.sessions import Sessions
from qwen3guard_runtime.stream.steps import Step, StepReply

MANIFEST = Manifest(
    variant="stream",
    source="a test",
    weights="fp32",
    attention="decomposed",
    layers=1,
    kv_heads=1,
    head_dim=8,
    hidden_size=4,
    vocab_size=100,
    context=600,
    demo=False,
    parameters=0,
    parity={},
    sha256={},
    versions={},
    canary=Canary((), (), 0.0),
)


class TokenSum:
    """A graph whose logits depend on every token up to the asked one; it stores the tokens where KV would be."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.pass_s = 0.0
        self.passes: list[int] = []
        self.lengths: list[int] = []
        self.fail = False
        self.poison = -1

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        if self.fail or any(self.poison in row.ids for row in rows):
            raise RuntimeError("the graph broke")
        assert len({id(row.slot) for row in rows}) == len(rows)
        self.passes.append(len(rows))
        self.lengths += [len(row.ids) for row in rows]
        self.clock[0] += self.pass_s
        results: list[Logits] = []
        for row in rows:
            slot = row.slot
            assert slot.length + len(row.ids) <= slot.arena.room
            assert isinstance(slot.arena, HostArena)
            cells = slot.arena.arrays[0][slot.row, 0, :, 0]
            cells[slot.length : slot.length + len(row.ids)] = row.ids
            ends = [slot.length + index + 1 for index in row.asked]
            slot.append(row.ids)
            risk = logits([cells[:end] for end in ends])
            results.append((risk, np.repeat(risk, 3, 1)[:, :8], risk, np.repeat(risk, 3, 1)))
        return results


def logits(prefixes: Sequence[Any]) -> np.ndarray:
    rows = [[(np.sum(prefix) * (k + 2) + prefix[-1] * 7) % 11 for k in range(3)] for prefix in prefixes]
    return np.array(rows, np.float32).reshape(-1, 3)


class Bench:
    """Sessions over the double, and the clock in a list."""

    def __init__(
        self,
        *,
        slots: int = 4,
        budget_bytes: int | None = None,
        idle_s: float = 60.0,
        evict_s: float = 0.0,
        chunk_tokens: int = 24,
        alone_tokens: int | None = None,
        prefixes: PrefixLimits | None = None,
    ) -> None:
        self.clock = [0.0]
        self.graph = TokenSum(self.clock)
        self.cache = PrefixCache(
            KVCache(MANIFEST, slots=slots, budget_bytes=budget_bytes), prefixes, lambda: self.clock[0]
        )
        limits = SessionLimits(
            idle_s=idle_s,
            evict_s=evict_s,
            turn_s=1.0,
            chunk_tokens=chunk_tokens,
            alone_tokens=alone_tokens or chunk_tokens,
        )
        self.sessions = Sessions(
            MANIFEST, self.graph, self.cache, policy=Policy(), limits=limits, clock=lambda: self.clock[0]
        )

    def step(self, session: str, ids: Sequence[int], position: int = 0, **flags_: Any) -> StepReply | GuardError:
        step = Step(session, np.array(ids, np.int64), position, **flags_)
        return self.sessions.steps([step])[0]

    def ok(self, *arguments: Any, **flags_: Any) -> StepReply:
        reply = self.step(*arguments, **flags_)
        assert isinstance(reply, StepReply), reply
        return reply
