# Generated from aio.py by client/generate_sync.py; do not edit.
"""The gRPC client: `classify` a conversation, `stream` a response, `moderate` an LLM, or call `stream_step` itself."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TypeVar

from qwen3guard_contract.errors import Unreachable
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.verdict import Classification, StepResult
from tritonclient.utils import InferenceServerException

from qwen3guard_client.moderation.cascade import Cascade, Confirm
from qwen3guard_client.moderation.flow import Flow
from qwen3guard_client.moderation.gate import OnFlag, Release
from qwen3guard_client.moderation.moderation import Moderation
from qwen3guard_client.stream.state import Piece, StreamState
from qwen3guard_client.stream.stream import Stream
from qwen3guard_client.transport import calls, failures, threads
from qwen3guard_client.transport.calls import Call, Messages
from qwen3guard_client.transport.connection import DEFAULT_URL, RETRY_S, TIMEOUT_S, Tls

T = TypeVar("T")


class GuardClient:
    """A connection to a guard server. Every call ends within `timeout_s` seconds, or its own.

    Unless `wait_for_server` is False, a call waits for a server that has answered before and is gone: it may be
    restarting. Without `tls` nothing is encrypted, not even the `token`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = TIMEOUT_S,
        wait_for_server: bool = True,
        tls: Tls | None = None,
        token: str | None = None,
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._wait_for_server = wait_for_server
        self._answered = False
        self._token = token
        self._connection = threads.open_client(url, tls, token)
        self._in_flight = threads.InFlight(self._connection)

    def __enter__(self) -> GuardClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._in_flight.close()
        self._connection.close()

    def is_ready(self, model: str) -> bool:
        """Whether the server answers and says that `model` is loaded; False where it cannot be reached."""
        try:
            return bool(self._connection.is_model_ready(model, client_timeout=self.timeout_s))
        except InferenceServerException:
            return False

    def classify(
        self,
        prompt: str | None = None,
        response: str | None = None,
        *,
        messages: Messages | str | None = None,
        timeout_s: float | None = None,
    ) -> Classification:
        """Gen's verdict over the last turn of a conversation.

        Give a prompt, a prompt and its response, or `messages` in OpenAI's form (a list, or JSON text).
        Raises a GuardError.
        """
        return self.send(calls.classify(prompt, response, messages), timeout_s)

    def stream_step(
        self,
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
        timeout_s: float | None = None,
    ) -> StepResult:
        """One step of a stream, as the server takes it; `stream` keeps the positions for you.

        `start` opens `session` (a new uuid4) with a conversation, and with all of the response so far in
        `text` or `token_ids` to replay a lost one. Later steps write text or ids at an absolute
        `position`; what stood there or after is dropped. `end` makes the server forget the session.
        Raises a GuardError; SessionLost when the session must be opened again.
        """
        call = calls.stream_step(
            session,
            prompt=prompt,
            messages=messages,
            text=text,
            token_ids=token_ids,
            position=position,
            start=start,
            end=end,
            policy=policy,
        )
        return self.send(call, timeout_s)

    def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | str | None = None,
        policy: Policy | None = None,
        timeout_s: float | None = None,
    ) -> Stream:
        """A response to moderate while it is written; a context manager that opens and ends the session.

        Without a `policy` the server's own decides what is flagged. Each step ends within `timeout_s`, also one
        that waits for a restarting server and replays the stream to it.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        return Stream(self.send, StreamState(prompt, messages, policy), timeout_s)

    def moderate(
        self,
        source: Iterable[Piece],
        prompt: str | None = None,
        *,
        messages: Messages | str | None = None,
        release: Release = "after_check",
        on_flag: OnFlag = "stop",
        confirm: Confirm | None = None,
        policy: Policy | None = None,
        timeout_s: float | None = None,
    ) -> Moderation:
        """What may be shown of a response, while an LLM writes it as `source` (text in any pieces, or token ids).

        `release` is "after_check", which holds text back until it is cleared, or "before_check", which shows it at
        once and stops as soon as the check comes back. `on_flag` is "stop", "raise" (Flagged, when what came before
        is shown) or "mark" (show everything; segments carry the flag from the flagged place on). With `confirm`,
        "strict" or "loose", each flag is put to Gen, with the conversation as far as it goes, and stands unless Gen
        finds it safe in that mode; what was held back meanwhile is shown if not. The prompt is checked while the
        LLM starts. Iterating raises a GuardError where the guard cannot say, and what `source`
        raises after all that it wrote before was checked.
        """
        stream = self.stream(prompt, messages=messages, policy=policy, timeout_s=timeout_s)
        flow = Flow(release, on_flag, Cascade(confirm, prompt, messages) if confirm else None)
        return Moderation(stream, source, flow, lambda call: self.send(call, timeout_s))

    def send(self, call: Call[T], timeout_s: float | None = None) -> T:
        """The result of `call`; a long step is sent again until the server has taken all of it."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                reply = self._in_flight.infer(call, deadline - time.monotonic())
            except InferenceServerException as error:
                failure = failures.error_of(error, token=self._token)
                failure.request_id = call.id
                gone = isinstance(failure, Unreachable) and self._answered and self._wait_for_server
                if not gone or time.monotonic() + RETRY_S > deadline:
                    raise failure from None
                threads.sleep(RETRY_S)
                continue
            self._answered = True
            if (result := call.result(reply)) is not None:
                return result
