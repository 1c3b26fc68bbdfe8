"""What a server leaves on a machine: a folder, shared memory, processes. All of it goes, whatever ends this process.

Triton's processes do not end by themselves when this one is killed, and Linux's signal at a parent's death is no way
out: it is sent when the thread that started a process ends. So another process waits for this one's end, and clears up
(`main`). If that is killed too, the next server on the machine clears up (`clear_leftovers`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_TAG = re.compile(r"qwen3guard_\d+_[0-9a-f]{16}")
_PROGRAMS = {"tritonserver", "triton_python_backend_stub"}
_MADE_HERE = "footprint"
"""A file that only folders of this module have."""
_GONE_S = 5.0
"""How long killed processes may take to go, with their ports."""
_UNLOCKED_S = 60.0
"""A folder is locked, and gets its name, within milliseconds of being made: one that is older has no owner."""
_BEGINNING_S = 1.0
"""How long a process that was started may be without its command line, by which it is found."""


class Footprint:
    """The folder of one server, locked while this process lives, and the `tag` in its name, in the names of the
    server's shared memory, and in the arguments of its processes."""

    def __init__(self) -> None:
        """Makes nothing yet: a signal may end `make` at any point, and `remove` finds what it has made."""
        self.tag = f"qwen3guard_{os.getpid()}_{secrets.token_hex(8)}"
        self.folder = Path(tempfile.gettempdir()) / self.tag
        self._unlocked = self.folder.with_name(f".{self.tag}")
        """Its name until it is locked."""
        self._lock: int | None = None
        self._clearer: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Makes and locks the folder, if it is not there or somebody removed it, and starts the process that clears up
        after this one. Raises OSError."""
        self.keep_clearer()
        if self.folder.is_dir():
            return
        self._unlock()
        shutil.rmtree(self._unlocked, ignore_errors=True)  # of a try that failed
        self._unlocked.mkdir(mode=0o700)
        self._lock = _locked(self._unlocked)
        (self._unlocked / _MADE_HERE).touch()
        self._unlocked.rename(self.folder)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def keep_clearer(self) -> bool:
        """Starts the process that will clear up again, if somebody has ended it. Returns whether. Raises OSError."""
        former = self._clearer
        if former and former.poll() is None:
            return False
        if former:
            former.communicate()
        self._clearer = _clearer(self.folder)
        return former is not None

    def hide_shared_memory(self) -> None:
        """Makes the shared memory readable for this user only: texts pass through it, and Triton lets every user of the
        machine read it, whatever the umask is."""
        for region in _regions(self.tag):
            with contextlib.suppress(FileNotFoundError):
                region.chmod(0o600)

    def remove_shared_memory(self) -> None:
        for region in _regions(self.tag):
            region.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all but the server's processes."""
        if self._clearer:
            self._clearer.kill()
            self._clearer.communicate()
        self.remove_shared_memory()
        for folder in (self._unlocked, self.folder):
            shutil.rmtree(folder, ignore_errors=True)
        self._unlock()


def _clearer(folder: Path) -> subprocess.Popen[bytes]:
    """A process that waits for this one's end (`main`)."""
    started = subprocess.Popen(
        [sys.executable, "-I", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # neither Ctrl-C nor a closed terminal reaches it
    )
    assert started.stdin is not None
    started.stdin.write(os.fsencode(folder))
    started.stdin.flush()
    return started


def clear_leftovers() -> None:
    """Removes what servers of this user left that nobody owns any more."""
    temporary = Path(tempfile.gettempdir())
    for folder in temporary.glob(".qwen3guard_*"):
        with contextlib.suppress(OSError):
            is_ours = _TAG.fullmatch(folder.name[1:]) and folder.lstat().st_uid == os.getuid()
            if is_ours and time.time() - folder.lstat().st_mtime > _UNLOCKED_S:
                shutil.rmtree(folder, ignore_errors=True)
    for folder in temporary.glob("qwen3guard_*"):
        with contextlib.suppress(OSError):  # another user's, or its owner lives, or is removing it
            if _TAG.fullmatch(folder.name) and folder.lstat().st_uid == os.getuid():
                lock = _locked(folder)
                try:
                    if (folder / _MADE_HERE).is_file():
                        _clear(folder)
                finally:
                    os.close(lock)


def main() -> None:
    """Waits until the other end of standard input is closed, and clears what the folder named there belongs to."""
    folder = Path(os.fsdecode(sys.stdin.buffer.read()))
    if _TAG.fullmatch(folder.name):
        until = time.monotonic() + _BEGINNING_S
        while time.monotonic() < until:
            _end_processes(folder.name)
            time.sleep(0.05)
        _clear(folder)


def _clear(folder: Path) -> None:
    """Ends the processes of the server that had `folder`, and removes its files; the folder last."""
    _end_processes(folder.name)
    for region in _regions(folder.name):
        region.unlink(missing_ok=True)
    for each in (folder.with_name(f".{folder.name}"), folder):
        shutil.rmtree(each, ignore_errors=True)


def _end_processes(tag: str) -> None:
    """Kills the server's processes, and waits until they are gone."""
    until = time.monotonic() + _GONE_S
    killed: set[int] = set()
    while True:
        for process in set(_processes(tag)) - killed:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
            killed.add(process)
        if all(map(_is_gone, killed)) or time.monotonic() > until:
            return
        time.sleep(0.01)


def _locked(folder: Path) -> int:
    """A descriptor that locks `folder`; systemd's cleaner of old files respects such a lock.

    Raises OSError if the folder is another user's, or if the process that locked it lives.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid != os.getuid():
            raise PermissionError(folder)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _regions(tag: str) -> Iterator[Path]:
    return _SHARED_MEMORY.glob(f"*{tag}*")


def _processes(tag: str) -> Iterator[int]:
    """This user's processes of Triton and its models that have `tag` in their arguments."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program, *arguments = (entry / "cmdline").read_text(errors="replace").split("\0")
            is_ours = Path(program).name in _PROGRAMS and entry.stat().st_uid == os.getuid()
            if is_ours and any(tag in argument for argument in arguments):
                yield int(entry.name)


def _is_gone(process: int) -> bool:
    """Whether a process has ended with all its threads, the last of which closes its ports."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    state, threads = fields[0], int(fields[17])
    return state == "Z" and threads <= 1


if __name__ == "__main__":
    main()
