"""Numbers that are NaN or infinite: always an error, never a level, and nothing of them reaches another."""

from __future__ import annotations

import mmap
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwen3guard_client.moderation.cascade import Cascade
from qwen3guard_contract import errors
from qwen3guard_contract.forms import AttentionForm
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.policy import Policy
from qwen3guard_runtime.engine import prefixes
from qwen3guard_runtime.engine.kv_cache import HostArena, KVCache, Slot
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner
from qwen3guard_runtime.engine.prefixes import PrefixCache, PrefixLimits
from qwen3guard_runtime.engine.runner import Logits, Row
from qwen3guard_runtime.gen.guard import Answer, GenGuard, Question
from qwen3guard_runtime.stream.session import SessionLimits
from qwen3guard_runtime.stream.sessions import Sessions
from qwen3guard_runtime.stream.steps import Step, StepReply
from qwen3guard_runtime.telemetry import metrics
from qwen3guard_runtime.telemetry.metrics import GenMetrics, StreamMetrics
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from support.moderated import token
from support.overflowing import LETTER
from support.scripted import Scripted, ask
from support.scripted import guard as gen_guard
from support.token_sum import MANIFEST, TokenSum

BAD = 66
NOT_FINITE = "numbers are not finite"


class Spoiled(TokenSum):
    """A graph in which the token BAD spoils all that reads the slot it stands in, behind a mask too; of each token that
    is asked for, one number in one output."""

    def __init__(self, clock: list[float], value: float, output: int) -> None:
        super().__init__(clock)
        self.value, self.output = value, output

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        found = super().forward(rows)
        for row, outputs in zip(rows, found, strict=True):
            if BAD in row.slot.arena.arrays[0][row.slot.row, 0, :, 0]:  # type: ignore[attr-defined]
                outputs[self.output][:, -1] = self.value
        return found


class SpoiledBench:
    def __init__(self, value: float = np.nan, output: int = 0, *, slots: int = 4) -> None:
        self.clock = [0.0]
        self.graph = Spoiled(self.clock, value, output)
        self.cache = PrefixCache(KVCache(MANIFEST, slots=slots))
        self.metrics = StreamMetrics()
        limits = SessionLimits(idle_s=60, evict_s=0, turn_s=1.0, chunk_tokens=24, alone_tokens=24)
        self.sessions = Sessions(
            MANIFEST,
            self.graph,
            self.cache,
            policy=Policy(),
            limits=limits,
            clock=lambda: self.clock[0],
            metrics=self.metrics,
        )

    def step(self, session: str, ids: Sequence[int], position: int = 0, **flags: Any) -> StepReply | errors.GuardError:
        return self.sessions.steps([Step(session, np.array(ids, np.int64), position, **flags)])[0]

    def closed(self) -> dict[str, float]:
        return {reason: count for (reason,), count in counted(self.metrics, "qwen3guard_sessions_closed_total").items()}


def counted(told: metrics.GuardMetrics, name: str) -> dict[tuple[str, ...], float]:
    samples = (sample for metric in told.all() for sample in metric.samples())
    return {
        tuple(value for _, value in sample.labels): sample.value
        for sample in samples
        if sample.name == name and sample.value
    }


def refused(reply: object) -> bool:
    return type(reply) is errors.InternalError and NOT_FINITE in str(reply)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", range(4))
def test_any_number_of_any_head_fails_the_step_alone_and_ends_the_session(value: float, output: int) -> None:
    bench = SpoiledBench(value, output)
    for name in "abc":
        assert isinstance(bench.step(name, [1, 2], start=True), StepReply)
    found = bench.sessions.steps(
        [Step(name, np.array([each]), 2) for name, each in zip("abc", (3, BAD, 5), strict=True)]
    )
    assert [type(each) for each in found] == [StepReply, errors.InternalError, StepReply]
    assert refused(found[1])
    assert type(bench.step("b", [3], 2)) is errors.SessionLost
    assert bench.closed() == {"failed": 1}
    assert counted(bench.metrics, "qwen3guard_not_finite_total") == {("stream_guard",): 1}
    assert isinstance(bench.step("b", [1, 2, 3], start=True), StepReply)


@pytest.mark.parametrize(
    ("ids", "query_index", "response_start"),
    [
        ([BAD, 1, 2, 3], 2, 4),  # before the token where the prompt is judged
        ([1, 2, BAD, 3], 1, 4),  # behind it, where nothing is judged
        ([1, 2, 3, BAD], 1, 4),
        ([1, 2, 3, BAD], -1, 4),  # nothing is judged at all
        ([1, 2, 3, 4, BAD], 1, 4),
        ([1, 2, *range(3, 50), BAD, *range(3, 50)], 1, 97),  # in the middle of a step in many chunks
        ([1, 2, *range(3, 50), BAD, *range(3, 50)], 1, 2),  # and behind tokens that are judged
    ],
)
def test_wherever_it_stands_in_the_opening_step(ids: list[int], query_index: int, response_start: int) -> None:
    bench = SpoiledBench(slots=1)
    opening = {"start": True, "query_index": query_index, "response_start": response_start}
    assert refused(bench.step("s", ids, **opening))
    assert type(bench.step("s", [3], len(ids))) is errors.SessionLost
    clean = [each for each in ids if each != BAD]
    opening["response_start"] = min(response_start, len(clean))
    found, expected = (each.step("t", clean, **opening) for each in (bench, SpoiledBench()))
    assert isinstance(found, StepReply)
    assert isinstance(expected, StepReply)
    assert found.response.risk == expected.response.risk


def test_a_long_step_that_meets_one_is_pending_no_longer_and_leaves_nothing() -> None:
    bench = SpoiledBench(slots=1)
    assert isinstance(bench.step("s", [1], start=True), StepReply)
    bench.clock[0] = 0
    bench.graph.pass_s = 2.0
    ids = [3] * 60 + [BAD] + [3] * 200
    replies = []
    while isinstance(reply := bench.step("s", ids, 1), StepReply):
        assert reply.pending
        replies.append(reply)
    assert replies
    assert refused(reply)
    assert type(bench.step("s", ids, 1)) is errors.SessionLost
    assert bench.closed() == {"failed": 1}


def test_two_steps_of_one_session_in_a_batch() -> None:
    bench = SpoiledBench()
    assert isinstance(bench.step("s", [1], start=True), StepReply)
    found = bench.sessions.steps([Step("s", np.array([BAD]), 1), Step("s", np.array([4]), 1)])
    assert refused(found[0])
    assert type(found[1]) is errors.SessionLost


class SpoiledAnswers(Scripted):
    """Where a conversation begins with BAD, the logits after the token `at` of the answer are not finite."""

    at = 0
    value = np.nan

    def spoil(self, logits: np.ndarray, row: Row) -> None:
        if row.slot.arena.arrays[0][row.slot.row, 0, 0, 0] == BAD:  # type: ignore[attr-defined]
            for number, index in enumerate(row.asked):
                if row.slot.length + index >= 2 + self.at:
                    logits[number, 17] = self.value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_gen_fails_the_question_alone(at: int, drafts: bool, value: float) -> None:
    scripted = SpoiledAnswers(dict.fromkeys((1, BAD, 3), "Safety: Unsafe\nCategories: Violent"))
    scripted.at, scripted.value = at, value
    told = GenMetrics()
    gen: GenGuard = gen_guard(scripted, drafts=drafts)
    gen._metrics = told
    found = ask(gen, 1, BAD, 3)
    assert [type(each) for each in found] == [Answer, errors.InternalError, Answer]
    assert refused(found[1])
    assert counted(told, "qwen3guard_not_finite_total") == {("gen_guard",): 1}
    assert counted(told, "qwen3guard_answers_total") == {(): 2}
    assert gen.cache.live == 0


def test_gen_does_not_mind_numbers_that_it_does_not_use() -> None:
    """Behind a draft that was wrong."""
    scripted = SpoiledAnswers({BAD: "Nonsense"})
    scripted.at = len(scripted.answers[BAD]) - 1
    [found] = ask(gen_guard(scripted), BAD)
    assert refused(found)
    scripted.at = len(scripted.answers[BAD])
    [found] = ask(gen_guard(scripted), BAD)
    assert isinstance(found, Answer)
    assert found.text == "Nonsense"


def test_a_slot_with_such_numbers_behind_an_answer_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "WORTH_TOKENS", 2)
    question = Question(np.array([BAD, 7, 8]), response_mode=False, scope="a")
    for spoiled, held in ((0, 0), (100, 1)):
        scripted = SpoiledAnswers({BAD: "Nonsense"})
        scripted.at = len(scripted.answers[BAD]) + spoiled
        gen = gen_guard(scripted, limits=PrefixLimits(1 << 40))
        assert isinstance(gen.answer([question])[0], Answer)
        assert gen.cache.count == held


def full_arena(attention: AttentionForm, head_dim: int, *, slots: int) -> tuple[KVCache, list[Slot], HostArena]:
    """An arena whose slots are all taken, and hold 7 everywhere."""
    cache = KVCache(replace(MANIFEST, attention=attention, head_dim=head_dim), slots=slots)
    taken = [cache.acquire(10) for _ in range(slots)]
    arena = taken[0].arena
    assert isinstance(arena, HostArena)
    for array in arena.arrays:
        array[...] = 7
    return cache, taken, arena


@pytest.mark.parametrize("attention", ["decomposed", "int8"])
@pytest.mark.parametrize("head_dim", [1, 3, 8, 24, 64])
def test_a_slot_is_zero_for_its_next_owner_and_its_neighbours_are_left_alone(
    attention: AttentionForm, head_dim: int
) -> None:
    """Slots of less than a page, of a page and a bit, and of many."""
    cache, slots, arena = full_arena(attention, head_dim, slots=5)
    cache.release(slots[2])
    cache.grow(slots[3], 400)
    for array in arena.arrays:
        assert [np.unique(array[row]).tolist() for row in range(5)] == [[7], [7], [0], [0], [7]]


@pytest.mark.parametrize("attention", ["decomposed", "int8"])
@pytest.mark.parametrize("head_dim", [1, 3, 24, 32])
def test_memory_that_nobody_uses_is_given_back(attention: AttentionForm, head_dim: int) -> None:
    """Slots that end within pages, in random order, and free slots that passes wrote to."""
    cache, slots, arena = full_arena(attention, head_dim, slots=40)
    assert resident_pages(arena) >= sum(array.nbytes for array in arena.arrays) // mmap.PAGESIZE
    random.Random(2).shuffle(slots)
    for slot in slots[:-1]:
        cache.release(slot)
    for array in arena.arrays:
        free = [row for row in range(40) if row != slots[-1].row]
        assert (array[slots[-1].row] == 7).all()
        assert not array[free].any()
        array[free] = 7  # as padding does
    cache.release(slots[-1])
    assert resident_pages(arena) == 0


def resident_pages(arena: HostArena) -> int:
    """How many pages of the arena's arrays take memory (Linux's /proc/self/pagemap, bit 63)."""
    pages = 0
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        for array in arena.arrays:
            first = array.ctypes.data // mmap.PAGESIZE
            pagemap.seek(8 * first)
            last = -(-(array.ctypes.data + array.nbytes) // mmap.PAGESIZE)
            entries = np.frombuffer(pagemap.read(8 * (last - first)), np.uint64)
            pages += int((entries >> np.uint64(63)).sum())
    return pages


def real(folder: Path, *, slots: int) -> Sessions:
    manifest = Manifest.read(folder)
    limits = SessionLimits(idle_s=60, evict_s=0, turn_s=9.0, chunk_tokens=16, alone_tokens=16)
    cache, runner = PrefixCache(KVCache(manifest, slots=slots)), OnnxRunner(folder, manifest)
    return Sessions(manifest, runner, cache, policy=Policy(), limits=limits, clock=lambda: 0.0)


def test_a_real_graph_is_right_or_an_error_whatever_was_written_and_taken_back(overflowing_repository: Path) -> None:
    """Random steps, rewinds, and three users of two slots, against a session that never meets the token
    and reads at once what they hold."""
    folder = overflowing_repository / "stream_guard/1"
    [bad] = GuardTokenizer.load(folder).encode(LETTER)
    sessions, alone, source = real(folder, slots=2), real(folder, slots=1), random.Random(4)
    held: dict[int, list[int]] = {}
    right = wrong = 0
    for _ in range(400):
        name = source.randrange(3)
        ids = [source.randrange(10, 90) for _ in range(source.choice((1, 2, 9, 40)))]
        if source.random() < 0.15:
            ids.insert(source.randrange(len(ids) + 1), bad)
        start = name not in held or source.random() < 0.1
        position = 0 if start else source.randint(0, min(300, len(held[name])))
        [found] = sessions.steps([Step(name, np.array(ids), position, start=start)])
        if isinstance(found, StepReply):
            assert bad not in ids
            held[name] = ([] if start else held[name][:position]) + ids
            [expected] = alone.steps([Step("s", np.array(held[name]), 0, start=True)])
            assert isinstance(expected, StepReply)
            likely = expected.response.risk_probabilities[position:]
            np.testing.assert_allclose(found.response.risk_probabilities, likely, atol=1e-5)
            right += 1
        else:
            assert bad in ids if refused(found) else type(found) is errors.SessionLost  # for another user of its slot
            held.pop(name, None)
            wrong += refused(found)
    assert right > 200
    assert wrong > 30


def test_a_flag_is_not_overruled_by_a_gen_that_cannot_say() -> None:
    asking = Cascade("strict", "p", None).tokens([token(3, 1, True)])
    next(asking)
    with pytest.raises(errors.InternalError):
        asking.throw(errors.InternalError("The model's numbers are not finite."))
