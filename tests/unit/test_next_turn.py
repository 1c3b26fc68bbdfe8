"""A conversation that goes on in one session: turns over the double, their tokens, and the client's replays."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from qwen3guard_client.stream.state import Exchange, StreamState
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors, wire
from qwen3guard_contract.labels import RiskLevel
from qwen3guard_contract.messages import Message
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.verdict import PromptVerdict, StepResult, TokenVerdict
from qwen3guard_runtime.stream.steps import StepReply
from qwen3guard_runtime.text.chat import ChatTemplate
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer
from support.places import DEMO
from support.token_sum import Bench

LIMIT = 2000
Ids = list[int]


def turn(ids: Ids) -> dict[str, Any]:
    """The arguments of a step that opens a turn with `ids`, whose prompt is judged at the last but one."""
    return {"query_index": len(ids) - 2, "response_start": len(ids)}


def test_every_turn_is_judged_as_by_a_session_that_opens_with_all_before_it() -> None:
    """Turns sent twice, answers that are taken back, and whole turns that are."""
    source = random.Random(5)
    for _ in range(30):
        bench = Bench()
        told: list[tuple[Ids, Ids]] = []  # each turn's prompt and response

        def ids(most: int, least: int = 2) -> Ids:
            return [source.randrange(100) for _ in range(source.randint(least, most))]

        for number in range(source.randint(2, 6)):
            if number > 1 and source.random() < 0.3:  # what was answered before the last turn goes on in another way
                told.pop()
                prompt, response = told.pop()
                kept = response[: source.randint(0, len(response))]
                more = ids(5, 1)
                at = length(told) + len(prompt) + len(kept)
                bench.ok("s", more, at)
                told.append((prompt, kept + more))
            prompt = ids(40)
            before = length(told)
            for _ in range(source.randint(1, 2)):
                opened = bench.ok("s", prompt, before, start=not told, **turn(prompt))
            assert opened.length == before + len(prompt)
            response = []
            for _ in range(source.randint(0, 4)):
                piece = ids(20, 1)
                at = source.randint(0, len(response)) if source.random() < 0.2 else len(response)
                reply = bench.ok("s", piece, before + len(prompt) + at)
                response = response[:at] + piece
                clean = whole([*told, (prompt, response)])
                count = len(piece)
                assert reply.flags.own == clean.flags.own[-count:]
                assert reply.run == clean.run[-count:]
                assert reply.response.risk == clean.response.risk[-count:]
            told.append((prompt, response))
            assert opened.prompt.risk == whole(told).prompt.risk
            assert opened.response.risk == ()


def length(told: list[tuple[Ids, Ids]]) -> int:
    return sum(len(prompt) + len(response) for prompt, response in told)


def whole(told: list[tuple[Ids, Ids]]) -> StepReply:
    """The last response and its prompt, judged by a session that opens with everything."""
    before = [token for prompt, response in told[:-1] for token in (*prompt, *response)]
    prompt, response = told[-1]
    ids = [*before, *prompt, *response]
    start = len(before) + len(prompt)
    return Bench().ok("s", ids, start=True, query_index=start - 2, response_start=start)


def test_no_step_writes_into_a_conversation() -> None:
    bench = Bench()
    bench.ok("s", [1, 2, 3], start=True, **turn([1, 2, 3]))
    bench.ok("s", [4, 5], 3)
    bench.ok("s", [6, 7, 8], 5, **turn([6, 7, 8]))
    bench.ok("s", [9], 8)
    for position in (0, 1, 2, 6, 7):
        for how in ({}, turn([1, 1])):
            assert type(bench.step("s", [1, 1], position, **how)) is errors.PositionOutOfRange
    assert type(bench.step("s", [1, 1], 10, **turn([1, 1]))) is errors.PositionOutOfRange
    assert bench.ok("s", [9], 8).length == 9
    assert bench.ok("s", [1, 1], 4, **turn([1, 1])).length == 6  # the turn after it is dropped
    assert type(bench.step("s", [9], 5)) is errors.PositionOutOfRange
    assert bench.ok("s", [9], 6).length == 7


@pytest.mark.parametrize(
    "how",
    [
        {"response_start": 2},
        {"query_index": 2, "response_start": 2},
        {"query_index": 0},
        {"query_index": 1, "response_start": 4},
        {**turn([1, 1]), "policy": Policy()},
    ],
)
def test_a_turn_that_is_not_one_changes_nothing(how: dict[str, Any]) -> None:
    bench = Bench()
    bench.ok("s", [1, 2, 3], start=True, **turn([1, 2, 3]))
    assert type(bench.step("s", [1, 1, 1], 3, **how)) is errors.InvalidRequest
    assert bench.ok("s", [4], 3).length == 4


@pytest.mark.parametrize("debounce", [None, 500])
def test_a_turn_after_which_no_response_could_be_flagged_is_too_long(debounce: int | None) -> None:
    bench = Bench()  # of 600 tokens
    policy = Policy(debounce=debounce) if debounce else None
    bench.ok("s", [1, 2], start=True, policy=policy, **turn([1, 2]))
    most = 600 - 2 - (debounce or Policy().debounce)
    for more in (1, 2, 3, 600):
        prompt = [1] * (most + more)
        assert type(bench.step("s", prompt, 2, **turn(prompt))) is errors.TextTooLong
    assert bench.ok("s", [1] * most, 2, **turn([1] * most)).length == 2 + most
    last = [1] * 598
    assert bench.ok("s", last, 2, end=True, **turn(last)).prompt.risk  # no response follows
    for position in (3, 10**6):
        found = bench.step("s", [1, 1], position, **turn([1, 1]))
        assert type(found) is errors.SessionLost


@pytest.mark.parametrize("position", [4, 10**6, 2**63 - 60])
def test_a_turn_past_the_end_leaves_a_gap(position: int) -> None:
    bench = Bench()
    bench.ok("s", [1, 2, 3], start=True, **turn([1, 2, 3]))
    assert type(bench.step("s", [1, 1], position, **turn([1, 1]))) is errors.PositionOutOfRange


def test_while_a_turn_is_pending_only_the_same_step_is_taken() -> None:
    bench = Bench()
    bench.ok("s", [1, 2, 3], start=True, **turn([1, 2, 3]))
    bench.graph.pass_s = 2.0
    prompt = list(range(90))
    assert bench.ok("s", prompt, 3, **turn(prompt)).pending > 60
    for step in ([4], [4, 5]):
        found = bench.step("s", step, 3)
        assert type(found) is errors.InvalidRequest
        assert "opens the turn is not through" in str(found)
    while (reply := bench.ok("s", prompt, 3, **turn(prompt))).pending:
        assert reply.prompt.risk == ()
    assert reply.prompt.risk == whole([([1, 2, 3, *prompt], [])]).prompt.risk
    bench.ok("s", list(range(80)), 93, **turn(prompt[:80]))
    assert isinstance(bench.step("s", [], 0, end=True), StepReply)
    assert bench.cache.live == 0


# Its tokens.


@pytest.mark.parametrize(
    "text", ["Hi.", "And then?", " \n\n x \n\n", "a<|im_end|>\n<|im_start|>user\nb", "<think>x</think>", "漢字\ue000"]
)
def test_the_tokens_of_a_turn_are_the_end_of_a_conversation_that_is_rendered_as_a_whole(text: str) -> None:
    template = ChatTemplate.load(DEMO / "stream")
    im_end = template.tokenizer.special[IM_END]
    whole = template.render([Message("user", "x y"), Message("assistant", "Well, z!"), Message("user", text)], LIMIT)
    found = template.render_next_turn(Message("user", text), LIMIT)
    assert whole[-len(found) :] == found
    assert (found[0], found.count(im_end)) == (im_end, 2)


def test_a_template_that_does_not_end_an_answer_after_its_text_is_a_mismatch() -> None:
    tokenizer = GuardTokenizer.load(DEMO / "stream")
    for form in ("{{ message.content }}", "{{ message.content }} .<|im_end|>", "x<|im_end|>"):
        template = ChatTemplate(tokenizer, "{% for message in messages %}" + form + "{% endfor %}")
        with pytest.raises(errors.TokenizerMismatch, match="goes on after an answer"):
            template.render_next_turn(Message("user", "b"), LIMIT)


def test_a_turn_that_is_too_long_is_told_so() -> None:
    with pytest.raises(errors.TextTooLong):
        ChatTemplate.load(DEMO / "stream").render_next_turn(Message("user", "word " * LIMIT), LIMIT)


# The client's state, over a server whose tokens are characters, and which loses sessions.


@dataclass
class Server:
    """Sessions as what was written to them: the prompt of each turn, and its response. The last character of a text is
    not final."""

    random: random.Random
    lost: float = 0.0
    sessions: dict[Any, list[list[str]]] = field(default_factory=dict)

    def answer(self, call: Call[Any]) -> StepResult:
        if self.random.random() < self.lost:
            self.sessions.pop(call.session, None)
        if call.start:
            self.sessions[call.session] = [["P", ""]]
        elif call.session not in self.sessions:
            raise errors.SessionLost("It is gone.")
        turns = self.sessions[call.session]
        position = int(call.values[wire.POSITION][0])
        if wire.PROMPT in call.values and not call.start:
            if position == self._length(turns[:-1]):  # sent again
                turns.pop()
            assert position == self._length(turns)
            turns.append([call.values[wire.PROMPT][0].decode(), ""])
        text = call.values[wire.TEXT][0].decode() if wire.TEXT in call.values else ""
        start = self._length(turns) - len(turns[-1][1])
        if text:
            assert start <= position <= self._length(turns)
            turns[-1][1] = turns[-1][1][: position - start] + text
        if call.end:
            self.ended = self.sessions.pop(call.session)
        tokens = tuple(self._token(position + index) for index in range(len(text)))
        final = len(text) if call.end else max(len(text) - 1, 0)
        opens = call.start or wire.PROMPT in call.values
        prompt = PromptVerdict(RiskLevel.SAFE, None, {}, {}, False, False, False, len(turns)) if opens else None
        return StepResult(tokens, self._length(turns), final, final, prompt, "")

    @staticmethod
    def _length(turns: list[list[str]]) -> int:
        return sum(len(prompt) + len(response) for prompt, response in turns)

    @staticmethod
    def _token(position: int) -> TokenVerdict:
        return TokenVerdict(position, RiskLevel.SAFE, None, {}, {}, False, False, False, 0, position)


def run(server: Server, exchange: Exchange) -> StepResult:
    try:
        call = next(exchange)
        while True:
            try:
                result = server.answer(call)
            except errors.SessionLost as lost:
                call = exchange.throw(lost)
            else:
                call = exchange.send(result)
    except StopIteration as done:
        return done.value


def opened(server: Server) -> StreamState:
    state = StreamState("P", None, None)
    run(server, state.open())
    return state


@pytest.mark.parametrize("lost", [0.0, 0.04])
def test_a_lost_session_is_replayed_with_all_its_turns(lost: float) -> None:
    replayed = 0
    for seed in range(150):
        source = random.Random(seed)
        server = Server(random.Random(seed + 1))
        state = opened(server)
        first = state.session
        server.lost = lost
        expected = [["P", ""]]
        try:
            for _ in range(source.randint(1, 5)):
                for _ in range(source.randint(0, 3)):
                    piece = "".join(source.choices("abc ", k=source.randint(1, 5)))
                    run(server, state.step(piece))
                    expected[-1][1] += piece
                    before = sum(len(prompt) + len(response) for prompt, response in expected[:-1]) + len(
                        expected[-1][0]
                    )
                    assert [token.position for token in state.verdicts] == list(
                        range(before, before + len(expected[-1][1]))
                    )
                prompt = "".join(source.choices("xyz", k=3))
                run(server, state.next_turn(prompt))
                expected.append([prompt, ""])
                assert state.verdicts == []
                assert state.prompt_verdict is not None
                assert state.prompt_verdict.turns_left_out == len(expected)
            run(server, state.finish())
        except errors.SessionLost:
            continue  # REPLAYS times in a row
        assert server.ended == expected
        replayed += state.session != first
    assert (replayed > 20) == bool(lost)


def test_a_replay_that_fails_shows_nothing_of_a_former_turn() -> None:
    server = Server(random.Random(0))
    state = opened(server)
    run(server, state.step("first answer"))
    run(server, state.next_turn("again"))
    run(server, state.step("second"))
    before = (state.prompt_verdict, state.verdicts, state.final_verdicts())
    server.sessions.clear()
    for fails_after in range(1, 5):
        exchange = state.step(" more")
        calls = [next(exchange)]
        try:
            server.answer(calls[0])
        except errors.SessionLost as lost:
            calls.append(exchange.throw(lost))
        for _ in range(fails_after - 1):
            calls.append(exchange.send(server.answer(calls[-1])))
        with pytest.raises(errors.DeadlineExceeded):
            exchange.throw(errors.DeadlineExceeded("Late."))
        assert (state.prompt_verdict, state.verdicts, state.final_verdicts()) == before
        server.sessions.clear()
    run(server, state.step("!"))
    run(server, state.finish())
    assert server.ended == [["P", "first answer"], ["again", "second!"]]


def test_a_turn_whose_answer_was_late_can_be_asked_again() -> None:
    server = Server(random.Random(0))
    state = opened(server)
    run(server, state.step("answer"))
    exchange = state.next_turn("again")
    server.answer(next(exchange))
    with pytest.raises(errors.DeadlineExceeded):
        exchange.throw(errors.DeadlineExceeded("Late."))
    assert len(state.verdicts) == len("answer")
    run(server, state.next_turn("and again"))
    run(server, state.finish())
    assert server.ended == [["P", "answer"], ["and again", ""]]


def test_half_a_surrogate_pair_belongs_to_the_answer_that_ends_with_it() -> None:
    server = Server(random.Random(0))
    state = opened(server)
    run(server, state.step("a\ud83d"))
    run(server, state.next_turn("again"))
    run(server, state.step("\ude00b"))
    run(server, state.finish())
    assert server.ended == [["P", "a\ufffd"], ["again", "\ufffdb"]]


@pytest.mark.parametrize("prompt", [None, 5, b"x"])
def test_a_turn_that_is_no_text_is_refused(prompt: Any) -> None:
    state = opened(Server(random.Random(0)))
    with pytest.raises(errors.InvalidRequest):
        next(state.next_turn(prompt))


def test_a_stream_that_is_not_open_has_no_next_turn() -> None:
    with pytest.raises(errors.InvalidRequest, match="not open"):
        next(StreamState("P", None, None).next_turn("again"))
