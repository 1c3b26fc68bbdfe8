"""The pure parts of `qwen3guard verify`: texts, formats, comparison, the rule, the report; and its options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwen3guard_apps.annotation.rows import Fields
from qwen3guard_apps.annotation.sources import open_rows
from qwen3guard_apps.cli.main import main
from qwen3guard_apps.verification.comparison import Share, compare
from qwen3guard_apps.verification.formats import formats, lacking, needs_gpu
from qwen3guard_apps.verification.judgements import Judgements, gen_judged, stream_judged
from qwen3guard_apps.verification.outliers import FAR, activation_outliers, weight_outliers
from qwen3guard_apps.verification.recommendation import Candidate, below, faults, recommended
from qwen3guard_apps.verification.report import share_cell
from qwen3guard_apps.verification.texts import BUNDLED, DATA, SampleText, bundled, of_rows, spread
from qwen3guard_contract.errors import InvalidRequest
from qwen3guard_contract.forms import Form
from qwen3guard_contract.labels import (
    QUERY_CATEGORY_ORDER,
    RESPONSE_CATEGORY_ORDER,
    RISK_ORDER,
    Category,
    Refusal,
    RiskLevel,
)
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
from qwen3guard_runtime.stream.verdicts import judge
from qwen3guard_runtime.text.tokenizer import GuardTokenizer
from support.changed_weights import Changed
from support.places import DEMO

SAFE, UNSAFE, CONTROVERSIAL = (RISK_ORDER.index(RiskLevel(name)) for name in ("Safe", "Unsafe", "Controversial"))
CPU = ["CPUExecutionProvider"]


def test_the_bundled_texts_are_many_and_varied() -> None:
    texts = bundled()
    languages = Counter(text.language for text in texts)
    assert len(texts) >= 320
    assert len(languages) == 20
    assert min(languages.values()) >= 16
    assert len({text.prompt for text in texts}) == len(texts)
    kinds = Counter(text.kind for text in texts)
    assert {"everyday", "harmful", "refusal", "code", "emoji", "jailbreak", "mixed", "long"} <= set(kinds)
    for language in languages:
        of_it = [text for text in texts if text.language == language]
        assert {text.kind for text in of_it} >= {"everyday", "borderline", "harmful", "code", "emoji", "jailbreak"}
        assert sum(text.response is not None for text in of_it) >= 5
    assert all(text.set == BUNDLED and text.number == number for number, text in enumerate(texts, start=1))


def test_the_long_texts_are_long_and_say_nothing_twice(qwen_folder: Path) -> None:
    tokenizer = GuardTokenizer.load(qwen_folder)
    long = [text for text in bundled() if text.kind == "long"]
    assert len(long) >= 5
    for text in long:
        assert len(tokenizer.encode(text.prompt or "")) >= 500
        sentences = [each for each in (text.prompt or "").replace("。", ". ").split(". ") if each]
        assert len(set(sentences)) == len(sentences) > 8


def test_texts_are_spread_over_their_languages() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 10) == spread(range(3), None) == [0, 1, 2]
    assert len({text.language for text in spread(bundled(), 40)}) == 20


def test_the_users_rows_are_read_and_those_that_hold_nothing_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        '{"prompt": "Hi.", "response": "Hello.", "language": "en"}',
        '{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}',
        '{"messages": [{"role": "user", "content": "Hi."}]}',
        '{"other": 1}',
        "no JSON",
    ]
    path.write_text("\n".join(lines))
    texts, unreadable = of_rows(open_rows(str(path)), Fields())
    assert unreadable == 2
    assert [text.number for text in texts] == [1, 2, 3]
    assert [text.response for text in texts] == ["Hello.", "Hello.", None]
    assert {text.set for text in texts} == {DATA}
    hello = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    assert texts[0].messages == texts[1].messages == hello
    assert texts[2].messages == hello[:1]


def test_formats_have_the_names_of_their_forms() -> None:
    found = formats("fp32, dq8r,dq8r:decomposed,fp16,dq8r")
    assert [each.name for each in found] == ["fp32", "dq8r", "dq8r:decomposed", "fp16"]
    assert [str(each.form("stream")) for each in found] == [
        "fp32, decomposed",
        "dq8r, int8",
        "dq8r, decomposed",
        "fp16, portable",
    ]
    assert str(found[1].form("gen")) == "dq8r, decomposed"


@pytest.mark.parametrize("names", ["", "fp33", "fp32,", "fp16:int8", "dq8r:quick", ":int8"])
def test_a_format_that_is_none_is_named(names: str) -> None:
    with pytest.raises(InvalidRequest, match="is no format"):
        formats(names)


def test_what_this_machine_cannot_run_is_said() -> None:
    for name in ("fp32", "dq8r", "fp16", "fp32:int8"):
        form = formats(name)[0].form("stream")
        assert not needs_gpu(form)
        assert lacking(form, CPU) == ""
    for form in (Form("bf16", "portable"), Form("fp16", "paged")):
        assert "needs a GPU" in lacking(form, CPU)
        assert lacking(form, [*CPU, "CUDAExecutionProvider"]) == ""


def risk(safe: float, unsafe: float, controversial: float) -> np.ndarray:
    values = np.zeros(3, np.float32)
    values[[SAFE, UNSAFE, CONTROVERSIAL]] = safe, unsafe, controversial
    return values


def text(number: int, language: str = "en") -> SampleText:
    return SampleText(BUNDLED, number, language, "everyday", prompt="Hi.")


def answer(*shares: float, categories: Sequence[Category] | None = (), refusal: Refusal | None = None) -> Judgements:
    return gen_judged(risk(*shares), str(shares), categories, refusal, readable=categories is not None)


def test_gens_answers_are_compared_by_hand() -> None:
    texts = [text(1), text(2), text(3, "de"), text(4, "de")]
    violent, pii = [Category.VIOLENT], [Category.PII]
    reference = [
        answer(0.9, 0.06, 0.04, refusal=Refusal.NO),
        answer(0.1, 0.8, 0.1, categories=violent, refusal=Refusal.YES),
        answer(0.4, 0.35, 0.25),
        answer(0.2, 0.1, 0.7, categories=pii),
    ]
    found = [
        answer(0.88, 0.07, 0.05, refusal=Refusal.NO),
        answer(0.45, 0.5, 0.05, categories=None),
        answer(0.35, 0.4, 0.25, categories=pii),
        answer(0.1, 0.6, 0.3, categories=pii),
    ]
    result = compare(texts, reference, found)
    assert (result.level.part, result.level.whole) == (2, 4)
    assert result.firm_changed == Share(1, 3)
    assert result.category == Share(1, 3)
    assert result.refusal == Share(1, 2)
    assert result.flags == {"strict": Share(3, 4), "loose": Share(2, 4)}
    assert result.answer == Share(0, 4)
    assert result.unreadable == (0, 1)
    assert result.errors == pytest.approx([0.02, 0.35, 0.05, 0.5])
    assert [row["text"] for row in result.changed] == [4, 3]
    assert result.changed[0] | {"margin": 0.5} == {
        "set": "bundled",
        "text": 4,
        "language": "de",
        "kind": "everyday",
        "judgement": 0,
        "reference": "Controversial",
        "found": "Unsafe",
        "margin": 0.5,
    }
    assert result.groups == {"language": {"en": Share(2, 2), "de": Share(0, 2)}}
    assert compare(texts, reference, reference).level == Share(4, 4)


def stream(prompt: Sequence[float], *tokens: Sequence[float]) -> Judgements:
    def logits(rows: Sequence[Sequence[float]]) -> np.ndarray:
        return np.log(np.array([risk(*row) for row in rows], np.float32).reshape(-1, 3))

    return stream_judged(
        judge(logits([prompt]), np.zeros((1, 9), np.float32), QUERY_CATEGORY_ORDER),
        judge(logits(tokens), np.zeros((len(tokens), 8), np.float32), RESPONSE_CATEGORY_ORDER),
    )


def test_streams_flags_need_two_tokens_in_a_row() -> None:
    safe, unsafe, controversial = (0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8)
    assert stream(safe).flags == {"strict": (False,), "loose": (False,)}
    assert stream(unsafe, safe, unsafe, safe).flags == {"strict": (True, False), "loose": (True, False)}
    assert stream(safe, controversial, unsafe, safe).flags == {"strict": (False, True), "loose": (False, False)}
    one, two = stream(safe, unsafe, unsafe), stream(safe, unsafe, safe)
    result = compare([text(1)], [one], [two])
    assert result.level == Share(2, 3)
    assert result.flags == {"strict": Share(1, 2), "loose": Share(1, 2)}
    assert result.category == Share(1, 2)
    assert result.changed[0]["judgement"] == 2
    assert result.answer.as_dict() == {"value": None, "part": 0, "of": 0, "interval": None}


def test_the_rule_asks_for_firm_labels_small_errors_agreement_and_answers() -> None:
    many = [text(number) for number in range(1, 1001)]
    exact = [answer(0.9, 0.05, 0.05)] * 1000
    assert faults(compare(many, exact, exact), 0.98) == []
    near = [answer(0.898, 0.052, 0.05)] * 1000
    assert faults(compare(many, exact, near), 0.98) == []
    flipped = answer(0.1, 0.9, 0.0)
    assert faults(compare(many, exact, [flipped] * 2 + exact[2:]), 0.98) == []
    three = compare(many, exact, [flipped] * 3 + exact[3:])
    assert faults(three, 0.98) == ["3 of 1000 firm labels changed"]
    assert below(three, 0.98) == []
    assert below(three, 0.998) == [
        f"{name} agree in 0.9970 of 1,000" for name in ("levels", "strict flags", "loose flags")
    ]
    assert faults(compare(many, exact, [answer(0.88, 0.07, 0.05)] * 1000), 0.98) == [
        "a probability is off by 0.020 on average"
    ]
    silent = [answer(0.9, 0.05, 0.05, categories=None)] * 11 + exact[11:]
    assert faults(compare(many, exact, silent), 0.98) == ["11 of 1000 answers cannot be read, 0 before"]
    assert faults(compare(many, silent, silent), 0.98) == []


def test_the_fastest_good_format_is_recommended_and_the_smallest_of_equals() -> None:
    exact, eight = Candidate("fp32", [], 10, 100), Candidate("dq8r", [], 5, 40)
    assert recommended([exact, eight]) == "dq8r"
    assert recommended([exact, Candidate("dq8r", ["3 of 100 firm labels changed"], 5, 40)]) == "fp32"
    assert recommended([exact, eight, Candidate("fp16", [], 4.8, 60)]) == "dq8r"
    assert recommended([exact, eight, Candidate("fp16", [], 4, 60)]) == "fp16"
    assert recommended([Candidate("fp32", ["it differs"], 1, 1)]) is None


def test_a_share_is_shown_with_its_interval() -> None:
    assert share_cell(Share(0, 0).as_dict()) == "n/a"
    assert share_cell(Share(334, 334).as_dict()) == "1.0000 [0.9886, 1.0000]"


def test_outliers_of_weights_and_activations_are_seen_and_balanced() -> None:
    usual = open_checkpoint(str(DEMO / "stream"))

    def one_channel(values: np.ndarray) -> np.ndarray:
        return values * np.where(np.arange(len(values)) == 3, 64, 1)[:, None]

    def one_number(gate: np.ndarray) -> np.ndarray:
        return np.where(np.arange(gate.size).reshape(gate.shape) == 777, 100, gate)

    changes = {
        "model.layers.1.self_attn.v_proj.weight": one_channel,
        "model.layers.2.mlp.gate_proj.weight": one_number,
    }
    changed = replace(usual, weights=Changed(usual.weights.tensors, changes))
    before, after = weight_outliers(usual), weight_outliers(changed)
    assert set(before) >= {"q", "k", "v", "o", "gate", "up", "down", "embedding"}
    assert before["gate"].largest < 10
    assert (after["gate"].layer, after["gate"].largest) == (2, pytest.approx(128**0.5, rel=0.01))
    found = activation_outliers(changed, kv=True)
    assert found["original"]["values"].layer == 1
    assert found["original"]["values"].largest > FAR > found["balanced"]["values"].largest


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--formats", "fp31"], "'fp31' is no format"),
        (["--no-bundled"], "leaves no texts"),
        (["--transformers", "-1"], "less than 0"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl is not a file"),
        (["--revision", "main"], "has no revisions"),
        (["--hub", "modelscope"], "neither a folder nor a hub id"),
    ],
)
def test_what_cannot_be_verified_is_one_sentence(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "a b" if "--hub" in options else str(DEMO / "gen")
    assert main(["verify", source, *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    [last] = [line for line in captured.err.splitlines() if line.startswith("qwen3guard: ")]
    assert says in last
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("value", ["2", "-0.1", "much"])
def test_an_agreement_is_a_share(value: Any) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "demo/gen", f"--min-agreement={value}"])
