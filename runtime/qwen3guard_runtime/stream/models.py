"""The models stream_tokenizer and stream_guard: each takes requests and returns the outputs that `wire` defines.

A model is loaded from the folder of its export. `triton_io` connects it to Triton.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen3guard_contract import wire
from qwen3guard_contract.errors import EmptyText, GuardError, InvalidRequest, LastRole, TextTooLong
from qwen3guard_contract.policy import LARGEST_DEBOUNCE, Policy
from qwen3guard_contract.text import valid_text

from qwen3guard_runtime.engine.devices import made_for, open_guard
from qwen3guard_runtime.engine.integrity import ExportedFiles
from qwen3guard_runtime.engine.kv_cache import KVCache
from qwen3guard_runtime.engine.prefixes import PrefixCache, PrefixLimits
from qwen3guard_runtime.exported import read_manifest
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.request import Outputs, Request
from qwen3guard_runtime.stream.session import SessionLimits
from qwen3guard_runtime.stream.sessions import Sessions
from qwen3guard_runtime.stream.step_tensors import outputs_of, step_of
from qwen3guard_runtime.stream.steps import Step
from qwen3guard_runtime.sweeper import sweep
from qwen3guard_runtime.telemetry.metrics import StreamMetrics
from qwen3guard_runtime.text.incremental import Increment, tokenize
from qwen3guard_runtime.text.tokenizer import IM_END
from qwen3guard_runtime.text.tokenizer_model import TokenizerModel

RESPONSE_SHARE = 4
"""A conversation that is shortened leaves this part of the context to the response, if its last turn does."""


class StreamTokenizerModel(TokenizerModel):
    """stream_tokenizer: from a step's conversation and its text or token ids, to stream_guard's input ids."""

    guard = wire.STREAM_GUARD

    def _outputs(self, request: Request) -> Outputs:
        check_sequence(request)
        prompt, left_out = self._prompt(request)
        response = self._response(request)
        im_end = self._template.tokenizer.special[IM_END]
        query_index = len(prompt) - 1 - prompt[::-1].index(im_end) if prompt else -1
        return {
            wire.INPUT_IDS.name: [*prompt, *response.ids],
            wire.QUERY_INDEX.name: query_index,
            wire.RESPONSE_START.name: len(prompt),
            wire.STEP_ERROR.name: [],
            wire.FINAL_TOKENS.name: len(prompt) + response.final_tokens,
            wire.FINAL_CHARACTERS.name: response.final_characters,
            wire.TOKEN_ENDS.name: response.ends,
            wire.TURNS_LEFT_OUT.name: left_out,
        }

    def refuse(self, request: Request, error: GuardError) -> Outputs | GuardError:
        """Its error. That of a step with END goes to stream_guard, which forgets the session and answers with it, if
        the export is new enough to have a tensor for it."""
        if not request.end or wire.STEP_ERROR.name not in request.wanted:
            return error
        return {
            wire.INPUT_IDS.name: [],
            wire.QUERY_INDEX.name: -1,
            wire.RESPONSE_START.name: 0,
            wire.STEP_ERROR.name: [error.wire_text()],
            wire.FINAL_TOKENS.name: 0,
            wire.FINAL_CHARACTERS.name: 0,
            wire.TOKEN_ENDS.name: [],
            wire.TURNS_LEFT_OUT.name: 0,
        }

    def _prompt(self, request: Request) -> tuple[list[int], int]:
        """The token ids of the conversation, up to where the response begins, and how many of its turns are left out.
        Those of the user's next turn for a later step with a prompt, and none without."""
        if not request.start:
            if any(map(request.has, (wire.MESSAGES, wire.RECENT))):
                raise InvalidRequest(
                    "Only the step that opens a stream, with sequence_start, carries messages; a later one brings the"
                    " user's next turn as its prompt."
                )
            if not request.has(wire.PROMPT):
                return [], 0
            return self._template.render_next_turn(self._conversation(request)[0], self._context), 0
        messages = self._conversation(request)
        if messages[-1].role != "user":
            raise LastRole(f"The last message is the {messages[-1].role}'s; a stream opens after a user's message.")
        return self._render(request, messages, room=self._recent_tokens // RESPONSE_SHARE)

    def _response(self, request: Request) -> Increment:
        """The part of the response that the step brings; empty if the step only opens a turn or ends the stream."""
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
            if not request.start and not request.end and not request.has(wire.PROMPT):
                raise EmptyText("The step has neither text nor token ids.")
            return Increment((), (), 0, 0)
        return tokenize(self._template.tokenizer, valid_text(text, "The text"), self._context, end=request.end)


def check_sequence(request: Request) -> None:
    """Raises InvalidRequest for a step without a sequence id. For stream_guard itself, Triton refuses such requests."""
    if not request.sequence:
        raise InvalidRequest(
            "The step has no sequence id: every step names its stream by sequence_id, and the first has sequence_start."
        )


class StreamGuardModel:
    """stream_guard: a step's token ids at a position, to the verdict of each token. It holds the sessions."""

    def __init__(self, folder: Path, values: Mapping[str, str]) -> None:
        """`values` are the `parameters` of config.pbtxt. Raises what `open_guard`, `Parameters` and `KVCache` raise."""
        parameters = Parameters(values)
        exported = read_manifest(folder)
        self._files = ExportedFiles(folder, exported)
        opened = open_guard(folder, exported, parameters)
        manifest, memory = opened.manifest, opened.memory
        slots = parameters.whole("slots", at_least=1)
        budget_bytes = parameters.whole("kv_budget_bytes", at_most=memory.free_bytes()) or max(
            memory.free_bytes() // 2, KVCache.least_bytes(manifest, memory)
        )
        kv_cache = KVCache(manifest, slots=slots, budget_bytes=budget_bytes, memory=memory)
        prefixes = PrefixLimits.read(parameters, memory)
        cache = PrefixCache(kv_cache, prefixes)
        limits = SessionLimits(
            idle_s=parameters.seconds("idle_s"),
            evict_s=parameters.seconds("evict_s"),
            turn_s=parameters.seconds("turn_s"),
            chunk_tokens=parameters.whole("chunk_tokens", at_least=1),
            alone_tokens=parameters.whole("alone_tokens", at_least=1),
            replay_s=parameters.seconds("replay_s"),
        )
        self._notice = manifest.notice
        self._policy = Policy(
            strict=parameters.flag("strict"),
            debounce=parameters.whole("debounce", at_least=1, at_most=min(manifest.context, LARGEST_DEBOUNCE)),
            thresholds=parameters.thresholds("thresholds"),
        )
        metrics = StreamMetrics()
        self._sessions = Sessions(
            manifest,
            opened.runner,
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
            budget_bytes=budget_bytes,
        )
        metrics.watch_prefixes(cache)
        metrics.watch_products(opened.products)
        metrics.watch_guard(exported.export_id, opened.device, made_for(exported))
        self.metrics = metrics.all()
        self._sessions_lock = threading.Lock()
        sweep(self._sessions.forget_idle, self._sessions_lock, limits.idle_s, prefixes.idle_s)

    def handle(self, requests: Sequence[Request]) -> list[Outputs | GuardError]:
        results: dict[int, Outputs | GuardError] = {}
        steps: dict[int, Step] = {}
        for number, request in enumerate(requests):
            try:
                steps[number] = step_of(request, self._policy)
            except GuardError as error:
                results[number] = self.refuse(request, error)
        with self._sessions_lock:
            replies = self._sessions.steps(list(steps.values()))
        for number, reply in zip(steps, replies, strict=True):
            results[number] = reply if isinstance(reply, GuardError) else outputs_of(reply, self._notice)
        self._files.check()
        return [results[number] for number in range(len(requests))]

    def refuse(self, request: Request, error: GuardError) -> GuardError:
        """The error of a request that failed. Whatever is wrong with it, END ends its session."""
        if request.end:
            with self._sessions_lock:
                self._sessions.forget(request.sequence)
        return error
