"""Runs the worker of this folder over the CUDA runtime of this folder, with ONNX Runtime's GPU package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3guard_contract.forms import Form
from qwen3guard_contract.manifest import Canary, Manifest
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
from qwen3guard_export.graph.write import write_graph

from support.fake_cuda.build import build
from support.fake_cuda.journal import Part, read
from support.places import ROOT

PACKAGES = ROOT / ".venv" / "gpu"
"""Where `make .venv/gpu.done` installs onnxruntime-gpu: apart from the environment, whose package onnxruntime has the
same folder."""
Rows = Sequence[tuple[int, int, int]]
"""Each row's slot, its number of tokens, and of how many of its last tokens it wants logits."""


@dataclass(frozen=True)
class Ran:
    """What a worker answered, and its journal by part."""

    providers: list[str]
    on_the_cpu: list[str]
    shapes: dict[str, list[list[list[int]]]]
    errors: dict[str, str]
    context: int
    lengths: list[int]
    journal: dict[str, Part]


class Died(Exception):
    """The worker ended without an answer: its exit status, and what it wrote."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class FakeGpu:
    """A machine with one H100 that is not there. `folder` gets the libraries, as pip would install NVIDIA's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._site, self._bare, self._driver = folder / "site", folder / "bare", folder / "driver"
        libraries = self._site / "nvidia" / "cu13" / "lib"
        libraries.mkdir(parents=True)
        self._driver.mkdir()
        self._bare.mkdir()
        for site in (self._site, self._bare):
            (site / "onnxruntime").symlink_to(PACKAGES / "onnxruntime")
        build(libraries, PACKAGES / "nvidia" / "cu13" / "include")
        (libraries / "libcuda.so.1").rename(self._driver / "libcuda.so.1")
        self._runs = 0

    def python(
        self, *arguments: str, text: str = "", libraries: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs Python on this machine. Without `libraries`, those of NVIDIA are not installed on it, but its driver."""
        site = self._site if libraries else self._bare
        return subprocess.run(
            [sys.executable, *arguments],
            input=text,
            env=os.environ
            | {"PYTHONPATH": f"{site}:{ROOT / 'tests'}", "LD_LIBRARY_PATH": str(self._driver)}
            | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def run(self, guard: Path, parts: Mapping[str, Rows], *, slots: int = 4, **parameters: str) -> Ran:
        """Runs `parts` in order. Raises Died."""
        self._runs += 1
        journal = self._folder / f"journal-{self._runs}"
        work = {"folder": str(guard), "parts": parts, "slots": slots, "parameters": {"device": "cuda"} | parameters}
        done = self.python("-m", "support.fake_cuda.worker", text=json.dumps(work), FAKE_CUDA_JOURNAL=str(journal))
        if done.returncode or not done.stdout:
            raise Died(done.returncode, done.stderr[-3000:])
        return Ran(**json.loads(done.stdout.splitlines()[-1]), journal=read(journal))


def write_guard(checkpoint: Path, folder: Path, weights: str, attention: str) -> Path:
    """Writes a guard's graph and its manifest into `folder`, without the proof; returns `folder`."""
    opened = open_checkpoint(str(checkpoint))
    architecture, form = opened.architecture, Form.named(weights, attention)
    folder.mkdir(parents=True)
    write_graph(opened, folder, form)
    Manifest(
        variant=architecture.variant,
        source="random",
        weights=form.weights,
        attention=form.attention,
        layers=architecture.layers,
        kv_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        hidden_size=architecture.hidden,
        vocab_size=architecture.vocab,
        context=architecture.context,
        demo=False,
        parameters=1,
        parity={},
        sha256={},
        versions={},
        canary=Canary((1,), (0.0,), 1.0),
    ).write(folder)
    return folder
