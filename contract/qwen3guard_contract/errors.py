"""The errors of the client, the export, the runtime, the server and the apps, in one tree. All are defined here, except
the client's Flagged.

GuardError
├── InputError                  the request is wrong; sending it again cannot help
│   ├── EmptyText               EMPTY_TEXT
│   ├── InvalidEncoding         INVALID_ENCODING
│   ├── InvalidMessages         INVALID_MESSAGES
│   ├── UnknownRole             UNKNOWN_ROLE
│   ├── LastRole                LAST_ROLE
│   ├── TextTooLong             TEXT_TOO_LONG
│   ├── TokenOutOfRange         TOKEN_OUT_OF_RANGE
│   ├── PositionOutOfRange      POSITION_OUT_OF_RANGE
│   └── InvalidRequest          INVALID_REQUEST
├── SessionLost                 SESSION_LOST
├── Flagged                     FLAGGED       of the client's `moderation.gate`: `moderate(on_flag="raise")` raises it
├── ServerError                 the server could not answer a well-formed request
│   ├── Overloaded              OVERLOADED
│   ├── UnreadableAnswer        UNREADABLE_ANSWER
│   ├── GuardNotServed          GUARD_NOT_SERVED
│   ├── Unreachable             UNREACHABLE
│   ├── DeadlineExceeded        DEADLINE_EXCEEDED
│   ├── Abandoned               ABANDONED     its caller has hung up, so it was dropped
│   └── InternalError           INTERNAL
├── AccessError                 client or server refuses the other; waiting cannot help
│   ├── InvalidCredentials      INVALID_CREDENTIALS   a certificate, a key or a token cannot be used
│   ├── TlsFailed               TLS_FAILED
│   └── TokenRefused            TOKEN_REFUSED
├── CheckpointError             the checkpoint is not a guard that can be exported and served
│   ├── CheckpointNotFound      CHECKPOINT_NOT_FOUND
│   ├── WrongArchitecture       WRONG_ARCHITECTURE
│   ├── MissingTensor           MISSING_TENSOR
│   ├── WrongShape              WRONG_SHAPE
│   ├── CorruptFile             CORRUPT_FILE
│   ├── TokenizerMismatch       TOKENIZER_MISMATCH
│   ├── ParityError             PARITY
│   └── EngineError             ENGINE        no TensorRT engine can be built from it here
└── ServeError                  the embedded server cannot run here
    ├── PerfAnalyzerError       PERF_ANALYZER
    ├── ExportMissing           EXPORT_MISSING
    ├── ExportOutdated          EXPORT_OUTDATED   another version made it, and this one cannot serve it correctly
    ├── InvalidParameter        INVALID_PARAMETER
    ├── EngineMismatch          ENGINE_MISMATCH
    ├── DeviceError             DEVICE        the GPU or its driver fails, or the CPU's 8-bit products cannot be exact
    ├── OverBudget              OVER_BUDGET
    ├── PortBusy                PORT_BUSY
    ├── UnsupportedPython       UNSUPPORTED_PYTHON
    └── CanaryFailed            CANARY_FAILED

An error travels through Triton as the text ``[CODE] One sentence.``. `from_text` reads it back, also when an ensemble
or a back end has put other words around it.
"""

from __future__ import annotations

import re
from typing import ClassVar


class GuardError(Exception):
    """The root of the tree. `code` never changes; the message is one sentence for a person."""

    code: ClassVar[str] = "GUARD"
    request_id: str | None = None
    """The id of the request that was answered with this error; the server's log has the same id."""

    def wire_text(self) -> str:
        return f"[{self.code}] {self}"


class InputError(GuardError):
    code = "INPUT"


class EmptyText(InputError):
    code = "EMPTY_TEXT"


class InvalidEncoding(InputError):
    code = "INVALID_ENCODING"


class InvalidMessages(InputError):
    code = "INVALID_MESSAGES"


class UnknownRole(InputError):
    code = "UNKNOWN_ROLE"


class LastRole(InputError):
    code = "LAST_ROLE"


class TextTooLong(InputError):
    code = "TEXT_TOO_LONG"


class TokenOutOfRange(InputError):
    code = "TOKEN_OUT_OF_RANGE"


class PositionOutOfRange(InputError):
    code = "POSITION_OUT_OF_RANGE"


class InvalidRequest(InputError):
    code = "INVALID_REQUEST"


class SessionLost(GuardError):
    """The server no longer holds this stream. The client opens it again with START and everything so far."""

    code = "SESSION_LOST"


class ServerError(GuardError):
    code = "SERVER"


class Overloaded(ServerError):
    code = "OVERLOADED"


class UnreadableAnswer(ServerError):
    code = "UNREADABLE_ANSWER"


class GuardNotServed(ServerError):
    code = "GUARD_NOT_SERVED"


class Unreachable(ServerError):
    code = "UNREACHABLE"


class DeadlineExceeded(ServerError):
    code = "DEADLINE_EXCEEDED"


class Abandoned(ServerError):
    """The caller has hung up, as Triton tells, so the request was dropped. Nobody sees this but the metrics."""

    code = "ABANDONED"


class InternalError(ServerError):
    code = "INTERNAL"


class AccessError(GuardError):
    code = "ACCESS"


class InvalidCredentials(AccessError):
    code = "INVALID_CREDENTIALS"


class TlsFailed(AccessError):
    code = "TLS_FAILED"


class TokenRefused(AccessError):
    """The token is missing or wrong, or nobody may make this call."""

    code = "TOKEN_REFUSED"


class CheckpointError(GuardError):
    code = "CHECKPOINT"


class CheckpointNotFound(CheckpointError):
    code = "CHECKPOINT_NOT_FOUND"


class WrongArchitecture(CheckpointError):
    code = "WRONG_ARCHITECTURE"


class MissingTensor(CheckpointError):
    code = "MISSING_TENSOR"


class WrongShape(CheckpointError):
    code = "WRONG_SHAPE"


class CorruptFile(CheckpointError):
    code = "CORRUPT_FILE"


class TokenizerMismatch(CheckpointError):
    code = "TOKENIZER_MISMATCH"


class ParityError(CheckpointError):
    code = "PARITY"


class EngineError(CheckpointError):
    code = "ENGINE"


class ServeError(GuardError):
    code = "SERVE"


class PerfAnalyzerError(ServeError):
    code = "PERF_ANALYZER"


class ExportMissing(ServeError):
    code = "EXPORT_MISSING"


class ExportOutdated(ServeError):
    code = "EXPORT_OUTDATED"


class InvalidParameter(ServeError):
    code = "INVALID_PARAMETER"


class EngineMismatch(ServeError):
    code = "ENGINE_MISMATCH"


class DeviceError(ServeError):
    code = "DEVICE"


class OverBudget(ServeError):
    code = "OVER_BUDGET"


class PortBusy(ServeError):
    code = "PORT_BUSY"


class UnsupportedPython(ServeError):
    code = "UNSUPPORTED_PYTHON"


class CanaryFailed(ServeError):
    code = "CANARY_FAILED"


def _tree(root: type[GuardError]) -> list[type[GuardError]]:
    return [root, *(error for child in root.__subclasses__() for error in _tree(child))]


BY_CODE: dict[str, type[GuardError]] = {error.code: error for error in _tree(GuardError)}

_WIRE_TEXT = re.compile(r"\[([A-Z][A-Z_]+)\] ([^\n]*)")


def from_text(text: str) -> GuardError | None:
    """Returns the error that `wire_text` wrote into `text`, or None if there is none."""
    for code, sentence in _WIRE_TEXT.findall(text):
        if code in BY_CODE:
            return BY_CODE[code](sentence.strip())
    return None
