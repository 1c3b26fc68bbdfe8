"""`qwen3guard verify CHECKPOINT`: which formats of a checkpoint keep its judgements. Needs the extras `export` and
`serve`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from qwen3guard_contract.errors import InvalidRequest, ParityError, ServeError
from qwen3guard_contract.extras import how_to_install

from qwen3guard_apps.annotation.annotate import add_field_arguments, conversation_fields
from qwen3guard_apps.annotation.sources import open_rows
from qwen3guard_apps.argument_types import positive
from qwen3guard_apps.cli.export import add_source_arguments
from qwen3guard_apps.cli.terminal import say
from qwen3guard_apps.verification.formats import DEFAULT_FORMATS, formats
from qwen3guard_apps.verification.recommendation import MIN_AGREEMENT

WITH_TRANSFORMERS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument(
        "--formats",
        default=DEFAULT_FORMATS,
        metavar="LIST",
        help="with commas: fp32, dq8r, fp16, bf16, each also with :decomposed, :int8, :portable or :paged behind it for"
        " a form of attention (default: %(default)s)",
    )
    parser.add_argument("--data", metavar="FILE", help="judge these rows too, in any format that annotate reads")
    add_field_arguments(parser)
    parser.add_argument(
        "--texts",
        type=positive(int),
        metavar="N",
        help="judge at most so many of the bundled texts, and of FILE, spread over each (default: all)",
    )
    parser.add_argument("--no-bundled", action="store_true", help="judge the rows of --data alone")
    parser.add_argument(
        "--transformers",
        type=int,
        default=WITH_TRANSFORMERS,
        metavar="N",
        help="compare so many of the texts with transformers, where it is installed; 0 leaves it out"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--min-agreement",
        type=_share,
        default=MIN_AGREEMENT,
        metavar="SHARE",
        help="fail where the levels or the flags of a format agree with fp32's less often (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write report.md, report.json and plots there (default: nowhere)"
    )
    parser.add_argument("--json", action="store_true", help="print report.json instead of report.md")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def run(arguments: argparse.Namespace) -> None:
    """Prints the report. Raises ParityError where a format that was asked for could not be judged, or agrees too
    rarely; and a GuardError."""
    try:
        from qwen3guard_export.checkpoint.sources import on_hub

        from qwen3guard_apps.verification import texts
        from qwen3guard_apps.verification.plots import plot_verification
        from qwen3guard_apps.verification.report import verification_report
        from qwen3guard_apps.verification.verification import Plan, verify
    except ImportError as missing:
        raise ServeError(f"{missing.name} is not installed: {how_to_install('export', 'serve')}.") from None
    if arguments.no_bundled and not arguments.data:
        raise InvalidRequest("--no-bundled leaves no texts without --data.")
    if arguments.transformers < 0:
        raise InvalidRequest("--transformers is less than 0.")
    chosen = [] if arguments.no_bundled else texts.spread(texts.bundled(), arguments.texts)
    if arguments.data:
        rows, fields = open_rows(arguments.data), conversation_fields(arguments)
        fields.check(rows)
        own, unreadable = texts.of_rows(rows, fields)
        if unreadable:
            say(f"{unreadable:,} of {rows.total:,} rows hold no conversation that can be read, and are left out.")
        chosen += texts.spread(own, arguments.texts)
    plan = Plan(
        on_hub(arguments.checkpoint, arguments.hub),
        arguments.revision,
        formats(arguments.formats),
        chosen,
        arguments.transformers,
        arguments.min_agreement,
    )
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
    with _stopping_on_signals():
        verified = verify(plan, say)
    results = verified.as_dict()
    pictures: list[Path] = []
    if arguments.output:
        try:
            pictures = plot_verification(arguments.output, verified)
        except ServeError as error:
            say(str(error))
        as_json = json.dumps(results, indent=1, ensure_ascii=False)
        (arguments.output / "report.json").write_text(f"{as_json}\n", encoding="utf-8")
        text = verification_report(results, [path.name for path in pictures])
        (arguments.output / "report.md").write_text(text, encoding="utf-8")
    print(json.dumps(results, ensure_ascii=False) if arguments.json else verification_report(results, []))
    sys.stdout.flush()
    if verified.failures:
        raise ParityError(f"{verified.checkpoint.source} is not verified: {'; '.join(verified.failures)}.")


def _stopping_on_signals() -> contextlib.AbstractContextManager[None]:
    """Whatever stops this process, its scratch folder goes; the embedded server's package needs Linux."""
    try:
        from qwen3guard_server.processes import stopping_on_signals
    except ImportError:
        return contextlib.nullcontext()
    return stopping_on_signals()
