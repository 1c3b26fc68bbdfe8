"""The flow of a moderation: whatever the order of events, and whoever drives it, the same is shown."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen3guard_apps.openai.conversation import Conversation
from qwen3guard_apps.proxy.judged import LONG, Judged
from qwen3guard_apps.proxy.settings import Settings
from qwen3guard_client import AsyncModeration, AsyncStream, Flagged, Moderation, Segment, Stream
from qwen3guard_client.moderation.aio import READ_AHEAD
from qwen3guard_client.moderation.cascade import Cascade
from qwen3guard_client.moderation.flow import FinishRequest, Flow, FlowRequest, StepRequest
from qwen3guard_client.moderation.gate import OnFlag, Release
from qwen3guard_client.stream.state import StreamState
from qwen3guard_client.transport import tasks
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors
from support.fake_guard import MESSAGES, TIMEOUT_S, FakeGuard, Script, outcome, pieces_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNREACHABLE = errors.Unreachable("The server cannot be reached: no.")

SCRIPTS = st.builds(
    lambda tokens, debounce, unsafe_prompt, answers, lost: Script(
        tuple((LETTERS[at % 26] * size, risky) for at, (size, risky) in enumerate(tokens)),
        debounce,
        unsafe_prompt,
        tuple(answers),
        lost,
    ),
    tokens=st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=20),
    debounce=st.integers(1, 3),
    unsafe_prompt=st.sampled_from([False, False, False, True]),
    answers=st.lists(st.sampled_from([True, False, False, False, None]), min_size=21, max_size=21),
    lost=st.frozensets(st.integers(1, 12), max_size=2),
)
CUTS = st.lists(st.integers(1, 8), max_size=30)


@dataclass(frozen=True)
class Options:
    """How a response is moderated."""

    release: Release
    on_flag: OnFlag
    confirm: bool
    prompt_counts: bool = True

    def flow(self) -> Flow:
        cascade = Cascade("strict", None, MESSAGES) if self.confirm else None
        return Flow(self.release, self.on_flag, cascade, prompt_counts=self.prompt_counts)

    def settings(self) -> Settings:
        """The proxy's."""
        return Settings(
            upstream="http://llm/v1",
            release=self.release,
            on_flag="error" if self.on_flag == "raise" else self.on_flag,
            confirm="strict" if self.confirm else None,
            prompt_check="while" if self.prompt_counts else "off",
        )


OPTIONS = st.builds(
    Options,
    st.sampled_from(["after_check", "before_check"]),
    st.sampled_from(["stop", "raise", "mark"]),
    st.booleans(),
    st.sampled_from([True, True, True, False]),
)


@dataclass
class Seen:
    """What came of a moderation."""

    segments: list[Segment]
    offset: int | None
    asked: int
    raised: BaseException | None = None

    @property
    def clear(self) -> str:
        return "".join(str(segment) for segment in self.segments if segment.flag is None)

    @property
    def marked(self) -> str:
        return "".join(str(segment) for segment in self.segments if segment.flag)


def check(seen: Seen, script: Script, options: Options) -> None:
    """What no error ends is as the rules have it over the whole text."""
    expected = outcome(script, options.on_flag, confirm=options.confirm, prompt_counts=options.prompt_counts)
    assert seen.offset == expected.offset
    if options.on_flag == "mark" or expected.offset is None:
        assert seen.asked == expected.asked
        assert seen.clear + seen.marked == script.text
    if options.release == "after_check":
        assert (seen.clear, seen.marked) == (expected.clear, expected.marked)
    else:
        assert script.text.startswith(seen.clear + seen.marked)
        assert seen.clear.startswith(expected.clear)


class Driven:
    """A flow whose events come in the order that `choices` makes: the LLM may write during any request."""

    def __init__(self, flow: Flow, guard: FakeGuard, pieces: list[str], choices: random.Random) -> None:
        self.flow = flow
        self._guard = guard
        self._pieces = iter(pieces)
        self._choices = choices
        self._stream: Stream = guard.stream()
        self.segments: list[Segment] = []
        self._source_ended = False

    def run(self) -> Seen:
        flow = self.flow
        raised = None
        try:
            with self._stream as stream:
                self._write_some()
                self.segments += flow.opened(stream.prompt_verdict)
                while not flow.over:
                    if request := flow.next_request():
                        assert flow.next_request() is None  # one at a time
                        self._make(request, stream)
                    else:
                        self._write()
        except errors.GuardError as error:
            self.segments += flow.failed(error)
        for event in (lambda: flow.wrote("x"), lambda: flow.judged([]), lambda: flow.failed(KeyError())):
            assert event() == []
        assert flow.next_request() is None
        try:
            flow.raise_error()
        except Exception as error:
            raised = error
        return Seen(self.segments, flow.flag.offset if flow.flag else None, flow.asked, raised)

    def _make(self, request: FlowRequest, stream: Stream) -> None:
        if isinstance(request, StepRequest):
            stream.step(request.piece)
            self._write_some()
            self.segments += self.flow.judged(stream.final_verdicts)
        elif isinstance(request, FinishRequest):
            stream.finish()
            self.segments += self.flow.judged(stream.verdicts, finished=True)
        else:
            answer: Any
            try:
                answer = self._guard.send(request)
            except errors.UnreadableAnswer as error:
                answer = error
            self._write_some()
            self.segments += self.flow.answered(answer)

    def _write_some(self) -> None:
        for _ in range(self._choices.randint(0, 3)):
            self._write()

    def _write(self) -> None:
        if (piece := next(self._pieces, None)) is not None:
            self.segments += self.flow.wrote(piece)
        elif not self._source_ended:
            self._source_ended = True
            self.segments += self.flow.source_ended()


@settings(max_examples=400, deadline=None)
@given(SCRIPTS, CUTS, OPTIONS, st.randoms(use_true_random=False))
def test_in_any_order_of_events_the_rules_decide(
    script: Script, cuts: list[int], options: Options, choices: random.Random
) -> None:
    guard = FakeGuard(script)
    seen = Driven(options.flow(), guard, pieces_of(script.text, cuts), choices).run()
    check(seen, script, options)
    assert isinstance(seen.raised, Flagged) == (options.on_flag == "raise" and seen.offset is not None)
    assert not guard.sessions


@settings(max_examples=200, deadline=None)
@given(SCRIPTS, CUTS, st.sampled_from(["stop", "mark"]), st.integers(0, 20), st.randoms(use_true_random=False))
def test_a_guard_that_fails_shows_nothing_unchecked(
    script: Script, cuts: list[int], on_flag: OnFlag, fails_at: int, choices: random.Random
) -> None:
    options = Options("after_check", on_flag, confirm=True)
    guard = FakeGuard(script, UNREACHABLE, fails_at)
    flow = options.flow()
    seen = Driven(flow, guard, pieces_of(script.text, cuts), choices).run()
    expected = outcome(script, on_flag, confirm=True)
    if flow.error is None:
        check(seen, script, options)
    else:
        assert seen.raised is UNREACHABLE
        assert expected.clear.startswith(seen.clear)
        assert expected.marked.startswith(seen.marked)
        assert flow.unconfirmed == (len(guard.questions) < flow.asked)


def drive_sync(pieces: list[str], flow: Flow, guard: FakeGuard, failure: Exception | None) -> Seen:
    def source() -> Iterator[str]:
        yield from pieces
        if failure:
            raise failure

    moderation = Moderation(guard.stream(), source(), flow, guard.send)
    segments, raised = [], None
    try:
        for segment in moderation:
            segments.append(segment)
    except Exception as error:
        raised = error
    return Seen(segments, moderation.flag.offset if moderation.flag else None, moderation.asked, raised)


async def drive_async(pieces: list[str], flow: Flow, guard: FakeGuard, failure: Exception | None) -> Seen:
    async def source() -> AsyncIterator[str]:
        for number, piece in enumerate(pieces):
            for _ in range(number % 3):
                await asyncio.sleep(0)
            yield piece
        if failure:
            raise failure

    moderation = AsyncModeration(guard.async_stream(), source(), flow, guard.asend)
    segments, raised = [], None
    try:
        async for segment in moderation:
            segments.append(segment)
    except Exception as error:
        raised = error
    return Seen(segments, moderation.flag.offset if moderation.flag else None, moderation.asked, raised)


class ProxysGuard:
    """What the proxy's choices ask of an AsyncGuardClient."""

    def __init__(self, guard: FakeGuard) -> None:
        self._guard = guard
        self.send = guard.asend

    def stream(self, **_: object) -> Any:
        return self._guard.async_stream()


async def drive_proxy(
    pieces: list[str], how: Settings, guard: FakeGuard, messages: list[dict[str, str]] = MESSAGES
) -> tuple[Judged, str]:
    """The choice when nothing more comes of it, and how much of its text it has released."""
    changed = asyncio.Event()
    judged = Judged(cast(Any, ProxysGuard(guard)), how, Conversation(messages, ""), changed)
    running: set[asyncio.Task[None]] = set()
    judged.start(running.add)
    try:
        for number, piece in enumerate(pieces):
            for _ in range(number % 3):
                await asyncio.sleep(0)
            judged.write(piece)
        judged.close()
        while not (judged.stopped or judged.final or judged.failed):
            changed.clear()
            await changed.wait()
    finally:
        judged.leave()
        await asyncio.gather(*running)
    text = "".join(pieces)
    return judged, text[: max((end for end in range(len(text) + 1) if judged.releases(end)), default=0)]


@settings(max_examples=150, deadline=None)
@given(SCRIPTS, CUTS, OPTIONS, st.booleans())
def test_sync_async_and_proxy_show_the_same(script: Script, cuts: list[int], options: Options, breaks: bool) -> None:
    pieces = pieces_of(script.text, cuts)
    failure = ConnectionError("the LLM died") if breaks else None
    sync = drive_sync(pieces, options.flow(), FakeGuard(script), failure)
    for seen in (sync, asyncio.run(drive_async(pieces, options.flow(), FakeGuard(script), failure))):
        check(seen, script, options)
        stopped = seen.offset is not None and options.on_flag != "mark"
        assert isinstance(seen.raised, Flagged) == (stopped and options.on_flag == "raise")
        assert seen.raised is (None if stopped else failure) or options.on_flag == "raise"

    guard = FakeGuard(script)
    judged, released = asyncio.run(drive_proxy(pieces, options.settings(), guard))
    assert (judged.flag.offset if judged.flag else None) == sync.offset
    assert judged.error is None
    assert not guard.sessions
    if options.release == "after_check":
        assert released == sync.clear + sync.marked
        assert released[: judged.limit] == sync.clear
    else:
        assert script.text.startswith(released)
        assert len(released) >= (sync.offset or 0)


def test_an_llm_is_read_ahead_of_its_check_by_so_many_pieces_and_no_more() -> None:
    script = Script((("a", False),) * 3 * READ_AHEAD)
    read = 0

    async def source() -> AsyncIterator[str]:
        nonlocal read
        for piece in script.text:
            read += 1
            yield piece

    async def moderate() -> list[Segment]:
        guard, may_open = FakeGuard(script), asyncio.Event()

        async def send(call: Call[Any], timeout_s: float) -> Any:
            await may_open.wait()
            return await guard.asend(call, timeout_s)

        stream = AsyncStream(send, StreamState(None, MESSAGES, None), TIMEOUT_S, tasks.InFlight(lambda: None))
        moderation = AsyncModeration(
            stream, source(), Options("after_check", "stop", confirm=False).flow(), guard.asend
        )

        async def shown() -> list[Segment]:
            return [segment async for segment in moderation]

        reading = asyncio.create_task(shown())
        for _ in range(10 * READ_AHEAD):
            await asyncio.sleep(0)
        assert read == READ_AHEAD + 1  # the last waits for its place
        may_open.set()
        return await reading

    assert "".join(map(str, asyncio.run(moderate()))) == script.text
    assert read == len(script.text)


RELEASES: tuple[Release, ...] = ("after_check", "before_check")


@pytest.mark.parametrize("release", RELEASES)
def test_an_llm_is_read_no_faster_than_its_text_is_taken(release: Release) -> None:
    script = Script((("a", False),) * 10 * READ_AHEAD)
    most = 2 * READ_AHEAD + 2  # offered, and in the step that goes on
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for piece in script.text:
            read += 1
            yield piece

    async def awaited() -> AsyncIterator[str]:
        for piece in source():
            yield piece

    async def moderate() -> list[Segment]:
        guard = FakeGuard(script)
        flow = Options(release, "stop", confirm=False).flow()
        segments = aiter(AsyncModeration(guard.async_stream(), awaited(), flow, guard.asend))
        shown = [await anext(segments)]
        for taken in range(3):
            for _ in range(20 * len(script.text)):
                await asyncio.sleep(0)
            assert read <= most + len("".join(map(str, shown)))
            assert read > READ_AHEAD
            shown += [await anext(segments) for _ in range(taken)]
        return shown + [segment async for segment in segments]

    assert "".join(map(str, asyncio.run(moderate()))) == script.text
    assert read == len(script.text)

    read = 0
    guard = FakeGuard(script)
    segments = iter(Moderation(guard.stream(), source(), Options(release, "stop", confirm=False).flow(), guard.send))
    shown = [next(segments)]
    time.sleep(0.3)
    assert READ_AHEAD < read <= most + len(str(shown[0]))
    shown += segments
    assert "".join(map(str, shown)) == script.text
    assert read == len(script.text)


def test_a_source_that_is_cancelled_ends_the_loop() -> None:
    """By itself, not by its consumer: an LLM's library may do so."""

    def source() -> Iterator[str]:
        yield "a"
        raise asyncio.CancelledError("the LLM was cancelled")

    async def awaited() -> AsyncIterator[str]:
        for piece in source():
            yield piece

    async def moderate(source: AsyncIterator[str] | Iterator[str]) -> list[Segment]:
        guard = FakeGuard(Script((("a", False),)))
        flow = Options("after_check", "stop", confirm=False).flow()
        shown: list[Segment] = []

        async def show() -> None:
            async for segment in AsyncModeration(guard.async_stream(), source, flow, guard.asend):
                shown.append(segment)

        with pytest.raises(asyncio.CancelledError, match="the LLM was cancelled"):
            await asyncio.wait_for(show(), 10)
        assert not guard.sessions
        assert len(asyncio.all_tasks()) == 1
        return shown

    for each in (source(), awaited()):
        assert "".join(map(str, asyncio.run(moderate(each)))) == "a"


@pytest.mark.parametrize("fails_at", range(4))
def test_a_call_to_the_guard_that_is_cancelled_is_an_error(fails_at: int) -> None:
    """The opening, the step, the question to Gen, and the end; a closed channel cancels them."""
    cancelled = FakeGuard(RISKY, asyncio.CancelledError(), fails_at)

    async def moderate() -> Seen:
        flow = Options("after_check", "stop", confirm=True).flow()
        async with asyncio.timeout(10):
            return await drive_async([RISKY.text], flow, cancelled, None)

    assert isinstance(asyncio.run(moderate()).raised, errors.Unreachable)

    async def drive() -> Judged:
        async with asyncio.timeout(10):
            judged, _ = await drive_proxy([RISKY.text], how, FakeGuard(RISKY, asyncio.CancelledError(), fails_at))
            return judged

    how = Settings(upstream="http://llm/v1", confirm="strict")
    judged = asyncio.run(drive())
    assert judged.failed
    assert isinstance(judged.error, errors.Unreachable)


@pytest.mark.parametrize("turns", range(25))
def test_a_consumer_that_is_cancelled_leaves_nothing_behind(turns: int) -> None:
    """Wherever the check is: what was sent is taken by the server, whether its answer is waited for or not."""
    script = Script((("a", False),) * 3)

    async def cancel() -> None:
        guard = FakeGuard(script)

        async def send(call: Call[Any], _: float | None = None) -> Any:
            reply = guard.answer(call)
            for _turn in range(5):
                await asyncio.sleep(0)
            return reply

        in_flight = tasks.InFlight(lambda: None)
        stream = AsyncStream(send, StreamState(None, MESSAGES, None), TIMEOUT_S, in_flight)
        flow = Options("after_check", "stop", confirm=False).flow()

        async def source() -> AsyncIterator[str]:  # without a thread: each run takes the same turns of the loop
            for character in script.text:
                yield character

        async def show() -> None:
            async for _ in AsyncModeration(stream, source(), flow, send):
                pass

        showing = asyncio.create_task(show())
        for _ in range(turns):
            await asyncio.sleep(0)
        assert showing.cancel(), "the moderation was over before"
        with pytest.raises(asyncio.CancelledError):
            await showing
        for _ in range(30):
            await asyncio.sleep(0)
        assert not guard.sessions

    asyncio.run(cancel())


RISKY = Script((("a", False), ("b", True), ("c", True), ("d", False)), answers=(False,))


@pytest.mark.parametrize("lets", ["block", "pass"])
def test_what_gen_cannot_confirm_does_not_pass_the_proxy(lets: Any) -> None:
    """Neither where Gen is not served, nor where it is down: Stream has flagged it."""
    for failure in (errors.GuardNotServed("The server does not serve this guard."), UNREACHABLE):
        how = Settings(upstream="http://llm/v1", on_guard_error=lets, confirm="strict")
        for fails_at, unsure in ((1, lets == "block"), (2, True)):  # the step, and the question
            guard = FakeGuard(RISKY, failure, fails_at)
            judged, released = asyncio.run(drive_proxy([RISKY.text], how, guard))
            assert judged.error is failure
            assert judged.failed == unsure
            assert released == ("" if unsure else RISKY.text)


@pytest.mark.parametrize(("length", "passes"), [(LONG, True), (LONG + 1, False)])
def test_a_long_prompt_is_no_way_around_the_guard(length: int, passes: bool) -> None:
    """It may itself be what makes the guard late. A guard that is down is another thing."""
    how = Settings(upstream="http://llm/v1", on_guard_error="pass")
    messages = [{"role": "user", "content": "x" * length}]
    for failure, released in ((errors.DeadlineExceeded("Late."), passes), (UNREACHABLE, True)):
        guard = FakeGuard(RISKY, failure, 1)
        judged, text = asyncio.run(drive_proxy([RISKY.text], how, guard, messages))
        assert judged.failed != released
        assert (text == RISKY.text) == released


def test_gen_is_asked_with_the_text_up_to_the_flagged_token_whatever_else_is_written() -> None:
    for cuts in ([1, 1, 1, 1], [3, 1], [4], [2, 2]):
        for seed in range(5):
            guard = FakeGuard(RISKY)
            flow = Options("after_check", "stop", confirm=True).flow()
            seen = Driven(flow, guard, pieces_of(RISKY.text, cuts), random.Random(seed)).run()
            assert seen.clear == RISKY.text
            assert guard.questions == ["abc"]
            assert (flow.asked, flow.overruled) == (1, 1)


def test_pieces_of_two_kinds_and_ids_for_gen_end_the_flow() -> None:
    flow = Options("before_check", "stop", confirm=False).flow()
    assert [segment.content for segment in flow.wrote("a")] == ["a"]
    assert flow.wrote([1]) == []
    with pytest.raises(errors.InvalidRequest, match="not as both"):
        flow.raise_error()
    flow = Options("after_check", "stop", confirm=True).flow()
    flow.wrote([1, 2])
    flow.opened(FakeGuard(RISKY).stream().__enter__().prompt_verdict)
    assert flow.next_request() is None
    assert flow.over
    with pytest.raises(errors.InvalidRequest, match="Gen confirms text alone"):
        flow.raise_error()
