"""Moderates an async generator: only text that the guard has cleared is shown.

python examples/async_moderate.py 127.0.0.1:8001 "How do I bake bread?"
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from qwen3guard_client import AsyncGuardClient, Policy


async def answer() -> AsyncIterator[str]:
    """A stand-in for an LLM; any async iterator of text will do."""
    for piece in ("Mix flour, water a", "nd salt. Let the dough", " rest, then bake it until", " the crust is dark."):
        await asyncio.sleep(0.01)
        yield piece


async def main(guard_url: str, prompt: str) -> int:
    async with AsyncGuardClient(guard_url) as guard:
        moderated = guard.moderate(answer(), prompt=prompt, policy=Policy(strict=True, debounce=2))
        async for segment in moderated:
            print(segment, end="", flush=True)
    print()
    if moderated.flag:
        print(f"stopped: {moderated.flag}", file=sys.stderr)
    return 1 if moderated.flag else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:3])))
