"""Packages that take seconds to import, imported when a test first uses one.

Each of pytest's workers collects all files, and runs some.
"""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """A module, imported when something of it is asked for first."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest, which looks for tests and fixtures
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)


anthropic: Any = Later("anthropic")
datasets: Any = Later("datasets")
litellm: Any = Later("litellm")
litellm_adapter: Any = Later("qwen3guard_apps.adapters.litellm")
litellm_types: Any = Later("litellm.types.utils")
sklearn_metrics: Any = Later("sklearn.metrics")
torch: Any = Later("torch")
transformers: Any = Later("transformers")
