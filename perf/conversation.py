"""What each turn of a growing conversation costs, and how often a turn in one session is judged otherwise than anew.

    .venv/bin/python perf/conversation.py REPOSITORY PAIRS.jsonl [--turns 8] [--conversations 1] [--words 60 180]
        [--reused]

A row of PAIRS has `prompt` and `response`. Each conversation takes the next `--turns` rows; `--words` repeats or cuts
prompts and responses to so many words. At each turn its prompt is judged by `classify` (if Gen is served) and by the
opening of a stream, with what was computed before (one scope) and without (no scope), and by `next_turn` in a session
that goes on. Then its response is judged in one step. Prints the seconds of each turn, the median over the
conversations, and of how many prompts and tokens of responses the level differs between `next_turn` and a stream that
is opened with the whole conversation (`tokens_unsafe` are not Safe in one of them); and the turns a second of chats of
5, 10 and 20 turns. With `--reused`, what is computed without a scope, which takes the longest, is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from product import median, served
from qwen3guard_client import GuardClient, RiskLevel, Stream
from qwen3guard_contract import wire
from qwen3guard_contract.errors import UnreadableAnswer

T = TypeVar("T")
TIMEOUT_S = 600.0
LENGTHS = (5, 10, 20)


def sized(text: str, words: int | None) -> str:
    return text if words is None else " ".join(itertools.islice(itertools.cycle(text.split()), words))


class Turns:
    """Judges conversations turn by turn. `seconds` has the times of each way at each turn, `differ` counts levels."""

    def __init__(self, url: str, *, gen: bool, reused: bool) -> None:
        self._with = GuardClient(url, timeout_s=TIMEOUT_S)
        self._without = self._with.in_scope(None)
        self._gen = gen
        self._ways = ({} if reused else {"computed": self._without}) | {"reused": self._with}
        self.seconds: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.differ = dict.fromkeys(("prompts", "prompts_differ", "tokens", "tokens_unsafe", "tokens_differ"), 0)

    def _timed(self, way: str, turn: int, call: Callable[..., T], *arguments: Any, **named: Any) -> T | None:
        began = time.perf_counter()
        try:
            return call(*arguments, **named)
        except UnreadableAnswer:  # of random weights, which took as long to write
            return None
        finally:
            self.seconds[way][turn].append(time.perf_counter() - began)

    def judge(self, pairs: list[tuple[str, str]]) -> None:
        """One conversation."""
        messages: list[dict[str, str]] = []
        going_on = self._without.stream(pairs[0][0]).__enter__()
        for turn, (prompt, response) in enumerate(pairs, start=1):
            messages.append({"role": "user", "content": prompt})
            for way, guard in self._ways.items():
                if self._gen:
                    self._timed(f"classify {way}", turn, guard.classify, messages=messages)
                anew = guard.stream(messages=messages)
                self._timed(f"START {way}", turn, anew.__enter__)
                anew.step(response)
                anew.finish()
            if turn > 1:
                self._timed("next_turn", turn, going_on.next_turn, prompt)
            going_on.step(response)
            if turn > 1:
                self._compare(anew, going_on)
            messages.append({"role": "assistant", "content": response})
        going_on.finish()

    def _compare(self, anew: Stream, going_on: Stream) -> None:
        self.differ["prompts"] += 1
        self.differ["prompts_differ"] += anew.prompt_verdict.severity != going_on.prompt_verdict.severity
        self.differ["tokens"] += len(anew.verdicts)
        for one, other in zip(anew.verdicts, going_on.verdicts, strict=True):
            self.differ["tokens_unsafe"] += {one.severity, other.severity} != {RiskLevel.SAFE}
            self.differ["tokens_differ"] += one.severity != other.severity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--conversations", type=int, default=1)
    parser.add_argument("--reused", action="store_true")
    parser.add_argument("--words", type=int, nargs=2, default=(None, None), metavar=("PROMPT", "RESPONSE"))
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.pairs.read_text().splitlines()]
    pairs = [
        tuple(map(sized, (row["prompt"], row["response"]), arguments.words)) for row in rows if row.get("response")
    ]
    with served(arguments.repository) as server:
        turns = Turns(server.url, gen=wire.CLASSIFY.name in server.manifests, reused=arguments.reused)
        for number in range(arguments.conversations):
            turns.judge(pairs[number * arguments.turns : (number + 1) * arguments.turns])
    seconds = {
        way: {turn: round(median(times), 3) for turn, times in by_turn.items()}
        for way, by_turn in turns.seconds.items()
    }
    rates = {
        way: {
            length: round(length / sum(by_turn.get(turn, 0.0) for turn in range(1, length + 1)), 2)
            for length in LENGTHS
            if length in by_turn
        }
        for way, by_turn in seconds.items()
    }
    print(json.dumps({"seconds": seconds, "turns_a_second": rates, **turns.differ}, indent=1))


if __name__ == "__main__":
    main()
