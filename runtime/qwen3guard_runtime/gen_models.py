"""guard_tokenizer and gen_guard: what each makes of its requests, in the tensors of `wire`.

A model is loaded from the folder that an export filled; `triton_io` stands between it and Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from qwen3guard_client import wire
from qwen3guard_client.errors import GuardError

from qwen3guard_runtime.answer import CATEGORIES, REFUSAL, SAFETY
from qwen3guard_runtime.chat import ChatTemplate, conversation
from qwen3guard_runtime.devices import open_guard
from qwen3guard_runtime.drafts import Drafts
from qwen3guard_runtime.gen import Answer, GenGuard, Question, end_ids
from qwen3guard_runtime.heads import template_heads
from qwen3guard_runtime.models import TokenizerModel, read_manifest
from qwen3guard_runtime.options import Options
from qwen3guard_runtime.request import Outputs, Request
from qwen3guard_runtime.tokenizer import GuardTokenizer

CounterFactory = Callable[[str, str], Callable[[int], None]]
"""Of a metric, from its name and description; what it returns adds to it."""


class GuardTokenizerModel(TokenizerModel):
    """guard_tokenizer: a conversation to Gen's input ids."""

    def _one(self, request: Request) -> Outputs:
        messages = conversation(request.text(wire.MESSAGES), request.text(wire.PROMPT), request.text(wire.RESPONSE))
        ids = self._template.render(messages, self._context)
        return {wire.INPUT_IDS.name: ids, wire.RESPONSE_MODE.name: messages[-1].role == "assistant"}


class GenGuardModel:
    """gen_guard: input ids to a verdict, the raw answer and its probabilities."""

    def __init__(self, folder: Path, parameters: Mapping[str, str], counter: CounterFactory) -> None:
        options = Options(parameters)
        manifest = read_manifest(folder)
        tokenizer = GuardTokenizer.load(folder)
        self._count_answers = counter("qwen3guard_answers_total", "Answers that Gen wrote")
        self._count_passes = counter(
            "qwen3guard_answer_passes_total", "Passes that these answers took; one each where the draft was right"
        )
        place = open_guard(folder, manifest, options)
        self._slots = slots = options.whole("slots", at_least=1)
        self._notice = manifest.notice
        self._guard = GenGuard(
            place.manifest,
            place.runner,
            tokenizer,
            end_ids(folder, tokenizer),
            slots=slots,
            heads=template_heads(ChatTemplate.load(folder), place.manifest.context),
            drafts=Drafts(tokenizer),
            memory=place.memory,
        )

    def handle(self, requests: Sequence[Request]) -> list[Outputs | GuardError]:
        results: list[Outputs | GuardError] = []
        for start in range(0, len(requests), self._slots):
            batch = requests[start : start + self._slots]
            questions = [
                Question(request.tensors[wire.INPUT_IDS.name], bool(request.number(wire.RESPONSE_MODE, 0)))
                for request in batch
            ]
            answers = self._guard.answer(questions)
            passes = [answer.passes for answer in answers if isinstance(answer, Answer)]
            self._count_answers(len(passes))
            self._count_passes(sum(passes))
            results += [self._one(request, answer) for request, answer in zip(batch, answers, strict=True)]
        return results

    def _one(self, request: Request, answer: Answer | GuardError) -> Outputs | GuardError:
        if isinstance(answer, GuardError):
            return answer
        outputs: dict[str, object] = {
            wire.ANSWER.name: [answer.text],
            wire.ANSWER_IDS.name: answer.ids,
            wire.ANSWER_LOGPROBS.name: answer.logprobs,
            wire.NOTICE.name: [self._notice],
        }
        if not request.wanted & wire.VERDICT_OUTPUTS:
            return outputs
        try:
            verdict = self._guard.read(answer)
        except GuardError as error:
            return error
        severity = verdict.severity
        return outputs | {
            wire.SEVERITY.name: [severity.value],
            wire.CATEGORIES.name: [category.value for category in verdict.categories],
            wire.REFUSAL.name: [verdict.refusal.value] if verdict.refusal else [],
            wire.SEVERITY_PROBABILITIES.name: verdict.probabilities[SAFETY],
            wire.CATEGORIES_PROBABILITIES.name: verdict.probabilities[CATEGORIES],
            wire.REFUSAL_PROBABILITIES.name: verdict.probabilities.get(REFUSAL, np.zeros(0, np.float32)),
            wire.STRICT_UNSAFE.name: severity.is_unsafe(strict=True),
            wire.LOOSE_UNSAFE.name: severity.is_unsafe(strict=False),
        }
