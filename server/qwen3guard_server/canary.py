"""Checks that the server is up and computes what the export computed.

Triton may say that it is ready and still give no answers, or wrong numbers because its environment is broken. So the
server counts as ready when it answers the manifest's canary with the manifest's values.
"""

from __future__ import annotations

import uuid

from qwen3guard_client.client import GuardClient
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import wire
from qwen3guard_contract.errors import CanaryFailed
from qwen3guard_contract.manifest import Manifest


def canary_call(manifest: Manifest) -> Call[list[float]]:
    """A call of the guard itself, without its tokenizer, for the values that the manifest's canary records."""
    ids = list(manifest.canary.input_ids)
    if manifest.variant == "gen":
        values = {wire.INPUT_IDS: ids, wire.RESPONSE_MODE: [False]}
        output = wire.ANSWER_LOGPROBS
        count = len(manifest.canary.values)
        return Call(wire.GEN_GUARD, values, (output,), lambda reply: reply(output)[:count].tolist())
    values = {wire.INPUT_IDS: ids, wire.POSITION: [0]}
    risk, category, pending = wire.RISK_PROBABILITIES, wire.CATEGORY_PROBABILITIES, wire.PENDING
    return Call(
        wire.STREAM_GUARD,
        values,
        (risk, category, pending),
        lambda reply: None if reply(pending)[0] else [*reply(risk).ravel().tolist(), *reply(category).ravel().tolist()],
        session=str(uuid.uuid4()),
        start=True,
        end=True,
    )


def tokenizer_call(manifest: Manifest) -> Call[int]:
    """A call of the guard's tokenizer, which runs in another process, for the number of tokens of a prompt."""
    model = wire.GUARD_TOKENIZER if manifest.variant == "gen" else wire.STREAM_TOKENIZER
    values = {wire.PROMPT: [b"canary"]} | ({} if manifest.variant == "gen" else {wire.POSITION: [0]})
    ids = wire.INPUT_IDS
    return Call(model, values, (ids,), lambda reply: len(reply(ids)), session=str(uuid.uuid4()), start=True, end=True)


def check(client: GuardClient, manifests: dict[str, Manifest], timeout_s: float | None = None) -> bool:
    """Returns False while an ensemble of `manifests` is not ready. Raises CanaryFailed if a value is wrong."""
    if not all(client.is_ready(ensemble) for ensemble in manifests):
        return False
    for manifest in manifests.values():
        if not client.send(tokenizer_call(manifest), timeout_s):
            raise CanaryFailed(f"The tokenizer of the {manifest.variant} guard gives no tokens.")
        values = client.send(canary_call(manifest), timeout_s)
        if not manifest.canary.agrees(values):
            off = manifest.canary.mean_difference(values)
            raise CanaryFailed(
                f"The {manifest.variant} guard answers its canary wrongly (off by {off:.3g}): "
                "export the checkpoint again."
            )
    return True
