"""What the wheel without extras must do on every Python: run by build.py in a fresh environment.

    python -W error client_alone.py HOST:PORT

Imports every module of the contract and the client, judges a conversation and a stream, sync and async, and prints
the versions it ran with.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import pkgutil
import platform
import sys

import qwen3guard_client
import qwen3guard_contract
from qwen3guard_client import AsyncGuardClient, GuardClient

PROMPT = "How do I bake bread?"


def modules() -> list[str]:
    rooms = (qwen3guard_client, qwen3guard_contract)
    return [found.name for room in rooms for found in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")]


async def judged(url: str) -> str:
    async with AsyncGuardClient(url) as guard:
        return (await guard.classify(PROMPT)).as_json()


def main(url: str) -> None:
    for name in modules():
        importlib.import_module(name)
    with GuardClient(url) as guard:
        verdict = guard.classify(PROMPT)
        with guard.stream(PROMPT) as stream:
            for piece in ("Mix fl", "our and wat", "er."):
                stream.step(piece)
    assert stream.verdicts, "the stream has no verdict"
    assert asyncio.run(judged(url)) == verdict.as_json(), "sync and async do not agree"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "grpcio", "tritonclient"))
    found = f"{len(modules())} modules imported; {verdict.severity.value}, {len(stream.verdicts)} tokens judged"
    print(f"  Python {platform.python_version()} with {versions}: {found}")


if __name__ == "__main__":
    main(sys.argv[1])
