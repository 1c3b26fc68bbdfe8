"""The container's probe: does every guard that it serves answer the canary of its manifest?

Exits with 0 if so, or if the server is too full to answer; with 1 if the server is not up yet; with 2 if it is up and
does not answer; with 3 if an answer is wrong, after which the server must not give another one. Triton's own health
endpoints report ready even when the process of a model is hung.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from qwen3guard_contract.errors import CanaryFailed, GuardError, Overloaded
from qwen3guard_contract.layout import exported
from qwen3guard_contract.log_output import TRACE_VARIABLE

SERVED = Path(tempfile.gettempdir()) / "qwen3guard-served"
"""The manifests of what this container has loaded, which serve.py copies. In /models there may be a newer export, and
the canary of that would call every replica of a fleet wrong at once."""


def probe(url: str, timeout_s: float) -> tuple[int, str]:
    """The exit status, and the reason for it."""
    if not SERVED.is_dir():
        return 1, "not up yet"
    from qwen3guard_client import GuardClient
    from qwen3guard_client.transport.connection import read_token
    from qwen3guard_server import canary

    with GuardClient(url, timeout_s=timeout_s, wait_for_server=False, token=read_token(None)) as guard:
        try:
            up = canary.check(guard, exported(SERVED), timeout_s)
        except Overloaded:
            return 0, "overloaded"
        except CanaryFailed as error:
            return 3, str(error)
        except GuardError as error:
            return 2, str(error)
    return (0, "ready") if up else (1, "not up yet")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="for each answer; default: 10")
    arguments = parser.parse_args()
    os.environ.pop(TRACE_VARIABLE, None)  # before gRPC is imported, which reads it then
    status, reason = probe(arguments.url, arguments.timeout)
    print(f"canary: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
