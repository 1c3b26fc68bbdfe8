"""The allow-list of the fields of chat completions: what of a request and of an answer passes the proxy, and how.

A field that is not named here is removed, since nobody knows what it says. docs/proxy.md has these tables, written by
release/field_tables.py.
"""

from __future__ import annotations

from qwen3guard_contract.message_text import PART_FIELDS, TEXT_FIELDS
from qwen3guard_contract.messages import TURNS

from qwen3guard_apps.openai.shapes import (
    Anything,
    Checked,
    Identifier,
    JsonText,
    ListOf,
    Name,
    Number,
    ObjectOf,
    Parts,
    Shape,
    String,
    Text,
    WithoutText,
    Words,
)

Table = dict[str, Shape]

_ENDED_EARLY = ("abort", "error", "insufficient_system_resource", "max_tokens", "model_length")
"""Words of some LLMs for an answer that is not complete: as `stop` it would look so."""
FINISH_REASONS = Words(("stop", "length", "tool_calls", "function_call", "content_filter", *_ENDED_EARLY), other="stop")
_ROLES = Words(tuple(TURNS))

USAGE_DETAILS_FIELDS: Table = dict.fromkeys(
    (
        "accepted_prediction_tokens",
        "audio_tokens",
        "cache_creation_tokens",
        "cache_write_tokens",
        "cached_tokens",
        "image_tokens",
        "reasoning_tokens",
        "rejected_prediction_tokens",
        "text_tokens",
    ),
    Number("a number of tokens"),
)
_DETAILS = ObjectOf(USAGE_DETAILS_FIELDS, "numbers of tokens")
USAGE_FIELDS: Table = {
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), Number("a number of tokens")),
    **dict.fromkeys(("prompt_tokens_details", "completion_tokens_details"), _DETAILS),
    **dict.fromkeys(("prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "reasoning_tokens", "cost"), Number()),
    **dict.fromkeys(("queue_time", "prompt_time", "completion_time", "total_time"), Number()),
}
_PART: Table = {
    "type": Words(tuple(PART_FIELDS)),
    **dict.fromkeys(PART_FIELDS.values(), Text()),
    "closed": Number("a truth value"),
    "index": Number(),
}
PART_OF_CONTENT_FIELDS: Table = _PART | {"thinking": Parts(ObjectOf(_PART), PART_FIELDS)}
"""A part of a content that comes in parts. One of another type is removed."""

FUNCTION_FIELDS: Table = {
    "name": String("a name that the request declares; any other is judged"),
    "arguments": JsonText(),
}
CUSTOM_FIELDS: Table = {"name": FUNCTION_FIELDS["name"], "input": JsonText()}
TOOL_CALL_FIELDS: Table = {
    "index": Number(),
    "id": String("an id; any other text is judged"),
    "type": Words(("function", "custom")),
    "function": ObjectOf(FUNCTION_FIELDS, "`name` and `arguments`"),
    "custom": ObjectOf(CUSTOM_FIELDS, "`name` and `input`"),
}
"""A tool call of an answer."""

MESSAGE_FIELDS: Table = {
    "role": _ROLES,
    **dict.fromkeys(TEXT_FIELDS, Parts(ObjectOf(PART_OF_CONTENT_FIELDS), PART_FIELDS)),
    "function_call": ObjectOf(FUNCTION_FIELDS, "`name` and `arguments`"),
    "tool_calls": ListOf(ObjectOf(TOOL_CALL_FIELDS), "a list of calls"),
}
"""A message of an answer, or a piece of one (`delta`)."""

CHOICE_FIELDS: Table = {
    "index": Number("a number below `n`"),
    "finish_reason": FINISH_REASONS,
    "message": ObjectOf(MESSAGE_FIELDS, "a message, in a whole answer"),
    "delta": ObjectOf(MESSAGE_FIELDS, "a piece of a message, in a stream"),
    "logprobs": Anything("those of the text that goes out with them"),
    "stop_reason": Anything("a number, or a text among the request's `stop`"),
    "matched_stop": Anything("a number, or a text among the request's `stop`"),
}
"""A choice of an answer."""

HEAD_FIELDS: Table = {
    "id": Identifier("the answer's first id; if it has none, the proxy's own"),
    "object": Words(("chat.completion", "chat.completion.chunk")),
    "created": Number("a number"),
    "model": Name("the name that was asked for, or the answer's first id"),
    "system_fingerprint": Identifier("the answer's first id"),
    "service_tier": Words(("auto", "default", "flex", "scale", "priority", "standard", "batch", "on_demand")),
}
"""What a whole answer, or a chunk of a stream, says of itself. It stays as the first chunk says it."""

ANSWER_FIELDS: Table = HEAD_FIELDS | {
    "usage": ObjectOf(USAGE_FIELDS, "numbers of tokens"),
    "choices": ListOf(ObjectOf(CHOICE_FIELDS), "a list of choices"),
}

_FORM = Anything("what the answer may be; the answer is judged")
_OPERATOR = Anything("for the LLM's operator, not for its model")
REQUEST_FIELDS: Table = {
    "messages": JsonText("a list of messages"),
    **dict.fromkeys(("model", "tool_choice", "function_call"), Anything()),
    **dict.fromkeys(("tools", "functions"), Anything("definitions; they are not judged")),
    **dict.fromkeys(("response_format", "structured_outputs", "grammar", "json_schema", "stop"), _FORM),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf"), _FORM),
    **dict.fromkeys(("user", "metadata", "safety_identifier", "prompt_cache_key"), _OPERATOR),
    **dict.fromkeys(("service_tier", "store", "provider", "keep_alive"), _OPERATOR),
    **dict.fromkeys(("stop_token_ids", "allowed_token_ids"), ListOf(Number(), "numbers")),
    **dict.fromkeys(("reasoning_effort", "reasoning_format", "verbosity", "prompt_mode"), Name("a word")),
    "reasoning": ObjectOf(
        {**dict.fromkeys(("effort", "summary"), Name()), "max_tokens": Number(), "enabled": Number()},
        "`effort` and `summary`, a word each; `max_tokens`; `enabled`",
    ),
    "thinking": ObjectOf({"type": Name(), "budget_tokens": Number()}, "`type`, a word, and `budget_tokens`"),
    "modalities": ListOf(Words(("text",)), "`text` alone"),
}
"""A request. A field with another name passes if it is `WithoutText`, as `temperature` and `max_tokens` are."""

KNOWN_NAMES = frozenset(
    (
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "n", "best_of", "use_beam_search", "num_ctx"),
        *("max_tokens", "max_completion_tokens", "min_tokens", "num_predict", "stream", "stream_options"),
        *("include_usage", "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty"),
        *("repetition_penalty", "repeat_penalty", "length_penalty", "ignore_eos", "echo", "parallel_tool_calls"),
        *("add_generation_prompt", "continue_final_message", "add_special_tokens", "skip_special_tokens"),
        *("chat_template_kwargs", "enable_thinking", "separate_reasoning", "cache_prompt", "strict", "options"),
        *("max_output_tokens", "max_tool_calls", "background", "include_obfuscation"),
    )
)
"""Names of fields without text that servers of LLMs know."""

REQUEST_MESSAGE_FIELDS: Table = {
    "role": Checked(_ROLES.says),
    **dict.fromkeys(TEXT_FIELDS, JsonText("text, or parts of text; other parts are refused")),
    "function_call": JsonText("`arguments`, and a name without spaces; another is refused"),
    "tool_calls": JsonText("a list of calls as in an answer; what is not text in them is refused"),
    **dict.fromkeys(("name", "tool_call_id"), Checked("a name without spaces")),
}
"""A message of a request. A field with another name passes if it is `WithoutText`."""

OTHERS = WithoutText()
"""What passes of a request's fields that are not named here."""

MODEL_FIELDS: Table = {
    "id": Name(),
    "object": Words(("model",)),
    "created": Number(),
    "owned_by": Name(),
    "max_model_len": Number(),
}
MODEL_LIST = ObjectOf(MODEL_FIELDS | {"object": Words(("model", "list")), "data": ListOf(ObjectOf(MODEL_FIELDS))})
"""The list of the LLM's models, or one of them."""
