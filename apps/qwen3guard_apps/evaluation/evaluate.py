"""`qwen3guard evaluate LABELLED --output DIR`: measures Gen and Stream on labelled rows, and proposes thresholds."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen3guard_contract.errors import InvalidRequest, ServeError

from qwen3guard_apps import client_options
from qwen3guard_apps.annotation.annotate import (
    add_flight_arguments,
    add_input_arguments,
    connected_guard,
    conversation_fields,
    flight_of,
    input_rows,
    write_all,
)
from qwen3guard_apps.annotation.output import Output
from qwen3guard_apps.annotation.rows import DataRow, Fields, Rows
from qwen3guard_apps.evaluation.asked import check_asked
from qwen3guard_apps.evaluation.benchmark_rows import BenchmarkRows, benchmark_rows, grouped_rows
from qwen3guard_apps.evaluation.benchmarks import BENCHMARKS
from qwen3guard_apps.evaluation.curves import Curve, curve
from qwen3guard_apps.evaluation.figures import both_modes, bounds, figures, propose
from qwen3guard_apps.evaluation.judge import ask_gen, ask_stream
from qwen3guard_apps.evaluation.judged import SCORES, JudgedRow, JudgedRows, gen_answer, stream_answer
from qwen3guard_apps.evaluation.label_notes import MOST_SAID, LabelNotes, looks_inverted
from qwen3guard_apps.evaluation.labels import LabelFields
from qwen3guard_apps.evaluation.plots import plot
from qwen3guard_apps.evaluation.report import report

FIELD = "qwen3guard"
"""The field with the guard's answer in DIR/gen.jsonl and DIR/stream.jsonl."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder for answers, report.md, report.json and plots",
    )
    client_options.add_client_arguments(parser, json="print report.json instead of report.md")
    add_flight_arguments(parser)
    parser.add_argument(
        "--benchmark",
        choices=tuple(BENCHMARKS),
        help="read IN as this benchmark is published, its labels too (default: none)",
    )
    parser.add_argument(
        "--guard",
        choices=("gen", "stream", "both"),
        default="both",
        help="which guard is measured (default: %(default)s)",
    )
    parser.add_argument(
        "--label-field",
        metavar="NAME",
        help="the field with a level, or with true where the row is unsafe; where its name says safe, as is_safe does,"
        " true is safe (default: label, or else unsafe, is_unsafe, harmful, is_harmful, safe or is_safe)",
    )
    parser.add_argument(
        "--category-field",
        metavar="NAME",
        help="the field with a category's name, or a list of names (default: category)",
    )
    parser.add_argument(
        "--by",
        action="append",
        metavar="FIELD",
        help="make a table for each value of this field; may be given again (default: language)",
    )
    parser.add_argument(
        "--controversial",
        choices=("safe", "unsafe"),
        default="safe",
        help="how a row labelled Controversial counts (default: %(default)s)",
    )
    parser.add_argument("--choose", type=_share, metavar="RATE", help="propose thresholds for this false-positive rate")
    parser.add_argument(
        "--per-category", action="store_true", help="with --choose, propose one for each of Gen's categories"
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def run(arguments: argparse.Namespace) -> None:
    """Judges the rows, and writes the answers, the figures and the report. Raises a GuardError."""
    benchmark = _benchmark_rows(arguments) if arguments.benchmark else None
    rows = benchmark.rows if benchmark else input_rows(arguments)
    if not rows.total:
        raise InvalidRequest(f"{rows.name} has no rows.")
    conversation_fields(arguments).check(rows)
    if arguments.per_category and not arguments.choose:
        raise InvalidRequest("--per-category is for the thresholds that --choose proposes: give that too.")
    labels = _label_fields(arguments, rows)
    notes = LabelNotes(labels)
    labelled = list(_labelled(rows, notes))
    sentences = [*(benchmark.sentences() if benchmark else ()), *notes.sentences()]
    for sentence in sentences:
        print(f"note: {sentence}", file=sys.stderr)
    if not labelled:
        raise InvalidRequest(f"No row of {rows.name} has a label that can be read.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = ("gen", "stream") if arguments.guard == "both" else (arguments.guard,)
    guards = {}
    points: dict[str, Curve] = {}
    answers: dict[str, dict[int, JudgedRow]] = {}
    for name in names:
        guards[name], judged, answers[name] = _evaluate(name, arguments, rows.name, labelled, labels)
        if "curves" in guards[name]["figures"]:
            curves = {f"{name}, {score}": curve(judged.scores(field), judged.unsafe) for score, field in SCORES.items()}
            _write_points(arguments.output / f"{name}.curves.csv", curves)
            points |= curves
    data = {
        "name": rows.name,
        "rows": rows.total,
        "unlabelled": rows.total - len(labelled),
        "controversial_is_unsafe": labels.controversial_is_unsafe,
        "notes": sentences,
        "benchmark": benchmark.as_dict() if benchmark else None,
    } | notes.as_dict()
    results = {"data": data, "guards": guards, "common": _common(answers, labelled, labels)}
    prevalence = sum(labels.unsafe(row.record or {}) for row in labelled) / len(labelled)
    _write_report(arguments.output, results, points, prevalence, as_json=arguments.json)


def _benchmark_rows(arguments: argparse.Namespace) -> BenchmarkRows:
    """Raises InvalidRequest for options that say where the fields are: the benchmark does."""
    usual = Fields()
    for name in ("prompt", "response", "messages"):
        if getattr(arguments, f"{name}_field") != getattr(usual, name):
            raise InvalidRequest(f"--benchmark says where the {name} is: leave --{name}-field out.")
    for name in ("label_field", "category_field"):
        if getattr(arguments, name) is not None:
            raise InvalidRequest(f"--benchmark says where it is: leave --{name.replace('_', '-')} out.")
    benchmark = BENCHMARKS[arguments.benchmark]
    grouped = grouped_rows(Path(arguments.input)) if benchmark.grouped and Path(arguments.input).is_file() else None
    return benchmark_rows(grouped or input_rows(arguments), benchmark, prompts_only=arguments.prompts_only)


def _label_fields(arguments: argparse.Namespace, rows: Rows) -> LabelFields:
    """Raises InvalidRequest where no row has a field that an option names, or no row any field for a label."""
    named = {arguments.label_field: "--label-field", arguments.category_field: "--category-field"}
    named |= dict.fromkeys(arguments.by or (), "--by")
    rows.check_fields({name: option for name, option in named.items() if name is not None})
    labels = LabelFields(
        arguments.label_field,
        "category" if arguments.category_field is None else arguments.category_field,
        tuple(arguments.by or ("language",)),
        arguments.controversial == "unsafe",
    )
    labels.check(rows)
    return labels


def _labelled(rows: Rows, notes: LabelNotes) -> Iterator[DataRow]:
    """Yields the rows with a label; the first others are told on standard error, by number."""
    for row, wrong in notes.labelled(rows):
        if not wrong:
            yield row
        elif notes.left_out <= MOST_SAID:
            print(f"row {row.number} is left out: {wrong}", file=sys.stderr)


def _evaluate(
    name: str, arguments: argparse.Namespace, source: str, labelled: list[DataRow], labels: LabelFields
) -> tuple[dict[str, Any], JudgedRows, dict[int, JudgedRow]]:
    """Asks the guard `name` about the rows that its answers file does not have yet, and measures all of them. The last
    of the results are its answers by their places in `labelled`."""
    path = arguments.output / f"{name}.jsonl"
    rows = Rows(source, len(labelled), lambda: iter(labelled))
    ask, conversation = ask_stream if name == "stream" else ask_gen, conversation_fields(arguments)
    check_asked(path, conversation)

    async def judge() -> int:
        async with connected_guard(arguments) as guard:
            return await write_all(
                rows, Output(path, FIELD), lambda record: ask(guard, conversation, record), flight_of(arguments)
            )

    bad = asyncio.run(judge())
    with path.open(encoding="utf-8") as file:
        answers = [(record, record.pop(FIELD)) for record in map(json.loads, file)]
    answered = [(record, answer) for record, answer in answers if answer is not None]
    failed = [labels.unsafe(record) for record, answer in answers if answer is None]
    if not answered:
        raise InvalidRequest(f"None of the {len(labelled)} rows could be judged; see {name}.errors.jsonl.")
    read = (lambda answer, _: gen_answer(answer)) if name == "gen" else stream_answer
    found = {place: read(answer, record) for place, (record, answer) in enumerate(answers) if answer is not None}
    records = [record for record, _ in answered]
    judged = JudgedRows.of(zip(records, found.values(), strict=True), labels, conversation)
    guard: dict[str, Any] = {
        "notice": answered[0][1].get("notice", ""),
        "bad": bad,
        "failed": _failed(judged, failed),
        "figures": figures(judged),
    }
    fields = {labels.found(record)[0]: None for record, _ in answered}
    guard["warning"] = looks_inverted(guard["figures"], tuple(fields))
    if guard["warning"]:
        print(f"warning: {name}: {guard['warning']}", file=sys.stderr)
    if arguments.choose:
        own = arguments.per_category and name == "gen"
        (arguments.output / f"{name}.thresholds.json").unlink(missing_ok=True)
        try:
            thresholds, guard["chosen"] = propose(judged, arguments.choose, per_category=own)
        except InvalidRequest as error:  # the figures stand without it
            guard["not_chosen"] = str(error)
            print(f"warning: {name}: no thresholds are proposed: {error}", file=sys.stderr)
        else:
            path = arguments.output / f"{name}.thresholds.json"
            path.write_text(json.dumps(thresholds.as_dict(), indent=2) + "\n")
    return guard, judged, found


def _failed(judged: JudgedRows, failed: list[bool]) -> dict[str, Any] | None:
    """How many rows of each class could not be judged, and the figures with them; None where there are none."""
    if not failed:
        return None
    return {"unsafe": sum(failed), "safe": len(failed) - sum(failed)} | bounds(judged, failed)


def _common(
    answers: dict[str, dict[int, JudgedRow]], labelled: list[DataRow], labels: LabelFields
) -> dict[str, Any] | None:
    """The decisions of several guards on the rows that all of them have judged; None where there is one guard."""
    if len(answers) < 2:
        return None
    places = sorted(set.intersection(*(set(each) for each in answers.values())))
    if not places:
        return None
    guards = {}
    for name, found in answers.items():
        rows = JudgedRows.of(((labelled[place].record or {}, found[place]) for place in places), labels)
        guards[name] = both_modes(rows.unsafe, rows)
    return {"rows": len(places), "guards": guards}


def _write_points(path: Path, curves: dict[str, Curve]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", "threshold", "recall", "false_positive_rate", "precision"])
        for name, points in curves.items():
            columns = points.thresholds, points.recall, points.false_positive_rate, points.precision
            writer.writerows([name, *map(float, row)] for row in zip(*columns, strict=True))


def _write_report(
    folder: Path, results: dict[str, Any], points: dict[str, Curve], prevalence: float, *, as_json: bool
) -> None:
    pictures: list[Path] = []
    if points:
        notice = next((guard["notice"] for guard in results["guards"].values() if guard["notice"]), "")
        try:
            pictures = plot(folder, points, prevalence=prevalence, notice=notice)
        except ServeError as error:
            print(error, file=sys.stderr)
    (folder / "report.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = report(results, [path.name for path in pictures])
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    print(json.dumps(results, ensure_ascii=False) if as_json else text)
