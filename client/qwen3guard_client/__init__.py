"""The thin gRPC client of a Qwen3Guard server, and the words that server and export share with it."""

from qwen3guard_client.aio import AsyncGuardClient
from qwen3guard_client.client import GuardClient
from qwen3guard_client.connection import Tls
from qwen3guard_client.errors import AccessError, GuardError, InputError, ServerError, SessionLost
from qwen3guard_client.gate import Flag, Flagged, Segment
from qwen3guard_client.labels import Category, Refusal, RiskLevel
from qwen3guard_client.moderation import AsyncModeration, Moderation
from qwen3guard_client.policy import Policy
from qwen3guard_client.stream import AsyncStream, Stream
from qwen3guard_client.thresholds import Thresholds
from qwen3guard_client.verdict import Classification, PromptVerdict, StepResult, TokenVerdict

__all__ = [
    "AccessError",
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
]
