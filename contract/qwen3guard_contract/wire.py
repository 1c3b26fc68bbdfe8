"""The tensors of every served model, defined once. The export generates config.pbtxt from them, and the runtime and the
client read and write tensors by them.

`dims` do not include the leading batch dimension, which is 1 in every request; -1 is a variable length. An output of
length 0 means that there is nothing to say (a step without a prompt has no verdict on one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from qwen3guard_contract.labels import QUERY_CATEGORY_ORDER, RESPONSE_CATEGORY_ORDER, RISK_ORDER

Dtype = Literal["BYTES", "INT64", "FP32", "BOOL"]

NUMPY_DTYPES: dict[Dtype, type[np.generic]] = {
    "BYTES": np.object_,
    "INT64": np.int64,
    "FP32": np.float32,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: Dtype
    dims: tuple[int, ...]
    optional: bool = False

    @property
    def ragged(self) -> bool:
        """Whether requests with different lengths of this tensor may share one execution."""
        return -1 in self.dims


@dataclass(frozen=True)
class Model:
    """A served model. An ensemble runs `steps` in order, passing tensors on by name."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    steps: tuple[Model, ...] = ()


# The conversation to judge: messages as JSON in OpenAI's form, or a prompt with or without a response.
MESSAGES = Tensor("MESSAGES", "BYTES", (1,), optional=True)
PROMPT = Tensor("PROMPT", "BYTES", (1,), optional=True)
RESPONSE = Tensor("RESPONSE", "BYTES", (1,), optional=True)
RECENT = Tensor("RECENT", "BOOL", (1,), optional=True)  # leave out the oldest turns if the messages do not fit
TURNS_LEFT_OUT = Tensor("TURNS_LEFT_OUT", "INT64", (1,))  # how many turns were left out; 0 without RECENT

INPUT_IDS = Tensor("INPUT_IDS", "INT64", (-1,))
RESPONSE_MODE = Tensor("RESPONSE_MODE", "BOOL", (1,))  # the last message is the assistant's: a refusal is judged too

# Gen's verdict. Probabilities are a softmax over the possible values of a field, at the token that decides it.
SEVERITY = Tensor("SEVERITY", "BYTES", (1,))
CATEGORIES = Tensor("CATEGORIES", "BYTES", (-1,))
REFUSAL = Tensor("REFUSAL", "BYTES", (-1,))
SEVERITY_PROBABILITIES = Tensor("SEVERITY_PROBABILITIES", "FP32", (len(RISK_ORDER),))
CATEGORIES_PROBABILITIES = Tensor("CATEGORIES_PROBABILITIES", "FP32", (-1,))  # in CATEGORY_ORDER; none if not decided
REFUSAL_PROBABILITIES = Tensor("REFUSAL_PROBABILITIES", "FP32", (-1,))
STRICT_UNSAFE = Tensor("STRICT_UNSAFE", "BOOL", (1,))
LOOSE_UNSAFE = Tensor("LOOSE_UNSAFE", "BOOL", (1,))
UNSAFE = Tensor("UNSAFE", "BOOL", (1,))  # the server's own decision, by its mode or by its thresholds
VERDICT = (
    SEVERITY,
    CATEGORIES,
    REFUSAL,
    SEVERITY_PROBABILITIES,
    CATEGORIES_PROBABILITIES,
    REFUSAL_PROBABILITIES,
    STRICT_UNSAFE,
    LOOSE_UNSAFE,
    UNSAFE,
)
"""Outputs that exist only if the answer has a level. The raw answer always exists: gen_guard returns it without a level
to a request that asks for no output of the verdict. `classify` cannot, because an ensemble asks for all outputs."""
ANSWER = Tensor("ANSWER", "BYTES", (1,))
ANSWER_IDS = Tensor("ANSWER_IDS", "INT64", (-1,))
ANSWER_LOGPROBS = Tensor("ANSWER_LOGPROBS", "FP32", (-1,))
ANSWER_STATUS = Tensor("ANSWER_STATUS", "BYTES", (1,))  # an AnswerStatus; unless complete, categories may be missing

# The raw answer token by token, for a request to gen_guard itself.
ANSWER_PIECES = Tensor("ANSWER_PIECES", "BYTES", (-1,))  # the text that each token of ANSWER_IDS adds, as UTF-8
# The possible values of each field at the token that decides it, one after the other: the index of that token in
# ANSWER_IDS, the text of the value's first token, and that token's log-probability among all tokens.
CHOICE_INDEX = Tensor("CHOICE_INDEX", "INT64", (-1,))
CHOICE_PIECE = Tensor("CHOICE_PIECE", "BYTES", (-1,))
CHOICE_LOGPROB = Tensor("CHOICE_LOGPROB", "FP32", (-1,))
ANSWER_DETAILS = (ANSWER_PIECES, CHOICE_INDEX, CHOICE_PIECE, CHOICE_LOGPROB)

NOTICE = Tensor("NOTICE", "BYTES", (1,))  # a notice about the guard; empty for real weights

# One step of a stream: text, or token ids of the Qwen tokenizer, written at an absolute position.
TEXT = Tensor("TEXT", "BYTES", (1,), optional=True)
TOKEN_IDS = Tensor("TOKEN_IDS", "INT64", (-1,), optional=True)
POSITION = Tensor("POSITION", "INT64", (1,))
QUERY_INDEX = Tensor("QUERY_INDEX", "INT64", (1,), optional=True)  # where the prompt's verdict is read; -1: nowhere
RESPONSE_START = Tensor("RESPONSE_START", "INT64", (1,), optional=True)  # index in INPUT_IDS of the first judged token

# The wire text of the error of a step that ends a session, from its tokenizer; empty without one. An ensemble whose
# tokenizer failed would not run stream_guard, which must hear of the end.
STEP_ERROR = Tensor("STEP_ERROR", "BYTES", (-1,), optional=True)

CANARY = "canary"
"""The parameter of a request with which the supervisor marks its canary. It is no traffic: metrics of its own count it.
In stream_guard, room is made for it by no user's stream: a full guard refuses it as overloaded, which is a sign of
life. Its session ends with it, and its sequence goes on in Triton: the next canary has a place there also while
newcomers wait for one."""
SCOPE = "scope"
"""The parameter of a request to a guard that names those who may share what was computed for their conversations: the
time of an answer tells them whether another conversation of the scope began alike. Without it nothing is shared."""
REPLAY = "replay"
"""The parameter of each step of a stream that writes a lost session again, from its START to the last step of what was
written before. So many sessions are replayed at once as the parameter `replay_s` of stream_guard allows; one more START
is refused as overloaded, and its client tries again."""
LONGEST_SCOPE = 256
"""The most characters of a scope."""
CANARY_SESSION = "qwen3guard-canary"
"""The sequence id of all canaries."""

# The policy of a session, sent with the step that opens it. For what is left out, the server's own policy applies.
STRICT = Tensor("STRICT", "BOOL", (1,), optional=True)
DEBOUNCE = Tensor("DEBOUNCE", "INT64", (1,), optional=True)
BLOCKED = Tensor("BLOCKED", "BYTES", (1,), optional=True)  # the categories that count, a JSON list
THRESHOLDS = Tensor("THRESHOLDS", "BYTES", (1,), optional=True)  # JSON; they decide instead of STRICT
POLICY = (STRICT, DEBOUNCE, BLOCKED, THRESHOLDS)

LENGTH = Tensor("LENGTH", "INT64", (1,))  # tokens that the session holds after this step
PENDING = Tensor("PENDING", "INT64", (1,))  # this step's tokens that are not run yet; if any, send the same step again
FINAL_TOKENS = Tensor("FINAL_TOKENS", "INT64", (1,))  # this step's first tokens that later text cannot change
FINAL_CHARACTERS = Tensor("FINAL_CHARACTERS", "INT64", (1,))  # characters of TEXT that they spell; send the rest again

TOKEN_ENDS = Tensor("TOKEN_ENDS", "INT64", (-1,))  # for each token of TEXT, where it ends in characters

# One value for each judged token of this step; none while tokens are pending.
RISK = Tensor("RISK", "BYTES", (-1,))
CATEGORY = Tensor("CATEGORY", "BYTES", (-1,))
RISK_PROBABILITIES = Tensor("RISK_PROBABILITIES", "FP32", (-1, len(RISK_ORDER)))
CATEGORY_PROBABILITIES = Tensor("CATEGORY_PROBABILITIES", "FP32", (-1, len(RESPONSE_CATEGORY_ORDER)))
STRICT_FLAG = Tensor("STRICT_FLAG", "BOOL", (-1,))
LOOSE_FLAG = Tensor("LOOSE_FLAG", "BOOL", (-1,))
FLAG = Tensor("FLAG", "BOOL", (-1,))  # the session's own decision, by its mode or by its thresholds
RUN = Tensor("RUN", "INT64", (-1,))  # tokens in a row, up to this one, that are unsafe by the session's own policy

# The verdict on the prompt: one row for a step with START or with a next turn's PROMPT, none for others.
PROMPT_RISK = Tensor("PROMPT_RISK", "BYTES", (-1,))
PROMPT_CATEGORY = Tensor("PROMPT_CATEGORY", "BYTES", (-1,))
PROMPT_RISK_PROBABILITIES = Tensor("PROMPT_RISK_PROBABILITIES", "FP32", (-1, len(RISK_ORDER)))
PROMPT_CATEGORY_PROBABILITIES = Tensor("PROMPT_CATEGORY_PROBABILITIES", "FP32", (-1, len(QUERY_CATEGORY_ORDER)))
PROMPT_STRICT_FLAG = Tensor("PROMPT_STRICT_FLAG", "BOOL", (-1,))
PROMPT_LOOSE_FLAG = Tensor("PROMPT_LOOSE_FLAG", "BOOL", (-1,))
PROMPT_FLAG = Tensor("PROMPT_FLAG", "BOOL", (-1,))

GUARD_TOKENIZER = Model(
    "guard_tokenizer", (MESSAGES, PROMPT, RESPONSE, RECENT), (INPUT_IDS, RESPONSE_MODE, TURNS_LEFT_OUT)
)

GEN_GUARD = Model(
    "gen_guard",
    (INPUT_IDS, RESPONSE_MODE),
    (*VERDICT, ANSWER, ANSWER_IDS, ANSWER_LOGPROBS, ANSWER_STATUS, NOTICE, *ANSWER_DETAILS),
)

CLASSIFY = Model(
    "classify",
    GUARD_TOKENIZER.inputs,
    (*(tensor for tensor in GEN_GUARD.outputs if tensor not in ANSWER_DETAILS), TURNS_LEFT_OUT),
    (GUARD_TOKENIZER, GEN_GUARD),
)

STREAM_TOKENIZER = Model(
    "stream_tokenizer",
    (MESSAGES, PROMPT, RECENT, TEXT, TOKEN_IDS, POSITION),
    (INPUT_IDS, QUERY_INDEX, RESPONSE_START, STEP_ERROR, FINAL_TOKENS, FINAL_CHARACTERS, TOKEN_ENDS, TURNS_LEFT_OUT),
)

STREAM_GUARD = Model(
    "stream_guard",
    (INPUT_IDS, POSITION, QUERY_INDEX, RESPONSE_START, STEP_ERROR, *POLICY),
    (
        LENGTH,
        PENDING,
        RISK,
        CATEGORY,
        RISK_PROBABILITIES,
        CATEGORY_PROBABILITIES,
        STRICT_FLAG,
        LOOSE_FLAG,
        FLAG,
        RUN,
        PROMPT_RISK,
        PROMPT_CATEGORY,
        PROMPT_RISK_PROBABILITIES,
        PROMPT_CATEGORY_PROBABILITIES,
        PROMPT_STRICT_FLAG,
        PROMPT_LOOSE_FLAG,
        PROMPT_FLAG,
        NOTICE,
    ),
)

PROMPT_OUTPUTS = frozenset(tensor for tensor in STREAM_GUARD.outputs if tensor.name.startswith("PROMPT_"))
"""Outputs that are empty except for the step with START."""

STEP_LABELS = frozenset({RISK, CATEGORY, PROMPT_RISK, PROMPT_CATEGORY})
"""Outputs that name the level or category with the largest probability. Strings take the most time to send, so a client
may leave them out."""

STREAM_STEP = Model(
    "stream_step",
    (*STREAM_TOKENIZER.inputs, *POLICY),
    (*STREAM_GUARD.outputs, FINAL_TOKENS, FINAL_CHARACTERS, TOKEN_ENDS, TURNS_LEFT_OUT),
    (STREAM_TOKENIZER, STREAM_GUARD),
)

MODELS: tuple[Model, ...] = (GUARD_TOKENIZER, GEN_GUARD, CLASSIFY, STREAM_TOKENIZER, STREAM_GUARD, STREAM_STEP)
