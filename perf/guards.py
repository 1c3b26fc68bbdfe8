"""Makes the guards that are measured: the true 0.6B shape, random weights, the real tokenizer.

    .venv/bin/python perf/guards.py [FOLDER]

The speed does not depend on the weights, with one exception: Gen answers in one pass only if its answer is the one that
the server drafts. So Gen's lm_head is changed, by least squares over the states of a short conversation and of a chat,
to write a well-formed answer there: `gen` writes the likeliest one, `gen_rejected` one whose draft is rejected twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from qwen3guard_contract import wire
from qwen3guard_contract.messages import Message
from qwen3guard_export import export
from qwen3guard_export.checkpoint.checkpoint import open_checkpoint
from qwen3guard_export.proof.reference import final_states
from qwen3guard_runtime.gen.template_prefixes import template_prefixes
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
from support import random_checkpoint, real_tokenizer  # noqa: E402
from support.random_checkpoint import SHAPE_06B  # noqa: E402

PREFIX_TOKENS, TEXT_TOKENS, SUFFIX_TOKENS = 201, 33, 96
"""Tokens of the real template before a conversation, of a short conversation, and of the template after it."""
PROMPT = "How do I bake bread?"
RESPONSE = "Mix flour, water, salt and yeast, wait, and bake it."
TURNS, PROMPT_WORDS, RESPONSE_WORDS = 8, 45, 135
"""Of the chat that is measured: its turns, and the words of each of them."""
ANSWERS = {
    "gen": "Safety: Safe\nCategories: None\nRefusal: No",
    "gen_rejected": "Safety: Unsafe\nCategories: Jailbreak\nRefusal: Yes",
}
RECIPE = "2"
"""Another number than in a checkpoint's file `made` makes the checkpoint anew."""
ANSWER_LOGIT = 30.0
"""The logit of the answer's tokens; the others are about normally distributed."""


@dataclass(frozen=True)
class Guards:
    """The checkpoints in `folder` by name, and the repositories exported from them."""

    folder: Path

    def checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / name

    def repository(self, name: str) -> Path:
        return self.folder / "repositories" / name

    def version(self, name: str) -> Path:
        """The version folder, which has the graph."""
        model = wire.STREAM_GUARD if name == "stream" else wire.GEN_GUARD
        return self.repository(name) / model.name / "1"


def prepare(folder: Path) -> Guards:
    """Makes the checkpoints (1.2 GB each) that are missing, and the dq8r exports that are missing or outdated."""
    from qwen3guard_export.repository import place_models  # it needs tritonclient, which bare measurements do without

    guards = Guards(folder)
    tokenizer = folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        tokenizer.mkdir(parents=True, exist_ok=True)
        real_tokenizer.make(tokenizer)
    for name in ("stream", *ANSWERS):
        checkpoint, made = guards.checkpoint(name), guards.checkpoint(name) / "made"
        if not (made.is_file() and made.read_text() == RECIPE):
            variant = "stream" if name == "stream" else "gen"
            random_checkpoint.make(checkpoint, variant, **SHAPE_06B, tied=False, tokenizer_from=tokenizer)
            if variant == "gen":
                lengthen_template(checkpoint)
                write_answer(checkpoint, ANSWERS[name], [SHORT, chat()])
            made.write_text(RECIPE)
        manifest_file = guards.version(name) / "manifest.json"
        newest = max(_newest_source(), made.stat().st_mtime)
        if manifest_file.is_file() and manifest_file.stat().st_mtime > newest:
            continue
        manifest = export(str(checkpoint), guards.repository(name), weights="dq8r", say=print)
        place_models(guards.repository(name), manifest)
    return guards


def _newest_source() -> float:
    """When the code in contract/, export/ or model_repository/ was last changed."""
    folders = ("contract", "export", "model_repository")
    return max(path.stat().st_mtime for name in folders for path in (TESTS.parent / name).rglob("*.py"))


SHORT = [Message("user", PROMPT), Message("assistant", RESPONSE)]


def chat(turns: int = TURNS) -> list[Message]:
    """A conversation of so many questions and answers, whose first turns are those of a longer one."""
    return [
        Message(role, f"Turn {turn}: " + " ".join(itertools.islice(itertools.cycle(text.split()), words)))
        for turn in range(1, turns + 1)
        for role, text, words in (("user", PROMPT, PROMPT_WORDS), ("assistant", RESPONSE, RESPONSE_WORDS))
    ]


def rendered(checkpoint: Path, messages: Sequence[Message]) -> list[int]:
    """The token ids of a conversation in the template of `checkpoint`."""
    return [int(token) for token in ChatTemplate.load(checkpoint).render(messages, SHAPE_06B["context"])]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids at the beginning of two sequences are the same."""
    return next(at for at, (left, right) in enumerate(zip([*one, -1], [*other, -2], strict=False)) if left != right)


def answer_ids(checkpoint: Path, answer: str) -> list[int]:
    tokenizer = GuardTokenizer.load(checkpoint)
    return [*tokenizer.encode(answer), tokenizer.special[IM_END]]


def lengthen_template(checkpoint: Path) -> None:
    """Writes a template with as many tokens before and after the conversation as the real one has."""
    path = checkpoint / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    before = after = 0
    while True:
        settings["chat_template"] = (
            "<|im_start|>user\nPolicy:" + " rule" * before + "\nCONVERSATION"
            "{% for message in messages %}\n{{ message.role }}:{{ message.content }}{% endfor %}"
            "\nEND" + " rule" * after + "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        path.write_text(json.dumps(settings))
        prefix = len(template_prefixes(ChatTemplate.load(checkpoint), SHAPE_06B["context"])[0])
        missing = PREFIX_TOKENS + TEXT_TOKENS + SUFFIX_TOKENS - len(rendered(checkpoint, SHORT))
        if prefix == PREFIX_TOKENS and missing == 0:
            return
        before += PREFIX_TOKENS - prefix
        after += missing - (PREFIX_TOKENS - prefix)


def write_answer(checkpoint: Path, answer: str, conversations: Sequence[Sequence[Message]]) -> None:
    """Changes the lm_head so that greedy decoding of the `conversations` gives `answer`."""
    questions, wanted = [rendered(checkpoint, each) for each in conversations], answer_ids(checkpoint, answer)
    opened = open_checkpoint(str(checkpoint))
    found = final_states(opened, [np.array([*question, *wanted[:-1]]) for question in questions])
    states = np.concatenate([each[-len(wanted) :] for each in found])
    tokens, right = sorted(set(wanted)), wanted * len(questions)
    logits = np.array([[ANSWER_LOGIT if token == one else 0.0 for one in right] for token in tokens], np.float32)
    head = opened.weights.float32("lm_head.weight")
    head[tokens] = logits @ np.linalg.pinv(states).T
    _overwrite(checkpoint / "model.safetensors", "lm_head.weight", head)


def _overwrite(path: Path, name: str, values: np.ndarray) -> None:
    """Writes `values`, as bfloat16, over the tensor `name` of the safetensors file."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(size))[name]["data_offsets"]
        data = values.astype(random_checkpoint.DTYPES["bf16"][1]).tobytes()
        assert len(data) == end - begin
        file.seek(8 + size + begin)
        file.write(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/perf"), help="default: build/perf")
    prepare(parser.parse_args().folder)
