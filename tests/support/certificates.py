"""Certificates and tokens of the tests."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import trustme

HOST = "guard.test"
TOKEN = "an-api-token-of-the-tests-3141"
WRONG = "another-token-of-the-tests-2718"


def make(folder: Path) -> Path:
    """Certificates and keys; nobody here trusts `other`, who has signed `stranger`."""
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    issued = {
        "server": ca.issue_cert(HOST),
        "wildcard": ca.issue_cert(f"*.{HOST}"),
        "nameless": ca.issue_cert("somebody@guard.test"),
        "expired": ca.issue_cert(HOST, not_after=datetime(2020, 1, 1, tzinfo=UTC)),
        "client": ca.issue_cert("client.test"),
        "stranger": other.issue_cert("client.test"),
    }
    for name, certificate in issued.items():
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / "text.pem").write_text("no certificate\n")
    return folder
