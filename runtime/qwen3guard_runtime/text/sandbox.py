"""The sandbox in which a checkpoint's chat template runs. It reaches no files and no Python, and its time and memory
are limited.

jinja's sandbox keeps it from files and Python, but limits nothing: a template may nest loops, double a string, or raise
a number to a large power. So each run has a limit of CPU seconds of its thread and of bytes of memory, and the sandbox
has no operation that takes long in a single call into C.
"""

from __future__ import annotations

import gc
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
"""The limit of one run. A run over a conversation that fills 32,768 tokens takes milliseconds."""
MEMORY_BYTES = 256 << 20
LONGEST_ARGUMENT = 1000
"""The most characters of a string that a template may give to a method. `strip` and `rfind` take time in proportion to
the product of both lengths."""
LARGEST_INTEGER = 2**63

FILTERS = (
    "abs capitalize count d default dictsort first float indent int items join last length list lower map max min "
    "reject rejectattr replace reverse round safe select selectattr sort string sum title trim unique upper"
)
T = TypeVar("T")


class Missing(StrictUndefined):
    """The value of a name that the template is not given, or of a field that a message lacks.

    To use a missing name is an error, where transformers would write nothing. A missing field may be tested
    (`if message.tool_calls`) and compared, but not written.
    """

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]  # jinja's own always raises
        self._check_is_field()
        return False

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        self._check_is_field()
        return isinstance(other, Missing)

    def __ne__(self, other: object) -> bool:  # type: ignore[override]
        return not self == other

    __hash__ = StrictUndefined.__hash__  # type: ignore[assignment]

    def _check_is_field(self) -> None:
        """Raises UndefinedError if this is a missing name."""
        if self._undefined_obj is missing and self._undefined_name is not None:
            self._fail_with_undefined_error()


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja's sandbox with the filters and functions that transformers gives to chat templates, except those that no
    template needs."""

    intercepted_binops = frozenset({"*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], undefined=Missing
        )
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
    """Returns what `work` returns, in limited time and memory. Every exception of it becomes a TemplateError."""
    try:
        with _LOCK, _limited_memory(), _limited_time():
            return work()
    except TemplateError:
        raise
    except _TimeUp:
        raise TemplateError(f"it ran for more than {CPU_S:.0f} s") from None
    except Exception as error:
        raise TemplateError(f"it failed with {type(error).__name__}") from None


class _TimeUp(BaseException):
    """Not an Exception, because jinja's compiler catches those and goes on."""


_LOCK = threading.Lock()
"""Only one run at a time, because the limit on memory is the whole process's."""


@contextmanager
def _limited_time() -> Iterator[None]:
    """Turns the garbage collector off too: what it calls would swallow _TimeUp. Memory is limited anyway."""
    end = time.thread_time() + CPU_S

    def watch(frame: FrameType, _event: str, _value: Any) -> Any:
        """Python calls this for each call and for each line of the template's own code, so at least once in each round
        of any loop."""
        if time.thread_time() > end:
            raise _TimeUp
        return watch if frame.f_code.co_filename == "<template>" else None

    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()


@contextmanager
def _limited_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    data_pages = int(Path("/proc/self/statm").read_text().split()[5])
    limits = [data_pages * resource.getpagesize() + MEMORY_BYTES, soft, hard]
    lowest = min(limit for limit in limits if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, hard))
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


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _trim(value: Any, chars: str | None = None) -> str:
    _check_arguments((chars,))
    return str(value).strip(chars)


def _refuse(reason: str) -> None:
    raise TemplateError(reason)
