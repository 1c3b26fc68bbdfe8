"""What a server leaves on a machine: a folder, shared memory, processes. All of it goes, whatever ends this process.

Triton's processes do not end by themselves when this one is killed, and Linux's signal at a parent's death is no way
out: it is sent when the thread that started a process ends. So a shell waits for this process's end, and clears up. If
the shell is killed too, the next server on the machine clears up (`clear_leftovers`).
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
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_TAG = re.compile(r"qwen3guard_\d+_[0-9a-f]{16}")
_PROGRAMS = {"tritonserver", "triton_python_backend_stub"}
_MADE_HERE = "footprint"
"""A file that only folders of this module have."""
_GONE_S = 5.0
"""How long a killed process may take to go, with its port."""
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
        self.tag = f"qwen3guard_{os.getpid()}_{secrets.token_hex(8)}"
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
        (unlocked / _MADE_HERE).touch()
        unlocked.rename(self.folder)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def set_process_group(self, server: int | None) -> None:
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
    for folder in Path(tempfile.gettempdir()).iterdir():
        if not _TAG.fullmatch(folder.name) or not (folder / _MADE_HERE).is_file():
            continue
        with contextlib.suppress(OSError):  # its owner lives, or is removing it
            lock = _locked(folder)
            try:
                _end(list(_processes(folder.name)))
                for region in _regions(folder.name):
                    region.unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _end(processes: Sequence[int]) -> None:
    """Kills processes, and waits until they are gone."""
    for process in processes:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    until = time.monotonic() + _GONE_S
    while any(_command(process) for process in processes) and time.monotonic() < until:
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
            program, *arguments = _command(int(entry.name)) or [""]
            is_ours = Path(program).name in _PROGRAMS and entry.stat().st_uid == os.getuid()
            if is_ours and any(tag in argument for argument in arguments):
                yield int(entry.name)


def _command(process: int) -> list[str]:
    """The command line of a process. Empty if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []
