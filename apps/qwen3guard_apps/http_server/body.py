"""The bodies of requests while they are received: each within its time and size, and all together within theirs."""

from __future__ import annotations

import asyncio

from aiohttp import web

from qwen3guard_apps.http_server.connection import Connection
from qwen3guard_apps.http_server.limits import HttpLimits
from qwen3guard_apps.http_server.receipt import Receipt
from qwen3guard_apps.http_server.refusals import refusal, too_large


class Bodies:
    """Where all together would be too large, the one that began first gives way."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._receipts: dict[Receipt, None] = {}
        self._bytes = 0

    async def receive(self, request: web.Request) -> bytes:
        """The whole body of `request`. Raises ApiError."""
        limit = self._limits.max_body_bytes
        if (request.content_length or 0) > limit:
            raise too_large(limit)
        for name, plain, kind in (
            ("Content-Encoding", "identity", "compressed"),
            ("Transfer-Encoding", "chunked", "encoded"),
        ):
            if any(value.lower() != plain for value in request.headers.getall(name, [])):
                raise refusal(kind)
        connection = request.protocol
        assert isinstance(connection, Connection)
        if connection.broken and not request.content.is_eof():
            raise refusal("bad_body")
        body = bytearray()
        timeout = asyncio.timeout(self._limits.body_timeout_s)
        receipt = connection.receipt = Receipt(timeout)
        self._receipts[receipt] = None
        try:
            async with timeout:
                while piece := await request.content.readany():
                    body += piece
                    if len(body) > limit:
                        raise too_large(limit)
                    self._add(receipt, len(piece))
        except TimeoutError:
            raise refusal(receipt.kind) from None
        except web.RequestPayloadError:
            raise refusal("bad_body") from None
        finally:
            connection.receipt = None
            self._remove(receipt)
        return bytes(body)

    def _add(self, receipt: Receipt, size: int) -> None:
        if receipt not in self._receipts:  # it has given way, and hears so at its next piece
            return
        receipt.size += size
        self._bytes += size
        while self._bytes > self._limits.max_receiving_bytes:
            oldest = next(iter(self._receipts))
            self._remove(oldest)
            oldest.refuse("body_gave_way")

    def _remove(self, receipt: Receipt) -> None:
        if receipt in self._receipts:
            del self._receipts[receipt]
            self._bytes -= receipt.size
