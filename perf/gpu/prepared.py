"""Makes the checkpoints with random weights and the paged graphs that are measured, where they are missing.

    python perf/gpu/prepared.py [--size 0.6B] [--variant stream gen] [--weights fp16] [--fake]

Fidelity and speed need no export's proof, so graphs are written without one; over_grpc.py makes whole exports. It needs
no GPU, and can run beside the first measurements.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from functools import cache
from pathlib import Path

from figures import ROOT, SIZES, VARIANTS, WEIGHTS, parser, read, say
from guards import ANSWERS, SHORT, lengthen_template, write_answer
from shapes import checkpoint_shape
from support.fake_cuda.run import write_guard
from support.places import DEMO
from support.random_checkpoint import make

CODE = "made-by"
"""The file beside a graph that names the code by its digest."""


def checkpoint(folder: Path, size: str, variant: str, *, fake: bool) -> Path:
    """The folder of a checkpoint in bf16 with random weights; made if it is missing."""
    target = folder / f"checkpoint-{_size(size, fake)}-{variant}"
    if not target.is_dir():
        making = _emptied(target.with_name(target.name + ".making"))
        make(making, variant, **checkpoint_shape(size, fake=fake), tokenizer_from=DEMO / variant)
        making.rename(target)
    return target


def answering(folder: Path, size: str, *, fake: bool) -> Path:
    """The folder of a Gen checkpoint that answers perf/guards.py's short conversation as the server drafts; made if it
    is missing. Its template has as many tokens as the real one."""
    target = folder / f"answering-{_size(size, fake)}"
    if not target.is_dir():
        making = _emptied(target.with_name(target.name + ".making"))
        make(making, "gen", **checkpoint_shape(size, fake=fake), tied=False, tokenizer_from=DEMO / "gen")
        lengthen_template(making)
        write_answer(making, ANSWERS["gen"], [SHORT])
        making.rename(target)
    return target


def guard(folder: Path, size: str, variant: str, weights: str, *, fake: bool) -> Path:
    """The folder of a guard's paged graph and manifest; made if it is missing or was made by other code."""
    target = folder / f"guard-{_size(size, fake)}-{variant}-{weights}"
    if is_outdated(target):
        write(checkpoint(folder, size, variant, fake=fake), target, weights)
    return target


def is_outdated(target: Path) -> bool:
    """Whether the guard in the folder `target` is missing, or `mark` was called for it with other code."""
    return not (target / CODE).is_file() or (target / CODE).read_text() != _code()


def mark(target: Path) -> None:
    """Notes by which code the guard in the folder `target` was made."""
    (target / CODE).write_text(_code())


@cache
def _code() -> str:
    """A digest of the code that exports: a copy of the project may lose the times of its changes."""
    digest = hashlib.sha256()
    for path in sorted(path for name in ("contract", "export") for path in (ROOT / name).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write(source: Path, target: Path, weights: str) -> None:
    """Writes the paged graph and the manifest of the checkpoint `source` into `target`, in place of what is there."""
    making = _emptied(target.with_name(target.name + ".making"))
    write_guard(source, making, weights, "paged")
    mark(making)
    shutil.rmtree(target, ignore_errors=True)
    making.rename(target)


def _size(size: str, fake: bool) -> str:
    return f"fake{size}" if fake else size


def _emptied(folder: Path) -> Path:
    """The path of a folder that does not exist, whose parent does: what an earlier run left half made is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", choices=SIZES, default="0.6B")
    made.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    made.add_argument("--weights", nargs="+", choices=WEIGHTS, default=["fp16"])
    arguments = read(made)
    for variant in arguments.variant:
        for weights in arguments.weights:
            began = time.perf_counter()
            guard(arguments.folder, arguments.size, variant, weights, fake=arguments.fake)
            took = time.perf_counter() - began
            say("prepared", size=arguments.size, variant=variant, weights=weights, seconds=took)


if __name__ == "__main__":
    main()
