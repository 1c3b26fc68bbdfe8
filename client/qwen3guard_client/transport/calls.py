"""Calls and replies as plain values: what GuardClient and AsyncGuardClient both send and how they read it.

Knows tensors and errors; opens no connection.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from qwen3guard_contract import wire
from qwen3guard_contract.errors import (
    DeadlineExceeded,
    EmptyText,
    GuardError,
    GuardNotServed,
    InternalError,
    InvalidEncoding,
    InvalidMessages,
    InvalidRequest,
    Overloaded,
    SessionLost,
    TokenOutOfRange,
    Unreachable,
    from_text,
)
from qwen3guard_contract.labels import (
    CATEGORY_ORDER,
    QUERY_CATEGORY_ORDER,
    REFUSAL_ORDER,
    RESPONSE_CATEGORY_ORDER,
    RISK_ORDER,
    AnswerStatus,
    Category,
    Refusal,
    RiskLevel,
)
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.verdict import Classification, PromptVerdict, StepResult, TokenVerdict
from tritonclient.utils import InferenceServerException

T = TypeVar("T")
Messages = Sequence[dict[str, Any]]
SESSION_HEADER = "x-guard-session"
"""The gRPC metadata that names a step's session: a proxy before several servers sends by it (deploy/)."""
GRACE_S = 60.0
"""How long after its time-out a request that is not answered stays on the wire, with nobody to wait for it.

One that is cancelled on the wire, as by gRPC's own deadline, may take a stream's sequence along in Triton, and end
Triton 24.10 itself (its issue 7368).
"""
Reply = Callable[[wire.Tensor], npt.NDArray[Any]]
"""A reply's tensor without its batch dimension."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request to one model, and how to read its reply; `read` gives None where it is to be sent again."""

    model: wire.Model
    values: dict[wire.Tensor, Any]
    outputs: tuple[wire.Tensor, ...]
    read: Callable[[Reply], T | None]
    session: int | str = 0
    start: bool = False
    end: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Under which the server writes a failure to its log."""

    def arguments(self, timeout_s: float) -> dict[str, Any]:
        """Arguments of tritonclient's `infer`, sync and async.

        The server answers DEADLINE_EXCEEDED where it has not begun after `timeout_s`; gRPC cancels GRACE_S later.
        """
        return {
            "model_name": self.model.name,
            "request_id": self.id,
            "inputs": [_input(tensor, value) for tensor, value in self.values.items()],
            "outputs": [triton.InferRequestedOutput(tensor.name) for tensor in self.outputs],
            "sequence_id": self.session,
            "sequence_start": self.start,
            "sequence_end": self.end,
            "headers": {SESSION_HEADER: quote(str(self.session), errors="replace")} if self.session else None,
            "timeout": int(timeout_s * 1e6),
            "client_timeout": timeout_s + GRACE_S,
        }

    def result(self, reply: Any) -> T | None:
        """Reads tritonclient's InferResult; an incomplete reply is an InternalError. None: send the call again."""

        def tensor(wanted: wire.Tensor) -> npt.NDArray[Any]:
            array = reply.as_numpy(wanted.name)
            if array is None:
                raise InternalError(f"The server's reply has no {wanted.name}.")
            return np.asarray(array[0])

        return self.read(tensor)


def _input(tensor: wire.Tensor, value: Any) -> triton.InferInput:
    array = np.asarray(value, wire.NUMPY_DTYPES[tensor.dtype]).reshape(1, -1)
    built = triton.InferInput(tensor.name, list(array.shape), tensor.dtype)
    built.set_data_from_numpy(array)
    return built


def _utf8(text: str, what: str) -> list[bytes]:
    """The value of a BYTES [1] tensor."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{what} must be a string.")
    try:
        return [text.encode()]
    except UnicodeEncodeError:
        raise InvalidEncoding(f"{what} is not valid Unicode text.") from None


def _conversation(
    prompt: str | None, response: str | None, messages: Messages | str | None
) -> dict[wire.Tensor, list[bytes]]:
    if messages is None:
        if prompt is None:
            raise EmptyText("There is neither a prompt nor a list of messages.")
        found = {wire.PROMPT: _utf8(prompt, "The prompt")}
        if response is not None:
            found[wire.RESPONSE] = _utf8(response, "The response")
        return found
    if prompt is not None or response is not None:
        raise InvalidRequest("Give either messages or a prompt, not both.")
    try:
        text = messages if isinstance(messages, str) else json.dumps(messages, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidMessages("The messages cannot be written as JSON.") from None
    return {wire.MESSAGES: _utf8(text, "The list of messages")}


_CLASSIFY_OUTPUTS = (*wire.VERDICT, wire.ANSWER, wire.ANSWER_STATUS, wire.NOTICE)


def classify(prompt: str | None, response: str | None, messages: Messages | str | None) -> Call[Classification]:
    """Raises EmptyText, InvalidEncoding, InvalidMessages or InvalidRequest before anything is sent."""
    return Call(wire.CLASSIFY, dict(_conversation(prompt, response, messages)), _CLASSIFY_OUTPUTS, _classification)


def stream_step(
    session: int | str,
    *,
    prompt: str | None = None,
    messages: Messages | str | None = None,
    text: str | None = None,
    token_ids: Sequence[int] | None = None,
    position: int = 0,
    start: bool = False,
    end: bool = False,
    policy: Policy | None = None,
) -> Call[StepResult]:
    """Raises EmptyText, InvalidEncoding, InvalidMessages or InvalidRequest before anything is sent.

    A step of token ids alone goes to the guard itself, since there is nothing to tokenize.
    """
    values: dict[wire.Tensor, Any] = {}
    opens = start or prompt is not None or messages is not None
    if policy is not None:
        values[wire.STRICT] = [policy.strict]
        values[wire.DEBOUNCE] = [policy.debounce]
        values[wire.BLOCKED] = [json.dumps(sorted(category.value for category in policy.blocked)).encode()]
        if policy.thresholds:
            values[wire.THRESHOLDS] = [json.dumps(policy.thresholds.as_dict()).encode()]
    if opens:
        values |= _conversation(prompt, None, messages)
    if text is not None:
        values[wire.TEXT] = _utf8(text, "The text")
    if token_ids is not None:
        try:
            values[wire.TOKEN_IDS] = np.array(token_ids, np.int64)
        except OverflowError:
            raise TokenOutOfRange("A token id is not a 64-bit integer.") from None
        except (TypeError, ValueError):
            raise InvalidRequest("The token ids must be integers.") from None
    values[wire.POSITION] = [position]
    model, ids = wire.STREAM_STEP, None
    if text is None and not opens and token_ids is not None and len(token_ids):
        model, ids = wire.STREAM_GUARD, len(token_ids)
        values[wire.INPUT_IDS] = values.pop(wire.TOKEN_IDS)
    unasked = wire.STEP_LABELS if opens else wire.STEP_LABELS | wire.PROMPT_OUTPUTS | {wire.NOTICE}
    outputs = tuple(each for each in model.outputs if each not in unasked)
    return Call(model, values, outputs, partial(_step_result, opens=opens, ids=ids), session, start, end)


def _classification(reply: Reply) -> Classification:
    refusal = _words(reply(wire.REFUSAL))
    categories, refusals = reply(wire.CATEGORIES_PROBABILITIES), reply(wire.REFUSAL_PROBABILITIES)
    return Classification(
        RiskLevel(_words(reply(wire.SEVERITY))[0]),
        tuple(Category(name) for name in _words(reply(wire.CATEGORIES))),
        Refusal(refusal[0]) if refusal else None,
        _table(RISK_ORDER, reply(wire.SEVERITY_PROBABILITIES)),
        _table(CATEGORY_ORDER, categories) if len(categories) else {},
        _table(REFUSAL_ORDER, refusals) if len(refusals) else {},
        bool(reply(wire.STRICT_UNSAFE)[0]),
        bool(reply(wire.LOOSE_UNSAFE)[0]),
        bool(reply(wire.UNSAFE)[0]),
        _words(reply(wire.ANSWER))[0],
        _words(reply(wire.NOTICE))[0],
        AnswerStatus(_words(reply(wire.ANSWER_STATUS))[0]),
    )


def _step_result(reply: Reply, *, opens: bool, ids: int | None) -> StepResult | None:
    """`ids`: as many token ids were sent, which no text stands for; None where the server has tokenized."""
    if reply(wire.PENDING)[0]:
        return None
    length = int(reply(wire.LENGTH)[0])
    risk_rows, category_rows = reply(wire.RISK_PROBABILITIES), reply(wire.CATEGORY_PROBABILITIES)
    strict, loose, flag = reply(wire.STRICT_FLAG), reply(wire.LOOSE_FLAG), reply(wire.FLAG)
    run, ends = reply(wire.RUN), reply(wire.TOKEN_ENDS) if ids is None else ()
    first = length - len(risk_rows)
    tokens = tuple(
        TokenVerdict(
            first + number,
            *_labels(risk_rows[number], category_rows[number], RESPONSE_CATEGORY_ORDER),
            _table(RISK_ORDER, risk_rows[number]),
            _table(RESPONSE_CATEGORY_ORDER, category_rows[number]),
            bool(strict[number]),
            bool(loose[number]),
            bool(flag[number]),
            int(run[number]),
            int(ends[number]) if len(ends) else None,
        )
        for number in range(len(risk_rows))
    )
    prompt = None
    if opens and len(rows := reply(wire.PROMPT_RISK_PROBABILITIES)):
        categories = reply(wire.PROMPT_CATEGORY_PROBABILITIES)[0]
        prompt = PromptVerdict(
            *_labels(rows[0], categories, QUERY_CATEGORY_ORDER),
            _table(RISK_ORDER, rows[0]),
            _table(QUERY_CATEGORY_ORDER, categories),
            bool(reply(wire.PROMPT_STRICT_FLAG)[0]),
            bool(reply(wire.PROMPT_LOOSE_FLAG)[0]),
            bool(reply(wire.PROMPT_FLAG)[0]),
        )
    return StepResult(
        tokens,
        length,
        int(reply(wire.FINAL_TOKENS)[0]) if ids is None else ids,
        int(reply(wire.FINAL_CHARACTERS)[0]) if ids is None else 0,
        prompt,
        _words(reply(wire.NOTICE))[0] if opens else "",
    )


def _words(array: npt.NDArray[Any]) -> list[str]:
    return [bytes(value).decode() for value in array.reshape(-1)]


def _labels(
    risk: npt.NDArray[Any], category: npt.NDArray[Any], order: Sequence[Category]
) -> tuple[RiskLevel, Category | None]:
    """What the server sends as words to those who ask: the likeliest, and no category of what is safe."""
    level = RISK_ORDER[int(risk.argmax())]
    return level, None if level is RiskLevel.SAFE else order[int(category.argmax())]


def _table(labels: Sequence[T], values: npt.NDArray[Any]) -> dict[T, float]:
    """Raises InternalError for what is no number: the largest of them would still be found, and called a level."""
    numbers = values.tolist()
    if not all(map(math.isfinite, numbers)):
        raise InternalError("The server's probabilities are not finite; they are no verdict.")
    return dict(zip(labels, numbers, strict=True))


_OVERLOAD = "queue size"
_LATE = "timeout expired"  # it never left Triton's queue
_NOT_SERVED = ("unknown model", "is not ready")


def error_of(error: InferenceServerException) -> GuardError:
    """The one of ours that Triton's or gRPC's error means."""
    text = error.message() or ""
    sentence = text.partition("\n")[0]
    if ours := from_text(text):
        return ours
    if "must specify the START flag" in text:
        return SessionLost("The server does not know the session; open it again with START and everything so far.")
    if "non-zero or non-empty correlation ID" in text:
        return InvalidRequest("A step needs a session id.")
    if "Stub process" in text:
        return Unreachable("The server has lost the process of a model.")
    if any(words in text for words in _NOT_SERVED):
        return GuardNotServed(f"The server does not serve this guard: {sentence}.")
    if _OVERLOAD in text:
        return Overloaded("The server is overloaded; try again later.")
    status = (error.status() or "").rpartition(".")[2]
    if status == "DEADLINE_EXCEEDED" or _LATE in text:
        return DeadlineExceeded("The server did not answer in time.")
    if status in ("UNAVAILABLE", "CANCELLED"):  # the latter from a server that stops
        return Unreachable(f"The server cannot be reached: {sentence}.")
    if status == "INVALID_ARGUMENT":
        return InvalidRequest(sentence)
    return InternalError(f"The server failed: {sentence}")
