"""The embedded server: the tritonserver of the wheel nvidia-pytriton, started as this interpreter needs it.

The wheel's stub of the Python back end must find the shared libpython of the very interpreter that the
environment was made with, then the wheel's own libraries (LD_LIBRARY_PATH), and the environment's packages: its
interpreter is isolated, ignores PYTHONPATH, and looks for the environment of the first python3 on PATH.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen3guard_client.errors import CanaryFailed, ExportMissing, PortBusy, ServeError, UnsupportedPython
from qwen3guard_client.manifest import MANIFEST, Manifest

ENSEMBLES = {"gen_guard": "classify", "stream_guard": "stream_step"}
"""The guard that holds an export, and the ensemble that answers for it."""
EXIT_S = 5
"""Triton counts an open sequence as in flight and waits for it; nobody will end it once the server goes."""
STOP_S = 4.0 * EXIT_S
POLL_S = 0.05
_STUB_DIED = "Failed to preinitialize Python stub"  # the server would wait for it all the same
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Settings:
    """Where the server listens (port 0: not at all, but gRPC always does) and how long it may take to load."""

    model_repository: Path
    grpc_port: int = 8001
    http_port: int = 0
    metrics_port: int = 0
    address: str = "127.0.0.1"
    load_s: float = 600.0

    def ports(self) -> list[int]:
        return [port for port in (self.grpc_port, self.http_port, self.metrics_port) if port]


def exported(model_repository: Path) -> dict[str, Manifest]:
    """The ensembles that can be served from `model_repository`, with their guard's manifest.

    Raises ExportMissing where there is none.
    """
    found = {
        ensemble: Manifest.read(folder)
        for guard, ensemble in ENSEMBLES.items()
        if (folder := model_repository / guard / "1") and (folder / MANIFEST).is_file()
    }
    if not found:
        raise ExportMissing(
            f"{model_repository} holds no exported guard: "
            f"run qwen3guard export CHECKPOINT --output {model_repository} first."
        )
    return found


class EmbeddedServer:
    """One tritonserver process. Use as a context manager: leaving it stops the server and removes its traces."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.manifests = exported(settings.model_repository)
        self._tag = f"qwen3guard_{os.getpid()}_{secrets.token_hex(4)}"
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.settings.address}:{self.settings.grpc_port}"

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
        triton = _wheel()
        libpython = _libpython_folder()
        for port in self.settings.ports():
            _check_free(self.settings.address, port)
        self._folder = Path(tempfile.mkdtemp(prefix="qwen3guard-"))
        backend = self._folder / "backends" / "python"
        shutil.copytree(triton / "backends" / "python", backend)
        shutil.copy(_stub(triton), backend)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(triton),
                env=_environment(triton, libpython),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C reaches us alone, and we stop the server in order
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (calls prctl, takes no lock)
            )

    def _command(self, triton: Path) -> list[str]:
        settings = self.settings
        secret = secrets.token_urlsafe(16)
        command = [
            str(triton / "bin" / "tritonserver"),
            f"--model-repository={settings.model_repository.resolve()}",
            f"--backend-directory={self._folder}/backends",
            "--model-control-mode=explicit",
            *(f"--load-model={ensemble}" for ensemble in self.manifests),
            f"--grpc-address={settings.address}",
            f"--grpc-port={settings.grpc_port}",
            f"--exit-timeout-secs={EXIT_S}",
            f"--grpc-restricted-protocol=shared-memory,model-repository,trace,logging:admin-key={secret}",
            f"--backend-config=python,stub-timeout-seconds={int(settings.load_s)}",
            f"--backend-config=python,shm-region-prefix-name={self._tag}",
            "--allow-cpu-metrics=false",
            "--allow-gpu-metrics=false",
        ]
        for name, port in (("http", settings.http_port), ("metrics", settings.metrics_port)):
            command += (
                [f"--{name}-address={settings.address}", f"--{name}-port={port}"] if port else [f"--allow-{name}=false"]
            )
        return command

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServeError("The server has not been started.")
        return self._process

    def wait_ready(self, canary: Callable[[], bool], tick: Callable[[], None] = lambda: None) -> None:
        """Returns when `canary` says True; it says False while the server is not up yet, and may raise.

        `tick` is called about once a second meanwhile.

        Raises ServeError with the server's own reason if the process ends, CanaryFailed after `load_s`.
        """
        process = self._started()
        began = ticked = time.monotonic()
        while not canary():
            if process.poll() is not None or _STUB_DIED in self.log:
                raise ServeError(f"The server stopped while it was loading: {self._reason()}")
            now = time.monotonic()
            if now - ticked >= 1:
                tick()
                ticked = now
            if now - began > self.settings.load_s:
                raise CanaryFailed(f"The server did not answer within {self.settings.load_s:.0f} s: {self._reason()}")
            time.sleep(POLL_S)

    def wait(self) -> int:
        """Waits until the server ends, and returns its exit code."""
        return self._started().wait()

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace") if self._folder else ""

    def _reason(self) -> str:
        """The last sentence in the log that says what went wrong."""
        ours = re.findall(r"qwen3guard_client\.errors\.\w+: (.+)", self.log)
        theirs = re.findall(
            rf"^(?:E\d{{4}}|error:|.*(?={_STUB_DIED})).*?(?:\] )?([^\]\n]{{10,}})$", self.log, re.MULTILINE
        )
        return str((ours or theirs or ["its log says nothing"])[-1]).strip(' "')

    def stop(self) -> None:
        """Asks the server to stop, waits, and removes its folder and shared memory. May be called twice."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
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


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, so that every way to end runs the same clean-up.

    SIGINT too: a shell starts its background commands with that one ignored.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wheel() -> Path:
    """The wheel's tritonserver folder; found without importing it, since only its binaries matter."""
    spec = importlib.util.find_spec("pytriton")
    for location in spec.submodule_search_locations or () if spec else ():
        triton = Path(location) / "tritonserver"
        if (triton / "bin" / "tritonserver").is_file():
            return triton
    raise ServeError("The embedded server is not installed: pip install 'qwen3guard-triton[serve]'.")


def _stub(triton: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise UnsupportedPython(f"The embedded server has no stub for Python {version}; use 3.11 or 3.12.")
    return stub


def _libpython_folder() -> Path:
    """Where this interpreter's shared libpython is. Raises UnsupportedPython where it has none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    own = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    for folder in [Path(place) for place in own if place] + _linker_folders(name):
        if (folder / name).is_file():
            return folder
    raise UnsupportedPython(
        f"This Python has no {name}: install your system's libpython{version} package, "
        "or use an interpreter built with --enable-shared."
    )


def _linker_folders(library: str) -> list[Path]:
    try:
        listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [Path(path).parent for path in re.findall(rf"{re.escape(library)} .*=> (\S+)", listing)]


def _environment(triton: Path, libpython: Path) -> dict[str, str]:
    libraries = triton.parents[1] / "nvidia_pytriton.libs"
    return os.environ | {
        "LD_LIBRARY_PATH": f"{libpython}:{libraries}",
        "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


def _check_free(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise PortBusy(f"Port {port} on {address} cannot be used: {os.strerror(error.errno or 0)}.") from None


def _die_with_parent() -> None:
    """Linux sends the server a SIGTERM when this process dies, however it dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
