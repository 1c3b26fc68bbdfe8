"""The command `qwen3guard`: export, serve, classify, stream.

Results go to standard output, one sentence to standard error where something fails; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import codecs
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3guard_client.client import GuardClient
from qwen3guard_client.stream.stream import Stream
from qwen3guard_client.transport.connection import read_token
from qwen3guard_contract.errors import (
    GuardError,
    InvalidCredentials,
    InvalidEncoding,
    InvalidMessages,
    InvalidRequest,
    ServeError,
)
from qwen3guard_contract.labels import Category
from qwen3guard_contract.manifest import Manifest
from qwen3guard_contract.policy import Policy
from qwen3guard_contract.thresholds import Thresholds
from qwen3guard_contract.verdict import StepResult
from qwen3guard_server import installation

from qwen3guard_apps import client_options
from qwen3guard_apps.cli.terminal import Terminal

if TYPE_CHECKING:
    from qwen3guard_apps.cli.perf_analyzer import Figures


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def export(arguments: argparse.Namespace) -> None:
    try:
        from qwen3guard_export import export as export_checkpoint
        from qwen3guard_export.proof.optimum import export_with_optimum
        from qwen3guard_export.repository import place_models
    except ImportError as missing:
        raise ServeError(f"{missing.name} is not installed: pip install 'qwen3guard-triton[export]'.") from None
    if arguments.via == "optimum":
        export_with_optimum(arguments.checkpoint, arguments.output, say=say)
        return
    manifest = export_checkpoint(
        arguments.checkpoint,
        arguments.output,
        weights=arguments.weights or ("fp16" if arguments.tensorrt else "fp32"),
        attention=arguments.attention,
        tensorrt=arguments.tensorrt,
        slot_tokens=arguments.slot_tokens,
        say=say,
    )
    place_models(arguments.output, manifest)
    if manifest.notice:
        say(f"note: {manifest.notice}")


def serve(arguments: argparse.Namespace) -> None:
    try:
        from qwen3guard_runtime.telemetry import logs
        from qwen3guard_server import supervisor
        from qwen3guard_server.server import EmbeddedServer, stopping_on_signals
        from qwen3guard_server.server_tls import ServerTls
        from qwen3guard_server.settings import ServerSettings
    except ImportError as missing:
        raise installation.not_installed(str(missing.name)) from None
    from qwen3guard_server import canary

    installation.wheel()  # before a repository is asked for

    tls = None
    if arguments.tls_cert and arguments.tls_key:
        own = arguments.tls_own_cert, arguments.tls_own_key
        tls = ServerTls(arguments.tls_cert, arguments.tls_key, arguments.tls_client_ca, *own)
    elif arguments.tls_cert or arguments.tls_key or arguments.tls_client_ca:
        raise InvalidCredentials("A server that speaks TLS needs both --tls-cert and --tls-key.")
    as_json = arguments.log_format == "json"
    if as_json:
        os.environ[logs.LOG_VARIABLE] = "json"  # for the models' processes

    def tell(text: str) -> None:
        say(logs.line("info", "supervisor", message=text) if as_json else text)

    settings = ServerSettings(
        arguments.model_repository,
        grpc_port=arguments.grpc_port,
        http_port=arguments.http_port,
        metrics_port=arguments.metrics_port,
        address=arguments.address,
        tls=tls,
        token=read_token(arguments.token_file),
        allow_remote=arguments.allow_remote,
    )
    if not (settings.is_loopback() or settings.token or arguments.tls_client_ca):
        say(f"warning: whoever reaches {settings.address} may use the guard; --token-file or --tls-client-ca keeps it")
    with stopping_on_signals():
        try:
            with (
                EmbeddedServer(settings) as server,
                GuardClient(server.url, wait_for_server=False, tls=server.tls, token=settings.token) as client,
            ):
                tell(f"loading {', '.join(server.manifests)} from {settings.model_repository} ...")
                try:
                    supervisor.supervise(
                        server,
                        lambda timeout_s: canary.check(client, server.manifests, timeout_s),
                        ready=lambda: _say_ready(server.url, server.manifests.values(), server.warnings, tell),
                        say=tell,
                        relay=say,
                    )
                finally:
                    if arguments.debug:
                        say(server.log)
        except KeyboardInterrupt:
            tell("stopped")


def _say_ready(url: str, manifests: Iterable[Manifest], warnings: Iterable[str], say: Callable[[str], None]) -> None:
    for warning in warnings:
        say(f"warning: {warning}")
    for manifest in manifests:
        notice = f"; {manifest.notice}" if manifest.notice else ""
        say(f"{manifest.variant}: {manifest.source}, {manifest.weights}{notice}")
    print(f"ready on {url}", flush=True)


def classify(arguments: argparse.Namespace) -> None:
    messages = None if arguments.messages is None else _text_or_file(arguments.messages)
    with client_options.client(arguments) as guard:
        found = guard.classify(arguments.prompt, arguments.response, messages=messages)
    if arguments.json:
        print(found.as_json())
    else:
        Terminal().classification(found)


def _text_or_file(value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidEncoding(f"{value[1:]} is not valid UTF-8.") from None
    except OSError as error:
        raise InvalidMessages(f"{value[1:]} cannot be read: {error.strerror}.") from None


def stream(arguments: argparse.Namespace) -> None:
    with (
        client_options.client(arguments) as guard,
        guard.stream(arguments.prompt, policy=_policy(arguments)) as moderated,
    ):
        if arguments.json:
            verdict = {"prompt": moderated.prompt_verdict.as_dict()}
            print(json.dumps(verdict | ({"notice": moderated.notice} if moderated.notice else {})), flush=True)
            for piece in pieces(sys.stdin.fileno()):
                print(moderated.step(piece).as_json(), flush=True)
            print(moderated.finish().as_json(), flush=True)
        else:
            show_stream(moderated, pieces(sys.stdin.fileno()), Terminal())


def perf(arguments: argparse.Namespace) -> None:
    from qwen3guard_apps.cli.perf_analyzer import CONVERSATIONS, Analyzer, Load

    loads = [Load(rate=rate) for rate in arguments.rate or ()] or [Load(count) for count in arguments.concurrency]
    analyzer = Analyzer(tls=client_options.tls(arguments), token=read_token(arguments.token_file))
    for load in loads:
        if arguments.work != "stream":
            found = analyzer.classify(arguments.url, load, arguments.seconds, CONVERSATIONS)
            _show_figures(found, as_json=arguments.json)
        if arguments.work != "classify":
            found = analyzer.stream_step(arguments.url, load, arguments.seconds, arguments.tokens)
            _show_figures(found, as_json=arguments.json)


def _show_figures(figures: Iterable[Figures], *, as_json: bool) -> None:
    for each in figures:
        print(json.dumps(asdict(each)) if as_json else each.as_line(), flush=True)


def doctor(arguments: argparse.Namespace) -> None:
    from qwen3guard_apps.doctor.doctor import Patient, show_findings

    token = read_token(arguments.token_file)
    patient = Patient(
        arguments.model_repository, arguments.url, arguments.metrics, client_options.tls(arguments), token
    )
    failed = show_findings(
        patient.findings(),
        lambda finding: print(json.dumps(finding.as_dict()) if arguments.json else finding.as_line(), flush=True),
    )
    if failed:
        raise ServeError(f"{failed} of the checks failed.")


def _policy(arguments: argparse.Namespace) -> Policy | None:
    """None, which leaves it to the server, where the command says nothing of it."""
    given = {
        "strict": None if arguments.mode is None else arguments.mode == "strict",
        "debounce": arguments.debounce,
        "blocked": arguments.block and frozenset(map(Category, arguments.block)),
        "thresholds": arguments.thresholds and Thresholds.read(arguments.thresholds),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    return Policy(**chosen) if chosen else None


def show_stream(stream: Stream, pieces: Iterator[str], terminal: Terminal) -> StepResult:
    """Streams `pieces` through the guard and shows each in the colour of its verdict."""
    terminal.prompt_verdict(stream.prompt_verdict)
    terminal.notice(stream.notice)
    terminal.line()
    print("  ", end="", file=terminal.out, flush=True)
    for piece in pieces:
        terminal.piece(piece, stream.step(piece).tokens)
    last = stream.finish()
    terminal.line()
    terminal.line()
    first = stream.verdicts[0].position if stream.verdicts else 0
    modes = {"strict": True, "loose": False, "session": None}
    terminal.flagged({name: stream.flagged(strict=mode) for name, mode in modes.items()}, first)
    return last


def pieces(descriptor: int) -> Iterator[str]:
    """Text as it arrives on `descriptor`, never cut inside a character. Raises InvalidEncoding."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    while data := os.read(descriptor, 4096):
        if piece := _decoded(decoder, data, final=False):
            yield piece
    _decoded(decoder, b"", final=True)


def _decoded(decoder: codecs.IncrementalDecoder, data: bytes, *, final: bool) -> str:
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError:
        raise InvalidEncoding("Standard input is not valid UTF-8.") from None


class _Version(argparse.Action):
    """Reads the installed package's version only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"qwen3guard {importlib.metadata.version('qwen3guard-triton')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(prog="qwen3guard", description="Serve and use the Qwen3Guard safety models.")
    command.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    command.add_argument("--debug", action="store_true", help="show tracebacks and the server's log")
    verbs = command.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        added.set_defaults(run=run)
        return added

    add = verb("export", export, "Turn a checkpoint into a model repository.")
    add.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a hub id such as Qwen/Qwen3Guard-Gen-0.6B")
    add.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model repository to fill")
    add.add_argument(
        "--weights",
        choices=("fp32", "dq8r", "fp16", "bf16"),
        help="fp32 is exact, dq8r fast on CPUs, fp16 and bf16 are for GPUs (default: fp32, with --tensorrt fp16)",
    )
    add.add_argument(
        "--attention",
        choices=("decomposed", "int8", "portable", "gqa"),
        help="how keys and values are kept and read: int8 takes a quarter of the memory, portable is standard ONNX,"
        " gqa is for ONNX Runtime on CUDA (default: int8 for Stream in dq8r, portable in fp16 and bf16,"
        " else decomposed)",
    )
    add.add_argument("--tensorrt", action="store_true", help="build a TensorRT engine too, of fp16 or bf16")
    add.add_argument(
        "--slot-tokens",
        type=_positive(int),
        default=2048,
        metavar="N",
        help="tokens that a slot of the engine holds (default: 2048)",
    )
    add.add_argument("--via", choices=("optimum",), help="Gen only: Optimum's own exporter, into a plain folder")

    _serving(verb("serve", serve, "Run the embedded Triton server until Ctrl-C."))

    add = verb("classify", classify, "Judge the last turn of a conversation.")
    client_options.add_client_arguments(add)
    judged = add.add_mutually_exclusive_group(required=True)
    judged.add_argument("--prompt", metavar="T")
    judged.add_argument("--messages", metavar="JSON|@FILE", help="messages in OpenAI's form")
    add.add_argument("--response", metavar="T", help="judge this response to the prompt")

    add = verb("stream", stream, "Moderate the response that arrives on standard input.")
    client_options.add_client_arguments(add)
    add.add_argument("--prompt", metavar="T", required=True)
    decision = add.add_mutually_exclusive_group()
    decision.add_argument(
        "--mode",
        choices=("strict", "loose"),
        help="whether Controversial counts as unsafe; with any of these four, the others are strict, 2 and all",
    )
    decision.add_argument("--thresholds", type=Path, metavar="FILE", help="decide by these, from evaluate --choose")
    add.add_argument("--debounce", type=int, metavar="N", help="unsafe tokens in a row before a token is flagged")
    categories = [category.value for category in Category]
    add.add_argument("--block", action="append", choices=categories, metavar="CATEGORY", help="count these alone")

    add = verb("perf", perf, "Load a running server with perf_analyzer.")
    client_options.add_client_arguments(add)
    add.add_argument("--work", choices=("classify", "stream", "both"), default="both")
    load = add.add_mutually_exclusive_group()
    load.add_argument("--concurrency", type=_positive(int), nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    load.add_argument(
        "--rate", type=_positive(float), nargs="+", metavar="R", help="requests a second at random instead"
    )
    add.add_argument(
        "--seconds", type=_positive(float), default=5.0, metavar="S", help="a measurement's length (default: 5)"
    )
    add.add_argument(
        "--tokens", type=_positive(int), default=64, metavar="N", help="steps in each stream (default: 64)"
    )

    _add_others(verb)
    return command


def _serving(add: argparse.ArgumentParser) -> None:
    add.add_argument("--model-repository", type=Path, default=Path("model_repository"), metavar="DIR")
    add.add_argument("--grpc-port", type=_port, default=8001, metavar="N")
    add.add_argument("--http-port", type=_port, default=0, metavar="N", help="default: no HTTP")
    add.add_argument("--metrics-port", type=_port, default=0, metavar="N", help="default: no metrics")
    add.add_argument("--address", default="127.0.0.1", help="of gRPC; HTTP and metrics stay there (default: 127.0.0.1)")
    add.add_argument("--allow-remote", action="store_true", help="let --address name another interface; needs TLS too")
    add.add_argument("--tls-cert", type=Path, metavar="FILE", help="the server's certificate (PEM); gRPC speaks TLS")
    add.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    add.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="answer only clients that these have signed")
    add.add_argument("--tls-own-cert", type=Path, metavar="FILE", help="the supervisor's own, signed by these too")
    add.add_argument("--tls-own-key", type=Path, metavar="FILE", help="its key")
    client_options.token(add)
    add.add_argument("--log-format", choices=("text", "json"), default="text", help="json: failed requests too")


def _add_others(verb: Callable[..., argparse.ArgumentParser]) -> None:
    from qwen3guard_apps import playground, proxy
    from qwen3guard_apps.annotation import annotate
    from qwen3guard_apps.evaluation import evaluate

    playground.add_arguments(verb("playground", playground.run, "Show a guard at work, in one local page."))
    annotate.add_arguments(verb("annotate", annotate.run, "Put the guard's verdict beside every row of a file."))
    evaluate.add_arguments(verb("evaluate", evaluate.run, "Measure the guards on labelled rows."))
    proxy.add_arguments(verb("proxy", proxy.run, "Guard an LLM: OpenAI's API in front, and behind. Until Ctrl-C."))
    _examined(verb("doctor", doctor, "Check this installation, a model repository and a running server."))


def _examined(add: argparse.ArgumentParser) -> None:
    add.add_argument("--model-repository", type=Path, metavar="DIR", help="check what was exported there too")
    add.add_argument("--url", metavar="HOST:PORT", help="check this server; alone, not what is installed here")
    add.add_argument("--metrics", metavar="HOST:PORT", help="check its metrics endpoint")
    client_options.add_access_arguments(add)


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return number


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{port} is no port")
    return port


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        if getattr(arguments, "response", None) is not None and arguments.messages is not None:
            raise InvalidRequest("Give either messages or a prompt with its response, not both.")
        arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        known = isinstance(error, GuardError)
        say(f"qwen3guard: {error}" if known else f"qwen3guard: {type(error).__name__}: {error} (--debug shows more)")
        return 1
    return 0
