"""Actions for NeMo Guardrails: rails for the user's message, the model's, its tool calls and their results.

    rails = LLMRails(config)
    register(rails, "127.0.0.1:8001")

Needs `pip install nemoguardrails` and a served Gen guard, for streamed output also a Stream guard. In a flow, `execute
qwen3guard_check_input` and its like give an Outcome, which is true for what may pass. It is false where the guard
cannot judge.
"""

from __future__ import annotations

import logging
from typing import Any

from nemoguardrails import LLMRails  # type: ignore[import-untyped]
from nemoguardrails.actions.rail_outcome import RailDecision, RailOutcome  # type: ignore[import-untyped]
from qwen3guard_client import AsyncGuardClient, Flagged, GuardError, Policy
from qwen3guard_contract.errors import InvalidRequest

from qwen3guard_apps.adapters import nemo_reader as reader
from qwen3guard_apps.adapters.moderated import judge_answers
from qwen3guard_apps.adapters.nemo_flows import FLOWS, NAMES
from qwen3guard_apps.openai.api_error import ApiError

__all__ = ["FLOWS", "Outcome", "register"]
_LOG = logging.getLogger("qwen3guard.nemo")


class Outcome(RailOutcome):  # type: ignore[misc]
    """True if the text may pass: a RailOutcome of NeMo's own is always true."""

    def __bool__(self) -> bool:
        return not self.is_blocked


def register(rails: LLMRails, url: str = "127.0.0.1:8001", *, policy: Policy | None = None) -> None:
    """Registers the actions on `rails`; the guards are asked at `url`, and `policy` decides what is unsafe.

    Raises InvalidRequest if the config of `rails` has its output checked here, and its tool calls nowhere.
    """
    configured = rails.config.rails
    if "qwen3guard check output" in configured.output.flows and not configured.tool_output.flows:
        raise InvalidRequest("The config checks output and no tool calls: add `qwen3guard check tool output` to it.")

    async def by_gen(messages: list[dict[str, Any]]) -> bool:
        async with AsyncGuardClient(url) as guard:
            verdict = await guard.classify(messages=messages, context="recent")
        if verdict.turns_left_out:
            _LOG.warning("the oldest %d turns did not fit and were left out", verdict.turns_left_out)
        return not (policy or Policy()).unsafe_categories(verdict)

    async def checked(name: str, context: dict[str, Any], events: list[dict[str, Any]] | None) -> Outcome:
        may_pass = False
        try:
            messages = reader.judged_messages(name, context, events or [])
            if events is None and name == "output":  # a piece of a stream, of which Gen would want the whole
                await judge_answers(url, policy, reader.answered(messages))
                may_pass = True
            else:
                may_pass = not messages or await by_gen(messages)
        except Flagged:
            pass
        except (GuardError, ApiError) as error:
            _LOG.warning("the guard cannot judge: %s", error.code)
        if not may_pass:
            reader.withhold(events or [])
        return Outcome(RailDecision.ALLOW if may_pass else RailDecision.BLOCK)

    def action(name: str) -> Any:
        async def check(context: dict[str, Any], events: list[dict[str, Any]] | None = None, **_: Any) -> Outcome:
            return await checked(name, context, events)

        return check

    for name in NAMES:
        rails.register_action(action(name), f"qwen3guard_check_{name}")
