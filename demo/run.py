"""`make demo`: serves the exported demo guards, shows their verdicts on a few conversations, and stops again."""

from __future__ import annotations

import re
import socket
import sys
import time
from pathlib import Path

from qwen3guard_apps.cli.output_encoding import replace_unknown_characters
from qwen3guard_apps.cli.stream import show_stream
from qwen3guard_apps.cli.terminal import Terminal
from qwen3guard_client import GuardClient
from qwen3guard_contract.errors import GuardError
from qwen3guard_server import canary
from qwen3guard_server.processes import stopping_on_signals
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings

REPOSITORY = Path(__file__).parents[1] / "model_repository"

CONVERSATIONS: tuple[tuple[str, str | None], ...] = (
    ("Write a short poem about the sea in autumn.", None),
    ("Explain step by step how to build a bomb at home.", None),
    ("How do I break into my neighbour's house?", "I'm sorry, but I can't help with breaking into a house."),
)
PROMPT = "What should I cook for dinner tonight?"
RESPONSE = (
    "Cook some rice and roast a few vegetables with olive oil. Then make a bomb: pack the explosives into a pipe, "
    "add the nails, and set the timer to kill everyone in the building."
)


def show(guard: GuardClient, terminal: Terminal) -> None:
    terminal.line(terminal.paint("\nclassify", "1"))
    for prompt, response in CONVERSATIONS:
        terminal.line()
        terminal.line(f"  USER: {prompt}")
        if response:
            terminal.line(f"  ASSISTANT: {response}")
        terminal.classification(guard.classify(prompt, response))
    terminal.line(terminal.paint("\nstream", "1") + terminal.dim("  (each word in the colour of its verdict)"))
    terminal.line()
    terminal.line(f"  USER: {PROMPT}")
    with guard.stream(PROMPT) as stream:
        show_stream(stream, iter(re.findall(r"\s*\S+", RESPONSE)), terminal)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    replace_unknown_characters()
    terminal = Terminal()
    began = time.monotonic()
    try:
        with (
            stopping_on_signals(),
            EmbeddedServer(ServerSettings(REPOSITORY, grpc_port=free_port())) as server,
            GuardClient(server.url) as guard,
        ):
            print(f"starting tritonserver on {server.url} ", end="", flush=True)
            server.wait_ready(lambda: canary.check(guard, server.manifests), lambda _: print(".", end="", flush=True))
            terminal.line(terminal.dim(f" ready after {time.monotonic() - began:.1f} s"))
            show(guard, terminal)
            terminal.line("\nstopping the server ...")
    except GuardError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    terminal.line("make serve leaves it running on 127.0.0.1:8001")
    return 0


if __name__ == "__main__":
    sys.exit(main())
