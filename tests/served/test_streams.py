"""Streams through a live server: any schedule of steps, many sessions, bounds, isolation and policies."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwen3guard_client import (
    Category,
    GuardClient,
    Policy,
    PromptVerdict,
    RiskLevel,
    StepResult,
    Stream,
    Thresholds,
    TokenVerdict,
)
from qwen3guard_client.transport import calls
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors, wire
from qwen3guard_contract.policy import runs
from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from qwen3guard_server.server import EmbeddedServer
from support.places import DEMO
from support.serving import serve, stream_repository, wait_ready
from support.texts import TEXTS, cut

PROMPT = "How do I bake bread?"
UNSAFE = "Then make a bomb: pack the explosives into a pipe and kill everyone in the building."
BOUND = 2e-4
"""How far a log-probability may move when the same tokens are cut into other chunks, of logits near 1; in dq8r the
products are exact, and nothing has been seen to move at all (docs/streams.md)."""


@pytest.fixture(scope="module")
def dq8r_guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardClient]:
    folder = tmp_path_factory.mktemp("dq8r")
    place_models(folder, export(str(DEMO / "stream"), folder, weights="dq8r", say=lambda _: None))
    with serve(folder) as server:
        wait_ready(server)
        with GuardClient(server.url) as client:
            yield client


@pytest.fixture(params=["fp32", "dq8r"])
def either_guard(request: pytest.FixtureRequest) -> GuardClient:
    return request.getfixturevalue({"fp32": "guard", "dq8r": "dq8r_guard"}[request.param])


def rows(tokens: list[TokenVerdict]) -> np.ndarray:
    return np.array(
        [[*token.severity_probabilities.values(), *token.category_probabilities.values()] for token in tokens]
    )


def in_chunks(
    guard: GuardClient, ids: list[int], chunks: list[int], policy: Policy | None = None
) -> list[TokenVerdict]:
    """A clean pass: `ids` in pieces of the given lengths."""
    session = str(uuid.uuid4())
    start = guard.stream_step(session, prompt=PROMPT, start=True, policy=policy).length
    tokens: list[TokenVerdict] = []
    at = 0
    for size in chunks:
        tokens += guard.stream_step(session, token_ids=ids[at : at + size], position=start + at).tokens
        at += size
    guard.stream_step(session, position=start + at, end=True)
    return tokens


def disturbed(
    guard: GuardClient, ids: list[int], chunks: list[int], source: random.Random, policy: Policy | None = None
) -> list[TokenVerdict]:
    """The same pieces, with wrong tokens written and rewound, steps sent twice, gaps, and lost sessions replayed."""
    session = str(uuid.uuid4())
    start = guard.stream_step(session, prompt=PROMPT, start=True, policy=policy).length
    done: list[tuple[int, int]] = []
    tokens: list[TokenVerdict] = []
    at = 0
    for size in chunks:
        event = source.random()
        if event < 0.25:  # another continuation, from anywhere, that is then taken back
            back = source.randint(0, at)
            wrong = [source.choice(ids) for _ in range(source.randint(1, 30))]
            guard.stream_step(session, token_ids=wrong, position=start + back)
            redo = [each for each in done if each[0] + each[1] > back]
        elif event < 0.35:
            with pytest.raises(errors.PositionOutOfRange):
                guard.stream_step(session, token_ids=[1], position=start + at + 1)
            redo = []
        elif event < 0.45:  # lost, and replayed under another id
            guard.stream_step(session, position=0, end=True)
            with pytest.raises(errors.SessionLost):
                guard.stream_step(session, token_ids=[1], position=start + at)
            session = str(uuid.uuid4())
            assert guard.stream_step(session, prompt=PROMPT, start=True, policy=policy).length == start
            redo = done
        else:
            redo = []
        for where, length in [*redo, (at, size)]:
            for _ in range(source.choice((1, 1, 2))):
                result = guard.stream_step(session, token_ids=ids[where : where + length], position=start + where)
            del tokens[where:]
            tokens += result.tokens
        done.append((at, size))
        at += size
    guard.stream_step(session, position=start + at, end=True)
    return tokens


@pytest.mark.parametrize("policy", [None, Policy(thresholds=Thresholds(0.05, {Category.ILLEGAL: 0.2}))])
def test_any_schedule_equals_a_clean_pass_of_the_same_chunks_to_the_bit(
    either_guard: GuardClient, policy: Policy | None
) -> None:
    tokenizer = GuardTokenizer.load(DEMO / "stream")
    for seed in range(12):
        source = random.Random(seed)
        ids = tokenizer.encode(source.choice(TEXTS) + UNSAFE + source.choice(TEXTS))
        chunks: list[int] = []
        while sum(chunks) < len(ids):
            chunks.append(min(source.choice((1, 2, 5, 16, 30, 60)), len(ids) - sum(chunks)))
        clean = in_chunks(either_guard, ids, chunks, policy)
        found = disturbed(either_guard, ids, chunks, source, policy)
        assert found == clean


def test_any_chunking_keeps_every_decision_that_is_not_on_the_edge(
    either_guard: GuardClient, guard: GuardClient
) -> None:
    tokenizer = GuardTokenizer.load(DEMO / "stream")
    worst = 0.0
    for seed in range(12):
        source = random.Random(seed)
        ids = tokenizer.encode(source.choice(TEXTS) + UNSAFE + source.choice(TEXTS))
        whole = in_chunks(either_guard, ids, [len(ids)])
        chunks: list[int] = []
        while sum(chunks) < len(ids):
            chunks.append(min(source.choice((1, 3, 8, 20)), len(ids) - sum(chunks)))
        pieces = in_chunks(either_guard, ids, chunks)
        logs = [np.log(rows(tokens)) for tokens in (whole, pieces)]
        worst = max(worst, float(np.abs(logs[0] - logs[1]).max()))
        for one, other in zip(whole, pieces, strict=True):
            first, second = sorted(one.severity_probabilities.values(), reverse=True)[:2]
            if np.log(first) - np.log(second) > 2 * BOUND:
                assert one.severity == other.severity
    weights = "fp32" if either_guard is guard else "dq8r"
    print(f"\n{weights}: log-probabilities move by {worst:.2g} at most between chunkings")
    assert worst <= BOUND


@pytest.fixture(scope="module")
def turning(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Its turns have no length at all, so that each execution takes one chunk, of 16 tokens also alone."""
    folder = tmp_path_factory.mktemp("turning") / "r"
    with serve(stream_repository(repository, folder, turn_s=0, alone_tokens=16)) as server:
        wait_ready(server)
        yield server


def pendings(guard: GuardClient, session: str, prompt: str) -> Iterator[int]:
    """The opening step of a long prompt, sent as a client sends it that does not use this library."""
    call = calls.stream_step(session, prompt=prompt, start=True)
    raw = Call(call.model, call.values, (wire.PENDING,), lambda reply: int(reply(wire.PENDING)[0]), session, start=True)
    while pending := guard.send(raw):
        yield pending


def test_a_long_prompt_lets_other_sessions_through(turning: EmbeddedServer) -> None:
    """With turns of no length at all, each execution takes one chunk; others finish dozens of steps meanwhile."""
    prompt = "bread " * 1500
    with GuardClient(turning.url, scope=None) as guard, GuardClient(turning.url) as other:
        alone = other.stream_step(str(uuid.uuid4()), prompt=prompt, start=True, end=True)
        session = str(uuid.uuid4())
        steps = list(pendings(guard, session, prompt))
        assert len(steps) > 100
        assert steps == sorted(set(steps), reverse=True)  # each call takes some more
        done = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            opened = pool.submit(guard.stream_step, str(uuid.uuid4()), prompt=prompt, start=True)
            opened.add_done_callback(lambda _: done.set())
            count = 0
            with other.stream(PROMPT) as stream:
                while not done.is_set():
                    stream.step("word ")
                    count += 1
            assert count > 30
            assert opened.result().length == alone.length
            assert opened.result().prompt_verdict == alone.prompt_verdict


def test_a_pending_start_takes_no_other_step(turning: EmbeddedServer) -> None:
    """From a client that ignores PENDING: its prompt would never be judged."""
    prompt = "bread " * 300
    with GuardClient(turning.url, scope=None) as guard:
        whole = guard.stream_step(str(uuid.uuid4()), prompt=prompt, start=True, end=True).length
        session = str(uuid.uuid4())
        sent = pendings(guard, session, prompt)
        assert next(sent) > 200
        for step in ({"text": "Mix."}, {"token_ids": [5]}):
            with pytest.raises(errors.InvalidRequest, match="send it again until PENDING is 0"):
                guard.stream_step(session, position=0, **step)
        assert len(list(sent)) > 3
        assert guard.stream_step(session, text="Mix.", position=whole).length > whole
        next(pendings(guard, session, prompt))
        guard.stream_step(session, position=0, end=True)  # given up
        with pytest.raises(errors.SessionLost):
            guard.stream_step(session, text="Mix.", position=0)


def test_a_lost_conversation_goes_on_with_the_same_verdicts(guard: GuardClient) -> None:
    """In text and in token ids; the session is taken away before a step, a next turn and the end."""
    ids = GuardTokenizer.load(DEMO / "stream").encode(UNSAFE)

    def verdicts(stream: Stream, *, lose: bool) -> Iterator[Any]:
        def gone() -> None:
            if lose:
                guard.stream_step(stream.session, text="", end=True)

        yield stream.prompt_verdict
        stream.step("First mix the flour, ")
        gone()
        stream.step("then let it rise.")
        yield from stream.verdicts
        gone()
        yield stream.next_turn("And then?")
        gone()
        stream.step(ids)
        yield from stream.verdicts
        yield stream.next_turn("\U0001f600 " + UNSAFE)
        stream.step("No.")
        gone()
        stream.finish()
        yield from stream.verdicts

    with guard.stream(PROMPT) as stream:
        expected = list(verdicts(stream, lose=False))
    with guard.stream(PROMPT) as stream:
        assert list(verdicts(stream, lose=True)) == expected


def test_a_long_next_turn_lets_other_sessions_through(turning: EmbeddedServer) -> None:
    long = "bread " * 500
    with GuardClient(turning.url, scope=None) as guard, GuardClient(turning.url) as other:
        with guard.stream(PROMPT) as stream:
            stream.step("Mix.")
            expected = stream.next_turn(long)
        done = threading.Event()
        with ThreadPoolExecutor(1) as pool, guard.stream(PROMPT) as stream, other.stream(PROMPT) as beside:
            stream.step("Mix.")
            turn = pool.submit(stream.next_turn, long)
            turn.add_done_callback(lambda _: done.set())
            count = 0
            while not done.is_set():
                beside.step("word ")
                count += 1
            assert count > 10
            assert turn.result() == expected
            assert stream.step("Mix.").tokens


def test_a_later_step_brings_no_messages(guard: GuardClient) -> None:
    session = str(uuid.uuid4())
    start = guard.stream_step(session, prompt=PROMPT, start=True).length
    for how in ({"messages": [{"role": "user", "content": "Hi."}]}, {"prompt": "Hi.", "context": "recent"}):
        with pytest.raises(errors.InvalidRequest, match="the user's next turn as its prompt"):
            guard.stream_step(session, position=start, **how)
    with pytest.raises(errors.EmptyText):
        guard.stream_step(session, position=start, prompt=" ")
    result = guard.stream_step(session, position=start, prompt="Hi.", text="Mix.")
    assert result.prompt_verdict is not None
    assert [token.position for token in result.tokens] == [result.length - 3, result.length - 2, result.length - 1]
    guard.stream_step(session, position=result.length, end=True)


def test_a_step_below_the_response_is_refused(guard: GuardClient) -> None:
    """Such as one that forgets its position."""
    session, other = str(uuid.uuid4()), str(uuid.uuid4())
    length = guard.stream_step(session, prompt=PROMPT, start=True).length
    assert guard.stream_step(other, prompt=PROMPT, text=UNSAFE, start=True).length > length
    for each in (session, other):
        for step in ({"text": UNSAFE}, {"token_ids": [5, 6]}, {"text": UNSAFE, "position": length - 1}):
            with pytest.raises(errors.PositionOutOfRange, match=f"the response begins at {length}"):
                guard.stream_step(each, **step)
    found = [guard.stream_step(each, text=UNSAFE, position=length, end=True).tokens for each in (session, other)]
    assert found[0] == found[1]


@pytest.mark.parametrize("start", [False, True])
def test_a_step_without_a_sequence_is_told_so(guard: GuardClient, start: bool) -> None:
    """By the server, if the client is not this library, which sends no such step."""
    for call in (calls.stream_step("s", prompt=PROMPT, start=start), calls.stream_step("s", text="Mix.")):
        with pytest.raises(errors.InvalidRequest, match=r"no sequence id.*sequence_start"):
            guard.send(replace(call, session=""))
    with pytest.raises(errors.InvalidRequest, match="needs a session id"):  # stream_guard itself: in Triton's own words
        guard.send(replace(calls.stream_step("s", token_ids=[5]), session=""))


def test_a_full_server_refuses_newcomers_and_keeps_what_it_has(repository: Path, tmp_path: Path) -> None:
    models = stream_repository(repository, tmp_path / "r", slots=4, evict_s=60)
    with serve(models) as server:
        wait_ready(server)
        with GuardClient(server.url) as guard:
            streams = [guard.stream(PROMPT) for _ in range(4)]
            for stream in streams:
                stream.__enter__()
            with pytest.raises(errors.Overloaded, match="try again later"), guard.stream(PROMPT):
                pass
            for stream in streams:
                stream.step("Mix flour and water.")
            streams[0].finish()
            with guard.stream(PROMPT) as fifth:
                fifth.step("Mix flour and water.")
                assert rows(list(fifth.verdicts)).tolist() == rows(list(streams[1].verdicts)).tolist()
            for stream in streams[1:]:
                stream.finish()


def test_sessions_never_see_each_other(guard: GuardClient) -> None:
    """Slots are freed and taken again in every order, between neighbours that write other things at the same places;
    each stream's numbers are those it has alone, to the bit."""
    tokenizer = GuardTokenizer.load(DEMO / "stream")
    plans = {}
    for number in range(12):
        source = random.Random(number)
        ids = tokenizer.encode((UNSAFE if number % 2 else "") + TEXTS[number] + TEXTS[-number - 1])
        plans[number] = (ids, [source.choice((1, 2, 7, 16)) for _ in ids][: len(ids)])
    alone = {number: in_chunks(guard, ids, clipped(ids, chunks)) for number, (ids, chunks) in plans.items()}

    source = random.Random(99)
    live: dict[int, tuple[str, int, int, list[int]]] = {}
    waiting = list(plans) * 2
    source.shuffle(waiting)
    finished = 0
    found: dict[int, list[TokenVerdict]] = {}
    while waiting or live:
        if not live or (source.random() >= 0.8 and waiting):
            number = waiting.pop()
            if number in live:
                waiting.insert(0, number)
                continue
            session = str(uuid.uuid4())
            start = guard.stream_step(session, prompt=PROMPT, start=True).length
            live[number] = (session, start, 0, clipped(*plans[number]))
            found[number] = []
            continue
        number = source.choice(list(live))
        session, start, at, chunks = live[number]
        if not chunks:
            guard.stream_step(session, position=start + at, end=True)
            assert found[number] == alone[number]
            del live[number]
            finished += 1
            continue
        ids = plans[number][0]
        if source.random() < 0.1:  # noise of its own, rewound by the step that follows
            guard.stream_step(session, token_ids=[source.choice(ids) for _ in range(9)], position=start + at)
        found[number] += guard.stream_step(session, token_ids=ids[at : at + chunks[0]], position=start + at).tokens
        live[number] = (session, start, at + chunks[0], chunks[1:])
    assert finished == 24


def clipped(ids: list[int], chunks: list[int]) -> list[int]:
    found: list[int] = []
    for size in chunks:
        if sum(found) < len(ids):
            found.append(min(size, len(ids) - sum(found)))
    return found


def test_neither_ids_nor_text_reach_the_log(server: EmbeddedServer) -> None:
    secret, session = "Zanzibarquark", f"session-{uuid.uuid4()}"
    with GuardClient(server.url) as guard:
        length = guard.stream_step(session, prompt=secret, start=True).length
        guard.stream_step(session, text=secret, position=length)
        for call in (
            lambda: guard.stream_step(session, text=secret, position=length + 1000),
            lambda: guard.stream_step(session, text=secret * 100000, position=length),
            lambda: guard.stream_step(session, prompt=secret, text=secret),
            lambda: guard.stream_step(session + "x", text=secret, position=length),
            lambda: guard.classify(messages=[{"role": secret, "content": secret}]),
        ):
            with pytest.raises(errors.GuardError) as caught:
                call()
            assert session not in str(caught.value)
        guard.stream_step(session, prompt=secret, start=True)  # a START on a live id
        guard.stream_step(session, position=0, end=True)
    assert "grpc" in server.log
    assert session not in server.log
    assert secret not in server.log


def test_every_session_has_its_own_policy(guard: GuardClient) -> None:
    text = "Cook some rice. " + UNSAFE
    policies = [None, Policy(), Policy(strict=False), Policy(debounce=1), Policy(debounce=4)]
    limits = [Thresholds(), Thresholds(0), Thresholds(1), Thresholds(0.003), Thresholds(1, {Category.VIOLENT: 0.3})]
    policies += [Policy(thresholds=each) for each in limits]
    policies += [Policy(False, 1, frozenset({Category.VIOLENT, Category.PII}), limits[3])]
    policies += [Policy(blocked=frozenset({category})) for category in (Category.VIOLENT, Category.COPYRIGHT)]
    streams = [guard.stream("How can I make a bomb in my kitchen?", policy=policy) for policy in policies]
    for stream in streams:
        stream.__enter__()
    for piece in cut(text, random.Random(1)):
        for stream in streams:
            stream.step(piece)
    for stream in streams:
        stream.finish()
    found = [rows(list(stream.verdicts)).tolist() for stream in streams]
    assert all(each == found[0] for each in found)
    for policy, stream in zip(policies, streams, strict=True):
        assert stream.prompt_verdict.severity is RiskLevel.UNSAFE
        agrees(stream, policy or Policy())
    assert len({tuple(token.flag for token in stream.verdicts) for stream in streams}) > 6
    assert not streams[-1].prompt_verdict.flag
    tokens = {policy: stream.verdicts for policy, stream in zip(policies, streams, strict=True)}
    assert not any(token.flag for token in tokens[Policy(thresholds=Thresholds(1))])
    assert [token.run for token in tokens[Policy(thresholds=Thresholds(0))]] == list(range(1, len(found[0]) + 1))


def agrees(stream: Stream, policy: Policy) -> None:
    """What the server has decided is what the client makes of the probabilities, by itself."""
    tokens, prompt = stream.verdicts, stream.prompt_verdict
    by_mode = {
        mode: [policy.is_unsafe_level(token.severity, token.category, strict=mode) for token in tokens]
        for mode in (True, False)
    }
    own = by_mode[policy.strict]
    asked = policy.is_unsafe_level(prompt.severity, prompt.category)
    if policy.thresholds:
        own = [policy.thresholds.is_unsafe(token) and likeliest(token) in policy.blocked for token in tokens]
        asked = policy.thresholds.is_unsafe(prompt) and likeliest(prompt) in policy.blocked
    assert prompt.flag == asked
    assert [token.run for token in tokens] == runs(own)
    assert [token.flag for token in tokens] == [run >= policy.debounce for run in runs(own)]
    assert [token.strict for token in tokens] == [run >= policy.debounce for run in runs(by_mode[True])]
    assert [token.loose for token in tokens] == [run >= policy.debounce for run in runs(by_mode[False])]
    assert stream.flagged(strict=None) == next((token for token in tokens if token.flag), None)


def likeliest(found: TokenVerdict | PromptVerdict) -> Category:
    return max(found.category_probabilities, key=lambda category: found.category_probabilities[category])


def as_parameter(text: str) -> str:
    """As it stands between the quotes of a config.pbtxt; the pattern that puts it there reads backslashes too."""
    return text.replace('"', r'\\"')


def test_a_servers_own_thresholds_decide_for_sessions_that_ask_for_nothing_else(
    repository: Path, tmp_path: Path
) -> None:
    limits = Thresholds(0.02, {Category.VIOLENT: 0.8})
    text = as_parameter(json.dumps(limits.as_dict()))
    with serve(stream_repository(repository, tmp_path / "r", thresholds=text)) as server:
        wait_ready(server)
        with GuardClient(server.url) as guard:
            asked = None, Policy(strict=False), Policy(thresholds=Thresholds(0.2)), Policy(debounce=1)
            decided = []
            for policy in asked:
                with guard.stream(PROMPT, policy=policy) as stream:
                    stream.step("Cook some rice. " + UNSAFE)
                agrees(stream, policy or Policy(thresholds=limits))
                decided.append([token.flag for token in stream.verdicts])
            assert len(set(map(tuple, decided))) == len(asked)

            def flags(values: dict[wire.Tensor, object]) -> list[bool]:
                """Of a step whose policy is sent in part."""
                session = str(uuid.uuid4())
                call = calls.stream_step(session, prompt=PROMPT, text="Cook some rice. " + UNSAFE, start=True, end=True)
                return [token.flag for token in guard.send(replace(call, values=call.values | values)).tokens]

            assert flags({}) == flags({wire.DEBOUNCE: [2]}) == decided[0]
            assert flags({wire.STRICT: [False]}) == decided[1]
            assert flags({wire.THRESHOLDS: [b'{"default": 0.2}']}) == decided[2]
            assert flags({wire.THRESHOLDS: [b'{"default": 0.2}'], wire.STRICT: [False]}) == decided[2]


@pytest.mark.parametrize("policy", [Policy(debounce=1), Policy(debounce=4, thresholds=Thresholds(0.02))])
def test_a_replayed_stream_keeps_its_policy(guard: GuardClient, policy: Policy) -> None:
    def moderate(lose: bool) -> list[bool]:
        with guard.stream(PROMPT, policy=policy) as stream:
            for piece in cut(UNSAFE, random.Random(2)):
                if lose:
                    guard.stream_step(stream.session, position=0, end=True)
                stream.step(piece)
        return [token.flag for token in stream.verdicts]

    assert moderate(True) == moderate(False)
    assert any(moderate(False))


def test_a_wrong_policy_is_named(guard: GuardClient) -> None:
    session = str(uuid.uuid4())
    length = guard.stream_step(session, prompt=PROMPT, start=True).length

    def send(position: int, start: bool, **values: object) -> StepResult:
        call = calls.stream_step(session, prompt=PROMPT if start else None, text="Hi.", position=position, start=start)
        tensors = {getattr(wire, name.upper()): value for name, value in values.items()}
        return guard.send(Call(call.model, call.values | tensors, call.outputs, call.read, session, start))

    for values in ({"strict": [True]}, {"thresholds": [b'{"default": 0.5}']}):
        with pytest.raises(errors.InvalidRequest, match="opens a stream"):
            send(length, False, **values)
    wrong: tuple[tuple[bool, dict[str, Any], str], ...] = (
        (True, {"debounce": [0]}, "must be from 1 to"),
        (True, {"debounce": [-3]}, "must be from 1 to"),
        (True, {"blocked": [b'["Violent", "Rude"]']}, "Jailbreak"),
        (True, {"blocked": [b"\xff"]}, "must be a JSON list"),
        (True, {"blocked": [b"Violent"]}, "must be a JSON list"),
        (True, {"blocked": [b"3"]}, "must be a JSON list"),
        (True, {"blocked": [b"{}"]}, "must be a JSON list"),
        (True, {"blocked": [b'{"Violent": false}']}, "must be a JSON list"),
        (True, {"blocked": [b'[["Violent"]]']}, "must be a JSON list"),
        (True, {"thresholds": [b""]}, "must be JSON such as"),
        (True, {"thresholds": [b"\xff"]}, "must be JSON such as"),
        (True, {"thresholds": [b"[" * 2000]}, "must be JSON such as"),
        (True, {"thresholds": [b'{"default": 0.5, "debounce": 2}']}, "no other fields"),
        (True, {"thresholds": [b'{"default": NaN}']}, "'default' must be a number from 0 to 1"),
        (True, {"thresholds": [b'{"default": true}']}, "'default' must be a number from 0 to 1"),
        (True, {"thresholds": [b'{"categories": {"Violent": 1.5}}']}, "'Violent' must be a number from 0 to 1"),
        (True, {"thresholds": [b'{"categories": {"Rude": 0.5}}']}, "there are: Violent.*Jailbreak"),
        (True, {"thresholds": [b" " * 5_000_000]}, "have 5000000 bytes; there may be 2000"),
    )
    for start, values, words in wrong:
        with pytest.raises(errors.InvalidRequest, match=words):
            send(0, start, **values)
