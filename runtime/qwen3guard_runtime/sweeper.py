"""Forgets what was idle for too long, also while no request comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SWEEP_S = 60.0
"""The longest time between two looks."""
SHORTEST_S = 0.1


def sweep(forget: Callable[[], object], lock: threading.Lock, *idle_s: float) -> None:
    """Calls `forget` under `lock` now and then, in a thread that ends with the process: at least twice in the shortest
    of the times `idle_s`."""
    every_s = max(min(SWEEP_S, *(each / 2 for each in idle_s)), SHORTEST_S)

    def work() -> None:
        while True:
            time.sleep(every_s)
            with lock:
                forget()

    threading.Thread(target=work, daemon=True).start()
