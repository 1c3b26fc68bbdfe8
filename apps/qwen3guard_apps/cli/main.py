"""The command `qwen3guard`: its parser, and what it does with an error.

Each verb is a module of its name with `add_arguments` and `run`: export, serve, classify, stream and perf stand beside
this one; playground, annotate, evaluate, proxy and doctor stand in the folders of their apps. Results go to standard
output. A failure is one sentence on standard error. The exit status is 0, 1 after a failure, 2 for wrong arguments, 130
after Ctrl-C (`serve`, `proxy` and `playground` run until it, and then exit with 0), and 3 where `annotate` could not
judge some rows.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable, Sequence

from qwen3guard_contract.errors import GuardError

from qwen3guard_apps.annotation import annotate
from qwen3guard_apps.cli import classify, export, perf, serve, stream
from qwen3guard_apps.cli.terminal import say
from qwen3guard_apps.doctor import doctor
from qwen3guard_apps.evaluation import evaluate
from qwen3guard_apps.playground import playground
from qwen3guard_apps.proxy import proxy


class _Version(argparse.Action):
    """Reads the installed package's version only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"qwen3guard {importlib.metadata.version('qwen3guard-triton')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(prog="qwen3guard", description="Serve and use the Qwen3Guard safety models.")
    command.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    command.add_argument("--debug", action="store_true", help="show tracebacks and the server's log")
    verbs = command.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        added.set_defaults(run=run)
        return added

    export.add_arguments(verb("export", export.run, "Turn a checkpoint into a model repository."))
    serve.add_arguments(verb("serve", serve.run, "Run the embedded Triton server until Ctrl-C."))
    classify.add_arguments(verb("classify", classify.run, "Judge the last turn of a conversation."))
    stream.add_arguments(verb("stream", stream.run, "Moderate the response that arrives on standard input."))
    perf.add_arguments(verb("perf", perf.run, "Load a running server with perf_analyzer."))
    playground.add_arguments(verb("playground", playground.run, "Show a guard at work, in one local page."))
    annotate.add_arguments(verb("annotate", annotate.run, "Put the guard's verdict beside every row of a file."))
    evaluate.add_arguments(verb("evaluate", evaluate.run, "Measure the guards on labelled rows."))
    proxy.add_arguments(verb("proxy", proxy.run, "Guard an LLM: OpenAI's API in front, and behind. Until Ctrl-C."))
    doctor.add_arguments(
        verb("doctor", doctor.run, "Check this installation, a model repository and a running server.")
    )
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, by default the process's own, and returns its exit status."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        known = isinstance(error, GuardError)
        say(f"qwen3guard: {error}" if known else f"qwen3guard: {type(error).__name__}: {error} (--debug shows more)")
        return 1
    return 0
