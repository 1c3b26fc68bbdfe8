"""The calls of both clients, as plain values. This module knows tensors and errors, and opens no connection."""

from __future__ import annotations

import json
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
    EmptyText,
    InternalError,
    InvalidMessages,
    InvalidRequest,
    TokenOutOfRange,
)
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.verdict import Classification, RawAnswer, StepResult

from qwen3guard_client.arguments import (
    Context,
    check_plain,
    checked_context,
    checked_flag,
    checked_position,
    checked_session,
    checked_text,
    checked_token_ids,
)
from qwen3guard_client.transport import replies
from qwen3guard_client.transport.replies import ConversationIds

T = TypeVar("T")
Messages = Sequence[dict[str, Any]]
SESSION_HEADER = "x-guard-session"
"""The gRPC metadata that names a step's session. A proxy before several servers chooses the server by it (deploy/)."""
GRACE_S = 60.0
"""How long a request without an answer stays on the wire after its time-out. Nobody waits for it any more.

gRPC's own deadline would cancel the request. A cancelled request may end a stream's sequence in Triton, and may end
Triton 24.10 itself (its issue 7368).
"""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request to one model, and how to read its reply. `read` returns None if the call must be sent again.

    Raises InvalidRequest for an id with control characters.
    """

    model: wire.Model
    values: dict[wire.Tensor, Any]
    outputs: tuple[wire.Tensor, ...]
    read: Callable[[replies.Reply], T | None]
    session: int | str = 0
    start: bool = False
    end: bool = False
    canary: bool = False
    replay: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """The server's log names a failure by this id. Triton would end it at a NUL character."""

    def __post_init__(self) -> None:
        check_plain(self.id, "A request id")

    def arguments(self, timeout_s: float, scope: str | None = None) -> dict[str, Any]:
        """Returns the arguments of tritonclient's `infer`, sync and async. A call that begins a conversation names its
        `scope`, and one of a replay says so.

        The server answers DEADLINE_EXCEEDED if it has not begun after `timeout_s`. gRPC cancels GRACE_S later.
        """
        begins = (self.start or not self.session) and not self.canary
        told = {wire.CANARY: self.canary, wire.SCOPE: scope if begins else None, wire.REPLAY: self.replay}
        return {
            "model_name": self.model.name,
            "request_id": self.id,
            "inputs": [_input(tensor, value) for tensor, value in self.values.items()],
            "outputs": [triton.InferRequestedOutput(tensor.name) for tensor in self.outputs],
            "sequence_id": self.session,
            "sequence_start": self.start,
            "sequence_end": self.end,
            "headers": {SESSION_HEADER: quote(str(self.session), errors="replace")} if self.session else None,
            "parameters": {name: value for name, value in told.items() if value} or None,
            "timeout": int(timeout_s * 1e6),
            "client_timeout": timeout_s + GRACE_S,
        }

    def result(self, reply: Any) -> T | None:
        """Reads tritonclient's InferResult. Returns None if the call must be sent again.

        Raises InternalError for a reply that is incomplete or cannot be read.
        """

        def tensor(wanted: wire.Tensor) -> npt.NDArray[Any]:
            array = reply.as_numpy(wanted.name)
            if array is None:
                raise InternalError(f"The server's reply has no {wanted.name}.")
            return np.asarray(array[0])

        try:
            return self.read(tensor)
        except (LookupError, TypeError, ValueError):
            raise InternalError("The server's reply cannot be read.") from None


def _input(tensor: wire.Tensor, value: Any) -> triton.InferInput:
    array = np.asarray(value, wire.NUMPY_DTYPES[tensor.dtype]).reshape(1, -1)
    built = triton.InferInput(tensor.name, list(array.shape), tensor.dtype)
    built.set_data_from_numpy(array)
    return built


def _utf8(text: str, what: str) -> list[bytes]:
    """Returns the value of a BYTES [1] tensor."""
    return [checked_text(text, what)]


def _conversation(
    prompt: str | None, response: str | None, messages: Messages | str | None
) -> dict[wire.Tensor, list[bytes]]:
    if messages is None:
        if prompt is None:
            raise EmptyText("There is neither a prompt nor a list of messages.")
        values = {wire.PROMPT: _utf8(prompt, "The prompt")}
        if response is not None:
            values[wire.RESPONSE] = _utf8(response, "The response")
        return values
    if prompt is not None or response is not None:
        raise InvalidRequest("Give either messages or a prompt, not both.")
    if not isinstance(messages, str | list | tuple):
        raise InvalidMessages("The messages must be a list, or JSON text.")
    try:
        text = messages if isinstance(messages, str) else json.dumps(messages, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidMessages("The messages cannot be written as JSON.") from None
    return {wire.MESSAGES: _utf8(text, "The list of messages")}


_CLASSIFY_OUTPUTS = (*wire.VERDICT, wire.ANSWER, wire.ANSWER_STATUS, wire.NOTICE)


def classify(
    prompt: str | None, response: str | None, messages: Messages | str | None, context: Context = "whole"
) -> Call[Classification]:
    """A call of Gen. Raises EmptyText, InvalidEncoding, InvalidMessages or InvalidRequest."""
    values: dict[wire.Tensor, Any] = {**_conversation(prompt, response, messages)}
    recent = checked_context(context)
    if recent:
        values[wire.RECENT] = [True]
    # Servers of former versions have no TURNS_LEFT_OUT; they answer the calls that do not need it.
    outputs = (*_CLASSIFY_OUTPUTS, wire.TURNS_LEFT_OUT) if recent else _CLASSIFY_OUTPUTS
    return Call(wire.CLASSIFY, values, outputs, partial(replies.classification, recent=recent))


def conversation_ids(
    prompt: str | None, response: str | None, messages: Messages | str | None, context: Context = "whole"
) -> Call[ConversationIds]:
    """A call of Gen's tokenizer. Raises what `classify` raises."""
    call = classify(prompt, response, messages, context)
    read = replies.rendered
    return Call(wire.GUARD_TOKENIZER, call.values, wire.GUARD_TOKENIZER.outputs, read)


def raw_answer(conversation: ConversationIds) -> Call[RawAnswer]:
    """A call of Gen itself, which asks for no verdict."""
    values = {wire.INPUT_IDS: conversation.ids, wire.RESPONSE_MODE: [conversation.response_mode]}
    outputs = (wire.ANSWER, wire.ANSWER_LOGPROBS, wire.ANSWER_STATUS, *wire.ANSWER_DETAILS)
    return Call(wire.GEN_GUARD, values, outputs, partial(replies.written, conversation=conversation))


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
    context: Context = "whole",
    replay: bool = False,
) -> Call[StepResult]:
    """A step of a stream, or of its `replay`. A step with nothing but token ids goes to the guard itself: there is
    nothing to tokenize.

    Raises EmptyText, InvalidEncoding, InvalidMessages, InvalidRequest, PositionOutOfRange or TokenOutOfRange.
    """
    session = checked_session(session)
    start, end = checked_flag(start, "start"), checked_flag(end, "end")
    values: dict[wire.Tensor, Any] = {}
    opens = start or prompt is not None or messages is not None
    if policy is not None:
        if not isinstance(policy, Policy):
            raise InvalidRequest("The argument policy must be a Policy.")
        values[wire.STRICT] = [policy.strict]
        values[wire.DEBOUNCE] = [policy.debounce]
        values[wire.BLOCKED] = [json.dumps(sorted(category.value for category in policy.blocked)).encode()]
        if policy.thresholds is not None:
            values[wire.THRESHOLDS] = [json.dumps(policy.thresholds.as_dict()).encode()]
    recent = checked_context(context)
    if opens:
        values |= _conversation(prompt, None, messages)
    if recent:
        values[wire.RECENT] = [True]
    if text is not None:
        values[wire.TEXT] = _utf8(text, "The text")
    if token_ids is not None:
        try:
            values[wire.TOKEN_IDS] = np.array(checked_token_ids(token_ids), np.int64)
        except OverflowError:
            raise TokenOutOfRange("A token id is not a 64-bit integer.") from None
    values[wire.POSITION] = [checked_position(position)]
    model, ids = wire.STREAM_STEP, None
    if text is None and not opens and not recent and token_ids is not None and len(token_ids):
        model, ids = wire.STREAM_GUARD, len(token_ids)
        values[wire.INPUT_IDS] = values.pop(wire.TOKEN_IDS)
    unused = wire.STEP_LABELS if opens else wire.STEP_LABELS | wire.PROMPT_OUTPUTS | {wire.NOTICE}
    if not recent:
        unused |= {wire.TURNS_LEFT_OUT}
    outputs = tuple(tensor for tensor in model.outputs if tensor not in unused)
    read = partial(replies.step_result, opens=opens, recent=recent, ids=ids)
    return Call(model, values, outputs, read, session, start, end, replay=checked_flag(replay, "replay"))
