"""Every error of this project, in one tree.

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
├── gate.Flagged                FLAGGED       what `moderate(on_flag="raise")` raises; never sent by a server
├── ServerError                 the server could not answer a well-formed request
│   ├── Overloaded              OVERLOADED
│   ├── UnreadableAnswer        UNREADABLE_ANSWER
│   ├── GuardNotServed          GUARD_NOT_SERVED
│   ├── Unreachable             UNREACHABLE
│   ├── DeadlineExceeded        DEADLINE_EXCEEDED
│   └── InternalError           INTERNAL
├── AccessError                 the client is not let in, or does not trust the server; waiting cannot help
│   ├── InvalidCredentials      INVALID_CREDENTIALS   a certificate, a key or a token cannot be used
│   ├── TlsFailed               TLS_FAILED
│   └── TokenRefused            TOKEN_REFUSED
├── CheckpointError             what is to be exported is not a guard we can serve
│   ├── CheckpointNotFound      CHECKPOINT_NOT_FOUND
│   ├── WrongArchitecture       WRONG_ARCHITECTURE
│   ├── MissingTensor           MISSING_TENSOR
│   ├── WrongShape              WRONG_SHAPE
│   ├── CorruptFile             CORRUPT_FILE
│   ├── TokenizerMismatch       TOKENIZER_MISMATCH
│   ├── ParityError             PARITY
│   └── EngineError             ENGINE        no TensorRT engine can be built of it here
└── ServeError                  the embedded server cannot run here
    ├── PerfAnalyzerError       PERF_ANALYZER
    ├── ExportMissing           EXPORT_MISSING
    ├── ExportOutdated          EXPORT_OUTDATED   it was made by another version, and this one cannot serve it rightly
    ├── InvalidParameter        INVALID_PARAMETER
    ├── EngineMismatch          ENGINE_MISMATCH
    ├── DeviceError             DEVICE        the GPU, its driver, or a CPU whose 8-bit products cannot be exact
    ├── OverBudget              OVER_BUDGET
    ├── PortBusy                PORT_BUSY
    ├── UnsupportedPython       UNSUPPORTED_PYTHON
    └── CanaryFailed            CANARY_FAILED

An error travels through Triton as the text ``[CODE] One sentence.``; `from_text` finds it again wherever
an ensemble or a back end has put words around it.
"""

from __future__ import annotations

import re
from typing import ClassVar


class GuardError(Exception):
    """The root. `code` is stable; the message is one sentence for a person."""

    code: ClassVar[str] = "GUARD"
    request_id: str | None = None
    """Of the request that was answered so: it stands in the server's log."""

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
    """The server no longer holds this stream: open it again with START and everything so far."""

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


class InternalError(ServerError):
    code = "INTERNAL"


class AccessError(GuardError):
    code = "ACCESS"


class InvalidCredentials(AccessError):
    code = "INVALID_CREDENTIALS"


class TlsFailed(AccessError):
    code = "TLS_FAILED"


class TokenRefused(AccessError):
    """The token is missing or wrong, or the call is one that the server keeps closed to everybody."""

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
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


BY_CODE: dict[str, type[GuardError]] = {error.code: error for error in _tree(GuardError)}

_WIRE_TEXT = re.compile(r"\[([A-Z][A-Z_]+)\] ([^\n]*)")


def from_text(text: str) -> GuardError | None:
    """The error that `wire_text` wrote into `text`, or None if there is none."""
    for code, sentence in _WIRE_TEXT.findall(text):
        if code in BY_CODE:
            return BY_CODE[code](sentence.strip())
    return None
