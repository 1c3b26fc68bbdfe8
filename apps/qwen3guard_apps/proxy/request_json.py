"""The JSON of a request's body."""

from __future__ import annotations

import json
import math
from typing import Any

from qwen3guard_client.surrogates import without_lone_surrogates
from qwen3guard_contract.json_values import MOST_VALUES, has_too_many

from qwen3guard_apps.openai.api_error import invalid


def object_of(body: bytes) -> dict[str, Any]:
    """Raises ApiError, also for more than MOST_VALUES. What is sent on is this, so that nobody reads a duplicated name
    in another way."""

    def no_number(name: str) -> None:
        raise ValueError(name)

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            no_number(digits)
        return number

    try:
        asked = json.loads(body.decode("utf-8-sig"), parse_constant=no_number, parse_float=finite)
        if b"\\ud" in body.lower():  # a text may have been cut in the middle of a character
            asked = json.loads(without_lone_surrogates(json.dumps(asked, ensure_ascii=False)))
    except (ValueError, RecursionError):
        raise invalid("The request is not valid JSON.") from None
    if not isinstance(asked, dict):
        raise invalid("The request is not a JSON object.")
    if has_too_many(asked):
        raise invalid(f"The request has more than {MOST_VALUES:,} values.")
    return asked
