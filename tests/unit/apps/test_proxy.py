"""The proxy's events and settings."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from qwen3guard_apps.proxy import sse
from qwen3guard_apps.proxy.proxy import add_arguments, settings_of
from qwen3guard_apps.proxy.settings import Settings
from qwen3guard_contract import errors
from support.texts import TEXTS, cut


def test_server_sent_events_are_read_however_they_are_cut() -> None:
    source = random.Random(3)
    data = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    for _ in range(50):
        newline = source.choice(["\n", "\r\n"])
        lines = [f": ping{newline}event: x{newline}data: {each}{newline}{newline}" for each in data]
        whole = "".join(lines).encode() + b"data: cut off"
        pieces = cut(whole.decode("latin-1"), source, longest=source.choice([1, 7, 400]))

        async def torn(pieces: list[str] = pieces) -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece.encode("latin-1")

        async def read(torn: Callable[[], AsyncIterator[bytes]] = torn) -> list[str]:
            return [each async for each in sse.events(torn())]

        assert asyncio.run(read()) == data


@pytest.mark.parametrize(
    "wrong",
    [
        {"upstream": "llm:80"},
        {"upstream": "http://llm/v1?key=1"},
        {"on_flag": "shout"},
        {"confirm": "yes"},
        {"max_in_flight": 0},
        {"guard_timeout_s": float("inf")},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidParameter):
        Settings(**wrong)


def test_the_options_of_the_command_line_are_the_settings() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert settings_of(parser.parse_args([])) == Settings()
    assert settings_of(parser.parse_args(["--confirm", "loose", "--on-flag", "mark"])) == Settings(
        on_flag="mark", confirm="loose"
    )
