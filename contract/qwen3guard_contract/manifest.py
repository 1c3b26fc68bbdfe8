"""What an exported guard is: the manifest beside the graph, and the names of the graph's tensors.

Written by the export, read by the runtime; neither imports the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from qwen3guard_contract.errors import CorruptFile, ExportOutdated
from qwen3guard_contract.forms import AttentionForm, Form, WeightFormat
from qwen3guard_contract.slots import Cache, caches

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
FORMAT = 2
"""What this version exports. Format 1, which named none, multiplied int8 attention with eight bits on both sides,
which CPUs without VNNI compute wrongly, and was proved by bounds that many a broken graph met."""

GRAPH_INPUT_IDS = "input_ids"
"""int64 [rows, tokens]: each row a chunk of one sequence, padded on the right with any valid id."""
GRAPH_POSITIONS = "positions"
"""int64 [rows]: where in its sequence (and KV slot) a row's first token stands."""
GRAPH_LOGIT_INDEX = "logit_index"
"""int64 [asked, 2]: (row, column) of the tokens whose logits are wanted; the others are not computed."""
DEMO_NOTICE = "demo weights, not a safety classifier"

GEN_OUTPUTS = ("logits",)
"""float32 [asked, vocab]."""
STREAM_OUTPUTS = ("risk_logits", "category_logits", "query_risk_logits", "query_category_logits")
"""float32 [asked, 3 | 8 | 3 | 9], in the index order of `labels`."""


@dataclass(frozen=True)
class Canary:
    """A short input and what the exported graph answered to it: Gen, the log-probabilities of the first tokens of its
    greedy answer; Stream, the probabilities of risk and category of each token, as (tokens, 3) and then (tokens, 8).

    `tolerance` is on the mean absolute difference. Where another ONNX Runtime sums floats in another order, a number of
    eight bits now and then falls on the other side of a half, which moves a token's values and hardly the average; a
    wrong product moves all of them.
    """

    input_ids: tuple[int, ...]
    values: tuple[float, ...]
    tolerance: float

    def off(self, values: Sequence[float]) -> float:
        """The mean absolute difference; infinite where there are more or fewer values."""
        if not values or len(values) != len(self.values):
            return math.inf
        return sum(abs(found - expected) for found, expected in zip(values, self.values, strict=True)) / len(values)

    def agrees(self, values: Sequence[float]) -> bool:
        return self.off(values) <= self.tolerance


@dataclass(frozen=True)
class Profile:
    """The largest passes of one kind that an engine was built for; `asked` is the most tokens with logits."""

    rows: int
    tokens: int
    asked: int


@dataclass(frozen=True)
class Engine:
    """A TensorRT engine in `file` beside the graph: what built it, what it runs on, and the cells of its slots.

    `package` is the Python module, tensorrt or tensorrt_rtx; another `version` of it cannot load the engine.
    `profiles` are that of steps, and that of long rows.
    """

    file: str
    package: str
    version: str
    compute_capabilities: tuple[str, ...]
    capacity: int
    profiles: tuple[Profile, ...]

    @classmethod
    def of(cls, data: dict[str, Any]) -> Engine:
        """From what a manifest's JSON holds."""
        profiles = tuple(Profile(**profile) for profile in data["profiles"])
        capabilities = tuple(data["compute_capabilities"])
        return cls(**data | {"profiles": profiles, "compute_capabilities": capabilities})


@dataclass(frozen=True)
class Manifest:
    """Facts about one exported guard. `sha256` maps each file beside the manifest to its digest."""

    variant: Literal["gen", "stream"]
    source: str
    weights: WeightFormat
    attention: AttentionForm
    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    context: int
    demo: bool
    parameters: int
    parity: dict[str, float]
    sha256: dict[str, str]
    versions: dict[str, str]
    canary: Canary
    engine: Engine | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.variant not in ("gen", "stream"):
            raise ValueError(f"the variant {self.variant!r} is neither gen nor stream")
        for name in ("layers", "kv_heads", "head_dim", "hidden_size", "vocab_size", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if type(self.format) is not int:
            raise ValueError("format must be a whole number")
        Form(self.weights, self.attention)

    @property
    def outputs(self) -> tuple[str, ...]:
        return GEN_OUTPUTS if self.variant == "gen" else STREAM_OUTPUTS

    @property
    def texts(self) -> dict[str, str]:
        """Of `sha256`, what a tokenizer and its template are read from."""
        return {name: digest for name, digest in self.sha256.items() if name.endswith((".json", ".jinja"))}

    @property
    def form(self) -> Form:
        return Form(self.weights, self.attention)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The arrays of a KV slot, of all layers."""
        return caches(self.form.kv_dtype, layers=self.layers, kv_heads=self.kv_heads, head_dim=self.head_dim)

    @property
    def notice(self) -> str:
        """What every answer must say of this guard; empty for real weights."""
        return DEMO_NOTICE if self.demo else ""

    def write(self, folder: Path) -> None:
        facts = asdict(self) | {"kv_dtype": self.form.kv_dtype}
        (folder / MANIFEST).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises FileNotFoundError, or CorruptFile if the file is no manifest."""
        path = folder / MANIFEST
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            values = {field.name: data[field.name] for field in fields(cls) if field.name not in ("engine", "format")}
            canary = values["canary"]
            values["canary"] = Canary(tuple(canary["input_ids"]), tuple(canary["values"]), canary["tolerance"])
            values["engine"] = Engine.of(data["engine"]) if data.get("engine") else None
            return cls(**values, format=data.get("format", 1))
        except KeyError as missing:
            raise CorruptFile(f"{path} has no {missing}: export the checkpoint again.") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CorruptFile(f"{path} is no manifest ({reason}): export the checkpoint again.") from None

    @classmethod
    def to_serve(cls, folder: Path) -> Manifest:
        """As `read`; raises ExportOutdated for a format that this version does not serve.

        Of format 1 what has no integers is served: theirs saturate on some CPUs, and hide what is not finite.
        """
        found = cls.read(folder)
        if found.format > FORMAT or (found.format < FORMAT and found.form.has_integers):
            raise ExportOutdated(
                f"The guard in {folder} was exported in format {found.format}; this version serves {FORMAT}:"
                " export the checkpoint again."
            )
        return found
