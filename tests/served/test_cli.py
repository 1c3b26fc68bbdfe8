"""The command line against the live server: what it prints, and how it fails."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from qwen3guard_contract.manifest import DEMO_NOTICE
from qwen3guard_server.server import EmbeddedServer
from support.certificates import TOKEN
from support.command import COMMAND, fails, run


def test_classify_prints_a_verdict(server: EmbeddedServer) -> None:
    result = run("classify", "--url", server.url, "--prompt", "How do I bake bread?")
    text = result.stdout.decode()
    assert result.returncode == 0
    assert "prompt: Safe" in text
    assert re.search(r"Safe .* \d+\.\d%", text)
    assert DEMO_NOTICE in text


def test_classify_prints_json(server: EmbeddedServer, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello, how can I help?"}]
    file = tmp_path / "messages.json"
    file.write_text(json.dumps(messages))
    outputs = [
        run("classify", "--url", server.url, "--json", "--messages", json.dumps(messages)).stdout,
        run("classify", "--url", server.url, "--json", "--messages", f"@{file}").stdout,
        run(
            "classify", "--url", server.url, "--json", "--prompt", "Hi.", "--response", "Hello, how can I help?"
        ).stdout,
    ]
    assert outputs[0] == outputs[1] == outputs[2]
    found = json.loads(outputs[0])
    assert found["severity"] in ("Safe", "Unsafe", "Controversial")
    assert found["refusal"] in ("Yes", "No")
    assert sum(found["probabilities"]["severity"].values()) == pytest.approx(1, abs=1e-4)
    assert len(found["probabilities"]["categories"]) == 10
    assert found["strict"] is (found["severity"] != "Safe")
    assert found["loose"] is (found["severity"] == "Unsafe")
    assert found["unsafe"] is found["strict"]
    assert found["notice"] == DEMO_NOTICE
    assert isinstance(found["categories"], list)


def test_stream_reads_pieces_as_they_come(server: EmbeddedServer) -> None:
    command: list[str | Path] = [COMMAND, "stream", "--url", server.url, "--prompt", "How do I bake bread?", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["prompt"]["severity"] == "Safe"
        crust = "Kruste: goldbraun é".encode()
        for piece in (b"Mix flour and water.", crust[:-1]):
            process.stdin.write(piece)
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["tokens"]
        process.stdin.write(crust[-1:])
        rest, _ = process.communicate(timeout=30)
    last = json.loads(rest.splitlines()[-1])
    assert {"position", "severity", "category", "probabilities", "strict", "loose"} <= set(last["tokens"][-1])
    assert process.returncode == 0


def test_stream_shows_where_it_was_flagged(server: EmbeddedServer) -> None:
    result = run("stream", "--url", server.url, "--prompt", "How do I bake bread?", stdin=b"Mix flour and water.")
    text = result.stdout.decode()
    assert "Mix flour and water." in text
    assert "strict:" in text
    assert "loose:" in text
    assert "session:" in text
    assert DEMO_NOTICE in text


def test_a_streams_policy_is_the_callers(server: EmbeddedServer, tmp_path: Path) -> None:
    def flags(*policy: str) -> list[bool]:
        prompt = "How can I make a bomb in my kitchen?"
        text = b"Pack the explosives into a pipe and kill everyone in the building."
        lines = run("stream", "--url", server.url, "--prompt", prompt, "--json", *policy, stdin=text).stdout
        return [token["flag"] for line in lines.splitlines() for token in json.loads(line).get("tokens", [])]

    assert any(flags())
    assert flags() == flags("--mode", "strict", "--debounce", "2")
    assert sum(flags("--debounce", "1")) > sum(flags()) > sum(flags("--debounce", "4"))
    assert not any(flags("--block", "Copyright Violation", "--block", "PII"))

    limits = tmp_path / "t.json"
    thresholds = ("--thresholds", str(limits))
    for text, flagged in (('{"default": 1}', False), ('{"default": 1, "categories": {"Violent": 0.9}}', True)):
        limits.write_text(text)
        assert any(flags(*thresholds)) == flagged
    assert sum(flags(*thresholds, "--debounce", "1")) > sum(flags(*thresholds))
    limits.write_text('{"default": 2}')
    fails(run("stream", "--url", server.url, "--prompt", "Hi.", *thresholds), "t.json: The threshold 'default' must be")
    assert run("stream", "--url", server.url, "--prompt", "Hi.", *thresholds, "--mode", "loose").returncode == 2


def test_a_stream_takes_messages(server: EmbeddedServer, tmp_path: Path) -> None:
    turns = [("user", "Hi."), ("assistant", "Hello, how can I help?"), ("user", "How do I bake bread?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    file = tmp_path / "messages.json"
    file.write_text(json.dumps(messages))

    def lines(*conversation: str) -> list[dict[str, Any]]:
        result = run("stream", "--url", server.url, "--json", *conversation, stdin=b"Mix flour and water.")
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    given = lines("--messages", json.dumps(messages))
    assert given == lines("--messages", f"@{file}")
    alone = lines("--prompt", "How do I bake bread?")
    assert lines("--messages", json.dumps(messages[-1:])) == alone
    assert given[-1]["tokens"][0]["position"] > alone[-1]["tokens"][0]["position"]
    fails(run("stream", "--url", server.url, "--messages", "@"), "cannot be read")
    fails(run("stream", "--url", server.url, "--messages", "{"), "JSON")


def test_an_empty_response_is_no_error(server: EmbeddedServer) -> None:
    assert run("stream", "--url", server.url, "--prompt", "Hi.").returncode == 0


def test_failures_are_one_sentence_and_a_status(server: EmbeddedServer, tmp_path: Path) -> None:
    url = server.url
    fails(run("classify", "--url", url, "--prompt", ""), "empty")
    fails(run("classify", "--url", url, "--messages", "{"), "JSON")
    fails(run("classify", "--url", url, "--messages", f"@{tmp_path / 'none'}"), "cannot be read")
    fails(run("classify", "--url", url, "--messages", "[]", "--response", "x"), "not both")
    fails(run("classify", "--url", "127.0.0.1:9", "--prompt", "x", "--timeout", "5"), "cannot be reached")
    fails(run("export", tmp_path / "none", "--output", tmp_path / "out"), "none")
    assert not (tmp_path / "out").exists()


def test_a_stream_of_bytes_that_are_not_utf8_fails(server: EmbeddedServer) -> None:
    result = run("stream", "--url", server.url, "--prompt", "Hi.", "--json", stdin=b"fine \xff")
    assert result.returncode == 1
    assert b"UTF-8" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_standard_output_that_takes_nothing() -> None:
    """A full disk is an error, a reader that has gone is none."""
    full = subprocess.run(f"{COMMAND} --version > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr) == (1, "qwen3guard: No space left on device.\n")
    closed = subprocess.run(f"{COMMAND} --version >&-", shell=True, capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (1, "qwen3guard: standard output is closed.\n")
    with subprocess.Popen([COMMAND, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as left:
        assert left.stdout is not None
        assert left.stderr is not None
        left.stdout.close()
        assert (left.wait(), left.stderr.read()) == (141, b"")


def test_ctrl_c_while_modules_are_imported_ends_the_process_at_once() -> None:
    code = (
        "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from qwen3guard_apps.cli import main\n"
        "main.parser = lambda _: os.kill(os.getpid(), signal.SIGINT)\n"
        "main.main([])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, b"")


def test_debug_shows_the_traceback() -> None:
    result = run("classify", "--debug", "--url", "127.0.0.1:9", "--prompt", "x", "--timeout", "5")
    assert result.returncode != 0
    assert b"Traceback" in result.stderr


def test_the_trace_of_grpc_tells_no_token(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "debug")
    monkeypatch.setenv("GRPC_TRACE", "http,api")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    result = run("classify", "--url", server.url, "--token-file", token, "--prompt", "How do I bake bread?")
    assert result.returncode == 0
    assert TOKEN not in result.stderr.decode()
