"""What a serving app says and how many files it may open."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from qwen3guard_apps.app_output import AppOutput
from qwen3guard_apps.http_server.limits import HttpLimits
from qwen3guard_apps.http_server.open_files import within_open_files
from qwen3guard_apps.signals import stop_on_signals
from qwen3guard_contract.errors import ServeError

MARKER = "sk-marker"
UNLIMITED = resource.RLIM_INFINITY
SetLimits = Callable[[int, int], list[tuple[int, int]]]


def test_of_what_others_log_only_the_kind_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """asyncio and aiohttp quote what they received; our own lines are as they were."""

    async def fail() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(output.log_unhandled)
        loop.call_soon(lambda: int(MARKER))
        await asyncio.sleep(0)

    with AppOutput(logging.INFO, None, as_json=False) as output:
        try:
            int(MARKER)
        except ValueError:
            logging.getLogger("aiohttp.server").exception("Error handling request from %s", MARKER)
        logging.getLogger("asyncio").warning(MARKER)
        logging.getLogger("qwen3guard.proxy").info("ours")
        asyncio.run(fail())
        output.tell("info", "a notice")
        output.print("ready")
    out, err = capfd.readouterr()
    assert out == "ready\n"
    assert MARKER not in err
    ours, unhandled, notice = err.splitlines()[-3:]
    assert (ours, notice) == ("ours", "a notice")
    assert json.loads(unhandled).items() >= {"error": "internal", "exception": "ValueError"}.items()
    assert '"logger": "aiohttp.server", "exception": "ValueError"' in err


@pytest.mark.parametrize("ignored", [False, True], ids=["a terminal that closes", "nohup"])
def test_an_app_ends_with_its_terminal_unless_nohup_started_it(ignored: bool) -> None:
    async def hears() -> bool:
        stop = stop_on_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        return stop.is_set()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else lambda *_: None)
    try:
        assert asyncio.run(hears()) is not ignored
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_link_that_leads_to_itself_is_no_log_file(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "log")
    with pytest.raises(ServeError, match="log cannot be opened"):
        AppOutput(logging.INFO, tmp_path / "log", as_json=False)


def test_a_lack_of_files_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    """asyncio tells it for each place of the backlog, and again each second."""
    with AppOutput(logging.INFO, None, as_json=False) as output:
        for _ in range(300):
            output.log_unhandled(None, {"exception": OSError(errno.EMFILE, MARKER)})  # type: ignore[arg-type]
        output.log_unhandled(None, {"exception": OSError(errno.EIO, MARKER)})  # type: ignore[arg-type]
    said = [json.loads(each)["error"] for each in capfd.readouterr().err.splitlines()]
    assert said == ["too_many_open_files", "internal"]


@pytest.fixture
def limits_of_files(monkeypatch: pytest.MonkeyPatch) -> SetLimits:
    """Makes the system's limits these; the list has what they are set to."""

    def pretend(soft: int, hard: int) -> list[tuple[int, int]]:
        made: list[tuple[int, int]] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
        return made

    return pretend


@pytest.mark.parametrize(
    ("soft", "hard", "made", "connections"),
    [
        (1024, 524288, [(1712, 524288)], 1000),
        (1024, UNLIMITED, [(1712, UNLIMITED)], 1000),
        (65536, 65536, [], 1000),
        (UNLIMITED, UNLIMITED, [], 1000),
        (1024, 1024, [(1024, 1024)], 312),
        (64, 256, [(256, 256)], 16),
    ],
)
def test_the_soft_limit_of_open_files_is_raised_as_far_as_needed(
    limits_of_files: SetLimits, soft: int, hard: int, made: list[tuple[int, int]], connections: int
) -> None:
    tried = limits_of_files(soft, hard)
    limits, notice = within_open_files(HttpLimits(max_connections=1000), 200)
    assert (tried, limits.max_connections) == (made, connections)
    assert (f"allows {connections} connections" in notice) == (connections < 1000)
