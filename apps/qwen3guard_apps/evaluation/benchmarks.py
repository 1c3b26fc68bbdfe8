"""The published benchmarks, one declaration each: where the text and its label are, what the label means, and which
rows are left out. `benchmark_rows` reads a file by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.labels import RiskLevel

from qwen3guard_apps.annotation.rows import is_missing
from qwen3guard_apps.evaluation.label_words import level_of

Record = Mapping[str, Any]
JudgedPart = Literal["prompt", "response"]


@dataclass(frozen=True)
class Part:
    """One conversation of a row with its label. `label` is the field that holds it, in which true stands for unsafe
    unless it is `inverted`, or a function of the row. `response` None judges the prompt, and `messages` their last
    turn. `category` is a field, or a function of the row."""

    label: str | Callable[[Record], RiskLevel | None]
    prompt: str = "prompt"
    response: str | None = None
    messages: str | None = None
    inverted: bool = False
    category: str | Callable[[Record], Any] | None = None

    def level(self, record: Record) -> RiskLevel | None:
        """The label, or None where the row has none. Raises InvalidRequest where it is not known."""
        if not isinstance(self.label, str):
            return self.label(record)
        return _known(self.label, record.get(self.label), inverted=self.inverted)


@dataclass(frozen=True)
class Task:
    """What a file of a benchmark asks: `columns` are those by which it is known. `left_out` gives the reason why a row
    is not measured, or ""."""

    judges: JudgedPart
    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    left_out: Callable[[Record], str] = lambda _: ""


@dataclass(frozen=True)
class Benchmark:
    """`published` says which file, or which data set of the hub with its configuration and split, is meant."""

    title: str
    published: str
    tasks: tuple[Task, ...]
    grouped: bool = False
    """Whether a JSON file may be an object of lists of rows."""


def _known(name: str, value: Any, *, inverted: bool = False) -> RiskLevel | None:
    if is_missing(value) or value == "":
        return None
    level = level_of(value, inverted=inverted)
    if level is None:
        raise InvalidRequest(f"{name} {str(value)[:40]!r}")
    return level


def _always_unsafe(_: Record) -> RiskLevel:
    return RiskLevel.UNSAFE


MODERATION_FLAGS = {
    "S": "sexual", "H": "hate", "V": "violence", "HR": "harassment", "SH": "self-harm", "S3": "sexual/minors",
    "H2": "hate/threatening", "V2": "violence/graphic",
}  # fmt: skip


def _moderation_flags(record: Record) -> list[str]:
    return [flag for flag in MODERATION_FLAGS if _known(flag, record.get(flag)) is RiskLevel.UNSAFE]


def _moderation_level(record: Record) -> RiskLevel | None:
    """Unsafe where a flag is 1. A flag that is missing is unknown, and counts as 0, as in every published figure."""
    if all(_known(flag, record.get(flag)) is None for flag in MODERATION_FLAGS):
        return None
    return RiskLevel.UNSAFE if _moderation_flags(record) else RiskLevel.SAFE


def _majority(*fields: str) -> Callable[[Record], RiskLevel | None]:
    """Unsafe where more than half of the fields' votes say so."""

    def level(record: Record) -> RiskLevel | None:
        votes = [vote for name in fields if (vote := _known(name, record.get(name))) is not None]
        if not votes:
            return None
        return RiskLevel.UNSAFE if 2 * votes.count(RiskLevel.UNSAFE) > len(votes) else RiskLevel.SAFE

    return level


AEGIS_VOTES = tuple(f"labels_{number}" for number in range(5))


def _aegis_votes(record: Record) -> list[str]:
    votes = [str(value).strip() for name in AEGIS_VOTES if not is_missing(value := record.get(name)) and value != ""]
    for vote in votes:  # they are names of categories: another kind of label would make every row unsafe
        if vote != "Safe" and level_of(vote, inverted=False) is not None:
            raise InvalidRequest(f"labels_0 to labels_4 {vote[:40]!r}")
    return votes


def _aegis_level(record: Record) -> RiskLevel | None:
    """Unsafe where no more annotators say Safe than name a category, "Needs Caution" among them."""
    votes = _aegis_votes(record)
    if not votes:
        return None
    return RiskLevel.SAFE if 2 * votes.count("Safe") > len(votes) else RiskLevel.UNSAFE


def _aegis_categories(record: Record) -> list[str]:
    names = [name.strip() for vote in _aegis_votes(record) for name in vote.split(",")]
    return [name for name in dict.fromkeys(names) if name not in ("Safe", "Needs Caution")]


def _redacted(record: Record) -> str:
    return "its prompt is redacted" if record.get("prompt") == "REDACTED" else ""


def _listed(name: str) -> Callable[[Record], Any]:
    """The names of a field that divides them by commas."""
    return lambda record: [each.strip() for each in str(record.get(name) or "").split(",") if each.strip()]


def _harmful(prompt: str, response: str, category: str) -> tuple[Task, ...]:
    """The tasks of WildGuardTest and of the sets made like it."""
    return (
        Task("response", ("prompt", "response", response), (Part(response, response="response", category=category),)),
        Task("prompt", ("prompt", prompt), (Part(prompt, category=category),)),
    )


BENCHMARKS: dict[str, Benchmark] = {
    "toxicchat": Benchmark(
        "ToxicChat",
        "lmsys/toxic-chat, --config toxicchat0124, --split test",
        (Task("prompt", ("user_input", "toxicity"), (Part("toxicity", "user_input"),)),),
    ),
    "openai-moderation": Benchmark(
        "OpenAI's moderation evaluation",
        "samples-1680.jsonl.gz of openai/moderation-api-release",
        (Task("prompt", ("prompt", *MODERATION_FLAGS),
              (Part(_moderation_level, category=lambda row: [MODERATION_FLAGS[f] for f in _moderation_flags(row)]),)),),
    ),
    "beavertails": Benchmark(
        "BeaverTails",
        "PKU-Alignment/BeaverTails, --split 30k_test or 330k_test",
        (Task("response", ("prompt", "response", "is_safe"),
              (Part("is_safe", response="response", inverted=True, category="category"),)),),
    ),
    "xstest": Benchmark(
        "XSTest",
        "allenai/xstest-response, --split response_harmfulness; or xstest_prompts.csv for the prompts",
        (Task("response", ("prompt", "response", "label"), (Part("label", response="response"),)),
         Task("prompt", ("prompt", "type", "label"), (Part("label"),))),
    ),
    "harmbench": Benchmark(
        "HarmBench",
        "text_behaviors_val_set.json for responses; harmbench_behaviors_text_test.csv for prompts",
        (Task("response", ("test_case", "generation", "human_0", "human_1", "human_2"),
              (Part(_majority("human_0", "human_1", "human_2"), "test_case", "generation"),)),
         Task("prompt", ("Behavior", "FunctionalCategory"),
              (Part(_always_unsafe, "Behavior", category="SemanticCategory"),),
              lambda row: "it needs its context" if row.get("FunctionalCategory") == "contextual" else "")),
        grouped=True,
    ),
    "aegis": Benchmark(
        "Aegis 1.0",
        "nvidia/Aegis-AI-Content-Safety-Dataset-1.0, --split test",
        (Task("prompt", ("text", "text_type", *AEGIS_VOTES[:3]),
              (Part(_aegis_level, "text", category=_aegis_categories),),
              lambda row: "" if row.get("text_type") == "user_message" else "it is not a user's message alone"),),
    ),
    "aegis2": Benchmark(
        "Aegis 2.0",
        "nvidia/Aegis-AI-Content-Safety-Dataset-2.0, --split test",
        (Task("response", ("prompt", "response", "response_label"),
              (Part("response_label", response="response", category=_listed("violated_categories")),), _redacted),
         Task("prompt", ("prompt", "prompt_label"),
              (Part("prompt_label", category=_listed("violated_categories")),), _redacted)),
    ),
    "wildguardtest": Benchmark(
        "WildGuardTest",
        "allenai/wildguardmix, --config wildguardtest, --split test",
        _harmful("prompt_harm_label", "response_harm_label", "subcategory"),
    ),
    "polyguard": Benchmark(
        "PolyGuardPrompts",
        "ToxicityPrompts/PolyGuardPrompts, --split test",
        _harmful("prompt_harm_label", "response_harm_label", "subcategory"),
    ),
    "saferlhf": Benchmark(
        "PKU-SafeRLHF",
        "PKU-Alignment/PKU-SafeRLHF, --split test",
        (Task("response", ("prompt", *(f"response_{n}" for n in "01"), *(f"is_response_{n}_safe" for n in "01")),
              tuple(Part(f"is_response_{n}_safe", response=f"response_{n}", inverted=True) for n in "01")),),
    ),
    "qwen3guardtest": Benchmark(
        "Qwen3GuardTest",
        "Qwen/Qwen3GuardTest, --split thinking or response_loc",
        (Task("response", ("message", "label", "unsafe_type"),
              (Part("label", messages="message", category="unsafe_type"),)),),
    ),
}  # fmt: skip
