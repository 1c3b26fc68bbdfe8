"""The `parameters` of each model's config.pbtxt, which an operator sets, and what they are by default."""

from __future__ import annotations

from collections.abc import Mapping

from qwen3guard_contract import wire

GEN_SLOTS = 8
IDLE_S = 600
DEVICE_PARAMETERS = {"device": "auto", "threads": "0", "slot_tokens": "2048", "cuda_options": "{}"}
"""docs/gpu.md explains each."""
WAITING = "waiting"
RECENT_PARAMETERS = {"recent_tokens": "0"}
TOKENIZER_PARAMETERS = RECENT_PARAMETERS | {WAITING: "16"}
DECISION_PARAMETERS = {"strict": "true", "thresholds": ""}
PREFIX_PARAMETERS = {"prefix_bytes": str(1 << 30), "prefix_s": "600"}
"""docs/streams.md explains each."""
GEN_PARAMETERS = (
    DEVICE_PARAMETERS | DECISION_PARAMETERS | PREFIX_PARAMETERS | {"slots": str(GEN_SLOTS), WAITING: str(GEN_SLOTS)}
)
"""docs/operations.md explains each."""
STREAM_PARAMETERS = (
    DEVICE_PARAMETERS
    | DECISION_PARAMETERS
    | PREFIX_PARAMETERS
    | {
        "slots": "256",
        "kv_budget_bytes": "0",
        "idle_s": str(IDLE_S),
        "evict_s": "5",
        "chunk_tokens": "16",
        "alone_tokens": "128",
        "turn_s": "0.05",
        "debounce": "2",
    }
)
"""docs/streams.md explains each."""
PARAMETERS: Mapping[str, Mapping[str, str]] = {
    wire.GUARD_TOKENIZER.name: TOKENIZER_PARAMETERS,
    wire.STREAM_TOKENIZER.name: RECENT_PARAMETERS,
    wire.GEN_GUARD.name: GEN_PARAMETERS,
    wire.STREAM_GUARD.name: STREAM_PARAMETERS,
}
"""By the model's name. Others have none."""
