"""The served demo guards against PyTorch and transformers, over gRPC."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from qwen3guard_client import Classification, GuardClient, StepResult, TokenVerdict
from qwen3guard_client.transport.calls import Call
from qwen3guard_contract import errors, wire
from qwen3guard_contract.answer_end import end_ids
from qwen3guard_contract.labels import CATEGORY_ORDER, REFUSAL_ORDER, RISK_ORDER, AnswerStatus, RiskLevel
from qwen3guard_export import export
from qwen3guard_runtime.engine.onnx_runner import OnnxRunner
from qwen3guard_runtime.gen.answer import AnswerReader
from qwen3guard_runtime.gen.guard import Answer, GenGuard, Question
from qwen3guard_runtime.text.tokenizer import IM_END, GuardTokenizer
from support.agreement import agrees
from support.export_oracle import Oracle
from support.later import transformers
from support.lengths import times
from support.places import DEMO
from support.texts import TEXTS


@pytest.fixture(scope="module")
def gen_oracle() -> Oracle:
    return Oracle(DEMO / "gen")


@pytest.fixture(scope="module")
def stream_oracle() -> Oracle:
    return Oracle(DEMO / "stream")


def conversations(count: int) -> list[list[dict[str, str]]]:
    """One to five turns each, in more than ten languages, the last by the user or the assistant."""
    source = random.Random(11)
    plain = [text for text in TEXTS if "<|" not in text]
    found = []
    for _ in range(count):
        turns = [{"role": "system", "content": source.choice(plain)}] if source.random() < 0.1 else []
        for number in range(source.randint(1, 5)):
            turns.append({"role": ("user", "assistant")[number % 2], "content": source.choice(plain)})
        found.append(turns)
    return found


def raw_answer(guard: GuardClient, ids: list[int]) -> tuple[str, list[int], list[float]]:
    """gen_guard past its tokenizer: text, greedy ids and their log-probabilities, readable as a verdict or not."""
    outputs = (wire.ANSWER, wire.ANSWER_IDS, wire.ANSWER_LOGPROBS)
    values = {wire.INPUT_IDS: ids, wire.RESPONSE_MODE: [False]}
    answer, found, logprobs = guard.send(
        Call(wire.GEN_GUARD, values, outputs, lambda reply: [reply(output) for output in outputs])
    )
    return answer[0].decode(), found.tolist(), logprobs.tolist()


Generated = list[tuple[list[dict[str, str]], list[int], list[int]]]


@pytest.fixture(scope="module")
def generated(gen_oracle: Oracle) -> Generated:
    """Conversations: messages, their ids, and what transformers' greedy `generate` appends to them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "gen")
    rendered = [(messages, tokenizer.apply_chat_template(messages)) for messages in conversations(times(80, 200))]
    return [(messages, ids, gen_oracle.generate(ids, 64)) for messages, ids in rendered]


def test_classify_writes_what_transformers_generates(guard: GuardClient, generated: Generated) -> None:
    """Eight at a time through the server; one at a time through `generate`.

    The demo guard loses the form of the answer on some languages that it never saw; those answers are compared too.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "gen")

    def ask(messages: list[dict[str, str]]) -> str | None:
        try:
            return guard.classify(messages=messages).answer
        except errors.UnreadableAnswer:
            return None

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [messages for messages, _, _ in generated]))
    for (_, ids, expected), answer in zip(generated, answers, strict=True):
        if answer is None:
            assert raw_answer(guard, ids)[1] == expected
        else:
            assert answer == tokenizer.decode(expected, skip_special_tokens=True)
    assert sum(answer is not None for answer in answers) > 0.75 * len(answers)


def test_dq8r_mostly_writes_the_same(generated: Generated, tmp_path: Path) -> None:
    """8 bits round, so an answer that was close may turn; alone and in a batch it is the same to the bit."""
    manifest = export(str(DEMO / "gen"), tmp_path, weights="dq8r", say=lambda _: None)
    folder = tmp_path / "gen_guard" / "1"
    tokenizer = GuardTokenizer.load(folder)
    runner = OnnxRunner(folder, manifest, AnswerReader(tokenizer).candidates)
    gen = GenGuard(manifest, runner, tokenizer, end_ids(folder, tokenizer.special[IM_END]), slots=8)
    questions = [Question(np.array(ids, np.int64), False) for _, ids, _ in generated]
    together = [answer for at in range(0, len(questions), 8) for answer in gen.answer(questions[at : at + 8])]
    same = 0
    for number, ((_, _, expected), answer) in enumerate(zip(generated, together, strict=True)):
        assert isinstance(answer, Answer)
        same += answer.ids == expected
        if number < 40:
            [alone] = gen.answer([questions[number]])
            assert isinstance(alone, Answer)
            assert (alone.ids, alone.logprobs) == (answer.ids, answer.logprobs)
    print(f"\ndq8r writes the same answer as transformers on {same} of {len(questions)} conversations (demo Gen)")
    assert same > 0.75 * len(questions)


def test_probabilities_are_a_softmax_at_each_decision(guard: GuardClient, gen_oracle: Oracle) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "gen")
    for messages in conversations(12):
        try:
            found = guard.classify(messages=messages)
        except errors.UnreadableAnswer:
            continue
        if found.answer_status is not AnswerStatus.COMPLETE:
            continue
        head = tokenizer.apply_chat_template(messages, tokenize=False)
        fields: list[tuple[str, list[str], Iterable[float]]] = [
            ("Safety:", [level.value for level in RISK_ORDER], found.severity_probabilities.values())
        ]
        names = [category.value if category else "None" for category in CATEGORY_ORDER]
        fields.append(("Categories:", names, found.category_probabilities.values()))
        if found.refusal:
            fields.append(("Refusal:", [each.value for each in REFUSAL_ORDER], found.refusal_probabilities.values()))
        for label, values, probabilities in fields:
            before = tokenizer.encode(head + found.answer.partition(label)[0] + label)
            first = [tokenizer.encode(f"{label} {value}")[len(tokenizer.encode(label))] for value in values]
            logits = gen_oracle.logits(np.array(before))["logits"][-1][first].astype(np.float64)
            expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            np.testing.assert_allclose(list(probabilities), expected, atol=1e-4)


def test_a_batch_answers_as_each_alone(guard: GuardClient) -> None:
    asked = conversations(40)

    def ask(messages: list[dict[str, str]]) -> Classification | None:
        try:
            return guard.classify(messages=messages)
        except errors.UnreadableAnswer:
            return None

    alone = [ask(messages) for messages in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, asked))
    for one, other in zip(alone, together, strict=True):
        assert (one and one.answer) == (other and other.answer)


def test_a_stream_judges_every_token_as_the_oracle(guard: GuardClient, stream_oracle: Oracle) -> None:
    """Token by token, in random chunks, at once, and replayed by one START: each equals one pass of PyTorch."""
    tokenizer = GuardTokenizer.load(DEMO / "stream")
    oracle_tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "stream")
    source = random.Random(5)
    for text in TEXTS[:8]:
        prompt = [{"role": "user", "content": source.choice(TEXTS[:8])}]
        head = oracle_tokenizer.apply_chat_template(prompt, add_generation_prompt=True, enable_thinking=False)
        ids = tokenizer.encode(text)
        expected = stream_oracle.logits(np.array([*head, *ids]))
        query = len(head) - 1 - head[::-1].index(tokenizer.special[IM_END])
        for longest in (1, 5, len(ids)):
            session = str(uuid.uuid4())
            opening = guard.stream_step(session, messages=prompt, start=True)
            assert opening.length == len(head)
            verdict = opening.prompt_verdict
            assert verdict is not None
            agrees([verdict.severity_probabilities], expected["query_risk_logits"][[query]])
            agrees([verdict.category_probabilities], expected["query_category_logits"][[query]])
            tokens: list[TokenVerdict] = []
            at = 0
            while at < len(ids):
                chunk = ids[at : at + source.randint(1, longest)]
                tokens += guard.stream_step(session, token_ids=chunk, position=len(head) + at).tokens
                at += len(chunk)
            check(tokens, expected, len(head))
            guard.stream_step(session, position=len(head) + at, end=True)
        replayed = guard.stream_step(str(uuid.uuid4()), messages=prompt, text=text, start=True, end=True)
        assert replayed.prompt_verdict is not None
        agrees([replayed.prompt_verdict.severity_probabilities], expected["query_risk_logits"][[query]])
        check(list(replayed.tokens), expected, len(head))


def test_every_turn_of_a_conversation_in_one_session_is_judged_as_the_oracle(
    guard: GuardClient, stream_oracle: Oracle
) -> None:
    """One pass of PyTorch over the tokens as Qwen's own tokenizer writes them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "stream")
    source = random.Random(9)
    plain = [text for text in TEXTS if "<|" not in text]
    for _ in range(4):
        turns = [(source.choice(plain).strip(), source.choice(plain)) for _ in range(4)]
        opening = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        for number, (prompt, response) in enumerate(turns):
            ids += tokenizer.encode(("<|im_end|>\n" if number else "") + opening.format(prompt))
            query = len(ids) - 1 - ids[::-1].index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
            places.append((query, len(ids)))
            ids += tokenizer.encode(response)
        expected = stream_oracle.logits(np.array(ids))
        with guard.stream(turns[0][0]) as stream:
            for number, ((prompt, response), (query, start)) in enumerate(zip(turns, places, strict=True)):
                verdict = stream.next_turn(prompt) if number else stream.prompt_verdict
                agrees([verdict.severity_probabilities], expected["query_risk_logits"][[query]])
                agrees([verdict.category_probabilities], expected["query_category_logits"][[query]])
                half = source.randint(1, len(response) - 1)
                for piece in (response[:half], response[half:]):
                    stream.step(piece)
                check(list(stream.verdicts), expected, start)


def check(tokens: list[TokenVerdict], expected: dict[str, np.ndarray], start: int) -> None:
    rows = slice(start, start + len(tokens))
    agrees([token.severity_probabilities for token in tokens], expected["risk_logits"][rows])
    agrees([token.category_probabilities for token in tokens], expected["category_logits"][rows])
    levels = [RISK_ORDER[index] for index in expected["risk_logits"][rows].argmax(axis=1)]
    assert [token.severity for token in tokens] == levels
    for mode, flags in ((True, [token.strict for token in tokens]), (False, [token.loose for token in tokens])):
        unsafe = [level.is_unsafe(strict=mode) for level in levels]
        assert flags == [now and before for before, now in zip([False, *unsafe], unsafe, strict=False)]
    assert [token.position for token in tokens] == list(range(start, start + len(tokens)))
    assert all((token.category is None) == (token.severity is RiskLevel.SAFE) for token in tokens)


def test_sixteen_sessions_at_once_each_equal_their_own_pass(guard: GuardClient, stream_oracle: Oracle) -> None:
    """Different prompts, chunk lengths and rewinds, interleaved, so that ragged batches form on the server."""
    tokenizer = GuardTokenizer.load(DEMO / "stream")
    oracle_tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "stream")

    def moderate(number: int) -> tuple[list[int], int, list[StepResult]]:
        source = random.Random(number)
        prompt = [{"role": "user", "content": TEXTS[number]}]
        head = oracle_tokenizer.apply_chat_template(prompt, add_generation_prompt=True, enable_thinking=False)
        ids = tokenizer.encode(TEXTS[-1 - number] * 2)
        session = str(uuid.uuid4())
        with GuardClient(guard.url) as mine:
            mine.stream_step(session, messages=prompt, start=True)
            results: list[StepResult] = []
            at = 0
            while at < len(ids):
                if at and source.random() < 0.2:
                    at = source.randrange(at)
                chunk = ids[at : at + source.randint(1, 20)]
                results.append(mine.stream_step(session, token_ids=chunk, position=len(head) + at))
                at += len(chunk)
            mine.stream_step(session, position=len(head) + at, end=True)
        return [*head, *ids], len(head), results

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(moderate, range(len(TEXTS) - 4)))
    for ids, _, results in found:
        expected = stream_oracle.logits(np.array(ids))
        for result in results:
            start = result.length - len(result.tokens)
            rows = slice(start, result.length)
            agrees([token.severity_probabilities for token in result.tokens], expected["risk_logits"][rows])
    statistics = guard._connection.get_inference_statistics("stream_guard", as_json=True)["model_stats"][0]
    assert int(statistics["inference_count"]) > int(statistics["execution_count"])


def test_text_in_pieces_gives_the_verdicts_of_the_whole(guard: GuardClient) -> None:
    for text in TEXTS:
        source = random.Random(text)
        with guard.stream("How do I bake bread?") as whole:
            whole.step(text)
        with guard.stream("How do I bake bread?") as pieces:
            rest = text
            while rest:
                size = source.randint(1, 20)
                pieces.step(rest[:size])
                rest = rest[size:]
        assert [token.position for token in whole.verdicts] == [token.position for token in pieces.verdicts]
        for one, other in zip(whole.verdicts, pieces.verdicts, strict=True):
            assert list(one.severity_probabilities.values()) == pytest.approx(
                list(other.severity_probabilities.values()), abs=1e-4
            )


def test_the_guards_own_answer_tells_its_ids(guard: GuardClient) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "gen")
    answer, ids, logprobs = raw_answer(guard, tokenizer.apply_chat_template([{"role": "user", "content": "Hi."}]))
    assert tokenizer.decode(ids, skip_special_tokens=True) == answer
    assert len(ids) == len(logprobs)
    assert max(logprobs) <= 0
