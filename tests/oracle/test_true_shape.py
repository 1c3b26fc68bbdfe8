"""The true 0.6B shape with random weights, from checkpoint to answers over gRPC, against PyTorch.

Some minutes and some 12 GB of disk and memory, so `make test` leaves it to `make test-large`, which CI runs.
"""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qwen3guard_client import GuardClient, TokenVerdict
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import wire
from support.agreement import BOUND, agrees, log_probabilities
from support.export_oracle import Oracle
from support.random_checkpoint import SHAPE_06B, make
from support.serving import serve, wait_ready

pytestmark = pytest.mark.large
MEMORY_BYTES = 8 << 30
EXPORT = """
import resource, sys
from qwen3guard_apps.cli.main import main
status = main(["export", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(status)
"""


@pytest.fixture(scope="module", params=["gen", "stream"])
def checkpoint(request: pytest.FixtureRequest, qwen_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    return make(folder, request.param, **SHAPE_06B, tied=True, dtype="bf16", tokenizer_from=qwen_folder)


@pytest.fixture(scope="module")
def true_guard(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardClient]:
    """The checkpoint exported in fp32 and served."""
    repository = tmp_path_factory.mktemp("true")
    began = time.monotonic()
    command = [sys.executable, "-c", EXPORT, str(checkpoint), "--output", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    memory = int(done.stdout.split()[-1])
    print(f"\nexport of {checkpoint.name} 0.6B fp32: {time.monotonic() - began:.0f} s, {memory / 2**30:.1f} GiB")
    assert memory < MEMORY_BYTES
    with serve(repository) as server:
        wait_ready(server)
        with GuardClient(server.url, timeout_s=120) as client:
            yield client


def test_the_served_logits_are_the_oracles(checkpoint: Path, true_guard: GuardClient) -> None:
    source = np.random.default_rng(1)
    ids = source.integers(0, 151643, 90)
    if checkpoint.name == "gen":
        answers(true_guard, ids, checkpoint)
    else:
        streams(true_guard, ids, checkpoint)
    gc.collect()


def answers(guard: GuardClient, ids: np.ndarray, checkpoint: Path) -> None:
    outputs = (wire.ANSWER_IDS, wire.ANSWER_LOGPROBS)
    values = {wire.INPUT_IDS: ids, wire.RESPONSE_MODE: [False]}
    found, logprobs = guard.send(
        Call(wire.GEN_GUARD, values, outputs, lambda reply: [reply(output) for output in outputs])
    )
    logits = Oracle(checkpoint).logits(np.concatenate([ids, found[:-1]]))["logits"][len(ids) - 1 :]
    assert found.tolist() == logits.argmax(axis=1).tolist()
    expected = log_probabilities(logits)[np.arange(len(found)), found]
    assert np.abs(logprobs - expected).max() <= 2 * BOUND * np.abs(logits).max()


def streams(guard: GuardClient, ids: np.ndarray, checkpoint: Path) -> None:
    """The same tokens token by token, in chunks, and by one START that replays them."""
    source = random.Random(2)
    expected = Oracle(checkpoint).logits
    opened = guard.stream_step(str(uuid.uuid4()), prompt="How do I bake bread?", start=True, end=True)
    for longest in (1, 20, len(ids)):
        session = str(uuid.uuid4())
        head = guard.stream_step(session, prompt="How do I bake bread?", start=True).length
        assert head == opened.length
        tokens: list[TokenVerdict] = []
        at = 0
        while at < len(ids):
            chunk = ids[at : at + source.randint(1, longest)].tolist()
            tokens += guard.stream_step(session, token_ids=chunk, position=head + at).tokens
            at += len(chunk)
        guard.stream_step(session, position=head + at, end=True)
        if longest == 1:
            prompt = template_ids(checkpoint, "How do I bake bread?")
            assert len(prompt) == head
            rows = {name: values[head:] for name, values in expected(np.array([*prompt, *ids])).items()}
        agrees([token.severity_probabilities for token in tokens], rows["risk_logits"])
        agrees([token.category_probabilities for token in tokens], rows["category_logits"])


def template_ids(folder: Path, prompt: str) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False))
