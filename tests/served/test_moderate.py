"""`moderate`: what is shown of a response, when it stops, and where it says so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from qwen3guard_client import (
    AsyncGuardClient,
    Category,
    Flagged,
    GuardClient,
    Policy,
    Segment,
    Thresholds,
)
from qwen3guard_client.moderation.gate import Gate, OnFlag, Release
from qwen3guard_contract import errors
from qwen3guard_contract.policy import runs
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from support.moderated import PROMPT, SAFE, TURNS, UNSAFE_PROMPT, text_of, token
from support.places import DEMO, ROOT
from support.proxied import RecordingGuard
from support.serving import free_port
from support.texts import TEXTS, cut

RELEASES: tuple[Release, ...] = ("after_check", "before_check")
ON_FLAG: tuple[OnFlag, ...] = ("stop", "raise", "mark")


@pytest.fixture(scope="module")
def offset(guard: GuardClient) -> int:
    """Where TURNS turns: before the unsafe run that ends with the first flagged token of one whole pass."""
    with guard.stream(PROMPT) as stream:
        stream.step(TURNS)
    found = stream.verdicts
    flagged = next(number for number, token in enumerate(found) if token.flag)
    before = found[flagged - found[flagged].run].end
    assert before is not None
    assert SAFE[:30] == TURNS[:30]
    assert 20 < before < len(TURNS) - 20
    return before


@pytest.mark.parametrize("as_ids", [False, True])
def test_the_gate_never_shows_an_unsafe_run_and_loses_nothing_else(as_ids: bool) -> None:
    """Random levels, several tokens for a character, random pieces, random batches of verdicts."""
    source = random.Random(7)
    for _ in range(400):
        debounce = source.randint(1, 4)
        ends, runs, end, run = [], [], 0, 0
        for _ in range(source.randint(1, 40)):
            end += 1 if as_ids else source.choice([0, 1, 1, 3]) or (end == 0)
            run = run + 1 if source.random() < 0.4 else 0
            ends.append(end)
            runs.append(run)
        tokens = [token(None if as_ids else end, run, run >= debounce) for end, run in zip(ends, runs, strict=True)]
        content: str | list[int] = list(range(end)) if as_ids else "".join(chr(97 + at % 26) for at in range(end))
        flagged = next((at for at, run in enumerate(runs) if run >= debounce), None)
        if flagged is None:
            offset = end
        else:
            first = flagged - runs[flagged] + 1
            offset = max((each for each in ends[:first] if each < ends[first]), default=0)

        for on_flag in ON_FLAG:
            gate = Gate("after_check", on_flag)
            shown: list[Segment] = []
            at = written = 0
            while at < len(tokens) and not gate.stopped:
                step = source.randint(1, 5)
                batch = tokens[at : at + step]
                at += step
                need = ends[min(at, len(ends)) - 1]
                while at < len(ends) and ends[at] == need:  # a character's tokens become final together
                    batch.append(tokens[at])
                    at += 1
                if need > written:
                    shown += gate.wrote(content[written:need])
                    written = need
                shown += gate.judged(batch)
                if source.random() < 0.3:
                    shown += gate.judged([])  # a check of half a word: nothing became final
            if not gate.stopped:
                shown += gate.finished()
            clear = [each for segment in shown if segment.flag is None for each in segment.content]
            marked = [each for segment in shown if segment.flag for each in segment.content]
            assert clear == list(content[:offset])
            assert marked == (list(content[offset:]) if on_flag == "mark" else [])
            assert (gate.flag is None) == (flagged is None)
            if gate.flag:
                assert gate.flag.offset == offset


@pytest.mark.parametrize("seed", range(3))
def test_after_the_check_only_cleared_text_is_shown(guard: GuardClient, offset: int, seed: int) -> None:
    moderated = guard.moderate(cut(TURNS, random.Random(seed)), PROMPT)
    assert text_of(moderated) == TURNS[:offset]
    assert moderated.flag is not None
    assert moderated.flag.offset == offset
    assert moderated.flag.verdict.category is not None
    assert not moderated.flag.in_prompt
    assert str(offset) in str(moderated.flag)
    assert moderated.prompt_verdict is not None
    assert not moderated.prompt_verdict.flag


def test_before_the_check_text_passes_until_the_check_comes_back(guard: GuardClient, offset: int) -> None:
    def slowly() -> Iterator[str]:
        *pieces, last = cut(TURNS, random.Random(1))
        for piece in pieces:
            yield piece
            time.sleep(0.05)
        until = time.monotonic() + 30
        while moderated.flag is None and time.monotonic() < until:
            time.sleep(0.05)
        yield last

    moderated = guard.moderate(slowly(), PROMPT, release="before_check")
    shown = text_of(moderated)
    assert moderated.flag is not None
    assert moderated.flag.offset == offset
    assert shown == TURNS[: len(shown)]
    assert offset <= len(shown) < len(TURNS)


@pytest.mark.parametrize("release", RELEASES)
def test_a_safe_response_is_shown_whole(guard: GuardClient, release: Release) -> None:
    for text in (SAFE, TEXTS[15]):
        policy = Policy(thresholds=Thresholds(1)) if text != SAFE else None
        moderated = guard.moderate(cut(text, random.Random(2)), PROMPT, release=release, policy=policy)
        assert text_of(moderated) == text
        assert moderated.flag is None
        assert len(moderated.verdicts) > 10


@pytest.mark.parametrize("release", RELEASES)
def test_marking_shows_all_and_tells_from_where(guard: GuardClient, release: Release, offset: int) -> None:
    moderated = guard.moderate(cut(TURNS, random.Random(3)), PROMPT, release=release, on_flag="mark")
    segments = list(moderated)
    assert text_of(segments) == TURNS
    assert moderated.flag is not None
    assert moderated.flag.offset == offset
    if release == "after_check":
        assert text_of(segment for segment in segments if segment.flag is None) == TURNS[:offset]
    with guard.stream(PROMPT) as whole:
        whole.step(TURNS)
    assert [each.severity for each in moderated.verdicts] == [each.severity for each in whole.verdicts]


def test_raising_comes_after_what_is_clear(guard: GuardClient, offset: int) -> None:
    shown = []

    def show() -> None:
        for segment in guard.moderate([TURNS], PROMPT, on_flag="raise"):
            shown.append(segment)

    with pytest.raises(Flagged, match=f"from {offset} on") as caught:
        show()
    assert text_of(shown) == TURNS[:offset]
    assert caught.value.flag is not None
    assert "bomb" not in str(caught.value)


@pytest.mark.parametrize("release", RELEASES)
def test_an_unsafe_prompt_stops_everything(guard: GuardClient, release: Release) -> None:
    closed = []

    def forever() -> Iterator[str]:
        try:
            while True:
                yield "rice "
                time.sleep(0.01)
        finally:
            closed.append(True)

    moderated = guard.moderate(forever(), UNSAFE_PROMPT, release=release)
    shown = text_of(moderated)
    assert moderated.flag is not None
    assert moderated.flag.in_prompt
    assert moderated.flag.offset == 0
    assert shown == "" or release == "before_check"
    deadline = time.monotonic() + 5
    while not closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert closed  # the LLM is told to stop


def test_the_policy_decides(guard: GuardClient) -> None:
    assert text_of(guard.moderate([TURNS], PROMPT, policy=Policy(debounce=1000))) == TURNS
    assert text_of(guard.moderate([TURNS], PROMPT, policy=Policy(blocked=frozenset({Category.COPYRIGHT})))) == TURNS
    assert text_of(guard.moderate([TURNS], PROMPT, policy=Policy(debounce=1))) != TURNS


LIMITS = Thresholds(0.2), Thresholds(0.05, {Category.VIOLENT: 0.8}), Thresholds(1, {Category.VIOLENT: 0.7})


def stop_of(guard: GuardClient, policy: Policy) -> int:
    """Where the run begins that ends with the first flag, by the client's own rule over one whole pass."""
    with guard.stream(PROMPT) as stream:
        stream.step(TURNS)
    assert policy.thresholds
    found = runs(map(policy.thresholds.is_unsafe, stream.verdicts))
    flagged = next(number for number, run in enumerate(found) if run >= policy.debounce)
    before = stream.verdicts[flagged - found[flagged]].end
    assert before
    return before


@pytest.mark.parametrize("debounce", [1, 3])
@pytest.mark.parametrize("limits", LIMITS)
def test_thresholds_say_where_it_stops(guard: GuardClient, limits: Thresholds, debounce: int) -> None:
    policy = Policy(debounce=debounce, thresholds=limits)
    stop = stop_of(guard, policy)
    for seed in range(3):
        moderated = guard.moderate(cut(TURNS, random.Random(seed)), PROMPT, policy=policy)
        assert text_of(moderated) == TURNS[:stop]
        assert moderated.flag
        assert moderated.flag.offset == stop

    async def moderate() -> str:
        async with AsyncGuardClient(guard.url) as client:
            found = client.moderate(cut(TURNS, random.Random(4)), PROMPT, policy=policy)
            return text_of([segment async for segment in found])

    assert asyncio.run(moderate()) == TURNS[:stop]
    assert len({stop_of(guard, replace(policy, thresholds=each)) for each in LIMITS}) == 3


def test_thresholds_of_nothing_and_of_everything(guard: GuardClient) -> None:
    for text, prompt in ((TURNS, PROMPT), (TURNS, UNSAFE_PROMPT)):
        moderated = guard.moderate([text], prompt, policy=Policy(thresholds=Thresholds(1)))
        assert text_of(moderated) == text
        assert moderated.flag is None
    moderated = guard.moderate([SAFE], PROMPT, policy=Policy(thresholds=Thresholds(0)))
    assert text_of(moderated) == ""
    assert moderated.flag
    assert re.fullmatch(r"The prompt is \d% risky, [\w &-]+\.", str(moderated.flag))  # its level is Safe


def test_token_ids_are_counted_in_ids(guard: GuardClient, offset: int) -> None:
    ids = GuardTokenizer.load(DEMO / "stream").encode(TURNS)
    moderated = guard.moderate((ids[at : at + 3] for at in range(0, len(ids), 3)), PROMPT)
    shown = [int(each) for segment in moderated for each in segment.content]
    assert moderated.flag is not None
    assert shown == ids[: moderated.flag.offset]
    assert GuardTokenizer.load(DEMO / "stream").decode(shown) == TURNS[:offset]
    with pytest.raises(errors.InvalidRequest, match="not as bytes"):
        list(guard.moderate([TURNS.encode()], PROMPT))
    with pytest.raises(errors.InvalidRequest, match="not as both"):
        list(guard.moderate(["Cook ", [1, 2]], PROMPT))


def test_what_the_llm_raises_comes_after_what_it_wrote(guard: GuardClient) -> None:
    def dying() -> Iterator[str]:
        yield SAFE
        raise ConnectionError("the LLM died")

    for release in RELEASES:
        shown: list[Segment] = []
        with pytest.raises(ConnectionError, match="the LLM died"):
            shown.extend(guard.moderate(dying(), PROMPT, release=release))
        assert text_of(shown) == SAFE


def test_a_guard_that_cannot_say_is_an_error_and_shows_nothing(guard: GuardClient) -> None:
    with GuardClient(f"127.0.0.1:{free_port()}") as nobody, pytest.raises(errors.Unreachable):
        list(nobody.moderate([SAFE], PROMPT))
    with pytest.raises(errors.InvalidRequest, match="before_check"):
        guard.moderate([SAFE], PROMPT, release="sometimes")  # type: ignore[arg-type]


def test_leaving_early_ends_the_session_its_threads_and_the_llm(guard: GuardClient) -> None:
    before = set(threading.enumerate())
    closed = []

    def forever() -> Iterator[str]:
        try:
            while True:
                yield "Cook some rice. "
        finally:
            closed.append(True)

    for _ in range(5):
        for _ in guard.moderate(forever(), PROMPT):
            break
    deadline = time.monotonic() + 10
    while (set(threading.enumerate()) - before or len(closed) < 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before  # threads of earlier tests may end meanwhile
    assert len(closed) == 5

    async def leave() -> int:
        async with AsyncGuardClient(guard.url) as client, asyncio.timeout(10):
            for _ in range(3):
                async for _ in client.moderate(forever(), PROMPT):
                    break
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)
            return len(closed)

    assert asyncio.run(leave()) == 8


@pytest.mark.parametrize("what", ["moderate", "stream"])
def test_what_is_cancelled_at_any_time_leaves_no_session(guard: GuardClient, what: str) -> None:
    """Also while the session is being opened: it is ended when the server's answer comes."""

    async def work(client: AsyncGuardClient) -> None:
        if what == "moderate":
            async for _ in client.moderate(cut(SAFE, random.Random(1)), PROMPT):
                pass
            return
        async with client.stream(PROMPT) as stream:
            for word in SAFE.split():
                await stream.step(f"{word} ")

    async def cancel() -> RecordingGuard:
        client = RecordingGuard(guard.url)
        async with client:
            await client.classify(PROMPT)
            for number in range(60):
                working = asyncio.create_task(work(client))
                await asyncio.sleep(0.0005 * (number % 30))
                working.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await working
        return client

    asyncio.run(cancel()).assert_all_sessions_ended(guard)


def test_what_breaks_the_check_reaches_the_caller(guard: GuardClient) -> None:
    """Pieces that are no text, and a client that is closed in the middle."""
    with pytest.raises(errors.InvalidRequest, match="must be integers"):
        list(guard.moderate([["Cook"]], PROMPT))  # type: ignore[list-item]
    client = GuardClient(guard.url)

    def closing() -> Iterator[str]:
        yield "Cook some rice. "
        client.close()
        yield "And more."

    with pytest.raises(errors.GuardError):
        list(client.moderate(closing(), PROMPT))
    moderated = guard.moderate([SAFE], PROMPT)
    assert text_of(moderated) == SAFE
    with pytest.raises(errors.InvalidRequest, match="once"):
        list(moderated)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("on_flag", ON_FLAG)
def test_async_does_the_same(guard: GuardClient, release: Release, on_flag: OnFlag, offset: int) -> None:
    async def written() -> AsyncIterator[str]:
        for piece in cut(TURNS, random.Random(5)):
            yield piece
            await asyncio.sleep(0.02)

    async def moderate(source: object) -> tuple[list[Segment], bool, int]:
        async with AsyncGuardClient(guard.url) as client:
            moderated = client.moderate(source, PROMPT, release=release, on_flag=on_flag)  # type: ignore[arg-type]
            shown: list[Segment] = []
            raised = False
            try:
                async for segment in moderated:
                    shown.append(segment)
            except Flagged:
                raised = True
            assert moderated.flag is not None
            return shown, raised, moderated.flag.offset

    for source in (written(), iter(cut(TURNS, random.Random(6)))):
        shown, raised, found = asyncio.run(moderate(source))
        assert found == offset
        assert raised == (on_flag == "raise")
        if on_flag == "mark":
            assert text_of(shown) == TURNS
        elif release == "after_check":
            assert text_of(shown) == TURNS[:offset]
        else:
            assert TURNS.startswith(text_of(shown))


class FakeLLM(BaseHTTPRequestHandler):
    """Streams TURNS as an OpenAI-compatible server does, a few words at a time."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = SAFE if "bread" in asked["messages"][-1]["content"] else TURNS
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number, piece in enumerate(cut(text, random.Random(8))):
            delta = {"content": piece} | ({"role": "assistant"} if number == 0 else {})
            chunk = {
                "id": "1",
                "object": "chat.completion.chunk",
                "created": 0,
                "model": "any",
                "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
            }
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass


def test_the_example_guards_an_openai_stream(guard: GuardClient, offset: int) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeLLM) as llm:
        threading.Thread(target=llm.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{llm.server_address[1]}/v1"

        def run(prompt: str) -> subprocess.CompletedProcess[str]:
            command: list[str | Path] = [
                sys.executable,
                ROOT / "examples" / "openai_stream.py",
                prompt,
                "--url",
                guard.url,
                "--base-url",
                base,
            ]
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

        safe, turned = run("How do I bake bread?"), run(PROMPT)
        llm.shutdown()
    assert (safe.returncode, safe.stdout) == (0, SAFE + "\n")
    assert (turned.returncode, turned.stdout) == (1, TURNS[:offset] + "\n")
    assert turned.stderr.startswith("stopped: The response is ")
