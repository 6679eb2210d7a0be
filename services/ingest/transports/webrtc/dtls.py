"""DTLS (RFC 9147's 1.2) and the SRTP keys from it (RFC 5764), without a task: datagrams in, datagrams out.

The rule it keeps: nothing of the peer is believed before its certificate has the fingerprint of its offer.
"""

from __future__ import annotations

import asyncio
import datetime
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import pylibsrtp
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from pylibsrtp import Policy, Session

log = structlog.get_logger()
MTU: Final = 1200
RECORD_HEADER: Final = 13  # bytes; the last two of them are the length
LARGEST_RECORD: Final = 16_384
VALID_FOR: Final = datetime.timedelta(days=3650)  # browsers compare the fingerprint, not the dates
HASHES: Final = {"sha-256": hashes.SHA256(), "sha-384": hashes.SHA384(), "sha-512": hashes.SHA512()}
CIPHERS: Final = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"
    b":ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA"
    # As the client we may meet a server with an RSA certificate.
    b":ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-SHA"
)
REPLAY_WINDOW: Final = 1024  # packets: what a retransmission may be behind at 10 Mbit/s


@dataclass(frozen=True, slots=True)
class Profile:
    """An SRTP profile as OpenSSL and libsrtp name it, and the sizes of its key and salt."""

    name: bytes
    policy: int
    key: int
    salt: int


# AES-GCM first: one pass over the bytes with the processor's own instructions.
PROFILES: Final = (
    Profile(b"SRTP_AEAD_AES_128_GCM", Policy.SRTP_PROFILE_AEAD_AES_128_GCM, 16, 12),
    Profile(b"SRTP_AEAD_AES_256_GCM", Policy.SRTP_PROFILE_AEAD_AES_256_GCM, 32, 12),
    Profile(b"SRTP_AES128_CM_SHA1_80", Policy.SRTP_PROFILE_AES128_CM_SHA1_80, 16, 14),
)


def usable_profiles() -> tuple[Profile, ...]:
    """Those that this libsrtp was built with."""
    found = []
    for profile in PROFILES:
        try:
            Policy(srtp_profile=profile.policy)
        except pylibsrtp.Error:
            continue
        found.append(profile)
    return tuple(found)


class Certificate:
    """A key pair of this process, and its fingerprint; all peers of the process have the same."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, secrets.token_hex(8))])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + VALID_FOR)
            .sign(key, hashes.SHA256())
        )
        self.fingerprint = f"sha-256 {_digest(certificate, 'sha-256')}"
        self.profiles = usable_profiles()
        self.context = SSL.Context(SSL.DTLS_METHOD)
        self.context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_QUERY_MTU)
        # Any certificate will do here: `Dtls` compares its fingerprint.
        self.context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        self.context.use_certificate(certificate)
        self.context.use_privatekey(key)
        self.context.set_cipher_list(CIPHERS)
        self.context.set_tlsext_use_srtp(b":".join(profile.name for profile in self.profiles))


def _digest(certificate: x509.Certificate, algorithm: str) -> str:
    return certificate.fingerprint(HASHES[algorithm]).hex(":").upper()


class Dtls:
    """One connection. `send` takes datagrams, `opened` and `closed` are called once, `data` per record."""

    def __init__(
        self,
        certificate: Certificate,
        fingerprints: Iterable[tuple[str, str]],
        *,
        client: bool,
        send: Callable[[bytes], None],
        opened: Callable[[], None],
        data: Callable[[bytes], None],
        closed: Callable[[str], None],
    ) -> None:
        self.client = client
        self.outgoing: Session | None = None  # SRTP, when open
        self.incoming: Session | None = None
        self._certificate = certificate
        self._fingerprints = tuple(fingerprints)
        self._send = send
        self._opened = opened
        self._data = data
        self._closed = closed
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self._connection: SSL.Connection | None = None

    @property
    def open(self) -> bool:
        return self.outgoing is not None and not self._over

    @property
    def begun(self) -> bool:
        return self._connection is not None

    def begin(self) -> None:
        """Begin the handshake; as the server, wait for the client's hello."""
        self._connection = SSL.Connection(self._certificate.context)
        self._connection.set_ciphertext_mtu(MTU)
        if self.client:
            self._connection.set_connect_state()
            self._shake_hands()
        else:
            self._connection.set_accept_state()

    def receive(self, datagram: bytes) -> None:
        """Take a datagram whose first byte is 20 to 63 (RFC 7983)."""
        if self._over or not datagram:
            return
        if self._connection is None:
            if self.client:
                return
            self.begin()
        assert self._connection is not None
        self._connection.bio_write(datagram)
        if self.open:
            self._read()
        else:
            self._shake_hands()

    def _shake_hands(self) -> None:
        assert self._connection is not None
        self._cancel_timer()
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._flush()
            self._set_timer()
            return
        except SSL.Error as error:
            log.info("dtls handshake failed", error=str(error))
            self._flush()  # the alert
            self._end("dtls_failed")
            return
        self._flush()
        if not self._known():
            self._end("dtls_fingerprint")
            return
        if not self._derive():
            self._end("dtls_no_srtp")
            return
        self._opened()
        self._read()  # what came with the end of the handshake

    def _known(self) -> bool:
        """Whether each fingerprint of the offer that we can compute is the certificate's; RFC 8122 §5."""
        assert self._connection is not None
        found = self._connection.get_peer_certificate(as_cryptography=True)
        usable = [(algorithm, value) for algorithm, value in self._fingerprints if algorithm in HASHES]
        return (
            found is not None
            and bool(usable)
            and all(_digest(found, algorithm) == value for algorithm, value in usable)
        )

    def _derive(self) -> bool:
        """Make the SRTP sessions: RFC 5764 §4.2."""
        assert self._connection is not None
        name = self._connection.get_selected_srtp_profile()
        profile = next((each for each in self._certificate.profiles if each.name == name), None)
        if profile is None:
            return False
        size = profile.key + profile.salt
        material = self._connection.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * size)
        salts = 2 * profile.key
        clients = material[: profile.key] + material[salts : salts + profile.salt]
        servers = material[profile.key : salts] + material[salts + profile.salt :]
        ours, theirs = (clients, servers) if self.client else (servers, clients)
        self.outgoing = _srtp(profile, ours, Policy.SSRC_ANY_OUTBOUND)
        self.incoming = _srtp(profile, theirs, Policy.SSRC_ANY_INBOUND)
        return True

    def _read(self) -> None:
        assert self._connection is not None
        while not self._over:
            try:
                record = self._connection.recv(LARGEST_RECORD)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                self._end("dtls_closed")
                return
            except SSL.Error:
                break  # a damaged record: RFC 6347 §4.1.2.7 has it dropped
            self._data(record)
        self._flush()

    def write(self, data: bytes) -> None:
        """Send application data; nothing where there is no connection."""
        if not self.open:
            return
        assert self._connection is not None
        try:
            self._connection.send(data)
        except SSL.Error:
            return  # the other side ended it
        self._flush()

    def close(self) -> None:
        """Tell the other side that this is the end; `closed` is not called."""
        self._over = True
        self._cancel_timer()
        if self._connection is not None and self.outgoing is not None:
            try:
                self._connection.shutdown()
            except SSL.Error:
                return  # it was not there any more
            self._flush()

    def _end(self, reason: str) -> None:
        if not self._over:
            self._over = True
            self._cancel_timer()
            self._closed(reason)

    def _flush(self) -> None:
        """Send what OpenSSL wrote: whole records, together where they fit."""
        assert self._connection is not None
        written = bytearray()
        while True:
            try:
                written += self._connection.bio_read(LARGEST_RECORD)
            except SSL.Error:
                break
        for datagram in _datagrams(bytes(written)):
            self._send(datagram)

    def _set_timer(self) -> None:
        assert self._connection is not None
        timeout_s = self._connection.DTLSv1_get_timeout()
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(timeout_s, self._resend)

    def _resend(self) -> None:
        assert self._connection is not None
        self._timer = None
        try:
            self._connection.DTLSv1_handle_timeout()
        except SSL.Error:
            self._end("dtls_timeout")
            return
        self._flush()
        self._set_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _datagrams(written: bytes) -> Iterator[bytes]:
    start = place = 0
    while place + RECORD_HEADER <= len(written):
        following = place + RECORD_HEADER + int.from_bytes(written[place + 11 : place + 13], "big")
        if following - start > MTU and place > start:
            yield written[start:place]
            start = place
        place = following
    if start < len(written):
        yield written[start:]


def _srtp(profile: Profile, key: bytes, direction: int) -> Session:
    policy = Policy(key=key, ssrc_type=direction, srtp_profile=profile.policy)
    policy.allow_repeat_tx = True
    policy.window_size = REPLAY_WINDOW
    return Session(policy)
