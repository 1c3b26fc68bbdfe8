"""The base of both tokenizer models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from qwen3guard_contract.errors import GuardError, TokenizerMismatch
from qwen3guard_contract.manifest import MANIFEST, Manifest
from qwen3guard_contract.messages import Message, conversation
from qwen3guard_contract.wire import MESSAGES, PROMPT, RECENT, RESPONSE, Model

from qwen3guard_runtime.exported import read_manifest
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.request import Outputs, Request
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.recent import render_recent


class TokenizerModel(ABC):
    """A stateless model that turns each request into token ids, or into its error."""

    guard: ClassVar[Model]
    """The model that takes the ids."""

    def __init__(self, folder: Path, values: Mapping[str, str] = MappingProxyType({})) -> None:
        """`values` are the `parameters` of config.pbtxt. Raises what `read_manifest` and `Parameters` raise, and
        TokenizerMismatch if the guard in the same repository is of another export."""
        manifest = read_manifest(folder)
        guard_folder = folder.parents[1] / self.guard.name / folder.name
        if (guard_folder / MANIFEST).is_file() and Manifest.read(guard_folder).texts != manifest.texts:
            raise TokenizerMismatch(f"{folder} and {guard_folder} are of two exports: export the checkpoint again.")
        self._context = manifest.context
        recent = Parameters(values).whole("recent_tokens") if "recent_tokens" in values else 0
        self._recent_tokens = min(recent or self._context, self._context)
        self._template = ChatTemplate.load(folder)

    def handle(self, requests: Sequence[Request]) -> list[Outputs | GuardError]:
        return [self._try(request) for request in requests]

    def _try(self, request: Request) -> Outputs | GuardError:
        try:
            return self._outputs(request)
        except GuardError as error:
            return self.refuse(request, error)

    def refuse(self, _: Request, error: GuardError) -> Outputs | GuardError:
        """The answer to a request that failed."""
        return error

    def _conversation(self, request: Request) -> list[Message]:
        """Raises what `conversation` raises."""
        return conversation(
            request.text(MESSAGES),
            request.text(PROMPT),
            request.text(RESPONSE),
            self._context,
            recent=bool(request.number(RECENT, 0)),
        )

    def _render(
        self, request: Request, messages: Sequence[Message], taken: int = 0, room: int = 0
    ) -> tuple[list[int], int]:
        """The token ids of `messages`, and how many turns were left out, if the request asks for the recent ones alone.

        They must leave `taken` tokens of the context, and if possible `room` tokens. Raises what `ChatTemplate.render`
        raises.
        """
        if request.number(RECENT, 0):
            return render_recent(self._template, messages, self._recent_tokens - taken, room)
        return self._template.render(messages, self._context), 0

    @abstractmethod
    def _outputs(self, request: Request) -> Outputs:
        """The outputs of one request. Raises GuardError."""
