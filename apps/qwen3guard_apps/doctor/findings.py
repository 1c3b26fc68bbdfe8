"""Findings: what the checks of an installation or a server have found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from qwen3guard_contract.errors import GuardError

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What one check found. `said` is one sentence; where the state is not ok, it says what to do."""

    check: str
    state: State
    said: str

    def as_line(self) -> str:
        return f"{self.state:8}{self.check:24}{self.said}"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Mapping[str, Check]) -> Iterator[Finding]:
    """Runs the checks and yields their findings; a check that raises gives a finding that failed."""
    for name, check in checks.items():
        try:
            yield from check()
        except GuardError as error:
            yield Finding(name, "failed", str(error))
        except Exception as error:
            yield Finding(name, "failed", f"This could not be checked ({type(error).__name__}: {error}).")
