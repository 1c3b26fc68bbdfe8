"""The `parameters` of each model's config.pbtxt, which an operator sets, what they are by default, and the variables of
the environment that have priority over config.pbtxt."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qwen3guard_contract import wire
from qwen3guard_contract.errors import InvalidParameter
from qwen3guard_contract.log_output import LOG_FORMATS, LOG_VARIABLE
from qwen3guard_contract.text import shown

GEN_SLOTS = 8
IDLE_S = 600
DEVICE_PARAMETERS = {"device": "auto", "threads": "0", "slot_tokens": "2048", "cuda_options": "{}"}
"""docs/gpu.md explains each."""
WAITING = "waiting"
RECENT_PARAMETERS = {"recent_tokens": "0"}
TOKENIZER_PARAMETERS = RECENT_PARAMETERS | {WAITING: "16"}
DECISION_PARAMETERS = {"strict": "true", "thresholds": ""}
PREFIX_PARAMETERS = {"prefix_bytes": str(1 << 30), "prefix_s": "600"}
"""docs/streams.md explains each."""
GEN_PARAMETERS = (
    DEVICE_PARAMETERS | DECISION_PARAMETERS | PREFIX_PARAMETERS | {"slots": str(GEN_SLOTS), WAITING: str(GEN_SLOTS)}
)
"""docs/operations.md explains each."""
STREAM_PARAMETERS = (
    DEVICE_PARAMETERS
    | DECISION_PARAMETERS
    | PREFIX_PARAMETERS
    | {
        "slots": "256",
        "kv_budget_bytes": "0",
        "idle_s": str(IDLE_S),
        "evict_s": "5",
        "chunk_tokens": "16",
        "alone_tokens": "128",
        "turn_s": "0.05",
        "replay_s": "10",
        "debounce": "2",
    }
)
"""docs/streams.md explains each."""
PARAMETERS: Mapping[str, Mapping[str, str]] = {
    wire.GUARD_TOKENIZER.name: TOKENIZER_PARAMETERS,
    wire.STREAM_TOKENIZER.name: RECENT_PARAMETERS,
    wire.GEN_GUARD.name: GEN_PARAMETERS,
    wire.STREAM_GUARD.name: STREAM_PARAMETERS,
}
"""By the model's name. Others have none."""
VARIABLE_PREFIXES: Mapping[str, str] = {
    wire.GUARD_TOKENIZER.name: "QWEN3GUARD_GEN_TOKENIZER_",
    wire.STREAM_TOKENIZER.name: "QWEN3GUARD_STREAM_TOKENIZER_",
    wire.GEN_GUARD.name: "QWEN3GUARD_GEN_",
    wire.STREAM_GUARD.name: "QWEN3GUARD_STREAM_",
}
"""How the variables of each model's parameters begin; the parameter's name in capital letters follows."""
VARIABLE_BEGINNING = "QWEN3GUARD_"
TOKEN_VARIABLE = "QWEN3GUARD_TOKEN"
"""The variable with the token of a server's callers."""
_OF_A_SERVICE = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT|PORT)(_.*)?")
"""How the variables end with which Kubernetes tells each pod where a service is, whose name may begin as ours do."""


def variables() -> dict[str, tuple[str, str]]:
    """The model and the parameter that each variable sets."""
    return {
        f"{VARIABLE_PREFIXES[model]}{parameter.upper()}": (model, parameter)
        for model, parameters in PARAMETERS.items()
        for parameter in parameters
    }


def set_variables(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The variables in `environment` that set a parameter, each with its model and parameter.

    Raises InvalidParameter for another that begins with VARIABLE_BEGINNING and means nothing, and for a log format that
    there is not: what an operator meant by it would not happen.
    """
    known = variables()
    for name in environment:
        is_unknown = name.startswith(VARIABLE_BEGINNING) and name not in (*known, TOKEN_VARIABLE, LOG_VARIABLE)
        if not is_unknown or _OF_A_SERVICE.fullmatch(name.removeprefix(VARIABLE_BEGINNING)):
            continue
        prefix = next((each for each in VARIABLE_PREFIXES.values() if name.startswith(each)), None)
        if prefix is None:
            begin = ", ".join((TOKEN_VARIABLE, LOG_VARIABLE, *(f"{each}..." for each in VARIABLE_PREFIXES.values())))
            raise InvalidParameter(f"The variable {ascii(name)[1:-1]} means nothing here; there are {begin}.")
        of_model = ", ".join(sorted(each for each in known if each.startswith(prefix)))
        raise InvalidParameter(f"The variable {ascii(name)[1:-1]} sets no parameter; there are {of_model}.")
    log_format = environment.get(LOG_VARIABLE)
    if log_format is not None and log_format not in LOG_FORMATS:
        raise InvalidParameter(f"The variable {LOG_VARIABLE} is {shown(log_format)}; it must be text or json.")
    return {name: known[name] for name in known if name in environment}
