"""OpenAI's text completions: each prompt is judged as a user's turn, and each text as an answer to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from qwen3guard_apps.doors.door import LAST_EVENT, Door, DoorAnswer, DoorEvent, JsonBody, with_choices
from qwen3guard_apps.openai import fields
from qwen3guard_apps.openai.api_error import ApiError, invalid
from qwen3guard_apps.openai.choice import MessageKey, has_no_text, unreadable
from qwen3guard_apps.openai.request import GuardedRequest, read_as_chat
from qwen3guard_apps.openai.shapes import JsonText

MOST_PROMPTS = 128
"""As many as OpenAI's choices. `--max-choices` is usually less."""
_OF_CHAT_ALONE = {
    *("messages", "tools", "functions", "tool_choice", "function_call", "modalities", "reasoning", "thinking"),
}
COMPLETIONS_REQUEST_FIELDS: fields.Table = {
    "prompt": JsonText("a text, or a list of texts; ids of tokens are refused"),
    "suffix": JsonText("a text, with the prompt"),
    **{name: shape for name, shape in fields.REQUEST_FIELDS.items() if name not in _OF_CHAT_ALONE},
}
_TRANSLATED = ("text", "logprobs", "message", "delta")


class CompletionsDoor(Door):
    path = "completions"
    summary = "Text completions, streamed or whole."
    fields = COMPLETIONS_REQUEST_FIELDS

    def read(self, asked: JsonBody, passed_fields: Collection[str]) -> GuardedRequest:
        prompt, suffix = asked.get("prompt"), asked.get("suffix")
        prompts = prompt if isinstance(prompt, list) else [prompt]
        texts = [each for each in prompts if isinstance(each, str)]
        if not prompts or len(texts) < len(prompts):
            raise invalid("The prompt must be a text, or a list of texts: ids of tokens cannot be judged.")
        if len(prompts) > MOST_PROMPTS:
            raise invalid(f"There are {len(prompts)} prompts; a request takes {MOST_PROMPTS} at most.")
        if not isinstance(suffix, str | None):
            raise invalid("The suffix must be a text.")
        first, *others = ([{"role": "user", "content": each}] for each in texts)
        also = [suffix] if suffix else []
        read = read_as_chat(asked, COMPLETIONS_REQUEST_FIELDS, first, passed_fields, also, others=others)
        return replace(read, n=asked.get("n"))

    def answer(self, read: GuardedRequest) -> DoorAnswer:
        return _CompletionsAnswer(read.sent)


class _CompletionsAnswer(DoorAnswer):
    id_begins = "cmpl-"

    def __init__(self, sent: Mapping[str, Any]) -> None:
        super().__init__()
        self._sent = sent
        self._offsets: dict[int, int] = {}
        """How much of each choice was shown."""

    @property
    def asked(self) -> Mapping[str, Any]:
        return {**self._sent, "logprobs": self._sent.get("logprobs") is not None}

    def read_whole(self, body: Any) -> JsonBody:
        return self._read(with_choices(body), "message")

    def read_event(self, body: JsonBody) -> Iterable[JsonBody]:
        return [self._read(body, "delta") if isinstance(body.get("choices"), list) else body]

    def whole(self, judged: JsonBody) -> JsonBody:
        return self._written(judged, "message")

    def events(self, chunk: JsonBody) -> Iterable[DoorEvent]:
        return [(None, self._written(chunk, "delta"))]

    def end(self) -> Iterable[DoorEvent]:
        return [LAST_EVENT]

    def error(self, error: ApiError) -> DoorEvent:
        return None, error.body()

    def _read(self, body: JsonBody, key: MessageKey) -> JsonBody:
        return body | {"choices": [self._read_choice(each, key) for each in body["choices"]]}

    def _read_choice(self, raw: Any, key: MessageKey) -> Any:
        if not isinstance(raw, dict):
            return raw
        text = raw.get("text")
        if not isinstance(text, str) and not has_no_text(text):
            raise unreadable()
        self.removed += sum(not has_no_text(raw.get(name)) for name in ("message", "delta"))
        message = {"content": text if isinstance(text, str) else None}
        rest = {name: value for name, value in raw.items() if name not in _TRANSLATED}
        return rest | {key: message} | ({"logprobs": _read_logprobs(raw["logprobs"])} if raw.get("logprobs") else {})

    def _written(self, judged: JsonBody, key: MessageKey) -> JsonBody:
        choices = [self._written_choice(each, each.get(key) or {}, key) for each in judged["choices"]]
        return judged | {"object": "text_completion", "choices": choices}

    def _written_choice(self, choice: JsonBody, message: JsonBody, key: MessageKey) -> JsonBody:
        text = message.get("content") or ""
        begin = self._offsets.get(choice["index"], 0)
        self._offsets[choice["index"]] = begin + len(text)
        logprobs = choice.get("logprobs")
        own = {"index": choice["index"], "text": text, "logprobs": _written_logprobs(logprobs, begin)}
        return own | {name: value for name, value in choice.items() if name not in (*own, key)}


def _read_logprobs(raw: Any) -> JsonBody | None:
    """Log-probabilities in the form of chat completions. None for what cannot be read."""
    lists = [raw.get(name) if isinstance(raw, dict) else None for name in ("tokens", "token_logprobs", "top_logprobs")]
    tokens, numbers, tops = (each if isinstance(each, list) else [] for each in lists)
    entries = []
    for at, token in enumerate(tokens):
        top = tops[at] if at < len(tops) and isinstance(tops[at], dict) else {}
        number = numbers[at] if at < len(numbers) else None
        others = [{"token": each, "logprob": value} for each, value in top.items()]
        entries.append({"token": token, "logprob": number, "top_logprobs": others})
    return {"content": entries} if entries else None


def _written_logprobs(logprobs: JsonBody | None, begin: int) -> JsonBody | None:
    entries = (logprobs or {}).get("content")
    if not entries:
        return None
    offsets = []
    for entry in entries:
        offsets.append(begin)
        begin += len(entry["token"])
    return {
        "text_offset": offsets,
        "token_logprobs": [entry.get("logprob") for entry in entries],
        "tokens": [entry["token"] for entry in entries],
        "top_logprobs": [{each["token"]: each.get("logprob") for each in entry["top_logprobs"]} for entry in entries],
    }
