"""LiteLLM's own proxy server, in a process of its own, with our guardrails: over HTTP and in its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from support.serving import free_port

GENERIC, IN_PROCESS, NOBODY = "generic", "in-process", "nobody"
"""The names of the guardrails: by LiteLLM's generic API, by the adapter, and one that nobody answers."""


def config(llm: str, proxy: str, guard: str, guarded_llm: str) -> dict[str, Any]:
    """Of LiteLLM, as JSON, which is YAML. No guardrail is on unless a request names it.

    The model `guarded` is the LLM behind a proxy of ours.
    """

    def generic(base: str) -> dict[str, Any]:
        streaming = {"streaming_sampling_rate": 1, "streaming_transform_mode": "incremental_diff"}
        return {"guardrail": "generic_guardrail_api", "api_base": base, **streaming}

    guardrails = {
        GENERIC: generic(proxy),
        IN_PROCESS: {"guardrail": "qwen3guard_apps.adapters.litellm.Qwen3Guardrail", "url": guard},
        NOBODY: generic(f"http://127.0.0.1:{free_port()}"),
    }
    served = {"api_base": llm, "api_key": "sk-x"}
    return {
        "model_list": [
            # Of this provider LiteLLM asks all routes as chat completions.
            {"model_name": "chat", "litellm_params": {"model": "lm_studio/chat", **served}},
            {"model_name": "guarded", "litellm_params": {"model": "lm_studio/chat", **served, "api_base": guarded_llm}},
            {"model_name": "embed", "litellm_params": {"model": "openai/embed", **served}},
        ],
        "guardrails": [
            {"guardrail_name": name, "litellm_params": {"mode": ["pre_call", "post_call"], **parameters}}
            for name, parameters in guardrails.items()
        ],
        "router_settings": {"disable_cooldowns": True, "num_retries": 0},
        "litellm_settings": {"telemetry": False},
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }


@contextmanager
def running(folder: Path, settings: dict[str, Any]) -> Iterator[str]:
    """The base URL of LiteLLM's proxy while it runs."""
    (folder / "litellm.yaml").write_text(json.dumps(settings), encoding="utf-8")
    port = free_port()
    command = [str(Path(sys.executable).with_name("litellm")), "--config", str(folder / "litellm.yaml")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}  # asks no network
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _wait(process, f"http://127.0.0.1:{port}", folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/liveliness").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(log.read_text(encoding="utf-8", errors="replace")[-3000:])
