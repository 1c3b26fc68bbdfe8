"""A cascade: Gen's word against Stream's flags, on its rule alone and through both served guards."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import serve, stream_repository, wait_ready
from qwen3guard_client import AsyncGuardClient, Classification, GuardClient, Policy, RiskLevel, Thresholds, TokenVerdict
from qwen3guard_client.moderation.cascade import Cascade, Confirm
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors
from qwen3guard_contract.labels import AnswerStatus
from test_moderate import PROMPT, SAFE, TURNS, UNSAFE_PROMPT, text_of, token
from texts import cut

WORDS = [word + " " for word in TURNS.split(" ")]


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
            for each in ask(cascade.tokens(batch), lambda _, given=given: found(next(given)))
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


def test_gen_reads_the_conversation_as_far_as_it_goes() -> None:
    asked: list[Any] = []

    def answer(call: Call[Any]) -> Classification:
        asked.append({tensor.name: value for tensor, value in call.values.items()})
        return found(True)

    flagged = [token(3, 1, True)]
    cascade = Cascade("loose", None, '[{"role": "user", "content": "Hi."}]')
    cascade.wrote("One, ")
    cascade.wrote("two.")
    ask(cascade.tokens(flagged), answer)
    assert asked == [
        {"MESSAGES": [b'[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "One, two."}]']}
    ]
    cascade = Cascade("loose", "Hi.", None)
    cascade.wrote("One.")
    ask(cascade.tokens(flagged), answer)
    assert asked[1] == {"PROMPT": [b"Hi."], "RESPONSE": [b"One."]}


def test_a_word_that_is_no_mode_and_ids_that_gen_cannot_read_are_refused(guard: GuardClient) -> None:
    with pytest.raises(errors.InvalidRequest, match="'yes' is not one of strict, loose"):
        guard.moderate([SAFE], prompt=PROMPT, confirm="yes")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidRequest, match="Gen confirms text alone"):
        list(guard.moderate([[5, 6, 7]], prompt=PROMPT, confirm="strict"))


@pytest.mark.parametrize("prompt", [PROMPT, UNSAFE_PROMPT])
@pytest.mark.parametrize(
    ("confirm", "policy"), [("strict", None), ("loose", None), ("loose", Policy(thresholds=Thresholds(0.05)))]
)
def test_a_flag_stands_where_gen_agrees(
    guard: GuardClient, prompt: str, confirm: Confirm, policy: Policy | None
) -> None:
    """Word by word, each checked before the next, against Gen asked by hand at the same places."""
    with guard.stream(prompt, policy=policy) as stream:
        verdict = stream.prompt_verdict
        expected = verdict.flag and decides(guard.classify(prompt), confirm)
        cleared, written, seen = False, "", 0
        for word in WORDS:
            if expected:
                break
            written += word
            stream.step(word)
            final = stream.final_verdicts
            for each in final[seen:]:
                cleared = cleared and each.run > 1
                if each.flag and not cleared:
                    expected = decides(guard.classify(prompt, written), confirm)
                    cleared = not expected
                    if expected:
                        break
            seen = len(final)
    source = one_by_one(lambda: moderated, WORDS)
    moderated = guard.moderate(source, prompt=prompt, confirm=confirm, policy=policy)
    shown = text_of(moderated)
    assert (moderated.flag is not None) == expected
    assert moderated.asked > 0
    assert "".join(WORDS).startswith(shown)
    assert expected or shown == "".join(WORDS)


def decides(classification: Classification, mode: str) -> bool:
    return classification.strict if mode == "strict" else classification.loose


def one_by_one(moderation: Callable[[], Any], words: Sequence[str]) -> Generator[str, None, None]:
    """Writes a word when all that came before was judged, as far as it can be."""
    for number, word in enumerate(words):
        yield word
        if number == len(words) - 1:
            return
        before = len(moderation().verdicts)
        for _ in range(200):
            if len(moderation().verdicts) > before or moderation().flag:
                break
            time.sleep(0.01)


def test_what_gen_overrules_is_shown_to_the_end(guard: GuardClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same response, with Gen's answers turned round: nothing is lost, nothing comes twice."""
    monkeypatch.setattr(Cascade, "_ask", overruling)
    for release in ("after_check", "before_check"):
        moderated = guard.moderate(cut(TURNS, random.Random(1)), prompt=UNSAFE_PROMPT, release=release, confirm="loose")
        assert text_of(moderated) == TURNS
        assert moderated.flag is None
        assert moderated.overruled == moderated.asked >= 2


def overruling(self: Cascade, call: Call[Any]) -> Generator[Call[Any], Classification, bool]:
    self.asked += 1
    self.overruled += 1
    yield call
    return False


def test_the_async_one_agrees_with_the_sync_one(server: Any, guard: GuardClient) -> None:
    moderated = guard.moderate([TURNS], prompt=PROMPT, confirm="strict", on_flag="mark")
    segments = list(moderated)

    async def same() -> tuple[list[Any], int, int]:
        async with AsyncGuardClient(server.url) as awaited:
            found = awaited.moderate([TURNS], prompt=PROMPT, confirm="strict", on_flag="mark")
            return [segment async for segment in found], found.asked, found.overruled

    others, asked, overruled = asyncio.run(same())
    assert others == segments
    assert (asked, overruled) == (moderated.asked, moderated.overruled)
    assert asked > 0


def test_a_gen_that_is_not_served_is_an_error_and_no_release(repository: Any, tmp_path: Any) -> None:
    with serve(stream_repository(repository, tmp_path)) as alone:
        wait_ready(alone)
        with GuardClient(alone.url) as guard:
            shown = []
            with pytest.raises(errors.GuardNotServed):
                shown.extend(guard.moderate([TURNS], prompt=PROMPT, confirm="strict"))
            assert len(text_of(shown)) < len(TURNS)
