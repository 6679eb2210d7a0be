"""The one UDP port of this process, shared by all its peers: by the name in a STUN request, then by address.

The rule it keeps: an address belongs to a peer once a request from it was signed with that peer's password;
nobody else gets an answer, so that nothing can be reflected.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

from prometheus_client import Counter

from services.common.settings import host_port
from services.ingest.transports.webrtc import stun

DROPPED: Final = Counter(
    "sluice_webrtc_datagrams_dropped_total", "UDP datagrams that nobody could use, by why.", ["reason"]
)
BUFFER_BYTES: Final = 8 * 2**20  # a burst of key frames of 25 streams
LARGEST: Final = 2048  # bytes; no datagram of WebRTC is larger than an Ethernet frame
BATCH: Final = 64  # datagrams read at once, before others get their turn
ADDRESSES: Final = 16  # of one peer: its networks, and what a network's NAT makes of them
RESOLVE_S: Final = 10.0

Address = tuple[str, int]


class Endpoint(Protocol):
    """What is behind an address."""

    def check(self, request: stun.Request, address: Address) -> bytes | None:
        """Answer a request with our name; None when it is not signed with our password."""

    def receive(self, data: bytes, address: Address, now_s: float) -> None: ...


class Port:
    """Reads and writes datagrams. `candidates` is what clients are told: addresses with their ports."""

    def __init__(self, udp: socket.socket, candidates: tuple[Address, ...]) -> None:
        self.candidates = candidates
        self._socket = udp
        self._wide = udp.family == socket.AF_INET6
        self._names: dict[str, Endpoint] = {}
        self._addresses: dict[Address, Endpoint] = {}
        self._held: dict[Endpoint, dict[Address, None]] = {}

    @property
    def listening(self) -> int:
        """The port's number."""
        return int(self._socket.getsockname()[1])

    def add(self, name: str, endpoint: Endpoint) -> None:
        """Give requests for `name` (our ICE username fragment) to `endpoint`."""
        assert name not in self._names, name
        self._names[name] = endpoint
        self._held.setdefault(endpoint, {})

    def forget_name(self, name: str) -> None:
        self._names.pop(name, None)

    def remove(self, endpoint: Endpoint) -> None:
        """Forget everything about `endpoint`; again is harmless."""
        for address in self._held.pop(endpoint, {}):
            del self._addresses[address]
        self._names = {name: held for name, held in self._names.items() if held is not endpoint}

    def send(self, data: bytes, address: Address) -> bool:
        """Send a datagram; False when the kernel takes no more, or the network is not there."""
        try:
            self._socket.sendto(data, self._outward(address) if self._wide else address)
        except BlockingIOError:
            DROPPED.labels("send_buffer").inc()
            return False
        except OSError:
            DROPPED.labels("send_error").inc()
            return False
        return True

    def _outward(self, address: Address) -> Address:
        host, port = address
        return (host if ":" in host else f"::ffff:{host}"), port

    def readable(self) -> None:
        for _ in range(BATCH):
            try:
                data, origin = self._socket.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                DROPPED.labels("receive_error").inc()  # an ICMP error of an earlier datagram
                continue
            host, port = origin[:2]
            address = (host.removeprefix("::ffff:") if self._wide and "." in host else host), port
            self.take(data, address)

    def take(self, data: bytes, address: Address) -> None:
        """Give a datagram to whom it is for."""
        if not data:
            DROPPED.labels("empty").inc()
        elif data[0] < 4:
            self._take_request(data, address)
        elif (endpoint := self._addresses.get(address)) is not None:
            endpoint.receive(data, address, time.monotonic())
        else:
            DROPPED.labels("unknown_address").inc()

    def _take_request(self, data: bytes, address: Address) -> None:
        request = stun.parse_request(data)
        if request is None:
            DROPPED.labels("no_request").inc()
            return
        endpoint = self._names.get(request.username.partition(":")[0])
        if endpoint is None:
            DROPPED.labels("unknown_name").inc()
            return
        answer = endpoint.check(request, address)
        if answer is None:
            DROPPED.labels("unsigned").inc()
            return
        self._claim(address, endpoint)
        self.send(answer, address)

    def _claim(self, address: Address, endpoint: Endpoint) -> None:
        if self._addresses.get(address) is endpoint or endpoint not in self._held:
            return
        if (before := self._addresses.get(address)) is not None:
            del self._held[before][address]  # a client connects again from the same port
        held = self._held[endpoint]
        if len(held) >= ADDRESSES:
            oldest = next(iter(held))
            del held[oldest]
            del self._addresses[oldest]
        held[address] = None
        self._addresses[address] = endpoint


@asynccontextmanager
async def open_port(listen: str, advertised: str) -> AsyncIterator[Port]:
    """Listen; `advertised`: what clients are told, by commas, each `host` or `host:port`; empty: the host."""
    host, number = host_port(listen)
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        udp.setblocking(False)
        _widen(udp, socket.SO_RCVBUF)
        _widen(udp, socket.SO_SNDBUF)
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.bind((host, number))
        bound = int(udp.getsockname()[1])
        places = [place.strip() for place in advertised.split(",") if place.strip()] or [_own_address(host)]
        async with asyncio.timeout(RESOLVE_S):
            candidates = [await _resolved(place, bound) for place in places]
        port = Port(udp, tuple(candidates))
        loop.add_reader(udp.fileno(), port.readable)
        try:
            yield port
        finally:
            loop.remove_reader(udp.fileno())
    finally:
        udp.close()


def _widen(udp: socket.socket, option: int) -> None:
    """As much as the system allows: the privileged way where we may, else up to its limit."""
    force = {socket.SO_RCVBUF: 33, socket.SO_SNDBUF: 32}[option]  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
    try:
        udp.setsockopt(socket.SOL_SOCKET, force, BUFFER_BYTES)
    except PermissionError:
        udp.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)


def _own_address(host: str) -> str:
    """`host`, or for one that means every interface the address from which the default route is used."""
    if host not in {"0.0.0.0", "::"}:  # noqa: S104 - it is compared with
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # documentation's address: nothing is sent by connecting
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


async def _resolved(place: str, bound: int) -> Address:
    """An address: candidates with names are not for everybody."""
    host, port = (place, bound) if _bare(place) else host_port(place)
    host = host.strip("[]")
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    address = found[0][4]
    return str(address[0]), int(address[1])


def _bare(place: str) -> bool:
    """Whether there is no port behind the host."""
    return place.count(":") != 1 and "]:" not in place
