"""What an ICE-lite agent needs of STUN (RFC 8489): to check requests and to answer them. Pure."""

from __future__ import annotations

import hmac
import ipaddress
import struct
import zlib
from dataclasses import dataclass
from typing import Final

COOKIE: Final = 0x2112A442
HEADER: Final = struct.Struct("!HHI12s")
ATTRIBUTE: Final = struct.Struct("!HH")
REQUEST: Final = 0x0001  # all of them Binding
RESPONSE: Final = 0x0101
ERROR: Final = 0x0111

USERNAME: Final = 0x0006
MESSAGE_INTEGRITY: Final = 0x0008
ERROR_CODE: Final = 0x0009
XOR_MAPPED_ADDRESS: Final = 0x0020
PRIORITY: Final = 0x0024
USE_CANDIDATE: Final = 0x0025
FINGERPRINT: Final = 0x8028
ICE_CONTROLLED: Final = 0x8029

INTEGRITY_BYTES: Final = 20
LARGEST: Final = 1280  # bytes; RFC 8489 §6.1 wants them below the path's MTU


@dataclass(frozen=True, slots=True)
class Request:
    """A Binding request, not yet believed: `authentic` says whether its sender knows the password."""

    transaction: bytes
    username: str
    priority: int
    nominates: bool
    controlled: bool  # its sender takes us for the one who decides, which a lite agent never is
    _signed: bytes
    _signature: bytes

    def authentic(self, password: str) -> bool:
        return hmac.compare_digest(self._signature, _sign(self._signed, password))


def parse_request(data: bytes) -> Request | None:
    """The request in a datagram; None for anything else, of which a lite agent needs nothing."""
    if not HEADER.size <= len(data) <= LARGEST:
        return None
    kind, length, cookie, transaction = HEADER.unpack_from(data)
    if kind != REQUEST or cookie != COOKIE or length % 4 or HEADER.size + length != len(data):
        return None
    username, priority, nominates, controlled = "", 0, False, False
    place = HEADER.size
    while place + 4 <= len(data):
        name, size = ATTRIBUTE.unpack_from(data, place)
        value = data[place + 4 : place + 4 + size]
        if len(value) < size:
            return None
        if name == MESSAGE_INTEGRITY:
            # §14.5: what is signed ends here, with a length that reaches to the end of the signature.
            signed = data[:2] + struct.pack("!H", place + 4 + INTEGRITY_BYTES - HEADER.size) + data[4:place]
            return Request(transaction, username, priority, nominates, controlled, signed, value)
        if name == USERNAME:
            username = value.decode("utf-8", "replace")
        elif name == PRIORITY and size == 4:
            priority = int.from_bytes(value, "big")
        elif name == USE_CANDIDATE:
            nominates = True
        elif name == ICE_CONTROLLED:
            controlled = True
        place += 4 + size + -size % 4
    return None  # unsigned


def respond(request: Request, address: tuple[str, int], password: str) -> bytes:
    """The answer: the address from which the request came."""
    packed = ipaddress.ip_address(address[0]).packed
    pad = COOKIE.to_bytes(4, "big") + request.transaction
    mapped = bytes(byte ^ pad[index] for index, byte in enumerate(packed))
    family = 1 if len(packed) == 4 else 2
    value = struct.pack("!BBH", 0, family, address[1] ^ (COOKIE >> 16)) + mapped
    return _signed(RESPONSE, request.transaction, XOR_MAPPED_ADDRESS, value, password)


def role_conflict(request: Request, password: str) -> bytes:
    """The answer to a client that leaves the decision to us: 487, and it takes it (RFC 8445 §7.3.1.1)."""
    return _signed(ERROR, request.transaction, ERROR_CODE, b"\0\0\4\x57Role conflict   ", password)


def _signed(kind: int, transaction: bytes, name: int, value: bytes, password: str) -> bytes:
    body = ATTRIBUTE.pack(name, len(value)) + value
    head = HEADER.pack(kind, len(body) + 4 + INTEGRITY_BYTES, COOKIE, transaction)
    body += ATTRIBUTE.pack(MESSAGE_INTEGRITY, INTEGRITY_BYTES) + _sign(head + body, password)
    head = HEADER.pack(kind, len(body) + 8, COOKIE, transaction)
    checksum = zlib.crc32(head + body) ^ 0x5354554E
    return head + body + ATTRIBUTE.pack(FINGERPRINT, 4) + checksum.to_bytes(4, "big")


def _sign(data: bytes, password: str) -> bytes:
    return hmac.digest(password.encode(), data, "sha1")
