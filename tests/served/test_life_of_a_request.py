"""README's life of a request names every file that a request runs through, and its loops are near."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from qwen3guard_client import GuardClient
from qwen3guard_contract import wire
from qwen3guard_contract.layout import GEN, STREAM
from qwen3guard_contract.parameters import GEN_PARAMETERS, STREAM_PARAMETERS
from qwen3guard_runtime.gen.models import GenGuardModel, GuardTokenizerModel
from qwen3guard_runtime.request import Handler, Request
from qwen3guard_runtime.stream.models import StreamGuardModel, StreamTokenizerModel
from support.places import ROOT

PROMPT = "How do I bake bread?"
LOOPS = {
    "classify": ("gen_guard", "gen/models.py", "gen/guard.py"),
    "stream_step": ("stream_guard", "stream/models.py", "stream/sessions.py", "stream/turns.py"),
}
LINES = 700


def files_of(work: Callable[[], None]) -> set[str]:
    """Files of ours in which a function is called while `work` runs a second time, relative to the root."""
    work()
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] not in ("tests", ".venv"):
            files.add(str(path.relative_to(ROOT)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return files


def ask(handle: Handler, model: wire.Model, tensors: Mapping[str, Any], session: str = "", start: bool = False) -> Any:
    """One request in process, as triton_io makes it."""
    known = {tensor.name for tensor in model.inputs}
    arrays = {name: np.asarray(value).reshape(-1) for name, value in tensors.items() if name in known}
    wanted = frozenset(tensor.name for tensor in model.outputs)
    (outputs,) = handle([Request(arrays, wanted, session, start)])
    assert isinstance(outputs, Mapping), outputs
    return outputs


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], object)


@pytest.fixture(scope="module")
def classify(repository: Path) -> Callable[[], None]:
    tokenizer = GuardTokenizerModel(GEN.tokenizer_folder(repository))
    guard = GenGuardModel(GEN.guard_folder(repository), GEN_PARAMETERS)

    def work() -> None:
        ids = ask(tokenizer.handle, wire.GUARD_TOKENIZER, {wire.PROMPT.name: text(PROMPT)})
        ask(guard.handle, wire.GEN_GUARD, ids)

    return work


@pytest.fixture(scope="module")
def stream(repository: Path) -> Callable[[], None]:
    tokenizer = StreamTokenizerModel(STREAM.tokenizer_folder(repository))
    guard = StreamGuardModel(STREAM.guard_folder(repository), STREAM_PARAMETERS)

    def work() -> None:
        position = 0
        for number, piece in enumerate(
            [{wire.PROMPT.name: text(PROMPT)}, {wire.TEXT.name: text("Mix flour and water.")}]
        ):
            step = piece | {wire.POSITION.name: [position]}
            ids = ask(tokenizer.handle, wire.STREAM_TOKENIZER, step, "a", start=number == 0)
            pending = 1
            while pending:  # a turn may end before a step is through
                reply = ask(guard.handle, wire.STREAM_GUARD, {**step, **ids}, "a", start=number == 0)
                pending = int(np.asarray(reply[wire.PENDING.name]).reshape(-1)[0])
            position = int(np.asarray(reply[wire.LENGTH.name]).reshape(-1)[0])

    return work


def named(readme: str) -> set[str]:
    """Files that README's life of a request links to, as [text](file), or as [text] with its definition below."""
    section = readme.partition("## The life of a request\n")[2].partition("\n## ")[0]
    definition = re.compile(r"^\[([^]]+)\]: (\S+)$", re.MULTILINE)
    definitions = dict(definition.findall(section))
    used = set(re.findall(r"\[([^]]+)\](?!\()", definition.sub("", section)))
    assert used == set(definitions), "a reference without its definition, or a definition that nothing uses"
    return set(re.findall(r"\]\(([^)]+)\)", section)) | set(definitions.values())


def test_the_files_of_a_request_are_named(
    classify: Callable[[], None], stream: Callable[[], None], guard: GuardClient
) -> None:
    def through_the_client() -> None:
        guard.classify(PROMPT)
        with guard.stream(PROMPT) as opened:
            opened.step("Mix flour and water.")

    files = files_of(classify) | files_of(stream) | files_of(through_the_client)
    assert len(files) > 20
    links = named((ROOT / "README.md").read_text(encoding="utf-8"))
    assert files - links == set()
    assert [name for name in links if not (ROOT / name).exists()] == []


def test_a_reference_without_its_definition_is_seen() -> None:
    begin = "## The life of a request\n\n[client.py]: it calls [wire](wire.py)"
    assert named(f"{begin}.\n\n[client.py]: client/client.py\n\n## Next\n[other]") == {"client/client.py", "wire.py"}
    for wrong in (f"{begin}.\n", f"{begin}, [b].\n\n[client.py]: c.py\n", "## The life of a request\n\n[a]: a.py\n"):
        with pytest.raises(AssertionError, match="definition"):
            named(wrong)


@pytest.mark.parametrize("ensemble", LOOPS)
def test_the_loop_is_near(ensemble: str) -> None:
    """From the model that Triton loads to the loop that does the work."""
    model, *rooms = LOOPS[ensemble]
    path = [
        ROOT / "model_repository" / model / "1" / "model.py",
        *(ROOT / "runtime" / "qwen3guard_runtime" / name for name in ("triton/triton_io.py", *rooms)),
    ]
    assert sum(len(file.read_text().splitlines()) for file in path) <= LINES
