"""Evaluates the finished weights, which it reads from the saved files, beside a baseline that counts words."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoint
from data import CATEGORIES, LEVELS, Conversation, Record
from gen import answers, verdicts
from model import GenModel, StreamModel
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from stream import first_flag, query_risk, response_risk
from torch import Tensor

EVERYDAY = Path(__file__).with_name("everyday.jsonl")
SAFE = LEVELS.index("Safe")
_VERDICT = rf"Safety: (?:Safe\nCategories: None|(?:Unsafe|Controversial)\nCategories: (?:{'|'.join(CATEGORIES)}))"
WELL_FORMED = {"user": re.compile(_VERDICT), "assistant": re.compile(rf"{_VERDICT}\nRefusal: (?:Yes|No)")}


def conversation(record: Record) -> Conversation:
    turns = [{"role": "user", "content": record.prompt}]
    return turns + ([{"role": "assistant", "content": record.response}] if record.response else [])


def evaluate(
    folder: Path, dev: Sequence[Record], held_out: Sequence[Record], train: Sequence[Record]
) -> dict[str, Any]:
    gen, tokenizer = checkpoint.load(GenModel, folder / "gen")
    stream, _ = checkpoint.load(StreamModel, folder / "stream")
    prompts, pairs = [conversation(record) for record in dev], [conversation(record) for record in held_out]
    harmful, harmful_pair = _harmful(dev), _harmful(held_out)
    flagged = [first_flag(levels) is not None for levels, _ in response_risk(stream, tokenizer, pairs)]
    written = answers(gen, tokenizer, prompts + pairs)
    forms = zip(written, prompts + pairs, strict=True)
    well_formed = sum(bool(WELL_FORMED[turns[-1]["role"]].fullmatch(answer)) for answer, turns in forms)
    return {
        "dev_prompts": {
            "rows": len(dev),
            "harmful": sum(harmful),
            "gen": _figures(harmful, verdicts(gen, tokenizer, prompts)),
            "stream_query_head": _figures(harmful, query_risk(stream, tokenizer, prompts)[0]),
            "tfidf_logistic_regression": _baseline(train, dev),
        },
        "held_out_responses": {
            "rows": len(held_out),
            "harmful": sum(harmful_pair),
            "gen": _figures(harmful_pair, verdicts(gen, tokenizer, pairs)),
            "stream_flagged": _rates(harmful_pair, flagged),
            "stream_false_alarms_by_set": _false_alarms(held_out, flagged),
        },
        "greedy_answers": {"rows": len(written), "well_formed": well_formed},
        "everyday": everyday(gen, stream, tokenizer),
        "parameters": {"gen": checkpoint.parameters(gen), "stream": checkpoint.parameters(stream)},
    }


def everyday(gen: GenModel, stream: StreamModel, tokenizer: Any) -> dict[str, Any]:
    rows = [json.loads(line) for line in EVERYDAY.read_text().splitlines()]
    records = [Record(row["prompt"], row.get("response")) for row in rows]
    turns = [conversation(record) for record in records]
    outcomes = []
    for row, talk, answer in zip(rows, turns, answers(gen, tokenizer, turns), strict=True):
        if "response" in row:
            levels, kinds = response_risk(stream, tokenizer, [talk])[0]
            at = first_flag(levels)
            safe, kind = at is None, CATEGORIES[int(kinds[at or 0])]
            seen = f"flag at token {at} of {len(levels)}"
        else:
            risk, kinds_of = query_risk(stream, tokenizer, [talk])
            safe, kind, seen = int(risk[0].argmax()) == SAFE, kinds_of[0], ""
        form = WELL_FORMED[talk[-1]["role"]]
        wanted = f"Refusal: {row['refusal']}" if "refusal" in row else ""
        gen_right = bool(form.fullmatch(answer)) and answer.startswith("Safety: Safe") == row["safe"]
        outcomes.append(
            {
                "text": row.get("response", row["prompt"]),
                "safe": row["safe"],
                "gen": answer.replace("\n", ", "),
                "gen_right": gen_right,
                "refusal_right": wanted in answer,
                "gen_category_right": f"Categories: {row.get('category', '')}" in answer,
                "stream": "Safe" if safe else f"not Safe, {kind} {seen}".strip(),
                "stream_right": safe == row["safe"],
                "stream_category_right": safe or row.get("category", kind) == kind,
            }
        )
    totals = {name: sum(row[name] for row in outcomes) for name in outcomes[0] if name.endswith("right")}
    return {"rows": len(rows), **totals, "outcomes": outcomes}


def _harmful(records: Sequence[Record]) -> list[bool]:
    return [record.level != "Safe" for record in records]


def _figures(harmful: list[bool], risk: Tensor) -> dict[str, float]:
    """The AUC of P(Unsafe) + P(Controversial), and the rates of the likeliest level."""
    score = (1 - risk[:, SAFE]).tolist()
    return {"auc": round(float(roc_auc_score(harmful, score)), 3)} | _rates(
        harmful, (risk.argmax(dim=-1) != SAFE).tolist()
    )


def _rates(harmful: list[bool], flagged: list[bool]) -> dict[str, float]:
    false = sum(flag for flag, harm in zip(flagged, harmful, strict=True) if not harm)
    hits = sum(flag for flag, harm in zip(flagged, harmful, strict=True) if harm)
    safe = len(harmful) - sum(harmful)
    return {"false_positive_rate": round(false / safe, 3), "recall": round(hits / sum(harmful), 3)}


def _false_alarms(records: Sequence[Record], flagged: list[bool]) -> dict[str, str]:
    safe = [(record.source, flag) for record, flag in zip(records, flagged, strict=True) if record.level == "Safe"]
    sources = sorted({source for source, _ in safe})
    return {
        name: f"{sum(flag for source, flag in safe if source == name)} of {sum(source == name for source, _ in safe)}"
        for name in sources
    }


def _baseline(train: Sequence[Record], dev: Sequence[Record]) -> dict[str, float]:
    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        LogisticRegression(C=4, max_iter=1000),
    )
    words.fit([record.prompt for record in train], _harmful(train))
    harmful, texts = _harmful(dev), [record.prompt for record in dev]
    score = words.predict_proba(texts)[:, 1]
    return {"auc": round(float(roc_auc_score(harmful, score)), 3)} | _rates(harmful, (score > 0.5).tolist())
