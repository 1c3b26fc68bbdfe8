"""Lists the operators that an exported graph is made of.

python -m qwen3guard_export.proof.operators model.onnx [...]
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import onnx

STANDARD = "ai.onnx"


def operators(graph: Path) -> Counter[tuple[str, str]]:
    """The number of nodes of each (domain, operator), in the graph and in its subgraphs."""
    return _count(onnx.load(graph, load_external_data=False).graph)


def _count(graph: onnx.GraphProto) -> Counter[tuple[str, str]]:
    counts = Counter((node.domain or STANDARD, node.op_type) for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                counts += _count(inner)
    return counts


def is_standard(counts: Counter[tuple[str, str]]) -> bool:
    """Whether every operator is standard, so that any runtime of the graph's opset can run the graph."""
    return all(domain == STANDARD for domain, _ in counts)


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        counts = operators(path)
        print(f"{path}: {'standard operators alone' if is_standard(counts) else 'with operators of ONNX Runtime'}")
        for (domain, operator), count in sorted(counts.items()):
            print(f"  {count:5} {domain}.{operator}")


if __name__ == "__main__":
    main(sys.argv[1:])
