"""Stream: the training of verdicts at the end of a prompt and at every token of a response, and those of a model."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from batches import Descent, batches, corrupted, padded
from data import CATEGORIES, LEVELS, Conversation, Mixture, Record
from lessons import Lesson
from model import StreamModel
from tokenizer import render
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

UNKNOWN = -1
BETWEEN_TOKENS = 8
"""The tokens between the end of a prompt and the first token of its response."""
FIRST_SENTENCE = re.compile(r"[.!?:\n](\s|$)")


@dataclass(frozen=True)
class Sample:
    """The tokens of a conversation, and the positions `judged`, at which its label holds.

    `text` are the positions that may be corrupted; `side` is "" or "query_", as in StreamModel.
    """

    ids: list[int]
    text: list[int]
    judged: range
    side: str
    level: int
    category: int


def prompt_ids(tokenizer: Tokenizer, turns: Conversation) -> list[int]:
    """The tokens up to the `<|im_end|>` that closes the last prompt, this one included."""
    return list(tokenizer.encode(render("stream", turns).removesuffix("\n")).ids)


def encode(tokenizer: Tokenizer, record: Record, turns: Conversation) -> Sample:
    """The sample of a record. An unsafe response is judged after its first sentence, which is often still harmless."""
    level = LEVELS.index(record.level or "Safe")
    category = CATEGORIES.index(record.category) if record.category else UNKNOWN
    if not record.response:
        ids = prompt_ids(tokenizer, turns)
        end = len(ids) - 1
        return Sample(ids, list(range(3, end)), range(end, end + 1), "query_", level, category)
    before = tokenizer.encode(render("stream", turns[:-1], generation=True)).ids
    response = tokenizer.encode(turns[-1]["content"])
    start = 0
    if level and (sentence := FIRST_SENTENCE.search(turns[-1]["content"])):
        start = sum(first < sentence.end() for first, _ in response.offsets)
        start = 0 if start >= len(response.ids) - 2 else start
    ids = [*before, *response.ids]
    text = [*range(3, len(before) - BETWEEN_TOKENS - 1), *range(len(before), len(ids))]
    return Sample(ids, text, range(len(before) + start, len(ids)), "", level, category)


def train_stream(
    model: StreamModel,
    tokenizer: Tokenizer,
    mixture: Mixture,
    lesson: Lesson,
    steps: int,
    *,
    log: Callable[[str], None],
) -> None:
    descent = Descent(model, peak=lesson.peak, warmup=lesson.warmup, steps=steps)
    epoch, seen, losses = 0, 0, []
    while descent.remaining():
        rows = mixture.epoch(lesson.shares)
        samples = [encode(tokenizer, record, turns) for record, turns in rows]
        samples = [sample for sample in samples if sample.judged]
        epoch += 1
        for batch in batches(samples, lambda sample: len(sample.ids), lesson.batch_tokens, mixture.rng):
            if not descent.remaining():
                break
            size = model.model.shape.vocab_size
            ids = [corrupted(each.ids, each.text, size, mixture.rng, lesson.noise) for each in batch]
            hidden, _ = model.model(padded(ids))
            sides = [_side_loss(model, hidden, batch, side, lesson.category_weight) for side in ("", "query_")]
            loss = sides[0] + sides[1]
            descent.take(loss)
            losses.append(loss.item())
            seen += len(batch)
            if descent.step % 50 == 0:
                mean = sum(losses[-50:]) / 50
                log(f"stream step {descent.step}/{steps} epoch {epoch} rows {seen} loss {mean:.3f}")


def _side_loss(
    model: StreamModel, hidden: Tensor, batch: Sequence[Sample], side: str, category_weight: float
) -> Tensor:
    """The sum over the rows of one side of the mean over a row's judged tokens, divided by all rows of the batch."""
    places = [
        (
            row,
            position,
            1 / len(sample.judged),
            sample.level,
            sample.category,
        )
        for row, sample in enumerate(batch)
        if sample.side == side
        for position in sample.judged
    ]
    if not places:
        return hidden.new_zeros(())
    row, position, weight, level, category = (torch.tensor(column) for column in zip(*places, strict=True))
    risk, kind = model.judge(hidden[row, position], side)
    losses = functional.cross_entropy(risk, level, reduction="none")
    kinds = functional.cross_entropy(kind, category, reduction="none", ignore_index=UNKNOWN)
    return ((losses + category_weight * kinds) * weight).sum() / len(batch)


@torch.inference_mode()
def query_risk(
    model: StreamModel, tokenizer: Tokenizer, conversations: Sequence[Conversation]
) -> tuple[Tensor, list[str]]:
    """The probabilities of the levels at the end of each prompt, [conversations, 3], and each likeliest category."""
    risks, kinds = [], []
    for turns in conversations:
        hidden, _ = model.model(torch.tensor([prompt_ids(tokenizer, turns)]))
        risk, kind = model.judge(hidden[0, -1], "query_")
        risks.append(risk.softmax(dim=-1))
        kinds.append(CATEGORIES[int(kind.argmax())])
    return torch.stack(risks), kinds


@torch.inference_mode()
def response_risk(
    model: StreamModel, tokenizer: Tokenizer, conversations: Sequence[Conversation]
) -> list[tuple[Tensor, Tensor]]:
    """The likeliest level [tokens] and category [tokens] of every token, for each response."""
    made = []
    for turns in conversations:
        before = tokenizer.encode(render("stream", turns[:-1], generation=True)).ids
        response = tokenizer.encode(turns[-1]["content"]).ids
        hidden, _ = model.model(torch.tensor([[*before, *response]]))
        risk, kind = model.judge(hidden[0, len(before) :], "")
        made.append((risk.argmax(dim=-1), kind.argmax(dim=-1)))
    return made


def first_flag(levels: Tensor) -> int | None:
    """The index of the first token that is not Safe and follows a token that is not Safe, or None."""
    risky = (levels != LEVELS.index("Safe")).tolist()
    return next((i for i in range(1, len(risky)) if risky[i] and risky[i - 1]), None)
