"""What four bits would cost: a checkpoint beside itself with its layers' matrices in 16 levels, both computed in fp32.

    .venv/bin/python perf/four_bits.py CHECKPOINT [--texts 100] [--levels 16]

The levels stand from the least to the largest of each 32 weights of a row, as 4-bit formats of other engines have them.
What the formats cost that are exported, `qwen3guard verify` tells, on the same texts and in the same terms.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16
from qwen3guard_apps.verification.comparison import compare
from qwen3guard_apps.verification.judgements import Judgements, Tokenized
from qwen3guard_apps.verification.judges import open_judge
from qwen3guard_apps.verification.texts import SampleText, bundled, spread
from qwen3guard_contract.errors import InputError
from qwen3guard_export import export

LEVELS, BLOCK = 16, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--texts", type=int, help="so many of the texts of qwen3guard verify (default: all)")
    parser.add_argument("--levels", type=int, default=LEVELS)
    arguments = parser.parse_args()
    texts = spread(bundled(), arguments.texts)
    with tempfile.TemporaryDirectory() as folder:
        judged, exact = judgements(arguments.checkpoint, Path(folder) / "exact", texts)
        copy = rounded(arguments.checkpoint, Path(folder) / "copy", arguments.levels)
        _, found = judgements(copy, Path(folder) / "rounded", judged)
    print(json.dumps(compare(judged, exact, found).as_dict(), indent=1, ensure_ascii=False))


def judgements(checkpoint: Path, output: Path, texts: list[SampleText]) -> tuple[list[SampleText], list[Judgements]]:
    """The texts that the guard can take, with what its fp32 graph says about them."""
    manifest = export(str(checkpoint), output, say=lambda _: None)
    judge = open_judge(output, manifest.variant, cuda=False)
    taken: dict[SampleText, Tokenized] = {}
    for text in texts:
        try:
            taken[text] = judge.tokenize(text)
        except InputError:
            continue
    return list(taken), [judge.judge(tokens) for tokens in taken.values()]


def rounded(checkpoint: Path, folder: Path, levels: int = LEVELS) -> Path:
    """A copy of a checkpoint in `folder`, with the layers' matrices rounded."""
    shutil.copytree(checkpoint, folder)
    for file in folder.glob("*.safetensors"):
        _round(file, levels)
    return folder


def _round(file: Path, levels: int) -> None:
    """Rounds the layers' matrices of a safetensors file where they stand. The file's own format rounds them once more,
    by a tenth as much at most with 16 levels."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        for name, entry in header.items():
            if "layers." in name and "_proj." in name:
                kind = {"BF16": bfloat16, "F16": np.float16, "F32": np.float32}[entry["dtype"]]
                begin, end = entry["data_offsets"]
                opened.seek(8 + size + begin)
                blocks = np.frombuffer(opened.read(end - begin), kind).astype(np.float32).reshape(-1, BLOCK)
                least = blocks.min(axis=1, keepdims=True)
                step = np.maximum((blocks.max(axis=1, keepdims=True) - least) / (levels - 1), 1e-30)
                opened.seek(8 + size + begin)
                opened.write((least + step * np.round((blocks - least) / step)).astype(kind).tobytes())


if __name__ == "__main__":
    main()
