"""Gen's reading of answers, and its batches, with a scripted graph."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from qwen3guard_client import Policy, Thresholds
from qwen3guard_contract import errors, wire
from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, AnswerStatus, Category, Refusal, RiskLevel
from qwen3guard_contract.manifest import Canary
from qwen3guard_contract.messages import Message
from qwen3guard_runtime.engine.prefixes import common_length
from qwen3guard_runtime.gen.answer import CATEGORIES_FIELD, REFUSAL_FIELD, SAFETY, AnswerReader, AnswerVerdict, Field
from qwen3guard_runtime.gen.guard import Answer, GenGuard, Question
from qwen3guard_runtime.gen.models import GenGuardModel
from qwen3guard_runtime.gen.template_prefixes import template_prefixes
from qwen3guard_runtime.request import Request
from qwen3guard_runtime.telemetry.metrics import GenMetrics
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from support.places import DEMO
from support.scripted import TOKENIZER, VOCAB, Scripted, ask, guard

DECISIONS = {field: np.ones(len(field.values), np.float32) for field in (SAFETY, CATEGORIES_FIELD, REFUSAL_FIELD)}


def test_answers_are_read_field_by_field() -> None:
    gen = guard(
        Scripted(
            {
                1: "Safety: Safe\nCategories: None",
                2: "Safety: Unsafe\nCategories: Violent, Jailbreak",
                3: "Safety: Controversial\nCategories: PII\nRefusal: No",
            }
        )
    )
    safe, unsafe = (gen.read(answer) for answer in ask(gen, 1, 2) if isinstance(answer, Answer))
    assert (safe.severity, safe.categories, safe.refusal) == (RiskLevel.SAFE, (), None)
    assert (unsafe.severity, unsafe.categories) == (RiskLevel.UNSAFE, (Category.VIOLENT, Category.JAILBREAK))
    [answer] = ask(gen, 3, response_mode=True)
    assert isinstance(answer, Answer)
    found = gen.read(answer)
    assert (found.severity, found.categories, found.refusal) == (
        RiskLevel.CONTROVERSIAL,
        (Category.PII,),
        Refusal.NO,
    )
    expected = np.exp(5) / (np.exp(5) + np.arange(1, 3).size)
    assert found.probabilities[SAFETY].tolist() == pytest.approx([1 / (2 + np.exp(5))] * 2 + [expected])
    assert answer.logprobs[0] == pytest.approx(5 - np.log(np.exp(5) + VOCAB - 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Safety:",
        "Safety: Un",
        "Safety: Safely",
        "Safety: Unsafe2\nCategories: Violent",
        "Safety: Maybe\nCategories: None",
        "I am sorry.",
        "Well.\nSafety: Safe\nCategories: None",
        "Safety: Safe\nCategories: None\nSafety: Unsafe",
        "Safety: Safe\nSafety: Unsafe\nCategories: Violent",
    ],
)
@pytest.mark.parametrize("ended", [True, False])
def test_what_has_not_one_level_is_an_error(text: str, ended: bool) -> None:
    for response_mode in (False, True):
        with pytest.raises(errors.UnreadableAnswer):
            AnswerReader(TOKENIZER).read(text, response_mode=response_mode, decisions=DECISIONS, ended=ended)
    with pytest.raises(errors.UnreadableAnswer):
        AnswerReader(TOKENIZER).read("Safety: Safe\nCategories: None", response_mode=False, decisions={})


VIOLENT = (Category.VIOLENT,)
BROKEN = [  # response mode, the answer, its categories, its refusal, and the fields that were decided
    (False, "Safety: {}", (), None, {SAFETY}),
    (False, "Safety: {} and more", (), None, {SAFETY}),
    (False, "Safety: {}!\nCategories: Violent", VIOLENT, None, {SAFETY, CATEGORIES_FIELD}),
    (False, "Safety: {}\nCategory: Violent", (), None, {SAFETY}),
    (False, "Safety: {}\n\nCategories: Violent", (), None, {SAFETY}),
    (False, "Safety: {}\nCategories:", (), None, {SAFETY}),
    (False, "Safety: {}\nCategories: Weather", (), None, {SAFETY, CATEGORIES_FIELD}),
    (False, "Safety: {}\nCategories: Violent, Weather", (), None, {SAFETY, CATEGORIES_FIELD}),
    (False, "Safety: {}\nCategories: Violent\nRefusal: No", VIOLENT, None, {SAFETY, CATEGORIES_FIELD}),
    (True, "Safety: {}\nCategories: Violent", VIOLENT, None, {SAFETY, CATEGORIES_FIELD}),
    (
        True,
        "Safety: {}\nCategories: Violent\nRefusal: Perhaps",
        VIOLENT,
        None,
        {SAFETY, CATEGORIES_FIELD, REFUSAL_FIELD},
    ),
    (
        True,
        "Safety: {}\nCategories: Violent\nRefusal: Yes\nx",
        VIOLENT,
        Refusal.YES,
        {SAFETY, CATEGORIES_FIELD, REFUSAL_FIELD},
    ),
    (True, "Safety: {}\nCategories: Weather\nRefusal: Yes", (), Refusal.YES, {SAFETY, CATEGORIES_FIELD, REFUSAL_FIELD}),
    (True, "Safety: {}\nRefusal: Yes", (), None, {SAFETY}),
]


HARMFUL = (RiskLevel.UNSAFE, RiskLevel.CONTROVERSIAL)


@pytest.mark.parametrize(("response_mode", "text"), [each[:2] for each in BROKEN])
def test_a_broken_answer_that_begins_with_safe_is_no_verdict(response_mode: bool, text: str) -> None:
    with pytest.raises(errors.UnreadableAnswer, match="begins with Safe"):
        AnswerReader(TOKENIZER).read(text.format("Safe"), response_mode=response_mode, decisions=DECISIONS)


@pytest.mark.parametrize("text", ["Safety: Safe/Unsafe\nCategories: None", "Safety: Safe\nCategories: Violent"])
def test_a_safe_that_contradicts_itself_is_no_verdict(text: str) -> None:
    with pytest.raises(errors.UnreadableAnswer):
        AnswerReader(TOKENIZER).read(text, response_mode=False, decisions=DECISIONS)


@pytest.mark.parametrize("level", HARMFUL)
@pytest.mark.parametrize(("response_mode", "text", "categories", "refusal", "decided"), BROKEN)
def test_a_broken_answer_has_its_level_and_what_could_be_read(
    *,
    level: RiskLevel,
    response_mode: bool,
    text: str,
    categories: tuple[Category, ...],
    refusal: Refusal | None,
    decided: set[Field],
) -> None:
    text = text.format(level.value)
    found = AnswerReader(TOKENIZER).read(text, response_mode=response_mode, decisions=DECISIONS)
    assert (found.severity, found.categories, found.refusal) == (level, categories, refusal)
    assert (found.status, set(found.probabilities)) == (AnswerStatus.UNREADABLE, decided)
    assert [category for _, category, _ in found.rows()] == list(categories or QUERY_CATEGORY_ORDER)


@pytest.mark.parametrize("level", HARMFUL)
def test_an_answer_that_was_cut_has_its_level_and_its_whole_lines(level: RiskLevel) -> None:
    text = f"Safety: {level.value}\nCategories: Violent, Sexual Content or Sexual Acts\nRefusal: No"
    reader = AnswerReader(TOKENIZER)
    first = len(f"Safety: {level.value}")
    for end in range(first, len(text) + 1):
        found = reader.read(text[:end], response_mode=True, decisions=DECISIONS, ended=False)
        assert (found.severity, found.status, found.refusal) == (level, AnswerStatus.CUT, None)
        assert bool(found.categories) == (text[:end].count("\n") == 2)
    whole = reader.read(text, response_mode=True, decisions=DECISIONS)
    assert (whole.status, len(whole.categories), whole.refusal) == (AnswerStatus.COMPLETE, 2, Refusal.NO)


def test_a_label_that_comes_again_decides_nothing() -> None:
    [answer] = ask(guard(Scripted({1: "Safety: Unsafe\nCategories: PII\nCategories: Violent\nSafety:"})), 1)
    assert isinstance(answer, Answer)
    found = guard(Scripted({})).read(answer)
    assert (found.severity, found.categories) == (RiskLevel.UNSAFE, (Category.PII,))
    assert int(found.probabilities[CATEGORIES_FIELD].argmax()) == QUERY_CATEGORY_ORDER.index(Category.PII)
    assert found.status is AnswerStatus.UNREADABLE


def model(answers: dict[int, str], policy: Policy) -> GenGuardModel:
    """gen_guard over a scripted graph."""
    made = object.__new__(GenGuardModel)
    made._guard_lock = threading.Lock()
    files = SimpleNamespace(check=lambda: None)
    vars(made).update(slots=8, _guard=guard(Scripted(answers)), _policy=policy, _notice="", _files=files)
    made._metrics = GenMetrics()
    return made


def asked_for(first: int, *wanted: wire.Tensor) -> Request:
    return Request({wire.INPUT_IDS.name: np.array([first, 7, 8])}, frozenset(tensor.name for tensor in wanted))


def test_the_server_answers_with_what_could_be_read_and_fails_closed() -> None:
    answers = {
        1: "Safety: Unsafe\n" + "nothing that has a form " * 40,
        2: "Safety: Unsafe\nSomething else",
        3: "Who knows?",
        4: "Who knows? " * 40,
        5: "Safety: Safe\nSomething else",
    }
    served = model(answers, Policy(strict=False, blocked=frozenset({Category.COPYRIGHT})))
    cut, unreadable, *lost = served.handle([asked_for(first, *wire.GEN_GUARD.outputs) for first in answers])
    for found, status in ((cut, "cut"), (unreadable, "unreadable")):
        assert not isinstance(found, errors.GuardError)
        assert found.keys() == {tensor.name for tensor in wire.GEN_GUARD.outputs}
        assert found["ANSWER_STATUS"] == [status]
        assert [found[name] for name in ("STRICT_UNSAFE", "LOOSE_UNSAFE", "UNSAFE")] == [True] * 3
        assert (found["CATEGORIES"], found["REFUSAL"]) == ([], [])
        assert [len(found[f"{name}_PROBABILITIES"]) for name in ("SEVERITY", "CATEGORIES", "REFUSAL")] == [3, 0, 0]
    assert [type(found) for found in lost] == [errors.UnreadableAnswer] * 3
    raw = (wire.ANSWER, wire.ANSWER_IDS, wire.ANSWER_LOGPROBS, wire.ANSWER_STATUS)
    alone = served.handle([asked_for(first, *raw) for first in answers])
    assert [found["ANSWER_STATUS"][0] for found in alone] == ["cut", "unreadable", "unreadable", "cut", "unreadable"]  # type: ignore[index]
    assert alone[2]["ANSWER"] == ["Who knows?"]  # type: ignore[index]
    samples = (sample for metric in served._metrics.all() for sample in metric.samples())
    broken = {sample.labels: sample.value for sample in samples if sample.name == "qwen3guard_broken_answers_total"}
    assert broken == {(("status", "cut"),): 4, (("status", "unreadable"),): 6}


def test_a_broken_answer_is_unsafe_by_the_least_threshold_there_is() -> None:
    for limits, unsafe in ((Thresholds(1.0, {Category.PII: 0.01}), True), (Thresholds(1.0), False)):
        served = model({5: "Safety: Controversial\nSomething else"}, Policy(thresholds=limits))
        [found] = served.handle([asked_for(5, wire.UNSAFE)])
        assert found["UNSAFE"] == unsafe  # type: ignore[index]


@pytest.mark.parametrize("response_mode", [False, True])
@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("Safety: Safe\nCategories: None", 1),
        ("Safety: Unsafe\nCategories: Violent", 2),
        ("Safety: Controversial\nCategories: PII", 3),
        ("Safety: Unsafe\nCategories: Violent, Jailbreak", None),
        ("Safety: Safe\nCategories: PII", None),
        ("I cannot say.", None),
        ("Safety: Safe" + " a" * 200, None),
    ],
)
def test_a_draft_changes_nothing_but_the_number_of_passes(text: str, passes: int | None, response_mode: bool) -> None:
    """Right, wrong in the middle, wrong at once, and longer than an answer may be."""
    answer = text + "\nRefusal: No" if response_mode and passes else text
    found = {}
    for drafts in (False, True):
        gen = guard(Scripted({1: answer}), drafts=drafts)
        [one] = ask(gen, 1, response_mode=response_mode)
        assert isinstance(one, Answer)
        found[drafts] = (one.ids, one.logprobs, one.text, one.ended, {f: p.tolist() for f, p in one.decisions.items()})
        if drafts and passes:
            assert one.passes == passes
        if not drafts:
            assert one.passes == len(one.ids)
    assert found[True] == found[False]


def test_drafts_of_a_batch_are_verified_row_by_row() -> None:
    answers = {
        1: "Safety: Safe\nCategories: None",
        2: "Safety: Unsafe\nCategories: Jailbreak",
        3: "Nonsense",
        4: "Safety: Controversial\nCategories: PII",
    }
    together = ask(guard(Scripted(answers)), 1, 2, 3, 4, 1)
    for first, one in zip((1, 2, 3, 4, 1), together, strict=True):
        [alone] = ask(guard(Scripted(answers), drafts=False), first)
        assert isinstance(one, Answer)
        assert isinstance(alone, Answer)
        assert (one.ids, one.logprobs) == (alone.ids, alone.logprobs)


def test_a_held_head_is_computed_once() -> None:
    answers = dict.fromkeys((1, 2), "Safety: Safe\nCategories: None")
    without, held = Scripted(answers), Scripted(answers)
    plain, fast = guard(without), guard(held, prefixes=[[1, 7], [2, 7, 8, 9]])
    for first in (1, 2, 1, 2):
        before = held.computed
        [one], [other] = ask(plain, first), ask(fast, first)
        assert isinstance(one, Answer)
        assert isinstance(other, Answer)
        assert (one.ids, one.logprobs) == (other.ids, other.logprobs)
        assert held.computed - before < without.computed
        assert held.computed - before == len(other.ids)  # one token of the question, and all but the end of the answer


def test_the_heads_are_the_templates() -> None:
    template = ChatTemplate.load(DEMO / "gen")
    heads = template_prefixes(template, 2048)
    for messages in (
        [Message("user", "How do I bake bread?")],
        [Message("user", "!!"), Message("assistant", "?!"), Message("user", "\n\nok")],
        [Message("user", "Hi."), Message("assistant", " I'm fine. ")],
    ):
        ids = np.array(template.render(messages, 2048))
        longest = max(common_length(ids, head) for head in heads)
        assert longest == len(heads[messages[-1].role == "assistant"])


def test_an_answer_without_an_end_is_cut() -> None:
    gen = guard(Scripted({1: "Safety: Unsafe\nCategories: PII" + " a" * 200}))
    [answer] = ask(gen, 1)
    assert isinstance(answer, Answer)
    found = gen.read(answer)
    assert (found.status, found.severity, found.categories) == (AnswerStatus.CUT, RiskLevel.UNSAFE, ())


def test_a_question_that_breaks_the_graph_fails_alone() -> None:
    answers = dict.fromkeys((1, 2, 3), "Safety: Safe\nCategories: None")
    found = ask(guard(Scripted(answers, poison=2)), 1, 2, 3)
    assert [type(each) for each in found] == [Answer, errors.InternalError, Answer]


def test_slots_come_back_after_errors() -> None:
    gen = guard(Scripted({1: "Safety: Safe\nCategories: None"}, poison=2))
    for _ in range(20):
        ask(gen, 2, 2, 2, 2, 2, 2, 2, 2)
    assert isinstance(ask(gen, 1)[0], Answer)


def test_what_a_policy_decides_by() -> None:
    likely = np.linspace(0, 1, len(CATEGORIES_FIELD.values), dtype=np.float32)  # the answer None is the likeliest
    found = {SAFETY: np.array([0.7, 0.2, 0.1], np.float32), CATEGORIES_FIELD: likely}
    risk = 1 - float(np.float32(0.7))
    named = AnswerVerdict(RiskLevel.UNSAFE, (Category.PII, Category.VIOLENT), None, found)
    assert list(named.rows()) == [(RiskLevel.UNSAFE, each, risk) for each in named.categories]
    assert list(AnswerVerdict(RiskLevel.SAFE, (), None, found).rows()) == [(RiskLevel.SAFE, Category.JAILBREAK, risk)]


def test_a_tokenizer_that_merges_labels_is_a_mismatch() -> None:
    class Merging(GuardTokenizer):
        def encode(self, text: str) -> list[int]:
            return [hash(text)]

    with pytest.raises(errors.TokenizerMismatch):
        AnswerReader(Merging((DEMO / "gen" / "tokenizer.json").read_text(encoding="utf-8")))


CANARY = (4, 7, 8)


def canary(gen: GenGuard, *, beside: int | None = None) -> Answer:
    questions = [Question(np.array(CANARY), response_mode=False, canary=True)]
    questions += [] if beside is None else [Question(np.array([beside, 7, 8]), response_mode=False)]
    answer = gen.answer(questions)[0]
    assert isinstance(answer, Answer)
    return answer


def test_a_canary_takes_one_pass_and_counts_as_nothing_else() -> None:
    told, graph = GenMetrics(), Scripted({1: "Safety: Safe\nCategories: None", 4: "Nothing that is ever drafted."})
    gen = guard(graph)
    gen._manifest = replace(gen._manifest, canary=Canary(CANARY, (0.0,) * 5, 0.1))
    gen._metrics = told
    first = canary(gen)
    assert first.passes > 1  # nothing is known of its answer yet
    again = canary(gen, beside=1)
    assert (again.ids, again.logprobs, again.passes) == (first.ids, first.logprobs, 1)
    assert len(first.ids) == 5  # as many as the manifest compares
    moved = {sample.name: sample.value for metric in told.all() for sample in metric.samples() if sample.value}
    assert moved["qwen3guard_canary_passes_total"] == first.passes + 1
    assert moved["qwen3guard_canary_seconds_count"] == 2
    assert moved["qwen3guard_answers_total"] == moved["qwen3guard_pass_seconds_count"] == 1


def test_only_the_manifests_canary_is_one() -> None:
    served = model({1: "Safety: Unsafe\nCategories: Violent"}, Policy())
    served._canary_ids = (1, 7, 8)
    for canary_ids, counted in ((CANARY, 1), ((1, 7, 8), 0)):
        served._canary_ids = canary_ids
        served._metrics = GenMetrics()
        served.handle([replace(asked_for(1, wire.ANSWER_LOGPROBS), canary=True)])
        verdicts = [s.value for m in served._metrics.all() for s in m.samples() if s.name.endswith("verdicts_total")]
        assert sum(verdicts) == counted


def test_an_answer_that_nobody_waits_for_is_not_written_to_its_end() -> None:
    gen = guard(Scripted({1: "Safety: Safe\nCategories: None", 2: "Something else " * 20}), drafts=False)
    gone = Question(np.array([2, 7, 8]), response_mode=False, is_abandoned=lambda: True)
    dropped, answered = gen.answer([gone, Question(np.array([1, 7, 8]), response_mode=False)])
    assert type(dropped) is errors.Abandoned
    assert isinstance(answered, Answer)
    assert answered.text == "Safety: Safe\nCategories: None"
