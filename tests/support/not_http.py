"""What is not HTTP, or from nobody who may ask, with a marker where a key or a text may stand; for every server."""

from __future__ import annotations

MARKER = b"sk-marker"
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
"""Each request goes to this path, or to none that matters."""
M = MARKER


def post(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([HEAD + b"Content-Length: %d" % len(body), *headers, b"", body])


REFUSED: dict[str, tuple[int, bytes]] = {
    "control": (400, b"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \x01" + M + b"\r\n\r\n"),
    "nul": (400, b"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \x00" + M + b"\r\n\r\n"),
    "no colon": (400, b"POST / HTTP/1.1\r\nHost: localhost\r\n" + M + b"\r\n\r\n"),
    "folded": (400, b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Key: a\r\n " + M + b"\r\n\r\n"),
    "version": (505, b"GET /" + M + b" HTTP/3.7\r\nHost: localhost\r\n\r\n"),
    "next version": (505, b"GET /" + M + b" HTTP/2.0\r\nHost: localhost\r\n\r\n"),
    "old version": (505, b"GET /" + M + b" HTTP/0.9\r\nHost: localhost\r\n\r\n"),
    "no version": (400, b"GET /" + M + b" " + M + b"\r\n\r\n"),
    "method": (400, M.upper() + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "tls": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + M),
    "http2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + M),
    "target": (400, b"GET http://[" + M + b"/ HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "target too long": (414, b"GET /" + 1000 * M + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "key too long": (431, HEAD + b"Authorization: Bearer " + 2000 * M + b"\r\n\r\n"),
    "head too large": (431, HEAD + 10 * (b"X-Key: " + 400 * M + b"\r\n")),
    "too many headers": (431, HEAD + 200 * (b"X-" + M + b": 1\r\n") + b"\r\n"),
    "two hosts": (400, HEAD + b"Host: " + M + b"\r\n\r\n"),
    "no host": (400, b"GET /" + M + b" HTTP/1.1\r\n\r\n"),
    "two lengths": (400, HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + M),
    "bad length": (400, HEAD + b"Content-Length: " + M + b"\r\n\r\n"),
    "length and chunks": (400, HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + M),
    "chunk size": (400, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + M + b"\r\n"),
    "coding": (400, HEAD + b"Transfer-Encoding: " + M + b"\r\n\r\n"),
    "gzip": (415, post(M, b"Content-Encoding: gzip")),
    "gzip after identity": (415, post(M, b"Content-Encoding: identity", b"Content-Encoding: gzip")),
    "gzip in chunks": (501, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n9\r\n" + M + b"\r\n0\r\n\r\n"),
    "expect": (417, post(b"{}", b"Expect: " + M)),
    "type": (415, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + M + b"/plain\r\nContent-Length: 0\r\n\r\n"),
    "host": (403, b"GET / HTTP/1.1\r\nHost: " + M + b".example\r\n\r\n"),
    "host of the target": (403, b"GET http://" + M + b".example/ HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "origin": (403, post(b"{}", b"Origin: https://" + M + b".example")),
}
"""What is sent, and the status of the answer."""
