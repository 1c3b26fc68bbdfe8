"""Whether 8-bit products are exact is asked of ONNX Runtime: here with doubles that multiply wrongly."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import parser
from qwen3guard_apps.doctor import export_checks, machine_checks
from qwen3guard_apps.doctor.findings import run_checks
from qwen3guard_contract import integer_products
from qwen3guard_contract.errors import DeviceError, ExportOutdated
from qwen3guard_contract.integer_products import REPAIR, ensure_exact, products
from qwen3guard_contract.manifest import FORMAT
from qwen3guard_runtime.exported import read_manifest

HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> g '
COMPUTED = (
    HEADER + "(uint8[m, k] a, int8[k, n] b) => (float[m, n] y) <float one = {1.0}>"
    " { y = com.microsoft.MatMulIntegerToFloat(a, b, one, one) }"
)
CONSTANT = (
    HEADER + "(uint8[m, k] a) => (float[m, n] y) <float one = {1.0}, int64[2] shape = {64, 16}>"
    " { b = ConstantOfShape <value: tensor = int8[1] {127}> (shape)"
    " y = com.microsoft.MatMulIntegerToFloat(a, b, one, one) }"
)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    products.cache_clear()
    yield
    products.cache_clear()


def saturating(pairs: np.ndarray) -> np.ndarray:
    return np.clip(pairs, -32768, 32767)


class Runtime:
    """onnxruntime on a CPU whose pairs of products go through `wrong`; `repairs` says whether the option helps."""

    __version__ = "9.9"

    def __init__(self, wrong: Callable[[np.ndarray], np.ndarray], *, repairs: bool) -> None:
        self.wrong, self.repairs = wrong, repairs
        self.asked = 0

    def SessionOptions(self) -> Any:  # noqa: N802
        options = SimpleNamespace(entries={})
        options.add_session_config_entry = options.entries.__setitem__
        return options

    def InferenceSession(self, model: bytes, options: Any, providers: list[str]) -> Any:  # noqa: N802
        inner = onnxruntime.InferenceSession(model, providers=providers)
        right = self.repairs and options.entries.get(REPAIR[0]) == REPAIR[1] and len(inner.get_inputs()) == 1
        self.asked += 1

        def run(_: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            if right:
                return list(inner.run(None, feeds))
            a, b = feeds["a"].astype(np.int64), feeds.get("b", np.full((64, 16), 127)).astype(np.int64)
            pairs = np.stack([a[:, k : k + 2] @ b[k : k + 2] for k in range(0, 64, 2)])
            return [self.wrong(pairs).sum(axis=0).astype(np.float32)]

        return SimpleNamespace(run=run, get_inputs=inner.get_inputs)


def on(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[np.ndarray], np.ndarray], *, repairs: bool = True) -> Runtime:
    runtime = Runtime(wrong, repairs=repairs)
    monkeypatch.setattr(importlib, "import_module", lambda _: runtime)
    return runtime


def test_the_models_are_those_that_onnx_writes() -> None:
    for text, model in ((COMPUTED, integer_products._COMPUTED), (CONSTANT, integer_products._CONSTANT)):
        assert parser.parse_model(text).SerializeToString(deterministic=True) == model


def test_this_machine_multiplies_exactly_or_is_repaired() -> None:
    options = onnxruntime.SessionOptions()
    found = ensure_exact(options)
    assert found in ("exact", "repaired")
    if found == "repaired":
        assert options.get_session_config_entry(REPAIR[0]) == REPAIR[1]


def test_exact_products_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = on(monkeypatch, lambda pairs: pairs)
    options = runtime.SessionOptions()
    assert ensure_exact(options) == "exact"
    assert options.entries == {}
    asked = runtime.asked
    assert ensure_exact(options) == "exact"
    assert runtime.asked == asked  # once a process


def test_saturating_products_are_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    options = on(monkeypatch, saturating).SessionOptions()
    assert ensure_exact(options) == "repaired"
    assert options.entries == dict([REPAIR])
    (found,) = machine_checks.cpu()
    assert (found.state, "wrong" in found.said, REPAIR[0] in found.said) == ("warning", True, True)


def test_a_runtime_that_does_not_repair_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = on(monkeypatch, saturating, repairs=False)
    with pytest.raises(DeviceError, match=r"saturate, and ONNX Runtime 9\.9 does not repair"):
        ensure_exact(runtime.SessionOptions())
    (found,) = machine_checks.cpu()
    assert (found.state, "export in fp32" in found.said) == ("failed", True)


def test_products_that_are_wrong_in_seven_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, lambda pairs: np.clip(pairs, -16384, 16383))
    with pytest.raises(DeviceError, match="7-bit"):
        products()


STREAM, BOTH = ("stream_guard",), ("gen_guard", "stream_guard")


@pytest.mark.parametrize(("number", "served"), [(1, ()), (2, STREAM), (FORMAT, BOTH), (FORMAT + 1, ())])
def test_integers_of_another_format_are_refused_by_name(
    eight_bits: Path, tmp_path: Path, number: int, served: Sequence[str]
) -> None:
    for name in BOTH:
        folder = tmp_path / name
        shutil.copytree(eight_bits / name / "1", folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"format": number}))
        if name in served:
            assert read_manifest(folder).format == number
        else:
            with pytest.raises(ExportOutdated, match=rf"exported in format {number}; .* export the checkpoint again"):
                read_manifest(folder)
            (found,) = run_checks({"files": partial(export_checks.files, "guard", folder)})
            assert (found.state, f"format {number}" in found.said) == ("failed", True)


def test_an_old_export_without_a_format_is_of_the_first(eight_bits: Path, repository: Path, tmp_path: Path) -> None:
    """A Stream guard without integers is served still."""
    for source, refused in ((eight_bits, True), (repository, False)):
        folder = tmp_path / source.name
        shutil.copytree(source / "stream_guard" / "1", folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["format"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if refused:
            with pytest.raises(ExportOutdated, match="format 1"):
                read_manifest(folder)
        else:
            assert read_manifest(folder).format == 1
