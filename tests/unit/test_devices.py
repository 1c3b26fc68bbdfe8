"""Guards on a GPU, as far as a machine without one can tell: our own logic, on a double of CUDA and TensorRT."""

from __future__ import annotations

import importlib
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from qwen3guard_contract import errors
from qwen3guard_contract.manifest import Engine, Manifest, Profile
from qwen3guard_contract.parameters import DEVICE_PARAMETERS
from qwen3guard_export import export
from qwen3guard_runtime.engine import cuda
from qwen3guard_runtime.engine.cuda import Cuda, DeviceMemory
from qwen3guard_runtime.engine.devices import open_guard
from qwen3guard_runtime.engine.kv_cache import KVCache, Memory, Slot, copy
from qwen3guard_runtime.engine.onnx_runner import CUDA, OnnxRunner
from qwen3guard_runtime.engine.runner import Logits, Row, Runner
from qwen3guard_runtime.engine.tensorrt_runner import TensorRTRunner
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from support.gpu_double import Runtime, tensorrt
from support.overflowing import FLOAT16, LETTER, overflowing
from support.places import DEMO
from support.random_checkpoint import make

CAPACITY = 192
PROFILES = (Profile(rows=4, tokens=16, asked=20), Profile(rows=1, tokens=48, asked=40))
ENGINE = Engine("model.engine", "tensorrt_rtx", "1.7.1.116", ("8.0", "8.6"), CAPACITY, PROFILES)


@pytest.fixture(scope="module", params=["stream", "gen"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small guard in fp16, with an engine's file that only the double can read."""
    base = tmp_path_factory.mktemp(request.param)
    export(str(make(base / "checkpoint", request.param)), base, weights="fp16", say=lambda _: None)
    found = base / f"{request.param}_guard/1"
    (found / ENGINE.file).write_bytes(b"an engine")
    replace(Manifest.read(found), engine=ENGINE).write(found)
    return found


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


def engine_runner(folder: Path, runtime: Runtime, **options: Any) -> tuple[TensorRTRunner, Cuda]:
    manifest = Manifest.read(folder)
    device = Cuda(runtime)
    return TensorRTRunner(folder, manifest, device, tensorrt(folder, manifest, runtime, **options)), device


class Twin:
    """The same rows through two runners, each with its own slots."""

    def __init__(self, folder: Path, one: Runner, memory: Memory, slots: int) -> None:
        manifest = Manifest.read(folder)
        self.vocab = manifest.vocab_size
        self.runners = (one, OnnxRunner(folder, manifest))
        self.caches = (KVCache(manifest, slots=slots, memory=memory), KVCache(manifest, slots=slots))

    def acquire(self, tokens: int) -> tuple[Slot, Slot]:
        one, other = (cache.acquire(tokens) for cache in self.caches)
        return one, other

    def forward(self, rows: Sequence[tuple[tuple[Slot, Slot], np.ndarray, Sequence[int]]]) -> None:
        found, expected = (
            runner.forward([Row(slots[number], ids, asked) for slots, ids, asked in rows])
            for number, runner in enumerate(self.runners)
        )
        for mine, theirs in zip(found, expected, strict=True):
            same(mine, theirs)


def same(found: Logits, expected: Logits) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2 * max(1.0, np.abs(other).max(initial=0)))
        assert one.shape == other.shape


def test_an_engine_gives_what_the_graph_gives(folder: Path, runtime: Runtime) -> None:
    """Ragged steps, long rows, rewinds and freed slots, in passes that no profile is too small for."""
    runner, device = engine_runner(folder, runtime)
    twin = Twin(folder, runner, DeviceMemory(device, CAPACITY), 9)
    numbers, source = np.random.default_rng(0), random.Random(0)
    sessions = [twin.acquire(1) for _ in range(9)]
    for _ in range(40):
        chosen = source.sample(sessions, source.randint(1, 9))
        rows = []
        for slots in chosen:
            length = min(slots[0].length, source.choice([0, 40, 160]))
            size = min(source.choice([1, 1, 3, 16, 17, 100]), CAPACITY - 16 - length)
            for slot in slots:
                slot.length = length
            asked = sorted(source.sample(range(size), min(size, source.randint(0, 20))))
            rows.append((slots, numbers.integers(0, twin.vocab, size), asked))
        twin.forward(rows)


def test_the_decode_step_is_recorded_once_for_each_place_and_then_replayed(folder: Path, runtime: Runtime) -> None:
    runner, device = engine_runner(folder, runtime)
    twin = Twin(folder, runner, DeviceMemory(device, CAPACITY), 2)
    sessions = [twin.acquire(100), twin.acquire(100)]
    for token in range(8):
        for slots in sessions:
            twin.forward([(slots, np.array([token + 3]), [0])])
    assert runtime.launched == 2 * 7  # the first of each is run as it is
    twin.forward([(slots, np.array([5]), [0]) for slots in sessions])
    twin.forward([(slots, np.array([5]), []) for slots in sessions])
    assert runtime.launched == 2 * 7  # both at once is another place, and a pass that asks for nothing another shape


def test_slots_are_copied_and_reused_on_the_device(folder: Path, runtime: Runtime) -> None:
    runner, device = engine_runner(folder, runtime)
    manifest = Manifest.read(folder)
    memory = DeviceMemory(device, CAPACITY)
    cache, heads = KVCache(manifest, slots=2, memory=memory), KVCache(manifest, slots=1, memory=memory)
    ids = np.arange(3, 63)
    head, whole, copied = heads.acquire(60), cache.acquire(60), cache.acquire(60)
    runner.forward([Row(head, ids[:40], [])])
    copy(head, copied, 40)
    pieces = runner.forward([Row(copied, ids[40:], range(20))])
    at_once = runner.forward([Row(whole, ids, range(40, 60))])
    same(pieces[0], at_once[0])
    cache.release(whole)
    again = cache.acquire(60)
    assert again.row == whole.row
    same(runner.forward([Row(again, ids, range(40, 60))])[0], at_once[0])


@pytest.mark.parametrize("place", ["tensorrt", "onnxruntime"])
def test_a_slot_on_the_device_is_cleared_for_its_next_owner(tmp_path: Path, runtime: Runtime, place: str) -> None:
    """One user writes a token whose values float16 cannot hold, and ends. What clears the slot is queued on our stream,
    which a pass of TensorRT comes behind, and one of ONNX Runtime does not."""
    overflowing(tmp_path / "checkpoint", "stream", largest=FLOAT16)
    export(str(tmp_path / "checkpoint"), tmp_path, weights="fp16", say=lambda _: None)
    folder = tmp_path / "stream_guard/1"
    (folder / ENGINE.file).write_bytes(b"an engine")
    manifest = replace(Manifest.read(folder), engine=ENGINE)
    manifest.write(folder)
    runner: Runner
    runner, device = engine_runner(folder, runtime)
    if place == "onnxruntime":
        runner = OnnxRunner(folder, manifest)
    [token] = GuardTokenizer.load(folder).encode(LETTER)
    cache = KVCache(manifest, slots=1, memory=DeviceMemory(device, CAPACITY))
    ids = np.arange(10, 30)
    slot = cache.acquire(60)
    expected = runner.forward([Row(slot, ids, range(20))])[0]
    slot.length = 0
    spoiled = np.concatenate([ids, [token], ids])
    assert not np.isfinite(runner.forward([Row(slot, spoiled, [40])])[0][0]).any()
    cache.release(slot)
    found = runner.forward([Row(cache.acquire(60), ids, range(20))])[0]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_device_without_room_says_so(folder: Path) -> None:
    runtime = Runtime(limit=1 << 20)
    with pytest.raises(errors.DeviceError, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        KVCache(Manifest.read(folder), slots=64, memory=DeviceMemory(Cuda(runtime), CAPACITY))


def test_an_engine_of_another_version_gpu_or_file_is_refused(folder: Path, runtime: Runtime) -> None:
    with pytest.raises(errors.EngineMismatch, match=r"built by tensorrt_rtx 1\.7\.1\.116, and here is .* 1\.8"):
        engine_runner(folder, runtime, version="1.8")
    with pytest.raises(errors.EngineMismatch, match=r"capability 8\.0, 8\.6, and this GPU has 7\.5"):
        engine_runner(folder, Runtime(major=7, minor=5))
    with pytest.raises(errors.CorruptFile, match="cannot be loaded by tensorrt_rtx"):
        engine_runner(folder, runtime, reads=False)


def options(**values: str) -> Parameters:
    return Parameters(DEVICE_PARAMETERS | values)


def test_without_a_gpu_a_guard_made_for_one_runs_on_the_cpu_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = Manifest.read(folder)
    with caplog.at_level(logging.WARNING):
        place = open_guard(folder, manifest, options())
    assert "The guard was made for tensorrt and runs on the CPU" in caplog.text
    slot = KVCache(place.manifest, slots=1, memory=place.memory).acquire(4)
    assert np.isfinite(place.runner.forward([Row(slot, np.arange(3, 7), [3])])[0][0]).all()


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_was_asked_for_is_never_replaced(folder: Path, device: str) -> None:
    with pytest.raises(errors.DeviceError):
        open_guard(folder, Manifest.read(folder), options(device=device))


def test_on_cuda_the_slots_are_the_device_s_and_the_options_the_operator_s(
    folder: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the provider itself: the session runs on the CPU, over slots in the double's memory."""
    checkpoint = Manifest.read(folder).source
    manifest = export(checkpoint, tmp_path, weights="fp16", attention="gqa", say=lambda _: None)
    graph = tmp_path / folder.parent.name / "1"
    session, asked = onnxruntime.InferenceSession, []

    def on_the_cpu(path: Path, options: object, providers: list[object]) -> onnxruntime.InferenceSession:
        asked.append(providers)
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
    monkeypatch.setattr(cuda, "bindings", lambda: runtime)
    place = open_guard(graph, manifest, options(cuda_options='{"use_tf32": 0}', slot_tokens="100"))
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]]
    assert place.manifest.context == 112
    assert isinstance(place.runner, OnnxRunner)
    place.runner._device = "cpu"
    twin = Twin(folder, place.runner, place.memory, 4)  # the portable graph beside it
    sessions = [twin.acquire(1) for _ in range(4)]
    for number in range(6):
        twin.forward([(slots, np.arange(5, 5 + 1 + (number + at) % 4), [0]) for at, slots in enumerate(sessions)])


def test_parameters_that_mean_nothing_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.read(folder)
    with pytest.raises(errors.InvalidParameter, match="one of auto, cpu, cuda, tensorrt"):
        open_guard(folder, manifest, options(device="gpu"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    with pytest.raises(errors.InvalidParameter, match="must be a JSON object"):
        open_guard(folder, manifest, options(device="cuda", cuda_options="[1]"))


def test_the_place_of_an_engine_cuts_the_context_to_its_slots(
    folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(folder)
    monkeypatch.setattr(cuda, "bindings", lambda: runtime)
    monkeypatch.setattr(importlib, "import_module", lambda _: tensorrt(folder, manifest, runtime))
    place = open_guard(folder, manifest, options())
    assert place.manifest.context == CAPACITY - 16
    assert place.memory.free_bytes() == runtime.limit - runtime.taken()


def test_bf16_on_a_cpu_is_refused_in_one_sentence(tmp_path: Path) -> None:
    manifest = export(str(DEMO / "stream"), tmp_path, weights="bf16", say=lambda _: None)
    with pytest.raises(errors.DeviceError, match="bf16"):
        OnnxRunner(tmp_path / "stream_guard/1", manifest)
