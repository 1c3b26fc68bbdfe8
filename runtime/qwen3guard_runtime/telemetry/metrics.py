"""The metrics of the served models: names, units, labels and values. This module knows nothing of Triton; `triton_io`
publishes the metrics there.

To count is to add to a number in this process; only one thread at a time may do it. Labels have few values, which are
all known beforehand. The series of every combination exists from the start, because Prometheus's `rate` misses the
first event of a series that begins with it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import ClassVar, Literal, Protocol

from qwen3guard_contract import errors
from qwen3guard_contract.errors import BY_CODE, GuardError, InputError, SessionLost
from qwen3guard_contract.labels import RISK_ORDER, AnswerStatus, RiskLevel

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16)
SERVER_ERRORS = (
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.Abandoned,
    errors.UnreadableAnswer,
    errors.InternalError,
)
CODES = tuple(
    code for code, error in BY_CODE.items() if error is not InputError and issubclass(error, (InputError, SessionLost))
) + tuple(error.code for error in SERVER_ERRORS)
"""The codes of the errors that a served model answers with."""
INCOMPLETE_STATUSES = tuple(status.value for status in AnswerStatus if status is not AnswerStatus.COMPLETE)
SEVERITIES = tuple(level.value for level in RISK_ORDER)

Closed = Literal["ended", "restarted", "idle", "room", "abandoned", "failed"]
CLOSE_REASONS: tuple[Closed, ...] = ("ended", "restarted", "idle", "room", "abandoned", "failed")
Pass = Literal["prefill", "decode"]
PASSES: tuple[Pass, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class Sample:
    """A series of Prometheus with its value now."""

    name: str
    description: str
    kind: Literal["counter", "gauge"]
    labels: tuple[tuple[str, str], ...]
    value: float


class Metric(Protocol):
    def samples(self) -> Iterator[Sample]: ...


class HeldPrefixes(Protocol):
    @property
    def count(self) -> int: ...

    @property
    def held_bytes(self) -> int: ...


class Counter:
    """One sum for each combination of values of `labels`. `add` takes the values in the order of `labels`."""

    def __init__(self, name: str, description: str, **labels: Collection[str]) -> None:
        self._name = name
        self._description = description
        self._labels = tuple(labels)
        self._sums = dict.fromkeys(product(*labels.values()), 0.0)

    def add(self, *labels: str, by: float = 1) -> None:
        self._sums[labels] += by

    def samples(self) -> Iterator[Sample]:
        for values, total in self._sums.items():
            labels = tuple(zip(self._labels, values, strict=True))
            yield Sample(self._name, self._description, "counter", labels, total)


class Gauge:
    """A number that is read when its samples are."""

    kind: ClassVar[Literal["counter", "gauge"]] = "gauge"

    def __init__(self, name: str, description: str, read: Callable[[], float], **labels: str) -> None:
        self._name = name
        self._description = description
        self._read = read
        self._labels = tuple(labels.items())

    def samples(self) -> Iterator[Sample]:
        yield Sample(self._name, self._description, self.kind, self._labels, self._read())


class ReadCounter(Gauge):
    """A sum that something else counts."""

    kind = "counter"


class Histogram:
    """Counts how many values were at most each of `bounds`, for each combination of values of `labels`, and sums them.

    Its samples are the counters that a Prometheus histogram consists of. Triton's own histograms would need a call to
    the server for each observation; counters need one each second.
    """

    def __init__(self, name: str, description: str, bounds: Sequence[float], **labels: Collection[str]) -> None:
        self._name = name
        self._description = description
        self._bounds = bounds
        self._edges = [f"{bound:g}" for bound in bounds] + ["+Inf"]
        self._labels = tuple(labels)
        self._counts = {values: [0] * len(self._edges) for values in product(*labels.values())}
        self._sums = dict.fromkeys(self._counts, 0.0)

    def observe(self, value: float, *labels: str) -> None:
        self._counts[labels][bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def samples(self) -> Iterator[Sample]:
        for values, counts in self._counts.items():
            labels = tuple(zip(self._labels, values, strict=True))
            cumulative = list(accumulate(counts))
            for edge, count in zip(self._edges, cumulative, strict=True):
                yield self._sample("bucket", "those up to le", (*labels, ("le", edge)), count)
            yield self._sample("sum", "their sum", labels, self._sums[values])
            yield self._sample("count", "their number", labels, cumulative[-1])

    def _sample(self, part: str, meaning: str, labels: tuple[tuple[str, str], ...], value: float) -> Sample:
        return Sample(f"{self._name}_{part}", f"{self._description}: {meaning}", "counter", labels, value)


class Refusals:
    """The requests that one served model answered with an error, and the lines of its log that were dropped."""

    def __init__(self, model: str, dropped_lines: Callable[[], int] = lambda: 0) -> None:
        self._model = model
        self._counter = Counter(
            "qwen3guard_refused_total", "Requests answered with an error, by its code", model=[model], code=CODES
        )
        self._canaries = Counter(
            "qwen3guard_canaries_refused_total", "Canaries of the supervisor answered with an error", model=[model]
        )
        self._dropped = ReadCounter(
            "qwen3guard_log_dropped_total", "Lines of the log that could not be written", dropped_lines, model=model
        )

    def count(self, error: GuardError, *, canary: bool = False) -> None:
        if canary:
            self._canaries.add(self._model)
        else:
            self._counter.add(self._model, error.code if error.code in CODES else errors.InternalError.code)

    def samples(self) -> Iterator[Sample]:
        yield from self._counter.samples()
        yield from self._canaries.samples()
        yield from self._dropped.samples()


class GuardMetrics:
    """The metrics that both guards have. Canaries are counted in two of their own, and nowhere else."""

    def __init__(self, model: str) -> None:
        self._model = model
        loaded = time.time()
        self._loaded = Gauge(
            "qwen3guard_load_timestamp_seconds", "When the guard was loaded", lambda: loaded, model=model
        )
        self._pass_seconds = Histogram(
            "qwen3guard_pass_seconds", "Seconds of the graph's runs", SECONDS, model=[model], kind=PASSES
        )
        self._pass_rows = Histogram(
            "qwen3guard_pass_rows", "Rows that were run together", ROWS, model=[model], kind=PASSES
        )
        self._prompt_tokens = Counter(
            "qwen3guard_prompt_tokens_total",
            "Tokens of conversations that were taken, template included",
            model=[model],
        )
        self._begun_tokens = Counter(
            "qwen3guard_begun_tokens_total",
            "Tokens with which conversations began: reused from others, or computed",
            model=[model],
            outcome=("reused", "computed"),
        )
        self._not_finite = Counter(
            "qwen3guard_not_finite_total", "Requests for which the graph's numbers were not finite", model=[model]
        )
        self._canary_seconds = Histogram(
            "qwen3guard_canary_seconds",
            "Seconds from taking the supervisor's canary to its answer",
            SECONDS,
            model=[model],
        )
        self._canary_passes = Counter("qwen3guard_canary_passes_total", "Runs of the graph for canaries", model=[model])

    def watch_prefixes(self, prefixes: HeldPrefixes) -> None:
        """Adds the gauges of what is held for later conversations."""
        model = self._model
        self._prefixes = Gauge(
            "qwen3guard_prefixes",
            "Conversations held for later ones that begin alike",
            lambda: prefixes.count,
            model=model,
        )
        self._prefix_bytes = Gauge(
            "qwen3guard_prefix_bytes", "Bytes of their KV slots", lambda: prefixes.held_bytes, model=model
        )

    def began(self, *, reused: int, computed: int) -> None:
        """A conversation was begun, so many tokens of which are held, and so many to be computed."""
        self._begun_tokens.add(self._model, "reused", by=reused)
        self._begun_tokens.add(self._model, "computed", by=computed)

    def watch_products(self, products: str | None) -> None:
        """Adds the gauge that says how the guard's integer products are exact. None means that it has none."""
        self._products = Gauge(
            "qwen3guard_integer_products",
            "1: how the guard's 8-bit products come out exact on this machine",
            lambda: 1,
            model=self._model,
            products=products or "none",
        )

    def canary(self, passes: int, seconds: float) -> None:
        """A canary was answered."""
        self._canary_passes.add(self._model, by=passes)
        self._canary_seconds.observe(seconds, self._model)

    def watch_guard(self, export_id: str, device: str, made_for: str) -> None:
        """Adds the gauges that say which export is served, on which device, and for which it was made."""
        self._export = Gauge(
            "qwen3guard_export", "1: the export that is served", lambda: 1, model=self._model, export=export_id
        )
        self._device = Gauge(
            "qwen3guard_device",
            "1: the device that the guard runs on, and the one that it was made for",
            lambda: 1,
            model=self._model,
            device=device,
            made_for=made_for,
        )

    def not_finite(self) -> None:
        self._not_finite.add(self._model)

    def ran(self, kind: Pass, rows: int, seconds: float) -> None:
        self._pass_seconds.observe(seconds, self._model, kind)
        self._pass_rows.observe(rows, self._model, kind)

    def all(self) -> list[Metric]:
        return [value for value in vars(self).values() if not isinstance(value, str)]


class GenMetrics(GuardMetrics):
    def __init__(self) -> None:
        super().__init__("gen_guard")
        self._answers = Counter("qwen3guard_answers_total", "Answers that Gen wrote")
        self._answer_passes = Counter(
            "qwen3guard_answer_passes_total", "Passes that these answers took; one each where the draft was right"
        )
        self._answer_seconds = Histogram(
            "qwen3guard_answer_seconds", "Seconds from taking a question to its answer", SECONDS
        )
        self._draft_tokens = Counter(
            "qwen3guard_draft_tokens_total", "Drafted tokens of answers", outcome=("accepted", "rejected")
        )
        self._broken = Counter(
            "qwen3guard_broken_answers_total", "Answers that are not well-formed", status=INCOMPLETE_STATUSES
        )
        self._verdicts = Counter(
            "qwen3guard_verdicts_total", "Verdicts of Gen", severity=SEVERITIES, judged=("prompt", "response")
        )

    def answered(self, passes: int, prompt_tokens: int, seconds: float) -> None:
        self._answers.add()
        self._answer_passes.add(by=passes)
        self._answer_seconds.observe(seconds)
        self._prompt_tokens.add(self._model, by=prompt_tokens)

    def drafted(self, tokens: int, accepted: int) -> None:
        self._draft_tokens.add("accepted", by=accepted)
        self._draft_tokens.add("rejected", by=tokens - accepted)

    def malformed(self, status: AnswerStatus) -> None:
        self._broken.add(status.value)

    def judged(self, severity: RiskLevel, *, response_mode: bool) -> None:
        self._verdicts.add(severity.value, "response" if response_mode else "prompt")


class StreamMetrics(GuardMetrics):
    def __init__(self) -> None:
        super().__init__("stream_guard")
        self._opened = Counter("qwen3guard_sessions_opened_total", "Sessions that were opened, replays included")
        self._closed = Counter(
            "qwen3guard_sessions_closed_total", "Sessions no longer held, by reason", reason=CLOSE_REASONS
        )
        self._replays = Counter(
            "qwen3guard_replays_total",
            "Openings of lost streams again, admitted or put off",
            outcome=("admitted", "put_off"),
        )
        self._step_seconds = Histogram(
            "qwen3guard_step_seconds", "Seconds from taking a step to its verdicts", SECONDS, kind=("open", "step")
        )
        self._tokens = Counter("qwen3guard_tokens_total", "Tokens of responses that were judged", severity=SEVERITIES)
        self._prompts = Counter("qwen3guard_prompts_total", "Prompts of streams that were judged", severity=SEVERITIES)
        self._flagged = Counter(
            "qwen3guard_flagged_total", "Streams flagged by their own policy", judged=("prompt", "response")
        )

    def opened(self) -> None:
        self._opened.add()

    def replayed(self, *, admitted: bool) -> None:
        self._replays.add("admitted" if admitted else "put_off")

    def closed(self, reason: Closed) -> None:
        self._closed.add(reason)

    def stepped(self, seconds: float, *, prompt_tokens: int, opening: bool) -> None:
        self._step_seconds.observe(seconds, "open" if opening else "step")
        self._prompt_tokens.add(self._model, by=prompt_tokens)

    def judged(self, tokens: Iterable[RiskLevel], prompt: Iterable[RiskLevel]) -> None:
        for level in tokens:
            self._tokens.add(level.value)
        for level in prompt:
            self._prompts.add(level.value)

    def flagged(self, judged: Literal["prompt", "response"]) -> None:
        self._flagged.add(judged)

    def watch(self, *, sessions: Callable[[], int], slots: int, used: Callable[[], int], budget_bytes: int) -> None:
        """Adds the gauges of what is held now."""
        self._sessions = Gauge("qwen3guard_sessions", "Sessions held now", sessions)
        self._slots = Gauge("qwen3guard_sessions_limit", "Sessions that can be held at once", lambda: slots)
        self._used = Gauge("qwen3guard_kv_used_bytes", "Bytes of the KV slots in use", used)
        self._budget = Gauge("qwen3guard_kv_budget_bytes", "Bytes that KV slots may take", lambda: budget_bytes)
