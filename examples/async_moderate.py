"""Moderates an async generator: only text that the guard has cleared is shown.

python examples/async_moderate.py "How do I bake bread?" --url 127.0.0.1:8001
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator

from qwen3guard_client import AsyncGuardClient, Policy


async def answer() -> AsyncIterator[str]:
    """A stand-in for an LLM; any async iterator of text will do."""
    for piece in ("Mix flour, water a", "nd salt. Let the dough", " rest, then bake it until", " the crust is dark."):
        await asyncio.sleep(0.01)
        yield piece


async def moderate(prompt: str, url: str) -> int:
    async with AsyncGuardClient(url) as guard:
        moderated = guard.moderate(answer(), prompt=prompt, policy=Policy(strict=True, debounce=2))
        async for segment in moderated:
            print(segment, end="", flush=True)
    print()
    if moderated.flag:
        print(f"stopped: {moderated.flag}", file=sys.stderr)
    return 1 if moderated.flag else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Moderate an async generator.")
    parser.add_argument("prompt", metavar="PROMPT", help="what the user writes")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the guard's server (default: %(default)s)")
    arguments = parser.parse_args()
    return asyncio.run(moderate(arguments.prompt, arguments.url))


if __name__ == "__main__":
    sys.exit(main())
