"""Exports demo guards on whatever CPU this process sees: as it is done, and with products that are not repaired.

python tests/support/other_cpus/prove.py FOLDER CHECKPOINT [...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from qwen3guard_contract.errors import ParityError
from qwen3guard_contract.forms import Form
from qwen3guard_contract.integer_products import ensure_exact
from qwen3guard_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from qwen3guard_export.graph.write import write_graph
from qwen3guard_export.proof import bound_graph
from qwen3guard_export.proof.parity import prove
from qwen3guard_export.proof.texts import proof_rows

TOKENS = 48


def main(folder: str, *checkpoints: str) -> None:
    for checkpoint in map(open_checkpoint, checkpoints):
        for name, ensure in (("repaired", ensure_exact), ("as it is", lambda _: None)):
            vars(bound_graph)["ensure_exact"] = ensure
            print(f"{checkpoint.architecture.variant} {name}: {outcome(checkpoint, Path(folder))}")


def outcome(checkpoint: Checkpoint, folder: Path) -> str:
    form = Form.fastest(checkpoint.architecture.variant, "dq8r")
    write_graph(checkpoint, folder, form)
    rows = [row[:TOKENS] for row in proof_rows(checkpoint.folder, checkpoint.architecture.context)]
    try:
        prove(folder, checkpoint, form, rows)
    except ParityError as error:
        return f"refused, {error}"
    return "proved"


if __name__ == "__main__":
    main(*sys.argv[1:])
