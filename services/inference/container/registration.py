"""`POST /capability/register`: a container that was started with ORCH_URL says itself what it is and where.

The rule it keeps: whoever does not know the secret learns and changes nothing, and no container takes the
place of another one while that has a stream.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from services.common.errors import ConflictError, InvalidError

log = structlog.get_logger()

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
LARGEST_BODY_BYTES: Final = 64 * 1024
DESCRIPTION_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class Capability:
    """What a container offers, and the base URL of its API."""

    name: str
    url: str
    description: str


def capability(text: bytes) -> Capability:
    """Read a registration. Raises InvalidError."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidError("the body is no JSON") from error
    match said:
        case {"name": str(name), "url": str(url)} if NAME.fullmatch(name):
            if not url.startswith(("http://", "https://")):
                raise InvalidError("url is no HTTP URL", field="url")
            description = said.get("description")
            words = description[:DESCRIPTION_MAX] if isinstance(description, str) else ""
            return Capability(name, url, words)
    raise InvalidError("name and url are required, the name of letters, digits, '.', '_' and '-'")


def registration_app(register: Callable[[Capability], None], secret: str) -> web.Application:
    """`register` may raise ConflictError. A wrong secret is a 400: containers then do not try again."""

    async def post(request: web.Request) -> web.Response:
        shown = request.headers.get("Authorization", "").encode(errors="replace")
        if not hmac.compare_digest(shown, secret.encode()):
            return web.Response(status=400, text="invalid authorization\n")
        try:
            found = capability(await request.read())
            register(found)
        except InvalidError as error:
            return web.Response(status=400, text=f"{error.message}\n")
        except ConflictError as error:
            return web.Response(status=409, text=f"{error.message}\n")
        log.info("a container registered", capability=found.name, url=found.url)
        return web.Response(status=200)

    app = web.Application(client_max_size=LARGEST_BODY_BYTES)
    app.router.add_post("/capability/register", post)
    return app
