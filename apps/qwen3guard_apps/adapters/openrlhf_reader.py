"""Reads the texts of OpenRLHF: its queries and prompts are templated, with the special tokens in them."""

from __future__ import annotations

import re
from typing import Any

from qwen3guard_contract.errors import InvalidRequest

_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(<\|im_end\|>\n?|\Z)", re.DOTALL)
_TEMPLATED = re.compile(r"<\|[a-z_]+\|>|\[/?INST\]|<(?:start|end)_of_turn>|<\uff5c[^\uff5c]*\uff5c>")
"""What shows that a text is in a chat template: Llama's, Mistral's, Gemma's, DeepSeek's."""
_END = re.compile(r"(?:(?:<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>|<\uff5c[^\uff5c]*\uff5c>)\s*)+\Z")


def prompt_turns(prompt: str) -> str | list[dict[str, Any]]:
    """The messages of a prompt in ChatML, without the opening of the answer; a plain text is itself.

    Raises InvalidRequest where it is neither.
    """
    turns = [match for match in _TURN.finditer(prompt) if match[3]]
    rest = _TURN.sub("", prompt)
    if _TEMPLATED.search(rest) or any(_TEMPLATED.search(turn[2]) for turn in turns):
        raise InvalidRequest("The prompts are in a chat template other than ChatML, which cannot be read.")
    if not turns:
        return prompt
    if rest.strip():
        raise InvalidRequest("A prompt has text outside the turns of its chat template.")
    return [{"role": turn[1], "content": turn[2]} for turn in turns]


def response_text(number: int, query: str, prompt: str) -> str:
    """The response in a query, without the special tokens that end it. Raises InvalidRequest where the query does not
    begin with the prompt, as when OpenRLHF has cut a long one off."""
    if not query.startswith(prompt):
        raise InvalidRequest(f"Query {number} does not begin with its prompt, so its response cannot be told.")
    return _END.sub("", query.removeprefix(prompt))
