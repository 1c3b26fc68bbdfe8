"""The chunks of a streamed answer, held until their text is cleared, and then given in order.

This module is pure state, without tasks and connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwen3guard_apps.openai.answer import ChatAnswer
from qwen3guard_apps.openai.choice import ChatChoice
from qwen3guard_apps.proxy.judged import LATE, Judged

Chunk = dict[str, Any]


class ReadChunk(NamedTuple):
    """What may be shown of one chunk of the LLM's: the choices in it, and its field `usage`, if there is one."""

    entries: list[ChatChoice]
    usage: Chunk


@dataclass
class HeldChunk:
    """A chunk with one choice, or with none. Its text begins at `begin` in what is judged; it may go when the guard has
    cleared that up to `end`. The text of one with `end` LATE is judged with its whole field."""

    chunk: Chunk
    entry: ChatChoice | None = None
    begin: int = 0
    end: int = 0

    @property
    def finishes(self) -> bool:
        return self.entry is not None and self.entry.finishes


class Chunks:
    """Each chunk has one choice: one with several is parted. With `stopping`, a flag ends its choice."""

    def __init__(self, answer: ChatAnswer, choices: Sequence[Judged], *, stopping: bool) -> None:
        self._answer = answer
        self._choices = choices
        self._stopping = stopping
        self._held: deque[HeldChunk] = deque()
        self._tail: list[HeldChunk] = []
        """Chunks without a choice, such as the usage: they follow all others."""
        self._finishing: dict[int, HeldChunk] = {}
        """The chunk that finishes a choice. It waits for the LLM's end, since some LLMs finish every chunk."""
        self._waiting: set[int] = set()
        """The choices whose finishing chunk is not among the held ones yet, so that it holds up no other choice."""
        self._late: set[int] = set()
        """The choices with text that waits for the end of the answer."""
        self._seen: set[int] = set()
        """The choices of which the LLM has sent anything."""
        self._begun: set[int] = set()
        """The choices of which a chunk was given."""
        self._stopped: set[int] = set()
        """The choices whose last chunk was given, which tells the flag."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def is_finished(self) -> bool:
        """Whether the LLM has finished every choice that was asked for."""
        return len(self._finishing) == len(self._choices)

    @property
    def finishes_with_text(self) -> bool:
        """Whether a chunk that finishes a choice has text. An LLM that finishes every chunk may write more."""
        return any(held.entry and held.entry.text for held in self._finishing.values())

    @property
    def is_usable(self) -> bool:
        """Whether the LLM has begun at least one choice, and finished all that it has begun."""
        return bool(self._seen) and self._seen == self._finishing.keys()

    def read(self, body: dict[str, Any]) -> ReadChunk:
        """Reads a chunk of the LLM's, for `take`, perhaps in a thread. Raises ApiError for what cannot be read."""
        return ReadChunk(self._answer.read(body, "delta"), self._answer.usage(body))

    def take(self, chunk: ReadChunk) -> None:
        """Holds a chunk. Its text goes to the guard."""
        entries, usage = chunk
        for number, entry in enumerate(entries, start=1):
            self._hold(entry, usage if number == len(entries) else dict.fromkeys(usage))
        if not entries and usage.get("usage"):
            self._tail.append(HeldChunk(self._chunk([]) | usage))

    def read_whole(self, body: Chunk) -> ReadChunk:
        """Reads an LLM's answer in one piece to a request for a stream, for `take_whole`. Raises ApiError."""
        return ReadChunk(self._answer.read(body, "message"), self._answer.usage(body))

    def take_whole(self, answer: ReadChunk) -> None:
        """Makes a chunk of each choice."""
        for entry in answer.entries:
            entry.choice["delta"] = entry.choice.pop("message")
            entry.key = "delta"
            for number, call in enumerate(entry.message.get("tool_calls") or ()):
                call.setdefault("index", number)  # by which clients put the pieces of a call together
            self._hold(entry, {})
        if answer.usage:
            self._tail.append(HeldChunk(self._chunk([]) | answer.usage))

    def _hold(self, entry: ChatChoice, usage: Chunk) -> None:
        index = entry.index
        judged = self._choices[index]
        held = HeldChunk(self._chunk([entry.choice]) | usage, entry)
        if entry.again is None:
            held.begin, held.end = judged.length, LATE
            self._late.add(index)
        else:
            judged.write(entry.again + entry.text)
            held.begin, held.end = judged.length - len(entry.text), judged.length
        if earlier := self._finishing.get(index):
            self._hold_finishing([index])
            del self._finishing[index]
            assert earlier.entry
            reason, earlier.entry.choice["finish_reason"] = earlier.entry.choice["finish_reason"], None
            if not entry.finishes:
                entry.choice["finish_reason"] = reason
        self._seen.add(index)
        if entry.finishes:
            self._finishing[index] = held
            self._waiting.add(index)
        else:
            self._held.append(held)

    def _hold_finishing(self, indexes: Iterable[int]) -> None:
        for index in sorted(self._waiting.intersection(indexes)):
            self._held.append(self._finishing[index])
            self._waiting.discard(index)

    def _judge_late(self) -> None:
        """Has the whole text of each field judged, where chunks wait for that."""
        for index in self._late:
            self._choices[index].write_late(self._answer.fields(index))
        self._late.clear()

    def break_off(self) -> None:
        """The LLM has failed. What it wrote is still to be shown."""
        self._judge_late()
        self._hold_finishing(self._waiting)

    def end(self) -> None:
        """The LLM has ended. What it left out is added: a reason why a choice ends, the other half of a character."""
        for index in sorted(self._seen or {0}):
            content = self._answer.rest(index)
            if content or index not in self._finishing:
                reason = None if index in self._finishing else "stop"
                delta = {"content": content} if content else {}
                self.take(self.read({"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}))
            self._hold_finishing([index])
        self._judge_late()
        self._held.extend(self._tail)

    def cleared(self) -> Iterator[Chunk]:
        """The chunks that may be sent now, in the LLM's order. The last chunk of a stopped choice has the flag."""
        self._hold_finishing(index for index, choice in enumerate(self._choices) if choice.stopped)
        while self._held and self._may_go(self._held[0]):
            held = self._held.popleft()
            if held.entry is None:
                yield held.chunk
                continue
            index = held.entry.index
            if not self._choices[index].stopped:
                self._begun.add(index)
                yield self._marked(held, held.entry)
            elif index not in self._stopped:
                for chunk in self._before_the_flag(held, held.entry):
                    self._begun.add(index)
                    yield chunk
                if self._stopping and (held.end > self._choices[index].limit or held.finishes):
                    yield self._stop(index)
        if not self._held and self._stopping:
            for index, choice in enumerate(self._choices):
                if choice.stopped and index not in self._stopped:
                    yield self._stop(index)

    def _may_go(self, held: HeldChunk) -> bool:
        if held.entry is None:
            return all(choice.begins or choice.stopped for choice in self._choices)
        choice = self._choices[held.entry.index]
        return choice.stopped or (choice.releases(held.end) and (choice.final or not held.finishes))

    def _marked(self, held: HeldChunk, entry: ChatChoice) -> Chunk:
        choice = self._choices[entry.index]
        if held.finishes or (choice.flag and held.end > choice.limit):
            entry.choice["guard"] = choice.verdict()
        return held.chunk

    def _before_the_flag(self, held: HeldChunk, entry: ChatChoice) -> Iterator[Chunk]:
        """The chunk of a stopped choice, or the part of it before the flag, if there is one."""
        kept = self._choices[entry.index].limit - held.begin
        if kept <= 0:
            return
        if kept < len(entry.text) or held.finishes:
            entry.cut(kept)
            entry.choice["finish_reason"] = None
        yield held.chunk

    def _stop(self, index: int) -> Chunk:
        self._stopped.add(index)
        choice = {
            "index": index,
            "delta": {} if index in self._begun else {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": "content_filter",
            "guard": self._choices[index].verdict(),
        }
        return self._chunk([choice])

    def _chunk(self, choices: list[dict[str, Any]]) -> Chunk:
        return {"object": "chat.completion.chunk"} | self._answer.head | {"choices": choices}
