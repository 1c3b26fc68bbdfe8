"""The tokenizer files of a checkpoint: checked against the model here, and then copied unchanged.

This module knows file names and token ids. It does not tokenize, and does not render templates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3guard_contract.errors import CorruptFile, TokenizerMismatch

from qwen3guard_export.checkpoint.weight_files import read_json_object

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"
CARRIED = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, "config.json", "generation_config.json", CHAT_TEMPLATE)
REQUIRED_TOKENS = ("<|im_start|>", "<|im_end|>")


def carried_files(folder: Path, vocab_size: int) -> tuple[Path, ...]:
    """The files of `CARRIED` that exist in `folder`; they travel with the graph.

    Raises TokenizerMismatch if the tokenizer cannot belong to a model with `vocab_size` embeddings, if it lacks the
    chat tokens, or if there is no chat template; CorruptFile if another of the files is not JSON.
    """
    tokenizer = folder / TOKENIZER
    if not tokenizer.is_file():
        raise TokenizerMismatch(f"{folder} has no {TOKENIZER}.")
    ids = _token_ids(tokenizer)
    highest = max(ids, key=lambda token: ids[token])
    if ids[highest] >= vocab_size:
        raise TokenizerMismatch(
            f"{tokenizer} has the id {ids[highest]} ({highest!r:.100}), but the model embeds only {vocab_size} tokens."
        )
    for token in REQUIRED_TOKENS:
        if token not in ids:
            raise TokenizerMismatch(f"{tokenizer} lacks the token {token}.")
    present = tuple(folder / name for name in CARRIED if (folder / name).is_file())
    settings = {path.name: read_json_object(path) for path in present if path.suffix == ".json" and path != tokenizer}
    if CHAT_TEMPLATE not in {path.name for path in present} and not settings.get(TOKENIZER_CONFIG, {}).get(
        "chat_template"
    ):
        raise TokenizerMismatch(f"{folder} has no chat template, in neither {CHAT_TEMPLATE} nor {TOKENIZER_CONFIG}.")
    return present


def im_end_id(folder: Path) -> int:
    """The id of `<|im_end|>`. Raises TokenizerMismatch."""
    return _token_ids(folder / TOKENIZER)[REQUIRED_TOKENS[1]]


def _token_ids(path: Path) -> dict[str, int]:
    try:
        data = read_json_object(path)
    except CorruptFile as error:
        raise TokenizerMismatch(str(error)) from None
    try:
        vocabulary: dict[str, Any] = data["model"]["vocab"]
        ids = {str(token): int(token_id) for token, token_id in vocabulary.items()}
        ids.update({str(added["content"]): int(added["id"]) for added in data.get("added_tokens") or ()})
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise TokenizerMismatch(f"{path} has no vocabulary of tokens and ids.") from None
    if not ids:
        raise TokenizerMismatch(f"{path} has an empty vocabulary.")
    return ids
