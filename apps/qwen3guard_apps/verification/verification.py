"""Verifies the exports of one checkpoint: each format is exported into a scratch folder, judged beside fp32, timed, and
removed before the next one is made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime
from qwen3guard_contract.errors import GuardError, InputError, InvalidRequest, ServeError
from qwen3guard_contract.manifest import Manifest
from qwen3guard_export import export
from qwen3guard_export.checkpoint.checkpoint import Checkpoint, open_checkpoint

from qwen3guard_apps.annotation.progress import Progress
from qwen3guard_apps.verification import outliers
from qwen3guard_apps.verification.comparison import compare
from qwen3guard_apps.verification.formats import REFERENCE, Format, lacking, needs_gpu
from qwen3guard_apps.verification.judgements import Judgements, Tokenized
from qwen3guard_apps.verification.judges import GenJudge, StreamJudge, open_judge
from qwen3guard_apps.verification.results import FormatResult, Verified
from qwen3guard_apps.verification.texts import SampleText, spread
from qwen3guard_apps.verification.timing import Timing, in_process, served
from qwen3guard_apps.verification.transformers_judge import TransformersJudge

Say = Callable[[str], None]
SCRATCH = "qwen3guard-verify-"
TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What to verify: the `formats` of the checkpoint `source`, on `texts`.

    At most `with_transformers` of the texts are judged by transformers too. `min_agreement` is a share.
    """

    source: str
    revision: str | None
    formats: Sequence[Format]
    texts: Sequence[SampleText]
    with_transformers: int
    min_agreement: float


@dataclass
class Reading:
    """The texts that the guard can take, as it reads them."""

    texts: list[SampleText]
    tokens: list[Tokenized]


def verify(plan: Plan, say: Say) -> Verified:
    """Exports, judges and times. `say` gets a line for each stage.

    Raises a CheckpointError where the checkpoint cannot be exported in fp32, and InvalidRequest where it can take none
    of the texts.
    """
    say(f"reading {plan.source}")
    checkpoint = open_checkpoint(plan.source, plan.revision)
    variant = checkpoint.architecture.variant
    asked = tuple(each.name for each in plan.formats)
    wanted = list(plan.formats) if REFERENCE.name in asked else [REFERENCE, *plan.formats]
    reading = Reading(list(plan.texts), [])
    outcomes = {each.name: FormatResult(each.name, str(each.form(variant))) for each in wanted}
    reference = outcomes[REFERENCE.name]
    _run(REFERENCE, reference, checkpoint, reading, say)
    if reference.judged is None:
        raise InvalidRequest(f"The fp32 export could not be judged: {reference.problem}.")
    peer, transformers = _with_transformers(plan, checkpoint, reading, say)
    for each in wanted:
        if each.name != REFERENCE.name:
            _run(each, outcomes[each.name], checkpoint, reading, say)
    for outcome in outcomes.values():
        if outcome.judged is not None:
            outcome.comparison = compare(reading.texts, reference.judged, outcome.judged)
            if peer:
                numbers = list(peer)
                outcome.with_transformers = compare(
                    [reading.texts[number] for number in numbers],
                    list(peer.values()),
                    [outcome.judged[number] for number in numbers],
                )
    say("measuring the outliers of weights and activations")
    kv = any(each.form(variant).has_integer_kv for each in wanted)
    return Verified(
        checkpoint,
        asked,
        reading.texts,
        len(plan.texts) - len(reading.texts),
        list(outcomes.values()),
        transformers,
        outliers.weight_outliers(checkpoint),
        outliers.activation_outliers(checkpoint, kv=kv),
        plan.min_agreement,
    )


def _run(format_: Format, outcome: FormatResult, checkpoint: Checkpoint, reading: Reading, say: Say) -> None:
    """Exports one format, judges the texts with it and times it. What fails is the outcome's problem."""
    form = format_.form(checkpoint.architecture.variant)
    outcome.problem = lacking(form, onnxruntime.get_available_providers())
    if outcome.problem:
        say(f"{format_.name}: not verified, {outcome.problem}")
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
        repository = Path(folder)
        try:
            manifest = export(
                str(checkpoint.folder),
                repository,
                weights=form.weights,
                attention=form.attention,
                say=lambda line: say(f"{format_.name}: {line}"),
            )
            outcome.judged = _judged(repository, manifest, reading, format_, say)
            outcome.timing = _timed(repository, manifest, reading, gpu=needs_gpu(form))
        except GuardError as error:
            if format_ is REFERENCE:
                raise
            outcome.judged, outcome.problem = None, str(error).rstrip(".")
            say(f"{format_.name}: {error}")
            return
        outcome.parity = manifest.parity
        outcome.size = sum(path.stat().st_size for path in repository.rglob("*_guard/1/*") if path.is_file())


def _judged(repository: Path, manifest: Manifest, reading: Reading, format_: Format, say: Say) -> list[Judgements]:
    """Judges the texts. When it returns, the guard is no longer in memory."""
    judge = open_judge(repository, manifest.variant, cuda=needs_gpu(manifest.form))
    if not reading.tokens:
        return _first(judge, reading, say)
    return [judge.judge(each) for each in _counted(reading.tokens, format_.name, say)]


def _first(judge: GenJudge | StreamJudge, reading: Reading, say: Say) -> list[Judgements]:
    """Judges the texts, and keeps in `reading` those that the guard takes, with their tokens.

    Raises InvalidRequest where there are none.
    """
    texts, found = [], []
    for text in _counted(reading.texts, REFERENCE.name, say):
        try:
            tokens = judge.tokenize(text)
            found.append(judge.judge(tokens))
        except InputError:
            continue
        texts.append(text)
        reading.tokens.append(tokens)
    if not texts:
        raise InvalidRequest("The guard can take none of the texts.")
    reading.texts = texts
    return found


def _counted(items: Sequence[T], name: str, say: Say) -> Iterator[T]:
    """The items, with a line of progress."""
    say(f"{name}: judging {len(items):,} texts")
    progress = Progress(len(items), 0)
    try:
        for each in items:
            yield each
            progress.step(0)
    finally:
        progress.close()


def _timed(repository: Path, manifest: Manifest, reading: Reading, *, gpu: bool) -> Timing:
    token, why = int(reading.tokens[0].ids[-1]), "the server is timed on CPUs alone"
    if not gpu:
        try:
            return served(repository, manifest, reading.texts, token)
        except GuardError as error:
            why = str(error).rstrip(".")
    return in_process(open_judge(repository, manifest.variant, cuda=gpu), reading.texts, token, why)


def _with_transformers(
    plan: Plan, checkpoint: Checkpoint, reading: Reading, say: Say
) -> tuple[dict[int, Judgements], dict[str, Any]]:
    """What transformers says about some of the texts, by their places in `reading`, and what is told of it."""
    if not plan.with_transformers:
        return {}, {"texts": 0, "why": "it was not asked for"}
    numbers = spread(range(len(reading.texts)), plan.with_transformers)
    try:
        with _torch_in_scratch():
            judge = TransformersJudge(checkpoint.folder, checkpoint.architecture.variant)
            found = {number: judge.judge(reading.tokens[number]) for number in _counted(numbers, "transformers", say)}
            same = sum(judge.same_tokens(reading.texts[number], reading.tokens[number]) for number in numbers)
    except ServeError as error:
        why = str(error).rstrip(".")
    except Exception as error:  # of another version of transformers or torch, which are no part of this project
        why = f"transformers could not judge the texts ({type(error).__name__}: {str(error)[:200]})"
    else:
        return found, {"texts": len(numbers), "same_tokens": same, "why": ""}
    say(f"nothing is compared with transformers: {why}.")
    return {}, {"texts": 0, "why": why}


@contextmanager
def _torch_in_scratch() -> Iterator[None]:
    """While torch is imported, its cache of compiled code is in a folder that goes: it makes one even if it compiles
    nothing, and would leave it in TMPDIR."""
    if TORCH_CACHE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
        os.environ[TORCH_CACHE] = folder
        try:
            yield
        finally:
            del os.environ[TORCH_CACHE]
