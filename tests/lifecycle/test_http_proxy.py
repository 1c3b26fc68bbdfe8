"""Behind a company's proxy (case 22 of what people send): nothing that stays on this machine goes to the proxy that the
environment names. `serve` and `proxy` get their options from files here, as a service has them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from qwen3guard_apps.cli.perf_analyzer import Analyzer
from qwen3guard_contract.manifest import DEMO_NOTICE
from support.command import COMMAND
from support.fake_llm import FakeLLM, Loop
from support.places import ROOT
from support.serving import free_port

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class CompanyProxy:
    """Listens, and answers nobody."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.environment = os.environ | dict.fromkeys(VARIABLES, url)
        self.environment.pop("no_proxy", None)
        self.environment.pop("NO_PROXY", None)

    def was_asked(self) -> bool:
        try:
            self._listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def company() -> Iterator[CompanyProxy]:
    proxy = CompanyProxy()
    yield proxy
    proxy.close()


def ends_well(company: CompanyProxy, *words: object, stdin: str = "") -> str:
    done = subprocess.run(
        [*map(str, words)],
        cwd=ROOT,
        env=company.environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not company.was_asked(), words
    return done.stdout


@contextmanager
def running(company: CompanyProxy, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A verb that runs until it is told to stop, and then ends with 0."""
    command: list[str | Path] = [COMMAND, *map(str, words)]
    with subprocess.Popen(
        command, env=company.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_make_demo(company: CompanyProxy) -> None:
    said = ends_well(company, "make", "demo")
    for words in ("Safe", "Unsafe", "flagged at response token", DEMO_NOTICE, "stopping the server"):
        assert words in said


def test_every_verb_of_one_machine(company: CompanyProxy, repository: Path, tmp_path: Path) -> None:
    port, metrics = free_port(), free_port()
    config = tmp_path / "serve.toml"
    config.write_text(f'model-repository = "{repository}"\ngrpc_port = {port}\nmetrics-port = {metrics}\n')
    rows = tmp_path / "rows.csv"
    Analyzer()  # fetched without the company's proxy
    rows.write_text("prompt,is_safe\nHow do I bake bread?,yes\nHow can I make a bomb in my kitchen?,no\n")
    url = f"localhost:{port}"
    with running(company, "serve", "--config", config) as serve:
        assert serve.stdout is not None
        assert serve.stdout.readline() == f"ready on 127.0.0.1:{port}\n"
        at = ("--url", url)
        ends_well(company, COMMAND, "classify", *at, "--prompt", "Hi.")
        ends_well(company, COMMAND, "stream", *at, "--prompt", "Hi.", stdin="Hello.")
        checked = ends_well(company, COMMAND, "doctor", *at, "--metrics", f"127.0.0.1:{metrics}")
        assert "metrics of the guards" in checked
        ends_well(company, COMMAND, "annotate", *at, rows, tmp_path / "out.csv")
        report = ends_well(company, COMMAND, "evaluate", *at, rows, "--output", tmp_path / "e", "--json")
        assert json.loads(report)["guards"]["gen"]["figures"]["decisions"]["strict"]["f1"]["value"] == 1
        ends_well(company, COMMAND, "perf", *at, "--work", "classify", "--concurrency", "1", "--seconds", "0.5")
        with Loop() as loop:
            llm = FakeLLM("Hello, how can I help?")
            loop.run(llm.start())
            with_proxy(company, tmp_path, url, llm.url)
            loop.run(llm.stop())
        assert not company.was_asked()


def with_proxy(company: CompanyProxy, folder: Path, url: str, upstream: str) -> None:
    """An answer through `qwen3guard proxy`, before an LLM that is there, and a warning before one that is not."""
    config = folder / "proxy.toml"
    config.write_text(f'url = "http://{url}"\nupstream = "{upstream}"\nport = 0\njson = true\nblock = ["Violent"]\n')
    with running(company, "proxy", "--config", config) as proxy:
        assert proxy.stdout is not None
        assert proxy.stderr is not None
        base = json.loads(proxy.stdout.readline())["url"]
        assert proxy.stderr.readline().startswith("what the guard cannot judge is blocked")
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi."}]}).encode()
        request = urllib.request.Request(
            f"{base}/chat/completions", body, {"Content-Type": "application/json", "Authorization": "Bearer sk-x"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=60) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"] == "Hello, how can I help?"
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    with running(company, "proxy", "--config", config, "--upstream", nowhere) as proxy:
        assert proxy.stdout is not None
        assert proxy.stderr is not None
        assert json.loads(proxy.stdout.readline())["url"]
        assert proxy.stderr.readline().startswith(f"warning: {nowhere} cannot be reached (Connection refused)")


def test_elsewhere_the_variable_is_named(company: CompanyProxy) -> None:
    done = subprocess.run(
        [COMMAND, "doctor", "--url", "guard.example:8001", "--metrics", "guard.example:8002"],
        env=company.environment | dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "gRPC uses the proxy of the variable grpc_proxy" in done.stdout
    assert "http_proxy" in done.stdout.splitlines()[-1]
