"""Reads the address of a server: HOST:PORT, the same behind http://, https://, grpc:// or grpcs://, or a name that gRPC
resolves itself (unix:, dns: and others)."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from qwen3guard_contract.errors import InvalidRequest

URL_VARIABLE = "GUARD_URL"
"""The environment variable with the address that the command line takes where no --url is given."""
PLAIN_SCHEMES = ("http", "grpc")
TLS_SCHEMES = ("https", "grpcs")
OF_GRPC = re.compile(r"^(unix|unix-abstract|vsock|dns|ipv4|ipv6|xds|passthrough):")
"""How the names begin that gRPC resolves itself."""
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""The environment variables that gRPC reads, in its order. It takes the first that is set."""


@dataclass(frozen=True)
class ServerAddress:
    """What gRPC connects to. `tls` is True or False where the scheme of the url says so, and else None."""

    target: str
    tls: bool | None = None


def read_address(url: str) -> ServerAddress:
    """The address that `url` names. Raises InvalidRequest, whose sentence says what is wrong with it."""
    text = url.strip()
    if OF_GRPC.match(text):
        return ServerAddress(text)
    scheme, separator, rest = text.rpartition("://")
    if not separator:
        return ServerAddress(_checked(text.removesuffix("/")))
    if scheme.lower() not in (*PLAIN_SCHEMES, *TLS_SCHEMES):
        raise InvalidRequest(
            f"The url begins with {_shown(scheme)}://, and a guard is reached by gRPC: "
            "give HOST:PORT, or https://HOST:PORT for TLS."
        )
    return ServerAddress(_checked(rest.removesuffix("/")), scheme.lower() in TLS_SCHEMES)


def _checked(address: str) -> str:
    """Returns a host and its port. Raises InvalidRequest."""
    host, colon, port = address.rpartition(":")
    if not address or any(each == "," or each.isspace() or not each.isprintable() for each in address):
        raise InvalidRequest("The url must be a host and a port, such as 127.0.0.1:8001.")
    if "@" in address:
        raise InvalidRequest("The url has a user or a password; a guard takes a token instead.")
    if re.search(r"[/?#]", address):
        begin = re.split(r"[/?#]", address)[0]
        raise InvalidRequest(f"The url has a path; a guard is reached by gRPC at {_shown(begin) or 'HOST:PORT'} alone.")
    if address.count(":") > 1 and not re.fullmatch(r"\[[^\[\]]*\](:[^:]*)?", address):
        raise InvalidRequest("An IPv6 address stands in brackets before its port: [::1]:8001.")
    if not colon or address.endswith("]"):
        raise InvalidRequest(f"The url has no port: give {_shown(address)}:8001, or the port of your server.")
    if not host:
        raise InvalidRequest(f"The url has no host: give 127.0.0.1:{_shown(port)} for a server of this machine.")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise InvalidRequest(f"The url has the port {_shown(port)!r}; a port is a number from 1 to 65535.")
    return address


def _shown(text: str) -> str:
    return text[:80]


def is_local(url: str) -> bool:
    """Whether `url` is a loopback address, localhost or a Unix socket. A proxy elsewhere could not reach the server."""
    address = re.sub(r"^(dns:(//[^/]*/)?|ipv[46]:|(https?|grpcs?)://)", "", url.strip().lower()).rstrip("/")
    host = re.sub(r":\d*$", "", address) if "]" in address or address.count(":") == 1 else address
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost" or url.startswith(("unix:", "unix-abstract:"))
    return ip.is_loopback


def proxy_variable(url: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The environment variable whose proxy gRPC may use to reach the server at `url`, or None."""
    if is_local(url):
        return None
    return next((name for name in PROXY_VARIABLES if environment.get(name)), None)
