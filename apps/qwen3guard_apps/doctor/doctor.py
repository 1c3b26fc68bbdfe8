"""`qwen3guard doctor` examines an installation, a model repository or a running server, and gives findings with advice.

A check that fails itself is a finding too, so an examination does not raise.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import BadStatusLine, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qwen3guard_client.client import GuardClient
from qwen3guard_client.transport.address import URL_VARIABLE, is_local, read_address
from qwen3guard_client.transport.connection import Tls, connect, read_token
from qwen3guard_client.transport.failures import error_of
from qwen3guard_contract.errors import Overloaded, ServeError
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.wire import CLASSIFY, STREAM_STEP
from qwen3guard_server import canary, installation

from qwen3guard_apps import client_options
from qwen3guard_apps.argument_types import accepted
from qwen3guard_apps.doctor.findings import Finding, State, run_checks

CHECK_TIMEOUT_S = 30.0
SLOW_S = 5.0
"""A canary that takes longer is a warning."""
METRIC = "qwen3guard_load_timestamp_seconds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-repository", type=Path, metavar="DIR", help="check what was exported there too")
    parser.add_argument(
        "--url",
        type=accepted(read_address),
        metavar="HOST:PORT",
        help="check this server, and without --model-repository nothing else; without --url, the server that"
        f" ${URL_VARIABLE} names is checked too (default: none)",
    )
    parser.add_argument(
        "--gpu", action="store_true", help="run a tiny graph on the GPU, and say what is missing (default: only look)"
    )
    parser.add_argument("--metrics", metavar="HOST:PORT", help="check the server's metrics there too")
    client_options.add_access_arguments(parser, json="print each finding as one line of JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints every finding. Raises ServeError where a check failed."""
    token = read_token(arguments.token_file)
    named = arguments.url or None
    arguments.url = named or client_options.url_of_environment()
    tls = client_options.tls(arguments)
    examination = Examination(
        arguments.model_repository, arguments.url, arguments.metrics, tls, token, not named, arguments.gpu
    )
    failed = show_findings(
        examination.findings(),
        lambda finding: print(json.dumps(finding.as_dict()) if arguments.json else finding.as_line(), flush=True),
    )
    if failed:
        raise ServeError(f"{failed} of the checks failed.")


@dataclass(frozen=True)
class Examination:
    """What is examined: this installation with a `model_repository`, the server at `url`, the metrics at `metrics_url`.

    With a `url` and no `model_repository`, the installation is not examined, for the server may be on another machine,
    unless `installed` is True: then GUARD_URL named the server.
    """

    model_repository: Path | None = None
    url: str | None = None
    metrics_url: str | None = None
    tls: Tls | None = None
    token: str | None = None
    installed: bool = False
    try_gpu: bool = False
    """Whether the GPU is used, and not only looked for."""

    def findings(self) -> Iterator[Finding]:
        if self.model_repository or not self.url or self.installed:
            yield from self._installation()
        if self.url and self.installed:
            yield Finding("url", "ok", f"The variable {URL_VARIABLE} names the server {self.url}.")
        if self.url:
            yield from self._server()
        if self.metrics_url:
            yield from run_checks({"metrics": lambda: metrics(str(self.metrics_url))})

    def _installation(self) -> Iterator[Finding]:
        try:
            from qwen3guard_apps.doctor import export_checks, machine_checks
        except ImportError as missing:
            yield Finding("installation", "failed", str(installation.not_installed(str(missing.name))))
            return
        yield from run_checks(machine_checks.machine_checks(None if self.url else 8001, try_gpu=self.try_gpu))
        if self.model_repository:
            yield from run_checks(export_checks.repository_checks(self.model_repository))

    def _server(self) -> Iterator[Finding]:
        url = str(self.url)
        reached = list(run_checks({"server": lambda: self._reached(url)}))
        yield from reached
        if all(finding.state == "ok" for finding in reached):
            yield from run_checks({name: lambda name=name: self._answers(url, name) for name in self._expected()})  # type: ignore[misc]

    def _reached(self, url: str) -> Iterator[Finding]:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        connection = connect(InferenceServerClient, url, self.tls, self.token)
        try:
            if not connection.is_server_live(client_timeout=CHECK_TIMEOUT_S):
                yield Finding("server", "failed", f"{url} says that it is not live: look into the server's log.")
                return
            metadata = connection.get_server_metadata(client_timeout=CHECK_TIMEOUT_S)
            served = ", ".join(self._versions(connection)) or "none of our models"
            yield Finding("server", "ok", f"{url} is Triton {metadata.version} with {served}.")
        except InferenceServerException as error:
            reason = error_of(error, token=self.token, url=url)
            advice = "see that qwen3guard serve runs there, and the port, TLS and token"
            yield Finding("server", "failed", f"{url} does not answer ({str(reason).rstrip('.')}): {advice}.")
        finally:
            connection.close()

    def _versions(self, connection: Any) -> Iterator[str]:
        for ensemble in self._expected():
            if connection.is_model_ready(ensemble, client_timeout=CHECK_TIMEOUT_S):
                metadata = connection.get_model_metadata(ensemble, client_timeout=CHECK_TIMEOUT_S)
                yield f"{ensemble} {', '.join(metadata.versions)}"

    def _expected(self) -> dict[str, Manifest | None]:
        """The ensembles to look for, each with its guard's manifest, or with None where that cannot be read."""
        manifests = _manifests(self.model_repository) if self.model_repository else {}
        return dict(manifests) or dict.fromkeys((CLASSIFY.name, STREAM_STEP.name))

    def _answers(self, url: str, ensemble: str) -> Iterator[Finding]:
        manifest = self._expected()[ensemble]
        with GuardClient(
            url, timeout_s=CHECK_TIMEOUT_S, wait_for_server=False, tls=self.tls, token=self.token
        ) as guard:
            if not guard.is_ready(ensemble):
                state: State = "failed" if manifest else "warning"
                yield Finding(ensemble, state, "It is not served: export its guard into the repository and restart.")
                return
            if manifest is None:
                yield Finding(ensemble, "ok", "It is ready; --model-repository would let its canary be compared.")
                return
            began = time.monotonic()
            try:
                canary.check(guard, {ensemble: manifest}, CHECK_TIMEOUT_S)
            except Overloaded:
                yield Finding(ensemble, "warning", "It is too full to answer its canary: ask again, or add replicas.")
                return
            seconds = time.monotonic() - began
        sentence = f"Its canary is right, in {1000 * seconds:.0f} ms"
        if seconds > SLOW_S:
            yield Finding(ensemble, "warning", f"{sentence}: the machine is overloaded, or has too few cores.")
        else:
            yield Finding(ensemble, "ok", f"{sentence}.")


def _manifests(model_repository: Path) -> Mapping[str, Manifest]:
    from qwen3guard_contract.layout import exported

    try:
        return exported(model_repository)
    except Exception:  # the checks of the repository report what is wrong
        return {}


def metrics(url: str) -> Iterator[Finding]:
    """Looks for the guards' metrics at `url`, an address or host:port."""
    url = url if "//" in url else f"http://{url}/metrics"
    try:
        with _opener(url).open(url, timeout=CHECK_TIMEOUT_S) as reply:
            text = reply.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        yield Finding(
            "metrics", "failed", f"{url} answers with HTTP {error.code}: see that it is the metrics' address."
        )
        return
    except (OSError, HTTPException) as error:
        proxy = "" if _is_local(url) or "http" not in urllib.request.getproxies() else "; it is behind http_proxy"
        reason = f"{_plain_reason(error)}{proxy}"
        yield Finding("metrics", "failed", f"{url} does not answer ({reason}): serve with --metrics-port.")
        return
    metrics = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line.startswith("qwen3guard_")}
    if METRIC in metrics:
        yield Finding("metrics", "ok", f"{url} has {len(metrics)} metrics of the guards.")
        yield from _fallen_back(text)
    else:
        advice = "it is another server's, or its guards do not run this version"
        yield Finding("metrics", "failed", f"{url} has no metric {METRIC}: {advice}.")


def _fallen_back(text: str) -> Iterator[Finding]:
    """Guards that were made for a GPU and run on the CPU."""
    for labels in re.findall(r"^qwen3guard_device{(.*)} 1", text, re.MULTILINE):
        told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if told["device"] == "cpu" != told["made_for"]:
            sentence = f"{told['model']} was made for {told['made_for']} and runs on the CPU"
            advice = "set its parameter device, and it does not start without a GPU"
            yield Finding("device", "warning", f"{sentence}: {advice}.")


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Opens addresses of this machine without the proxy that http_proxy names: it could not reach them."""
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if _is_local(url) else []))


def _is_local(url: str) -> bool:
    return is_local(urlsplit(url).netloc)


def _plain_reason(error: OSError | HTTPException) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    return "it does not speak HTTP" if isinstance(cause, BadStatusLine) else str(cause)


def show_findings(findings: Iterable[Finding], show: Callable[[Finding], Any]) -> int:
    """Shows each finding; returns how many checks failed."""
    failed = 0
    for finding in findings:
        show(finding)
        failed += finding.state == "failed"
    return failed
