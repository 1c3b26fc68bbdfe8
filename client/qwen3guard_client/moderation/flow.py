"""The flow of a moderation. It is told what the LLM writes and what the guards answer, and tells what to show and to
request.

This module is pure state, without IO, threads, tasks or clocks. The sync client, the async client and the proxy drive
it: each makes the requests of `next_request`, one at a time, and reports the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen3guard_contract.errors import UnreadableAnswer
from qwen3guard_contract.verdict import Classification, PromptVerdict, TokenVerdict

from qwen3guard_client.arguments import Piece, checked_piece
from qwen3guard_client.moderation.cascade import Asking, Cascade
from qwen3guard_client.moderation.gate import Flag, Flagged, Gate, OnFlag, Release, Segment
from qwen3guard_client.surrogates import REPLACEMENT, join_surrogates
from qwen3guard_client.transport.calls import Call


@dataclass(frozen=True)
class StepRequest:
    """Asks Stream to judge the next piece of the response: everything written since the last step."""

    piece: Piece


@dataclass(frozen=True)
class FinishRequest:
    """Asks to end Stream's session: everything is written and judged."""


FlowRequest = StepRequest | FinishRequest | Call[Classification]
"""What a driver must do next. A Call goes to Gen."""


class Flow:
    """One response. It begins when Stream's session is being opened.

    Each event returns the segments that may be shown because of it. Once the flow is `over`, events change nothing.
    """

    def __init__(
        self, release: Release, on_flag: OnFlag, cascade: Cascade | None = None, *, prompt_counts: bool = True
    ) -> None:
        """Without `prompt_counts`, the prompt is only context. Raises InvalidRequest for unknown options."""
        self._gate = Gate(release, on_flag)
        self._on_flag = on_flag
        self._cascade = cascade
        self._prompt_counts = prompt_counts
        self._unchecked: list[Piece] = []
        self._half = ""
        """Half of a surrogate pair with which the last piece ended."""
        self._source_ended = False
        self._source_error: BaseException | None = None
        self._requested = True
        """Whether a request was made and its result is not reported yet. The first request opens the session."""
        self._asking: Asking[PromptVerdict] | Asking[list[TokenVerdict]] | None = None
        """The cascade's generator that waits for Gen's answer to `_question`."""
        self._question: Call[Classification] | None = None
        self._judged = 0
        """The number of final tokens that Stream has reported."""
        self._finishing = False
        """Whether Stream has reported all tokens of the response."""
        self._abandoned = False
        self.prompt_verdict: PromptVerdict | None = None
        """None until the prompt is decided, also by Gen if Gen must confirm."""
        self.verdicts: list[TokenVerdict] = []
        """The final tokens that are decided."""
        self.finished = False
        """Whether everything is written and decided."""
        self.error: BaseException | None = None
        """The error that ended the check."""

    @property
    def flag(self) -> Flag | None:
        """What was found, and where."""
        return self._gate.flag

    @property
    def stopped(self) -> bool:
        """Whether a flag has ended the response."""
        return self._gate.stopped

    @property
    def over(self) -> bool:
        """Whether nothing more is shown or requested."""
        return self.stopped or self.finished or self._abandoned or self.error is not None

    @property
    def unconfirmed(self) -> bool:
        """Whether the check failed while Gen was asked to confirm a flag."""
        return self.error is not None and self._question is not None

    @property
    def unchecked(self) -> int:
        """How many pieces wait for a step."""
        return len(self._unchecked)

    @property
    def asked(self) -> int:
        """How often Gen was asked to confirm a flag."""
        return self._cascade.asked if self._cascade else 0

    @property
    def overruled(self) -> int:
        """How often Gen did not confirm a flag."""
        return self._cascade.overruled if self._cascade else 0

    def wrote(self, piece: Piece | None) -> list[Segment]:
        """The LLM has written a piece. Nothing happens if it is empty, or None, as the deltas of OpenAI's API may be.

        A surrogate pair that is cut between two pieces is joined. The flow fails with InvalidRequest if the piece is
        neither text nor token ids, or not of the same kind as before.
        """
        if self.over or piece is None:
            return []
        segments: list[Segment] = []
        try:
            for each in self._whole_characters(checked_piece(piece)):
                segments += self._gate.wrote(each)
                self._unchecked.append(each)
        except Exception as error:
            return self.failed(error)
        return segments

    def source_ended(self, error: BaseException | None = None) -> list[Segment]:
        """The LLM has ended, or failed with `error`."""
        segments = [] if self._source_ended else self.wrote(REPLACEMENT if self._half else None)
        self._source_ended = True
        self._source_error = error
        return segments

    def opened(self, verdict: PromptVerdict) -> list[Segment]:
        """Stream's session is open, with this verdict on the prompt."""
        self._requested = False
        if self.over:
            return []
        if self._cascade and self._prompt_counts:
            asking = self._asking = self._cascade.prompt(verdict)
            return self._ask(lambda: next(asking))
        return self._decide_prompt(verdict)

    def judged(self, final: Sequence[TokenVerdict], *, finished: bool = False) -> list[Segment]:
        """Stream has taken a step, or with `finished` the last one. `final` has all final tokens of the response."""
        self._requested = False
        if self.over:
            return []
        tokens = final[self._judged :]
        self._judged = len(final)
        self._finishing = finished
        if self._cascade:
            asking = self._asking = self._cascade.tokens(tokens)
            return self._ask(lambda: next(asking))
        return self._decide_tokens(tokens)

    def answered(self, answer: Classification | UnreadableAnswer) -> list[Segment]:
        """Gen has answered the Call, or its answer cannot be read."""
        self._requested = False
        asking = self._asking
        if self.over or asking is None:
            return []
        if isinstance(answer, UnreadableAnswer):
            return self._ask(lambda: asking.throw(answer))
        return self._ask(lambda: asking.send(answer))

    def failed(self, error: BaseException) -> list[Segment]:
        """The check cannot go on."""
        if not self.over:
            self.error = error
        return []

    def abandoned(self) -> list[Segment]:
        """Nobody wants more of the response."""
        self._abandoned = True
        self._unchecked.clear()
        return []

    def next_request(self) -> FlowRequest | None:
        """Returns None while the last one is not reported, while there is nothing to check, and after the flow."""
        if self.over or self._requested:
            return None
        request: FlowRequest | None = None
        if self._question:
            request = self._question
        elif self._unchecked:
            request = self._step()
        elif self._source_ended:
            request = FinishRequest()
        self._requested = request is not None
        return request

    def raise_error(self) -> None:
        """After the last segment: raises the check's error, Flagged, or the LLM's error, if there is one."""
        if self.error:
            raise self.error
        if self.flag and self._on_flag == "raise":
            raise Flagged(self.flag)
        if self._source_error and not self.stopped:
            raise self._source_error

    def _whole_characters(self, piece: str | list[int]) -> list[str | list[int]]:
        """The pieces to judge now: half of a surrogate pair at the end of a text waits for the next one."""
        if isinstance(piece, str):
            piece, self._half = join_surrogates(self._half, piece)
            return [piece] if piece else []
        half, self._half = self._half, ""
        return [each for each in (REPLACEMENT if half else "", piece) if len(each)]

    def _step(self) -> StepRequest | None:
        try:
            piece = _joined(self._unchecked)
            if self._cascade:
                self._cascade.wrote(piece)
        except Exception as error:
            self.failed(error)
            return None
        self._unchecked.clear()
        return StepRequest(piece)

    def _ask(self, advance: Callable[[], Call[Classification]]) -> list[Segment]:
        """Advances to the cascade's next question to Gen, or to its decision."""
        try:
            self._question = advance()
        except StopIteration as decision:
            self._question = self._asking = None
            if isinstance(decision.value, PromptVerdict):
                return self._decide_prompt(decision.value)
            return self._decide_tokens(decision.value)
        except Exception as error:
            return self.failed(error)
        return []

    def _decide_prompt(self, verdict: PromptVerdict) -> list[Segment]:
        self.prompt_verdict = verdict
        if self._prompt_counts:
            self._gate.prompt_judged(verdict)
        return []

    def _decide_tokens(self, tokens: Sequence[TokenVerdict]) -> list[Segment]:
        self.verdicts += tokens
        segments = list(self._gate.judged(tokens))
        if self._finishing:
            segments += self._gate.finished()
        self.finished = self._finishing
        return segments


def _joined(pieces: Sequence[Piece]) -> Piece:
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(str(piece) for piece in pieces)
    return [int(token) for piece in pieces for token in piece]
