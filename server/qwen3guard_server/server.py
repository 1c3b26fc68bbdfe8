"""The embedded server: one process of the tritonserver that the wheel nvidia-pytriton brings."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from qwen3guard_client import GuardClient
from qwen3guard_contract.errors import CanaryFailed, GuardError, PortBusy, ServeError, from_text
from qwen3guard_contract.layout import exported
from qwen3guard_contract.parameters import TOKEN_VARIABLE

from qwen3guard_server import canary, installation
from qwen3guard_server.footprint import Footprint, clear_leftovers
from qwen3guard_server.processes import ended, exit_status, is_stopped, listens, model_processes, work
from qwen3guard_server.server_log import LOST_MODEL, NO_REASON, STUB_DIED, UNHEALTHY, ServerLog, reason, stopping_signal
from qwen3guard_server.settings import WHOLE_CONFIGURATIONS, ServerSettings

EXIT_S = 5
"""How long Triton waits for requests before it exits. It waits for open sequences too, which nobody ends any more."""
STOP_S = 4.0 * EXIT_S
CANARY_END_S = 1.0
"""How long the end of the canary's sequence may take."""
_SIGNS_OF_A_SHELL = re.compile(r"""[\s'"`$\\;&|<>(){}*?\[\]!]""")
POLL_S = 0.05
STILL_LOADING_S = 5.0
LEAST_WORK = 0.1
"""What is done at least within `idle_load_s` while models are being loaded (processes.work). 0.1 s of CPU time within
30 s is the share of one of 300 processes on a core."""
UNFINISHED_S = 5.0
"""How long Triton has to say why the process of a model ended while it was loaded, and to end for that reason."""
TEARDOWN_S = 1.0
"""How long a process may be ending. Linux shows none of its children meanwhile."""


@dataclass(frozen=True)
class Fault:
    """Why a server can no longer answer, in a sentence, and whether it was interrupted: a signal ended one of its
    processes, or it stopped loading."""

    why: str
    interrupted: bool = False

    def __str__(self) -> str:
        return self.why


class EmbeddedServer:
    """One tritonserver process, as a context manager. Leaving it stops the server and removes its files.

    `on_event` is called with each line of JSON that the models' processes log (qwen3guard_contract.log_output), from a
    thread.
    """

    def __init__(self, settings: ServerSettings, on_event: Callable[[str], None] = lambda _: None) -> None:
        self.settings = settings
        self.tls = settings.tls.own_client() if settings.tls else None
        """The TLS settings with which clients on this machine reach the server."""
        _check_utf8(settings.model_repository)
        self.manifests = exported(settings.model_repository)
        self._on_event = on_event
        self._footprint: Footprint | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Lock()
        self._log: ServerLog | None = None
        self._models: dict[str, int] = {}
        """The process of each model that had one."""
        self._gone_s: float | None = None
        """When the first of them was found gone while they were loading."""
        self._loading = True
        self._work = 0.0
        """What the processes of the models had done at `_worked_s`; before there are any, that of the server."""
        self._worked_s = 0.0

    @property
    def url(self) -> str:
        return f"{self.settings.host()}:{self.settings.grpc_port}"

    @property
    def pid(self) -> int:
        return self._started().pid

    def __enter__(self) -> EmbeddedServer:
        try:
            clear_leftovers()
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
        environment = installation.environment(triton, installation.libpython_folder())
        environment.pop(TOKEN_VARIABLE, None)
        stub = installation.stub(triton)
        if shutil.which("bash", path=environment["PATH"]) is None:
            raise ServeError("Triton starts models with bash, which is nowhere on PATH.")
        for address, port in self.settings.listeners():
            _check_free(address, port)
        self._models, self._gone_s, self._loading = {}, None, True
        self._work, self._worked_s = 0.0, time.monotonic()
        try:
            self._footprint = footprint = self._footprint or Footprint()
            if not is_one_word(footprint.folder):
                raise ServeError(
                    f"Triton starts models by a shell command, which cannot name {footprint.folder}: let TMPDIR name a"
                    " folder without spaces and signs."
                )
            footprint.make()
            backend = footprint.folder / "backends" / "python"
            if not (backend / stub.name).is_file():
                shutil.copytree(triton / "backends" / "python", backend, dirs_exist_ok=True)
                unfinished = backend / "unfinished"
                shutil.copy(stub, unfinished)
                unfinished.rename(backend / stub.name)
            self._log = log = ServerLog(self._on_event)
        except OSError as error:
            raise ServeError(f"The server cannot be prepared: {_why(error)}.") from None
        try:
            self._process = subprocess.Popen(
                self._command(triton),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log.descriptor,
                stderr=log.descriptor,
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops the server properly
            )
        except OSError as error:
            raise ServeError(f"The server cannot be started: {_why(error)}.") from None
        finally:
            log.follow()

    def _command(self, triton: Path) -> list[str]:
        settings, footprint = self.settings, self._prepared()
        return [
            str(triton / "bin" / "tritonserver"),
            f"--model-repository={self._repository()}",
            f"--backend-directory={footprint.folder}/backends",
            "--model-control-mode=explicit",
            WHOLE_CONFIGURATIONS,
            *(f"--load-model={ensemble}" for ensemble in self.manifests),
            *settings.flags(),
            f"--exit-timeout-secs={EXIT_S}",
            f"--backend-config=python,stub-timeout-seconds={int(settings.load_s)}",
            f"--backend-config=python,shm-region-prefix-name={footprint.tag}",
            "--log-warning=false",  # Triton's warning of a START on a live sequence has the session's id
            "--allow-cpu-metrics=false",
            "--allow-gpu-metrics=false",
        ]

    def _repository(self) -> Path:
        """The model repository by a path that a shell takes as one word: a link to it where its own is none."""
        resolved = self.settings.model_repository.resolve()
        if is_one_word(resolved):
            return resolved
        link = self._prepared().folder / "models"
        if not link.is_symlink():
            link.symlink_to(resolved)
        return link

    def _prepared(self) -> Footprint:
        if self._footprint is None:
            raise ServeError("The server has not been started.")
        return self._footprint

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServeError("The server has not been started.")
        return self._process

    def wait_ready(self, canary: Callable[[], bool], still_loading: Callable[[float], None] = lambda _: None) -> None:
        """Returns when `canary` returns True. It returns False while the server is not up yet, and its errors are
        raised. `still_loading` is called every STILL_LOADING_S seconds, with the seconds since the call.

        Raises ServeError if the server's process or that of a model ends, with the reason, and what `check_loading`
        raises.
        """
        began = told = time.monotonic()
        while not (canary() and self.listens()):
            now = time.monotonic()
            self.check_loading(now - began)
            if fault := self.fault():
                raise self.load_error(fault)
            if now - told >= STILL_LOADING_S:
                still_loading(now - began)
                told = now
            time.sleep(POLL_S)
        self.loaded()

    def load_error(self, fault: Fault) -> ServeError:
        """The error for a `fault` while the server was loading, which its log may explain better."""
        return ServeError(f"The server stopped while it was loading: {from_text(self.log) or fault}")

    def check_loading(self, loading_s: float) -> None:
        """Call this again and again while the server is loading, which has taken `loading_s` seconds so far: it
        remembers the processes of the models, and makes their shared memory readable for this user alone.

        Raises CanaryFailed after `load_s` seconds.
        """
        running = self._note_processes()
        now, done = time.monotonic(), sum(map(work, running or [self.pid]))
        if not 0 <= done - self._work < LEAST_WORK:  # it is less when a process has ended
            self._work, self._worked_s = done, now
        if loading_s > self.settings.load_s:
            raise CanaryFailed(f"The server did not answer within {self.settings.load_s:.0f} s: {reason(self.log)}")

    def loaded(self) -> None:
        """Call this when the server answers. From then on, the end of any of its processes is a fault."""
        self._note_processes()
        self._loading = False

    def _note_processes(self) -> Collection[int]:
        """Returns the processes of the models."""
        self._prepared().hide_shared_memory()
        running = model_processes(self.pid)
        self._models |= running
        return running.values()

    def fault(self) -> Fault | None:
        """Why the server can no longer answer: it has ended, or the process of one of its models has, or nothing was
        done for `idle_load_s` while it was loading. None if it can. Raises OSError if this process cannot look."""
        if fault := self._own_fault():
            return fault
        if self._loading and STUB_DIED in self.log:
            return Fault(reason(self.log))
        running = model_processes(self.pid)
        for name, pid in sorted(self._models.items()):
            if name not in running:
                status = exit_status(pid)
                if status is None:  # perhaps it is the server that is ending
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._started().wait(TEARDOWN_S)
                how = "died" if status is None else ended(status)
                lost = Fault(f"The process of {name} {how}.", interrupted=status is None or status < 0)
                if self._loading and (status is None or status >= 0):  # it may have been refused, and Triton says why
                    self._gone_s = self._gone_s or time.monotonic()
                    if time.monotonic() - self._gone_s < UNFINISHED_S:
                        return self._own_fault()
                    if (said := reason(self.log)) != NO_REASON and UNHEALTHY not in said:
                        lost = Fault(said)
                return self._own_fault() or lost
        if self._loading and time.monotonic() - self._worked_s > self.settings.idle_load_s:
            who = "The server" if self.is_stopped() else "Its models"
            return Fault(f"{who} did nothing for {self.settings.idle_load_s:.0f} s.", interrupted=True)
        return None

    def keep_clearer(self) -> bool:
        """Starts what clears up after this process again, if somebody has ended it. Returns whether."""
        with contextlib.suppress(OSError):  # the next time, then
            return self._footprint is not None and self._footprint.keep_clearer()
        return False

    def listens(self) -> bool:
        """Whether it is this server that answers at its port: another may have taken it while this one was loading."""
        return listens(self.pid, self.settings.grpc_port)

    def is_stopped(self) -> bool:
        """Whether the server's own process stands still: its models may be well, and nobody can ask them."""
        return is_stopped(self.pid)

    def _own_fault(self) -> Fault | None:
        """Why the server's own process has ended. None if it has not."""
        if (status := self._started().poll()) is None:
            return None
        if status >= 0 and (number := stopping_signal(self.log)):
            return Fault(f"The server {ended(-number)}.", interrupted=True)
        # C++ aborts for an error that nothing catches, and Triton may touch a model that it has just refused.
        is_own = status >= 0 or -status in (signal.SIGABRT, signal.SIGSEGV)
        if self._loading and is_own:
            if LOST_MODEL in self.log:
                return Fault(
                    "The process of a model stood still for seconds, which Triton does not bear while it loads.",
                    interrupted=True,
                )
            if status >= 0 or reason(self.log) != NO_REASON:
                return Fault(reason(self.log))
        return Fault(f"The server {ended(status)}.", interrupted=status < 0)

    def restart(self) -> None:
        """Kills the server if it runs, without waiting for its requests, and starts it again, with what is exported by
        now. Raises what starting it raises, or CorruptFile."""
        self.kill()
        now = exported(self.settings.model_repository)
        self.manifests.update({ensemble: now.get(ensemble, before) for ensemble, before in self.manifests.items()})
        self._start()

    @property
    def log(self) -> str:
        """The last part of what the server and its models have written since it was started."""
        return self._log.text if self._log else ""

    @property
    def warnings(self) -> list[str]:
        """The warnings that the models' processes have logged for an operator."""
        return re.findall(r'warning: ([^"\n]+)', self.log)

    def kill(self) -> None:
        """Ends the server's processes at once. It can be started again."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # also stubs that outlived the server
            self._process.wait()
            self._process = None
            self._prepared().remove_shared_memory()

    def stop(self, *, kill: bool = False) -> None:
        """Asks the server to stop, waits, and removes its folder and shared memory. May be called twice, and by two
        threads at once."""
        with self._ending:
            if self._process is not None and not kill:
                self._leave_canary()
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_S)
            if self._footprint is not None:
                self.kill()
                self._footprint.remove()
                self._footprint = None

    def _leave_canary(self) -> None:
        with (
            contextlib.suppress(GuardError),
            GuardClient(
                self.url,
                timeout_s=CANARY_END_S,
                wait_for_server=False,
                tls=self.tls,
                token=self.settings.token,
                scope=None,
            ) as client,
        ):
            canary.leave(client, self.manifests)


def _why(error: OSError) -> str:
    if isinstance(error, shutil.Error):  # of many files: the first
        return str(error.args[0][0][2])
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def is_one_word(path: Path) -> bool:
    """Whether a shell takes the path for one word, and for itself."""
    return not _SIGNS_OF_A_SHELL.search(str(path))


def _check_utf8(path: Path) -> None:
    """Raises ServeError if Triton could not read the path."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise ServeError("The path of the model repository is not in UTF-8, and Triton reads no other.") from None


def _check_free(address: str, port: int) -> None:
    """Raises PortBusy if a server cannot listen there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise PortBusy(f"Port {port} on {address} cannot be used: {error.strerror}.") from None
