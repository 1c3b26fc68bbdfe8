"""A server tells how it multiplies."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

from qwen3guard_client import GuardClient, RiskLevel
from qwen3guard_contract.integer_products import products
from qwen3guard_server.server import EmbeddedServer
from qwen3guard_server.settings import ServerSettings
from support.serving import free_port, wait_ready


def test_a_server_tells_how_it_multiplies(eight_bits: Path) -> None:
    """In its log, in its metrics, and as a warning where it costs time. Its canaries agree, in integers too."""
    found = products()
    settings = ServerSettings(eight_bits, grpc_port=free_port(), metrics_port=free_port(), load_s=120)
    with EmbeddedServer(settings) as server:
        wait_ready(server)
        time.sleep(1.5)  # metrics are told once a second
        url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
        told = urllib.request.urlopen(url, timeout=10).read().decode()
        assert told.count(f'products="{found}"') == 2
        sentence = "8-bit products of this CPU are exact" if found == "exact" else "8-bit products of this CPU saturate"
        assert server.log.count(sentence) == 2
        assert bool(server.warnings) == (found == "repaired")
        with GuardClient(server.url) as guard:
            assert guard.classify("How do I bake bread?").severity is RiskLevel.SAFE
