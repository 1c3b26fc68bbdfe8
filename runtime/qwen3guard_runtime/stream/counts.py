"""What the sessions count of a step when it is answered. Canaries are counted apart from all others."""

from __future__ import annotations

from qwen3guard_runtime.stream.session import ActiveStep, Session
from qwen3guard_runtime.stream.steps import Step, StepReply
from qwen3guard_runtime.telemetry.metrics import StreamMetrics


class Counts:
    def __init__(self, metrics: StreamMetrics) -> None:
        self.metrics = metrics
        self._uncounted = StreamMetrics()
        """What is counted here for canaries is shown nowhere."""

    def of(self, one: Step | Session) -> StreamMetrics:
        """Where the work for a step or a session is counted."""
        return self._uncounted if one.canary else self.metrics

    def answered(self, active: ActiveStep, reply: StepReply) -> None:
        """A step is through."""
        step, session, metrics = active.step, active.session, self.metrics
        seconds = session.used_s - active.begun_s
        if step.canary:
            metrics.canary(active.passes, seconds)
            return
        metrics.judged(reply.response.risk, reply.prompt.risk)
        if len(step.ids):
            metrics.stepped(seconds, prompt_tokens=step.response_start, opening=step.opens_turn)
        if any(reply.prompt_flags.own):
            metrics.flagged("prompt")
        if any(reply.flags.own) and not session.flagged:
            session.flagged = True
            metrics.flagged("response")
