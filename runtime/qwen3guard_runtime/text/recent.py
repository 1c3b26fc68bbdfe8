"""Leaves out the oldest turns of a conversation that does not fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from qwen3guard_contract.errors import TextTooLong
from qwen3guard_contract.messages import Message

from qwen3guard_runtime.text.chat import ChatTemplate


def render_recent(
    template: ChatTemplate, messages: Sequence[Message], limit: int, room: int = 0
) -> tuple[list[int], int]:
    """The token ids of a conversation without its oldest turns, and how many turns that are.

    As few are left out as must be for `limit - room` tokens. What is left begins with a user's turn, after the system's
    turns, which stay. The last turn, and for a response the prompt before it, always stay. If these are too long, they
    may have `limit` tokens, and for that the oldest of the system's turns are left out too.

    Raises what `ChatTemplate.render` raises.
    """
    try:
        return template.render(messages, limit - room), 0
    except TextTooLong:
        pass

    def fits(turns: Sequence[Message], limit: int) -> bool:
        try:
            template.render(turns, limit)
        except TextTooLong:
            return False
        return True

    prompts = [index for index, each in enumerate(messages[:-1]) if each.role == "user"]
    kept = prompts[-1] if prompts and messages[-1].role == "assistant" else len(messages) - 1
    starts = [0, *(index for index in prompts if 0 < index < kept), kept]

    def from_start(number: int) -> list[Message]:
        start = starts[number]
        return [*(each for each in messages[:start] if each.role == "system"), *messages[start:]]

    shortest = from_start(len(starts) - 1)
    system = [index for index, each in enumerate(shortest) if each.role == "system"]

    def without_system(number: int) -> list[Message]:
        left_out = set(system[:number])
        return [each for index, each in enumerate(shortest) if index not in left_out]

    turns = from_start(_first(len(starts), lambda number: fits(from_start(number), limit - room)))
    if not fits(turns, limit):
        turns = without_system(_first(len(system) + 1, lambda number: fits(without_system(number), limit)))
    return template.render(turns, limit), len(messages) - len(turns)


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The first of `count` numbers for which `holds` is true, as it is for all after it; the last if for none."""
    return min(bisect_left(range(count), True, key=holds), count - 1)
