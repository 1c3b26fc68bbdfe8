"""The demo's tokenizer, which is small and has Qwen3's form, and its two chat templates."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import jinja2
from data import CATEGORIES, LEVELS, Conversation
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

VOCAB_SIZE = 8192
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ADDED = (
    AddedToken("<|endoftext|>", special=True, normalized=False),
    AddedToken("<|im_start|>", special=True, normalized=False),
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<think>", special=False, normalized=False),
    AddedToken("</think>", special=False, normalized=False),
)
END = "<|im_end|>"
WORDS_COPIES = 2000
"""How often the guard's own words are repeated in the training text, so that each becomes one token."""


@cache
def _template(variant: str) -> jinja2.Template:
    return jinja2.Environment().from_string(template_text(variant))


def template_text(variant: str) -> str:
    return Path(__file__).with_name(f"{variant}.jinja").read_text().rstrip("\n")


def render(variant: str, turns: Conversation, *, generation: bool = False) -> str:
    """The text that the model reads. With `generation`, a Stream prompt goes up to the first token of the response."""
    return _template(variant).render(messages=turns, add_generation_prompt=generation, enable_thinking=False)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(ADDED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *[_guard_words()] * WORDS_COPIES], trainer)
    tokenizer.add_tokens(list(ADDED))
    return tokenizer


def _guard_words() -> str:
    user, assistant = {"role": "user", "content": ""}, {"role": "assistant", "content": ""}
    rendered = render("gen", [user]) + render("gen", [user, assistant]) + render("stream", [user, assistant])
    for token in ADDED:
        rendered = rendered.replace(token.content, "")
    answers = "".join(f"Safety: {level}\nCategories: None\nRefusal: Yes\nRefusal: No\n" for level in LEVELS)
    return rendered + answers + "".join(f"Categories: {category}\n" for category in CATEGORIES)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, variant: str) -> None:
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    ids = {tokenizer.token_to_id(token.content): token for token in ADDED}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {
                "content": token.content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token.special,
            }
            for index, token in ids.items()
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": template_text(variant),
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
