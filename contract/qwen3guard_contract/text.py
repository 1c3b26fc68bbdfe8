"""Text that a caller sent: checked, and shown in an error's sentence."""

from __future__ import annotations

import re

from qwen3guard_contract.errors import InvalidEncoding

_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|[^u])", re.DOTALL)
_HIGH_HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")
LONGEST_ESCAPE = 6
"""The characters of \\uXXXX."""
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


def unescaped(text: str) -> tuple[str, str]:
    """What a piece of JSON says: \\uXXXX as the character that it stands for. Other escapes stay, and so do those of
    control characters.

    Returns it, and the beginning of an escape with which the piece ends, or an empty string: it belongs before the next
    piece. A lone half of a surrogate pair becomes U+FFFD.
    """
    if "\\" not in text:
        return text, ""
    last = None
    for last in _ESCAPE.finditer(text):  # noqa: B007 (a list of them all would keep other threads from running)
        pass
    end = last.end() if last else 0
    begins = text.rfind("\\", end)
    if begins < 0 or len(text) - begins >= LONGEST_ESCAPE:
        begins = len(text)
    if last and begins == end and _HIGH_HALF.fullmatch(last[0]):
        begins = last.start()
    cut = text[begins:]
    decoded = _ESCAPE.sub(_character, text[:begins])
    return decoded.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), cut


def _character(escape: re.Match[str]) -> str:
    code = int(escape[0][2:], 16) if escape[0][1] == "u" else 0
    return chr(code) if code >= ord(" ") else escape[0]
