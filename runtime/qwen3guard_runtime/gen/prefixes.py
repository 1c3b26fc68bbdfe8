"""The fixed beginnings that the chat template gives to every conversation: computed once, copied into each slot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qwen3guard_contract.manifest import Manifest

from qwen3guard_runtime.engine.kv_cache import HOST, KVCache, Memory, Slot, copy
from qwen3guard_runtime.engine.runner import Ids, Row, Runner
from qwen3guard_runtime.text.chat import ChatTemplate, Message


class Prefixes:
    """Keys and values of some token sequences, and how much of a conversation each begins."""

    def __init__(self, manifest: Manifest, runner: Runner, prefixes: Sequence[Ids], memory: Memory = HOST) -> None:
        cache = KVCache(manifest, slots=max(1, len(prefixes)), memory=memory)
        self._held: list[tuple[Ids, Slot]] = []
        for ids in prefixes:
            slot = cache.acquire(len(ids))
            runner.forward([Row(slot, ids, [])])
            self._held.append((ids, slot))

    def begin(self, slot: Slot, ids: Ids) -> int:
        """Fills the empty `slot` with the longest beginning of `ids` that is held; returns how many tokens that is.

        At least one token is left to compute, since a slot keeps no logits.
        """
        shared = [(common(ids[:-1], held), source) for held, source in self._held]
        count, source = max(shared, key=lambda found: found[0], default=(0, slot))
        copy(source, slot, count)
        return count


def common(one: Ids, other: Ids) -> int:
    """How many tokens two sequences begin with together."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def template_prefixes(template: ChatTemplate, limit: int) -> list[Ids]:
    """What conversations that end with a user's turn have in common, and those that end with an assistant's."""
    prefixes = []
    for turns in (("user",), ("user", "assistant")):
        one, other = (
            np.array(template.render([Message(role, text) for role in turns], limit), np.int64) for text in ("a", "1")
        )
        prefixes.append(one[: common(one, other)])
    return prefixes
