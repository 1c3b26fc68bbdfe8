"""Prefix reuse: the replies are those of a guard that reuses nothing, to the bit."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qwen3guard_contract.errors import GuardError
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.policy import Policy
from qwen3guard_runtime.engine.kv_cache import HostArena, KVCache, Slot
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner
from qwen3guard_runtime.engine.prefixes import WORTH_TOKENS, PrefixCache, PrefixLimits, common_length
from qwen3guard_runtime.engine.runner import Logits, Row, Runner
from qwen3guard_runtime.gen.answer import AnswerReader
from qwen3guard_runtime.gen.guard import Answer, GenGuard, Question
from qwen3guard_runtime.stream.session import SessionLimits
from qwen3guard_runtime.stream.sessions import Sessions
from qwen3guard_runtime.stream.steps import Step, StepReply
from qwen3guard_runtime.sweeper import sweep
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer
from support.lengths import times
from support.token_sum import MANIFEST, TokenSum

SLOT = KVCache.least_bytes(MANIFEST)
SMALLEST = KVCache(MANIFEST, slots=1).acquire(1).arena.slot_bytes
HELD = PrefixLimits(held_bytes=3 * SMALLEST, idle_s=50)


@dataclass
class Cached:
    """A PrefixCache over the double, its clock, and how its sequences are computed."""

    limits: PrefixLimits = HELD
    slots: int = 6
    budget_bytes: int = 6 * SLOT
    clock: list[float] = field(default_factory=lambda: [0.0])

    def __post_init__(self) -> None:
        self.graph = TokenSum(self.clock)
        self.kv = KVCache(MANIFEST, slots=self.slots, budget_bytes=self.budget_bytes)
        self.cache = PrefixCache(self.kv, self.limits, lambda: self.clock[0])

    def write(self, ids: Sequence[int], scope: str | None = "a") -> tuple[Slot, int]:
        """A slot that holds `ids`, and how many of them were there before."""
        array = np.array(ids, np.int64)
        slot = self.cache.acquire(array, scope)
        reused = slot.length
        self.cache.grow(slot, len(array))
        if reused < len(array):
            self.graph.forward([Row(slot, array[reused:], [])])
        assert slot.ids.tolist() == list(ids)
        assert isinstance(slot.arena, HostArena)
        assert slot.arena.arrays[0][slot.row, 0, : len(ids), 0].tolist() == list(ids)  # the double stores tokens as KV
        return slot, reused

    def through(self, ids: Sequence[int], scope: str | None = "a") -> int:
        slot, reused = self.write(ids, scope)
        self.cache.release(slot)
        return reused


TEXT = list(range(1, 61))


def test_a_conversation_that_goes_on_takes_what_is_held() -> None:
    cached = Cached()
    assert cached.through(TEXT[:40]) == 0
    assert (cached.cache.count, cached.cache.held_bytes, cached.cache.live) == (1, SMALLEST, 0)
    assert cached.through(TEXT) == 40
    assert cached.cache.count == 1


def test_a_fork_that_shares_little_leaves_what_is_held() -> None:
    cached = Cached()
    cached.through(TEXT)
    assert cached.through([*TEXT[:20], 99, 98]) == 20
    assert cached.cache.count == 2
    assert cached.through(TEXT) == 60


def test_a_live_stream_is_shared_and_not_disturbed() -> None:
    cached = Cached()
    live, _ = cached.write(TEXT)
    assert cached.through([*TEXT, 7]) == 60
    assert live.ids.tolist() == TEXT
    assert cached.cache.live == 1


@pytest.mark.parametrize("scope", ["b", None])
def test_another_scope_finds_nothing_and_none_holds_nothing(scope: str | None) -> None:
    cached = Cached()
    cached.through(TEXT)
    assert cached.through(TEXT, scope) == 0
    assert cached.through(TEXT, scope) == (60 if scope else 0)


def test_little_is_not_worth_it() -> None:
    cached = Cached()
    short = TEXT[: WORTH_TOKENS - 1]
    cached.through(short)
    assert cached.cache.count == 0
    cached.through(TEXT)
    assert cached.through([*short, 99]) == 0


def test_of_a_long_conversation_the_beginning_is_held() -> None:
    """Every turn of it costs what has no room, and not all of it."""
    cached = Cached(PrefixLimits(held_bytes=SMALLEST))
    held = cached.kv.most_tokens(SMALLEST)
    long = [1 + number % 97 for number in range(held + 150)]
    assert [cached.through(long[:end]) for end in (held, held + 1, len(long), len(long))] == [0, held, held, held]
    assert (cached.cache.count, cached.cache.held_bytes) == (1, SMALLEST)
    assert cached.through(TEXT[::-1]) == 0
    assert cached.through(long) == 0  # it has given way
    assert Cached(PrefixLimits(held_bytes=SMALLEST - 1)).through(long) == 0


def test_the_longest_unused_goes_first_and_what_is_idle_goes() -> None:
    cached = Cached()
    for number in range(3):
        cached.clock[0] += 1
        cached.through([90 + number, *TEXT])
    cached.clock[0] += 1
    cached.through([90, *TEXT])  # used again
    cached.through([93, *TEXT])
    assert cached.cache.count == 3
    assert [cached.through([90 + number, *TEXT]) for number in (0, 2, 3)] == [61, 61, 61]
    assert cached.through([91, *TEXT]) == 0
    cached.clock[0] += HELD.idle_s + 1
    cached.cache.drop_idle()
    assert (cached.cache.count, cached.cache.used_bytes, cached.kv.used_bytes) == (0, 0, 0)


def test_nothing_live_waits_for_what_is_held() -> None:
    cached = Cached(slots=3, budget_bytes=2 * SLOT)
    for first in (90, 91, 92):
        cached.through([first, *TEXT])
    assert cached.cache.has_room(MANIFEST.context)
    slots = [cached.write([first] * 500, None)[0] for first in (1, 2)]
    assert cached.cache.count == 0
    assert not cached.cache.has_room(1)
    assert len({(slot.arena, slot.row) for slot in slots}) == 2


def test_live_slots_stay_neighbours() -> None:
    """Or they would not share passes."""
    cached = Cached(PrefixLimits(100 * SMALLEST), slots=30, budget_bytes=30 * SLOT)
    for first in range(61, 73):
        cached.through([first, *TEXT])
    live = [cached.write([first, *TEXT])[0] for first in (70, 62, 99, 66)]
    assert sorted(slot.row for slot in live) == [0, 1, 2, 3]
    for slot in live:
        cached.cache.release(slot)
    assert cached.cache.count == 13


def test_with_no_bytes_nothing_is_held_but_what_is_pinned() -> None:
    cached = Cached(PrefixLimits())
    cached.cache.pin(cached.graph, np.array(TEXT[:30]))
    assert [cached.through(TEXT) for _ in range(2)] == [30, 30]
    assert cached.through([1, 2, 3, 77], None) == 3
    assert cached.cache.live == cached.cache.count == 0


def test_what_is_idle_goes_while_no_request_comes() -> None:
    forgotten = threading.Semaphore(0)
    sweep(forgotten.release, threading.Lock(), 100.0, 0.2)
    assert all(forgotten.acquire(timeout=10) for _ in range(2))


@given(st.lists(st.integers(0, 3), max_size=200), st.lists(st.integers(0, 3), max_size=200), st.integers(0, 200))
def test_common_length(one: list[int], other: list[int], shared: int) -> None:
    other = one[:shared] + other
    expected = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert common_length(np.array(one, np.int64), np.array(other, np.int64)) == expected


# The same schedule of steps, with reuse and without.


class Schedule:
    """Random conversations in a few sessions: openings that share beginnings, steps, rewinds, next turns, ends."""

    def __init__(self, seed: int, vocab: int, context: int) -> None:
        self.random = random.Random(seed)
        self.words = [self.random.randrange(1, vocab) for _ in range(30)]
        self.texts = [[self.random.choice(self.words) for _ in range(context)] for _ in range(3)]
        self.lengths: dict[str, tuple[int, int]] = {}
        self.context = context

    def turn(self) -> list[Step]:
        """Steps of different sessions, which share a turn."""
        names = self.random.sample("abcdef", self.random.randint(1, 3))
        return [step for name in names if (step := self._step(name)) is not None]

    def _step(self, name: str) -> Step | None:
        begins, length = self.lengths.get(name, (0, 0))
        choice = self.random.random()
        if not length or choice < 0.25:
            text = self.random.choice(self.texts)
            count = self.random.choice([3, 20, 40, 100, self.context // 3])
            ids = [*text[:count], *(self.random.choices(self.words, k=self.random.randint(1, 30)))]
            response = self.random.choice([0, 0, 5])
            self.lengths[name] = (len(ids) - response, len(ids))
            return self._made(
                name, ids, 0, start=True, query_index=len(ids) - response - 1, response_start=len(ids) - response
            )
        if choice < 0.4:
            del self.lengths[name]
            return self._made(name, [], length, end=True)
        position = self.random.randint(begins, length) if choice < 0.6 else length
        ids = self.random.choices(self.words, k=self.random.choice([1, 1, 2, 9, 40]))
        if position + len(ids) >= self.context:
            return None
        if choice > 0.9:  # the user's next turn
            self.lengths[name] = (position + len(ids), position + len(ids))
            return self._made(name, ids, position, query_index=len(ids) - 1, response_start=len(ids))
        self.lengths[name] = (begins, position + len(ids))
        return self._made(name, ids, position)

    def _made(self, name: str, ids: Sequence[int], position: int, **how: Any) -> Step:
        return Step(name, np.array(ids, np.int64), position, scope=self.random.choice(["x", "x", "y", None]), **how)


def replies(sessions: Sessions, steps: Sequence[Step]) -> list[StepReply | GuardError]:
    """The replies to steps that share a turn, each sent again until it is through."""
    found: dict[int, StepReply | GuardError] = {}
    waiting = dict(enumerate(steps))
    while waiting:
        for number, reply in zip(list(waiting), sessions.steps(list(waiting.values())), strict=True):
            if isinstance(reply, GuardError) or not reply.pending:
                found[number] = reply
                del waiting[number]
    return [found[number] for number in range(len(steps))]


def same(one: StepReply | GuardError, other: StepReply | GuardError) -> bool:
    if isinstance(one, GuardError) or isinstance(other, GuardError):
        return repr(one) == repr(other)
    return repr(one) == repr(other) and all(
        getattr(mine, name).tobytes() == getattr(theirs, name).tobytes()
        for mine, theirs in ((one.response, other.response), (one.prompt, other.prompt))
        for name in ("risk_probabilities", "category_probabilities")
    )


class Counting:
    """A runner, and how many tokens went through it."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.tokens = 0

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        self.tokens += sum(len(row.ids) for row in rows)
        return self.runner.forward(rows)


class Pair:
    """Sessions with reuse and without, over the same kind of memory."""

    def __init__(self, manifest: Manifest, runner: Runner, *, limits: PrefixLimits, slots: int, budget: int | None):
        self.clock = [0.0]
        held, none = (
            PrefixCache(KVCache(manifest, slots=slots, budget_bytes=budget), each, lambda: self.clock[0])
            for each in (limits, PrefixLimits())
        )
        how = SessionLimits(idle_s=1000, evict_s=3, turn_s=0.0, chunk_tokens=24, alone_tokens=24)
        self.runners = [Counting(runner) for _ in range(2)]
        self.both = [
            Sessions(manifest, counting, cache, policy=Policy(), limits=how, clock=lambda: self.clock[0])
            for counting, cache in zip(self.runners, (held, none), strict=True)
        ]

    def run(self, schedule: Schedule, turns: int) -> None:
        answered = 0
        for _ in range(turns):
            self.clock[0] += schedule.random.choice([0.5, 1, 4])
            steps = schedule.turn()
            with_reuse, without = (replies(sessions, steps) for sessions in self.both)
            for step, one, other in zip(steps, with_reuse, without, strict=True):
                assert same(one, other), (step, one, other)
                answered += isinstance(other, StepReply)
                if isinstance(other, GuardError):
                    schedule.lengths.pop(str(step.session), None)
        assert answered > turns / 2
        assert self.runners[0].tokens < self.runners[1].tokens


@pytest.mark.trial
@pytest.mark.parametrize("seed", range(times(12, 40)))
@pytest.mark.parametrize("budget", [None, 2 * SLOT], ids=["room", "tight"])
def test_replies_are_those_without_reuse(seed: int, budget: int | None) -> None:
    """Over the double, whose logits depend on every token that its slot holds."""
    graph = TokenSum([0.0])
    pair = Pair(MANIFEST, graph, limits=PrefixLimits(10 * SMALLEST, 30), slots=5, budget=budget)
    pair.run(Schedule(seed, MANIFEST.vocab_size, MANIFEST.context), 60)


@pytest.mark.trial
@pytest.mark.parametrize("weights", ["fp32", "dq8r"])
def test_a_real_stream_guard_answers_the_same_bits(weights: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("repository" if weights == "fp32" else "eight_bits") / "stream_guard/1"
    manifest = Manifest.read(folder)
    largest = KVCache.least_bytes(manifest)
    pair = Pair(manifest, OnnxRunner(folder, manifest), limits=PrefixLimits(largest, 30), slots=9, budget=3 * largest)
    pair.run(Schedule(7, manifest.vocab_size, min(manifest.context, 900)), times(50, 150))


@pytest.mark.trial
@pytest.mark.parametrize("weights", ["fp32", "dq8r"])
def test_a_real_gen_guard_answers_the_same_bits(weights: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue("repository" if weights == "fp32" else "eight_bits") / "gen_guard/1"
    manifest = Manifest.read(folder)
    tokenizer = GuardTokenizer.load(folder)
    runner = OnnxRunner(folder, manifest, AnswerReader(tokenizer).candidates)
    runners = [Counting(runner) for _ in range(2)]
    largest = KVCache.least_bytes(manifest)
    fast, plain = (
        GenGuard(
            manifest,
            counting,
            tokenizer,
            frozenset({tokenizer.special[IM_END]}),
            slots=3,
            limits=limits,
            clock=lambda: 0.0,
        )
        for counting, limits in zip(runners, (PrefixLimits(2 * largest, 30), None), strict=True)
    )
    schedule = Schedule(3, manifest.vocab_size, 600)
    for _ in range(times(10, 25)):
        texts = [
            [
                *schedule.random.choice(schedule.texts)[: schedule.random.choice([5, 60, 300, 500])],
                *schedule.random.choices(schedule.words, k=3),
            ]
            for _ in range(schedule.random.randint(1, 3))
        ]
        questions = [
            Question(np.array(ids), schedule.random.random() < 0.5, schedule.random.choice(["x", "x", None]))
            for ids in texts
        ]
        for one, other in zip(
            fast.answer(questions), plain.answer([replace(each, scope=None) for each in questions]), strict=True
        ):
            assert isinstance(one, Answer)
            assert isinstance(other, Answer)
            assert (one.ids, one.logprobs, one.text) == (other.ids, other.logprobs, other.text)
    assert runners[0].tokens < runners[1].tokens
    assert not plain.cache.count
