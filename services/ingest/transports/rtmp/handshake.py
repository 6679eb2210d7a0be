"""How an RTMP connection begins: both sides' handshakes, with and without Adobe's digest. Pure.

Clients that send a digest get one back, because some believe no server without it; all others, and servers,
are answered with the plain handshake of the specification (§5.2).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from services.common.errors import InvalidError

VERSION: Final = b"\x03"
SIZE: Final = 1536  # of each part but the version
DIGEST: Final = 32

# Known to every implementation since 2009; they prove nothing, and so are no secrets.
_TAIL: Final = bytes.fromhex("f0eec24a8068bee82e00d0d1029e7e576eec5d2d29806fab93b8e636cfeb31ae")
CLIENT_KEY: Final = b"Genuine Adobe Flash Player 001"
SERVER_KEY: Final = b"Genuine Adobe Flash Media Server 001"
SERVER_VERSION: Final = b"\x04\x05\x00\x01"  # from 3 on a client looks for a digest
# Where four bytes are whose sum says where the digest is: of the two schemes the client chooses one.
SCHEMES: Final = (8, 772)
DIGEST_SPAN: Final = 728


class ServerHandshake:
    """The server's side: `feed` what comes and send what it returns, until it is `done`."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""  # what came behind the handshake
        self._received = bytearray()
        self._answered = False

    def feed(self, data: bytes) -> bytes:
        """Raises InvalidError for what is no RTMP."""
        self._received += data
        if self._received and self._received[:1] != VERSION:
            raise InvalidError("this is not RTMP: it begins with another version", reason="NOT_RTMP")
        answer = b""
        if not self._answered and len(self._received) > SIZE:
            self._answered = True
            answer = _answer(bytes(self._received[1 : SIZE + 1]))
        if len(self._received) > 2 * SIZE:
            self.done = True
            # The client's last part echoes ours; nobody checks it, for some do not.
            self.rest = bytes(self._received[2 * SIZE + 1 :])
            self._received.clear()
        return answer


class ClientHandshake:
    """The client's side, plain: send `hello`, then `feed` what comes and send what it returns."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.hello: Final = VERSION + bytes(8) + secrets.token_bytes(SIZE - 8)
        self._received = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Raises InvalidError for what is no RTMP."""
        self._received += data
        if self._received and self._received[:1] != VERSION:
            raise InvalidError("the target does not speak RTMP", reason="NOT_RTMP")
        if len(self._received) <= 2 * SIZE:
            return b""
        self.done = True
        self.rest = bytes(self._received[2 * SIZE + 1 :])
        return bytes(self._received[1 : SIZE + 1])


def _answer(hello: bytes) -> bytes:
    """The server's three parts."""
    scheme = _signed_by_client(hello)
    if scheme is None:
        return VERSION + bytes(8) + secrets.token_bytes(SIZE - 8) + hello
    own = bytearray(bytes(4) + SERVER_VERSION + secrets.token_bytes(SIZE - 8))
    at = digest_at(bytes(own), scheme)
    own[at : at + DIGEST] = digest_of(bytes(own), at, SERVER_KEY)
    at = digest_at(hello, scheme)
    echo = secrets.token_bytes(SIZE - DIGEST)
    key = hmac.digest(SERVER_KEY + _TAIL, hello[at : at + DIGEST], hashlib.sha256)
    return VERSION + bytes(own) + echo + hmac.digest(key, echo, hashlib.sha256)


def _signed_by_client(hello: bytes) -> int | None:
    """The scheme by which there is a client's digest in `hello`, if there is one."""
    if hello[4:8] == bytes(4):
        return None
    for scheme in SCHEMES:
        at = digest_at(hello, scheme)
        if hmac.compare_digest(digest_of(hello, at, CLIENT_KEY), hello[at : at + DIGEST]):
            return scheme
    return None


def digest_at(part: bytes, scheme: int) -> int:
    """Where in `part` the digest is."""
    return sum(part[scheme : scheme + 4]) % DIGEST_SPAN + scheme + 4


def digest_of(part: bytes, at: int, key: bytes) -> bytes:
    """The digest over all of `part` but the digest's own place."""
    return hmac.digest(key, part[:at] + part[at + DIGEST :], hashlib.sha256)
