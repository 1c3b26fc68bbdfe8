"""What the processes of the served models have loaded."""

from __future__ import annotations

from pathlib import Path

from qwen3guard_server.processes import model_processes
from qwen3guard_server.server import EmbeddedServer


def test_no_model_process_maps_grpc(server: EmbeddedServer) -> None:
    """They take their words from the contract; gRPC's library is Triton's business, and 20 MiB in each of them."""
    processes = model_processes(server.pid)
    assert set(processes) == {"guard_tokenizer", "gen_guard", "stream_tokenizer", "stream_guard"}
    for name, pid in processes.items():
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "numpy" in maps, name  # the maps are those of a process that has loaded its packages
        assert "cygrpc" not in maps, name
