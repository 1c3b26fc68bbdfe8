"""A running moderation: it reads the LLM, has its text checked, and hands over the text that is cleared.

The three go on at the same time. Pieces that arrive during a check share the next one, so a guard that is slower than
the LLM falls behind by one check only. The decisions are in flow.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence

from qwen3guard_contract.errors import InvalidRequest, UnreadableAnswer
from qwen3guard_contract.verdict import Classification, PromptVerdict, TokenVerdict

from qwen3guard_client.arguments import Piece
from qwen3guard_client.moderation.flow import FinishRequest, Flow, FlowRequest, StepRequest
from qwen3guard_client.moderation.gate import Flag, Segment
from qwen3guard_client.stream.aio import AsyncStream
from qwen3guard_client.transport import tasks
from qwen3guard_client.transport.calls import Call

READ_AHEAD = 64
"""The most pieces that are read from the LLM and not checked yet, or checked and not taken by the consumer."""
LEAVE_S = 1.0
"""How long the end waits for a check whose result nobody needs. If it takes longer, the session ends later."""


class AsyncFlowDriver:
    """Makes the requests of a flow. `report` gets the segments of each event in order, which are often none."""

    def __init__(
        self,
        flow: Flow,
        stream: AsyncStream,
        classify: Callable[[Call[Classification]], Awaitable[Classification]],
        report: Callable[[Sequence[Segment]], None],
    ) -> None:
        self._flow = flow
        self._stream = stream
        self._classify = classify
        self._report = report
        self._mutex = tasks.Mutex()
        self._changed = tasks.Event()

    def wrote(self, piece: Piece | None) -> None:
        """The LLM has written a piece."""
        self._handle(lambda: self._flow.wrote(piece))

    def source_ended(self, error: BaseException | None = None) -> None:
        """The LLM has ended, or failed with `error`."""
        self._handle(lambda: self._flow.source_ended(error))

    def abandon(self) -> None:
        """Nobody wants more of the response."""
        self._handle(self._flow.abandoned)

    async def run(self) -> None:
        """Runs until the flow is over and the session is ended."""
        flow = self._flow
        try:
            async with self._stream as stream:
                self._handle(lambda: flow.opened(stream.prompt_verdict))
                while (request := await self._next_request()) is not None:
                    if isinstance(request, StepRequest):
                        await stream.step(request.piece)
                        self._handle(lambda: flow.judged(stream.final_verdicts))
                    elif isinstance(request, FinishRequest):
                        await stream.finish()
                        self._handle(lambda: flow.judged(stream.verdicts, finished=True))
                    else:
                        await self._ask_gen(request)
        except BaseException as error:  # nobody else sees what ends a worker, a cancellation by others included
            failure = tasks.guard_failure(error)
            self._handle(lambda: flow.failed(failure))

    async def _ask_gen(self, call: Call[Classification]) -> None:
        answer: Classification | UnreadableAnswer
        try:
            answer = await self._classify(call)
        except UnreadableAnswer as error:
            answer = error
        self._handle(lambda: self._flow.answered(answer))

    async def _next_request(self) -> FlowRequest | None:
        """Waits for the next request. Returns None if the flow is over."""
        while True:
            self._changed.clear()
            with self._mutex:
                request = self._flow.next_request()
                if request is not None or self._flow.over:
                    self._report([])
                    return request
            await self._changed.wait()

    def _handle(self, event: Callable[[], Sequence[Segment]]) -> None:
        with self._mutex:
            self._report(event())
        self._changed.set()


class AsyncModeration:
    """Iterate over it once, to get the segments that may be shown. Afterwards it tells what was found.

    Meanwhile the LLM is read. It is closed when no more of it is wanted.
    """

    def __init__(
        self,
        stream: AsyncStream,
        source: AsyncIterable[Piece | None] | Iterable[Piece | None],
        flow: Flow,
        classify: Callable[[Call[Classification]], Awaitable[Classification]],
    ) -> None:
        self._flow = flow
        self._source = source
        self._driver = AsyncFlowDriver(flow, stream, classify, self._show)
        self._shown: tasks.Queue[tuple[Segment | None, int]] = tasks.Queue()
        """The segments that may be shown, and None when the flow is over. Each has the number of pieces that were
        no longer unchecked by then."""
        self._read_pieces = 0
        self._offered = 0
        """That number for the last segment in `_shown`."""
        self._taken = 0
        """The same for the last segment that the consumer has taken."""
        self._changed = tasks.Event()
        self._begun = False

    @property
    def flag(self) -> Flag | None:
        """What was found, and where. None if nothing is flagged."""
        return self._flow.flag

    @property
    def prompt_verdict(self) -> PromptVerdict | None:
        """The verdict on the prompt. None before the prompt is judged."""
        return self._flow.prompt_verdict

    @property
    def verdicts(self) -> list[TokenVerdict]:
        """The verdicts of the response's tokens, as far as later text cannot change them."""
        return self._flow.verdicts

    @property
    def asked(self) -> int:
        """How often Gen was asked to confirm a flag."""
        return self._flow.asked

    @property
    def overruled(self) -> int:
        """How often Gen did not confirm a flag."""
        return self._flow.overruled

    async def __aiter__(self) -> AsyncIterator[Segment]:
        """If the loop is left early, the session is ended, and the LLM is not read any further."""
        if self._begun:
            raise InvalidRequest("A moderation is iterated once.")
        self._begun = True
        reader = checker = None
        try:
            reader = tasks.start(self._read)
            checker = tasks.start(self._driver.run)
            while True:
                segment, self._taken = await self._shown.get()
                self._changed.set()
                if segment is None:
                    break
                yield segment
            self._flow.raise_error()
        finally:
            self._driver.abandon()
            await tasks.end(checker, reader, LEAVE_S)

    async def _read(self) -> None:
        failure: BaseException | None = None
        try:
            await tasks.read_source(self._source, self._write, lambda: not self._flow.over)
        except BaseException as error:
            failure = error
        self._driver.source_ended(failure)

    async def _write(self, piece: Piece | None) -> None:
        """Waits while READ_AHEAD pieces are unchecked or not taken, so that a slow consumer slows the LLM."""
        while True:
            self._changed.clear()
            if self._flow.unchecked + self._offered - self._taken < READ_AHEAD or self._flow.over:
                break
            await self._changed.wait()
        self._read_pieces += 1
        self._driver.wrote(piece)

    def _show(self, segments: Sequence[Segment]) -> None:
        if segments:
            self._offered = self._read_pieces - self._flow.unchecked
        for segment in segments:
            self._shown.put_nowait((segment, self._offered))
        if self._flow.over:
            self._shown.put_nowait((None, self._offered))
        self._changed.set()
