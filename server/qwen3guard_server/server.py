"""The embedded server: one process of the tritonserver that the wheel nvidia-pytriton brings."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qwen3guard_client.transport.connection import TOKEN_VARIABLE
from qwen3guard_contract.errors import CanaryFailed, PortBusy, ServeError, from_text
from qwen3guard_contract.layout import exported

from qwen3guard_server import installation
from qwen3guard_server.processes import die_with_parent, model_processes
from qwen3guard_server.settings import ServerSettings

EXIT_S = 5
"""How long Triton waits for requests before it exits. It waits for open sequences too, which nobody ends any more."""
STOP_S = 4.0 * EXIT_S
POLL_S = 0.05
STILL_LOADING_S = 5.0
GAP_S = 5.0
"""How long a model may be without a process while Triton loads it: Triton may end one process and start another."""
_STUB_DIED = "Failed to preinitialize Python stub"  # Triton logs this, and goes on waiting for the dead process
_SHARED_MEMORY = Path("/dev/shm")


class EmbeddedServer:
    """One tritonserver process, as a context manager. Leaving it stops the server and removes its files."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.tls = settings.tls.own_client() if settings.tls else None
        """The TLS settings with which clients on this machine reach the server."""
        self.manifests = exported(settings.model_repository)
        self._tag = f"qwen3guard_{os.getpid()}_{secrets.token_hex(4)}"
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._events_read: tuple[Path | None, int] = (None, 0)
        """The folder whose log `events` has read, and up to which byte."""
        self._models: set[str] = set()
        """The models that had a process when the server became ready."""

    @property
    def url(self) -> str:
        return f"{self.settings.host()}:{self.settings.grpc_port}"

    @property
    def pid(self) -> int:
        return self._started().pid

    def __enter__(self) -> EmbeddedServer:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        """Raises UnsupportedPython, PortBusy or ServeError."""
        triton = installation.wheel()
        libpython = installation.libpython_folder()
        for address, port in self.settings.listeners():
            _check_free(address, port)
        self._folder = Path(tempfile.mkdtemp(prefix="qwen3guard-"))
        backend = self._folder / "backends" / "python"
        shutil.copytree(triton / "backends" / "python", backend)
        shutil.copy(installation.stub(triton), backend)
        environment = installation.environment(triton, libpython)
        environment.pop(TOKEN_VARIABLE, None)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(triton),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops the server properly
                preexec_fn=die_with_parent,  # noqa: PLW1509 (calls prctl, takes no lock)
            )

    def _command(self, triton: Path) -> list[str]:
        settings = self.settings
        return [
            str(triton / "bin" / "tritonserver"),
            f"--model-repository={settings.model_repository.resolve()}",
            f"--backend-directory={self._folder}/backends",
            "--model-control-mode=explicit",
            *(f"--load-model={ensemble}" for ensemble in self.manifests),
            *settings.flags(),
            f"--exit-timeout-secs={EXIT_S}",
            f"--backend-config=python,stub-timeout-seconds={int(settings.load_s)}",
            f"--backend-config=python,shm-region-prefix-name={self._tag}",
            "--log-warning=false",  # Triton's warning of a START on a live sequence has the session's id
            "--allow-cpu-metrics=false",
            "--allow-gpu-metrics=false",
        ]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServeError("The server has not been started.")
        return self._process

    def wait_ready(self, canary: Callable[[], bool], still_loading: Callable[[float], None] = lambda _: None) -> None:
        """Returns when `canary` returns True. It returns False while the server is not up yet, and its errors are
        raised. `still_loading` is called every STILL_LOADING_S seconds, with the seconds since the call.

        Raises ServeError if the server's process or that of a model ends, with the reason in its log, and CanaryFailed
        after `load_s` seconds.
        """
        process = self._started()
        began = told = time.monotonic()
        seen: dict[str, float] = {}  # when each model last had a process
        while not canary():
            self._hide_shared_memory()
            if process.poll() is not None or _STUB_DIED in self.log:
                raise ServeError(f"The server stopped while it was loading: {reason(self.log)}")
            now = time.monotonic()
            seen |= dict.fromkeys(model_processes(process.pid), now)
            for name, last in seen.items():
                if now - last > GAP_S:
                    why = from_text(self.log) or f"the process of {name} died."
                    raise ServeError(f"The server stopped while it was loading: {why}")
            if now - told >= STILL_LOADING_S:
                still_loading(now - began)
                told = now
            if now - began > self.settings.load_s:
                raise CanaryFailed(f"The server did not answer within {self.settings.load_s:.0f} s: {reason(self.log)}")
            time.sleep(POLL_S)
        self._hide_shared_memory()
        self._models = set(seen)

    def _hide_shared_memory(self) -> None:
        """Makes the shared memory readable for this user only: texts pass through it, and Triton lets every user of the
        machine read it, whatever the umask is."""
        for region in _SHARED_MEMORY.glob(f"*{self._tag}*"):
            with contextlib.suppress(FileNotFoundError):
                region.chmod(0o600)

    def fault(self) -> str | None:
        """Why the server can no longer answer: it has ended, or the process of one of its models has. None if it
        can."""
        process = self._started()
        if process.poll() is not None:
            return f"the server ended by itself with status {process.returncode}"
        dead = sorted(self._models - model_processes(process.pid).keys())
        return f"the process of {dead[0]} died" if dead else None

    def restart(self) -> None:
        """Kills the server, without waiting for its requests, and starts it again."""
        self.stop(kill=True)
        self._models = set()
        self._start()

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace") if self._folder else ""

    def events(self) -> list[str]:
        """The lines of JSON that the models' processes have logged since the last call
        (qwen3guard_runtime.telemetry.logs)."""
        if not self._folder:
            return []
        if self._events_read[0] != self._folder:
            self._events_read = (self._folder, 0)
        with (self._folder / "log").open("rb") as log:
            log.seek(self._events_read[1])
            whole_lines = log.read().rpartition(b"\n")[0]
        self._events_read = (self._folder, self._events_read[1] + len(whole_lines) + bool(whole_lines))
        return [line for line in whole_lines.decode(errors="replace").splitlines() if line.startswith("{")]

    @property
    def warnings(self) -> list[str]:
        """The warnings that the models' processes have logged for an operator."""
        return re.findall(r'warning: ([^"\n]+)', self.log)

    def stop(self, *, kill: bool = False) -> None:
        """Asks the server to stop, waits, and removes its folder and shared memory. May be called twice."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # stubs that outlived the server
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        for region in _SHARED_MEMORY.glob(f"*{self._tag}*"):
            region.unlink(missing_ok=True)


# Lines with E0000 are from gRPC's library, without a time; they say nothing about loading models.
_TRITON_ERROR = re.compile(
    rf"^(?:E(?!0000)\d{{4}}|error:|.*(?={_STUB_DIED})).*?(?:\] )?([^\]\n]{{10,}})$", re.MULTILINE
)


_ABSENT_MODULE = re.compile(r"No module named '(qwen3guard_[\w.]+)'")
"""What Python says in a model.py of another version, which imports modules from where they were."""


def reason(log: str) -> str:
    """The sentence in a server's log that says why it stopped: the first GuardError, or else Triton's last error."""
    guard_error = from_text(log)
    if guard_error:
        return str(guard_error)
    if absent := _ABSENT_MODULE.search(log):
        return f"Its models are of another version ({absent[1]} is not here): export the checkpoint again."
    triton_errors = _TRITON_ERROR.findall(log)
    return str(triton_errors[-1]).strip(' "') if triton_errors else "its log says nothing"


def _check_free(address: str, port: int) -> None:
    """Raises PortBusy if a server cannot listen there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise PortBusy(f"Port {port} on {address} cannot be used: {error.strerror}.") from None
