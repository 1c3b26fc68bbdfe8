"""How every process here writes its log: a line of JSON for each event, from a thread of its own.

Whoever logs never waits and gets no error, whether the disk is full, the reader stalls, or the reader has gone.
"""

from __future__ import annotations

import json
import os
import select
import stat
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

LOG_VARIABLE = "QWEN3GUARD_LOG"
"""The variable that asks the models' processes for lines of JSON, with the value `json`."""
LOG_FORMATS = ("text", "json")
TRACE_VARIABLE = "GRPC_TRACE"
"""The variable by which gRPC writes the token and the session id of each call to standard error. What runs from the
command line and in the container takes it out of its environment, before gRPC is imported."""
MOST_BYTES = 2**18
"""The most bytes of lines that wait to be written. What comes then is dropped, and counted."""
LONGEST_LINE = 4096
"""Bytes; a pipe takes a line of this length in one piece, so that the lines of several processes do not mix."""


def line(level: str, event: str, **facts: object) -> str:
    """Returns one JSON object with the UTC time first. Facts that are None are left out."""
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return json.dumps({"time": stamp(), "level": level, "event": event, **known})


def stamp() -> str:
    """The UTC time now, to the millisecond."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


class LogOutput:
    """Writes to `descriptor`, from a thread. It has the methods of a text file that logging and print need. Without a
    descriptor, as that of a stream that was closed before the start, all is dropped.

    What is given to `write` at once stays together. Before the next line that can be written after some were dropped,
    a line says how many; it is JSON with `as_json`.
    """

    def __init__(self, descriptor: int | None, *, as_json: bool = False, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._as_json = as_json
        self._encoding = encoding
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._told = 0
        self._in_line = False
        """Whether the last line was written in part."""
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """How many writes were dropped so far, because too many waited or the system did not take them."""
        return self._dropped

    def write(self, text: str) -> None:
        """Queues `text`, cut at LONGEST_LINE, or drops it."""
        data = text.encode(self._encoding, "replace")
        if len(data) > LONGEST_LINE:
            data = data[: LONGEST_LINE - 1].decode(self._encoding, "ignore").encode(self._encoding) + b"\n"
        with self._changed:
            if not data:
                return
            if self._closed or self._waiting_bytes + len(data) > MOST_BYTES:
                self._dropped += 1
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._changed.notify()

    def flush(self) -> None:
        """Does nothing: nobody waits for the output."""

    def close(self, timeout_s: float = 1.0) -> None:
        """Takes no more, and waits up to `timeout_s` until what waits is written."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _write_all(self) -> None:
        while data := self._next():
            if (lost := self._dropped - self._told) and self._put(self._lost(lost)):
                self._told += lost
            if not self._put(data):
                with self._changed:
                    self._dropped += 1

    def _next(self) -> bytes:
        """The next lines, when there are some. Empty if this is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return b""
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            return data

    def _lost(self, number: int) -> bytes:
        text = f"{number} lines of the log were dropped"
        return (line("warning", "log_dropped", lines=number) if self._as_json else f"warning: {text}").encode() + b"\n"

    def _put(self, data: bytes) -> bool:
        """Writes all of `data`, however long that takes. False if the system refuses it."""
        left = b"\n" + data if self._in_line else data
        try:
            descriptor = self._open(len(left))
            while left:
                left = left[_write_some(descriptor, left) :]
                self._in_line = bool(left)
        except OSError:
            return False
        return True

    def _open(self, size: int) -> int:
        """What the next `size` bytes are written to. Raises OSError."""
        del size
        if self._descriptor is None:
            raise OSError("the stream was closed before the start")
        return self._descriptor


class RotatedLog(LogOutput):
    """Writes to the file `path`. Before it would have more than `most_bytes`, it is renamed to `path`.1, that one to
    `path`.2, and so on; `kept` of these are kept. Where the folder does not allow that, the file begins anew.

    A link is followed once, and a device or a pipe is never renamed. A file that somebody removed or renamed is made
    again, and one whose disk was full is written to when there is room. Raises OSError if it cannot be opened at the
    start.
    """

    def __init__(self, path: Path, *, as_json: bool = False, most_bytes: int = 10 * 2**20, kept: int = 5) -> None:
        is_special = path.exists() and not path.is_file()  # such as /dev/stdout, which leads to a pipe without a path
        self._path = path if is_special else path.resolve()
        self._most_bytes = most_bytes
        self._kept = kept
        super().__init__(_opened(self._path), as_json=as_json)

    def _open(self, size: int) -> int:
        descriptor = super()._open(size)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return descriptor
        stands = self._leads_to(found)
        if stands and found.st_size + size <= self._most_bytes:
            return descriptor
        if stands and not self._renamed():
            os.ftruncate(descriptor, 0)
            return descriptor
        self._descriptor = _opened(self._path)
        os.close(descriptor)
        return self._descriptor

    def _leads_to(self, file: os.stat_result) -> bool:
        try:
            return os.path.samestat(file, self._path.stat())
        except OSError:
            return False

    def _renamed(self) -> bool:
        try:
            for number in range(self._kept, 0, -1):
                with suppress(FileNotFoundError):
                    self._numbered(number - 1).replace(self._numbered(number))
        except OSError:
            return False
        return True

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o600)


def _write_some(descriptor: int, data: bytes) -> int:
    try:
        return os.write(descriptor, data)
    except BlockingIOError:  # a full pipe that its owner made non-blocking
        writable = select.poll()
        writable.register(descriptor, select.POLLOUT)
        writable.poll()
        return 0
