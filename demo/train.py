"""Trains the demo guards: tokenizer, Gen, Stream, evaluation; about a quarter of an hour on two cores.

    python demo/train.py --data FOLDER [--output demo] [--minutes 9]

FOLDER holds guard_train_prompts.jsonl, guard_train_pairs.jsonl and guard_dev_prompts.jsonl. The weights are for
demonstrations: they show how everything works together, and classify nothing reliably.
"""

import argparse
import json
import platform
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoint
import sklearn
import tokenizers
import torch
from contrast import contrast_rows
from data import Mixture, Record, read_records
from evaluate import evaluate
from gen import train_gen
from lessons import STAGES, Lesson
from model import GenModel, Shape, StreamModel
from stream import train_stream
from tokenizer import train_tokenizer

SEED = 20260
STARTED = time.monotonic()


def log(message: str) -> None:
    print(f"{time.monotonic() - STARTED:6.0f} s  {message}", flush=True)


def split(pairs: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The training pairs, and those of a tenth of the prompts, which are held out."""
    held = {prompt for prompt in sorted({pair.prompt for pair in pairs}) if random.random() < 0.1}
    return [pair for pair in pairs if pair.prompt not in held], [pair for pair in pairs if pair.prompt in held]


def rows_by_set(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    counts = Counter((record.source, record.licence) for record in records)
    return {source: {"licence": licence, "rows": rows} for (source, licence), rows in sorted(counts.items())}


def starting_point(lesson: Lesson, folder: Path) -> GenModel | StreamModel:
    """A new guard, or the saved one, with the backbone that the lesson names."""
    if lesson.guard == "gen":
        gen = GenModel(Shape())
        if lesson.backbone == "gen":
            gen, _ = checkpoint.load(GenModel, folder / "gen")
        elif lesson.backbone == "stream":
            gen.model.load_state_dict(checkpoint.load(StreamModel, folder / "stream")[0].model.state_dict())
        return gen
    stream = StreamModel(Shape())
    if lesson.backbone == "stream":
        stream, _ = checkpoint.load(StreamModel, folder / "stream")
    elif lesson.backbone == "gen":
        stream.model.load_state_dict(checkpoint.load(GenModel, folder / "gen")[0].model.state_dict())
    return stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the training texts")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where gen/ and stream/ go")
    parser.add_argument("--minutes", type=float, default=9, help="size of the training: steps end it, not the clock")
    parser.add_argument("--start", choices=[*STAGES, "evaluation"], default="gen", help="resume at this stage")
    arguments = parser.parse_args()
    random.seed(SEED)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)

    prompts = read_records(arguments.data / "guard_train_prompts.jsonl")
    pairs, held_out = split(read_records(arguments.data / "guard_train_pairs.jsonl"))
    contrast = contrast_rows(SEED)
    rows = [*prompts, *pairs, *contrast]
    log(f"{len(prompts)} prompts, {len(pairs)} pairs and {len(held_out)} held out, {len(contrast)} contrast rows")

    if arguments.start == "gen":
        tokenizer = train_tokenizer(text for row in rows for text in (row.prompt, row.response) if text)
    else:
        tokenizer = checkpoint.load(GenModel, arguments.output / "gen")[1]
    log(f"tokenizer of {tokenizer.get_vocab_size()} tokens")

    report_file = arguments.output / "evaluation.json"
    known = json.loads(report_file.read_text()) if report_file.exists() else {}
    minutes = known.get("training", {}).get("minutes", {})
    for number, (stage, lesson) in enumerate(STAGES.items()):
        if number < [*STAGES, "evaluation"].index(arguments.start):
            continue
        began = time.monotonic()
        torch.manual_seed(SEED + number)
        mixture = Mixture(prompts, pairs, contrast_rows(SEED + number), SEED + number)
        model = starting_point(lesson, arguments.output)
        steps = round(arguments.minutes * lesson.steps_a_minute)
        if isinstance(model, GenModel):
            train_gen(model, tokenizer, mixture, lesson, steps, log=log)
        else:
            train_stream(model, tokenizer, mixture, lesson, steps, log=log)
        checkpoint.save(model, tokenizer, arguments.output / lesson.guard)
        minutes[stage] = round((time.monotonic() - began) / 60, 1)
        report_file.write_text(json.dumps({"training": {"minutes": minutes}}))

    log("evaluation")
    dev = read_records(arguments.data / "guard_dev_prompts.jsonl")
    report = {
        "training": {
            "minutes": minutes,
            "nominal_minutes": arguments.minutes,
            "seed": SEED,
            "threads": torch.get_num_threads(),
            "machine": f"{platform.machine()}, {platform.system()}",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "tokenizers": tokenizers.__version__,
                "scikit-learn": sklearn.__version__,
            },
            "sets": rows_by_set(rows),
        },
        **evaluate(arguments.output, dev, held_out, [row for row in rows if not row.response]),
    }
    report_file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    for outcome in report["everyday"]["outcomes"]:
        mark = "ok   " if outcome["gen_right"] and outcome["stream_right"] else "WRONG"
        log(f"{mark} {outcome['text'][:60]!r}: Gen {outcome['gen']}; Stream {outcome['stream']}")
    for part in ("dev_prompts", "held_out_responses", "greedy_answers"):
        log(f"{part}: {json.dumps(report[part])}")
    log("demo weights, not a safety classifier")


if __name__ == "__main__":
    main()
