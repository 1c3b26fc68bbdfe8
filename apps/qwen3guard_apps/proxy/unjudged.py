"""Routes that pass unjudged, because the operator names them: embeddings, speech and the like."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from qwen3guard_apps.openai.api_error import upstream_failed
from qwen3guard_apps.proxy.upstream import Upstream, headers_back

_KIND = re.compile(r"[\w.+-]+/[\w.+-]+(; ?charset=[\w-]+)?", re.ASCII)


async def pass_on(upstream: Upstream, path: str, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
    """The LLM's answer in one piece, as it is, with its status; of its headers those that every answer has. Raises
    ApiError for a redirect, and where there is no answer."""
    async with upstream.call("POST", path, request.rel_url.raw_query_string, request.headers, asked) as answer:
        if not (200 <= answer.status < 300 or 400 <= answer.status < 600):
            raise upstream_failed(f"The LLM answers with status {answer.status}.", "upstream_status")
        data = await upstream.whole(answer)
        kind = answer.headers.get("Content-Type", "")
        headers = headers_back(answer) | {"X-Content-Type-Options": "nosniff"}
        headers["Content-Type"] = kind if _KIND.fullmatch(kind) else "application/octet-stream"
        return web.Response(body=data, status=answer.status, headers=headers)
