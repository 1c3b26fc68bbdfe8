"""ONNX Runtime's real CUDA provider over a CUDA runtime that is not there: what it places, queues, copies and records.

What a kernel would compute is not seen here; `oracle/export/test_paged.py` emulates that.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from qwen3guard_contract.manifest import GRAPH, GRAPH_LOGIT_INDEX
from qwen3guard_runtime.engine.broken_device import EXIT_STATUS
from support.fake_cuda.journal import Part
from support.fake_cuda.run import PACKAGES, Died, FakeGpu, Ran, write_guard
from support.random_checkpoint import SHAPE_06B, make

SMALL = {"hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 128, "ffn": 384, "vocab": 1000, "inner": 64}
"""The head size is the true one, which chooses the kernels."""
FORMS = [(weights, attention) for weights in ("fp16", "bf16") for attention in ("paged", "paged_half")]
MOST_LAUNCHES = 600
LAYERS = 28
FIRST = "the first pass"
PARTS = {
    "prefill": [(0, 300, 1)],
    "step of one": [(0, 1, 1)],
    "step of three": [(0, 1, 1), (1, 1, 0), (3, 1, 1)],
    "again": [(2, 1, 1), (1, 1, 1), (0, 1, 1)],
    "several tokens": [(slot, 16, 16) for slot in range(4)],
    "ragged": [(0, 1, 1), (1, 200, 3), (3, 7, 0)],
}
"""For each part of a run its rows, (slot, tokens, logits)."""


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> FakeGpu:
    if not PACKAGES.is_dir() or not shutil.which("gcc"):
        pytest.skip("it needs gcc, and onnxruntime-gpu: make .venv/gpu.done")
    return FakeGpu(tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    @cache
    def write(
        variant: str, weights: str, attention: str, layers: int = 2, *, true_shape: bool = False, vocab: int = 1000
    ) -> Path:
        folder = tmp_path_factory.mktemp("guard")
        shape = SHAPE_06B if true_shape else SMALL | {"context": 3000}
        make(folder / "checkpoint", variant, **shape | {"layers": layers, "vocab": vocab})
        return write_guard(folder / "checkpoint", folder / "1", weights, attention)

    return write


@pytest.fixture(scope="module", params=[(variant, *form) for variant in ("stream", "gen") for form in FORMS], ids=str)
def ran(request: pytest.FixtureRequest, gpu: FakeGpu, guard: Callable[..., Path]) -> Ran:
    return gpu.run(guard(*request.param), {FIRST: [(2, 1, 1)]} | PARTS)


def test_the_whole_graph_is_on_the_gpu(ran: Ran) -> None:
    assert ran.providers[0] == "CUDAExecutionProvider"
    assert ran.on_the_cpu == []
    assert ran.errors == {}


def test_a_pass_is_one_copy_in_and_one_copy_out(ran: Ran) -> None:
    """No copy within it, and nothing is waited for but its end."""
    for name in PARTS:
        part = ran.journal[name]
        assert len(part.copied("host-to-device")) == 1, name
        assert len(part.copied("device-to-host")) == 1, name
        assert len(part.of("copy")) == 2, name
        assert part.of("wait") == ["stream"], name
        assert not part.of("not-captured"), name


def test_what_is_asked_for_is_returned(ran: Ran) -> None:
    for name, rows in PARTS.items():
        assert [row[0][0] for row in ran.shapes[name]] == [logits for _, _, logits in rows], name
    rows = [(2, 1, 1), *(row for rows in PARTS.values() for row in rows)]
    assert ran.lengths == [sum(tokens for slot, tokens, _ in rows if slot == each) for each in range(4)]


def test_a_pass_of_gen_returns_little(gpu: FakeGpu, guard: Callable[..., Path]) -> None:
    """With the true vocabulary its logits would be 8 MB."""
    folder = guard("gen", "fp16", "paged", vocab=151936)
    run = gpu.run(folder, {FIRST: [(0, 1, 1)], "pass": [(0, 300, 13), (1, 40, 13)]}, slots=2)
    (returned,) = run.journal["pass"].copied("device-to-host")
    assert run.errors == {}
    assert run.shapes["pass"] == 2 * [[[13, 3], [13, 1]]]
    assert returned == 2 * 13 * 4 * 4 < 64 << 10


def test_rows_of_any_lengths_in_any_slots_are_one_pass(ran: Ran) -> None:
    for name in ("several tokens", "ragged", "prefill"):
        assert len([kernel for kernel in kernels(ran.journal[name]) if "flash" in kernel]) == 2, "one for each layer"
        assert len(ran.journal[name].of("product")) >= 2 * 5, "five for each layer"
        assert len(kernels(ran.journal[name])) == len(kernels(ran.journal["prefill"]))


def test_64_sessions_with_16_tokens_each_are_one_pass(gpu: FakeGpu, guard: Callable[..., Path]) -> None:
    step = {"step": [(slot, 16, 16) for slot in range(64)]}
    run = gpu.run(guard("stream", "fp16", "paged"), {FIRST: [(0, 1, 1)]} | step, slots=64, slot_tokens="256")
    assert run.shapes["step"] == 64 * [[[16, 3], [16, 8], [16, 3], [16, 9]]]
    part = run.journal["step"]
    assert len([name for name in kernels(part) if "flash" in name]) == 2, "one attention for each layer"
    assert part.of("wait") == ["stream"]


def kernels(part: Part) -> list[str]:
    return [detail.partition(" ")[0] for detail in part.of("kernel")]


def test_steps_are_recorded_before_the_first_answer_and_then_replayed(ran: Ran) -> None:
    """Three sizes for four slots, each for short and for long rows; a step of three rows is one of four."""
    assert len(ran.journal[FIRST].of("instantiate")) == 3 * 2
    for name in ("step of one", "step of three", "again"):
        part = ran.journal[name]
        assert not part.of("capture")
        assert not part.of("kernel")
        assert len(part.of("replay")) == 1, name
    assert ran.journal["step of three"].of("replay") == ran.journal["again"].of("replay")
    assert not ran.journal["several tokens"].of("replay")


def test_a_step_of_a_long_row_is_divided_among_more_blocks(gpu: FakeGpu, guard: Callable[..., Path]) -> None:
    """It is another recording, in which each layer joins what the blocks found."""
    steps = {FIRST: [(0, 1, 1)], "short": [(0, 1, 1)], "prefill": [(0, 1100, 1)], "long": [(0, 1, 1), (1, 1, 1)]}
    run = gpu.run(guard("stream", "fp16", "paged"), steps)
    ((short,), (long,)) = (run.journal[name].of("replay") for name in ("short", "long"))
    assert int(long) == int(short) + 2


def test_new_slots_are_zeros_before_anything_reads_them(ran: Ran) -> None:
    kinds = [kind for kind, _ in ran.journal["slots"].events]
    assert kinds == len(kinds) // 3 * ["allocate", "set", "wait"]


def test_no_memory_is_asked_for_in_a_step(ran: Ran) -> None:
    for name in ("step of one", "step of three", "again"):
        assert ran.journal[name].allocated == 0


@pytest.mark.parametrize(("weights", "attention"), [("fp16", "paged"), ("bf16", "paged"), ("fp16", "paged_half")])
@pytest.mark.parametrize("variant", ["stream", "gen"])
def test_a_step_of_the_true_shape_is_at_most_600_launches(
    variant: str, weights: str, attention: str, gpu: FakeGpu, guard: Callable[..., Path]
) -> None:
    """Every layer but the last queues the same, which three sizes show; so 28 layers are counted exactly from three."""
    counts = []
    for layers in (2, 3, 4):
        folder = guard(variant, weights, attention, layers, true_shape=True)
        run = gpu.run(folder, {FIRST: [(0, 1, 1)], "step": [(0, 1, 1)]}, slots=1)
        (nodes,) = run.journal["step"].of("replay")
        counts.append(int(nodes))
    (one, other) = (after - before for before, after in pairwise(counts))
    assert one == other
    launches = counts[0] + (LAYERS - 2) * one
    print(f"{variant} 0.6B {weights} {attention}: {launches} launches a step, {one} a layer")
    assert launches <= MOST_LAUNCHES


def test_memory_is_what_the_weights_and_the_slots_take(gpu: FakeGpu, guard: Callable[..., Path]) -> None:
    """By its own default the provider asks for twice as much, in powers of two."""
    folder = guard("stream", "fp16", "paged", 4, true_shape=True)
    weights = (folder / "model.onnx.data").stat().st_size
    run = gpu.run(folder, {"step": [(0, 1, 1)]}, slots=1)
    assert 0.98 * weights < run.journal["load"].allocated < 1.02 * weights + (64 << 20)
    doubled = gpu.run(folder, {}, slots=1, cuda_options='{"arena_extend_strategy": "kNextPowerOfTwo"}')
    assert doubled.journal["load"].allocated > run.journal["load"].allocated


def test_a_portable_graph_runs_there_too(gpu: FakeGpu, guard: Callable[..., Path]) -> None:
    run = gpu.run(guard("stream", "fp16", "portable"), {FIRST: [(0, 9, 1)], "step": [(0, 1, 1), (1, 1, 1)]})
    assert run.providers[0] == "CUDAExecutionProvider"
    assert run.errors == {}
    assert run.shapes["step"][0][0] == [1, 3]


TRIAL = """
import ctypes
from qwen3guard_contract.errors import DeviceError
from qwen3guard_runtime.engine import cuda, cuda_session, gpu_trial
from support.fake_cuda.bindings import Bindings
LOADED
cuda.bindings = lambda: Bindings(ctypes.CDLL("libcudart.so.13"))
try:
    print(gpu_trial.try_gpu())
except DeviceError as error:
    print(error)
"""


def test_a_trial_of_the_gpu_finds_that_nothing_was_computed(gpu: FakeGpu) -> None:
    """It loads the provider and runs the product; only this device does nothing."""
    tried = gpu.python("-c", TRIAL.replace("LOADED", "cuda_session.load_libraries()"))
    assert re.match(r"The GPU \(9\.0\) multiplies wrongly: .* instead of \[\[7, 10\], \[15, 22\]\]\.", tried.stdout), (
        tried
    )


def test_a_library_that_is_not_installed_is_named(gpu: FakeGpu, guard: Callable[..., Path]) -> None:
    """NVIDIA's are in pip's packages, where the linker does not look: they are loaded first, and if they are not there,
    no guard runs on the CPU in silence."""
    opening = f"""
from pathlib import Path
from qwen3guard_contract.errors import DeviceError
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.parameters import DEVICE_PARAMETERS
from qwen3guard_runtime.engine import cuda_session
from qwen3guard_runtime.engine.cuda import Cuda
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner
from qwen3guard_runtime.engine.paged_runner import PagedRunner
from support import gpu_double
for folder in {[str(guard("stream", "fp16", form)) for form in ("portable", "paged")]!r}:
    manifest = Manifest.read(Path(folder))
    try:
        if manifest.form.is_paged:
            PagedRunner(Path(folder), manifest, Cuda(gpu_double.Runtime()), {{}})
        else:
            OnnxRunner(Path(folder), manifest, cuda={{}})
        print("loaded")
    except DeviceError as error:
        print(error)
"""
    found = gpu.python("-c", opening, libraries=False)
    sentence = r"ONNX Runtime cannot use the GPU: libcublas\S*: cannot open shared object file: .*\[gpu\]"
    assert len(re.findall(sentence, found.stdout)) == 2, found


def test_the_process_ends_when_the_device_is_broken(gpu: FakeGpu, guard: Callable[..., Path]) -> None:
    parts = {FIRST: [(0, 9, 1)], "broken": [(0, 1, 1)], "after": [(0, 1, 1)]}
    with pytest.raises(Died, match="The GPU answers every call with an error since a pass failed") as died:
        gpu.run(guard("stream", "fp16", "paged"), parts)
    assert died.value.status == EXIT_STATUS


def with_index_through(folder: Path, target: Path, kind: str) -> Path:
    """A copy of the guard whose logit_index goes through an operator of int32 that leaves it as it is."""
    shutil.copytree(folder, target)
    model = onnx.load(target / GRAPH, load_external_data=False)
    for node in model.graph.node:
        node.input[:] = ["changed_index" if name == GRAPH_LOGIT_INDEX else name for name in node.input]
    node = onnx.helper.make_node
    wide, narrow = onnx.TensorProto.INT64, onnx.TensorProto.INT32
    made = {
        "on the CPU": [
            node("BitwiseNot", [GRAPH_LOGIT_INDEX], ["not"]),
            node("BitwiseNot", ["not"], ["changed_index"]),
        ],
        "in cuDNN": [
            node("Cast", [GRAPH_LOGIT_INDEX], ["wide"], to=wide),
            node("ReduceMax", ["wide"], ["largest"], keepdims=0),
            node("Min", ["wide", "largest"], ["least"]),
            node("Cast", ["least"], ["changed_index"], to=narrow),
        ],
    }[kind]
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (target / GRAPH).write_bytes(model.SerializeToString())
    return target


def test_a_node_without_a_kernel_on_the_gpu_is_refused(
    gpu: FakeGpu, guard: Callable[..., Path], tmp_path: Path
) -> None:
    folder = with_index_through(guard("stream", "fp16", "paged"), tmp_path / "1", "on the CPU")
    with pytest.raises(Died, match="partitioned to the CUDAExecutionProvider"):
        gpu.run(folder, {FIRST: [(0, 1, 1)]})


def test_a_node_that_needs_cudnn_is_noticed(gpu: FakeGpu, guard: Callable[..., Path], tmp_path: Path) -> None:
    """As the maximum of int64 does, which the graph before this one had in every pass of several tokens."""
    folder = with_index_through(guard("stream", "fp16", "paged"), tmp_path / "1", "in cuDNN")
    assert "cuDNN" in gpu.run(folder, {FIRST: [(0, 9, 3)]}).errors[FIRST]
