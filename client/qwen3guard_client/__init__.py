"""The thin gRPC client of a Qwen3Guard server, and the words that server and export share with it."""

from qwen3guard_client.aio import AsyncGuardClient, AsyncStream
from qwen3guard_client.client import GuardClient, Stream
from qwen3guard_client.errors import GuardError, InputError, ServerError, SessionLost
from qwen3guard_client.labels import Category, Refusal, RiskLevel
from qwen3guard_client.verdict import Classification, PromptVerdict, StepResult, TokenVerdict

__all__ = [
    "AsyncGuardClient",
    "AsyncStream",
    "Category",
    "Classification",
    "GuardClient",
    "GuardError",
    "InputError",
    "PromptVerdict",
    "Refusal",
    "RiskLevel",
    "ServerError",
    "SessionLost",
    "StepResult",
    "Stream",
    "TokenVerdict",
]
