"""How Scope's routes answer: errors are `{"detail": ...}`, and text of any kind can be said.

The reason of an error is beside it in `code`, for who wants to tell two of a status apart, and so is the
place in the line for a runner.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from services.common.errors import SluiceError, UnauthenticatedError
from services.ingest import in_line


class Detail(JSONResponse):
    """JSON in ASCII: what a client sent may have half a surrogate pair in it, which UTF-8 cannot say.

    A route that repeats what it was sent has `response_model=None`, for pydantic cannot say it either.
    """

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class ScopeRoute(APIRoute):
    """Answers errors as FastAPI does by itself, which is what Scope's clients read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handle(request)
            except SluiceError as error:
                return refusal(error)
            except RequestValidationError as error:
                found = [{key: one[key] for key in ("type", "loc", "msg")} for one in error.errors()]
                return Detail({"detail": found}, 422)
            except HTTPException as error:
                return Detail({"detail": str(error.detail)}, error.status_code)

        return answered


def refusal(error: SluiceError) -> Detail:
    headers = {}
    if "retry_after_s" in error.details:
        headers["Retry-After"] = str(max(1, round(float(error.details["retry_after_s"]))))
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    said = {"detail": error.message, "code": error.reason}
    line = {name: error.details[name] for name in in_line.NUMBERS if name in error.details}
    return Detail({**said, **in_line.shown(line)}, error.http_status, headers)
