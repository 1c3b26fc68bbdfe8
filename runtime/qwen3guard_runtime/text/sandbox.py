"""Where a checkpoint's chat template runs: it reaches no files and no Python, and can neither run nor grow without end.

jinja's sandbox closes the first way. It bounds nothing else: a template may loop over loops, double a string, or
raise a number to a number. So each run has seconds of its own thread and bytes of memory, and no operation is left
that takes long inside one call into C.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from jinja2 import StrictUndefined, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

CPU_S = 3.0
"""A run over a conversation that fills 32,768 tokens takes milliseconds."""
MEMORY_BYTES = 256 << 20
LONGEST_ARGUMENT = 1000
"""Characters of a string that a template gives to a method: `strip` and `rfind` take the product of both lengths."""
LARGEST_INTEGER = 2**63

FILTERS = (
    "abs capitalize count d default dictsort first float indent int items join last length list lower map max min "
    "reject rejectattr replace reverse round safe select selectattr sort string sum title trim unique upper"
)
T = TypeVar("T")


class Absent(StrictUndefined):
    """What a template names and was not given: an error wherever it is used, where transformers writes nothing.

    A field that a message lacks may be asked for (`if message.tool_calls`), and compared, but not written.
    """

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]  # jinja's answers never
        self._check_is_no_name()
        return False

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        self._check_is_no_name()
        return isinstance(other, Absent)

    def __ne__(self, other: object) -> bool:  # type: ignore[override]
        return not self == other

    __hash__ = StrictUndefined.__hash__  # type: ignore[assignment]

    def _check_is_no_name(self) -> None:
        if self._undefined_obj is missing and self._undefined_name is not None:
            self._fail_with_undefined_error()


class Sandbox(ImmutableSandboxedEnvironment):
    """What transformers gives to chat templates, less what none of them needs."""

    intercepted_binops = frozenset({"*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], undefined=Absent)
        self.filters = {name: each for name, each in self.filters.items() if name in FILTERS.split()}
        self.filters["tojson"] = _tojson
        self.filters["trim"] = _trim
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or any(isinstance(each, int) and abs(each) > LARGEST_INTEGER for each in (left, right)):
            raise SecurityError("it computes with numbers that are too large")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as jinja has it)
        _check_arguments(args)
        return super().call(__context, __obj, *args, **kwargs)


def run_sandboxed(work: Callable[[], T]) -> T:
    """What `work` returns, in bounded time and memory. Whatever it raises instead becomes a TemplateError."""
    try:
        with _LOCK, _limited_memory(), _limited_time():
            return work()
    except TemplateError:
        raise
    except _TooSlow:
        raise TemplateError(f"it ran for more than {CPU_S:.0f} s") from None
    except Exception as error:
        raise TemplateError(f"it failed with {type(error).__name__}") from None


class _TooSlow(BaseException):
    """No Exception, since jinja's compiler goes on after those."""


_LOCK = threading.Lock()
"""The limit on memory is the whole process's."""


@contextmanager
def _limited_time() -> Iterator[None]:
    end = time.thread_time() + CPU_S

    def watch(frame: FrameType, _event: str, _value: Any) -> Any:
        """Sees each call, and each line of the template's own code: no loop of any length has neither."""
        if time.thread_time() > end:
            raise _TooSlow
        return watch if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _limited_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    data_pages = int(Path("/proc/self/statm").read_text().split()[5])
    bounds = [data_pages * resource.getpagesize() + MEMORY_BYTES, soft, hard]
    resource.setrlimit(resource.RLIMIT_DATA, (min(each for each in bounds if each != resource.RLIM_INFINITY), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _check_arguments(values: tuple[Any, ...]) -> None:
    if any(isinstance(each, str) and len(each) > LONGEST_ARGUMENT for each in values):
        raise SecurityError("it gives a method more text than any needs")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _trim(value: Any, chars: str | None = None) -> str:
    _check_arguments((chars,))
    return str(value).strip(chars)


def _refuse(reason: str) -> None:
    raise TemplateError(reason)
