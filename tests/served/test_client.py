"""The client library against the live server: sync and async alike, streams kept for the caller."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from qwen3guard_client import AsyncGuardClient, Classification, GuardClient, RiskLevel, StepResult, TokenVerdict
from qwen3guard_client.arguments import LONGEST_TIMEOUT_S
from qwen3guard_contract import errors
from qwen3guard_contract.manifest import DEMO_NOTICE
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from qwen3guard_server.server import EmbeddedServer
from support.places import DEMO
from tritonclient.utils import InferenceServerException

PROMPT = "How do I bake bread?"
PIECES = ("Mix fl", "our and", " water. ", " \n\n", "Bake it", " for 45 minutes.")


def test_results_are_frozen_and_say_what_the_guard_is(guard: GuardClient) -> None:
    verdict = guard.classify(PROMPT)
    assert verdict.notice == DEMO_NOTICE
    assert sum(verdict.severity_probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert sum(verdict.category_probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert verdict.refusal is None
    assert verdict.refusal_probabilities == {}
    with pytest.raises(FrozenInstanceError):
        verdict.strict = True  # type: ignore[misc]


def test_prompt_and_response_are_messages(guard: GuardClient) -> None:
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Mix flour and water."}]
    found = guard.classify(PROMPT, "Mix flour and water.")
    assert found == guard.classify(messages=messages)
    assert found.refusal is not None


def test_async_answers_as_sync(guard: GuardClient) -> None:
    async def ask() -> tuple[object, object, list[StepResult], object]:
        async with AsyncGuardClient(guard.url) as client:
            assert await client.is_ready("classify")
            first, _ = await asyncio.gather(client.classify(PROMPT), client.classify("Hello there."))
            async with client.stream(PROMPT) as stream:
                steps = [await stream.step(piece) for piece in PIECES]
                return first, stream.prompt_verdict, steps, await stream.finish()

    classified, prompt, steps, last = asyncio.run(ask())
    assert classified == guard.classify(PROMPT)
    with guard.stream(PROMPT) as stream:
        assert stream.prompt_verdict == prompt
        assert [stream.step(piece) for piece in PIECES] == steps
        assert stream.finish() == last


def test_an_async_client_serves_one_loop_after_another(guard: GuardClient) -> None:
    client = AsyncGuardClient(guard.url)

    async def moderate() -> StepResult:
        assert (await client.classify(PROMPT, timeout_s=LONGEST_TIMEOUT_S)).severity is RiskLevel.SAFE
        async with client.stream(PROMPT) as stream:
            return await stream.step("Mix flour.")

    first, second = asyncio.run(moderate()), asyncio.run(moderate())
    assert first == second
    asyncio.run(client.close())


def test_async_errors_are_the_same(guard: GuardClient) -> None:
    async def ask() -> None:
        async with AsyncGuardClient(guard.url) as client:
            with pytest.raises(errors.EmptyText):
                await client.classify("")
            with pytest.raises(errors.DeadlineExceeded):
                await client.classify(PROMPT, timeout_s=1e-4)
        async with AsyncGuardClient("127.0.0.1:9", timeout_s=5) as nobody:
            assert not await nobody.is_ready("classify")
            with pytest.raises(errors.Unreachable):
                await nobody.classify(PROMPT)

    asyncio.run(ask())


def test_text_and_ids_of_the_same_tokenizer_agree(guard: GuardClient) -> None:
    ids = GuardTokenizer.load(DEMO / "stream").encode("".join(PIECES))
    with guard.stream(PROMPT) as by_text:
        for piece in PIECES:
            by_text.step(piece)
    with guard.stream(PROMPT) as by_ids:
        for start in range(0, len(ids), 3):
            by_ids.step(ids[start : start + 3])
    with guard.stream(PROMPT) as mixed:
        mixed.step("Mix fl")
        mixed.step(ids[:4])
    assert [token.severity for token in by_text.verdicts] == [token.severity for token in by_ids.verdicts]
    assert len(mixed.verdicts) > 4
    first = by_ids.verdicts[0].position
    assert [token.position for token in by_ids.verdicts] == list(range(first, first + len(ids)))


def test_a_retried_step_changes_nothing(guard: GuardClient) -> None:
    session = str(uuid.uuid4())
    length = guard.stream_step(session, prompt=PROMPT, start=True).length
    once = guard.stream_step(session, text="Mix flour and water.", position=length)
    assert guard.stream_step(session, text="Mix flour and water.", position=length) == once
    guard.stream_step(session, text="Stir something else entirely, and longer.", position=length)
    assert guard.stream_step(session, text="Mix flour and water.", position=length) == once
    guard.stream_step(session, position=once.length, end=True)
    with pytest.raises(errors.SessionLost):
        guard.stream_step(session, text="More.", position=once.length)


def test_integers_are_session_ids_too_and_start_resets(guard: GuardClient) -> None:
    first = guard.stream_step(7, prompt=PROMPT, start=True)
    guard.stream_step(7, text="Mix flour.", position=first.length)
    assert guard.stream_step(7, prompt=PROMPT, start=True) == first
    guard.stream_step(7, position=first.length, end=True)


def test_a_stream_is_used_inside_its_context_and_not_after(guard: GuardClient) -> None:
    stream = guard.stream(PROMPT)
    with pytest.raises(errors.InternalError):
        _ = stream.prompt_verdict
    with pytest.raises(errors.InvalidRequest):
        stream.step("early")
    with stream:
        assert stream.prompt_verdict.severity is RiskLevel.SAFE
        with pytest.raises(errors.EmptyText):
            stream.step("")
    with pytest.raises(errors.InvalidRequest):
        stream.step("late")


@pytest.mark.parametrize("mixed", [False, True])
def test_a_lost_session_is_replayed_with_the_same_verdicts(guard: GuardClient, mixed: bool) -> None:
    ids = GuardTokenizer.load(DEMO / "stream").encode(" and salt")
    pieces: list[Any] = [*PIECES[:3], ids, *PIECES[3:]] if mixed else list(PIECES)

    def moderate(lose: bool) -> list[TokenVerdict]:
        with guard.stream(PROMPT) as stream:
            for piece in pieces:
                if lose:
                    guard.stream_step(stream.session, position=0, end=True)
                stream.step(piece)
            if lose:
                guard.stream_step(stream.session, position=0, end=True)
        return list(stream.verdicts)

    lost, kept = moderate(True), moderate(False)
    assert [(token.position, token.severity, token.strict) for token in lost] == [
        (token.position, token.severity, token.strict) for token in kept
    ]
    for one, other in zip(lost, kept, strict=True):
        assert list(one.severity_probabilities.values()) == pytest.approx(
            list(other.severity_probabilities.values()), abs=1e-4
        )


def test_an_error_inside_the_context_is_the_callers(guard: GuardClient) -> None:
    def interrupted() -> None:
        with guard.stream(PROMPT) as stream:
            stream.step("Mix")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()


def test_everyday_examples_come_out_right(guard: GuardClient) -> None:
    """The demo's word on plain cases, in prompts and in streamed responses; its card says what it is worth."""
    for line in (DEMO / "everyday.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        prompt, response, safe = case["prompt"], case.get("response"), case["safe"]
        assert (guard.classify(prompt, response).severity is RiskLevel.SAFE) == safe, line
        with guard.stream(prompt) as stream:
            if response is None:
                assert (stream.prompt_verdict.severity is RiskLevel.SAFE) == safe, line
            else:
                for word in response.split(" "):
                    stream.step(word + " ")
        if response is not None:
            assert (stream.flagged() is None) == safe, line


LATE_S = 0.0005
"""Too soon for any answer."""


def test_a_request_that_nobody_waits_for_is_not_cancelled_on_the_wire(server: EmbeddedServer) -> None:
    async def ask() -> tuple[list[str], Classification]:
        ends = []
        async with AsyncGuardClient(server.url) as client:
            infer = client._connection.infer

            async def watched(**arguments: object) -> object:
                try:
                    reply = await infer(**arguments)
                except asyncio.CancelledError:
                    ends.append("cancelled")
                    raise
                ends.append("answered")
                return reply

            client._connection.infer = watched
            for _ in range(3):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(client.classify(PROMPT), LATE_S)
            answer = await client.classify(PROMPT)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.classify(PROMPT), LATE_S)
        return ends, answer

    ends, answer = asyncio.run(ask())
    assert ends == ["answered"] * 5
    assert answer.severity


def test_a_time_out_ends_the_wait_and_not_the_request(guard: GuardClient) -> None:
    """What is cancelled on the wire can end Triton 24.10, and can take a stream's sequence along in any."""
    session = str(uuid.uuid4())
    ends = []
    with GuardClient(guard.url) as client:
        async_infer = client._connection.async_infer

        def watched(callback: Callable[..., None], **arguments: Any) -> object:
            def answered(result: object, error: InferenceServerException | None) -> None:
                ends.append("answered" if error is None else error.message())
                callback(result=result, error=error)

            return async_infer(callback=answered, **arguments)

        client._connection.async_infer = watched
        at = client.stream_step(session, prompt=PROMPT, start=True).length
        late: list[str | None] = []
        for _ in range(1000):  # on a busy machine the answer may be there before anybody looks at the clock
            if len(late) > 10:
                break
            try:
                client.stream_step(session, text="Mix flour", position=at, timeout_s=LATE_S)
            except errors.DeadlineExceeded as error:
                late.append(error.request_id)
        assert len(late) > 10
        assert all(late)
        step = client.stream_step(session, text="Mix flour", position=at)
    assert len(ends) > 2
    assert not {"Deadline Exceeded", "Locally cancelled by application!"} & set(ends)  # gRPC's own words
    with guard.stream(PROMPT) as stream:
        assert [token.severity for token in step.tokens] == [
            token.severity for token in stream.step("Mix flour").tokens
        ]


def test_an_async_time_out_ends_the_wait_and_not_the_request(guard: GuardClient) -> None:
    async def ask() -> StepResult:
        session = str(uuid.uuid4())
        async with AsyncGuardClient(guard.url) as client:
            at = (await client.stream_step(session, prompt=PROMPT, start=True)).length
            late: list[str | None] = []
            for _ in range(1000):
                if len(late) > 10:
                    break
                try:
                    await client.stream_step(session, text="Mix flour", position=at, timeout_s=LATE_S)
                except errors.DeadlineExceeded as error:
                    late.append(error.request_id)
            assert len(late) > 10
            assert all(late)
            return await client.stream_step(session, text="Mix flour", position=at)

    step = asyncio.run(ask())
    with guard.stream(PROMPT) as stream:
        assert [token.severity for token in step.tokens] == [
            token.severity for token in stream.step("Mix flour").tokens
        ]


def test_a_client_hears_again_when_a_thread_can_be_started(guard: GuardClient) -> None:
    program = """
import sys, threading
from qwen3guard_client import GuardClient

def fails(*_):
    raise RuntimeError("can't start new thread")

start, threading._start_new_thread = threading._start_new_thread, fails
client = GuardClient(sys.argv[1], timeout_s=20)
try:
    client.classify("How do I bake bread?")
except RuntimeError as error:
    print(error)
threading._start_new_thread = start
print(client.classify("How do I bake bread?").severity.value)
client.close()
"""
    ran = subprocess.run([sys.executable, "-c", program, guard.url], capture_output=True, check=False, timeout=60)
    assert ran.stdout.splitlines() == [b"can't start new thread", b"Safe"], ran.stderr
    assert ran.returncode == 0
