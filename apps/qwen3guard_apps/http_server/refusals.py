"""What is answered to what is not HTTP, or comes too slowly: fixed texts, in OpenAI's form of errors."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from aiohttp import http_exceptions, web

from qwen3guard_apps.http_server.limits import LINE_BYTES
from qwen3guard_apps.openai.api_error import ApiError

_SENTENCES = {
    "bad_request": (400, "The request is not valid HTTP."),
    "bad_method": (400, "The request's method is not one of HTTP's."),
    "bad_target": (400, "The request's target is not a valid URL."),
    "bad_header": (400, "A header of the request is not valid."),
    "bad_body": (400, "The request's body cannot be read."),
    "own_page": (403, "Only the page of this server may ask."),
    "not_found": (404, "There is nothing at this path."),
    "method_not_allowed": (405, "This path does not take the request's method."),
    "slow_head": (408, "The request's head took too long."),
    "slow_body": (408, "The request's body took too long."),
    "target_too_long": (414, "The request's target is too long."),
    "compressed": (415, "The request's body must not be compressed."),
    "encoded": (501, "The request's Transfer-Encoding is not chunked."),
    "not_websocket": (400, "This path takes WebSockets alone, of version 13."),
    "not_json": (415, "The request's Content-Type must be application/json."),
    "expectation": (417, "The request's Expect header is not 100-continue."),
    "head_too_large": (431, "The request's headers are too long, or too many."),
    "internal": (500, "The server failed."),
    "too_many_streams": (503, "Too many streams at once."),
    "body_gave_way": (503, "Too many requests are being received at once."),
    "bad_version": (505, "The request's version is not HTTP/1.0 or HTTP/1.1."),
}
_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 415: "not_json", 417: "expectation", 500: "internal"}


def refusal(kind: str) -> ApiError:
    """The error of this kind, which is also its code."""
    status, sentence = _SENTENCES[kind]
    blamed = "server_error" if status in (500, 503) else "invalid_request_error"
    return ApiError(status, blamed, kind, sentence, retry=status == 503)


def too_large(limit: int) -> ApiError:
    """The error for a body of more than `limit` bytes."""
    return ApiError(413, "invalid_request_error", "too_large", f"A request takes {limit} bytes at most.")


def kind_of(error: BaseException | None) -> str:
    """The kind of an error of aiohttp's parser, whose own words quote the request."""
    words = error.message if isinstance(error, http_exceptions.HttpProcessingError) else ""
    match error:
        case http_exceptions.LineTooLong(args=(_, limit, *_)):
            return "target_too_long" if limit == LINE_BYTES else "head_too_large"
        case http_exceptions.BadHttpMethod():
            return "bad_method"
        case http_exceptions.BadStatusLine():
            return "bad_version" if "HTTP version" in words.partition(":\n\n")[0] else "bad_request"
        case http_exceptions.InvalidURLError():
            return "bad_target"
        case http_exceptions.InvalidHeader():
            return "bad_header"
        case http_exceptions.PayloadEncodingError():
            return "bad_body"
        case http_exceptions.BadHttpMessage() if words.startswith("Too many headers"):
            return "head_too_large"
        case _:
            return "bad_request"


def kind_of_status(status: int) -> str:
    """The kind for an error of aiohttp's own with this status."""
    return _BY_STATUS.get(status, "bad_request" if status < 500 else "internal")


def refused(error: ApiError, body: dict[str, Any] | None = None) -> web.Response:
    """`body` is the error's in another API's form."""
    return web.json_response(body or error.body(), status=error.status, headers=error.headers)


def raw_response(kind: str) -> bytes:
    """The whole answer in bytes, after which the connection is closed."""
    error = refusal(kind)
    body = json.dumps(error.body()).encode()
    lines = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
