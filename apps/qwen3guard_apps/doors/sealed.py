"""What an LLM wants back unchanged and nobody reads, such as the signature of a reasoning.

It is shown in another encoding, so that no words can be read in it, and is decoded when the client sends it back.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from qwen3guard_apps.openai.api_error import invalid

_BEGINS = "guarded."
_OPAQUE = re.compile(r"[A-Za-z0-9+/=_.:-]*")


def is_opaque(value: Any) -> bool:
    """Whether it is one word of the letters that encodings use."""
    return isinstance(value, str) and bool(_OPAQUE.fullmatch(value))


def sealed(value: str) -> str:
    """What the client gets in the place of an opaque value."""
    return _BEGINS + base64.urlsafe_b64encode(value.encode()).decode()


def opened(value: Any, where: str) -> str:
    """What was sealed. A value that was not, from an answer that did not pass here, is given back as it is.

    Raises ApiError for one that is not opaque. `where` names it in the error's sentence.
    """
    if not is_opaque(value):
        raise invalid(f"{where} is not what an LLM gives: one word without spaces.")
    if not value.startswith(_BEGINS):
        return str(value)
    try:
        return opened(base64.urlsafe_b64decode(value.removeprefix(_BEGINS)).decode(), where)
    except (ValueError, binascii.Error, RecursionError):
        raise invalid(f"{where} was changed since this proxy gave it.") from None
