"""Log-probabilities go out with their own text alone: their tokens are text, which nobody judges beside it."""

from __future__ import annotations

from typing import Any

from qwen3guard_apps.openai.shapes import Number

TokenEntry = dict[str, Any]
MOST_APART = 2**16
"""The most bytes of text that wait for their log-probabilities, or the other way round."""
_BYTE = range(256)


class OwnLogprobs:
    """The log-probabilities of one field of a choice. They may come before their text, with it, or after it."""

    def __init__(self) -> None:
        self._text = b""
        """Text without log-probabilities yet."""
        self._spelled = b""
        self._entries: list[TokenEntry] = []
        """Log-probabilities whose text has not come yet, or not all, and what their tokens spell."""
        self._apart = False
        """Whether they are of another text: then no more of them are shown."""

    def take(self, text: str, raw: Any) -> list[TokenEntry]:
        """Returns those that may go out with this piece of text: their tokens spell what has come, and no more."""
        if self._apart:
            return []
        self._text += text.encode(errors="replace")
        spelled = bytearray(self._spelled)
        for each in raw if isinstance(raw, list) else ():
            is_token = isinstance(each, dict) and isinstance(each.get("token"), str)
            if not is_token or len(spelled) > len(self._text) + MOST_APART:
                self._apart = True
                return []
            entry, more = _entry(each)
            self._entries.append(entry)
            spelled += more
        self._spelled = bytes(spelled)
        common = min(len(self._text), len(spelled))
        is_late = abs(len(self._text) - len(spelled)) > MOST_APART
        self._apart = is_late or self._text[:common] != self._spelled[:common]
        if self._apart or self._text != self._spelled:
            return []
        entries, self._entries = self._entries, []
        self._text = self._spelled = b""
        return entries


def _entry(raw: TokenEntry) -> tuple[TokenEntry, bytes]:
    """One token, without the alternatives that the LLM did not write, and the bytes that it spells."""
    token, listed = raw["token"], raw.get("bytes")
    spelled = bytes(listed) if isinstance(listed, list) and _are_bytes(listed) else token.encode(errors="replace")
    entry = _shown(raw, spelled)
    alternatives = raw.get("top_logprobs")
    if isinstance(alternatives, list):
        own = [each for each in alternatives if isinstance(each, dict) and each.get("token") == token]
        entry["top_logprobs"] = [_shown(each, spelled) for each in own]
    return entry, spelled


def _shown(raw: TokenEntry, spelled: bytes) -> TokenEntry:
    number = raw.get("logprob")
    probability = {"logprob": number} if Number().read(number) is number else {}
    listed = {"bytes": list(spelled) if raw["bytes"] else None} if "bytes" in raw else {}
    return {"token": spelled.decode(errors="replace")} | probability | listed


def _are_bytes(values: list[Any]) -> bool:
    return all(type(each) is int and each in _BYTE for each in values)
