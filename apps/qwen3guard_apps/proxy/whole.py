"""An answer in one piece: it is judged whole, and cut where it is flagged."""

from __future__ import annotations

from functools import partial
from typing import Any

import aiohttp
from aiohttp import web

from qwen3guard_apps.openai.choice import CALLS, ChatChoice, unreadable
from qwen3guard_apps.proxy.completion import Completion


class WholeCompletion(Completion):
    """The LLM answers in one piece."""

    _entries: list[ChatChoice] | None = None

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        data = await self._place.upstream.whole(answer)
        body, entries = await self._place.readers.read(len(data), partial(self._read_whole, data))
        for entry in entries:
            self._choices[entry.index].write(entry.text)
        self._usage = self._answer.usage(body)
        self._entries = entries

    def _read_whole(self, data: bytes) -> tuple[dict[str, Any], list[ChatChoice]]:
        body = self._door.read_whole(self._parsed(data))
        entries = self._answer.read(body, "message")
        if len({entry.index for entry in entries}) < len(entries):
            raise unreadable()
        return body, entries

    async def _relay(self) -> web.StreamResponse:
        await self._until(self._is_over, checked=True)
        if self._failure and not self._all_stopped:
            raise self._failure
        return web.json_response(self._door.whole(self._judged()), headers=self._headers)

    def _is_over(self) -> bool:
        # An answer that is stopped at its prompt waits for no LLM, and an LLM's error waits for the prompt's verdict.
        judged = all(choice.stopped or choice.final for choice in self._choices)
        return self._all_stopped or (self._ended and judged)

    def _judged(self) -> dict[str, Any]:
        head = {"object": "chat.completion"} | self._answer.head
        if self._entries is None:
            return head | {"choices": [self._choice_without_answer(index) for index in range(len(self._choices))]}
        for entry in self._entries:
            judged = self._choices[entry.index]
            if judged.stopped:
                entry.cut(judged.limit - (judged.length - len(entry.text)))
                for name in CALLS:
                    entry.message.pop(name, None)
                entry.choice["finish_reason"] = "content_filter"
            entry.choice.setdefault("finish_reason", "stop")
            entry.choice["guard"] = judged.verdict()
        told = {entry.index for entry in self._entries}
        untold = [index for index, choice in enumerate(self._choices) if choice.flag and index not in told]
        choices = [entry.choice for entry in self._entries] + [self._choice_without_answer(index) for index in untold]
        return head | {"choices": choices} | self._usage

    def _choice_without_answer(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": "content_filter" if self._choices[index].stopped else "stop",
            "guard": self._choices[index].verdict(),
        }
