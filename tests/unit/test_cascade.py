"""A cascade: Gen's word against Stream's flags, on its rule alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from qwen3guard_client import Classification, RiskLevel, TokenVerdict
from qwen3guard_client.moderation.cascade import Cascade
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors
from qwen3guard_contract.labels import AnswerStatus
from support.moderated import token


def found(unsafe: bool, status: AnswerStatus = AnswerStatus.COMPLETE) -> Classification:
    level = RiskLevel.UNSAFE if unsafe else RiskLevel.SAFE
    return Classification(level, (), None, {}, {}, {}, unsafe, unsafe, unsafe, "", "", status)


def ask(asking: Generator[Call[Any], Any, Any], answer: Callable[[Call[Any]], Classification]) -> Any:
    try:
        call = next(asking)
        while True:
            call = asking.send(answer(call))
    except StopIteration as done:
        return done.value


def stretch(source: random.Random, debounce: int) -> list[TokenVerdict]:
    tokens, run = [], 0
    for end in range(1, source.randint(2, 60)):
        run = run + 1 if source.random() < 0.5 else 0
        tokens.append(token(end, run, run >= debounce))
    return tokens


def batches(source: random.Random, tokens: Sequence[TokenVerdict]) -> list[Sequence[TokenVerdict]]:
    cuts = sorted(source.sample(range(len(tokens) + 1), min(3, len(tokens))))
    return [tokens[start:end] for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]


def test_gen_is_asked_once_a_run_and_its_answer_is_kept_for_all_of_it() -> None:
    """However the tokens are cut into batches: what it overrules is no flag and no run, all else is as it was."""
    source = random.Random(3)
    for _ in range(300):
        debounce = source.randint(1, 3)
        tokens = stretch(source, debounce)
        runs = [at for at, each in enumerate(tokens) if each.flag and (at == 0 or not tokens[at - 1].flag)]
        answers = [source.random() < 0.5 for _ in runs]
        cascade, given = Cascade("strict", "p", None), iter(answers)
        judged = [
            each
            for batch in batches(source, tokens)
            for each in ask(cascade.tokens(batch), lambda _, given=given: found(next(given)))  # type: ignore[misc]
        ]
        assert (cascade.asked, cascade.overruled) == (len(runs), answers.count(False))
        stands = dict(zip(runs, answers, strict=True))
        current = True
        for at, (before, after) in enumerate(zip(tokens, judged, strict=True)):
            current = stands.get(at, current) if before.flag else True
            assert after == (before if current else replace(before, flag=False, run=0))


def test_a_flag_stands_where_gen_gives_no_verdict() -> None:
    cascade = Cascade("strict", "p", None)
    asking = cascade.tokens([token(3, 1, True)])
    next(asking)
    with pytest.raises(StopIteration) as done:
        asking.throw(errors.UnreadableAnswer("The model's answer cannot be read as a verdict."))
    assert done.value.value == [token(3, 1, True)]
    assert cascade.overruled == 0


@pytest.mark.parametrize("status", [AnswerStatus.CUT, AnswerStatus.UNREADABLE])
def test_an_answer_that_broke_off_overrules_nothing(status: AnswerStatus) -> None:
    cascade = Cascade("loose", "p", None)
    assert ask(cascade.tokens([token(3, 1, True)]), lambda _: found(False, status)) == [token(3, 1, True)]
    assert (cascade.asked, cascade.overruled) == (1, 0)


def test_gen_reads_the_conversation_up_to_the_flagged_token() -> None:
    asked: list[Any] = []

    def answer(call: Call[Any]) -> Classification:
        asked.append({tensor.name: value for tensor, value in call.values.items()})
        return found(True)

    flagged = [token(9, 1, True)]
    cascade = Cascade("loose", None, '[{"role": "user", "content": "Hi."}]')
    cascade.wrote("One, ")
    cascade.wrote("two. Three.")
    ask(cascade.tokens(flagged), answer)
    assert asked == [
        {"MESSAGES": [b'[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "One, two."}]']}
    ]
    cascade = Cascade("loose", "Hi.", None)
    cascade.wrote("One. Two.")
    ask(cascade.tokens([token(4, 1, True)]), answer)
    assert asked[1] == {"PROMPT": [b"Hi."], "RESPONSE": [b"One."]}
