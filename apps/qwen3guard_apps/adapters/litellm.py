# ruff: noqa: ARG002 (LiteLLM sets the arguments of the hooks)
"""A custom guardrail for LiteLLM's SDK and proxy.

It judges the prompt before the call, and the answer after the call or while it streams. What the guard cannot judge is
blocked. Needs `pip install litellm` and a served Stream guard.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail
from litellm.types.guardrails import GuardrailEventHooks
from qwen3guard_client import AsyncGuardClient, Flagged, GuardError, Policy
from qwen3guard_client.transport.connection import DEFAULT_URL

from qwen3guard_apps.adapters import litellm_reader as reader
from qwen3guard_apps.adapters.cleared import ClearedItems
from qwen3guard_apps.adapters.moderated import cleared_text, judge_answers
from qwen3guard_apps.openai.api_error import ApiError


class Qwen3Guardrail(CustomGuardrail):
    """Raises GuardrailRaisedException at a flag, and for what cannot be judged, then without `blocked_content`.

    Calls of the types in `let_through` pass unjudged, as those of embeddings, reranking and moderation always do.
    """

    def __init__(
        self, *, url: str = DEFAULT_URL, policy: Policy | None = None, let_through: Collection[str] = (), **more: Any
    ) -> None:
        self._url, self._policy = url, policy
        self._let_through = {*reader.WITHOUT_READER, *let_through}
        hooks = [GuardrailEventHooks.pre_call, GuardrailEventHooks.post_call]
        super().__init__(**({"guardrail_name": "qwen3guard", "event_hook": hooks} | more))

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> Any:
        if call_type not in self._let_through:
            with self._refusals():
                await judge_answers(self._url, self._policy, reader.asked(data, call_type).prompts())
        return data

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        if (call_type := reader.call_type_of(data, response)) not in self._let_through:
            with self._refusals():
                await judge_answers(self._url, self._policy, reader.asked(data, call_type).answered(response))
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Yields each chunk when its text and all before it are cleared, without the fields that are not judged."""
        with self._refusals():
            asked = reader.asked(request_data, reader.call_type_of(request_data, None))
            async with AsyncGuardClient(self._url) as guard:

                def moderated(index: int, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
                    return cleared_text(guard, self._policy, asked.of_choice(index), pieces)

                texts = reader.StreamedTexts()
                async for chunk in ClearedItems(response, texts, moderated, texts.fields):
                    yield chunk

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        name = self.guardrail_name
        try:
            yield
        except Flagged as flagged:
            raise GuardrailRaisedException(name, str(flagged), False, blocked_content=True) from None
        except (GuardError, ApiError) as error:
            raise GuardrailRaisedException(name, f"The guard cannot judge: {error}", False, 503) from None
