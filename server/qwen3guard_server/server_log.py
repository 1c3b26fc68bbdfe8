"""What a server and its models write, and the sentence in it that says why they stopped.

They write into a pipe that this process reads. There is no file that fills a disk, or that may be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import threading
from collections import deque
from collections.abc import Callable

from qwen3guard_contract.errors import from_text

KEPT_BYTES = 2**20
"""How much of the end of the log is kept."""
PIPE_BYTES = 2**20
"""How much the pipe holds while this process is stopped; Linux grants every user as much."""
_LONGEST_LINE = 2**16
STUB_DIED = "Failed to preinitialize Python stub"
"""Triton logs this when the process of a model dies while it is loaded, and goes on waiting for it."""
UNHEALTHY = "is not healthy"
"""So does Triton end its sentence on a model whose process was ended by a signal, or hangs."""
NO_REASON = "its log says nothing"
LOST_MODEL = "boost::interprocess::lock_exception"
"""Triton raises this, and nothing catches it, when the process of a model has not run for 5 s while it is loaded."""


class ServerLog:
    """The log of one server. `on_event` is called with each line that is JSON (`log_output.line`), from a thread.

    The writers never wait: the pipe's end `descriptor` does not block, so what does not fit is lost to them.
    """

    def __init__(self, on_event: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._reader, self.descriptor = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self.descriptor, False)
        with contextlib.suppress(OSError):  # it has 64 KiB then
            fcntl.fcntl(self.descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._rest = b""
        self._ended = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def follow(self) -> None:
        """Call this once the server has `descriptor`: closes it in this process, and reads from then on."""
        os.close(self.descriptor)
        self._thread.start()

    @property
    def text(self) -> str:
        """All that was written up to now, as far as it is kept."""
        self._take_all()
        with self._lock:
            return b"".join((*self._lines, self._rest)).decode(errors="replace")

    def _read(self) -> None:
        """Until the last process that has the other end is gone."""
        readable = select.poll()
        readable.register(self._reader)
        while not self._ended:
            readable.poll()
            self._take_all()
        os.close(self._reader)

    def _take_all(self) -> None:
        """Takes what the pipe holds now, and not what is written meanwhile: that may never end."""
        with self._lock:
            left = PIPE_BYTES
            while left > 0 and not self._ended:
                try:
                    data = os.read(self._reader, 1 << 16)
                except BlockingIOError:
                    return
                left -= len(data)
                self._ended = not data
                self._take(data)

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).splitlines(keepends=True) or [b""]
        if self._rest.endswith(b"\n") or len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        for each in lines:
            self._lines.append(each)
            self._bytes += len(each)
            if each.startswith(b"{"):
                self._on_event(each.decode(errors="replace").rstrip())
        while self._bytes > KEPT_BYTES:
            self._bytes -= len(self._lines.popleft())


# Lines with E0000 are from gRPC's library, without a time; they say nothing about loading models.
# So do those of the CUDA driver, on a machine without.
_TRITON_ERROR = re.compile(
    r"^(?!.*(?:CudaDriverHelper|CUDA driver version))"
    rf"(?:E(?!0000)\d{{4}}|error:|\s*what\(\):|.*(?={STUB_DIED})).*?(?:\] )?([^\]\n]{{10,}})$",
    re.MULTILINE,
)
_ABSENT_MODULE = re.compile(r"No module named '(qwen3guard_[\w.]+)'")
"""What Python says in a model.py of another version, which imports modules from where they were."""


_SIGNAL = re.compile(r"^Signal \((\d+)\) received\.$", re.MULTILINE)


def stopping_signal(log: str) -> int | None:
    """The signal from outside by which Triton ended, as it does with a status as if it had ended by itself."""
    found = _SIGNAL.findall(log)
    return int(found[0]) if found else None


def reason(log: str) -> str:
    """The sentence in a server's log that says why it stopped: the first GuardError, or else Triton's last error."""
    guard_error = from_text(log)
    if guard_error:
        return str(guard_error)
    if absent := _ABSENT_MODULE.search(log):
        return f"Its models are of another version ({absent[1]} is not here): export the checkpoint again."
    triton_errors = _TRITON_ERROR.findall(log)
    return str(triton_errors[-1]).strip(' "') if triton_errors else NO_REASON
