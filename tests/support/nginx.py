"""The shipped nginx.conf before replicas on loopback: only ports, paths and the list of replicas are others."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from support.places import ROOT
from support.serving import free_port

SHIPPED = ROOT / "deploy" / "nginx" / "nginx.conf"


def nginx() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found:
        return found
    if os.environ.get("CI"):
        pytest.fail("There is no nginx: apt-get install nginx.")
    pytest.skip("There is no nginx here; with it (apt-get install nginx) these tests run.")


def self_signed(certificate: Path) -> None:
    """Makes a certificate for localhost, with its key beside it."""
    certificate.parent.mkdir(exist_ok=True)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", str(certificate)]
    command += ["-keyout", str(certificate.with_suffix(".key"))]
    subprocess.run(command, check=True, capture_output=True)


class Proxy:
    """nginx as a context manager. `url` is its plain port, `tls_url` the one with the certificate `certificate`."""

    def __init__(self, folder: Path, replicas: Iterable[str]) -> None:
        self._folder = folder
        self._port, self._tls_port = free_port(), free_port()
        self.url, self.tls_url = f"127.0.0.1:{self._port}", f"localhost:{self._tls_port}"
        self.certificate = folder / "tls" / "tls.crt"
        self._list(replicas)
        (folder / "nginx.conf").write_text(self._rendered())
        self_signed(self.certificate)

    def _rendered(self) -> str:
        text = SHIPPED.read_text()
        for shipped, here in (
            ("listen 8443 ", f"listen 127.0.0.1:{self._tls_port} "),
            ("listen 8001 ", f"listen 127.0.0.1:{self._port} "),
            (" /tmp/", f" {self._folder}/"),
        ):
            assert shipped in text
            text = text.replace(shipped, here)
        return text

    def _list(self, replicas: Iterable[str]) -> None:
        (self._folder / "replicas.conf").write_text("".join(f"server {each};\n" for each in replicas))

    def _command(self) -> list[str]:
        user = " user root;" if os.geteuid() == 0 else ""  # its workers must read a folder of ours
        return [nginx(), "-p", str(self._folder), "-c", str(self._folder / "nginx.conf"), "-g", f"daemon off;{user}"]

    def __enter__(self) -> Proxy:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while not (self._folder / "nginx.pid").is_file():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def use(self, replicas: Iterable[str]) -> None:
        """Another list of replicas, without a request lost."""
        self._list(replicas)
        subprocess.run([*self._command(), "-s", "reload"], check=True, capture_output=True)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()
