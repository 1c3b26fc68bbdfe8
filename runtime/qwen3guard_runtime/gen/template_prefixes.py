"""The fixed beginnings that the chat template writes in every conversation."""

from __future__ import annotations

import numpy as np
from qwen3guard_contract.messages import Message

from qwen3guard_runtime.engine.kv_cache import Ids
from qwen3guard_runtime.engine.prefixes import common_length
from qwen3guard_runtime.text.chat import ChatTemplate


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
