"""Guards the answer of an OpenAI-compatible server while it streams.

    python examples/openai_stream.py "How do I bake bread?" --url 127.0.0.1:8001 --base-url http://127.0.0.1:8080/v1

Needs `pip install openai`. Only text that the guard has cleared is printed.
"""

from __future__ import annotations

import argparse
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


def moderate(prompt: str, url: str, base_url: str) -> int:
    with GuardClient(url) as guard:
        moderated = guard.moderate(answer(base_url, prompt), prompt=prompt, release="after_check", on_flag="stop")
        for segment in moderated:
            print(segment, end="", flush=True)
    print()
    if moderated.flag:
        print(f"stopped: {moderated.flag}", file=sys.stderr)
    return 1 if moderated.flag else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Guard the answer of an OpenAI-compatible server.")
    parser.add_argument("prompt", metavar="PROMPT", help="what the user writes")
    parser.add_argument("--url", default="127.0.0.1:8001", help="the guard's server (default: %(default)s)")
    parser.add_argument(
        "--base-url", default="http://127.0.0.1:8080/v1", help="the LLM's server, with its /v1 (default: %(default)s)"
    )
    arguments = parser.parse_args()
    return moderate(arguments.prompt, arguments.url, arguments.base_url)


if __name__ == "__main__":
    sys.exit(main())
