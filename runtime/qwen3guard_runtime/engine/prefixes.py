"""Prefix reuse: what a slot holds is not computed again for a sequence that begins with the same tokens.

A slot whose owner has ended is held, with its tokens, for sequences of the same scope; of one that is too long to be
held, the beginning is. It stays a slot of its arena, so the padding of passes is written after its tokens; it moves to
the arena's end, so that live slots stay neighbours. A sequence that goes on from it takes it and rewinds it; one that
shares only a part of it, or what a live slot holds, gets a copy. Nothing live ever waits for a held slot: for others,
it counts as room.

A scope is a name that callers share who may learn from the time of an answer what the others have asked. Nothing is
held or found for sequences without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from qwen3guard_runtime.engine.kv_cache import Ids, KVCache, Memory, Slot, copy
from qwen3guard_runtime.engine.runner import Row, Runner
from qwen3guard_runtime.parameters import Parameters

WORTH_TOKENS = 16
"""A shorter prefix of a scope is computed again, because to look after it takes as long."""

MOST_SHARE = 8
"""Held slots take at most one part in so many of the memory."""


@dataclass(frozen=True)
class PrefixLimits:
    """Held slots take at most `held_bytes`, and each is dropped when nobody has used it for `idle_s` seconds. With 0
    bytes nothing is reused but what is pinned."""

    held_bytes: int = 0
    idle_s: float = 600.0

    @classmethod
    def read(cls, parameters: Parameters, memory: Memory) -> PrefixLimits:
        """The parameters `prefix_bytes`, at most one part in MOST_SHARE of `memory`, and `prefix_s`. Raises
        InvalidParameter."""
        held_bytes = min(parameters.whole("prefix_bytes"), memory.free_bytes() // MOST_SHARE)
        return cls(held_bytes, parameters.seconds("prefix_s"))


class PrefixCache:
    """The slots of `cache`, with those that are held. It is used in place of `cache`. `clock` returns seconds."""

    def __init__(
        self, cache: KVCache, limits: PrefixLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache = cache
        self._limits = limits or PrefixLimits()
        self._most_tokens = cache.most_tokens(self._limits.held_bytes)
        self._clock = clock
        self._scopes: dict[Slot, str] = {}
        """The scope of each slot that has one, live or held."""
        self._held: dict[Slot, float] = {}
        """When each held slot was last used, the longest unused first."""
        self._pinned: list[Slot] = []

    @property
    def count(self) -> int:
        """The number of held slots."""
        return len(self._held)

    @property
    def live(self) -> int:
        """The number of slots that have an owner."""
        return self._cache.live - len(self._held) - len(self._pinned)

    @property
    def held_bytes(self) -> int:
        return sum(slot.arena.slot_bytes for slot in tuple(self._held))  # a thread that publishes metrics may ask

    @property
    def used_bytes(self) -> int:
        """The bytes of the slots that are not held."""
        return self._cache.used_bytes - self.held_bytes

    def pin(self, runner: Runner, ids: Ids) -> None:
        """Computes a prefix that sequences of every scope, and those without one, begin with. It is never dropped."""
        slot = self._cache.acquire(len(ids))
        runner.forward([Row(slot, ids, [])])
        self._pinned.append(slot)

    def has_room(self, tokens: int, slot: Slot | None = None) -> bool:
        """Whether `slot`, or a new slot, can hold `tokens` in all, if nothing is held any more."""
        return self._cache.has_room(tokens, slot, without=self._held)

    def acquire(self, ids: Ids, scope: str | None = None) -> Slot:
        """Takes a slot that holds the longest beginning of `ids` that can be found: `slot.length` tokens of it, perhaps
        none. Raises Overloaded if there is no room for it.
        """
        source, shared = self._longest(ids, scope)
        if source in self._held and (2 * shared > source.length or not self._cache.has_room(shared)):
            del self._held[source]
            source.length = shared
            self._cache.settle(source)
            slot = source
        else:
            if source in self._held:
                self._touch(source)
            self._make_room(shared, keep=source)
            slot = self._cache.acquire(shared)
            if source:
                copy(source, slot, shared)
        if scope is not None and self._limits.held_bytes:
            self._scopes[slot] = scope
        return slot

    def grow(self, slot: Slot, tokens: int) -> None:
        """Makes room for `tokens` in all. Raises Overloaded."""
        self._make_room(tokens, slot)
        self._cache.grow(slot, tokens)

    def release(self, slot: Slot, *, hold: bool = True) -> None:
        """The slot's owner has ended. It is held if it has a scope, or as much of its beginning as has room; without
        `hold`, as what is in it cannot be trusted, it is freed."""
        scope = self._scopes.get(slot)
        slot.length = min(slot.length, self._most_tokens)
        if not hold or scope is None or slot.length < WORTH_TOKENS:
            self._free(slot)
            return
        same_scope = [each for each in self._held if self._scopes[each] == scope]
        for each in same_scope:
            shared = common_length(each.ids, slot.ids)
            if shared == slot.length:
                self._touch(each)
                self._free(slot)
                return
            if shared == each.length:
                self._drop(each)
        self._cache.settle(slot, last=True)
        self._held[slot] = self._clock()
        while self.held_bytes > self._limits.held_bytes:
            self._drop(next(iter(self._held)))

    def drop_idle(self) -> None:
        """Drops what nobody has used for `idle_s`."""
        now = self._clock()
        while self._held and now - next(iter(self._held.values())) > self._limits.idle_s:
            self._drop(next(iter(self._held)))

    def _longest(self, ids: Ids, scope: str | None) -> tuple[Slot | None, int]:
        """The slot that has the longest common prefix with `ids`, and its length; of equal ones, a held one."""
        found: tuple[Slot | None, int] = (None, 0)
        for slot in self._pinned:
            shared = common_length(slot.ids, ids)
            if shared > found[1]:
                found = slot, shared
        if scope is None:
            return found
        least = max(found[1] + 1, WORTH_TOKENS)
        for slot, its_scope in self._scopes.items():
            if its_scope == scope and slot.length >= least:
                shared = common_length(slot.ids, ids)
                if shared > max(found[1], WORTH_TOKENS - 1) or (shared == found[1] and slot in self._held):
                    found = slot, shared
        return found

    def _make_room(self, tokens: int, slot: Slot | None = None, *, keep: Slot | None = None) -> None:
        """Drops held slots but `keep`, the longest unused first, until `slot`, or a new slot, can hold `tokens`."""
        while not self._cache.has_room(tokens, slot):
            oldest = next((each for each in self._held if each is not keep), None)
            if oldest is None:
                return
            self._drop(oldest)

    def _touch(self, slot: Slot) -> None:
        del self._held[slot]
        self._held[slot] = self._clock()

    def _drop(self, slot: Slot) -> None:
        del self._held[slot]
        self._free(slot)

    def _free(self, slot: Slot) -> None:
        self._scopes.pop(slot, None)
        self._cache.release(slot)


def common_length(one: Ids, other: Ids) -> int:
    """The number of tokens that two sequences have in common at their beginning. It reads little more than these."""
    length, compared, size = min(len(one), len(other)), 0, WORTH_TOKENS
    while compared < length:
        end = min(compared + size, length)
        differ = one[compared:end] != other[compared:end]
        if differ.any():
            return compared + int(differ.argmax())
        compared, size = end, 2 * size
    return length
