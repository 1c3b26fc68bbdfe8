"""How much latency the guarding proxy adds to an LLM's answer: to its first token, and to every token.

    .venv/bin/python perf/proxy.py MODEL_REPOSITORY [--rates 30 300] [--answers 5] [--tokens 120] [--start 0.3]

A fake LLM starts after `--start` seconds and then writes one word in each chunk, at a steady rate; each chunk's usage
says when it was written. The openai package reads it directly and through the proxy, in turns, with one proxy process
for each release mode. A chunk's delay is the time from its writing to its reading. "after_check" holds a word until the
guard has cleared it, which needs the next word. The last line is one JSON object, with times in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
from aiohttp import web
from product import described
from qwen3guard_client import GuardClient
from qwen3guard_server import canary
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings

TEXT = "Cook some rice and roast a few vegetables with olive oil. Then let it all rest for ten minutes."
WORDS = TEXT.split()
PROMPT = "What should I cook for dinner tonight?"
RELEASES = ("after_check", "before_check")


class FakeLLM:
    """Answers chat completions with `tokens` words, at the rate that the request gives as its model."""

    def __init__(self, start_s: float, tokens: int) -> None:
        self._start_s = start_s
        self._tokens = tokens

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        await asyncio.sleep(self._start_s)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        began = time.monotonic()
        for number in range(self._tokens + 1):
            await asyncio.sleep(max(0.0, began + number / float(body["model"]) - time.monotonic()))
            ends = number == self._tokens
            delta = {} if ends else {"content": WORDS[number % len(WORDS)] + " "}
            choice = {"index": 0, "delta": delta, "finish_reason": "stop" if ends else None}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "fake", "choices": [choice]}
            chunk["usage"] = {"total_time": time.monotonic()}  # a field that the proxy passes
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self.answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        await runner.cleanup()


@contextlib.contextmanager
def proxied(guard: str, llm: str, release: str) -> Iterator[str]:
    command = [Path(sys.executable).parent / "qwen3guard", "proxy", "--port", "0", "--url", guard, "--upstream", llm]
    # No response has the category Jailbreak, so nothing is flagged, or held because it may be flagged.
    options = ["--release", release, "--block", "Jailbreak", "--prompt-check", "off"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    )
    assert process.stdout
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()


async def one_answer(client: openai.AsyncOpenAI, rate: float) -> tuple[float, list[float]]:
    """The seconds to the first text, and the delay of every text. Raises RuntimeError if the answer was flagged."""
    messages: Any = [{"role": "user", "content": PROMPT}]
    began = time.monotonic()
    first = 0.0
    delays = []
    chunks = await client.chat.completions.create(model=str(rate), messages=messages, stream=True)
    async for chunk in chunks:
        if chunk.choices[0].delta.content:
            now = time.monotonic()
            first = first or now - began
            delays.append(now - chunk.usage.model_extra["total_time"])
        elif chunk.choices[0].finish_reason != "stop":
            raise RuntimeError("The answer was flagged.")
    return first, delays


def milliseconds(values: list[float]) -> dict[str, float]:
    return {f"p{at}": round(float(np.percentile(values, at)) * 1e3, 2) for at in (50, 99)}


async def measure(guard: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    async with FakeLLM(arguments.start, arguments.tokens).served() as llm:
        with contextlib.ExitStack() as stack:
            urls = {"direct": llm}
            for release in RELEASES:
                urls[release] = stack.enter_context(proxied(guard, llm, release))
            clients = {way: openai.AsyncOpenAI(base_url=url, api_key="none") for way, url in urls.items()}
            for rate in arguments.rates:
                measured: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in clients}
                for turn in range(arguments.answers + 1):
                    for way, client in clients.items():
                        first, delays = await one_answer(client, rate)
                        if turn:  # the first answer of each way is a warm-up
                            measured[way][0].append(first)
                            measured[way][1].extend(delays)
                for way, (firsts, delays) in measured.items():
                    row = {"rate": rate, "way": way, "first": milliseconds(firsts), "token": milliseconds(delays)}
                    if way != "direct":
                        added = {
                            "first": np.median(firsts) - np.median(measured["direct"][0]),
                            "token": np.median(delays) - np.median(measured["direct"][1]),
                        }
                        row["added_p50"] = {name: round(float(value) * 1e3, 2) for name, value in added.items()}
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr)
            for client in clients.values():
                await client.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[30.0, 300.0])
    parser.add_argument("--answers", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--start", type=float, default=0.3)
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        EmbeddedServer(ServerSettings(arguments.repository, grpc_port=port)) as server,
        GuardClient(server.url, scope=None) as guard,
    ):
        server.wait_ready(lambda: canary.check(guard, server.manifests))
        rows = asyncio.run(measure(server.url, arguments))
        print(json.dumps({"guard": described(server.manifests["stream_step"]), "rows": rows}))


if __name__ == "__main__":
    main()
