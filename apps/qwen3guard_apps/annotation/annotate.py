"""`qwen3guard annotate IN OUT`: writes Gen's verdict beside every row of a file or a data set."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from qwen3guard_client.aio import AsyncGuardClient
from qwen3guard_client.transport.connection import read_token
from qwen3guard_contract.errors import (
    DeadlineExceeded,
    GuardError,
    InputError,
    InternalError,
    InvalidRequest,
    UnreadableAnswer,
)
from qwen3guard_contract.thresholds import Thresholds
from qwen3guard_contract.verdict import Classification

from qwen3guard_apps import client_options
from qwen3guard_apps.annotation.flight import IN_FLIGHT, PATIENCE_S, Flight, in_order
from qwen3guard_apps.annotation.outputs import STANDARD_OUTPUT, RowsOutput, open_output
from qwen3guard_apps.annotation.progress import Progress
from qwen3guard_apps.annotation.rows import DataRow, Fields, Rows
from qwen3guard_apps.annotation.sources import FORMATS, SPLIT, open_rows
from qwen3guard_apps.argument_types import positive

ROW_TIMEOUT_S = 120.0
BAD_ROWS = 3
"""The exit status after a complete run in which some rows could not be judged."""

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Asks the guard about a record and returns what to write beside it. Raises a GuardError."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser)
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUT",
        help="the file to write, .jsonl, .csv, .tsv or .parquet, or - for JSON lines on standard output; after a run"
        " that broke off, the same command again goes on where it ended",
    )
    client_options.add_client_arguments(parser, json="print a summary as one line of JSON")
    add_flight_arguments(parser)
    client_options.add_context_argument(parser)
    client_options.add_windows_argument(parser)
    parser.add_argument(
        "--guard-field", default="guard", metavar="NAME", help="the field that a row gets (default: %(default)s)"
    )
    parser.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="decide by the thresholds in this file, from evaluate --choose"
    )


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="IN",
        help="JSON lines, a JSON array, CSV, TSV or Parquet, as a file or - for standard input, gzip or not;"
        " or a data set that `datasets` can load",
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="what IN is (default: by its suffix, or else by how it begins)"
    )
    parser.add_argument(
        "--split",
        default=SPLIT,
        metavar="NAME",
        help="which part of a data set is read; a file has no other than %(default)s (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        dest="configuration",  # `config` is the file of options that other commands read
        metavar="NAME",
        help="which configuration of a data set is read (default: its only one)",
    )
    add_field_arguments(parser)


def add_field_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("prompt", "response", "messages"):
        parser.add_argument(
            f"--{name}-field", default=name, metavar="NAME", help=f"the field with the {name} (default: %(default)s)"
        )
    parser.add_argument("--prompts-only", action="store_true", help="judge the prompts of pairs, not their responses")


def add_flight_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(timeout=ROW_TIMEOUT_S)
    parser.add_argument(
        "--in-flight",
        type=positive(int),
        default=IN_FLIGHT,
        metavar="N",
        help="how many calls are under way at most (default: %(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE_S,
        metavar="S",
        help="how many seconds to wait for a server that is full or restarting (default: %(default)g)",
    )


def conversation_fields(arguments: argparse.Namespace) -> Fields:
    names = arguments.prompt_field, arguments.response_field, arguments.messages_field
    return Fields(*names, prompts_only=arguments.prompts_only)


def run(arguments: argparse.Namespace) -> None:
    """Exits with BAD_ROWS where some rows could not be judged. Raises a GuardError."""
    if arguments.json and str(arguments.output) == STANDARD_OUTPUT:
        raise InvalidRequest("--json prints a summary on standard output, where the rows go: leave one of them out.")
    thresholds = Thresholds.read(arguments.thresholds) if arguments.thresholds else None
    rows, conversation = input_rows(arguments), conversation_fields(arguments)
    conversation.check(rows)
    output = open_output(arguments.output, arguments.guard_field, rows)
    errors = output.errors_path
    if isinstance(errors, Path) and errors.resolve() == Path(arguments.input).resolve():
        raise InvalidRequest(f"{arguments.input} is where the errors of {output.path} go: name another output.")

    async def annotate() -> int:
        async with connected_guard(arguments) as guard:
            notices: set[str] = set()

            async def ask(record: dict[str, Any]) -> dict[str, Any]:
                prompt, response, messages = conversation.conversation(record)
                classification = await guard.classify(
                    prompt, response, messages=messages, context=arguments.context, windows=arguments.windows
                )
                notices.add(classification.notice)
                return as_dict(classification, thresholds)

            bad = await write_all(rows, output, ask, flight_of(arguments), as_json=arguments.json)
            for notice in notices - {""}:
                print(f"note: {notice}", file=sys.stderr)
            return bad

    if asyncio.run(annotate()):
        raise SystemExit(BAD_ROWS)


def input_rows(arguments: argparse.Namespace) -> Rows:
    """The rows that the options of `add_input_arguments` name. Raises InvalidRequest or ServeError."""
    return open_rows(arguments.input, arguments.split, arguments.format, arguments.configuration)


def connected_guard(arguments: argparse.Namespace) -> AsyncGuardClient:
    token = read_token(arguments.token_file)
    return AsyncGuardClient(arguments.url, timeout_s=arguments.timeout, tls=client_options.tls(arguments), token=token)


def flight_of(arguments: argparse.Namespace) -> Flight:
    return Flight(arguments.in_flight, arguments.patience)


def as_dict(classification: Classification, thresholds: Thresholds | None = None) -> dict[str, Any]:
    """What is written beside a row: the classification without its raw answer and its notice.

    `unsafe` is decided by `thresholds`, or else by the server; a turn that was judged in windows is unsafe if one of
    them is.
    """
    kept = {name: value for name, value in classification.as_dict().items() if name not in ("answer", "notice")}
    windows = [
        {"start": window.start, "end": window.end} | as_dict(window.verdict, thresholds)
        for window in classification.windows
    ]
    if windows:
        kept["windows"] = windows
    return kept if thresholds is None else kept | {"unsafe": thresholds.is_unsafe(classification)}


async def write_all(rows: Rows, output: RowsOutput, ask: Ask, flight: Flight, *, as_json: bool = False) -> int:
    """Asks about each row that `output` does not have yet, and writes it there, or its error beside it.

    Prints a summary, and returns how many rows are bad, those of earlier runs included. Raises a GuardError that is not
    of a row, and InvalidRequest where `output` cannot be written or does not continue these rows.
    """

    async def judge(row: DataRow) -> dict[str, Any] | GuardError:
        record = row.record
        if record is None:
            return row.error or InternalError("The row could not be read.")
        try:
            return await flight.call(lambda: ask(record))
        except GuardError as error:
            if not is_row_error(error):
                raise
            return error

    with output:
        source = rows.read()
        done = output.resume(source)
        progress = Progress(rows.total, done)

        def write(row: DataRow, result: dict[str, Any] | GuardError) -> None:
            output.write(row, result)
            progress.step(output.bad)

        try:
            await in_order(source, judge, write, flight.in_flight)
        finally:
            progress.close()
        if next(itertools.chain(source), None) is not None:
            raise InternalError("Some rows were not judged.")
    _say_summary(output, progress, done, flight.refusals if as_json else None)
    return output.bad


def is_row_error(error: GuardError) -> bool:
    """Whether the row caused the error; if not, the run must stop: the server is gone, or refuses access."""
    return isinstance(error, InputError | UnreadableAnswer | InternalError | DeadlineExceeded)


def _say_summary(output: RowsOutput, progress: Progress, before: int, refusals: int | None) -> None:
    new = progress.done - before
    if refusals is not None:
        summary = {
            "rows": progress.done,
            "new": new,
            "bad": output.bad,
            "rows_per_s": round(progress.rate, 2),
            "refused": refusals,
        }
        print(json.dumps(summary | {"output": str(output.path)}), flush=True)
    earlier = f" and {before:,} by an earlier run" if before else ""
    bad = f"; {output.bad:,} are bad, see {output.errors_path}" if output.bad else ""
    rate = f"{new:,} rows in {progress.seconds:.1f} s ({progress.rate:.1f} rows/s){earlier}{bad}"
    print(f"{output.path}: {rate}", file=sys.stderr, flush=True)
