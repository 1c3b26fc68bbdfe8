"""What the client shows."""

from __future__ import annotations

import qwen3guard_client


def test_the_public_names() -> None:
    for name in qwen3guard_client.__all__:
        assert hasattr(qwen3guard_client, name)
    assert qwen3guard_client.__all__ == sorted(qwen3guard_client.__all__)
