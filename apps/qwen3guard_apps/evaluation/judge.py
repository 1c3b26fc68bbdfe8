"""Asks a guard about a labelled row, and keeps as much of its answer as the measures need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qwen3guard_client.aio import AsyncGuardClient
from qwen3guard_contract.errors import InvalidMessages
from qwen3guard_contract.labels import RISK_ORDER, Category
from qwen3guard_contract.message_text import text_of_message
from qwen3guard_contract.verdict import PromptVerdict, TokenVerdict

from qwen3guard_apps.annotation.rows import Fields

DIGITS = 9
"""The significant digits that are kept of a probability: all that a float32 has, so that no ties are made."""


async def ask_gen(guard: AsyncGuardClient, fields: Fields, record: dict[str, Any]) -> dict[str, Any]:
    """Gen's classification of the conversation, with its levels' probabilities unrounded. Raises a GuardError."""
    classification = await guard.send(fields.call(record))
    answer = dict(json.loads(classification.as_json()))
    levels = classification.severity_probabilities
    names = (level.value for level in levels)
    answer["probabilities"]["severity"] = dict(zip(names, _rounded(levels.values()), strict=True))
    return answer


async def ask_stream(guard: AsyncGuardClient, fields: Fields, record: dict[str, Any]) -> dict[str, Any]:
    """Stream's verdicts on the prompt, and on each token of the response, if there is one. Raises a GuardError."""
    prompt, response, messages = fields.conversation(record)
    if messages is not None:
        messages, response = split_response(messages)
    async with guard.stream(prompt, messages=messages) as stream:
        if response is not None:
            await stream.step(response)
    kept = {"prompt": _prompt(stream.prompt_verdict), "notice": stream.notice}
    return kept | {"tokens": None if response is None else _tokens(stream.verdicts)}


def split_response(messages: Any) -> tuple[list[dict[str, Any]], str | None]:
    """The conversation before the response, and the response, or None where the last turn is the user's."""
    try:
        turns = json.loads(messages) if isinstance(messages, str) else list(messages)
        last = turns[-1]
        if last["role"] != "assistant":
            return turns, None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise InvalidMessages("The messages are not a list of objects with a role.") from None
    return turns[:-1], text_of_message(last, f"Message {len(turns)}")


def _prompt(verdict: PromptVerdict) -> dict[str, Any]:
    return {
        "severity": _rounded(verdict.severity_probabilities.values()),
        "level": verdict.severity.value,
        "category": _name(verdict.category),
    }


def _tokens(verdicts: Sequence[TokenVerdict]) -> dict[str, Any]:
    """Lists with one entry for each token of the response; a row of `severity` has the probabilities in RISK_ORDER."""
    return {
        "first": verdicts[0].position if verdicts else 0,
        "severity": [_rounded(token.severity_probabilities[level] for level in RISK_ORDER) for token in verdicts],
        "levels": [token.severity.value for token in verdicts],
        "categories": [_name(token.category) for token in verdicts],
        "ends": [token.end for token in verdicts],
    }


def _name(category: Category | None) -> str | None:
    return category.value if category else None


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
