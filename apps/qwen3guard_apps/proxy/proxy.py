"""`qwen3guard proxy`: the APIs of OpenAI and Anthropic, guarded. An application changes its base URL and nothing else.

This module knows the command line; server.py answers HTTP, whole.py and streamed.py guard one answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from qwen3guard_client import AsyncGuardClient, Category, Policy, Thresholds
from qwen3guard_client.moderation.cascade import Confirm
from qwen3guard_client.moderation.gate import Release
from qwen3guard_client.transport.connection import read_token
from qwen3guard_contract import wire
from qwen3guard_contract.errors import InvalidParameter, ServeError
from qwen3guard_contract.extras import how_to_install

from qwen3guard_apps import client_options
from qwen3guard_apps.app_output import AppOutput, add_log_argument
from qwen3guard_apps.argument_types import debounce, not_empty, port, positive
from qwen3guard_apps.config_file import add_config_argument
from qwen3guard_apps.http_server.hosts import is_loopback
from qwen3guard_apps.http_server.open_files import within_open_files
from qwen3guard_apps.proxy.settings import OnFlaggedAnswer, OnGuardError, PromptCheck, Settings
from qwen3guard_apps.signals import stop_on_signals, unless

if TYPE_CHECKING:
    from qwen3guard_apps.proxy.traces import Traces

PORT = 8010


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    client_options.add_client_arguments(parser, json="print the address as one line of JSON")
    own = Settings()
    policy = Policy()
    parser.add_argument(
        "--upstream",
        type=_upstream,
        metavar="URL",
        help="the LLM's base URL, with its /v1; without it, only /v1/moderations is served",
    )
    parser.add_argument(
        "--host",
        type=not_empty,
        default="127.0.0.1",
        help="the address to listen on, in plain HTTP (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=port,
        default=PORT,
        metavar="N",
        help="the port to listen on; 0 takes a free one (default: %(default)s)",
    )
    decision = parser.add_mutually_exclusive_group()
    decision.add_argument(
        "--mode",
        choices=("strict", "loose"),
        default="strict",
        help="strict: Controversial counts as unsafe (default: %(default)s)",
    )
    decision.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="decide by the thresholds in this file, from evaluate --choose"
    )
    parser.add_argument(
        "--debounce",
        type=debounce,
        default=policy.debounce,
        metavar="N",
        help="flag at the last of so many unsafe tokens in a row (default: %(default)s)",
    )
    categories = [each.value for each in Category]
    parser.add_argument(
        "--block",
        action="append",
        choices=categories,
        metavar="CATEGORY",
        help="count only the categories that are named so; may be given again (default: all)",
    )
    parser.add_argument(
        "--on-flag",
        choices=get_args(OnFlaggedAnswer),
        default=own.on_flag,
        help="at a flag: end the answer, show all and mark it, or fail (default: %(default)s)",
    )
    parser.add_argument(
        "--on-guard-error",
        choices=get_args(OnGuardError),
        default=own.on_guard_error,
        help="what becomes of text that the guard cannot judge, as it is down or overloaded (default: %(default)s)",
    )
    parser.add_argument(
        "--release",
        choices=get_args(Release),
        default=own.release,
        help="show text when it is cleared, or at once until a flag (default: %(default)s)",
    )
    parser.add_argument(
        "--prompt-check",
        choices=get_args(PromptCheck),
        default=own.prompt_check,
        help="judge the prompt before the LLM is asked, while it starts, or not at all (default: %(default)s)",
    )
    parser.add_argument(
        "--confirm",
        choices=get_args(Confirm),
        help="put each flag to Gen; it stands unless Gen finds all safe in this mode (default: Gen is not asked)",
    )
    client_options.add_context_argument(parser)
    parser.add_argument(
        "--pass-field",
        action="append",
        metavar="NAME",
        help="judge and pass on this field of messages and choices too, which no list names; may be given again"
        " (default: such a field is removed)",
    )
    parser.add_argument(
        "--pass-route",
        action="append",
        metavar="PATH",
        help="pass POST requests for this route of the LLM's, such as /v1/embeddings, and their answers UNJUDGED;"
        " may be given again (default: such a route is refused)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="answer requests with this Host, and pages from it, too; may be given again"
        " (default: on loopback only its own names, elsewhere every Host)",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="a key of 16 or more characters that callers must send as their Authorization, x-api-key or x-guard-key;"
        " no LLM gets it (default: none)",
    )
    parser.add_argument(
        "--traces",
        action="store_true",
        help="send a span for each request to where OTEL_EXPORTER_OTLP_ENDPOINT says; needs the extra otel"
        " (default: off)",
    )
    add_log_argument(parser)
    limits = (
        ("upstream_timeout_s", float, "S", "how many seconds the LLM may take for its next piece"),
        ("client_timeout_s", float, "S", "how many seconds a client may read nothing"),
        ("head_timeout_s", float, "S", "how many seconds a request's head may take"),
        ("body_timeout_s", float, "S", "how many seconds a request's body may take"),
        ("idle_timeout_s", float, "S", "after how many seconds without a request a connection is closed"),
        ("lifetime_s", float, "S", "after how many seconds a connection's next answer is its last"),
        ("max_connections", int, "N", "how many connections there may be; more close those that have waited longest"),
        ("max_head_bytes", int, "N", "how many bytes a request's head may have"),
        ("max_body_bytes", int, "N", "how many bytes a request's body may have"),
        ("max_receiving_bytes", int, "N", "how many bytes all incomplete bodies may have together"),
        ("max_response_bytes", int, "N", "how many bytes an answer of the LLM may have, as it is sent"),
        ("max_in_flight", int, "N", "how many requests are answered at a time; more get 429"),
        ("max_choices", int, "N", "how large n of a request may be"),
    )
    for name, kind, metavar, text in limits:
        value = getattr(own, name)
        option = "--" + name.removesuffix("_s").replace("_", "-")
        parser.add_argument(
            option,
            type=positive(kind),
            default=value,
            dest=name,
            metavar=metavar,
            help=f"{text} (default: {value:g})" if kind is float else f"{text} (default: {value})",
        )


def _upstream(text: str) -> str:
    try:
        return str(Settings(upstream=text).upstream)
    except InvalidParameter as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Raises InvalidParameter, InvalidRequest and InvalidCredentials."""
    blocked = frozenset(map(Category, arguments.block)) if arguments.block else frozenset(Category)
    thresholds = Thresholds.read(arguments.thresholds) if arguments.thresholds else None
    return Settings(
        upstream=arguments.upstream,
        policy=Policy(arguments.mode == "strict", arguments.debounce, blocked, thresholds),
        on_flag=arguments.on_flag,
        release=arguments.release,
        prompt_check=arguments.prompt_check,
        on_guard_error=arguments.on_guard_error,
        confirm=arguments.confirm,
        context=arguments.context,
        pass_fields=frozenset(arguments.pass_field or ()),
        pass_routes=frozenset(arguments.pass_route or ()),
        guard_timeout_s=arguments.timeout,
        upstream_timeout_s=arguments.upstream_timeout_s,
        client_timeout_s=arguments.client_timeout_s,
        head_timeout_s=arguments.head_timeout_s,
        body_timeout_s=arguments.body_timeout_s,
        idle_timeout_s=arguments.idle_timeout_s,
        lifetime_s=arguments.lifetime_s,
        max_connections=arguments.max_connections,
        max_head_bytes=arguments.max_head_bytes,
        max_body_bytes=arguments.max_body_bytes,
        max_receiving_bytes=arguments.max_receiving_bytes,
        max_response_bytes=arguments.max_response_bytes,
        max_in_flight=arguments.max_in_flight,
        max_choices=arguments.max_choices,
        allow_hosts=frozenset(arguments.allow_host or ()),
        api_key=read_token(arguments.api_key_file, {}),
    )


def run(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments)
    settings, notice = within_open_files(settings, 2 * settings.max_in_flight)
    with AppOutput(logging.INFO, arguments.log_file, as_json=arguments.log_file is not None) as output:
        if notice:
            output.tell("warning", notice)
        asyncio.run(_serve(settings, arguments, output))


async def _serve(settings: Settings, arguments: argparse.Namespace, output: AppOutput) -> None:
    try:
        from qwen3guard_apps.proxy import upstream_check
        from qwen3guard_apps.proxy.server import listening
    except ImportError as missing:
        raise ServeError(f"{missing.name} is not installed: {how_to_install('apps')}.") from None
    traces = _traces() if arguments.traces else None
    asyncio.get_running_loop().set_exception_handler(output.log_unhandled)
    stop = stop_on_signals()
    token = read_token(arguments.token_file)
    if settings.upstream and (wrong := await unless(stop, upstream_check.complaint(settings.upstream))):
        output.tell("warning", f"warning: {wrong}")
    tls = client_options.tls(arguments)
    async with AsyncExitStack() as stack:
        if traces:
            stack.callback(traces.close)
        guard = await stack.enter_async_context(
            AsyncGuardClient(arguments.url, timeout_s=settings.guard_timeout_s, tls=tls, token=token, scope=None)
        )
        ensemble = wire.STREAM_STEP if settings.upstream else wire.CLASSIFY
        if not await unless(stop, guard.is_ready(ensemble.name)):
            output.tell("info", f"looking for a guard at {guard.url}, {settings.guard_timeout_s:g} s at most")
        opening = stack.enter_async_context(listening(settings, guard, arguments.host, arguments.port, traces))
        if (listens := await unless(stop, opening)) is None:
            return
        for line in _notices(settings, arguments.host):
            output.tell("info", line)
        if listens.notice:
            output.tell("info", f"note: {listens.notice}")
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        url = f"http://{host}:{listens.port}/v1"
        output.print(json.dumps({"url": url}) if arguments.json else f"ready on {url}")
        await stop.wait()


def _traces() -> Traces:
    """Raises ServeError."""
    try:
        from qwen3guard_apps.proxy.traces import Traces
    except ImportError as missing:
        raise ServeError(f"{missing.name} is not installed: {how_to_install('otel')}.") from None
    return Traces()


def _notices(settings: Settings, host: str) -> list[str]:
    """What is printed at the start."""
    notices = []
    if settings.upstream:
        does = "is blocked (fail closed)" if settings.on_guard_error == "block" else "PASSES UNJUDGED (fail open)"
        notices.append(f"what the guard cannot judge {does}: --on-guard-error {settings.on_guard_error}")
        notices += [f"POST {route} PASSES UNJUDGED: --pass-route" for route in sorted(settings.pass_routes)]
    if not is_loopback(host):
        notices.append(f"warning: plain HTTP on {host}, to whoever reaches it; keys of the LLM's travel in the open")
    return notices
