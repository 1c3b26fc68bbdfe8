"""stream_tokenizer and stream_guard: what each makes of its requests, in the tensors of `wire`.

A model is loaded from the folder that an export filled; `triton_io` stands between it and Triton.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen3guard_contract import wire
from qwen3guard_contract.errors import EmptyText, GuardError, InvalidRequest, LastRole, TextTooLong
from qwen3guard_contract.labels import Category
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.thresholds import Thresholds

from qwen3guard_runtime.engine.devices import open_guard
from qwen3guard_runtime.engine.integrity import ExportedFiles
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.request import Outputs, Request
from qwen3guard_runtime.stream.session import SessionLimits
from qwen3guard_runtime.stream.sessions import Sessions
from qwen3guard_runtime.stream.steps import Step, StepReply
from qwen3guard_runtime.stream.verdicts import TokenJudgements
from qwen3guard_runtime.telemetry.metrics import StreamMetrics
from qwen3guard_runtime.text.chat import conversation, text_of
from qwen3guard_runtime.text.incremental import Increment, tokenize
from qwen3guard_runtime.text.tokenizer import IM_END
from qwen3guard_runtime.text.tokenizer_model import TokenizerModel, read_manifest


class StreamTokenizerModel(TokenizerModel):
    """stream_tokenizer: a step's conversation and text, or token ids, to stream_guard's input ids."""

    guard = wire.STREAM_GUARD

    def _one(self, request: Request) -> Outputs:
        check_sequence(request)
        prompt = self._prompt(request)
        reply = self._reply(request)
        im_end = self._template.tokenizer.special[IM_END]
        query = len(prompt) - 1 - prompt[::-1].index(im_end) if prompt else -1
        return {
            wire.INPUT_IDS.name: [*prompt, *reply.ids],
            wire.QUERY_INDEX.name: query,
            wire.RESPONSE_START.name: len(prompt),
            wire.FINAL_TOKENS.name: len(prompt) + reply.final_tokens,
            wire.FINAL_CHARACTERS.name: reply.final_characters,
            wire.TOKEN_ENDS.name: reply.ends,
        }

    def _prompt(self, request: Request) -> list[int]:
        """The conversation up to where the response begins; empty in a step that opens no stream."""
        if not request.start:
            if request.has(wire.MESSAGES) or request.has(wire.PROMPT):
                raise InvalidRequest("Only the step that opens a stream, with sequence_start, carries a conversation.")
            return []
        messages = conversation(request.text(wire.MESSAGES), request.text(wire.PROMPT), None, self._context)
        if messages[-1].role != "user":
            raise LastRole(f"The last message is the {messages[-1].role}'s; a stream opens after a user's message.")
        return self._template.render(messages, self._context)

    def _reply(self, request: Request) -> Increment:
        text = request.text(wire.TEXT)
        if request.has(wire.TOKEN_IDS):
            if text is not None:
                raise InvalidRequest("Send either text or token ids, not both.")
            sent = request.tensors[wire.TOKEN_IDS.name]
            if len(sent) > self._context:
                raise TextTooLong(f"The step has {len(sent)} tokens; the context holds {self._context}.")
            ids = tuple(sent.tolist())
            return Increment(ids, (), len(ids), 0)
        if not text:
            if not request.start and not request.end:
                raise EmptyText("The step has neither text nor token ids.")
            return Increment((), (), 0, 0)
        return tokenize(self._template.tokenizer, text_of(text, "The text"), self._context, end=request.end)


def check_sequence(request: Request) -> None:
    """Raises InvalidRequest for a step that names no stream; of stream_guard's own, Triton refuses them before."""
    if not request.sequence:
        raise InvalidRequest(
            "The step has no sequence id: every step names its stream by sequence_id, and the first has sequence_start."
        )


SWEEP_S = 60.0
LONGEST_LIST = 1000
"""Bytes of BLOCKED; all categories there are take fewer."""


class StreamGuardModel:
    """stream_guard: a step's ids at a position to the verdict of each token. Holds the sessions."""

    def __init__(self, folder: Path, parameters: Mapping[str, str]) -> None:
        options = Parameters(parameters)
        exported = read_manifest(folder)
        self._files = ExportedFiles(folder, exported)
        place = open_guard(folder, exported, options)
        manifest, memory = place.manifest, place.memory
        slots = options.whole("slots", at_least=1)
        budget = options.whole("kv_budget_bytes") or max(
            memory.free_bytes() // 2, KVCache.least_bytes(manifest, memory)
        )
        cache = KVCache(manifest, slots=slots, budget_bytes=budget, memory=memory)
        limits = SessionLimits(
            idle_s=options.seconds("idle_s"),
            evict_s=options.seconds("evict_s"),
            turn_s=options.seconds("turn_s"),
            chunk_tokens=options.whole("chunk_tokens", at_least=1),
        )
        self._notice = manifest.notice
        self._policy = Policy(
            strict=options.flag("strict"),
            debounce=options.whole("debounce", at_least=1),
            thresholds=options.thresholds("thresholds"),
        )
        metrics = StreamMetrics()
        self._sessions = Sessions(
            manifest,
            place.runner,
            cache,
            policy=self._policy,
            limits=limits,
            clock=time.monotonic,
            metrics=metrics,
        )
        metrics.watch(
            sessions=lambda: self._sessions.live,
            slots=slots,
            used=lambda: cache.used_bytes,
            budget_bytes=cache.budget_bytes,
        )
        metrics.multiplies(place.products)
        self.metrics = metrics.all()
        self._turn = threading.Lock()
        threading.Thread(target=self._forget_idle, args=(min(limits.idle_s / 2, SWEEP_S),), daemon=True).start()

    def _forget_idle(self, every_s: float) -> None:
        """Gives memory back when no request comes that would."""
        while True:
            time.sleep(max(every_s, 0.1))
            with self._turn:
                self._sessions.forget_idle()

    def handle(self, requests: Sequence[Request]) -> list[Outputs | GuardError]:
        results: dict[int, Outputs | GuardError] = {}
        steps: dict[int, Step] = {}
        for number, request in enumerate(requests):
            try:
                steps[number] = self._step(request)
            except GuardError as error:
                results[number] = error
                if request.end:
                    with self._turn:
                        self._sessions.forget(request.sequence)
        with self._turn:
            replies = self._sessions.steps(list(steps.values()))
        for number, reply in zip(steps, replies, strict=True):
            found = reply if isinstance(reply, GuardError) else _outputs(reply) | {wire.NOTICE.name: [self._notice]}
            results[number] = found
        self._files.check()
        return [results[number] for number in range(len(requests))]

    def _step(self, request: Request) -> Step:
        return Step(
            request.sequence,
            request.tensors[wire.INPUT_IDS.name],
            request.number(wire.POSITION, 0),
            start=request.start,
            end=request.end,
            query_index=request.number(wire.QUERY_INDEX, -1),
            response_start=request.number(wire.RESPONSE_START, 0),
            policy=self._policy_of(request),
        )

    def _policy_of(self, request: Request) -> Policy | None:
        """The policy that a step brings along; what it leaves out is the server's own. None if it brings none."""
        if not any(map(request.has, wire.POLICY)):
            return None
        blocked, thresholds = self._policy.blocked, self._policy.thresholds
        if request.has(wire.THRESHOLDS):
            thresholds = Thresholds.parse(request.text(wire.THRESHOLDS) or b"")
        elif request.has(wire.STRICT):  # a session that asks for a mode is not decided by thresholds
            thresholds = None
        if request.has(wire.BLOCKED):
            try:
                named = json.loads((request.text(wire.BLOCKED) or b"")[:LONGEST_LIST])
                if not isinstance(named, list):
                    raise TypeError
                blocked = frozenset(map(Category, named))
            except (ValueError, TypeError, RecursionError):
                known = ", ".join(category.value for category in Category)
                raise InvalidRequest(f"BLOCKED must be a JSON list of categories; there are: {known}.") from None
        return Policy(
            strict=bool(request.number(wire.STRICT, self._policy.strict)),
            debounce=request.number(wire.DEBOUNCE, self._policy.debounce),
            blocked=blocked,
            thresholds=thresholds,
        )


def _outputs(reply: StepReply) -> dict[str, object]:
    return {
        wire.LENGTH.name: reply.length,
        wire.PENDING.name: reply.pending,
        wire.RISK.name: _risk(reply.response),
        wire.CATEGORY.name: _category(reply.response),
        wire.RISK_PROBABILITIES.name: reply.response.risk_probabilities,
        wire.CATEGORY_PROBABILITIES.name: reply.response.category_probabilities,
        wire.STRICT_FLAG.name: reply.flags.strict,
        wire.LOOSE_FLAG.name: reply.flags.loose,
        wire.FLAG.name: reply.flags.own,
        wire.RUN.name: reply.run,
        wire.PROMPT_RISK.name: _risk(reply.prompt),
        wire.PROMPT_CATEGORY.name: _category(reply.prompt),
        wire.PROMPT_RISK_PROBABILITIES.name: reply.prompt.risk_probabilities,
        wire.PROMPT_CATEGORY_PROBABILITIES.name: reply.prompt.category_probabilities,
        wire.PROMPT_STRICT_FLAG.name: reply.prompt_flags.strict,
        wire.PROMPT_LOOSE_FLAG.name: reply.prompt_flags.loose,
        wire.PROMPT_FLAG.name: reply.prompt_flags.own,
    }


def _risk(judgement: TokenJudgements) -> list[str]:
    return [level.value for level in judgement.risk]


def _category(judgement: TokenJudgements) -> list[str]:
    return [category.value if category else "None" for category in judgement.category]
