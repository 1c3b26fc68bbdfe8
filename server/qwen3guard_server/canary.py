"""Checks that the server is up and computes what the export computed.

Triton may say that it is ready and still give no answers, or wrong numbers because its environment is broken. So the
server counts as ready when it answers the manifest's canary with the manifest's values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from qwen3guard_client.client import GuardClient
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import wire
from qwen3guard_contract.errors import CanaryFailed, DeadlineExceeded, Overloaded
from qwen3guard_contract.manifest import Manifest

T = TypeVar("T")


def canary_call(manifest: Manifest) -> Call[list[float]]:
    """A call of the guard itself, without its tokenizer, for the values that the manifest's canary records."""
    ids = list(manifest.canary.input_ids)
    if manifest.variant == "gen":
        values = {wire.INPUT_IDS: ids, wire.RESPONSE_MODE: [False]}
        output = wire.ANSWER_LOGPROBS
        count = len(manifest.canary.values)
        return Call(wire.GEN_GUARD, values, (output,), lambda reply: reply(output)[:count].tolist(), canary=True)
    values = {wire.INPUT_IDS: ids, wire.POSITION: [0]}
    risk, category, pending = wire.RISK_PROBABILITIES, wire.CATEGORY_PROBABILITIES, wire.PENDING
    return Call(
        wire.STREAM_GUARD,
        values,
        (risk, category, pending),
        lambda reply: None if reply(pending)[0] else [*reply(risk).ravel().tolist(), *reply(category).ravel().tolist()],
        session=wire.CANARY_SESSION,
        start=True,
        canary=True,
    )


def tokenizer_call(manifest: Manifest) -> Call[int]:
    """A call of the guard's tokenizer, which runs in another process, for the number of tokens of a prompt."""
    model = wire.GUARD_TOKENIZER if manifest.variant == "gen" else wire.STREAM_TOKENIZER
    values = {wire.PROMPT: [b"canary"]} | ({} if manifest.variant == "gen" else {wire.POSITION: [0]})
    ids = wire.INPUT_IDS
    return Call(
        model, values, (ids,), lambda reply: len(reply(ids)), session=wire.CANARY_SESSION, start=True, canary=True
    )


def canaries(client: GuardClient, manifests: Mapping[str, Manifest]) -> Mapping[str, Callable[[float | None], bool]]:
    """For each model with a process of its own, a function that asks it, with a time-out in seconds.

    It returns False while the ensemble is not ready, and raises CanaryFailed if the answer is wrong.
    """
    asks = {}
    for ensemble, manifest in manifests.items():
        tokenizer = tokenizer_call(manifest)
        guard = canary_call(manifest)
        asks[tokenizer.model.name] = partial(_tokenizes, client, ensemble, manifests)
        asks[guard.model.name] = partial(_judges, client, ensemble, manifests)
    return asks


def _tokenizes(client: GuardClient, ensemble: str, manifests: Mapping[str, Manifest], timeout_s: float | None) -> bool:
    if not client.is_ready(ensemble):
        return False
    manifest = manifests[ensemble]
    if not _answer(client, tokenizer_call(manifest), timeout_s):
        raise CanaryFailed(f"The tokenizer of the {manifest.variant} guard gives no tokens.")
    return True


def _judges(client: GuardClient, ensemble: str, manifests: Mapping[str, Manifest], timeout_s: float | None) -> bool:
    if not client.is_ready(ensemble):
        return False
    manifest = manifests[ensemble]
    values = _answer(client, canary_call(manifest), timeout_s)
    if not manifest.canary.agrees(values):
        off = manifest.canary.mean_difference(values)
        raise CanaryFailed(
            f"The {manifest.variant} guard answers its canary wrongly (off by {off:.3g}): export the checkpoint again."
        )
    return True


def leave(client: GuardClient, manifests: Mapping[str, Manifest]) -> None:
    """Ends the sequence of the canaries of Stream, for which a Triton that stops would wait. Raises a GuardError."""
    if any(manifest.variant == "stream" for manifest in manifests.values()):
        values = {wire.INPUT_IDS: [], wire.POSITION: [0]}
        client.send(Call(wire.STREAM_GUARD, values, (wire.LENGTH,), bool, wire.CANARY_SESSION, end=True, canary=True))


def _answer(client: GuardClient, call: Call[T], timeout_s: float | None) -> T:
    """The answer to `call`. Raises Overloaded if the model has not come to it in time, and has answered others."""
    before = client.answered(call.model.name)
    try:
        return client.send(call, timeout_s)
    except DeadlineExceeded:
        if client.answered(call.model.name) > before:
            raise Overloaded(f"{call.model.name} is too busy to answer in time.") from None
        raise


def check(client: GuardClient, manifests: Mapping[str, Manifest], timeout_s: float | None = None) -> bool:
    """Asks every model, one after the other. Returns False while one is not ready.

    Raises CanaryFailed if an answer is wrong. Raises Overloaded if a model is too busy to answer, and the others are
    well.
    """
    busy: Overloaded | None = None
    for ask in canaries(client, manifests).values():
        try:
            if not ask(timeout_s):
                return False
        except Overloaded as error:
            busy = error
    if busy:
        raise busy
    return True
