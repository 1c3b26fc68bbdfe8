"""The fixed beginnings that the chat template writes in every conversation. Their keys and values are computed once and
copied into each slot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.messages import Message

from qwen3guard_runtime.engine.kv_cache import HOST, KVCache, Memory, Slot, copy
from qwen3guard_runtime.engine.runner import Ids, Row, Runner
from qwen3guard_runtime.text.chat import ChatTemplate


class Prefixes:
    """Holds the keys and values of some sequences of tokens, one in each slot."""

    def __init__(self, manifest: Manifest, runner: Runner, prefixes: Sequence[Ids], memory: Memory = HOST) -> None:
        cache = KVCache(manifest, slots=max(1, len(prefixes)), memory=memory)
        self._held: list[tuple[Ids, Slot]] = []
        for ids in prefixes:
            slot = cache.acquire(len(ids))
            runner.forward([Row(slot, ids, [])])
            self._held.append((ids, slot))

    def fill(self, slot: Slot, ids: Ids) -> int:
        """Fills the empty `slot` with the longest beginning of `ids` that is held. Returns its number of tokens.

        At least the last token is left to compute, because slots hold no logits.
        """
        candidates = [(common_length(ids[:-1], prefix), source) for prefix, source in self._held]
        length, source = max(candidates, key=lambda candidate: candidate[0], default=(0, slot))
        copy(source, slot, length)
        return length


def common_length(one: Ids, other: Ids) -> int:
    """The number of tokens that two sequences have in common at their beginning."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def template_prefixes(template: ChatTemplate, limit: int) -> list[Ids]:
    """The common beginning of all conversations that end with a user's turn, and that of all that end with an
    assistant's. Conversations may have `limit` tokens."""
    prefixes = []
    for turns in (("user",), ("user", "assistant")):
        one, other = (
            np.array(template.render([Message(role, text) for role in turns], limit), np.int64) for text in ("a", "1")
        )
        prefixes.append(one[: common_length(one, other)])
    return prefixes
