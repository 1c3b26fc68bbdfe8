"""The README's make commands, run as written."""

from __future__ import annotations

import time

from qwen3guard_contract.manifest import DEMO_NOTICE
from support.readme import COMMANDS, run


def test_make_demo_shows_verdicts_and_a_second_run_is_quick() -> None:
    assert "make demo" in COMMANDS
    first = run("make demo")
    assert first.returncode == 0, first.stderr
    for words in ("Safe", "Unsafe", "flagged at response token", DEMO_NOTICE, "stopping the server"):
        assert words in first.stdout
    began = time.monotonic()
    assert run("FORCE_COLOR=1 make demo").stdout.count("\033[1;3") >= 4
    print(f"a second run took {time.monotonic() - began:.1f} s")


def test_make_test_is_this() -> None:
    assert "make test" in COMMANDS
    assert "-m pytest" in run("make -n test").stdout
