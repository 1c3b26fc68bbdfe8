"""What a served Gen guard decides by, and its raw answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwen3guard_client import GuardClient, Thresholds
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors, wire
from qwen3guard_contract.labels import Category, RiskLevel
from qwen3guard_contract.parameters import GEN_PARAMETERS
from qwen3guard_export import export
from qwen3guard_export.repository import place_models
from qwen3guard_runtime.gen.models import GenGuardModel, GuardTokenizerModel
from qwen3guard_runtime.request import Request
from qwen3guard_server.server import EmbeddedServer
from support.places import DEMO
from support.scripted import TOKENIZER
from support.serving import serve, wait_ready
from support.texts import TEXTS

LIMITS = [
    Thresholds(0),
    Thresholds(1),
    Thresholds(0.02),
    Thresholds(0.5),
    Thresholds(1, {Category.VIOLENT: 0.9}),
    Thresholds(0.01, dict.fromkeys(Category, 0.3)),
]


def test_the_server_decides_by_its_thresholds(server: EmbeddedServer, repository: Path) -> None:
    """As the client does by itself, over the probabilities that are returned."""
    prompts = ["How do I bake bread?", "How can I make a bomb in my kitchen?", *TEXTS[:12]]
    with GuardClient(server.url) as client:
        by_mode = [client.classify(prompt) for prompt in prompts]
    assert [found.unsafe for found in by_mode] == [found.strict for found in by_mode]
    answers = set()
    for strict, limits in [("true", None), ("false", None), *(("false", each) for each in LIMITS)]:
        text = json.dumps(limits.as_dict()) if limits else ""
        found = decisions(repository, prompts, strict=strict, thresholds=text)
        expected = [(each.strict if strict == "true" else each.loose) for each in by_mode]
        assert found == ([limits.is_unsafe(each) for each in by_mode] if limits else expected)
        answers.add(tuple(found))
    assert len(answers) >= 4


def decisions(repository: Path, prompts: Sequence[str], **parameters: str) -> list[bool]:
    """UNSAFE of the two models, put together without Triton."""
    tokenizer = GuardTokenizerModel(repository / "guard_tokenizer" / "1")
    model = GenGuardModel(repository / "gen_guard" / "1", GEN_PARAMETERS | parameters)
    asked = [Request({wire.PROMPT.name: np.array([prompt.encode()], object)}, frozenset()) for prompt in prompts]
    outputs = [
        Request({name: np.atleast_1d(value) for name, value in found.items()}, frozenset({wire.UNSAFE.name}))
        for found in tokenizer.handle(asked)
        if not isinstance(found, errors.GuardError)
    ]
    return [bool(found[wire.UNSAFE.name]) for found in model.handle(outputs)]  # type: ignore[index]


def test_parameters_of_the_decision_are_read_when_the_guard_is_loaded(repository: Path, tmp_path: Path) -> None:
    limits = Thresholds(0.001, {Category.VIOLENT: 1})
    shutil.copytree(repository, tmp_path / "r", ignore=lambda *_: ["stream_guard", "stream_tokenizer", "stream_step"])
    config = tmp_path / "r" / "gen_guard" / "config.pbtxt"
    before = 'key: "thresholds"\n  value {\n    string_value: "'
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, before + json.dumps(limits.as_dict()).replace('"', '\\"')))
    with serve(tmp_path / "r") as server:
        wait_ready(server)
        with GuardClient(server.url) as client:
            bread, bomb = (client.classify(prompt) for prompt in ("How do I bake bread?", "How can I make a bomb?"))
    assert (bread.severity, bread.strict, bread.unsafe) == (RiskLevel.SAFE, False, True)
    assert (bomb.categories, bomb.strict, bomb.unsafe) == ((Category.VIOLENT,), True, False)
    config.write_text(text.replace(before, before + "{}}"))
    with (
        serve(tmp_path / "r") as server,
        pytest.raises(errors.ServeError, match=r"parameter thresholds is wrong\. The thr"),
    ):
        wait_ready(server)


def test_a_raw_answer_can_always_be_had(tmp_path: Path) -> None:
    """From a guard that writes nonsense: half of its last norm has the other sign."""
    shutil.copytree(DEMO / "gen", tmp_path / "checkpoint")
    path = tmp_path / "checkpoint/model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    begin, end = (8 + size + offset for offset in json.loads(data[8 : 8 + size])["model.norm.weight"]["data_offsets"])
    data[begin:end] = (np.frombuffer(data[begin:end], np.float16) * ([-1, 1] * 64)).astype(np.float16).tobytes()
    path.write_bytes(data)
    place_models(tmp_path / "r", export(str(tmp_path / "checkpoint"), tmp_path / "r", say=lambda _: None))

    def send(*outputs: wire.Tensor) -> list[Any]:
        values = {wire.INPUT_IDS: [5, 6, 7], wire.RESPONSE_MODE: [False]}
        return client.send(Call(wire.GEN_GUARD, values, outputs, lambda reply: [reply(each) for each in outputs]))

    with serve(tmp_path / "r") as server:
        wait_ready(server)
        with GuardClient(server.url) as client:
            with pytest.raises(errors.UnreadableAnswer):
                client.classify("Hi.")
            answer, ids, logprobs, status = send(wire.ANSWER, wire.ANSWER_IDS, wire.ANSWER_LOGPROBS, wire.ANSWER_STATUS)
            assert TOKENIZER.decode(ids.tolist()) == answer[0].decode()
            assert (len(ids), status[0]) == (len(logprobs), b"cut")
            for each in wire.VERDICT:
                with pytest.raises(errors.UnreadableAnswer):
                    send(wire.ANSWER, each)
