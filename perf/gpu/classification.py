"""A bare classification on the card: what `gen_guard` does with a conversation, without a server and without gRPC.

    python perf/gpu/classification.py [--size 0.6B] [--weights fp16] [--fake]

330 tokens, of which the template's first 201 are held, and an answer that is the draft, so it takes one pass. With
--fake, a double of a GPU computes on the CPU.
"""

from __future__ import annotations

import numpy as np
from figures import WEIGHTS, parser, read, say, times
from guards import ANSWERS, SHORT, rendered
from opened import on_a_double, opened
from prepared import answering, is_outdated, write
from qwen3guard_contract.answer_end import end_ids
from qwen3guard_runtime.gen.answer import AnswerReader
from qwen3guard_runtime.gen.drafts import Drafts
from qwen3guard_runtime.gen.guard import Answer, GenGuard, Question
from qwen3guard_runtime.gen.template_prefixes import template_prefixes
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer

SLOT_TOKENS, SLOTS, AT_ONCE, TIMED = 2048, 8, (1, 8), 200


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", choices=("0.6B",), default="0.6B")
    made.add_argument("--weights", choices=WEIGHTS, default="fp16")
    arguments = read(made)
    checkpoint = answering(arguments.folder, arguments.size, fake=arguments.fake)
    folder = checkpoint.with_name(f"{checkpoint.name}-{arguments.weights}")
    if is_outdated(folder):
        write(checkpoint, folder, arguments.weights)
    if arguments.fake:
        on_a_double()

    tokenizer = GuardTokenizer.load(checkpoint)
    place = opened(folder, slot_tokens=SLOT_TOKENS, candidates=AnswerReader(tokenizer).candidates)
    prefixes = template_prefixes(ChatTemplate.load(checkpoint), place.manifest.context)
    guard = GenGuard(
        place.manifest,
        place.runner,
        tokenizer,
        end_ids(checkpoint, tokenizer.special[IM_END]),
        slots=SLOTS,
        prefixes=prefixes,
        drafts=Drafts(tokenizer),
        memory=place.memory,
    )
    ids = np.array(rendered(checkpoint, SHORT), np.int64)
    for count in AT_ONCE:
        questions = [Question(ids, response_mode=True)] * count
        answers = guard.answer(questions)
        for answer in answers:
            if not isinstance(answer, Answer):
                raise answer
            if answer.text != ANSWERS["gen"] or answer.passes != 1:
                raise ValueError(f"The guard answered {answer.text!r} in {answer.passes} passes.")
        found = times(lambda q=questions: guard.answer(q), count=TIMED, fake=arguments.fake)  # type: ignore[misc]
        say(
            "classification",
            size=arguments.size,
            weights=arguments.weights,
            at_once=count,
            tokens=len(ids),
            held=max(map(len, prefixes)),
            answer_tokens=len(answer.ids),
            **found,
        )


if __name__ == "__main__":
    main()
