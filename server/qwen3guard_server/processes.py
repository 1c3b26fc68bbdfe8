"""The processes of a served guard, as Linux shows them, and how this one ends in order."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path


def model_processes(pid: int) -> dict[str, int]:
    """The process id of each model of the server `pid`, by the model's name.

    A dead process has no command line any more and is left out. Raises OSError if this process cannot look.
    """
    processes = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # threads and processes come and go
            for child in children.read_text().split():
                program, *arguments = os.fsdecode(Path(f"/proc/{child}/cmdline").read_bytes()).split("\0")
                if program.endswith("_stub"):
                    processes[Path(arguments[0]).parents[1].name] = int(child)
    return processes


def listens(pid: int, port: int) -> bool:
    """Whether the process `pid` itself, and not another one, listens at this port of TCP. True where Linux does not
    show that."""
    found = set()
    try:
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                    fields = row.split()
                    if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                        found.add(f"socket:[{fields[9]}]")
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(descriptor.readlink()) in found:
                    return True
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def resident_bytes(pid: int) -> int:
    """The resident memory of the process `pid`, in bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) << 10


def work(pid: int) -> float:
    """How much the process `pid` has done: a unit for each second of CPU time, and for each 10 MiB that it has read, by
    calls and from the disk. 0 if it is gone."""
    cpu_s = read_bytes = 0.0
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    with contextlib.suppress(OSError):  # also where the system does not show it
        transfers = Path(f"/proc/{pid}/io").read_text()
        read_bytes = sum(int(each) for each in re.findall(r"^(?:rchar|read_bytes): (\d+)", transfers, re.MULTILINE))
    return cpu_s + read_bytes / (10 << 20)


def is_stopped(pid: int) -> bool:
    """Whether the process `pid` is there and stands still, by a signal such as SIGSTOP or by a debugger."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def ended(status: int) -> str:
    """How a process ended, from its status as subprocess gives it: below 0 for a signal."""
    if status >= 0:
        return f"ended by itself with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def exit_status(pid: int) -> int | None:
    """The status of the process `pid`, a child of another one, as subprocess gives it. None if it is not known: Linux
    keeps it until the parent asks for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return os.waitstatus_to_exitcode(int(fields[-1])) if fields[0] == "Z" else None
    except (OSError, ValueError, IndexError):
        return None


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, so that each of them runs the same clean-up.

    SIGINT is included because a shell starts its background commands with that signal ignored. SIGHUP stays ignored
    where it is, as by nohup. Once one has come, those that come after the clean-up are ignored: the process is ending.
    SIGCHLD does not stay ignored: Linux would keep no status of children, and each would seem to have ended well.
    """
    is_interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if is_interrupted else handler)
