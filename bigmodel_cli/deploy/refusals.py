"""What is answered where there is no answer: errors in OpenAI's form."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from bigmodel_cli.errors import DataError, shortage

if TYPE_CHECKING:
    from starlette.requests import Request as Call

LOG = logging.getLogger("bigmodel.server")


class Refusal(HTTPException):
    """An answer other than 200, with what OpenAI's form of errors says beside."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


def encode(document: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: halves of surrogate pairs and odd line ends do no harm."""
    return json.dumps(document, allow_nan=False).encode()


def respond(document: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    return Response(encode(document), status, headers, media_type="application/json")


async def refuse(_call: Call | None, error: Exception) -> Response:
    """An error in OpenAI's form. Of our own faults it says nothing."""
    if isinstance(error, DataError):
        message = error.message + (f" ({error.hint})" if error.hint else "")
        named = re.match(r"`([\w.-]+)`", message)
        error = Refusal(message, named.group(1) if named else None)
    elif not isinstance(error, HTTPException):
        error = of_our_own(error)
    status, message, headers = error.status_code, error.detail, dict(error.headers or {})
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    kind = "invalid_request_error" if status < 500 else "server_error"
    document = {"message": message, "type": kind, "param": param, "code": code}
    return respond({"error": document}, status, **headers)


def of_our_own(error: Exception) -> Refusal:
    """What a client learns of an error that is no fault of its own, and the log: where it was, but
    not what it says, which might quote a prompt."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    LOG.error("%s at %s:%s", type(error).__name__, where.filename, where.lineno)
    if short := shortage(error):
        return Refusal(f"{short.message}; try again later", status=503)
    return Refusal("internal error", status=500)
