"""Reads the policy that the page asks for."""

from __future__ import annotations

import json
from typing import Any

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import Category
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.thresholds import Thresholds

_FIELDS = {"strict", "debounce", "blocked", "thresholds"}
_CATEGORIES = {category.value: category for category in Category}


def page_policy(fields: dict[str, Any] | None) -> Policy | None:
    """The policy of `fields`: its mode, its debounce, the names of the categories that count (null for all), and
    thresholds or null. None, which is the server's own policy, for None. Raises InvalidRequest."""
    if fields is None:
        return None
    if fields.keys() != _FIELDS:
        raise InvalidRequest(f"The policy is not a JSON object of {', '.join(sorted(_FIELDS))}.")
    thresholds = fields["thresholds"]
    blocked = list(_CATEGORIES) if fields["blocked"] is None else fields["blocked"]
    if not isinstance(blocked, list) or not all(isinstance(name, str) and name in _CATEGORIES for name in blocked):
        raise InvalidRequest("What the policy blocks is not a list of categories.")
    return Policy(
        fields["strict"],
        fields["debounce"],
        frozenset(_CATEGORIES[name] for name in blocked),
        None if thresholds is None else Thresholds.parse(json.dumps(thresholds).encode()),
    )
