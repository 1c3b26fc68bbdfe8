"""The models guard_tokenizer and gen_guard: each takes requests and returns the outputs that `wire` defines.

A model is loaded from the folder of its export. `triton_io` connects it to Triton.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from qwen3guard_contract import wire
from qwen3guard_contract.answer_end import end_ids
from qwen3guard_contract.errors import GuardError, UnreadableAnswer
from qwen3guard_contract.labels import AnswerStatus
from qwen3guard_contract.policy import Policy

from qwen3guard_runtime.engine.devices import made_for, open_guard
from qwen3guard_runtime.engine.integrity import ExportedFiles
from qwen3guard_runtime.engine.prefixes import PrefixLimits
from qwen3guard_runtime.exported import read_manifest
from qwen3guard_runtime.gen.answer import CATEGORIES_FIELD, REFUSAL_FIELD, SAFETY, AnswerReader, AnswerVerdict
from qwen3guard_runtime.gen.drafts import Drafts
from qwen3guard_runtime.gen.guard import ANSWER_TOKENS, Answer, GenGuard, Question
from qwen3guard_runtime.gen.template_prefixes import template_prefixes
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.request import Outputs, Request
from qwen3guard_runtime.sweeper import sweep
from qwen3guard_runtime.telemetry.metrics import GenMetrics
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer
from qwen3guard_runtime.text.tokenizer_model import TokenizerModel


class GuardTokenizerModel(TokenizerModel):
    """guard_tokenizer: from a conversation to Gen's input ids."""

    guard = wire.GEN_GUARD

    def _outputs(self, request: Request) -> Outputs:
        messages = self._conversation(request)
        ids, left_out = self._render(request, messages, taken=ANSWER_TOKENS)
        return {
            wire.INPUT_IDS.name: ids,
            wire.RESPONSE_MODE.name: messages[-1].role == "assistant",
            wire.TURNS_LEFT_OUT.name: left_out,
        }


class GenGuardModel:
    """gen_guard: from input ids to a verdict, its probabilities, and the raw answer."""

    def __init__(self, folder: Path, values: Mapping[str, str]) -> None:
        """`values` are the `parameters` of config.pbtxt. Raises what `open_guard`, `Parameters` and `KVCache` raise."""
        parameters = Parameters(values)
        manifest = read_manifest(folder)
        self._files = ExportedFiles(folder, manifest)
        tokenizer = GuardTokenizer.load(folder)
        opened = open_guard(folder, manifest, parameters, AnswerReader(tokenizer).candidates)
        self.slots = parameters.whole("slots", at_least=1)
        self.waiting = parameters.whole("waiting")
        self._policy = Policy(parameters.flag("strict"), thresholds=parameters.thresholds("thresholds"))
        self._notice = manifest.notice
        self._canary_ids = manifest.canary.input_ids
        self._metrics = GenMetrics()
        self._metrics.watch_products(opened.products)
        self._metrics.watch_guard(manifest.export_id, opened.device, made_for(manifest))
        limits = PrefixLimits.read(parameters, opened.memory)
        self._guard = GenGuard(
            opened.manifest,
            opened.runner,
            tokenizer,
            end_ids(folder, tokenizer.special[IM_END]),
            slots=self.slots,
            prefixes=template_prefixes(ChatTemplate.load(folder), opened.manifest.context),
            limits=limits,
            drafts=Drafts(tokenizer),
            memory=opened.memory,
            metrics=self._metrics,
        )
        self._guard_lock = threading.Lock()
        sweep(self._guard.cache.drop_idle, self._guard_lock, limits.idle_s)
        self._metrics.watch_prefixes(self._guard.cache)
        self.metrics = self._metrics.all()

    def handle(self, requests: Sequence[Request]) -> list[Outputs | GuardError]:
        results: list[Outputs | GuardError] = []
        for start in range(0, len(requests), self.slots):
            batch = requests[start : start + self.slots]
            questions = [
                Question(
                    request.tensors[wire.INPUT_IDS.name],
                    bool(request.number(wire.RESPONSE_MODE, 0)),
                    request.scope,
                    self._is_canary(request),
                    request.is_abandoned,
                )
                for request in batch
            ]
            with self._guard_lock:
                answers = self._guard.answer(questions)
            results += [self._result(request, answer) for request, answer in zip(batch, answers, strict=True)]
        self._files.check()
        return results

    def _is_canary(self, request: Request) -> bool:
        """Whether it asks for the values of the manifest's canary. Another request so marked is one like all others."""
        if not request.canary or not request.wanted.isdisjoint(tensor.name for tensor in wire.VERDICT):
            return False
        return np.array_equal(request.tensors[wire.INPUT_IDS.name], self._canary_ids)

    def _result(self, request: Request, answer: Answer | GuardError) -> Outputs | GuardError:
        """The outputs of one answer. If its level cannot be read, a request for outputs of the verdict gets the error,
        and a request for the raw answer alone gets that."""
        if isinstance(answer, GuardError):
            return answer
        verdict, unreadable = self._read(answer)
        status = verdict.status if verdict else AnswerStatus.UNREADABLE if answer.ended else AnswerStatus.CUT
        if status is not AnswerStatus.COMPLETE and not answer.question.canary:
            self._metrics.malformed(status)
        if unreadable and not request.wanted.isdisjoint(tensor.name for tensor in wire.VERDICT):
            return unreadable
        outputs: dict[str, object] = {
            wire.ANSWER.name: [answer.text],
            wire.ANSWER_IDS.name: answer.ids,
            wire.ANSWER_LOGPROBS.name: answer.logprobs,
            wire.ANSWER_STATUS.name: [status.value],
            wire.NOTICE.name: [self._notice],
        }
        if not request.wanted.isdisjoint(tensor.name for tensor in wire.ANSWER_DETAILS):
            outputs |= self._details(answer)
        if verdict is None or answer.question.canary:
            return outputs
        self._metrics.judged(verdict.severity, response_mode=answer.question.response_mode)
        return outputs | self._verdict_outputs(verdict)

    def _read(self, answer: Answer) -> tuple[AnswerVerdict | None, UnreadableAnswer | None]:
        try:
            return self._guard.read(answer), None
        except UnreadableAnswer as error:
            return None, error

    def _details(self, answer: Answer) -> dict[str, object]:
        reader = self._guard.reader
        indices, tokens, logprobs = zip(*answer.alternatives, strict=True) if answer.alternatives else ((), (), ())
        return {
            wire.ANSWER_PIECES.name: reader.pieces(answer.ids),
            wire.CHOICE_INDEX.name: indices,
            wire.CHOICE_PIECE.name: [reader.text([token]) for token in tokens],
            wire.CHOICE_LOGPROB.name: logprobs,
        }

    def _verdict_outputs(self, verdict: AnswerVerdict) -> dict[str, object]:
        severity, undecided = verdict.severity, np.zeros(0, np.float32)
        return {
            wire.SEVERITY.name: [severity.value],
            wire.CATEGORIES.name: [category.value for category in verdict.categories],
            wire.REFUSAL.name: [verdict.refusal.value] if verdict.refusal else [],
            wire.SEVERITY_PROBABILITIES.name: verdict.probabilities[SAFETY],
            wire.CATEGORIES_PROBABILITIES.name: verdict.probabilities.get(CATEGORIES_FIELD, undecided),
            wire.REFUSAL_PROBABILITIES.name: verdict.probabilities.get(REFUSAL_FIELD, undecided),
            wire.STRICT_UNSAFE.name: severity.is_unsafe(strict=True),
            wire.LOOSE_UNSAFE.name: severity.is_unsafe(strict=False),
            wire.UNSAFE.name: any(self._policy.is_unsafe(*row) for row in verdict.rows()),
        }
