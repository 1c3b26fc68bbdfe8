"""Gen: the training to write the verdict after the guard's chat template, and the verdicts of a trained model."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from batches import Descent, batches, corrupted, in_chunks, padded
from data import LEVELS, Conversation, Mixture, Record
from lessons import Lesson
from model import GenModel
from tokenizer import END, render
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

OTHER_WEIGHT = 0.1
LANGUAGE_WEIGHT, LANGUAGE_TOKENS = 0.1, 4
ANSWER_LIMIT = 24


@dataclass(frozen=True)
class Sample:
    """The tokens of a conversation after the template's fixed prefix, with its answer.

    `text` are the positions that may be corrupted. `targets` are pairs of a position and a weight: there the next token
    is learned.
    """

    ids: list[int]
    text: range
    targets: list[tuple[int, float]]


class GuardTemplate:
    """The guard's template in tokens, split at the end of its fixed prefix, as a server splits it."""

    def __init__(self, tokenizer: Tokenizer, category_weight: float = 1.0) -> None:
        self.tokenizer = tokenizer
        self.first_weight = {"Safety": 1.0, "Categories": category_weight, "Refusal": 0.5}
        self._ids = cache(lambda text: tuple(tokenizer.encode(text).ids))
        user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}
        self.prefixes = {"user": self._prefix([user]), "assistant": self._prefix([user, assistant])}
        self.prefix_ids = {role: tokenizer.encode(prefix).ids for role, prefix in self.prefixes.items()}
        self.suffix_tokens = {
            "user": self._suffix_tokens([user]),
            "assistant": self._suffix_tokens([user, assistant]),
        }

    @staticmethod
    def _prefix(turns: Conversation) -> str:
        rendered = render("gen", turns)
        return rendered[: rendered.index("USER:") + len("USER:")]

    def _suffix_tokens(self, turns: Conversation) -> int:
        return len(self._ids(render("gen", turns).rpartition("\n\n<END")[2])) + 2

    def body_ids(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        bodies = [render("gen", turns)[len(self.prefixes[turns[-1]["role"]]) :] for turns in conversations]
        return [encoding.ids for encoding in self.tokenizer.encode_batch(bodies)]

    def answer(self, record: Record) -> list[tuple[int, float]]:
        """The tokens of the answer with their weights, up to the first label that the record does not have."""
        category = "None" if record.level == "Safe" else record.category
        lines = {"Safety": record.level, "Categories": category}
        if record.response:
            lines["Refusal"] = record.refusal
        answer: list[tuple[int, float]] = []
        for name, value in lines.items():
            answer += [(token, OTHER_WEIGHT) for token in self._ids(f"\n{name}:" if answer else f"{name}:")]
            if value is None:
                return answer
            first, *rest = self._ids(f" {value}")
            answer += [(first, self.first_weight[name]), *((token, OTHER_WEIGHT) for token in rest)]
        return [*answer, (self._ids(END)[0], OTHER_WEIGHT)]

    def samples(self, rows: Sequence[tuple[Record, Conversation]]) -> dict[str, list[Sample]]:
        """The samples by the role that is judged, since each role has its own prefix."""
        made: dict[str, list[Sample]] = {role: [] for role in self.prefixes}
        bodies = self.body_ids([turns for _, turns in rows])
        for (record, turns), body in zip(rows, bodies, strict=True):
            answer = self.answer(record)
            targets = [(len(body) + index - 1, weight) for index, (_, weight) in enumerate(answer)]
            role = turns[-1]["role"]
            text = range(max(0, len(body) - self.suffix_tokens[role]))
            made[role].append(Sample([*body, *(token for token, _ in answer)], text, targets))
        return made


def train_gen(
    model: GenModel, tokenizer: Tokenizer, mixture: Mixture, lesson: Lesson, steps: int, *, log: Callable[[str], None]
) -> None:
    rng, template = mixture.rng, GuardTemplate(tokenizer, lesson.category_weight)
    descent = Descent(model, peak=lesson.peak, warmup=lesson.warmup, steps=steps)
    epoch, seen, losses = 0, 0, []
    while descent.remaining():
        by_role = template.samples(mixture.epoch(lesson.shares))
        made = [
            (role, batch)
            for role, samples in by_role.items()
            for batch in batches(samples, lambda sample: len(sample.ids), lesson.batch_tokens, rng)
        ]
        rng.shuffle(made)
        epoch += 1
        for role, batch in made:
            if not descent.remaining():
                break
            verdict, loss = _loss(model, torch.tensor([template.prefix_ids[role]]), batch, rng, lesson.noise)
            descent.take(loss)
            losses.append(verdict)
            seen += len(batch)
            if descent.step % 50 == 0:
                mean = sum(losses[-50:]) / 50
                log(f"gen step {descent.step}/{steps} epoch {epoch} rows {seen} answer loss {mean:.3f}")


def _loss(
    model: GenModel, prefix: Tensor, batch: Sequence[Sample], rng: random.Random, noise: float
) -> tuple[float, Tensor]:
    """The loss on the answers alone, and the loss to train with, to which a little language modelling is added."""
    rows = [corrupted(sample.ids, sample.text, model.model.shape.vocab_size, rng, noise) for sample in batch]
    ids = padded([sample.ids for sample in batch])
    answers = [(row, *target) for row, sample in enumerate(batch) for target in sample.targets]
    words = [
        (row, rng.randrange(len(sample.text) - 1))
        for row, sample in enumerate(batch)
        for _ in range(LANGUAGE_TOKENS * (len(sample.text) > 2))
    ]
    row = torch.tensor([row for row, *_ in answers] + [row for row, _ in words])
    column = torch.tensor([column for _, column, _ in answers] + [column for _, column in words])
    _, past = model.model(prefix)
    hidden, _ = model.model(padded(rows), past)
    logits = model.logits(hidden[row, column])
    each = functional.cross_entropy(logits, ids[row, column + 1], reduction="none")
    weights = torch.tensor([weight for _, _, weight in answers])
    answer = (each[: len(answers)] * weights).sum() / len(batch)
    language = each[len(answers) :].mean() if words else each.new_zeros(())
    return answer.item(), answer + LANGUAGE_WEIGHT * language


@torch.inference_mode()
def verdicts(model: GenModel, tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> Tensor:
    """The probabilities of the levels after `Safety:`, [conversations, 3], in the order of `LEVELS`."""
    template = GuardTemplate(tokenizer)
    levels = [tokenizer.encode(f" {level}").ids[0] for level in LEVELS]
    forced = tokenizer.encode("Safety:").ids
    made = torch.zeros(len(conversations), len(LEVELS))
    for role, indices in _by_role(conversations).items():
        _, past = model.model(torch.tensor([template.prefix_ids[role]]))
        bodies = template.body_ids([conversations[index] for index in indices])
        for chunk in in_chunks(sorted(zip(bodies, indices, strict=True), key=lambda pair: len(pair[0])), 32):
            rows = [[*body, *forced] for body, _ in chunk]
            hidden, _ = model.model(padded(rows), past)
            last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
            made[[index for _, index in chunk]] = model.logits(last)[:, levels].softmax(dim=-1)
    return made


@torch.inference_mode()
def answers(model: GenModel, tokenizer: Tokenizer, conversations: Sequence[Conversation]) -> list[str]:
    """The greedy answers, without their `<|im_end|>`."""
    template, end = GuardTemplate(tokenizer), tokenizer.token_to_id(END)
    prefixes = {role: model.model(torch.tensor([ids]))[1] for role, ids in template.prefix_ids.items()}
    made = []
    for turns, body in zip(conversations, template.body_ids(conversations), strict=True):
        hidden, past = model.model(torch.tensor([body]), prefixes[turns[-1]["role"]])
        answer: list[int] = []
        while len(answer) < ANSWER_LIMIT:
            token = int(model.logits(hidden[0, -1]).argmax())
            if token == end:
                break
            answer.append(token)
            hidden, past = model.model(torch.tensor([[token]]), past)
        made.append(tokenizer.decode(answer, skip_special_tokens=False))
    return made


def _by_role(conversations: Sequence[Conversation]) -> dict[str, list[int]]:
    roles: dict[str, list[int]] = {}
    for index, turns in enumerate(conversations):
        roles.setdefault(turns[-1]["role"], []).append(index)
    return roles
