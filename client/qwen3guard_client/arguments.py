"""What a caller passes to the client, checked before anything is sent. This module knows no transport.

numpy and protobuf would convert what they are given: 1.7, True and "12" to token ids, for example. A check returns the
value to use, or raises an error of the contract.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from qwen3guard_contract.errors import InvalidEncoding, InvalidRequest, PositionOutOfRange
from qwen3guard_contract.wire import LONGEST_SCOPE

Context = Literal["whole", "recent"]
"""What of a conversation is judged: all of it, or what is left without the oldest turns if it does not fit."""
Piece = str | Sequence[int]
"""What an LLM writes: text in any pieces, or token ids of the guard's own tokenizer."""
LONGEST_TIMEOUT_S = 10**9
"""About 31 years. Python's and gRPC's clocks still take it."""
LONGEST_SESSION_BYTES = 128
"""Triton takes no longer id."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
OWN_SCOPE = "a scope of its own"
"""Stands for a scope that nobody else knows."""
INT64 = range(-(2**63), 2**63)


def checked_piece(piece: Piece) -> str | list[int]:
    """Raises InvalidRequest if `piece` is neither text nor token ids. An empty piece is returned as it is."""
    if isinstance(piece, str):
        return piece
    if not _is_list(piece):
        kind = type(piece).__name__
        raise InvalidRequest(f"A response is moderated as text or as token ids, not as {kind}.")
    return checked_token_ids(piece)


def checked_token_ids(ids: Sequence[int]) -> list[int]:
    """Raises InvalidRequest if any of `ids` is not an integer; True and False are not. The size is not checked."""
    try:
        if not _is_list(ids):
            raise TypeError
        if hasattr(ids, "__array__"):
            array = np.asarray(ids)
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise TypeError
            return array.tolist()  # type: ignore[no-any-return]
        return [_integer(each) for each in ids]
    except (TypeError, ValueError):
        raise InvalidRequest("The token ids must be integers.") from None


def _is_list(value: Any) -> bool:
    """Whether `value` is a sequence or an array, whose iteration does not mean characters or bytes."""
    if isinstance(value, str | bytes | bytearray | memoryview):
        return False
    return isinstance(value, Sequence) or (hasattr(value, "__array__") and hasattr(value, "__len__"))


def _integer(value: Any) -> int:
    """Raises TypeError for a float, a bool and a string, which `int` would convert."""
    if isinstance(value, bool | np.bool_):
        raise TypeError
    return operator.index(value)


def checked_position(position: int) -> int:
    """Raises InvalidRequest, or PositionOutOfRange beyond 64 bits; the server checks the rest."""
    try:
        value = _integer(position)
    except TypeError:
        raise InvalidRequest("The position must be a whole number of tokens.") from None
    if value not in INT64:
        raise PositionOutOfRange("The position is not a 64-bit integer.")
    return value


def checked_session(session: int | str) -> int | str:
    """Raises InvalidRequest or InvalidEncoding. 0 and the empty string name no session."""
    if isinstance(session, str):
        if not session:
            raise InvalidRequest("A step needs a session id.")
        if len(checked_text(session, "The session id")) > LONGEST_SESSION_BYTES:
            raise InvalidRequest(f"A session id may have {LONGEST_SESSION_BYTES} bytes.")
        check_plain(session, "A session id")
        return session
    try:
        value = _integer(session)
    except TypeError:
        value = -1
    if value == 0:
        raise InvalidRequest("A step needs a session id.")
    if value < 0 or value not in INT64:
        raise InvalidRequest("A session id must be a string, or an integer from 1 to 2**63 - 1.")
    return value


def check_plain(name: str, what: str) -> None:
    """Raises InvalidRequest for control characters, and InvalidEncoding. Triton ends an id at its first NUL, so that
    two become one."""
    checked_text(name, what)
    if _CONTROL.search(name):
        raise InvalidRequest(f"{what} may have no control characters.")


def checked_text(text: str, what: str) -> bytes:
    """Returns the text in UTF-8. Raises InvalidRequest or InvalidEncoding."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{what} must be a string.")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidEncoding(f"{what} is not valid Unicode text.") from None


def checked_flag(value: bool, name: str) -> bool:
    """Raises InvalidRequest."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidRequest(f"The argument {name} must be True or False.")
    return bool(value)


def checked_choice(value: object, choices: Iterable[str]) -> None:
    """Raises InvalidRequest if `value` is not one of `choices`."""
    if not (isinstance(value, str) and value in choices):
        raise InvalidRequest(f"{value!r} is not one of {', '.join(choices)}.")


def checked_context(context: Context) -> bool:
    """Returns whether only the recent turns are wanted. Raises InvalidRequest."""
    checked_choice(context, get_args(Context))
    return context == "recent"


def checked_timeout(timeout_s: float) -> float:
    """Raises InvalidRequest. A timeout of 0 has passed at once."""
    if isinstance(timeout_s, Real) and not isinstance(timeout_s, bool) and 0 <= timeout_s <= LONGEST_TIMEOUT_S:
        return float(timeout_s)
    raise InvalidRequest(f"The timeout_s must be a number of seconds from 0 to {LONGEST_TIMEOUT_S}.")


def checked_scope(scope: str | None) -> str | None:
    """Raises InvalidRequest for a scope that is not a text of 1 to LONGEST_SCOPE characters, or has control
    characters."""
    if scope is not None:
        if not isinstance(scope, str) or not 0 < len(scope) <= LONGEST_SCOPE:
            raise InvalidRequest(f"The scope must be a text of 1 to {LONGEST_SCOPE} characters.")
        check_plain(scope, "The scope")
    return scope
