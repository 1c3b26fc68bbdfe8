"""Text that a caller sent: checked, and shown in an error's sentence."""

from __future__ import annotations

from qwen3guard_contract.errors import InvalidEncoding

SHOWN_CHARACTERS = 40
"""An error's sentence shows at most this many characters of a name that the caller chose."""


def valid_text(data: bytes | str, what: str) -> str:
    """Returns `data` as valid Unicode text. `what` names it in the error's sentence.

    Raises InvalidEncoding for bytes that are not UTF-8, and for lone surrogates.
    """
    try:
        if isinstance(data, bytes):
            return data.decode("utf-8")
        data.encode("utf-8")
        return data
    except UnicodeError:
        raise InvalidEncoding(f"{what} is not valid UTF-8.") from None


def shown(name: str) -> str:
    """A name that the caller chose, made fit for an error's sentence: short, on one line, without control
    characters."""
    shown = "".join(each if each.isprintable() else "?" for each in name[:SHOWN_CHARACTERS])
    return f"'{shown}...'" if len(name) > SHOWN_CHARACTERS else f"'{shown}'"
