"""The container's command: runs Triton on every guard in /models.

Arguments are passed on to tritonserver, where they override those given here.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from canary import SERVED
from qwen3guard_client.transport.connection import read_token
from qwen3guard_contract.errors import GuardError
from qwen3guard_contract.layout import exported, exported_guards
from qwen3guard_contract.log_output import TRACE_VARIABLE
from qwen3guard_contract.manifest import MANIFEST
from qwen3guard_contract.parameters import TOKEN_VARIABLE
from qwen3guard_server.installation import VERTEX_AI
from qwen3guard_server.server import EXIT_S
from qwen3guard_server.settings import KEEP_NO_REQUESTS, WHOLE_CONFIGURATIONS, restrictions

MODELS = Path("/models")
SHARED_MEMORY = Path("/dev/shm")
REGION = "qwen3guard_container"
LOAD_S = 1800


def command(models: Path, ensembles: Iterable[str], token: str | None) -> list[str]:
    """The command line of tritonserver, as for `qwen3guard serve`, but on every interface, without TLS, with
    metrics."""
    return [
        "tritonserver",
        f"--model-repository={models}",
        "--model-control-mode=explicit",
        WHOLE_CONFIGURATIONS,
        *(f"--load-model={ensemble}" for ensemble in ensembles),
        "--allow-http=false",
        "--allow-vertex-ai=false",
        "--grpc-port=8001",
        KEEP_NO_REQUESTS,
        "--metrics-port=8002",
        f"--exit-timeout-secs={EXIT_S}",
        *restrictions(token),
        f"--backend-config=python,stub-timeout-seconds={LOAD_S}",
        f"--backend-config=python,shm-region-prefix-name={REGION}",
        "--log-warning=false",  # Triton warns of a START on a live sequence with the session's id
    ]


def keep_manifests(models: Path, served: Path = SERVED) -> None:
    """Copies the manifests of `models` to `served`, in the place of what a former container left there."""
    copy = served.with_suffix(".new")
    for folder in (served, copy):
        shutil.rmtree(folder, ignore_errors=True)
    for guard in exported_guards(models):
        guard.guard_folder(copy).mkdir(parents=True)
        shutil.copy(guard.guard_folder(models) / MANIFEST, guard.guard_folder(copy))
    copy.rename(served)


def main() -> None:
    models = Path(os.environ.get("MODEL_REPOSITORY", MODELS))
    try:
        ensembles, token = exported(models), read_token(None)
        keep_manifests(models)
    except GuardError as error:
        sys.exit(f"serve: {error}")
    for region in SHARED_MEMORY.glob(f"*{REGION}*"):  # they remain in a pod's volume when a container was killed
        region.unlink()
    unwanted = (TOKEN_VARIABLE, TRACE_VARIABLE)
    for name in [each for each in os.environ if each in unwanted or each.startswith(VERTEX_AI)]:
        del os.environ[name]
    tritonserver, *arguments = command(models, ensembles, token)
    os.execvp(tritonserver, [tritonserver, *arguments, *sys.argv[1:]])


if __name__ == "__main__":
    main()
