"""The command `qwen3guard`: its parser, and what it does with an error.

Each verb is a module of its name with `add_arguments` and `run`: export, verify, serve, classify, stream, perf and
completion stand beside this one; playground, annotate, evaluate, proxy and doctor stand in the folders of their apps.
Results go to standard output. A failure is one sentence on standard error. The exit status is 0, 1 after a failure (and
where `verify` finds too little agreement), 2 for wrong arguments, 3 where `annotate` could not judge some rows, 10
where `classify --exit-code` finds something unsafe, 130 after Ctrl-C (`serve`, `proxy` and `playground` run until it,
and then exit with 0), and 141 where the reader of the output has gone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen3guard_contract.log_output import TRACE_VARIABLE

from qwen3guard_apps.cli.output_encoding import replace_unknown_characters

CLOSED_PIPE = 141
"""The exit status where whoever reads standard output has gone, as after `| head -1`: 128 and SIGPIPE."""


class _Version(argparse.Action):
    """Reads the installed package's version only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import importlib.metadata

        print(f"qwen3guard {importlib.metadata.version('qwen3guard-triton')}")
        parser.exit()


_VERBS = {
    "export": ("cli.export", "Turn a checkpoint into a model repository."),
    "verify": ("cli.verify", "Judge texts with each format of a checkpoint, beside fp32."),
    "serve": ("cli.serve", "Run the embedded Triton server until Ctrl-C."),
    "classify": ("cli.classify", "Judge the last turn of a conversation."),
    "stream": ("cli.stream", "Moderate the response that arrives on standard input."),
    "perf": ("cli.perf", "Load a running server with perf_analyzer."),
    "playground": ("playground.playground", "Show a guard at work, in one local page."),
    "annotate": ("annotation.annotate", "Put the guard's verdict beside every row of a file."),
    "evaluate": ("evaluation.evaluate", "Measure the guards on labelled rows."),
    "proxy": ("proxy.proxy", "Guard an LLM: OpenAI's API in front, and behind. Until Ctrl-C."),
    "completion": ("cli.completion", "Print a script for your shell's Tab key."),
    "doctor": ("doctor.doctor", "Check this installation, a model repository and a running server."),
}
"""The module of each verb, and what it does."""


def parser(arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all verbs; with a command's `arguments`, those that it does not name have no options. The modules
    are imported here, so that `main` can report what stops them."""
    from qwen3guard_apps.config_file import CommandParser

    command = CommandParser(prog="qwen3guard", description="Serve and use the Qwen3Guard safety models.")
    command.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    command.add_argument("--debug", action="store_true", help="show tracebacks and the server's log")
    verbs = command.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (module, text) in _VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        if arguments is None or name in arguments:
            implementation = importlib.import_module(f"qwen3guard_apps.{module}")
            implementation.add_arguments(verb)
            verb.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
            verb.set_defaults(run=implementation.run)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, by default the process's own, and returns its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if "serve" not in arguments and "--debug" not in arguments:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its log says once more what the one sentence says
    os.environ.pop(TRACE_VARIABLE, None)  # before a verb imports gRPC, which reads it then
    try:
        if sys.stdout is None:
            raise OSError("standard output is closed")
        replace_unknown_characters()
        with _interrupts_end_the_process():
            commands = parser(arguments)
        try:
            parsed = commands.parse_args(arguments)
            replace_unknown_characters(json=getattr(parsed, "json", False))
            parsed.run(parsed)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _write_no_more()
        return CLOSED_PIPE
    except Exception as error:
        from qwen3guard_apps.app_output import say_error

        if "--debug" in arguments:
            say_error("".join(traceback.format_exception(error)).rstrip())
        say_error(f"qwen3guard: {_sentence(error)}")
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            _write_no_more()
        return 1
    return 0


@contextlib.contextmanager
def _interrupts_end_the_process() -> Iterator[None]:
    """Ctrl-C ends the process at once while modules are imported: numpy would write a traceback of its own."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or not _in_main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _sentence(error: Exception) -> str:
    from qwen3guard_contract.errors import GuardError

    if isinstance(error, GuardError):
        return str(error)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{error.filename}: {reason}." if error.filename else f"{reason}."
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed."
    return f"{type(error).__name__}: {error} (--debug shows more)"


def _write_no_more() -> None:
    """Lets standard output go nowhere: the interpreter tries again to write what it did not take, and complains."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
