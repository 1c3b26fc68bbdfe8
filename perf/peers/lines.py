"""How every peer is asked: a line of JSON names the `work` and its arguments, and a line of JSON is the answer."""

from __future__ import annotations

import json
import sys
from typing import Any


def serve(peer: Any) -> None:
    """Answers {"ms": ...} with the seconds that a method of `peer` returns, or {NAME: ...} with a text."""
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("work")
        result = getattr(peer, name)(**request)
        print(json.dumps({name: result} if isinstance(result, str) else {"ms": 1e3 * result}), flush=True)
