"""Our end of ICE: a lite agent (RFC 8445 §2.5), which checks nothing, is checked, and goes where it is told.

The server's address is known and reachable, so the client alone can find the way: no candidates of the client
are needed, nothing is ever sent to an address that has not shown the password, and a restart is a new name.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from services.ingest.transports.webrtc import stun

Address = tuple[str, int]
STALE_S: Final = 3.0  # a way that was not used for so long yields to one that is; clients check every 2.5 s
MOST_PATHS: Final = 16


@dataclass(frozen=True, slots=True)
class Credentials:
    """One generation of both sides' names and our password."""

    ufrag: str
    password: str
    remote: str


@dataclass(slots=True)
class _Path:
    priority: int
    nominated: bool
    heard_s: float


class IceAgent:
    """One peer's. `selected` is where to send."""

    def __init__(self, remote_ufrag: str) -> None:
        self.credentials = _fresh(remote_ufrag)
        self.selected: Address | None = None
        self._before: Credentials | None = None  # until the client uses the new ones
        self._paths: dict[Address, _Path] = {}

    def restart(self, remote_ufrag: str) -> None:
        """Take new credentials, beside the old ones until the client uses them."""
        self._before = self.credentials
        self.credentials = _fresh(remote_ufrag)

    def check(self, request: stun.Request, address: Address, now_s: float) -> bytes | None:
        """The answer to a request; None when it is not signed, or not for us."""
        found = next(
            (
                each
                for each in (self.credentials, self._before)
                if each is not None and request.username == f"{each.ufrag}:{each.remote}"
            ),
            None,
        )
        if found is None or not request.authentic(found.password):
            return None
        if request.controlled:
            return stun.role_conflict(request, found.password)
        if found is self.credentials and self._before is not None:
            self._before = None  # the restart is there: the old ways are not to be trusted any more
            self._paths.clear()
            self.selected = None
        self._use(address, request, now_s)
        return stun.respond(request, address, found.password)

    def _use(self, address: Address, request: stun.Request, now_s: float) -> None:
        path = self._paths.get(address)
        if path is None:
            if len(self._paths) >= MOST_PATHS:
                self._forget_oldest()
            path = self._paths[address] = _Path(request.priority, request.nominates, now_s)
        path.priority, path.heard_s = request.priority, now_s
        path.nominated |= request.nominates
        current = None if self.selected is None else self._paths.get(self.selected)
        if current is None or self._better(path, current, now_s):
            self.selected = address

    @staticmethod
    def _better(path: _Path, current: _Path, now_s: float) -> bool:
        if path.nominated != current.nominated:
            return path.nominated
        return path.priority > current.priority or now_s - current.heard_s > STALE_S

    def _forget_oldest(self) -> None:
        oldest = min(
            (address for address in self._paths if address != self.selected),
            key=lambda address: self._paths[address].heard_s,
        )
        del self._paths[oldest]

    def heard(self, address: Address, now_s: float) -> None:
        """Media or DTLS came from there."""
        if (path := self._paths.get(address)) is not None:
            path.heard_s = now_s

    @property
    def nominated(self) -> bool:
        """Whether the client has decided."""
        return self.selected is not None and self._paths[self.selected].nominated


def _fresh(remote: str) -> Credentials:
    return Credentials(secrets.token_hex(8), secrets.token_hex(16), remote)
