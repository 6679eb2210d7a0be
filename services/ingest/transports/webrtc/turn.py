"""What clients are told of STUN and TURN: servers, and credentials of coturn's `use-auth-secret` scheme."""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass

from services.ingest.settings import IngestSettings


@dataclass(frozen=True, slots=True)
class IceServer:
    """One entry of a browser's `iceServers`; without credentials for STUN."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = None

    def link_headers(self) -> list[str]:
        """The `Link` headers of RFC 9725 §4.6, one a URL."""
        secrets = ""
        if self.username is not None:
            secrets = (
                f'; username="{self.username}"; credential="{self.credential}"; credential-type="password"'
            )
        return [f'<{url}>; rel="ice-server"{secrets}' for url in self.urls]


def ice_servers(settings: IngestSettings, who: str, now_s: float) -> list[IceServer]:
    """For the peer `who`, at the wall time `now_s`; its credentials end after `turn_ttl_s`."""
    servers = []
    stun = tuple(settings.stun_urls.replace(",", " ").split())
    turn = tuple(settings.turn_urls.replace(",", " ").split())
    if stun:
        servers.append(IceServer(stun))
    if turn:
        username = f"{int(now_s + settings.turn_ttl_s)}:{who}"
        digest = hmac.digest(settings.turn_secret.encode(), username.encode(), "sha1")
        servers.append(IceServer(turn, username, base64.b64encode(digest).decode()))
    return servers
