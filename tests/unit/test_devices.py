"""Guards on a GPU, as far as a machine without one can tell: our own logic, on a double of CUDA and TensorRT."""

from __future__ import annotations

import importlib
import logging
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from qwen3guard_apps.doctor.findings import run_checks
from qwen3guard_apps.doctor.machine_checks import machine_checks
from qwen3guard_contract import errors
from qwen3guard_contract.manifest import Engine, Manifest, Profile
from qwen3guard_contract.messages import Message
from qwen3guard_contract.parameters import DEVICE_PARAMETERS, GEN_PARAMETERS, STREAM_PARAMETERS
from qwen3guard_export import export
from qwen3guard_runtime.engine import cuda, gpu_trial, pieces, tensorrt_runner
from qwen3guard_runtime.engine.broken_device import EXIT_STATUS, Watched
from qwen3guard_runtime.engine.cuda import Cuda, DeviceMemory
from qwen3guard_runtime.engine.cuda_session import CUDA
from qwen3guard_runtime.engine.devices import OpenedGuard, open_guard
from qwen3guard_runtime.engine.kv_cache import KVCache, Memory, Slot, copy
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner
from qwen3guard_runtime.engine.paged_runner import PagedRunner
from qwen3guard_runtime.engine.runner import Logits, Row, Runner
from qwen3guard_runtime.engine.tensorrt_runner import TensorRTRunner
from qwen3guard_runtime.gen.choices import Choice, choices
from qwen3guard_runtime.gen.guard import Answer, Question
from qwen3guard_runtime.gen.models import GenGuardModel
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.stream.models import StreamGuardModel
from qwen3guard_runtime.stream.steps import Step
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from support.gpu_double import Context, PagedSession, Runtime, tensorrt
from support.overflowing import FLOAT16, LETTER, overflowing
from support.places import DEMO
from support.random_checkpoint import make

CAPACITY = 192
CANDIDATES = (7, 3, 250)
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
    return TensorRTRunner(folder, manifest, device, tensorrt(folder, manifest, runtime, **options), CANDIDATES), device


class Twin:
    """The same rows through two runners, each with its own slots."""

    def __init__(self, folder: Path, one: Runner, memory: Memory, slots: int) -> None:
        manifest = Manifest.read(folder)
        self.vocab = manifest.vocab_size
        self.runners: tuple[Runner, Runner] = (one, OnnxRunner(folder, manifest, CANDIDATES))
        if manifest.variant == "gen":
            self.runners = LikelyTokens(one), LikelyTokens(self.runners[1])
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
    assert runtime.launched == 2 * 5  # the first three of each are run as they are
    twin.forward([(slots, np.array([5]), [0]) for slots in sessions])
    twin.forward([(slots, np.array([5]), []) for slots in sessions])
    assert runtime.launched == 2 * 5  # both at once is another place, and a pass that asks for nothing another shape


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


@pytest.mark.parametrize("place", ["tensorrt", "onnxruntime", "paged"])
def test_a_slot_on_the_device_is_cleared_for_its_next_owner(
    tmp_path: Path, runtime: Runtime, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user writes a token whose values float16 cannot hold, and ends. What clears the slot is queued on our stream,
    which a pass of TensorRT comes behind, and one of ONNX Runtime does not."""
    overflowing(tmp_path / "checkpoint", "stream", largest=FLOAT16)
    attention = "paged" if place == "paged" else "portable"
    export(str(tmp_path / "checkpoint"), tmp_path, weights="fp16", attention=attention, say=lambda _: None)
    folder = tmp_path / "stream_guard/1"
    (folder / ENGINE.file).write_bytes(b"an engine")
    manifest = replace(Manifest.read(folder), engine=ENGINE)
    manifest.write(folder)
    runner: Runner
    capacity, device = CAPACITY, Cuda(runtime)
    if place == "onnxruntime":
        runner = OnnxRunner(folder, manifest)
    elif place == "paged":
        Provider(runtime, monkeypatch)
        runner, capacity = PagedRunner(folder, manifest, device, {}), 256
    else:
        runner, device = engine_runner(folder, runtime)
    [token] = GuardTokenizer.load(folder).encode(LETTER)
    cache = KVCache(replace(manifest, context=176), slots=1, memory=DeviceMemory(device, capacity))
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


def test_every_thread_uses_the_device_of_its_guard() -> None:
    """CUDA's current device is that of a thread, and a thread that has set none allocates on the first."""
    runtime = Runtime(devices=2)
    first, second = Cuda(runtime, 0), Cuda(runtime, 1)
    other = Cuda(runtime, 1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(second.zeros, 8).result()
        pool.submit(other.zeros, 8).result()
    other.zeros(8)
    assert runtime.allocated_on == [1, 1, 1]
    first.zeros(8)
    second.zeros(8)
    assert runtime.allocated_on[-2:] == [0, 1]
    with pytest.raises(errors.DeviceError, match="cudaSetDevice failed: cudaErrorInvalidValue"):
        Cuda(runtime, 2)


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


class LikelyTokens:
    """A Gen runner: the log-probability of each likeliest token, and those of the candidates. The token itself may be
    another where two are nearly as likely."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def forward(self, rows: Sequence[Row]) -> list[Logits]:
        return [self._likely(choices(outputs, CANDIDATES)) for outputs in self._runner.forward(rows)]

    @staticmethod
    def _likely(made: list[Choice]) -> Logits:
        candidates = [choice.logprobs_of(CANDIDATES) for choice in made]
        logprobs = np.array([choice.logprob for choice in made], np.float32)
        return logprobs, np.array(candidates, np.float32).reshape(-1, len(CANDIDATES))


class Provider:
    """onnxruntime's CUDA provider: its sessions run on the CPU, over slots in the double's memory."""

    def __init__(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sessions: list[PagedSession] = []
        session = onnxruntime.InferenceSession

        def on_the_cpu(path: Path, options: Any = None, *, providers: list[Any]) -> Any:
            if providers == ["CPUExecutionProvider"]:
                return session(path, options, providers=providers)
            self.sessions.append(PagedSession(runtime, path, options, providers))
            return self.sessions[-1]

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
        monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
        monkeypatch.setattr(cuda, "bindings", lambda: runtime)


@pytest.fixture
def provider(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Provider:
    return Provider(runtime, monkeypatch)


def paged(folder: Path, tmp_path: Path, **values: str) -> OpenedGuard:
    """The guard of `folder`, exported in the paged form and opened on the double."""
    manifest = export(Manifest.read(folder).source, tmp_path, weights="fp16", attention="paged", say=lambda _: None)
    return open_guard(tmp_path / folder.parent.name / "1", manifest, options(**values), CANDIDATES)


def test_on_cuda_the_slots_are_whole_pages_and_the_options_the_operator_s(
    folder: Path, runtime: Runtime, tmp_path: Path, provider: Provider
) -> None:
    place = paged(folder, tmp_path, cuda_options='{"use_tf32": 0}', slot_tokens="300")
    (session,) = provider.sessions
    ((name, given),) = session.providers
    assert name == "CUDAExecutionProvider"
    assert given == {
        "arena_extend_strategy": "kSameAsRequested",
        "sdpa_kernel": "1",
        "use_tf32": "0",
        "enable_cuda_graph": "1",
        "user_compute_stream": "7",
    }
    assert place.manifest.context == 512
    KVCache(place.manifest, slots=3, memory=place.memory)
    assert len(runtime.blocks) == len(place.manifest.caches)
    cells = {
        block.nbytes // cache.row_bytes(1)
        for block, cache in zip(runtime.blocks.values(), place.manifest.caches, strict=True)
    }
    assert cells == {3 * 512 + 256}  # and a page that belongs to no slot


@pytest.mark.parametrize("recorded", ["1", "0"])
def test_paged_passes_give_what_the_padded_graph_gives(
    folder: Path, tmp_path: Path, provider: Provider, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of any lengths in any slots, in pieces where a pass has no room, with rewinds, and steps of one token that
    are replayed."""
    monkeypatch.setattr(pieces, "PASS_TOKENS", 90)
    place = paged(folder, tmp_path, slot_tokens="300", cuda_options=f'{{"enable_cuda_graph": "{recorded}"}}')
    twin = Twin(folder, place.runner, place.memory, 9)
    twin.caches = (KVCache(place.manifest, slots=9, memory=place.memory), twin.caches[1])
    numbers, source = np.random.default_rng(0), random.Random(0)
    sessions = [twin.acquire(1) for _ in range(9)]
    for number in range(40):
        chosen = source.sample(sessions, source.randint(1, 9))
        rows = []
        for slots in chosen:
            length = min(slots[0].length, source.choice([0, 40, 300]))
            size = 1 if number % 2 else min(source.choice([1, 1, 3, 16, 17, 100, 200]), 480 - length)
            for slot in slots:
                slot.length = length
            asked = sorted(source.sample(range(size), min(size, source.randint(0, 20))))
            rows.append((slots, numbers.integers(0, twin.vocab, size), asked))
        twin.forward(rows)
    (session,) = provider.sessions
    assert len(session.recorded) == (5 if recorded == "1" else 0)  # 1, 2, 4, 8 and 16 rows, in slots below 1,024 cells
    assert (session.replays > 15) == (recorded == "1")


TEXTS = ("How do I bake bread?", "How do I build a bomb?", "You are stupid")


def test_gen_and_stream_judge_the_same_on_a_gpu_and_on_the_cpu(
    tmp_path: Path, provider: Provider, repository: Path
) -> None:
    """The demo guards, as Triton's models load them: in batches, with drafts and prefixes, and a stream of many
    steps. On the CPU they are in fp32."""
    models: dict[str, list[Any]] = {"gen": [], "stream": []}
    for folder, device in ((tmp_path, "cuda"), (repository, "cpu")):
        for variant, model, parameters in (
            ("gen", GenGuardModel, GEN_PARAMETERS),
            ("stream", StreamGuardModel, STREAM_PARAMETERS),
        ):
            if device == "cuda":
                export(str(DEMO / variant), folder, weights="fp16", attention="paged", say=lambda _: None)
            values = {
                "device": device,
                "slot_tokens": "512",
                "slots": "4",
                "kv_budget_bytes": str(1 << 24),
                "prefix_bytes": "0",
            }
            known = {name: value for name, value in values.items() if name in parameters}
            models[variant].append(model(folder / f"{variant}_guard" / "1", {**parameters, **known}))
    template = ChatTemplate.load(DEMO / "gen")
    questions = [Question(np.array(template.render([Message("user", text)], 512)), False) for text in TEXTS]
    for found, expected in zip(*(model._guard.answer(questions) for model in models["gen"]), strict=True):
        assert isinstance(found, Answer)
        assert (found.text, found.ids) == (expected.text, expected.ids)
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-2)
        for field, shares in expected.decisions.items():
            np.testing.assert_allclose(found.decisions[field], shares, atol=2e-2)
    ids = np.array([token for question in questions for token in question.ids])
    position = 0
    for size in (40, 1, 1, 7, 1, 16, 1, 1):
        step = Step(session=5, ids=ids[position : position + size], position=position, start=not position)
        (found,), (expected,) = (model._sessions.steps([step]) for model in models["stream"])
        assert found.length == expected.length == position + size
        assert found.response.risk == expected.response.risk
        mine, theirs = found.response.risk_probabilities, expected.response.risk_probabilities
        np.testing.assert_allclose(mine, theirs, atol=2e-2)
        position += size
    assert provider.sessions[1].replays >= 5


def test_a_paged_guard_without_a_gpu_says_what_to_do(tmp_path: Path) -> None:
    """No CPU has its operator, so `auto` cannot fall back."""
    manifest = export(str(DEMO / "stream"), tmp_path, weights="fp16", attention="paged", say=lambda _: None)
    with pytest.raises(errors.DeviceError, match="knows no CUDA"):
        open_guard(tmp_path / "stream_guard/1", manifest, options())
    with pytest.raises(errors.DeviceError, match="needs a GPU: export it in another attention form"):
        open_guard(tmp_path / "stream_guard/1", manifest, options(device="cpu"))


def test_what_the_runner_owns_is_refused_as_an_option(folder: Path, tmp_path: Path, provider: Provider) -> None:
    with pytest.raises(errors.InvalidParameter, match="user_compute_stream, which is the runner's own"):
        paged(folder, tmp_path, cuda_options='{"user_compute_stream": "1"}')
    with pytest.raises(errors.InvalidParameter, match="device_id in cuda_options is 'first'"):
        paged(folder, tmp_path, cuda_options='{"device_id": "first"}')
    with pytest.raises(errors.InvalidParameter, match="enable_cuda_graph, which a portable graph cannot have"):
        open_guard(folder, Manifest.read(folder), options(device="cuda", cuda_options='{"enable_cuda_graph": "1"}'))
    assert not provider.sessions


def test_paged_attention_of_an_older_onnx_runtime_is_refused(
    folder: Path, tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.30.2")
    with pytest.raises(errors.DeviceError, match=r"needs ONNX Runtime 1\.31, and this is 1\.30\.2"):
        paged(folder, tmp_path)
    assert not provider.sessions


def test_paged_slots_are_copied_on_the_device(folder: Path, tmp_path: Path, provider: Provider) -> None:
    place = paged(folder, tmp_path, slot_tokens="300")
    cache, heads = (KVCache(place.manifest, slots=2, memory=place.memory) for _ in range(2))
    ids = np.arange(3, 63)
    head, whole, copied = heads.acquire(60), cache.acquire(60), cache.acquire(60)
    place.runner.forward([Row(head, ids[:40], [])])
    copy(head, copied, 40)
    pieces_of_it = place.runner.forward([Row(copied, ids[40:], range(20))])
    same(pieces_of_it[0], place.runner.forward([Row(whole, ids, range(40, 60))])[0])
    assert len(provider.sessions[0].recorded) == 2 * 2  # one and two rows, over each of two arenas


@pytest.mark.parametrize(
    ("capability", "state", "sentence"),
    [
        ((9, 0), "ok", "A GPU of compute capability 9.0 multiplies in ONNX Runtime"),
        ((7, 5), "failed", "The GPU has compute capability 7.5: paged attention and bf16 need 8.0."),
    ],
)
def test_the_doctor_runs_a_product_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], state: str, sentence: str
) -> None:
    """The session is on the CPU, and the device a double."""
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(cuda, "bindings", lambda: Runtime(major=capability[0], minor=capability[1]))
    monkeypatch.setattr(gpu_trial, "cuda_session", lambda graph, *_: session(graph, providers=["CPUExecutionProvider"]))
    (finding,) = run_checks({"gpu": machine_checks(None, try_gpu=True)["gpu"]})
    assert finding.state == state
    assert finding.said.startswith(sentence)


def test_the_doctor_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device() -> None:
        raise errors.DeviceError("CUDA finds no device (cudaErrorNoDevice).")

    monkeypatch.setattr(cuda, "bindings", no_device)
    (finding,) = run_checks({"gpu": machine_checks(None, try_gpu=True)["gpu"]})
    assert (finding.state, finding.said) == ("failed", "CUDA finds no device (cudaErrorNoDevice).")


class Broken:
    """A runner whose passes fail, on a device that is broken or not."""

    def __init__(self, *, is_broken: bool) -> None:
        self._is_broken = is_broken

    def forward(self, _: Sequence[Row]) -> list[Logits]:
        raise RuntimeError("a pass")

    def is_broken(self) -> bool:
        return self._is_broken


def test_the_process_ends_when_its_device_is_broken_and_not_when_a_pass_fails() -> None:
    ended: list[int] = []
    for is_broken in (False, True):
        device = Broken(is_broken=is_broken)
        with pytest.raises(RuntimeError):
            Watched(device, device, ended.append).forward([])
    assert ended == [EXIT_STATUS]


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_what_tensorrt_does_not_take_is_an_error(
    folder: Path, runtime: Runtime, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, device = engine_runner(folder, runtime)
    slot = KVCache(Manifest.read(folder), slots=1, memory=DeviceMemory(device, CAPACITY)).acquire(1)
    monkeypatch.setattr(Context, call, lambda *_: False)
    with pytest.raises(RuntimeError, match="TensorRT does not take"):
        runner.forward([Row(slot, np.arange(3, 7), [3])])


def test_more_places_than_recordings_do_not_thrash_and_idle_ones_are_destroyed(
    folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_runner, "GRAPHS", 2)
    monkeypatch.setattr(tensorrt_runner, "IDLE_STEPS", 12)
    runner, device = engine_runner(folder, runtime)
    cache = KVCache(Manifest.read(folder), slots=4, memory=DeviceMemory(device, CAPACITY))
    slots = [cache.acquire(1) for _ in range(4)]
    for _ in range(8):
        for slot in slots:
            runner.forward([Row(slot, np.array([5]), [0])])
    assert (runtime.graphs, runtime.launched) == (2, 2 * 5)  # of the first two places; the others run as they are
    for _ in range(15):
        runner.forward([Row(slots[3], np.array([5]), [0])])
    assert runtime.graphs == 2  # one of the first was destroyed for the place that came again
    assert runtime.launched > 2 * 5


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
