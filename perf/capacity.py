"""Writes docs/capacity.md: the streams and requests that a machine can serve, by its memory, bandwidth and speed.

    .venv/bin/python perf/capacity.py [--check]

The CPU's figures come from perf/results/latest.json, and are compared with its curves. A GPU's figures are arithmetic
on its data sheet.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3guard_contract.slots import capacities

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "capacity.md"
GENERATED = "<!-- from here on written by perf/capacity.py -->"
CONTEXTS = (512, 2048, 8192)
STREAM_RATE = 30.0
"""Tokens a second that one LLM writes to one reader."""
TURNS, TURN_TOKENS = (5, 10, 20), 250
"""A question of 60 words and a response of 180 is a turn of about 250 tokens."""
SLOTS = tuple(capacities(32_768))
SLOT_CELLS = 64
"""The cells of a slot beyond its tokens: a step's."""
NEW_TOKENS, HELD_TOKENS = 141, 201
"""Tokens of a short conversation: those that a request computes, with its draft, and those of the kept prefix."""


@dataclass(frozen=True)
class Size:
    name: str
    parameters: float
    layer_weights: float
    layers: int
    kv_heads: int = 8
    head_dim: int = 128

    def weights(self, weight_bytes: float) -> float:
        return self.layer_weights * weight_bytes

    def cell(self, kv_bytes: float) -> float:
        """The bytes of one token in one stream; int8 has a scale of four bytes for each head's key and value."""
        scale = 4 if kv_bytes == 1 else 0
        return 2 * self.layers * self.kv_heads * (self.head_dim * kv_bytes + scale)


SIZES = (Size("0.6B", 0.6e9, 0.440e9, 28), Size("4B", 4.0e9, 3.63e9, 36), Size("8B", 8.2e9, 6.95e9, 36))
"""`layer_weights` are the weights of the layers, which a step reads; they follow from the Qwen3 configurations."""


@dataclass(frozen=True)
class Machine:
    """A machine with a number format.

    `memory` is in bytes, `read_bytes` and `operations` are a second, and `weight_bytes` and `kv_bytes` are those of one
    number. `over_floor` is how many times the least possible time a step takes, measured for the CPU and assumed for
    the GPUs; `classify_over_floor` is the same of a classification.
    """

    name: str
    memory: float
    read_bytes: float
    operations: float
    weight_bytes: float
    kv_bytes: float
    over_floor: float
    classify_over_floor: float
    is_card: bool = True

    def step_s(self, size: Size, context: int, sessions: int = 1) -> float:
        """Seconds for one token of each of `sessions` streams in one pass."""
        read = size.weights(self.weight_bytes) + sessions * context * size.cell(self.kv_bytes)
        return self.over_floor * read / self.read_bytes

    def sessions_in_memory(self, size: Size, context: int) -> int:
        """Of a card by the rule of docs/gpu.md; of a CPU with a part left for the system and the embeddings."""
        if self.is_card:
            free = 0.9 * self.memory - size.parameters * self.weight_bytes - 0.5 * 2**30
            context += SLOT_CELLS
        else:
            free = 0.85 * self.memory - 1.2 * size.weights(self.weight_bytes)
        return max(0, int(free / (context * size.cell(self.kv_bytes))))

    def sessions_in_time(self, size: Size, context: int) -> int:
        """The number of streams that can have STREAM_RATE tokens a second each, with one token a step."""
        read = self.read_bytes / self.over_floor / STREAM_RATE - size.weights(self.weight_bytes)
        return max(0, int(read / (context * size.cell(self.kv_bytes))))

    def requests_a_second(self, size: Size) -> float:
        attention = 4 * NEW_TOKENS * (HELD_TOKENS + NEW_TOKENS / 2) * size.layers * size.kv_heads * 2 * size.head_dim
        work = 2 * NEW_TOKENS * size.layer_weights + attention
        return self.operations / (self.classify_over_floor * work)


def machines(result: dict[str, Any]) -> list[Machine]:
    floor, rows = result["machine"]["floor"], {row["row"]: row for row in result["rows"]}
    cpu = Machine(
        name=f"this CPU, {result['machine']['threads']} cores",
        memory=result["machine"]["memory_gib"] * 2**30,
        read_bytes=1e9 * floor["read_gb_s"],
        operations=1e9 * floor["u8s8_gops"],
        weight_bytes=1,
        kv_bytes=1,
        over_floor=rows["11a"]["value"],
        classify_over_floor=rows["11b"]["value"],
        is_card=False,
    )
    return [
        cpu,
        Machine("A10G, fp16", 24e9, 600e9, 70e12, 2, 2, 2.0, 2.0),
        Machine("H100 SXM, bf16", 80e9, 3350e9, 989e12, 2, 2, 2.0, 2.0),
    ]


def page(result: dict[str, Any]) -> str:
    all_machines = machines(result)
    rows = {row["row"]: row["ours"] for row in result["rows"]}
    measured_rate = rows["8"]
    lines = [
        f"Streams of {STREAM_RATE:g} tokens a second, one token a step: as many as time allows / as memory holds. All "
        "cells are arithmetic, but one that says measured.",
        "",
        "| machine | size | " + " | ".join(f"{context} tokens" for context in CONTEXTS) + " | classify, requests/s |",
        "|---|---|" + "---|" * (len(CONTEXTS) + 1),
    ]
    for machine in all_machines:
        for size in SIZES:
            cells = [
                f"{machine.sessions_in_time(size, context):,} / {machine.sessions_in_memory(size, context):,}"
                for context in CONTEXTS
            ]
            rate = machine.requests_a_second(size)
            shown = f"{rate:,.1f}"
            if machine is all_machines[0] and size is SIZES[0]:
                shown += f"; measured {measured_rate:,.1f}"
            lines.append(f"| {machine.name} | {size.name} | " + " | ".join(cells) + f" | {shown} |")
    cpu, size = all_machines[0], SIZES[0]
    lines += [
        "",
        f"The same arithmetic against what was measured on {result['machine']['cores']} cores of an"
        f" {result['machine']['cpu']}, commit {result['versions']['commit'][:7]} (0.6B, dq8r, int8 KV, one stream,"
        f" one token; 16 tokens at 512 take {rows['6a']:.0f} ms):",
        "",
        "| context | predicted ms | measured ms |",
        "|---|---|---|",
    ]
    for context, measured, _ in result["curves"]["context"]:
        lines.append(f"| {context} | {1e3 * cpu.step_s(size, context):.0f} | {measured:.0f} |")
    lines += ["", "| sessions at 512 tokens | predicted tokens/s | measured tokens/s |", "|---|---|---|"]
    for sessions, rate, _ in result["curves"]["sessions"]:
        lines.append(f"| {sessions} | {sessions / cpu.step_s(size, 512, sessions):.0f} | {rate:.0f} |")
    return "\n".join([*lines, *chats(), ""])


def chats() -> list[str]:
    """How many chats of each length fit into a GiB of held prefixes, in slots as the guards have them."""
    lines = [
        "",
        f"Chats that a GiB of `prefix_bytes` holds, at {TURN_TOKENS} tokens a turn:",
        "",
        "| size | keys and values | " + " | ".join(f"{turns} turns" for turns in TURNS) + " |",
        "|---|---|" + "---|" * len(TURNS),
    ]
    for size in SIZES:
        for form, kv_bytes in (("int8", 1), ("fp16 or bf16", 2), ("fp32", 4)):
            slots = [next(each for each in SLOTS if each >= turns * TURN_TOKENS) for turns in TURNS]
            held = [int(2**30 / (slot * size.cell(kv_bytes))) for slot in slots]
            lines.append(f"| {size.name} | {form} | " + " | ".join(map(str, held)) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if the page differs")
    check = parser.parse_args().check
    result = json.loads((Path(__file__).parent / "results" / "latest.json").read_text())
    written = PAGE.read_text()
    new = written.partition(GENERATED)[0] + GENERATED + "\n\n" + page(result)
    if not check:
        PAGE.write_text(new)
    elif new != written:
        sys.exit("docs/capacity.md has other figures than perf/results/latest.json: run python perf/capacity.py")


if __name__ == "__main__":
    main()
