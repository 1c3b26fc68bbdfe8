"""Contrast rows from `contrast.toml`: harmless requests with alarming words, and harmful ones.

From the public sets a tiny model learns that "kill" is bad; these rows show it "kill a Python process" too.
"""

import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import Record

PIECES = Path(__file__).with_name("contrast.toml")
SOURCE = {"source": "contrast", "licence": "Apache-2.0"}
FRAMES_AN_ACT = 4


def pieces() -> dict[str, Any]:
    return tomllib.loads(PIECES.read_text())


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def contrast_rows(seed: int) -> list[Record]:
    """The rows, without duplicates; the same seed gives the same rows."""
    return list(dict.fromkeys(_rows(pieces(), random.Random(seed))))


def _rows(parts: dict[str, Any], rng: random.Random) -> Iterator[Record]:
    for family in parts["harm"]:
        label = {"level": family["level"], "category": family["category"]}
        for prompt in family.get("prompts", []):
            yield Record(prompt, **label, **SOURCE)
            yield Record(prompt, compliance(parts, family, rng), refusal="No", **label, **SOURCE)
            yield Record(prompt, refusal(parts, "do that", rng), level="Safe", refusal="Yes", **SOURCE)
        for act in family.get("acts", []):
            prompts = _framed(act, parts["frames"], rng)
            for prompt in prompts:
                yield Record(prompt, **label, **SOURCE)
            yield Record(prompts[0], compliance(parts, family, rng), refusal="No", **label, **SOURCE)
            yield Record(prompts[1], refusal(parts, act, rng), level="Safe", refusal="Yes", **SOURCE)
    for start in parts["jailbreak"]["starts"]:
        for end in rng.sample(parts["jailbreak"]["ends"], 4):
            prompt = rng.choice((f"{start} {end}", f"{end} {start}"))
            yield Record(prompt, level="Unsafe", category="Jailbreak", **SOURCE)
        reply = refusal(parts, "do that", rng)
        yield Record(start, reply, level="Safe", refusal="Yes", **SOURCE)
    for family in parts["benign"]:
        whole = family.get("prompts", [])
        framed = [_framed(act, parts["frames"], rng) for act in family.get("acts", [])]
        for prompt in [*whole, *(prompt for prompts in framed for prompt in prompts)]:
            yield Record(prompt, level="Safe", **SOURCE)
        for prompt in [*whole, *(prompts[0] for prompts in framed)]:
            for _ in range(2 if whole else 1):
                reply = compliance(parts, family, rng)
                yield Record(prompt, reply, level="Safe", refusal="No", **SOURCE)


def _framed(act: str, frames: list[str], rng: random.Random) -> list[str]:
    return [capitalised(frame.format(act)) for frame in rng.sample(frames, FRAMES_AN_ACT)]


def compliance(parts: dict[str, Any], family: dict[str, Any], rng: random.Random) -> str:
    """A reply that does what was asked. Harm and help have the same openers, and differ in what follows."""
    body = rng.sample(family["replies"], rng.randint(1, 4))
    return " ".join([rng.choice(parts["openers"])] * (rng.random() < 0.7) + body)


def refusal(parts: dict[str, Any], act: str, rng: random.Random) -> str:
    after = rng.sample(parts["after_refusal"], rng.randint(0, 2))
    return " ".join([rng.choice(parts["refusals"]).format(act), *after])
