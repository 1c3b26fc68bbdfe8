"""What the guard answers: frozen results, each with `as_json` for one line of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwen3guard_contract.labels import AnswerStatus, Category, Refusal, RiskLevel


def _probabilities(values: dict[Any, float]) -> dict[str, float]:
    return {"None" if label is None else label.value: round(value, 6) for label, value in values.items()}


def _said(notice: str) -> dict[str, str]:
    return {"notice": notice} if notice else {}


@dataclass(frozen=True)
class Classification:
    """Gen's verdict over one conversation.

    `severity_probabilities`, `category_probabilities` (None stands for the answer `None`) and
    `refusal_probabilities` are each a softmax over the possible answers at the token where the answer is
    decided. `strict` and `loose` say whether the last message is unsafe when Controversial counts as
    unsafe, and when it counts as safe; `unsafe` is the server's own decision, in its mode or by its thresholds.
    `refusal` is None when a prompt was judged. `notice` is what the guard says of itself (demo weights do), or empty.

    Where `answer_status` is not COMPLETE the level stands, but `categories` may be empty and `refusal` None because
    they could not be read, and probabilities of what was not decided are empty. Whoever decides by category takes it
    for any of them, as Policy and Thresholds do.
    """

    severity: RiskLevel
    categories: tuple[Category, ...]
    refusal: Refusal | None
    severity_probabilities: dict[RiskLevel, float]
    category_probabilities: dict[Category | None, float]
    refusal_probabilities: dict[Refusal, float]
    strict: bool
    loose: bool
    unsafe: bool
    answer: str
    notice: str
    answer_status: AnswerStatus

    def as_json(self) -> str:
        return json.dumps(
            {
                "severity": self.severity.value,
                "categories": [category.value for category in self.categories],
                "refusal": self.refusal.value if self.refusal else None,
                "probabilities": {
                    "severity": _probabilities(self.severity_probabilities),
                    "categories": _probabilities(self.category_probabilities),
                    "refusal": _probabilities(self.refusal_probabilities),
                },
                "strict": self.strict,
                "loose": self.loose,
                "unsafe": self.unsafe,
                "answer": self.answer,
                "answer_status": self.answer_status.value,
                **_said(self.notice),
            },
            ensure_ascii=False,
        )


@dataclass(frozen=True)
class PromptVerdict:
    """Stream's verdict over the prompt, read at the end of the user's turn. `category` is None where Safe.

    `strict` and `loose` are the decisions in either mode, over the categories that the session blocks; `flag`
    is the session's own, in its mode or by its thresholds.
    """

    severity: RiskLevel
    category: Category | None
    severity_probabilities: dict[RiskLevel, float]
    category_probabilities: dict[Category, float]
    strict: bool
    loose: bool
    flag: bool

    def as_dict(self) -> dict[str, Any]:
        return _judged(self)


@dataclass(frozen=True)
class TokenVerdict:
    """Stream's verdict over one response token at an absolute `position` of its session.

    `strict` and `loose` are the debounced decisions at this token in either mode, `flag` is the session's own, in its
    mode or by its thresholds, and `run` counts the tokens in a row up to this one that are unsafe by it; `severity`
    is the token's own level alone. `end` is where the token ends, in characters of the step's text, and in a `Stream`
    of the whole response; None where token ids were sent.
    """

    position: int
    severity: RiskLevel
    category: Category | None
    severity_probabilities: dict[RiskLevel, float]
    category_probabilities: dict[Category, float]
    strict: bool
    loose: bool
    flag: bool
    run: int
    end: int | None

    def as_dict(self) -> dict[str, Any]:
        return {"position": self.position, "end": self.end, **_judged(self)}


def _judged(found: PromptVerdict | TokenVerdict) -> dict[str, Any]:
    return {
        "severity": found.severity.value,
        "category": found.category.value if found.category else None,
        "probabilities": {
            "severity": _probabilities(found.severity_probabilities),
            "categories": _probabilities(found.category_probabilities),
        },
        "strict": found.strict,
        "loose": found.loose,
        "flag": found.flag,
    }


@dataclass(frozen=True)
class StepResult:
    """One step's reply.

    `tokens` are the verdicts of this step's response tokens, `length` the tokens the session now holds.
    The first `final_tokens` of this step, spelling the first `final_characters` of its text, stay as they
    are whatever follows; the others are provisional: send their text again, at their position, with more.
    `prompt_verdict` and `notice` come with the step that opens the stream.
    """

    tokens: tuple[TokenVerdict, ...]
    length: int
    final_tokens: int
    final_characters: int
    prompt_verdict: PromptVerdict | None
    notice: str

    @property
    def flag(self) -> bool:
        """Whether any token of this step is flagged by the session's own policy."""
        return any(token.flag for token in self.tokens)

    @property
    def strict(self) -> bool:
        """Whether any token of this step is flagged in strict mode."""
        return any(token.strict for token in self.tokens)

    @property
    def loose(self) -> bool:
        """Whether any token of this step is flagged in loose mode."""
        return any(token.loose for token in self.tokens)

    def as_json(self) -> str:
        return json.dumps(
            {
                **({"prompt": self.prompt_verdict.as_dict()} if self.prompt_verdict else {}),
                "tokens": [token.as_dict() for token in self.tokens],
                "length": self.length,
                "strict": self.strict,
                "loose": self.loose,
                "flag": self.flag,
                **_said(self.notice),
            },
            ensure_ascii=False,
        )
