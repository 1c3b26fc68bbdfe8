"""The container's probe: does every guard in /models answer its manifest's canary?

Exits with 0: yes, or it is too full to answer; 1: the server is not up yet; 2: it is up, and answers wrongly or not at
all. Triton's own health endpoints stay ready when the process behind a model is dead.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from qwen3guard_client import GuardClient
from qwen3guard_client.transport.connection import read_token
from qwen3guard_contract.errors import GuardError, Overloaded
from qwen3guard_contract.layout import exported
from qwen3guard_server import canary


def probe(models: Path, url: str, timeout_s: float) -> tuple[int, str]:
    with GuardClient(url, timeout_s=timeout_s, wait_for_server=False, token=read_token(None)) as guard:
        try:
            up = canary.check(guard, exported(models), timeout_s)
        except Overloaded:
            return 0, "overloaded"
        except GuardError as error:
            return 2, str(error)
    return (0, "ready") if up else (1, "not up yet")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--url", default="127.0.0.1:8001")
    arguments.add_argument("--timeout", type=float, default=10.0, metavar="S", help="for each answer; default: 10")
    given = arguments.parse_args()
    status, said = probe(Path(os.environ.get("MODEL_REPOSITORY", "/models")), given.url, given.timeout)
    print(f"canary: {said}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
