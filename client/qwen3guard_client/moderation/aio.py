"""A moderation while it goes on: the LLM is read, its text is checked, and what is cleared is handed over.

The three go on at once. Pieces that arrive during a check share the next one, so a guard that is slower than the LLM
falls behind by one check. What is decided is in flow.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence

from qwen3guard_contract.errors import InvalidRequest, UnreadableAnswer
from qwen3guard_contract.verdict import Classification, PromptVerdict, TokenVerdict

from qwen3guard_client.moderation.flow import FinishRequest, Flow, FlowRequest, StepRequest
from qwen3guard_client.moderation.gate import Flag, Segment
from qwen3guard_client.stream.aio import AsyncStream
from qwen3guard_client.stream.state import Piece
from qwen3guard_client.transport import tasks
from qwen3guard_client.transport.calls import Call

READ_AHEAD = 64
"""Pieces that are read from the LLM before they are checked."""
LEAVE_S = 1.0
"""How long the end waits for a check that nobody needs any more. The session ends later then."""


class AsyncFlowDriver:
    """Makes the requests of a flow. `report` is given the segments of each event, in order; often there are none."""

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

    def wrote(self, piece: Piece) -> None:
        self._handle(lambda: self._flow.wrote(piece))

    def source_ended(self, error: BaseException | None = None) -> None:
        self._handle(lambda: self._flow.source_ended(error))

    def abandon(self) -> None:
        self._handle(self._flow.abandoned)

    async def run(self) -> None:
        """Ends when the flow is over and the session is ended."""
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
        except tasks.FAILURE as error:
            failure = error
            self._handle(lambda: flow.failed(failure))

    async def _ask_gen(self, call: Call[Classification]) -> None:
        answer: Classification | UnreadableAnswer
        try:
            answer = await self._classify(call)
        except UnreadableAnswer as error:
            answer = error
        self._handle(lambda: self._flow.answered(answer))

    async def _next_request(self) -> FlowRequest | None:
        """Waits for one; None when the flow is over."""
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
    """Iterate over it, once, for the segments that may be shown; afterwards it tells what was found.

    The LLM is read meanwhile, and closed when no more of it is wanted.
    """

    def __init__(
        self,
        stream: AsyncStream,
        source: AsyncIterable[Piece] | Iterable[Piece],
        flow: Flow,
        classify: Callable[[Call[Classification]], Awaitable[Classification]],
    ) -> None:
        self._flow = flow
        self._source = source
        self._driver = AsyncFlowDriver(flow, stream, classify, self._show)
        self._shown: tasks.Queue[Segment | None] = tasks.Queue()
        """What may be shown; None when the flow is over."""
        self._changed = tasks.Event()
        self._begun = False

    @property
    def flag(self) -> Flag | None:
        """What was found, and where; None as long as all is well."""
        return self._flow.flag

    @property
    def prompt_verdict(self) -> PromptVerdict | None:
        """None before the prompt is judged."""
        return self._flow.prompt_verdict

    @property
    def verdicts(self) -> list[TokenVerdict]:
        """The verdict of every response token that later text cannot change."""
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
        """Leaving the loop early ends the session, and the LLM is read no further."""
        if self._begun:
            raise InvalidRequest("A moderation is iterated once.")
        self._begun = True
        reader = checker = None
        try:
            reader = tasks.start(self._read)
            checker = tasks.start(self._driver.run)
            while (segment := await self._shown.get()) is not None:
                yield segment
            self._flow.raise_error()
        finally:
            self._driver.abandon()
            await tasks.end(checker, reader, LEAVE_S)

    async def _read(self) -> None:
        failure: BaseException | None = None
        try:
            await tasks.read_source(self._source, self._write, lambda: not self._flow.over)
        except tasks.FAILURE as error:
            failure = error
        self._driver.source_ended(failure)

    async def _write(self, piece: Piece) -> None:
        """Waits until fewer than READ_AHEAD pieces are unchecked."""
        if not len(piece):
            return
        while True:
            self._changed.clear()
            if self._flow.unchecked < READ_AHEAD or self._flow.over:
                break
            await self._changed.wait()
        self._driver.wrote(piece)

    def _show(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            self._shown.put_nowait(segment)
        if self._flow.over:
            self._shown.put_nowait(None)
        self._changed.set()
