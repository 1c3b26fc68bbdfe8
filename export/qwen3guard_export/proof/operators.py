"""Which operators an exported graph is made of.

python -m qwen3guard_export.operators model.onnx [...]
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import onnx

STANDARD = "ai.onnx"


def operators(graph: Path) -> Counter[tuple[str, str]]:
    """How many nodes there are of each (domain, operator), in the graph and in the graphs within it."""
    return _count(onnx.load(graph, load_external_data=False).graph)


def _count(graph: onnx.GraphProto) -> Counter[tuple[str, str]]:
    found = Counter((node.domain or STANDARD, node.op_type) for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found += _count(inner)
    return found


def is_standard(found: Counter[tuple[str, str]]) -> bool:
    """Whether any runtime of the graph's opset can run it."""
    return all(domain == STANDARD for domain, _ in found)


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        found = operators(path)
        print(f"{path}: {'standard operators alone' if is_standard(found) else 'with operators of ONNX Runtime'}")
        for (domain, operator), count in sorted(found.items()):
            print(f"  {count:5} {domain}.{operator}")


if __name__ == "__main__":
    main(sys.argv[1:])
