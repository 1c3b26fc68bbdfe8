"""Actions for NeMo Guardrails: an input rail and an output rail, judged by Gen.

    rails = LLMRails(config)
    register(rails, "127.0.0.1:8001")

Needs `pip install nemoguardrails` and a served Gen guard. In a flow, `execute qwen3guard_check_input` and
`execute qwen3guard_check_output` give True for text that may pass, and False where the guard cannot judge.
"""

from __future__ import annotations

import logging
from typing import Any

from nemoguardrails import LLMRails  # type: ignore[import-untyped]
from qwen3guard_client import AsyncGuardClient, GuardError, Policy

_LOG = logging.getLogger("qwen3guard.nemo")
FLOWS = """
define bot refuse what is unsafe
  "I cannot answer that."

define subflow qwen3guard check input
  $allowed = execute qwen3guard_check_input
  if not $allowed
    bot refuse what is unsafe
    stop

define subflow qwen3guard check output
  $allowed = execute qwen3guard_check_output
  if not $allowed
    bot refuse what is unsafe
    stop
"""
"""Colang 1.0, for `rails: {input: {flows: [qwen3guard check input]}, output: {flows: [qwen3guard check output]}}`."""


def register(rails: LLMRails, url: str = "127.0.0.1:8001", *, policy: Policy | None = None) -> None:
    """Registers both actions on `rails`; Gen is asked at `url`, and `policy` says which categories are unsafe."""
    unsafe_categories = (policy or Policy()).unsafe_categories

    async def allowed(prompt: str, response: str | None) -> bool:
        try:
            async with AsyncGuardClient(url) as guard:
                classification = await guard.classify(prompt, response)
        except GuardError as error:
            _LOG.warning("the guard cannot judge: %s", error.code)
            return False
        return not unsafe_categories(classification)

    async def check_input(context: dict[str, Any]) -> bool:
        return await allowed(context["user_message"], None)

    async def check_output(context: dict[str, Any]) -> bool:
        return await allowed(context["user_message"], context["bot_message"])

    rails.register_action(check_input, "qwen3guard_check_input")
    rails.register_action(check_output, "qwen3guard_check_output")
