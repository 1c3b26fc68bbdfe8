"""A fake LLM for the tests of this room, in a loop of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.fake_llm import FakeLLM, Loop


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with Loop() as running:
        yield running


@pytest.fixture
def llm(loop: Loop) -> Iterator[FakeLLM]:
    fake = FakeLLM()
    loop.run(fake.start())
    yield fake
    loop.run(fake.stop())
