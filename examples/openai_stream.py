"""Guards the answer of an OpenAI-compatible server while it streams.

    python examples/openai_stream.py http://127.0.0.1:8080/v1 127.0.0.1:8001 "How do I bake bread?"

Needs `pip install openai`. Only text that the guard has cleared is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from openai import OpenAI
from qwen3guard_client import GuardClient


def answer(base_url: str, prompt: str) -> Iterator[str]:
    """The text that the LLM writes, as it arrives. Closing the iterator closes the connection."""
    client = OpenAI(base_url=base_url, api_key="none")
    messages = [{"role": "user", "content": prompt}]
    with client.chat.completions.create(model="any", messages=messages, stream=True) as chunks:  # type: ignore[call-overload]
        for chunk in chunks:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield text


def main(base_url: str, guard_url: str, prompt: str) -> int:
    with GuardClient(guard_url) as guard:
        moderated = guard.moderate(answer(base_url, prompt), prompt=prompt, release="after_check", on_flag="stop")
        for segment in moderated:
            print(segment, end="", flush=True)
    print()
    if moderated.flag:
        print(f"stopped: {moderated.flag}", file=sys.stderr)
    return 1 if moderated.flag else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
