"""The rows that a card must show, with their bounds, made of the figures of one run.

A row is as in perf/table.py: with the units "x" and "tokens/s" more is better, and with every other less. `met` says
whether `at_least` holds. A row whose figures are missing has no value, and says why in `missing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shapes import Ceilings, Work

Figure = dict[str, Any]
MORE_IS_BETTER = ("x", "tokens/s")
FLOOR, IN_A_GRAPH = "the floor", "transformers bf16 in a CUDA graph"


@dataclass(frozen=True)
class Row:
    """`at_least` is the bound of `value`, and `aim` what is hoped for; `ours` and `theirs` are what it was made of."""

    row: str
    work: str
    peer: str
    unit: str
    at_least: float
    aim: float
    value: float | None = None
    ours: float | None = None
    theirs: float | None = None
    missing: str | None = None
    parts: dict[str, float] | None = None
    """What explains the value. Milliseconds (`_ms`): the floor, the products at the rates that the card reached, the
    launches, and the bare engine of what is served. Of fidelity, the ratio of each way."""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.at_least if self.unit in MORE_IS_BETTER else self.value <= self.at_least


class Missing(Exception):
    """A row has no value; the message says why."""


@dataclass(frozen=True)
class Found:
    """The figures of a run. `one` and `every` raise Missing."""

    figures: Sequence[Figure]

    def every(self, figure: str, **values: Any) -> list[Figure]:
        """All figures of that name with these values, in the order in which they were measured."""
        wanted = {"figure": figure} | values
        found = [each for each in self.figures if wanted.items() <= each.items()]
        if not found:
            raise Missing(" ".join(["not measured:", figure, *(f"{name}={value}" for name, value in values.items())]))
        return found

    def one(self, figure: str, **values: Any) -> Figure:
        """The last of them."""
        return self.every(figure, **values)[-1]

    def ceilings(self) -> Ceilings:
        ceilings = Ceilings.of(list(self.figures))
        if ceilings is None:
            raise Missing("not measured: the ceilings")
        return ceilings


def rows(figures: Sequence[Figure], *, fake: bool) -> list[dict[str, Any]]:
    """Every row as JSON; `met` is None in all of them if the run was `fake`."""
    made = [_made(Found(figures), row, value) for row, value in _wanted()]
    return [_rounded(asdict(row)) | {"met": None if fake else row.met} for row in made]


Value = Callable[[Found, Row], Row]


def _wanted() -> list[tuple[Row, Value]]:
    """Each row without its value, and the function that gives it one."""
    wanted: list[tuple[Row, Value]] = []
    for number, size in (("g1", "0.6B"), ("g2", "4B")):
        kinds = [(variant, weights) for variant in ("stream", "gen") for weights in ("fp16", "bf16")]
        for letter, (variant, weights) in zip("abcd", kinds, strict=True):
            work = f"fidelity of {variant.capitalize()} {size} {weights}, the worst of five ways"
            row = Row(number + letter, work, f"PyTorch {weights}", "times its error", 2.0, 2.0)
            wanted.append((row, _fidelity(size, variant, weights)))
    wanted += [
        (Row("g3", "numbers that are not finite, in all of g1 and g2", "", "numbers", 0.0, 0.0), _not_finite),
        (Row("g4", "Stream 0.6B fp16, bare step of 1 token at 512", FLOOR, "ms", 1.2, 1.2), _step("0.6B")),
        (
            Row(
                "g5",
                "Stream 0.6B fp16, bare step of 1 token at 512",
                IN_A_GRAPH,
                "x",
                1.0,
                1.0,
            ),
            _peer,
        ),
        (Row("g6", "Stream 0.6B fp16, 64 sessions at 512, bare", FLOOR, "tokens/s", 20_000.0, 20_000.0), _crowd),
        (Row("g7", "classify 0.6B fp16, 330 tokens (201 held), bare", FLOOR, "ms", 4.0, 4.0), _bare_classification),
        (Row("g8", "classify 0.6B fp16, 330 tokens (201 held), gRPC", FLOOR, "ms", 7.0, 7.0), _served_classification),
        (Row("g9", "Stream 4B fp16, bare step of 1 token at 512", FLOOR, "ms", 4.0, 4.0), _step("4B")),
    ]
    return wanted


def _made(found: Found, row: Row, value: Value) -> Row:
    try:
        return value(found, row)
    except Missing as missing:
        return replace(row, missing=str(missing))


def _fidelity(size: str, variant: str, weights: str) -> Value:
    def value(found: Found, row: Row) -> Row:
        ways = found.every("fidelity", size=size, variant=variant, weights=weights)
        if any(way["rms"] is None for way in ways):
            raise Missing("numbers are not finite (row g3)")
        worst = max(ways, key=lambda way: way["rms"] / way["torch_rms"])
        parts = {way["way"]: way["rms"] / way["torch_rms"] for way in ways}
        value = worst["rms"] / worst["torch_rms"]
        return replace(row, value=value, ours=worst["rms"], theirs=worst["torch_rms"], parts=parts)

    return value


def _not_finite(found: Found, row: Row) -> Row:
    return replace(row, value=float(sum(figure["not_finite"] for figure in found.every("fidelity"))))


def _step(size: str) -> Value:
    def value(found: Found, row: Row) -> Row:
        ms = _step_figure(found, size, sessions=1)["ms"]
        parts = _parts_of_a_step(found.ceilings(), Work(size, "stream"))
        return replace(row, value=ms, ours=ms, theirs=parts["floor_ms"], parts=parts)

    return value


def _parts_of_a_step(ceilings: Ceilings, work: Work) -> dict[str, float]:
    parts = {"floor_ms": ceilings.floor_ms(work), "launches_ms": ceilings.launches_ms(work)}
    products = ceilings.products_ms(work) if work.rows == 1 else None
    return parts | ({} if products is None else {"products_ms": products})


def _step_figure(found: Found, size: str, *, sessions: int) -> Figure:
    return found.one("step", size=size, variant="stream", weights="fp16", sessions=sessions, context=512, k=1)


def _peer(found: Found, row: Row) -> Row:
    ours = _step_figure(found, "0.6B", sessions=1)["ms"]
    theirs = found.one("peer step", size="0.6B", how="CUDA graph", context=512)["ms"]
    parts = _parts_of_a_step(found.ceilings(), Work("0.6B", "stream"))
    return replace(row, value=theirs / ours, ours=ours, theirs=theirs, parts=parts)


def _crowd(found: Found, row: Row) -> Row:
    rate = _step_figure(found, "0.6B", sessions=64)["tokens_s"]
    parts = _parts_of_a_step(found.ceilings(), Work("0.6B", "stream", rows=64))
    return replace(row, value=rate, ours=rate, theirs=64e3 / parts["floor_ms"], parts=parts)


def _bare_classification(found: Found, row: Row) -> Row:
    bare = found.one("classification", weights="fp16", at_once=1)
    new = bare["tokens"] - bare["held"] + bare["answer_tokens"]
    ceilings, work = found.ceilings(), Work("0.6B", "gen", context=bare["held"], k=new)
    parts = {"floor_ms": ceilings.floor_ms(work), "launches_ms": ceilings.launches_ms(work, recorded=False)}
    return replace(row, value=bare["ms"], ours=bare["ms"], theirs=parts["floor_ms"], parts=parts)


def _served_classification(found: Found, row: Row) -> Row:
    ms, bare = found.one("classify over gRPC", weights="fp16")["ms"], _bare_classification(found, row)
    parts = (bare.parts or {}) | {"bare_ms": bare.value or 0.0}
    return replace(row, value=ms, ours=ms, theirs=bare.theirs, parts=parts)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    def each(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: each(inner) for name, inner in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {name: each(value) for name, value in row.items()}
