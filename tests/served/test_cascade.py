"""The cascade over both served guards."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest
from qwen3guard_client import AsyncGuardClient, Classification, GuardClient, Moderation, Policy, Segment, Thresholds
from qwen3guard_client.moderation.cascade import Cascade, Confirm
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors
from qwen3guard_server.server import EmbeddedServer
from support.moderated import PROMPT, SAFE, TURNS, UNSAFE_PROMPT, text_of
from support.texts import cut

WORDS = [word + " " for word in TURNS.split(" ")]


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
    """However the response is cut and however fast it is written, against Gen asked by hand at the same places."""
    with guard.stream(prompt, policy=policy) as stream:
        verdict = stream.prompt_verdict
        expected = verdict.flag and decides(guard.classify(prompt), confirm)
        cleared, written, judged = False, "", 0
        for word in WORDS:
            if expected:
                break
            written += word
            stream.step(word)
            final = stream.final_verdicts
            for each in final[judged:]:
                cleared = cleared and each.run > 1
                if each.flag and not cleared:
                    expected = decides(guard.classify(prompt, written[: each.end]), confirm)
                    cleared = not expected
                    if expected:
                        break
            judged = len(final)
    text = "".join(WORDS)
    seen = set()
    running: list[Moderation] = []
    slowly = one_by_one(lambda: running[0], WORDS)
    for source in (slowly, WORDS, [text], [text[:60], text[60:130], text[130:]]):
        moderated = guard.moderate(source, prompt=prompt, confirm=confirm, policy=policy)
        running.append(moderated)
        shown = text_of(moderated)
        assert (moderated.flag is not None) == expected
        assert moderated.asked > 0
        assert text.startswith(shown)
        assert expected or shown == text
        seen.add((shown, moderated.asked, moderated.overruled))
    assert len(seen) == 1


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


def test_a_gen_that_is_not_served_is_an_error_and_no_release(stream_server: EmbeddedServer) -> None:
    with GuardClient(stream_server.url) as guard:
        shown: list[Segment] = []
        with pytest.raises(errors.GuardNotServed):
            shown.extend(guard.moderate([TURNS], prompt=PROMPT, confirm="strict"))
        assert len(text_of(shown)) < len(TURNS)
