"""TensorRT engines of the true shapes: whether they build, how long that takes, their size, and the memory it needs.

    python perf/engines.py [--shape 0.6B] [--layers N] [--weights fp16 bf16] [--slot-tokens 2048]

The weights are random. No engine is run, so no GPU is needed. With fewer layers, 4B and 8B fit a small machine. Prints
a line for each engine, and all results as JSON last.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from qwen3guard_export import export  # noqa: E402
from support.random_checkpoint import SHAPES, make  # noqa: E402


def build(variant: str, shape: dict[str, Any], weights: str, slot_tokens: int) -> dict[str, Any]:
    """Exports one guard; call it in a process of its own, whose peak of memory is then that of the export."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make(Path(folder) / "checkpoint", variant, **shape)
        began = time.monotonic()
        stages: list[tuple[float, str]] = []

        def say(text: str) -> None:
            stages.append((time.monotonic() - began, text))

        output = Path(folder) / "models"
        manifest = export(str(checkpoint), output, weights=weights, tensorrt=True, slot_tokens=slot_tokens, say=say)
        took = time.monotonic() - began
        engine = manifest.engine
        assert engine is not None
        size = (output / f"{variant}_guard" / "1" / engine.file).stat().st_size
        starts = [at for at, text in stages if text.startswith("building")]
        ends = [at for at, text in stages if text.startswith("built")]
        shutil.rmtree(output)
    return {
        "variant": variant,
        "hidden": shape["hidden"],
        "layers": shape["layers"],
        "weights": weights,
        "capacity": engine.capacity,
        "builder": f"{engine.package} {engine.version}",
        "compute_capabilities": engine.compute_capabilities,
        "engine_bytes": size,
        "build_s": round(ends[0] - starts[0], 1),
        "export_s": round(took, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "parity": manifest.parity["fp32_max"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="0.6B")
    parser.add_argument("--weights", nargs="+", choices=("fp16", "bf16"), default=["fp16", "bf16"])
    parser.add_argument("--slot-tokens", type=int, default=2048)
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape] | ({"layers": arguments.layers} if arguments.layers else {})
    rows = []
    for variant in ("gen", "stream"):
        for weights in arguments.weights:
            with get_context("spawn").Pool(1) as pool:
                row = pool.apply(build, (variant, shape, weights, arguments.slot_tokens))
            rows.append(row)
            print(
                f"{variant} {arguments.shape}, {row['layers']} layers, {weights}: "
                f"{row['engine_bytes'] / 2**30:.2f} GiB, "
                f"built in {row['build_s']} s (the whole export {row['export_s']} s, "
                f"{row['peak_bytes'] / 2**30:.1f} GiB of memory)",
                flush=True,
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
