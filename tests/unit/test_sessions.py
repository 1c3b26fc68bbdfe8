"""Sessions with a double for the graph and a list for a clock: positions, rewinds, forgetting, failing alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from qwen3guard_contract import errors
from qwen3guard_contract.errors import GuardError
from qwen3guard_contract.forms import AttentionForm
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, RESPONSE_CATEGORY_ORDER, RISK_ORDER, Category, RiskLevel
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.slots import capacities
from qwen3guard_contract.thresholds import Thresholds
from qwen3guard_runtime.engine.host import memory_bytes
from qwen3guard_runtime.engine.kv_cache import HostArena, KVCache
from qwen3guard_runtime.engine.runner import STEP_TOKENS
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.request import never
from qwen3guard_runtime.stream.steps import Step, StepReply
from qwen3guard_runtime.stream.verdicts import TokenJudgements, judge
from support.token_sum import MANIFEST, Bench, logits


@pytest.mark.parametrize("policy", [None, Policy(thresholds=Thresholds(0.7, {Category.POLITICAL: 0.3}))])
def test_every_schedule_of_steps_rewinds_and_retries_equals_one_pass(policy: Policy | None) -> None:
    source = random.Random(3)
    for _ in range(12):
        tokens = [source.randrange(100) for _ in range(source.randint(5, 500))]
        prompt = source.randint(1, 4)
        opening = {"start": True, "query_index": prompt - 1, "response_start": prompt, "policy": policy}
        whole = Bench().ok("whole", tokens, **opening)
        bench = Bench()
        bench.ok("s", tokens[:prompt], **opening)
        levels: list[RiskLevel] = []
        strict: list[bool] = []
        own: list[tuple[bool, int]] = []
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
            del levels[at - prompt :], strict[at - prompt :], own[at - prompt :]
            levels += replies[0].response.risk
            strict += replies[0].flags.strict
            own += zip(replies[0].flags.own, replies[0].run, strict=True)
            at += len(chunk)
            assert replies[0].length == at
        assert tuple(levels) == whole.response.risk
        assert tuple(strict) == whole.flags.strict
        assert own == list(zip(whole.flags.own, whole.run, strict=True))


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


def test_a_debounce_that_no_response_can_reach_is_refused() -> None:
    """It would flag nothing. A conversation that fills the context has no response, and may be judged."""
    conversation = {"start": True, "query_index": 1}
    bench = Bench()  # of 600 tokens
    for debounce, prompt in ((598, 3), (600, 1), (601, 0), (2, 600)):
        policy = Policy(debounce=debounce)
        found = bench.step("s", [1] * max(prompt, 2), response_start=prompt, policy=policy, **conversation)
        assert type(found) is errors.InvalidRequest
        assert f"room for {max(600 - prompt, 1)} after the prompt" in str(found)
    for debounce, prompt in ((597, 3), (600, 0), (1, 600)):
        policy = Policy(debounce=debounce)
        bench.ok("s", [1] * max(prompt, 2), response_start=prompt, policy=policy, **conversation)


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
    assert isinstance(bench.step("a", [2], 2), StepReply)
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
    assert [type(each) for each in found] == [StepReply, errors.PositionOutOfRange, StepReply, errors.SessionLost]
    assert bench.graph.passes[-1] == 2


def test_steps_of_one_session_in_one_batch_are_taken_in_order() -> None:
    bench = Bench()
    bench.ok("a", [1, 2], start=True)
    steps = [Step("a", np.array([3]), 2), Step("a", np.array([4]), 3), Step("b", np.array([5]), 0, start=True)]
    found = bench.sessions.steps(steps)
    assert [reply.length for reply in found if isinstance(reply, StepReply)] == [3, 4, 1]


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
    assert [type(each) for each in found] == [StepReply, errors.InternalError, StepReply]
    assert bench.ok("b", [4], 2).length == 3


def test_a_batch_never_evicts_a_session_of_its_own() -> None:
    bench = Bench(slots=2)
    found = bench.sessions.steps([Step(name, np.array([1]), 0, start=True) for name in "abc"])
    assert [type(each) for each in found] == [StepReply, StepReply, errors.Overloaded]


def test_a_canary_takes_the_place_of_no_session() -> None:
    bench = Bench(slots=2)
    bench.ok("a", [1], start=True)
    bench.ok("b", [1], start=True)
    bench.clock[0] = 59.0
    assert type(bench.step("canary", [1], start=True, end=True, canary=True)) is errors.Overloaded
    bench.ok("a", [2], 1, end=True)
    bench.ok("canary", [1], start=True, end=True, canary=True)
    bench.ok("b", [2], 1)


def test_a_canary_gives_way_to_every_session() -> None:
    bench = Bench(slots=2, evict_s=5)
    bench.ok("a", [1], start=True)
    canary = Step("canary", np.array([1] * 300, np.int64), 0, start=True, end=True, canary=True)
    user = Step("b", np.array([1], np.int64), 0, start=True)
    in_one_batch = [type(reply) for reply in bench.sessions.steps([canary, user])]
    assert in_one_batch == [errors.Overloaded, StepReply]
    bench.ok("b", [2], 1, end=True)
    bench.graph.pass_s = 2.0  # longer than a turn
    reply = bench.sessions.steps([canary])[0]
    assert isinstance(reply, StepReply)
    assert reply.pending
    bench.ok("b", [1], start=True)  # not after evict_s: at once
    assert type(bench.step("a", [2], 1)) is StepReply


def test_end_with_nothing_to_say_frees_the_slot() -> None:
    bench = Bench(slots=1)
    for number in range(20):
        name = str(number)
        bench.ok(name, [1, 2], start=True)
        assert bench.ok(name, [], 2, end=True).length == 2
        assert bench.cache.live == 0


@pytest.mark.parametrize("attention", ["decomposed", "int8"])
def test_a_slot_keeps_its_tokens_when_it_grows_and_shows_none_of_another(attention: AttentionForm) -> None:
    """With heads large enough that a slot has pages of its own."""
    cache = KVCache(replace(MANIFEST, attention=attention, kv_heads=8, head_dim=64), slots=2)
    slot = cache.acquire(10)
    before, tokens = slot.arena, np.arange(1, 11)
    assert isinstance(before, HostArena)
    for each, array in zip(before.caches, before.arrays, strict=True):
        np.moveaxis(array[slot.row], each.cell_axis - 1, -1)[..., :10] = tokens
    slot.length = 10
    cache.grow(slot, 400)
    assert slot.arena is not before
    assert isinstance(slot.arena, HostArena)
    for each, array in zip(slot.arena.caches, slot.arena.arrays, strict=True):
        cells = np.moveaxis(array[slot.row], each.cell_axis - 1, -1)
        assert (cells[..., :10] == tokens).all()
        assert (cells[..., 10:] == 0).all()
    big = [array for array in before.arrays if array[0].nbytes % 4096 == 0]
    assert len(big) >= 2
    assert all((array == 0).all() for array in big)


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


def long_step(bench: Bench, tokens: Sequence[int], **flags_: bool | int) -> tuple[StepReply, int]:
    """A step sent until nothing is pending, and how often it was sent."""
    sent = 0
    while True:
        reply = bench.ok("long", tokens, **flags_)
        sent += 1
        if not reply.pending:
            return reply, sent
        assert reply.response.risk == ()
        assert reply.length == 0


def test_a_long_step_lets_others_in_and_equals_one_pass() -> None:
    tokens = [(7 * number) % 100 for number in range(500)]
    whole = Bench(chunk_tokens=600).ok("s", tokens, start=True, query_index=5, response_start=9)
    bench = Bench()
    bench.graph.pass_s = 2.0  # longer than a turn
    bench.ok("other", [1], start=True)
    sent = 0
    pending = len(tokens)
    while pending:
        steps = [
            Step("long", np.array(tokens), 0, start=True, query_index=5, response_start=9),
            Step("other", np.array([sent]), 1 + sent),
        ]
        reply, other = bench.sessions.steps(steps)
        assert isinstance(other, StepReply)
        assert other.length == 2 + sent
        assert isinstance(reply, StepReply)
        # Every other turn is for short steps alone, and what is left at the end is one.
        assert (reply.pending < pending) == (sent % 2 == 0 or pending <= STEP_TOKENS)
        pending = reply.pending
        sent += 1
    assert sent > 20
    assert isinstance(reply, StepReply)
    assert reply.length == 500
    assert reply.response.risk == whole.response.risk
    assert reply.prompt.risk == whole.prompt.risk
    assert reply.flags == whole.flags


def test_where_a_long_step_is_cut_does_not_depend_on_time() -> None:
    tokens = list(range(100)) * 4
    seen = []
    for pass_s in (0.0, 0.3, 5.0):
        bench = Bench()
        bench.graph.pass_s = pass_s
        long_step(bench, tokens, start=True)
        seen.append(bench.graph.lengths)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0] == 24
    assert seen[0] == sorted(seen[0], reverse=True)  # later chunks read more, so they are shorter


def test_a_long_step_is_cut_finely_while_another_session_steps_and_coarsely_alone() -> None:
    tokens = list(range(100)) * 5
    bench = Bench(slots=6, alone_tokens=200, evict_s=60)
    bench.ok("other", [1], start=True)
    bench.graph.pass_s = 0.3

    def taken() -> int:
        """The tokens of the first chunk of a new long step."""
        before = len(bench.graph.lengths)
        bench.step("long", [before % 100, *tokens], start=True)
        return bench.graph.lengths[before]

    assert taken() == 24  # the other may go on soon
    bench.clock[0] += 1.0
    assert taken() == 200  # it is silent
    bench.step("other", [1], 1)
    assert taken() == 24
    bench.step("other", [], 2, end=True)
    assert taken() == 200  # it is gone
    bench.step("canary", [1, 2], start=True, canary=True)
    assert taken() == 200
    bench.step("another", tokens, start=True)
    assert taken() == 200  # whose long step is pending does not wait for a token
    before = len(bench.graph.lengths)
    for number in range(2):  # every other turn is for short steps alone
        short = Step("short", np.array([number, 2, 3]), 0, start=True)
        bench.sessions.steps([short, Step("long", np.array(tokens), 0, start=True)])
    assert bench.graph.lengths[before : before + 3] == [3, 3, 24]


def test_a_coarse_cut_after_a_fine_one_gives_what_one_pass_gives() -> None:
    tokens = [(7 * number) % 100 for number in range(500)]
    opening = {"start": True, "query_index": 5, "response_start": 9}
    whole = Bench(chunk_tokens=600).ok("s", tokens, **opening)
    bench = Bench(alone_tokens=150)
    bench.ok("other", [1], start=True)
    bench.graph.pass_s = 0.4
    while (reply := bench.ok("s", tokens, **opening)).pending:
        pass
    assert bench.graph.lengths[1] == 24
    assert max(bench.graph.lengths) > 100
    assert reply.response.risk == whole.response.risk
    assert reply.flags == whole.flags


def test_a_pending_step_that_is_given_up_counts_for_nothing() -> None:
    bench = Bench()
    bench.ok("s", [1, 2, 3], start=True)
    bench.graph.pass_s = 2.0
    assert bench.ok("s", [5] * 200, 3).pending
    assert type(bench.step("s", [9], 10)) is errors.PositionOutOfRange  # it holds 3 tokens
    found = bench.ok("s", [4], 3)
    clean = Bench()
    clean.ok("s", [1, 2, 3], start=True)
    assert found.response.risk == clean.ok("s", [4], 3).response.risk
    reply = bench.ok("s", [5] * 200, 3)
    assert reply.pending > 170  # begun anew


@pytest.mark.parametrize("reply", [[], [4, 5, 6]])
def test_the_conversation_is_never_written_over(reply: list[int]) -> None:
    """A step that forgets its position, or counts from the response: also where the START brought some of it."""
    opening = {"start": True, "query_index": 2, "response_start": 10}
    bench, clean = Bench(), Bench()
    for each in (bench, clean):
        each.ok("s", [*range(10), *reply], **opening)
    for position in (0, 1, 9):
        found = bench.step("s", [7, 7], position)
        assert type(found) is errors.PositionOutOfRange
        assert str(found) == f"The position {position} is in the conversation; the response begins at 10."
    for position in (10 + len(reply), 10):
        one, other = (each.ok("s", [7, 7], position) for each in (bench, clean))
        assert (one.length, one.response.risk) == (position + 2, other.response.risk)
    again = bench.ok("s", [1, 2, 3], start=True, response_start=3)  # a new conversation ends where it says
    assert again.length == 3
    assert bench.ok("s", [7], 3).length == 4
    assert type(bench.step("s", [7], 2)) is errors.PositionOutOfRange


def test_an_end_without_tokens_may_name_any_position_that_is_held() -> None:
    for position in (0, 2, 5, 7):
        bench = Bench()
        bench.ok("s", [1, 2, 3, 4, 5, 6, 7], start=True, response_start=5)
        assert isinstance(bench.step("s", [], position, end=True), StepReply)
        assert bench.cache.live == 0
    bench.ok("s", [1, 2, 3], start=True, response_start=3)
    assert type(bench.step("s", [9], 0, end=True)) is errors.PositionOutOfRange
    assert bench.cache.live == 0  # Triton ends the sequence all the same


def pending_start(bench: Bench) -> StepReply:
    bench.graph.pass_s = 2.0
    reply = bench.ok("s", range(90), start=True, response_start=80)
    assert (reply.length, reply.pending > 60) == (0, True)
    return reply


def test_while_a_start_is_pending_only_the_same_step_is_taken() -> None:
    bench, clean = Bench(slots=2), Bench()
    reply = pending_start(bench)
    for position, ids in ((0, [1, 2]), (80, [1]), (90, [1]), (0, range(90)), (0, [])):
        found = bench.step("s", ids, position)
        assert type(found) is (errors.InvalidRequest if len(ids) else errors.EmptyText)
        assert not len(ids) or "send it again until PENDING is 0" in str(found)
    sent = 0
    while reply.pending:
        before, reply = reply.pending, bench.ok("s", range(90), start=True, response_start=80)
        sent += reply.pending < before
    assert sent > 2
    expected = clean.ok("s", range(90), start=True, response_start=80)
    assert (reply.length, reply.response.risk) == (90, expected.response.risk)


def test_a_pending_start_may_be_begun_anew_given_up_or_evicted() -> None:
    bench = Bench(slots=1)
    pending_start(bench)
    assert bench.ok("s", [1, 2, 3], start=True, response_start=3).length == 3
    pending_start(bench)
    assert isinstance(bench.step("s", [], 0, end=True), StepReply)
    assert bench.cache.live == 0
    assert type(bench.step("s", range(90), 0)) is errors.SessionLost
    pending_start(bench)
    assert type(bench.step("s", [5], 0, end=True)) is errors.InvalidRequest  # Triton ends the sequence all the same
    assert bench.cache.live == 0
    pending_start(bench)
    assert bench.ok("another", [1], start=True).length == 1
    assert type(bench.step("s", [5], 0)) is errors.SessionLost


def test_a_step_that_ends_its_sequence_is_finished_at_once() -> None:
    """Triton would not let it be sent again."""
    bench = Bench()
    bench.ok("s", [1], start=True)
    bench.graph.pass_s = 2.0
    assert bench.ok("s", [2] * 300, 1, end=True).length == 301
    assert bench.cache.live == 0
    reply, sent = long_step(bench, [3] * 300, start=True, end=True)
    assert sent > 5
    assert reply.length == 300
    assert bench.cache.live == 0


def test_long_steps_share_the_turns() -> None:
    bench = Bench()
    bench.graph.pass_s = 2.0
    steps = [Step(name, np.array([number] * 100), 0, start=True) for number, name in enumerate("abc")]
    pending = [
        [reply.pending for reply in bench.sessions.steps(steps) if isinstance(reply, StepReply)] for _ in range(6)
    ]
    assert all(max(each) - min(each) <= 24 for each in pending)


def test_a_broken_pass_in_the_middle_fails_the_step_and_keeps_what_stood_before() -> None:
    bench = Bench()
    bench.ok("s", [1, 2], start=True)
    bench.graph.poison = 66
    assert type(bench.step("s", [5] * 60 + [66], 2)) is errors.InternalError
    clean = Bench()
    clean.ok("s", [1, 2], start=True)
    assert bench.ok("s", [3], 2).response.risk == clean.ok("s", [3], 2).response.risk


SLOT = KVCache.least_bytes(MANIFEST)


def test_a_budget_in_bytes_bounds_the_slots() -> None:
    cache = KVCache(MANIFEST, slots=100, budget_bytes=2 * SLOT)
    slots = []
    while cache.has_room(10):
        slots.append(cache.acquire(10))
    assert 2 < len(slots) < 100  # small slots cost less
    assert cache.used_bytes <= 2 * SLOT
    with pytest.raises(errors.Overloaded):
        cache.acquire(10)
    with pytest.raises(errors.Overloaded):
        cache.grow(slots[0], 600)
    while not cache.has_room(600, slots[0]):
        cache.release(slots.pop())
    cache.grow(slots[0], 600)
    for slot in slots:
        cache.release(slot)
    assert cache.used_bytes == cache.live == 0
    with pytest.raises(errors.OverBudget, match=str(SLOT)):
        KVCache(MANIFEST, slots=1, budget_bytes=SLOT - 1)


def test_sessions_in_use_are_never_evicted_for_new_ones() -> None:
    bench = Bench(slots=100, budget_bytes=SLOT, evict_s=5)
    names: list[str] = []
    while isinstance(bench.step(str(len(names)), [1, 2], start=True), StepReply):
        names.append(str(len(names)))
        bench.clock[0] += 0.1
    assert type(bench.step("new", [1], start=True)) is errors.Overloaded
    for name in names:
        assert bench.ok(name, [3], 2).length == 3
    assert type(bench.step(names[0], [4] * 500, 3)) is errors.Overloaded  # to grow, too
    assert bench.ok(names[0], [4], 3).length == 4
    bench.clock[0] += 5.05
    bench.ok(names[0], [5], 4)
    assert bench.ok("new", [1], start=True).length == 1
    assert type(bench.step(names[1], [4], 3)) is errors.SessionLost  # unused for longest
    assert bench.ok(names[0], [6], 5).length == 6


def test_a_policy_is_the_sessions_own() -> None:
    source = random.Random(9)
    tokens = [source.randrange(100) for _ in range(200)]
    policies = [
        Policy(),
        Policy(strict=False),
        Policy(debounce=1),
        Policy(debounce=5),
        Policy(blocked=frozenset({Category.POLITICAL, Category.PII})),
    ]
    bench = Bench(slots=8)
    steps = [
        Step(number, np.array(tokens), 0, start=True, response_start=3, policy=policy)
        for number, policy in enumerate(policies)
    ]
    for reply, policy in zip(bench.sessions.steps(steps), policies, strict=True):
        assert isinstance(reply, StepReply)
        judged = zip(reply.response.risk, reply.response.category, strict=True)
        unsafe = [policy.is_unsafe_level(*each) for each in judged]
        expected = [at + 1 >= policy.debounce and all(unsafe[at + 1 - policy.debounce : at + 1]) for at in range(197)]
        assert list(reply.flags.own) == expected
        assert reply.flags.own == (reply.flags.strict if policy.strict else reply.flags.loose)
        assert any(expected)


def test_thresholds_of_many_sessions_in_one_batch_do_not_mix() -> None:
    """Each decides by its own, over the probabilities that it returns; strict and loose are those of no thresholds."""
    source = random.Random(11)
    tokens = [source.randrange(100) for _ in range(200)]
    some = frozenset({Category.POLITICAL, Category.PII})
    limits = [Thresholds(t / 10, {Category.POLITICAL: source.random()}) for t in range(11)]
    limits += [Thresholds(0), Thresholds(1), Thresholds(1, {Category.VIOLENT: 0.2}), Thresholds(0.01)]
    bench = Bench(slots=64)
    policies = [
        Policy(strict, debounce, blocked, each)
        for each in limits
        for strict, debounce, blocked in (
            (True, 2, frozenset(Category)),
            (False, 1, frozenset(Category)),
            (True, 3, some),
        )
    ]
    steps = [
        Step(number, np.array(tokens), 0, start=True, query_index=2, response_start=3, policy=policy)
        for number, policy in enumerate(policies)
    ]
    seen = set()
    for reply, policy in zip(bench.sessions.steps(steps), policies, strict=True):
        assert isinstance(reply, StepReply)
        run, expected = 0, []
        for unsafe in above(reply.response, policy, RESPONSE_CATEGORY_ORDER):
            run = run + 1 if unsafe else 0
            expected.append(run)
        assert list(reply.run) == expected
        assert list(reply.flags.own) == [run >= policy.debounce for run in expected]
        assert list(reply.prompt_flags.own) == above(reply.prompt, policy, QUERY_CATEGORY_ORDER)
        by_level = Bench().ok(
            "s", tokens, start=True, query_index=2, response_start=3, policy=replace(policy, thresholds=None)
        )
        assert reply.flags[:2] == by_level.flags[:2]
        assert reply.prompt_flags[:2] == by_level.prompt_flags[:2]
        assert by_level.flags.own == (by_level.flags.strict if policy.strict else by_level.flags.loose)
        assert not any(expected) or policy.thresholds != Thresholds(1)
        seen.add(reply.flags.own)
    assert len(seen) > 20


def test_a_policy_decides_by_the_numbers_that_a_client_reads() -> None:
    """To the last bit, or a threshold between the two would tell them apart."""
    source = np.random.default_rng(5)
    levels, categories = (source.normal(size=(200, width)).astype(np.float32) for width in (3, 8))
    found = judge(levels, categories, RESPONSE_CATEGORY_ORDER)
    assert [risk for _, _, risk in found.rows()] == [1 - safe for safe in found.risk_probabilities[:, 0].tolist()]


def above(found: TokenJudgements, policy: Policy, order: Sequence[Category]) -> list[bool]:
    """The rule once more, from the probabilities alone."""
    limits = policy.thresholds
    assert limits
    unsafe = []
    for levels, categories in zip(
        found.risk_probabilities.tolist(), found.category_probabilities.tolist(), strict=True
    ):
        category = order[categories.index(max(categories))]
        threshold = limits.categories.get(category, limits.default)
        unsafe.append(1 - levels[0] > threshold and category in policy.blocked)
    return unsafe


def test_a_policy_comes_with_the_start_alone() -> None:
    bench = Bench()
    bench.ok("s", [1], start=True)
    [found] = bench.sessions.steps([Step("s", np.array([2]), 1, policy=Policy())])
    assert type(found) is errors.InvalidRequest


@pytest.mark.parametrize(
    ("name", "text"),
    [("slots", "0"), ("slots", "many"), ("slots", "-1"), ("idle_s", "soon"), ("idle_s", "nan"), ("strict", "yes")],
)
def test_a_wrong_parameter_is_named(name: str, text: str) -> None:
    options = Parameters({name: text})
    read = {"slots": lambda: options.whole(name, at_least=1), "idle_s": lambda: options.seconds(name)}
    with pytest.raises(errors.InvalidParameter, match=name):
        read.get(name, lambda: options.flag(name))()
    with pytest.raises(errors.InvalidParameter, match="missing"):
        options.whole("threads")


def test_the_parameter_thresholds_is_json_or_empty() -> None:
    def read(text: str) -> Thresholds | None:
        return Parameters({"thresholds": text}).thresholds("thresholds")

    assert read("") is None
    assert read(" ") is None
    assert read('{"default": 0.3, "categories": {"PII": 1}}') == Thresholds(0.3, {Category.PII: 1})
    for text, words in (
        ("{", "JSON such as"),
        ('{"default": NaN}', "from 0 to 1"),
        ('{"categories": {"X": 0}}', "there are"),
    ):
        with pytest.raises(errors.InvalidParameter, match=f"The parameter thresholds is wrong. The threshold.*{words}"):
            read(text)


def test_memory_is_the_machines_or_the_control_groups() -> None:
    assert 1 << 30 < memory_bytes() < 1 << 50


def test_a_long_step_gets_the_room_of_sessions_that_have_gone_idle_meanwhile() -> None:
    bench = Bench(slots=100, budget_bytes=SLOT, evict_s=5)
    bench.graph.pass_s = 2.0
    assert bench.ok("long", [1] * 590, start=True).pending
    bench.graph.pass_s = 0.0
    number = 0
    while isinstance(bench.step(str(number), [1, 2], start=True), StepReply):
        number += 1
    assert number > 0
    assert type(bench.step("long", [1] * 590, start=True)) is errors.Overloaded
    assert type(bench.step("long", [1], 0)) is errors.SessionLost  # a START that failed holds nothing
    bench.clock[0] += 6
    assert bench.ok("long", [1] * 590, start=True).length == 590


def test_a_long_step_whose_caller_has_hung_up_is_dropped_between_its_chunks() -> None:
    bench = Bench()
    asked = iter([False, False, True])
    bench.ok("s", [1], start=True)
    dropped = bench.step("s", [2] * 200, 1, is_abandoned=lambda: next(asked))
    assert type(dropped) is errors.Abandoned
    assert len(bench.graph.lengths) == 3  # the opening, and two chunks
    assert bench.ok("s", [2] * 200, 1).length == 201  # whoever comes back may send it again
    bench.step("t", [3] * 100, start=True, is_abandoned=lambda: True)
    assert type(bench.step("t", [3], 100)) is errors.SessionLost
    assert bench.ok("s", [2], 201, is_abandoned=lambda: True).length == 202  # a short step is not worth the question


def test_a_pending_step_keeps_nothing_of_its_request() -> None:
    bench = Bench()
    bench.graph.pass_s = 2.0  # longer than a turn
    reply = bench.ok("s", [1] * 100, start=True, is_abandoned=lambda: False)
    pending = bench.sessions._live["s"].pending
    assert reply.pending
    assert pending
    assert pending.step.is_abandoned is never
    assert type(bench.step("s", [1] * 100, start=True, is_abandoned=lambda: True)) is errors.Abandoned
