# ruff: noqa: ARG002 (LiteLLM sets the arguments of the hooks)
"""A custom guardrail for LiteLLM's SDK and proxy.

It judges the prompt before the call, and the answer after the call or while it streams. Text that the guard cannot
judge is blocked. Needs `pip install litellm` and a served Stream guard.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail
from litellm.types.guardrails import GuardrailEventHooks
from qwen3guard_client import AsyncGuardClient, Flagged, GuardError, Policy

from qwen3guard_apps.openai import conversation, texts
from qwen3guard_apps.openai.api_error import ApiError


class Qwen3Guardrail(CustomGuardrail):
    """Raises GuardrailRaisedException at a flag, and where the guard cannot judge, then without `blocked_content`."""

    def __init__(self, *, url: str = "127.0.0.1:8001", policy: Policy | None = None, **options: Any) -> None:
        self._url = url
        self._policy = policy
        hooks = [GuardrailEventHooks.pre_call, GuardrailEventHooks.post_call]
        super().__init__(**({"guardrail_name": "qwen3guard", "event_hook": hooks} | options))

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> Any:
        async for _ in self._moderated([], data):
            pass
        return data

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        for choice in response.choices:
            text = texts.written(choice.message.model_dump())
            async for _ in self._moderated([text] if text else [], data):
                pass
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Yields the first choice's text as it is cleared, then chunks without content; tool calls are not judged."""
        latest: list[Any] = []
        without_content: list[Any] = []

        async def written() -> AsyncIterator[str]:
            async for chunk in response:
                if chunk.choices and chunk.choices[0].delta.content:
                    latest[:] = [chunk]
                    yield chunk.choices[0].delta.content
                else:
                    without_content.append(chunk)

        async for text in self._moderated(written(), request_data):
            cleared = latest[0].model_copy(deep=True)
            cleared.choices[0].delta.content = text
            yield cleared
        for chunk in without_content:
            yield chunk

    async def _moderated(self, source: Any, data: dict[str, Any]) -> AsyncIterator[str]:
        name = self.guardrail_name
        try:
            messages = conversation.read(data).messages
            async with AsyncGuardClient(self._url) as guard:
                async for segment in guard.moderate(source, messages=messages, policy=self._policy, on_flag="raise"):
                    yield str(segment)
        except Flagged as flagged:
            raise GuardrailRaisedException(name, str(flagged), False, blocked_content=True) from None
        except (GuardError, ApiError) as error:
            raise GuardrailRaisedException(name, f"The guard cannot judge: {error}", False, 503) from None
