"""Sessions with a double for the graph and a list for a clock: positions, rewinds, forgetting, failing alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from qwen3guard_client import errors
from qwen3guard_client.errors import GuardError
from qwen3guard_client.labels import RISK_ORDER, RiskLevel
from qwen3guard_client.manifest import Canary, Manifest
from qwen3guard_client.policy import Policy
from qwen3guard_runtime.kv_cache import KVCache, capacities
from qwen3guard_runtime.runner import Logits, Row
from qwen3guard_runtime.sessions import Limits, Reply, Sessions, Step

MANIFEST = Manifest(
    variant="stream",
    source="a test",
    weights="fp32",
    attention="none",
    layers=1,
    kv_heads=1,
    head_dim=4,
    hidden_size=4,
    vocab_size=100,
    context=600,
    kv_dtype="float32",
    demo=False,
    parameters=0,
    parity={},
    sha256={},
    versions={},
    canary=Canary((), (), 0.0),
)


class TokenSum:
    """A graph whose logits depend on every token up to the asked one; it stores the tokens where KV would be."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock
        self.pass_s = 0.0
        self.passes: list[int] = []
        self.fail = False
        self.poison = -1

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        if self.fail or any(self.poison in row.ids for row in rows):
            raise RuntimeError("the graph broke")
        assert len({id(row.slot) for row in rows}) == len(rows)
        self.passes.append(len(rows))
        self.clock[0] += self.pass_s
        results = []
        for row in rows:
            slot = row.slot
            assert slot.length + len(row.ids) <= slot.arena.room
            cells = slot.arena.arrays[0][slot.row, 0, :, 0]
            cells[slot.length : slot.length + len(row.ids)] = row.ids
            ends = [slot.length + index + 1 for index in row.asked]
            slot.length += len(row.ids)
            risk = logits([cells[:end] for end in ends])
            results.append((risk, np.repeat(risk, 3, 1)[:, :8], risk, np.repeat(risk, 3, 1)))
        return results


def logits(prefixes: Sequence[Any]) -> np.ndarray:
    rows = [[(np.sum(prefix) * (k + 2) + prefix[-1] * 7) % 11 for k in range(3)] for prefix in prefixes]
    return np.array(rows, np.float32).reshape(-1, 3)


class Bench:
    """Sessions over the double, and the clock in a list."""

    def __init__(
        self,
        *,
        slots: int = 4,
        budget_bytes: int | None = None,
        idle_s: float = 60.0,
        evict_s: float = 0.0,
        chunk_tokens: int = 24,
    ) -> None:
        self.clock = [0.0]
        self.graph = TokenSum(self.clock)
        self.cache = KVCache(MANIFEST, slots=slots, budget_bytes=budget_bytes)
        limits = Limits(idle_s=idle_s, evict_s=evict_s, turn_s=1.0, chunk_tokens=chunk_tokens)
        self.sessions = Sessions(
            MANIFEST, self.graph, self.cache, policy=Policy(), limits=limits, clock=lambda: self.clock[0]
        )

    def step(self, session: str, ids: Sequence[int], position: int = 0, **flags_: bool | int) -> Reply | GuardError:
        step = Step(session, np.array(ids, np.int64), position, **flags_)  # type: ignore[arg-type]
        return self.sessions.steps([step])[0]

    def ok(self, *arguments: object, **flags_: bool | int) -> Reply:
        reply = self.step(*arguments, **flags_)  # type: ignore[arg-type]
        assert isinstance(reply, Reply), reply
        return reply


def test_every_schedule_of_steps_rewinds_and_retries_equals_one_pass() -> None:
    source = random.Random(3)
    for _ in range(12):
        tokens = [source.randrange(100) for _ in range(source.randint(5, 500))]
        prompt = source.randint(1, 4)
        whole = Bench().ok("whole", tokens, start=True, query_index=prompt - 1, response_start=prompt)
        bench = Bench()
        bench.ok("s", tokens[:prompt], start=True, query_index=prompt - 1, response_start=prompt)
        levels: list[RiskLevel] = []
        strict: list[bool] = []
        at = prompt
        while at < len(tokens):
            if at > prompt and source.random() < 0.3:
                at = source.randint(prompt, at)
                wrong = [source.randrange(100) for _ in range(source.randint(1, 40))]
                bench.ok("s", wrong, at)
            chunk = tokens[at : at + source.randint(1, 40)]
            replies = [bench.ok("s", chunk, at) for _ in range(source.randint(1, 3))]
            for reply in replies[1:]:
                assert reply.flags == replies[0].flags
                np.testing.assert_array_equal(reply.response.risk_probabilities, replies[0].response.risk_probabilities)
            del levels[at - prompt :], strict[at - prompt :]
            levels += replies[0].response.risk
            strict += replies[0].flags.strict
            at += len(chunk)
            assert replies[0].length == at
        assert tuple(levels) == whole.response.risk
        assert tuple(strict) == whole.flags.strict


def test_the_prompt_is_judged_where_it_was_asked_and_the_scaffold_nowhere() -> None:
    reply = Bench().ok("s", [1, 2, 3, 4, 5], start=True, query_index=2, response_start=5)
    expected = logits([[1, 2, 3]])
    assert reply.prompt.risk == (RISK_ORDER[int(expected.argmax())],)
    assert reply.response.risk == ()
    assert reply.flags == ((), (), ())


def test_the_debounce_does_not_reach_into_the_prompt() -> None:
    """One public server counts the scaffold, so that one unsafe token blocks."""
    for tokens in ([1, 2, 3, token] for token in range(100)):
        reply = Bench().ok("s", tokens, start=True, query_index=1, response_start=3)
        assert reply.flags.strict == (False,)


@pytest.mark.parametrize(
    ("ids", "position", "start", "error"),
    [
        ([1], -1, False, errors.PositionOutOfRange),
        ([1], 4, False, errors.PositionOutOfRange),
        ([1], 1, True, errors.PositionOutOfRange),
        ([100], 3, False, errors.TokenOutOfRange),
        ([-1], 3, False, errors.TokenOutOfRange),
        ([], 3, False, errors.EmptyText),
        ([1] * 598, 3, False, errors.TextTooLong),
        ([1] * 601, 0, True, errors.TextTooLong),
    ],
)
def test_a_wrong_step_changes_nothing(ids: list[int], position: int, start: bool, error: type[GuardError]) -> None:
    bench = Bench()
    bench.ok("s", [1, 2, 3], start=True)
    assert type(bench.step("s", ids, position, start=start)) is error
    clean = Bench()
    clean.ok("s", [1, 2, 3], start=True)
    assert bench.ok("s", [4], 3).response.risk == clean.ok("s", [4], 3).response.risk


def test_a_step_without_a_session_is_session_lost() -> None:
    bench = Bench()
    assert type(bench.step("s", [1])) is errors.SessionLost
    bench.ok("s", [1], start=True, end=True)
    assert type(bench.step("s", [2], 1)) is errors.SessionLost


def test_start_again_forgets_what_was() -> None:
    """One published engine grows for ever when an id is used again."""
    bench = Bench()
    first = bench.ok("s", [1, 2, 3], start=True)
    for _ in range(1000):
        again = bench.ok("s", [1, 2, 3], start=True)
    assert again.length == 3
    assert again.response.risk == first.response.risk
    assert bench.cache.live == 1


def test_idle_sessions_are_forgotten_and_the_longest_unused_makes_room() -> None:
    bench = Bench(slots=2, idle_s=10)
    for name, now in (("a", 0.0), ("b", 1.0)):
        bench.clock[0] = now
        bench.ok(name, [1], start=True)
    bench.clock[0] = 2
    bench.ok("a", [2], 1)
    bench.ok("c", [1], start=True)
    assert type(bench.step("b", [2], 1)) is errors.SessionLost
    bench.clock[0] = 11.5
    assert isinstance(bench.step("a", [2], 2), Reply)
    bench.clock[0] = 40
    assert type(bench.step("c", [2], 1)) is errors.SessionLost
    assert bench.cache.live == 0


def test_one_wrong_step_leaves_the_others_of_its_batch_alone() -> None:
    bench = Bench()
    for name in "abc":
        bench.ok(name, [1, 2], start=True)
    steps = [
        Step("a", np.array([3]), 2),
        Step("b", np.array([3]), 9),
        Step("c", np.array([3, 4]), 2),
        Step("nobody", np.array([3]), 2),
    ]
    found = bench.sessions.steps(steps)
    assert [type(each) for each in found] == [Reply, errors.PositionOutOfRange, Reply, errors.SessionLost]
    assert bench.graph.passes[-1] == 2


def test_steps_of_one_session_in_one_batch_are_taken_in_order() -> None:
    bench = Bench()
    bench.ok("a", [1, 2], start=True)
    steps = [Step("a", np.array([3]), 2), Step("a", np.array([4]), 3), Step("b", np.array([5]), 0, start=True)]
    found = bench.sessions.steps(steps)
    assert [reply.length for reply in found if isinstance(reply, Reply)] == [3, 4, 1]


def test_a_failing_graph_fails_the_step_and_keeps_the_session() -> None:
    bench = Bench()
    bench.ok("a", [1, 2], start=True)
    bench.graph.fail = True
    found = bench.step("a", [3], 2)
    assert type(found) is errors.InternalError
    bench.graph.fail = False
    assert bench.ok("a", [3], 2).length == 3


def test_a_row_that_breaks_the_graph_fails_alone() -> None:
    bench = Bench()
    for name in "abc":
        bench.ok(name, [1, 2], start=True)
    bench.graph.poison = 66
    found = bench.sessions.steps(
        [Step(name, np.array([token]), 2) for name, token in zip("abc", (3, 66, 5), strict=True)]
    )
    assert [type(each) for each in found] == [Reply, errors.InternalError, Reply]
    assert bench.ok("b", [4], 2).length == 3


def test_a_batch_never_evicts_a_session_of_its_own() -> None:
    bench = Bench(slots=2)
    found = bench.sessions.steps([Step(name, np.array([1]), 0, start=True) for name in "abc"])
    assert [type(each) for each in found] == [Reply, Reply, errors.Overloaded]


def test_end_with_nothing_to_say_frees_the_slot() -> None:
    bench = Bench(slots=1)
    for number in range(20):
        name = str(number)
        bench.ok(name, [1, 2], start=True)
        assert bench.ok(name, [], 2, end=True).length == 2
        assert bench.cache.live == 0


def test_a_slot_keeps_its_tokens_when_it_grows_and_shows_none_of_another() -> None:
    cache = KVCache(MANIFEST, slots=2)
    slot = cache.acquire(10)
    key = slot.arena.arrays[0]
    key[slot.row] = 7
    slot.length = 10
    before = slot.arena
    cache.grow(slot, 400)
    assert slot.arena is not before
    assert (slot.arena.arrays[0][slot.row, :, :10] == 7).all()
    assert (key == 0).all()
    cache.release(slot)
    again = cache.acquire(400)
    assert (again.arena.arrays[0][again.row] == 0).all()


def test_slots_run_out_with_an_error_and_come_back() -> None:
    cache = KVCache(MANIFEST, slots=1)
    slot = cache.acquire(1)
    with pytest.raises(errors.Overloaded):
        cache.acquire(1)
    cache.release(slot)
    cache.acquire(600)


@pytest.mark.parametrize("context", [1, 240, 241, 512, 2048, 8192, 32768, 40960])
def test_the_largest_slot_holds_the_context(context: int) -> None:
    found = list(capacities(context))
    assert found == sorted(found)
    assert found[-1] - 16 >= context
    assert all(capacity - 16 < context for capacity in found[:-1])
