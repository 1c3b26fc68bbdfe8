"""The address of a guard's server: what is read, what it means, and what is explained."""

from __future__ import annotations

import pytest
from qwen3guard_client import AsyncGuardClient, GuardClient, Tls
from qwen3guard_client.transport.address import ServerAddress, is_local, read_address
from qwen3guard_client.transport.connection import tls_of
from qwen3guard_contract import errors


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "guard.example:443", "[::1]:8001", "LOCALHOST:9"])
def test_schemes_and_a_slash_change_nothing_but_tls(host: str) -> None:
    for slash in ("", "/"):
        for blank in ("", " ", "\n"):
            assert read_address(f"{host}{slash}{blank}") == ServerAddress(host)
        for scheme, tls in {"http": False, "grpc": False, "https": True, "grpcs": True, "HTTPS": True}.items():
            url = f"{scheme}://{host}{slash}"
            assert read_address(url) == ServerAddress(host, tls)
            assert is_local(url) is is_local(host)
            assert (tls_of(url, None) is not None) is tls
    own = Tls(server_name="guard")
    assert tls_of(f"https://{host}", own) is own is tls_of(host, own)


@pytest.mark.parametrize("url", ["unix:/run/guard.sock", "dns:///guard.example:8001", "ipv6:[::1]:8001"])
def test_what_grpc_resolves_itself_is_left_to_it(url: str) -> None:
    assert read_address(url) == ServerAddress(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://guard:8001", "begins with ftp://"),
        ("http://guard:8001/v1", "has a path"),
        ("guard:8001/v2/models", "guard:8001 alone"),
        ("https://guard:8001?x=1", "has a path"),
        ("guard", "no port: give guard:8001"),
        ("https://guard.example", "no port"),
        ("[::1]", "no port"),
        ("a:1,b:2", "a host and a port"),
        ("::1:8001", "in brackets"),
        ("guard:", "the port ''"),
        ("guard:http", "the port 'http'"),
        ("guard:70000", "1 to 65535"),
        ("guard:0", "1 to 65535"),
        (":8001", "no host"),
        ("http://", "a host and a port"),
        ("guard :8001", "a host and a port"),
        ("https://me:secret@guard:8001", "takes a token"),
    ],
)
def test_what_is_no_address_is_explained_before_anything_is_sent(url: str, words: str) -> None:
    for kind in (GuardClient, AsyncGuardClient):
        with pytest.raises(errors.InvalidRequest, match=words.replace("[", r"\[")) as raised:
            kind(url)
        assert "secret" not in str(raised.value)


def test_a_url_without_tls_and_the_wish_for_it_are_no_pair() -> None:
    with pytest.raises(errors.InvalidRequest, match="give https://"):
        GuardClient("http://127.0.0.1:8001", tls=Tls())
