"""What a server leaves on a machine: a folder, shared memory, processes. All of it goes, whatever ends this process.

Triton's processes do not end by themselves when this one is killed, and Linux's signal at a parent's death is no way
out: it is sent when the thread that started a process ends. So a shell waits for this process's end, and clears up. If
the shell is killed too, the next server on the machine clears up (`clear_leftovers`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "qwen3guard_"
_SHARED_MEMORY = Path("/dev/shm")
_CLEAR = f"""
while read -r line; do server=$line; done
[ -n "$server" ] && kill -s KILL -- "-$server"
rm -rf -- "$1/$2" {_SHARED_MEMORY}/*"$2"*
"""
"""Reads the server's process group, as often as it changes, until the other end of the pipe is closed. The arguments
are the folder above and the tag."""


class Footprint:
    """The folder of one server, locked while this process lives, and the `tag` in its name and in the names of the
    server's shared memory. Raises OSError."""

    def __init__(self) -> None:
        self.tag = f"{PREFIX}{os.getpid()}_{secrets.token_hex(8)}"
        self.folder = Path(tempfile.gettempdir()) / self.tag
        self._lock: int | None = None
        self.make_folder()
        self._clearer = subprocess.Popen(
            ["/bin/sh", "-c", _CLEAR, "clear", self.folder.parent, self.tag],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # neither Ctrl-C nor a closed terminal reaches it
        )

    def make_folder(self) -> None:
        """Makes and locks the folder, if it is not there or somebody removed it. Raises OSError."""
        if self.folder.is_dir():
            return
        self._unlock()
        unlocked = self.folder.with_name(f".{self.tag}")  # a name that `clear_leftovers` does not look for
        unlocked.mkdir(mode=0o700)
        self._lock = _locked(unlocked)
        unlocked.rename(self.folder)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def belongs(self, server: int | None) -> None:
        """Says which process group is the server's; None if it has none any more."""
        assert self._clearer.stdin is not None
        with contextlib.suppress(OSError):  # somebody killed the shell; the next server does its work
            self._clearer.stdin.write(f"{server or ''}\n".encode())
            self._clearer.stdin.flush()

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
        self._clearer.kill()
        self._clearer.communicate()
        self.remove_shared_memory()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()


def clear_leftovers() -> None:
    """Removes what servers of this user left that nobody owns any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*_*"):
        with contextlib.suppress(OSError):  # its owner lives, or is removing it
            lock = _locked(folder)
            try:
                for process in _processes(folder.name):
                    os.kill(process, signal.SIGKILL)
                for region in _regions(folder.name):
                    region.unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


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
    """The processes that have `tag` in their command line, as Triton's and its models' have."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if tag.encode() in (entry / "cmdline").read_bytes():
                yield int(entry.name)
