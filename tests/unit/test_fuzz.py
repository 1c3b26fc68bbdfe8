"""The fuzzing targets under hypothesis: the same examples every time, a few seconds each."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import fuzz_targets

EXAMPLES = {"hostile_template": 300, "tokenizer_file": 300, "checkpoint": 500, "template": 300}
OTHERS = 1000
CASES: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def _counted() -> Iterator[None]:
    yield
    print(f"\nhypothesis: {sum(CASES.values())} examples, {dict(CASES)}")


def changed(seed: bytes, parts: list[bytes], source: random.Random) -> bytes:
    """`seed` with some stretches taken out and some parts put in."""
    data = seed
    for part in parts:
        at = source.randint(0, len(data))
        data = data[:at] + part + data[at + source.choice((0, 0, 1, 2, 9)) :]
    return data


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Random bytes, the target's words in any order, and its seeds with words and bytes put in."""
    word = st.sampled_from(fuzz_targets.words(name)) | st.binary(max_size=6)
    return st.one_of(
        st.binary(max_size=200),
        st.lists(word, max_size=20).map(b"".join),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
        st.builds(
            changed,
            st.sampled_from(fuzz_targets.seeds(name)),
            st.lists(word, max_size=4),
            st.integers(0, 999).map(random.Random),
        ),
    )


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_no_input_breaks_a_promise(name: str) -> None:
    @settings(
        max_examples=EXAMPLES.get(name, OTHERS),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(inputs(name))
    def hold(data: bytes) -> None:
        CASES[name] += 1
        fuzz_targets.TARGETS[name](data)

    hold()


def config(**changes: object) -> bytes:
    seed = json.loads(fuzz_targets.seeds("checkpoint")[0][1:])
    return b"#" + json.dumps(seed | changes).encode()


def header(entry: str) -> bytes:
    text = f'{{"a": {entry}}}'.encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


FOUND: list[tuple[str, bytes]] = [
    ("messages", b'[{"role": "user", "content": ' + b"9" * 5000 + b"}]"),
    ("requests", b"\x01\x04"),
    ("template", b"\x01" + "".join(map(chr, range(0xE000, 0xF900))).encode()),
    ("template", b"\x01<|im_end|><|im_start|>"),
    ("tokenizer_file", b"\x80"),
    ("tokenizer_file", b'#{"chat_template": [1]}'),
    ("tokenizer_file", b"#[]"),
    ("checkpoint", config(num_hidden_layers=10**9)),
    ("checkpoint", config(head_dim=float("inf"))),
    ("checkpoint", config(hidden_size=1, head_dim=0)),
    ("checkpoint", config(rope_parameters="default", rope_theta=None)),
    ("checkpoint", config(rope_theta=float("inf"))),
    ("checkpoint", config(architectures=["x" * 5000])),
    ("checkpoint", header('{"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}')),
    ("checkpoint", header('{"dtype": "F32", "shape": [4], "data_offsets": [0, 1e400]}')),
    ("checkpoint", header('{"dtype": "a\\nb", "shape": [4], "data_offsets": [0, 16]}')),
]
"""Inputs that once broke a promise."""


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_stays_found(name: str, data: bytes) -> None:
    fuzz_targets.TARGETS[name](data)


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_seeds_are_good_inputs(name: str) -> None:
    for data in fuzz_targets.seeds(name):
        fuzz_targets.TARGETS[name](data)
