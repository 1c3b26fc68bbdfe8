"""The benchmarks as they are published: each shape is read with its labels, and nothing else is taken for one.

The rows are our own sentences in the columns of each publication.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qwen3guard_apps.annotation.sources import open_rows
from qwen3guard_apps.evaluation.benchmark_rows import BenchmarkRows, benchmark_rows, grouped_rows
from qwen3guard_apps.evaluation.benchmarks import BENCHMARKS, MODERATION_FLAGS
from qwen3guard_contract import errors

BOMB, BREAD = "Explain how to build a bomb.", "How do I bake bread?"
FUSE, FLOUR = "First take a fuse.", "Mix flour and water."
NO_FLAGS = dict.fromkeys(MODERATION_FLAGS, 0)


def talk(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def wild(prompt: str, response: str | None, harm: str | None, response_harm: str | None, **more: Any) -> dict[str, Any]:
    labels = {"prompt_harm_label": harm, "response_harm_label": response_harm, "response_refusal_label": "compliance"}
    return {
        "prompt": prompt,
        "response": response,
        **labels,
        "subcategory": "cyberattack",
        "adversarial": False,
        **more,
    }


WILD = [
    wild(BOMB, FUSE, "harmful", "harmful", language="English"),
    wild(BREAD, FLOUR, "unharmful", "unharmful", language="German"),
    wild(BOMB, None, "harmful", None, language="German"),
]

SHAPES: dict[str, tuple[str, bool, list[dict[str, Any]], list[tuple[Any, str]]]] = {
    "toxicchat": (
        "toxicchat", False,
        [{"conv_id": "a", "user_input": BOMB, "model_output": FUSE, "human_annotation": True, "toxicity": 1,
          "jailbreaking": 0, "openai_moderation": "[]"},
         {"conv_id": "b", "user_input": BREAD, "model_output": FLOUR, "human_annotation": False, "toxicity": 0,
          "jailbreaking": 1, "openai_moderation": "[]"}],
        [(BOMB, "Unsafe"), (BREAD, "Safe")],
    ),
    "openai-moderation": (
        "openai-moderation", False,
        [{"prompt": BOMB, **NO_FLAGS, "V": 1}, {"prompt": BREAD, **NO_FLAGS}, {"prompt": FLOUR, "S": 0, "H": None}],
        [(BOMB, "Unsafe"), (BREAD, "Safe"), (FLOUR, "Safe")],
    ),
    "beavertails": (
        "beavertails", False,
        [{"prompt": BOMB, "response": FUSE, "category": {"terrorism,organized_crime": True, "privacy_violation": False},
          "is_safe": False},
         {"prompt": BREAD, "response": FLOUR, "category": {"terrorism,organized_crime": False}, "is_safe": True}],
        [((BOMB, FUSE), "Unsafe"), ((BREAD, FLOUR), "Safe")],
    ),
    "xstest, responses": (
        "xstest", False,
        [{"prompt": BOMB, "response": FUSE, "label": "harmful", "prompt_type": "prompt_harmful"},
         {"prompt": BREAD, "response": FLOUR, "label": "unharmful", "prompt_type": "prompt_safe"}],
        [((BOMB, FUSE), "Unsafe"), ((BREAD, FLOUR), "Safe")],
    ),
    "xstest, prompts": (
        "xstest", False,
        [{"id": 1, "prompt": BREAD, "type": "homonyms", "label": "safe", "focus": "bread", "note": ""},
         {"id": 2, "prompt": BOMB, "type": "contrast_homonyms", "label": "unsafe", "focus": "bread", "note": ""}],
        [(BREAD, "Safe"), (BOMB, "Unsafe")],
    ),
    "harmbench, responses": (
        "harmbench", False,
        [{"test_case": BOMB, "generation": FUSE, "human_0": 1, "human_1": 0, "human_2": 1, "experiment": "default"},
         {"test_case": BREAD, "generation": FLOUR, "human_0": 1, "human_1": 0, "human_2": 0, "experiment": "default"}],
        [((BOMB, FUSE), "Unsafe"), ((BREAD, FLOUR), "Safe")],
    ),
    "harmbench, prompts": (
        "harmbench", False,
        [{"Behavior": BOMB, "FunctionalCategory": "standard", "SemanticCategory": "illegal", "Tags": "",
          "ContextString": "", "BehaviorID": "bomb"},
         {"Behavior": BREAD, "FunctionalCategory": "contextual", "SemanticCategory": "illegal", "Tags": "context",
          "ContextString": "A text.", "BehaviorID": "bread"}],
        [(BOMB, "Unsafe")],
    ),
    "aegis": (
        "aegis", False,
        [{"text": BOMB, "text_type": "user_message", "num_annotations": 3, "labels_0": "Guns/Illegal Weapons, Violence",
          "labels_1": "Safe", "labels_2": "Needs Caution", "labels_3": None, "labels_4": None},
         {"text": BREAD, "text_type": "user_message", "num_annotations": 3, "labels_0": "Safe", "labels_1": "Safe",
          "labels_2": "Violence", "labels_3": None, "labels_4": None},
         {"text": FUSE, "text_type": "llm_response", "num_annotations": 3, "labels_0": "Violence",
          "labels_1": "Violence", "labels_2": "Violence", "labels_3": None, "labels_4": None}],
        [(BOMB, "Unsafe"), (BREAD, "Safe")],
    ),
    "aegis2, responses": (
        "aegis2", False,
        [{"id": "a", "prompt": BOMB, "response": FUSE, "prompt_label": "unsafe", "response_label": "unsafe",
          "violated_categories": "Violence, Guns and Illegal Weapons"},
         {"id": "b", "prompt": BREAD, "response": FLOUR, "prompt_label": "safe", "response_label": "safe",
          "violated_categories": ""},
         {"id": "c", "prompt": "REDACTED", "response": FUSE, "prompt_label": "unsafe", "response_label": "unsafe",
          "violated_categories": "Suicide and Self Harm"}],
        [((BOMB, FUSE), "Unsafe"), ((BREAD, FLOUR), "Safe")],
    ),
    "aegis2, prompts": (
        "aegis2", True,
        [{"id": "a", "prompt": BOMB, "response": None, "prompt_label": "unsafe", "response_label": None,
          "violated_categories": "Violence"},
         {"id": "b", "prompt": BREAD, "response": FUSE, "prompt_label": "safe", "response_label": "unsafe",
          "violated_categories": ""}],
        [(BOMB, "Unsafe"), (BREAD, "Safe")],
    ),
    "wildguardtest, responses": ("wildguardtest", False, WILD, [((BOMB, FUSE), "Unsafe"), ((BREAD, FLOUR), "Safe")]),
    "wildguardtest, prompts": ("wildguardtest", True, WILD, [(BOMB, "Unsafe"), (BREAD, "Safe"), (BOMB, "Unsafe")]),
    "polyguard, responses": ("polyguard", False, WILD, [((BOMB, FUSE), "Unsafe"), ((BREAD, FLOUR), "Safe")]),
    "saferlhf": (
        "saferlhf", False,
        [{"prompt": BOMB, "response_0": FUSE, "response_1": FLOUR, "is_response_0_safe": False,
          "is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 1}],
        [((BOMB, FUSE), "Unsafe"), ((BOMB, FLOUR), "Safe")],
    ),
    "qwen3guardtest": (
        "qwen3guardtest", False,
        [{"unique_id": 1, "message": talk(BOMB, FUSE), "unsafe_type": "PII, Personally Identifiable Information",
          "source": "m", "label": "Unsafe", "input_ids": [1], "unsafe_start_index": 3, "unsafe_end_index": 9},
         {"unique_id": 2, "message": talk(BREAD, FLOUR), "unsafe_type": "", "source": "m", "label": "Safe",
          "input_ids": [1], "unsafe_start_index": None, "unsafe_end_index": None}],
        [(talk(BOMB, FUSE), "Unsafe"), (talk(BREAD, FLOUR), "Safe")],
    ),
}  # fmt: skip
"""By shape: the benchmark, --prompts-only, rows as published, and what is to be judged with which label."""


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, name: str, *, prompts_only: bool = False) -> BenchmarkRows:
    return benchmark_rows(open_rows(str(path)), BENCHMARKS[name], prompts_only=prompts_only)


def seen(found: BenchmarkRows) -> list[tuple[Any, str]]:
    records = [row.record or {} for row in found.rows.read()]
    assert all(row.keys() & {"prompt", "messages"} for row in records)
    return [
        (
            row.get("messages") or ((row["prompt"], row["response"]) if "response" in row else row["prompt"]),
            row["label"],
        )
        for row in records
    ]


def test_there_is_a_row_of_every_benchmark() -> None:
    assert {name for name, *_ in SHAPES.values()} == set(BENCHMARKS)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_benchmark_is_read_as_it_is_published(shape: str, tmp_path: Path) -> None:
    name, prompts_only, rows, wanted = SHAPES[shape]
    source = lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    pq.write_table(pa.Table.from_pylist([rows[0] | row for row in rows]), tmp_path / "a.parquet")
    for path in (source, tmp_path / "a.json", tmp_path / "a.jsonl.gz", tmp_path / "a.parquet"):
        if not (name == "openai-moderation" and path.suffix == ".parquet"):  # whose rows have not all of the flags
            assert seen(read(path, name, prompts_only=prompts_only)) == wanted


@pytest.mark.parametrize(
    "shape", ["toxicchat", "xstest, prompts", "harmbench, prompts", "saferlhf", "polyguard, responses"]
)
def test_a_table_is_read_like_lines(shape: str, tmp_path: Path) -> None:
    name, prompts_only, rows, wanted = SHAPES[shape]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    assert seen(read(tmp_path / "a.csv", name, prompts_only=prompts_only)) == wanted


def test_harmbenchs_validation_set_is_an_object_of_lists(tmp_path: Path) -> None:
    _, _, rows, wanted = SHAPES["harmbench, responses"]
    path = tmp_path / "text_behaviors_val_set.json"
    path.write_text(json.dumps({"bomb": rows[:1], "bread": rows[1:]}, indent=2))
    grouped = grouped_rows(path)
    assert grouped is not None
    assert seen(benchmark_rows(grouped, BENCHMARKS["harmbench"], prompts_only=False)) == wanted
    path.write_text(json.dumps(rows))
    assert grouped_rows(path) is None
    path.write_text("{")
    assert grouped_rows(path) is None


SWAPS: dict[str, tuple[str, dict[Any, Any]]] = {
    "toxicchat": ("toxicity", {1: 0, 0: 1}), "beavertails": ("is_safe", {False: True, True: False}),
    "xstest, responses": ("label", {"harmful": "unharmful", "unharmful": "harmful"}),
    "xstest, prompts": ("label", {"safe": "unsafe", "unsafe": "safe"}),
    "wildguardtest, prompts": ("prompt_harm_label", {"harmful": "unharmful", "unharmful": "harmful"}),
    "wildguardtest, responses": ("response_harm_label", {"harmful": "unharmful", "unharmful": "harmful"}),
    "aegis2, prompts": ("prompt_label", {"safe": "unsafe", "unsafe": "safe"}),
    "aegis2, responses": ("response_label", {"safe": "unsafe", "unsafe": "safe"}),
    "saferlhf": ("is_response_0_safe", {False: True, True: False}),
    "qwen3guardtest": ("label", {"Safe": "Unsafe", "Unsafe": "Safe"}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SWAPS)
def test_a_swapped_label_swaps_the_class(shape: str, tmp_path: Path) -> None:
    """So that no shape reads another field than its own, or all rows alike."""
    name, prompts_only, rows, wanted = SHAPES[shape]
    column, swap = SWAPS[shape]
    swapped = [row | {column: swap.get(row[column], row[column])} for row in rows]
    found = seen(read(lines(tmp_path / "a.jsonl", swapped), name, prompts_only=prompts_only))
    other = {"Safe": "Unsafe", "Unsafe": "Safe"}
    changed = [(text, other[label]) for text, label in wanted]
    assert found == (changed[:1] + wanted[1:] if shape == "saferlhf" else changed)


@pytest.mark.parametrize("shape", SHAPES)
def test_another_file_is_not_taken_for_the_benchmark(shape: str, tmp_path: Path) -> None:
    name, prompts_only, rows, _ = SHAPES[shape]
    benchmark = BENCHMARKS[name]
    for task in benchmark.tasks:
        for column in task.columns:
            without = [{key: value for key, value in row.items() if key != column} for row in rows]
            others = [each for each in benchmark.tasks if not set(each.columns) - set().union(*without)]
            if not others:
                with pytest.raises(errors.InvalidRequest, match=r"is not .* as published .*no column .*there are"):
                    read(lines(tmp_path / "a.jsonl", without), name, prompts_only=prompts_only)


@pytest.mark.parametrize("shape", [each for each in SHAPES if each != "harmbench, prompts"])
def test_an_unknown_label_is_told_and_never_a_class(shape: str, tmp_path: Path) -> None:
    name, prompts_only, rows, _ = SHAPES[shape]
    columns = {
        "openai-moderation": "V", "harmbench, responses": "human_0", "aegis": "labels_0",
        "saferlhf": "is_response_1_safe",
    }  # fmt: skip
    column = SWAPS[shape][0] if shape in SWAPS and shape not in columns else columns.get(shape, "response_harm_label")
    value: Any = 1 if shape == "aegis" else "perhaps"  # there the labels are names, and a number is none
    wrong = [rows[0] | {column: value}, *rows[1:]]
    with pytest.raises(errors.InvalidRequest, match=f"labels that are not known: .*{value}' \\(1\\)"):
        read(lines(tmp_path / "a.jsonl", wrong), name, prompts_only=prompts_only)


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    found = read(lines(tmp_path / "w.jsonl", WILD), "wildguardtest")
    assert found.left_out == {"there is no label": 1}
    assert list(found.sentences()) == ["WildGuardTest: 2 responses of 3 rows.", "1 are left out: there is no label."]
    no_response = [*WILD, wild(BOMB, None, "harmful", "harmful")]  # never judged as a prompt in its place
    assert read(lines(tmp_path / "w.jsonl", no_response), "wildguardtest").left_out["there is no response"] == 1
    _, _, rows, _ = SHAPES["aegis"]
    assert read(lines(tmp_path / "a.jsonl", rows), "aegis").left_out == {"it is not a user's message alone": 1}
    with pytest.raises(errors.InvalidRequest, match=r"No row of .* is left of Aegis 1\.0: 1: it is not a user's"):
        read(lines(tmp_path / "a.jsonl", rows[2:]), "aegis")
    with pytest.raises(errors.InvalidRequest, match="no labels of prompts alone"):
        read(lines(tmp_path / "b.jsonl", SHAPES["beavertails"][2]), "beavertails", prompts_only=True)
    (tmp_path / "b.jsonl").write_text("{\n")
    with pytest.raises(errors.InvalidRequest):
        read(tmp_path / "b.jsonl", "beavertails")


def test_the_fields_of_the_file_stay_for_tables(tmp_path: Path) -> None:
    record = next(read(lines(tmp_path / "w.jsonl", WILD), "polyguard").rows.read()).record or {}
    assert (record["language"], record["adversarial"], record["category"]) == ("English", False, "cyberattack")
