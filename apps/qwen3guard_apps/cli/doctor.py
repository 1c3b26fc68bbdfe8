"""`qwen3guard doctor`: checks an installation, a model repository and a running server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qwen3guard_client.transport.connection import read_token
from qwen3guard_contract.errors import ServeError

from qwen3guard_apps import client_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-repository", type=Path, metavar="DIR", help="check what was exported there too")
    parser.add_argument("--url", metavar="HOST:PORT", help="check this server; alone, not what is installed here")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="check its metrics endpoint")
    client_options.add_access_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints every finding. Raises ServeError where a check failed."""
    from qwen3guard_apps.doctor.doctor import Examination, show_findings

    token = read_token(arguments.token_file)
    examination = Examination(
        arguments.model_repository, arguments.url, arguments.metrics, client_options.tls(arguments), token
    )
    failed = show_findings(
        examination.findings(),
        lambda finding: print(json.dumps(finding.as_dict()) if arguments.json else finding.as_line(), flush=True),
    )
    if failed:
        raise ServeError(f"{failed} of the checks failed.")
