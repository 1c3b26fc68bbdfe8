"""Training records, and the conversations made of them. This module knows nothing of tokens."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

Conversation = list[dict[str, str]]

LEVELS = ("Safe", "Unsafe", "Controversial")
CATEGORIES = (
    "Violent",
    "Sexual Content or Sexual Acts",
    "Suicide & Self-Harm",
    "Politically Sensitive Topics",
    "PII",
    "Copyright Violation",
    "Non-violent Illegal Acts",
    "Unethical Acts",
    "Jailbreak",
)
"""Both are in the index order of the Stream heads; a response has no Jailbreak."""

NEVER_REFUSES = "gpteacher_roleplay_resp"
"""A set of plain questions. Its replies have no refusal label, because none of them refuses."""

CHARS_A_TOKEN = 4
TOKEN_CAPS, CAP_WEIGHTS = (56, 192, 600), (90, 8, 2)


@dataclass(frozen=True)
class Record:
    """A prompt, or a prompt with a response. The labels are those of the last turn; None is unknown."""

    prompt: str
    response: str | None = None
    level: str | None = None
    category: str | None = None
    refusal: str | None = None
    source: str = ""
    licence: str = ""


def read_records(path: Path) -> list[Record]:
    """The records of a JSON-lines file, without those that contain a special token or have no known level."""
    records = []
    for line in path.read_text().rstrip("\n").split("\n"):
        row = json.loads(line)
        response, refusal = row.get("response"), row.get("refusal")
        if "<|" in row["prompt"] + (response or ""):
            continue
        level = row["level"] if row["level"] in LEVELS else "Safe" if refusal == "Yes" else None
        if response and not refusal and (level != "Safe" or row["set"] == NEVER_REFUSES):
            refusal = "No"
        category = row["categories"][0] if row["categories"] and level != "Safe" else None
        records.append(Record(row["prompt"], response, level, category, refusal, row["set"], row["licence"]))
    return [record for record in records if record.level]


@dataclass(frozen=True)
class EpochShares:
    """The contents of one epoch.

    `prompts` and `safe_pairs` are the shares of the public prompts and of the safe pairs; all other pairs are in every
    epoch. `contrast_copies` is the number of copies of the contrast rows. `borrowed` harmful public prompts get a reply
    of a contrast row, half of them a refusal: so the model sees thousands of alarming prompts whose label the reply
    alone decides.
    """

    prompts: float
    safe_pairs: float
    contrast_copies: int
    borrowed: int


class Mixture:
    """Makes epochs of varied conversations, each with the record that labels its last turn."""

    def __init__(
        self, prompts: Sequence[Record], pairs: Sequence[Record], contrast: Sequence[Record], seed: int
    ) -> None:
        self.rng = random.Random(seed)
        self.prompts, self.pairs, self.contrast = prompts, pairs, contrast
        self.systems = ("You are a helpful assistant.", "Answer briefly.", "Be polite and honest.")
        self.harmless = [record.prompt for record in prompts if record.level == "Safe"]
        replies = [record for record in contrast if record.response]
        self.refused = [record for record in replies if record.refusal == "Yes"]
        self.complied = [record for record in replies if record.level != "Safe"]

    def epoch(self, shares: EpochShares) -> list[tuple[Record, Conversation]]:
        alarming = [record for record in self.prompts if record.level == "Unsafe"]
        prompts, pairs = self.prompts, self.pairs
        if shares.prompts < 1:
            prompts = [prompt for prompt in prompts if self.rng.random() < shares.prompts]
        pairs = [pair for pair in pairs if pair.level != "Safe" or self.rng.random() < shares.safe_pairs]
        rows = [*prompts, *pairs, *list(self.contrast) * shares.contrast_copies]
        for record in self.rng.choices(alarming, k=shares.borrowed):
            reply = self.rng.choice(self.rng.choice((self.refused, self.complied)))
            rows.append(replace(reply, prompt=record.prompt))
        self.rng.shuffle(rows)
        return [(row, self._conversation(row)) for row in rows]

    def _conversation(self, record: Record) -> Conversation:
        rng, prompt = self.rng, record.prompt
        if not record.response and rng.random() < 0.03:
            prompt = self._lengthened(prompt)
        cap = rng.choices(TOKEN_CAPS, CAP_WEIGHTS)[0] * CHARS_A_TOKEN
        turns = [{"role": "user", "content": varied(cut(prompt, cap), rng)}]
        if rng.random() < 0.06:
            earlier = rng.choice(self.pairs)
            before = cut(earlier.prompt, cap), cut(earlier.response or "", cap)
            turns = [
                {"role": "user", "content": before[0]},
                {"role": "assistant", "content": before[1]},
                *turns,
            ]
        if rng.random() < 0.03:
            turns = [{"role": "system", "content": rng.choice(self.systems)}, *turns]
        if record.response:
            reply = cut(record.response, cap * 3 // 2)
            turns.append({"role": "assistant", "content": reply})
        return turns

    def _lengthened(self, prompt: str) -> str:
        """The prompt among several harmless ones; its level is then the level of the whole."""
        others = self.rng.choices(self.harmless, k=self.rng.randint(2, 10))
        others.insert(self.rng.randint(0, len(others)), prompt)
        return self.rng.choice((" ", "\n")).join(others)


def cut(text: str, chars: int) -> str:
    """At most `chars` characters of `text`, cut between words."""
    return text if len(text) <= chars else re.sub(r"\S*$", "", text[:chars]).rstrip()


def varied(text: str, rng: random.Random) -> str:
    """The text, perhaps in another case or with another end, since neither is a sign of harm."""
    draw = rng.random()
    if draw < 0.25:
        text = text.lower()
    elif draw < 0.28:
        text = text.upper()
    elif draw < 0.5:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.3:
        text = text.rstrip(".?! ")
    elif text[-1:].isalpha() and rng.random() < 0.4:
        text += rng.choice(".?!")
    return text
