"""Arguments of calls are JSON, in which an LLM may write letters as escapes: they are judged as what they stand for."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from qwen3guard_contract.message_text import TextPlace, with_decoded_calls
from qwen3guard_contract.text import unescaped

from qwen3guard_apps.openai.interleaved import Owners


class Escapes:
    """The arguments of one choice, piece by piece. An escape that is cut is judged with the piece that ends it."""

    def __init__(self) -> None:
        self._cut: dict[Hashable, str] = {}

    def decoded(self, of: Owners, places: Iterable[TextPlace]) -> list[TextPlace]:
        """The places, with the text to judge in those of arguments."""

        def decode(place: TextPlace) -> str:
            label = of.get(id(place.holder)), place.key
            text, self._cut[label] = unescaped(self._cut.get(label, "") + place.text)
            return text

        return list(with_decoded_calls(places, decode))
