"""The gRPC client of a Qwen3Guard server.

`GuardClient` and `AsyncGuardClient` classify conversations, and moderate responses while they are written. The other
names are the labels, verdicts, policies and errors that they take and return. Every error is a `GuardError`.
"""

# Each name is imported when it is first used: a program that needs a label or a verdict alone does not load gRPC.
# The sync modules (client.py, stream/stream.py, moderation/moderation.py) are generated from the aio.py beside each.

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen3guard_contract import errors
    from qwen3guard_contract.errors import AccessError, GuardError, InputError, ServerError, SessionLost
    from qwen3guard_contract.labels import AnswerStatus, Category, Refusal, RiskLevel
    from qwen3guard_contract.policy import Policy
    from qwen3guard_contract.thresholds import Thresholds
    from qwen3guard_contract.verdict import (
        AnswerToken,
        Classification,
        PromptVerdict,
        RawAnswer,
        StepResult,
        TokenVerdict,
        Window,
    )

    from qwen3guard_client.aio import AsyncGuardClient
    from qwen3guard_client.client import GuardClient
    from qwen3guard_client.moderation.aio import AsyncModeration
    from qwen3guard_client.moderation.gate import Flag, Flagged, Segment
    from qwen3guard_client.moderation.moderation import Moderation
    from qwen3guard_client.stream.aio import AsyncStream
    from qwen3guard_client.stream.stream import Stream
    from qwen3guard_client.transport.connection import Tls

__all__ = [
    "AccessError",
    "AnswerStatus",
    "AnswerToken",
    "AsyncGuardClient",
    "AsyncModeration",
    "AsyncStream",
    "Category",
    "Classification",
    "Flag",
    "Flagged",
    "GuardClient",
    "GuardError",
    "InputError",
    "Moderation",
    "Policy",
    "PromptVerdict",
    "RawAnswer",
    "Refusal",
    "RiskLevel",
    "Segment",
    "ServerError",
    "SessionLost",
    "StepResult",
    "Stream",
    "Thresholds",
    "Tls",
    "TokenVerdict",
    "Window",
    "errors",
]

_OWNERS = {
    "qwen3guard_contract.errors": ("AccessError", "GuardError", "InputError", "ServerError", "SessionLost"),
    "qwen3guard_contract.labels": ("AnswerStatus", "Category", "Refusal", "RiskLevel"),
    "qwen3guard_contract.policy": ("Policy",),
    "qwen3guard_contract.thresholds": ("Thresholds",),
    "qwen3guard_contract.verdict": (
        "AnswerToken",
        "Classification",
        "PromptVerdict",
        "RawAnswer",
        "StepResult",
        "TokenVerdict",
        "Window",
    ),
    "qwen3guard_client.aio": ("AsyncGuardClient",),
    "qwen3guard_client.client": ("GuardClient",),
    "qwen3guard_client.moderation.aio": ("AsyncModeration",),
    "qwen3guard_client.moderation.gate": ("Flag", "Flagged", "Segment"),
    "qwen3guard_client.moderation.moderation": ("Moderation",),
    "qwen3guard_client.stream.aio": ("AsyncStream",),
    "qwen3guard_client.stream.stream": ("Stream",),
    "qwen3guard_client.transport.connection": ("Tls",),
}
_OWNER = {name: module for module, names in _OWNERS.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module("qwen3guard_contract.errors")
    if name not in _OWNER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OWNER[name]), name)


def __dir__() -> list[str]:
    return __all__
