"""What becomes of a character that the encoding of standard output or standard error does not have."""

from __future__ import annotations

import codecs
import io
import sys

AS_JSON = "qwen3guard_json"
"""The name of the error handler that writes \\uXXXX."""


def replace_unknown_characters(*, json: bool = False) -> None:
    """Lets both streams write ? for a character that their encoding lacks, or with `json` what JSON has for it, on
    standard output. Python would raise UnicodeEncodeError."""
    codecs.register_error(AS_JSON, _json_escape)
    for stream, errors in ((sys.stdout, AS_JSON if json else "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    data = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    units = (int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    return "".join(f"\\u{unit:04x}" for unit in units), error.end
