"""The manifest, a JSON file that describes an exported guard, and the names of the graph's tensors.

The export writes the manifest beside the graph, and again beside the tokenizer's files. The runtime, the server and the
doctor read it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from qwen3guard_contract.errors import CorruptFile, ExportOutdated
from qwen3guard_contract.forms import AttentionForm, Form, WeightFormat
from qwen3guard_contract.slots import PADDING_CELLS, Cache, caches

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
GRAPH_FORM = "form"
"""The key of the graph's metadata under which `str(Form)` stands."""
FORMAT = 3
"""The format that this version exports. A manifest without a format has format 1. In format 1 the products of int8
attention had 8 bits on both sides, which CPUs without VNNI compute wrongly, and the bounds of its proof let many broken
graphs through. Up to format 2, a Gen graph did not choose tokens (`GEN_CHOICES`)."""

GRAPH_INPUT_IDS = "input_ids"
"""int64 [rows, tokens]: each row is a chunk of one sequence, padded on the right with any valid id."""
GRAPH_POSITIONS = "positions"
"""int64 [rows]: the position of each row's first token in its sequence, which is also its cell in the KV slot."""
GRAPH_LOGIT_INDEX = "logit_index"
"""int64 [asked, 2]: the (row, column) of each token whose logits are wanted; other logits are not computed."""
GRAPH_ROW_STARTS = "row_starts"
GRAPH_PAGES = "pages"
GRAPH_BOUNDS = "bounds"
GRAPH_CANDIDATES = "candidates"
"""int32 [n], an input of a Gen graph: ids of tokens that an answer may go on with."""
MOST_CANDIDATES = 64
PAGED_INPUTS = (GRAPH_INPUT_IDS, GRAPH_POSITIONS, GRAPH_LOGIT_INDEX, GRAPH_ROW_STARTS, GRAPH_PAGES, GRAPH_BOUNDS)
"""The inputs of a paged graph besides its caches, all int32:

input_ids [tokens]      the tokens of all rows, row by row, without padding
positions [rows]        as above
logit_index [asked]     the indices in input_ids of the tokens whose logits are wanted
row_starts [rows + 1]   the index in input_ids of each row's first token, and at last the number of tokens
pages [rows, n]         the pages of each row's slot in the arrays of keys and values, in the order of its cells
bounds [2 or 3]         in the host's memory: the most tokens of a row, the most cells that a row may read, and if given
                        the least that the longest row reads. They must hold for every replay of a recorded pass.

A cache is [pages, PAGE_CELLS, kv_heads, head_dim]: of all slots of an arena, one after the other."""
DEMO_NOTICE = "demo weights, not a safety classifier"

GEN_OUTPUTS = ("logits",)
"""float32 [asked, vocab]. Nothing that serves asks for them; a paged graph has them within, and not as an output."""
GEN_CHOICES = ("choices", "candidate_logits")
"""What a Gen graph is asked for: float32 [asked, 3] has the likeliest token's id, its logit, and its log-probability,
which is NaN if a logit is not finite. float32 [asked, n] has the logits of the `candidates`."""
STREAM_OUTPUTS = ("risk_logits", "category_logits", "query_risk_logits", "query_category_logits")
"""float32 [asked, 3 | 8 | 3 | 9], in the index order of `labels`."""


@dataclass(frozen=True)
class Canary:
    """A short input and the values that the exported graph gave for it.

    Gen's `values` are the log-probabilities of the first tokens of its greedy answer. Stream's are the probabilities of
    the risk levels and of the categories of each token, (tokens, 3) and then (tokens, 8), flattened.

    `tolerance` limits the mean absolute difference. Another version of ONNX Runtime may sum floats in another order; a
    number of 8 bits is then sometimes rounded to its other neighbour, which changes the values of one token and hardly
    the mean. A wrong product changes all values.
    """

    input_ids: tuple[int, ...]
    values: tuple[float, ...]
    tolerance: float

    def mean_difference(self, values: Sequence[float]) -> float:
        """The mean absolute difference from `values`; infinite if their number is another."""
        if not values or len(values) != len(self.values):
            return math.inf
        return sum(abs(value - expected) for value, expected in zip(values, self.values, strict=True)) / len(values)

    def agrees(self, values: Sequence[float]) -> bool:
        return self.mean_difference(values) <= self.tolerance


@dataclass(frozen=True)
class Profile:
    """The size of the largest pass of one kind that an engine was built for. `asked` is the largest number of tokens
    whose logits a pass may compute."""

    rows: int
    tokens: int
    asked: int


@dataclass(frozen=True)
class Engine:
    """A TensorRT engine in `file` beside the graph.

    `package` is the Python module that built it, tensorrt or tensorrt_rtx; another `version` of it cannot load the
    engine. It runs on GPUs of the `compute_capabilities`, over KV slots of `capacity` cells. The first of `profiles` is
    for steps, the last for long rows.
    """

    file: str
    package: str
    version: str
    compute_capabilities: tuple[str, ...]
    capacity: int
    profiles: tuple[Profile, ...]

    @classmethod
    def of(cls, data: dict[str, Any]) -> Engine:
        """The engine that a manifest's JSON describes."""
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
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number from 1 on")
        if type(self.format) is not int:
            raise ValueError("format must be a whole number")
        Form(self.weights, self.attention)
        if self.engine and any(profile.rows > 1 and profile.tokens > PADDING_CELLS for profile in self.engine.profiles):
            raise ValueError(f"an engine whose steps have more than {PADDING_CELLS} tokens writes beyond its slots")

    @property
    def outputs(self) -> tuple[str, ...]:
        """What a pass is asked for."""
        return STREAM_OUTPUTS if self.variant == "stream" else GEN_CHOICES

    @property
    def texts(self) -> dict[str, str]:
        """The part of `sha256` that names the files of the tokenizer and of its template."""
        return {name: digest for name, digest in self.sha256.items() if name.endswith((".json", ".jinja"))}

    @property
    def export_id(self) -> str:
        """12 hexadecimal digits that tell this export from others: made of the digests of its files."""
        return hashlib.sha256(json.dumps(self.sha256, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def form(self) -> Form:
        return Form(self.weights, self.attention)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The arrays of a KV slot, in all layers."""
        return caches(
            self.form.kv_dtype,
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            paged=self.form.is_paged,
        )

    def describes(self, inputs: Collection[str], metadata: Mapping[str, str]) -> bool:
        """Whether a graph with these input names and this metadata is the one that the manifest describes. Graphs of
        former versions have no metadata."""
        own = PAGED_INPUTS if self.form.is_paged else (GRAPH_INPUT_IDS, GRAPH_POSITIONS, GRAPH_LOGIT_INDEX)
        more = (GRAPH_CANDIDATES,) if self.variant == "gen" else ()
        expected = {*own, *more, *(cache.past for cache in self.caches)}
        return set(inputs) == expected and metadata.get(GRAPH_FORM, str(self.form)) == str(self.form)

    @property
    def notice(self) -> str:
        """The notice that every answer of this guard must carry; empty for real weights."""
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
            manifest = cls(**values, format=data.get("format", 1))
            if data.get("kv_dtype", manifest.form.kv_dtype) != manifest.form.kv_dtype:
                raise ValueError(f"kv_dtype is not {manifest.form.kv_dtype}, that of {manifest.form}")
            return manifest
        except KeyError as missing:
            raise CorruptFile(f"{path} has no {missing}: export the checkpoint again.") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CorruptFile(f"{path} is no manifest ({reason}): export the checkpoint again.") from None

    @classmethod
    def to_serve(cls, folder: Path) -> Manifest:
        """Does what `read` does, and raises ExportOutdated for a format that this version does not serve.

        Of the former formats, those of Stream are served, but in format 1 only if they multiply no integers: its
        integer products saturate on some CPUs, and hide numbers that are not finite.
        """
        manifest = cls.read(folder)
        is_former = manifest.format < FORMAT and (
            manifest.variant == "gen" or (manifest.format == 1 and manifest.form.has_integers)
        )
        if manifest.format > FORMAT or is_former:
            raise ExportOutdated(
                f"The guard in {folder} was exported in format {manifest.format}; this version serves {FORMAT}:"
                " export the checkpoint again."
            )
        return manifest
