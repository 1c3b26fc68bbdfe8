"""What the proxy needs to know of an API that it guards, and chat completions themselves.

A door reads a request into the conversation that is judged, and an LLM's answer into a chat completion, which the
proxy judges as any other. What is cleared is written in the door's own form, from nothing but the chat completion: no
field and no event of the LLM's reaches the client beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from qwen3guard_apps.openai.api_error import ApiError
from qwen3guard_apps.openai.choice import unreadable
from qwen3guard_apps.openai.fields import REQUEST_FIELDS, Table
from qwen3guard_apps.openai.request import GuardedRequest, read_request

JsonBody = dict[str, Any]
DoorEvent = tuple[str | None, Any]
"""A server-sent event: its name, if it has one, and its data, a text or JSON."""
LAST_EVENT: DoorEvent = (None, "[DONE]")


class DoorAnswer(ABC):
    """The answer to one request."""

    id_begins: ClassVar[str] = "chatcmpl-"
    """An id of the proxy's own, where the LLM gives none."""

    def __init__(self) -> None:
        self.removed = 0
        """How many fields and events with a value were left out here."""
        self.ended = False
        """Whether the LLM has said that nothing more comes."""

    @property
    @abstractmethod
    def asked(self) -> Mapping[str, Any]:
        """The request as far as the reading of an answer depends on it, with the names of a chat completion: `model`,
        `tools`, `stop`, `logprobs`."""

    @abstractmethod
    def read_whole(self, body: Any) -> JsonBody:
        """A whole answer, as a chat completion that is not judged. Raises ApiError for what it cannot be."""

    @abstractmethod
    def read_event(self, body: JsonBody) -> Iterable[JsonBody]:
        """An event, as chunks of a chat completion. Raises ApiError."""

    def failure(self, body: JsonBody) -> Any:  # noqa: ARG002
        """The error in an answer or event that tells one in a way of its own; else None."""
        return None

    @abstractmethod
    def whole(self, judged: JsonBody) -> JsonBody:
        """What may be shown of a whole answer, in the door's form."""

    @abstractmethod
    def events(self, chunk: JsonBody) -> Iterable[DoorEvent]:
        """What may be shown of a chunk, in the door's form."""

    def end(self) -> Iterable[DoorEvent]:
        """What follows the last chunk."""
        return ()

    @abstractmethod
    def error(self, error: ApiError) -> DoorEvent:
        """An error in a stream that has begun."""


class Door(ABC):
    path: ClassVar[str]
    """The route's, below the base URLs of the proxy and of the LLM."""
    summary: ClassVar[str]
    fields: ClassVar[Table]
    """Of a request, what becomes of each field."""

    @abstractmethod
    def read(self, asked: JsonBody, passed_fields: Collection[str]) -> GuardedRequest:
        """Raises ApiError for what cannot be judged."""

    @abstractmethod
    def answer(self, read: GuardedRequest) -> DoorAnswer:
        """What reads and writes the answer to a request."""

    def error(self, error: ApiError) -> JsonBody:
        """The body of an error."""
        return error.body()


class ChatDoor(Door):
    """OpenAI's chat completions."""

    path = "chat/completions"
    summary = "A chat completion, streamed or whole."
    fields = REQUEST_FIELDS

    def read(self, asked: JsonBody, passed_fields: Collection[str]) -> GuardedRequest:
        return read_request(asked, passed_fields)

    def answer(self, read: GuardedRequest) -> DoorAnswer:
        return _ChatAnswer(read.sent)


class _ChatAnswer(DoorAnswer):
    def __init__(self, sent: Mapping[str, Any]) -> None:
        super().__init__()
        self._sent = sent

    @property
    def asked(self) -> Mapping[str, Any]:
        return self._sent

    def read_whole(self, body: Any) -> JsonBody:
        return with_choices(body)

    def read_event(self, body: JsonBody) -> Iterable[JsonBody]:
        return [body]

    def whole(self, judged: JsonBody) -> JsonBody:
        return judged

    def events(self, chunk: JsonBody) -> Iterable[DoorEvent]:
        return [(None, chunk)]

    def end(self) -> Iterable[DoorEvent]:
        return [LAST_EVENT]

    def error(self, error: ApiError) -> DoorEvent:
        return None, error.body()


def with_choices(body: Any) -> JsonBody:
    """`body`, if it has a list of choices. Raises ApiError."""
    if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
        raise unreadable()
    return body
