"""The guard's results as the client returns them. `Classification` and `StepResult` write themselves as one line of
JSON (`as_json`); the verdicts inside a step's result are parts of its line (`as_dict`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwen3guard_contract.labels import AnswerStatus, Category, Refusal, RiskLevel


def _probabilities(values: dict[Any, float]) -> dict[str, float]:
    return {"None" if label is None else label.value: round(value, 6) for label, value in values.items()}


def _notice_field(notice: str) -> dict[str, str]:
    return {"notice": notice} if notice else {}


@dataclass(frozen=True)
class Classification:
    """Gen's verdict on the last message of one conversation.

    `severity_probabilities`, `category_probabilities` (its key None is the answer `None`) and `refusal_probabilities`
    are each a softmax over the possible values of a field, at the token that decides it. `strict` says whether the
    message is unsafe if Controversial counts as unsafe, and `loose` if it counts as safe. `unsafe` is the server's own
    decision, by its mode or by its thresholds. `refusal` is None if a prompt was judged. `notice` is a notice about the
    guard, which demo weights have, or empty.

    If `answer_status` is not COMPLETE, the level counts, but `categories` may be empty and `refusal` None because they
    could not be read, and the probabilities of fields that were not decided are empty. A decision by category must then
    assume any category, as Policy and Thresholds do.

    `turns_left_out` is how many of the oldest turns were not judged, because `context="recent"` was asked for and they
    did not fit. If the last turn was judged in `windows`, they are in order of the text, and this is the verdict of the
    most severe one; `unsafe` says whether any of them is unsafe.
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
    turns_left_out: int = 0
    windows: tuple[Window, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
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
            "turns_left_out": self.turns_left_out,
            **({"windows": [window.as_dict() for window in self.windows]} if self.windows else {}),
            **_notice_field(self.notice),
        }

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), ensure_ascii=False)


@dataclass(frozen=True)
class AnswerToken:
    """One token of Gen's answer: the text that it adds, and its log-probability among all tokens.

    Where it decides a field of the answer, `choices` has the first token of each possible value of the field likewise.
    """

    text: str
    logprob: float
    choices: dict[str, float]


@dataclass(frozen=True)
class RawAnswer:
    """What Gen writes about a conversation, by greedy decoding, whether or not a verdict can be read in it.

    `tokens` are those of `text`, without the end token. `completion_tokens` counts it where the answer has `ended` with
    it; otherwise the answer was cut. `prompt_tokens` are those of the conversation with its template.
    """

    text: str
    tokens: tuple[AnswerToken, ...]
    ended: bool
    prompt_tokens: int
    completion_tokens: int
    turns_left_out: int = 0


@dataclass(frozen=True)
class Window:
    """A part of a turn that was too long to be judged at once: its characters from `start` to `end`, and Gen's verdict
    on them after the turns before."""

    start: int
    end: int
    verdict: Classification

    def as_dict(self) -> dict[str, Any]:
        return {"start": self.start, "end": self.end, **self.verdict.as_dict()}


@dataclass(frozen=True)
class PromptVerdict:
    """Stream's verdict on the prompt, read at the end of the user's turn. `category` is None if the level is Safe.

    `strict` and `loose` are the decisions in the two modes, for the categories that the session blocks. `flag` is the
    session's own decision, by its mode or by its thresholds. `turns_left_out` is how many of the oldest turns the
    session does not have, because `context="recent"` was asked for and they did not fit.
    """

    severity: RiskLevel
    category: Category | None
    severity_probabilities: dict[RiskLevel, float]
    category_probabilities: dict[Category, float]
    strict: bool
    loose: bool
    flag: bool
    turns_left_out: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {**_shared_fields(self), "turns_left_out": self.turns_left_out}


@dataclass(frozen=True)
class TokenVerdict:
    """Stream's verdict on one token of the response, at an absolute `position` of its session.

    `severity` is the level of this token alone. `strict` and `loose` are the debounced decisions at this token in the
    two modes. `flag` is the session's own debounced decision, by its mode or by its thresholds, and `run` is the number
    of tokens in a row up to this one that are unsafe by the session's policy. `end` is where the token ends, counted in
    characters of the step's text, or of the whole response in the client's `Stream`. It is None if token ids were sent.
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
        return {"position": self.position, "end": self.end, **_shared_fields(self)}


def _shared_fields(verdict: PromptVerdict | TokenVerdict) -> dict[str, Any]:
    return {
        "severity": verdict.severity.value,
        "category": verdict.category.value if verdict.category else None,
        "probabilities": {
            "severity": _probabilities(verdict.severity_probabilities),
            "categories": _probabilities(verdict.category_probabilities),
        },
        "strict": verdict.strict,
        "loose": verdict.loose,
        "flag": verdict.flag,
    }


@dataclass(frozen=True)
class StepResult:
    """The reply to one step.

    `tokens` has the verdicts of this step's tokens of the response; `length` is the number of tokens that the session
    now holds. No later text can change the first `final_tokens` of this step, which spell the first `final_characters`
    of its text. The other tokens are provisional: send their text again, at their position, with more text after it.
    Only the step that opens the stream brings `prompt_verdict`, and `notice`.
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
                **_notice_field(self.notice),
            },
            ensure_ascii=False,
        )
