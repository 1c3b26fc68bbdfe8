"""Does a guard on the card compute its checkpoint? Its distance to PyTorch in float32 on the same card, beside the
distance that PyTorch in the same two bytes has itself.

    python perf/gpu/fidelity.py [--size 0.6B] [--variant stream] [--weights fp16 bf16] [--drop] [--seed 0] [--fake]

Five ways lead to the same tokens: one pass; pieces after a rewind; token by token; from a copied slot; and all rows in
one pass. An error is the root mean square of the differences, each output divided by its own root mean square, and
PyTorch's is taken at the same tokens. With --fake, a double of a GPU computes on the CPU: its values are right.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from figures import SIZES, VARIANTS, WEIGHTS, parser, read, say
from opened import on_a_double, opened
from prepared import checkpoint, guard
from qwen3guard_runtime.engine.kv_cache import KVCache, Slot, copy
from qwen3guard_runtime.engine.runner import Logits, Row, Runner
from reference import CANDIDATES, LOGPROB, STREAM_HEADS, Outputs, Reference
from shapes import checkpoint_shape

LENGTHS, FAKE_LENGTHS = (1100, 300, 40, 13), (40, 30, 13)
SLOT_TOKENS, FAKE_SLOT_TOKENS = 1280, 256
COMPARED = 20
"""Of each row, its last so many tokens are compared."""
CANDIDATE_COUNT = 100
Ids = npt.NDArray[np.int64]
Found = list[tuple[int, int, Outputs]]
"""Of each row that was run: its number, the place of the first token that is compared, and the outputs from there."""


class Ways:
    """The rows in each way. Every method returns what it found."""

    def __init__(self, runner: Runner, cache: KVCache, rows: Sequence[Ids], variant: str) -> None:
        self._runner, self._cache, self._rows, self._is_gen = runner, cache, rows, variant == "gen"

    def all(self) -> list[Callable[[], Found]]:
        return [
            self.one_pass,
            self.pieces_after_a_rewind,
            self.token_by_token,
            self.from_a_copied_slot,
            self.rows_in_one_pass,
        ]

    def _named(self, logits: Logits) -> Outputs:
        if self._is_gen:
            chosen, candidates = logits
            return {LOGPROB: chosen[:, 2:], CANDIDATES: candidates}
        return dict(zip((name for pair in STREAM_HEADS.values() for name in pair), logits, strict=True))

    def _run(self, slot: Slot, ids: Ids, asked: Sequence[int]) -> Outputs:
        return self._named(self._runner.forward([Row(slot, ids, asked)])[0])

    def one_pass(self) -> Found:
        found = []
        for number, ids in enumerate(self._rows):
            slot, begin = self._cache.acquire(len(ids)), max(0, len(ids) - COMPARED)
            found.append((number, begin, self._run(slot, ids, range(begin, len(ids)))))
            self._cache.release(slot)
        return found

    def pieces_after_a_rewind(self) -> Found:
        """What stands behind the place that a slot was rewound to must not be seen."""
        found = []
        for number, ids in enumerate(self._rows):
            slot, third = self._cache.acquire(len(ids)), len(ids) // 3
            self._run(slot, ids[::-1].copy(), [])
            slot.length = 0
            self._run(slot, ids[:third], [])
            self._run(slot, ids[third : 2 * third], [])
            rest = ids[2 * third :]
            asked = range(max(0, len(rest) - COMPARED), len(rest))
            found.append((number, 2 * third + asked[0], self._run(slot, rest, asked)))
            self._cache.release(slot)
        return found

    def token_by_token(self) -> Found:
        found = []
        for number, ids in enumerate(self._rows):
            slot, begin = self._cache.acquire(len(ids)), max(0, len(ids) - COMPARED)
            if begin:
                self._run(slot, ids[:begin], [])
            steps = [self._run(slot, ids[place : place + 1], [0]) for place in range(begin, len(ids))]
            found.append((number, begin, {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}))
            self._cache.release(slot)
        return found

    def from_a_copied_slot(self) -> Found:
        found = []
        for number, ids in enumerate(self._rows):
            slot, other = self._cache.acquire(len(ids)), self._cache.acquire(len(ids))
            begin = max(1, len(ids) - COMPARED)
            self._run(slot, ids[:begin], [])
            copy(slot, other, begin)
            found.append((number, begin, self._run(other, ids[begin:], range(len(ids) - begin))))
            self._cache.release(slot)
            self._cache.release(other)
        return found

    def rows_in_one_pass(self) -> Found:
        """Every row goes on where it stands, by another number of tokens."""
        slots = [self._cache.acquire(len(ids)) for ids in self._rows]
        counts = [1 + 3 * number for number in range(len(slots))]
        for slot, ids, count in zip(slots, self._rows, counts, strict=True):
            self._run(slot, ids[:-count], [])
        rows = [
            Row(slot, ids[-count:], range(count)) for slot, ids, count in zip(slots, self._rows, counts, strict=True)
        ]
        found = [self._named(logits) for logits in self._runner.forward(rows)]
        for slot in slots:
            self._cache.release(slot)
        return [
            (number, len(ids) - count, outputs)
            for number, (ids, count, outputs) in enumerate(zip(self._rows, counts, found, strict=True))
        ]


def rms(found: Found, exact: Sequence[Outputs]) -> float:
    """The error of `found` in the scale of each output, which is its root mean square over all of `exact`."""
    parts = []
    for name in exact[0]:
        scale = np.sqrt(np.mean(np.concatenate([each[name].ravel() for each in exact]).astype(np.float64) ** 2))
        for number, begin, outputs in found:
            expected = exact[number][name][begin : begin + len(outputs[name])]
            parts.append(((outputs[name].astype(np.float64) - expected) / scale).ravel())
    return float(np.sqrt(np.mean(np.concatenate(parts) ** 2)))


def same_tokens(found: Found, outputs: Sequence[Outputs]) -> Found:
    """`outputs`, which are of whole rows, at the tokens of `found`."""
    return [
        (number, begin, {name: outputs[number][name][begin : begin + len(each)] for name, each in some.items()})
        for number, begin, some in found
    ]


def torch_outputs(source: Path, kind: str, rows: Sequence[Ids], candidates: Sequence[int], fake: bool) -> list[Outputs]:
    """The outputs of PyTorch in `kind` at every token of each row. Its weights have left the card afterwards."""
    reference = Reference(source, kind, fake=fake)
    outputs = [reference.outputs(ids, candidates) for ids in rows]
    del reference
    gc.collect()
    if not fake:
        torch.cuda.empty_cache()
    return outputs


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", choices=SIZES, default="0.6B")
    made.add_argument("--variant", choices=VARIANTS, default="stream")
    made.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    made.add_argument("--drop", action="store_true", help="remove each graph after its use; one of 4B takes 8 GB")
    made.add_argument("--seed", type=int, default=0, help="of the rows' tokens (default: 0)")
    arguments = read(made)
    size, variant, fake = arguments.size, arguments.variant, arguments.fake
    if fake:
        on_a_double()
    source = checkpoint(arguments.folder, size, variant, fake=fake)
    vocabulary = checkpoint_shape(size, fake=fake)["vocab"]
    random = np.random.default_rng(arguments.seed)
    rows = [random.integers(0, vocabulary, length) for length in (FAKE_LENGTHS if fake else LENGTHS)]
    candidates = sorted(random.choice(vocabulary, CANDIDATE_COUNT, replace=False).tolist())
    exact = torch_outputs(source, "fp32", rows, candidates, fake)
    for weights in arguments.weights:
        half = torch_outputs(source, weights, rows, candidates, fake)
        folder = guard(arguments.folder, size, variant, weights, fake=fake)
        place = opened(folder, slot_tokens=FAKE_SLOT_TOKENS if fake else SLOT_TOKENS, candidates=candidates)
        ways = Ways(place.runner, KVCache(place.manifest, slots=8, memory=place.memory), rows, variant)
        for way in ways.all():
            found = way()
            say(
                "fidelity",
                size=size,
                variant=variant,
                weights=weights,
                way=way.__name__.replace("_", " "),
                rms=rms(found, exact),
                torch_rms=rms(same_tokens(found, half), exact),
                not_finite=sum(int((~np.isfinite(each)).sum()) for _, _, named in found for each in named.values()),
            )
        del place, ways
        gc.collect()
        if arguments.drop:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
