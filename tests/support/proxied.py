"""The proxy in a thread of this process, before a fake LLM, and what it asked of the guard."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import openai
import pytest
from qwen3guard_apps.proxy.server import listening
from qwen3guard_apps.proxy.settings import Settings
from qwen3guard_client import AsyncGuardClient, GuardClient, SessionLost
from qwen3guard_client.transport.calls import Call

from support.fake_llm import FakeLLM, Loop


class RecordingGuard(AsyncGuardClient):
    """Keeps the sessions that it has asked the server for."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.sessions: set[int | str] = set()

    async def _send_within(self, call: Call[Any], within_s: float) -> Any:
        if call.session:
            self.sessions.add(call.session)
        return await super()._send_within(call, within_s)

    def assert_all_sessions_ended(self, guard: GuardClient) -> None:
        """Over another connection: the server knows none of them any more."""
        assert self.sessions
        deadline = time.monotonic() + 5
        for session in self.sessions:
            while True:
                try:
                    guard.stream_step(session, text="x", position=10**6)
                except SessionLost:
                    break
                except Exception:
                    if time.monotonic() > deadline:
                        pytest.fail("a session is still there")
                    time.sleep(0.05)


class Proxied:
    def __init__(self, loop: Loop, guard_url: str, llm: FakeLLM | None, *, traces: Any = None, **settings: Any) -> None:
        self._loop = loop
        self._traces = traces
        self._guard_url = guard_url
        upstream = None if llm is None else llm.url
        self._settings = Settings(**({"upstream": upstream} | settings))
        self._clients = ExitStack()

    def __enter__(self) -> Proxied:
        self._loop.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._clients.close()
        self._loop.run(self._stack.aclose())

    async def _start(self) -> None:
        self._stack = AsyncExitStack()
        timeout_s = self._settings.guard_timeout_s
        self.guard = RecordingGuard(self._guard_url, timeout_s=timeout_s)
        await self._stack.enter_async_context(self.guard)
        listens = await self._stack.enter_async_context(
            listening(self._settings, self.guard, "127.0.0.1", 0, self._traces)
        )
        self.url = f"http://127.0.0.1:{listens.port}/v1"

    def client(self, key: str = "sk-secret") -> openai.OpenAI:
        made = openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=90)
        return self._clients.enter_context(made)

    def assert_all_sessions_ended(self, guard: GuardClient) -> None:
        self.guard.assert_all_sessions_ended(guard)
