"""Where a stream is pushed to: an address of its tenant, so not one of ours, and with a secret in its path.

The rule it keeps: of a target nothing but its host is ever shown.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Final
from urllib.parse import urlsplit

from services.common.errors import InvalidError, UnavailableError

LONGEST: Final = 2000  # characters: some platforms sign their addresses
LONGEST_WORDS: Final = 200  # of what a server says
SHORT_APP: Final = 8  # "live", "live2", "app": no secret, and part of many words
PORTS: Final = {"rtmp": 1935, "rtmps": 443}
# Names as name servers and certificates know them; other alphabets are written as xn--.
HOST: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_][a-z0-9_-]{0,62}(\.[a-z0-9_-]{1,63})*\.?")
NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
RESOLVE_S: Final = 10.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """One address, taken apart as RTMP needs it: the last part of the path is the stream's name there."""

    tls: bool
    host: str
    port: int
    app: str
    name: str

    @property
    def url(self) -> str:
        """What RTMP calls `tcUrl`: all but the name."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        standard = self.port == PORTS["rtmps" if self.tls else "rtmp"]
        place = host if standard else f"{host}:{self.port}"
        return f"{'rtmps' if self.tls else 'rtmp'}://{place}/{self.app}"

    def redact(self, text: str) -> str:
        """`text`, which somebody else wrote, without this target's secrets, short and in one line."""
        plain = "".join(letter if letter.isprintable() else " " for letter in text)
        name, _, query = self.name.partition("?")
        for secret in (self.name, name, query, self.app if len(self.app) > SHORT_APP else ""):
            if secret:
                plain = plain.replace(secret, "...")
        return plain[:LONGEST_WORDS]


def validate_target(url: str, *, private: bool) -> None:
    """Raise InvalidError for an `output_rtmp_url` that can never work. `private`: one of ours may be it."""
    parse_target(url, private=private)


def parse_target(url: str, *, private: bool) -> Target:
    """Raises InvalidError, without the address in it."""
    if len(url) > LONGEST or not url.isprintable() or " " in url:
        raise _wrong(f"an RTMP address has no spaces and at most {LONGEST} characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _wrong("this is no address") from None
    if parts.scheme not in PORTS:
        raise _wrong("an RTMP address begins with rtmp:// or rtmps://")
    if parts.username is not None or parts.password is not None:
        raise _wrong("user and password are not supported; a stream key belongs into the path")
    host = parts.hostname or ""
    app, _, name = parts.path.strip("/").rpartition("/")
    if not (HOST.fullmatch(host) or _literal(host)) or not app or not name:
        raise _wrong("an RTMP address is rtmp://host/app/name")
    if parts.query:
        name = f"{name}?{parts.query}"
    literal = _literal(host)
    inside = host == "localhost" or host.endswith(".localhost") or (literal and not is_public(literal))
    if inside and not private:
        raise _wrong("the host is not on the public internet")
    return Target(parts.scheme == "rtmps", host, port or PORTS[parts.scheme], app, name)


def _wrong(why: str) -> InvalidError:
    return InvalidError(f"output_rtmp_url: {why}", reason="INVALID_TARGET", field="output_rtmp_url")


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet, also where it hides another one."""
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour
        if hidden is None and address in NAT64:
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if hidden is not None:
            return is_public(hidden)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


class Resolver:
    """Looks names up in a thread that nothing waits for: a name server that hangs holds up nobody's end.

    At most one look-up of a resolver is under way.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None

    async def resolve(self, target: Target, *, private: bool) -> list[str]:
        """The addresses to connect to, which are what was checked. Raises UnavailableError."""
        if self._thread is not None and self._thread.is_alive():
            raise UnavailableError("the name server still does not answer", reason="RTMP_PUSH_RESOLVE")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()
        self._thread = Thread(
            target=_look_up, args=(target, loop, found), name="rtmp-push-resolve", daemon=True
        )
        self._thread.start()
        try:
            async with asyncio.timeout(RESOLVE_S):
                addresses = await found
        except TimeoutError:
            raise UnavailableError("the name server does not answer", reason="RTMP_PUSH_RESOLVE") from None
        usable = [one for one in addresses if private or is_public(ipaddress.ip_address(one))]
        if not usable:
            raise UnavailableError(
                "the host has no address on the public internet"
                if addresses
                else "the host's name is not known",
                reason="RTMP_PUSH_RESOLVE",
            )
        return usable


def _look_up(target: Target, loop: asyncio.AbstractEventLoop, found: asyncio.Future[list[str]]) -> None:
    try:
        infos = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
    except (OSError, UnicodeError):
        addresses = []

    def tell() -> None:
        if not found.done():
            found.set_result(addresses)

    with suppress(RuntimeError):  # the process ended meanwhile
        loop.call_soon_threadsafe(tell)
