"""STUN and ICE, with aioice's STUN as the client's."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aioice import stun as client
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.transports.webrtc.ice import MOST_PATHS, STALE_S, IceAgent
from services.ingest.transports.webrtc.port import ADDRESSES, Port, open_port
from services.ingest.transports.webrtc.stun import Request, parse_request

HERE = ("192.0.2.1", 1000)
THERE = ("2001:db8::2", 2000)


def message(username: str, password: str | None, **attributes: object) -> bytes:
    made = client.Message(client.Method.BINDING, client.Class.REQUEST)
    made.attributes["USERNAME"] = username
    made.attributes["PRIORITY"] = attributes.pop("priority", 100)
    for name, value in attributes.items():
        made.attributes[name.replace("_", "-")] = value
    if password is not None:
        made.add_message_integrity(password.encode())
    return bytes(made)


def check(agent: IceAgent, address: tuple[str, int], now_s: float = 0.0, **facts: object) -> bytes | None:
    mine = agent.credentials
    request = parse_request(message(f"{mine.ufrag}:{mine.remote}", mine.password, **facts))
    assert request is not None
    return agent.check(request, address, now_s)


@pytest.mark.parametrize("address", [HERE, THERE])
def test_a_signed_request_is_answered_with_where_it_came_from(address: tuple[str, int]) -> None:
    agent = IceAgent("them")
    answer = check(agent, address)
    assert answer is not None
    read = client.parse_message(answer)
    assert read.message_class is client.Class.RESPONSE
    assert read.attributes["XOR-MAPPED-ADDRESS"] == address
    assert read.check_message_integrity(agent.credentials.password.encode())
    assert agent.selected == address


@pytest.mark.parametrize(
    ("username", "password"), [("other:them", None), ("{ufrag}:somebody", None), ("{ufrag}:them", "wrong")]
)
def test_a_request_that_is_not_signed_by_this_client_is_not_answered(
    username: str, password: str | None
) -> None:
    agent = IceAgent("them")
    text = message(username.format(ufrag=agent.credentials.ufrag), password or agent.credentials.password)
    request = parse_request(text)
    assert request is not None
    assert agent.check(request, HERE, 0.0) is None
    assert agent.selected is None


def test_what_is_unsigned_is_no_request() -> None:
    assert parse_request(message("a:b", None)) is None


def test_a_client_that_leaves_the_decision_to_us_is_sent_back() -> None:
    agent = IceAgent("them")
    answer = check(agent, HERE, ICE_CONTROLLED=7)
    assert answer is not None
    assert client.parse_message(answer).error_code == 487
    assert agent.selected is None


def test_media_goes_where_the_client_says_and_not_where_it_only_looks() -> None:
    agent = IceAgent("them")
    check(agent, HERE, priority=200)
    assert not agent.nominated
    check(agent, THERE, priority=100, USE_CANDIDATE=None)
    assert agent.selected == THERE
    assert agent.nominated
    check(agent, HERE, priority=200)
    assert agent.selected == THERE


def test_the_better_of_two_ways_that_are_said_is_taken_in_any_order() -> None:
    for first, second in (((HERE, 200), (THERE, 100)), ((THERE, 100), (HERE, 200))):
        agent = IceAgent("them")
        for address, priority in (first, second, first, second):
            check(agent, address, priority=priority, USE_CANDIDATE=None)
        assert agent.selected == HERE


def test_a_way_that_died_yields_to_a_worse_one() -> None:
    agent = IceAgent("them")
    check(agent, HERE, 0.0, priority=200, USE_CANDIDATE=None)
    agent.heard(HERE, 1.0)
    check(agent, THERE, 1.0 + STALE_S, priority=100, USE_CANDIDATE=None)
    assert agent.selected == HERE
    check(agent, THERE, 1.1 + STALE_S, priority=100, USE_CANDIDATE=None)
    assert agent.selected == THERE


def test_a_restart_takes_new_names_and_answers_the_old_ones_until_these_are_used() -> None:
    agent = IceAgent("them")
    before = agent.credentials
    agent.restart("again")
    assert agent.credentials.ufrag != before.ufrag
    old = parse_request(message(f"{before.ufrag}:them", before.password, priority=500, USE_CANDIDATE=None))
    assert old is not None
    assert agent.check(old, HERE, 0.0) is not None
    assert check(agent, THERE) is not None
    assert agent.selected == THERE
    assert agent.check(old, HERE, 0.0) is None


def test_a_restart_that_is_not_used_yields_to_the_next() -> None:
    agent = IceAgent("them")
    check(agent, HERE, USE_CANDIDATE=None)
    agent.restart("again")
    unused = agent.credentials
    agent.restart("and again")
    request = parse_request(message(f"{unused.ufrag}:again", unused.password))
    assert request is not None
    assert agent.check(request, THERE, 0.0) is not None
    assert agent.selected == HERE
    assert check(agent, THERE) is not None
    assert agent.selected == THERE


def test_many_addresses_of_one_client_are_forgotten_but_not_the_one_in_use() -> None:
    agent = IceAgent("them")
    check(agent, HERE, 0.0, priority=500, USE_CANDIDATE=None)
    for number in range(3 * MOST_PATHS):
        check(agent, ("192.0.2.9", number), number / 1000)
    assert agent.selected == HERE


@given(st.binary(max_size=200))
def test_any_datagram_is_a_request_or_nothing(data: bytes) -> None:
    parse_request(data)
    parse_request(data[:2] + b"\0\0\x21\x12\xa4\x42" + data)


@given(st.data())
def test_a_damaged_request_is_never_authentic(data: st.DataObject) -> None:
    whole = message("ours:theirs", "password")
    place = data.draw(st.integers(0, len(whole) - 9))  # the fingerprint is behind what is signed
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    request = parse_request(bytes(damaged))
    assert request is None or not request.authentic("password")


class Recorder:
    """An endpoint that answers whatever has its name."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.signed = True

    def check(self, request: Request, address: tuple[str, int]) -> bytes | None:
        return b"answer" if self.signed else None

    def receive(self, data: bytes, address: tuple[str, int], now_s: float) -> None:
        self.taken.append(data)


class Wire:
    """A socket's end that only remembers."""

    family = 2

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, tuple[str, int]]] = []

    def sendto(self, data: bytes, address: tuple[str, int]) -> None:
        self.sent.append((data, address))


@pytest.fixture
def wire() -> Wire:
    return Wire()


def opened(wire: Wire) -> Port:
    return Port(wire, ())  # type: ignore[arg-type]  # only what is called


def test_datagrams_find_their_peer_by_name_and_then_by_address(wire: Wire) -> None:
    port, one, two = opened(wire), Recorder(), Recorder()
    port.add("one", one)
    port.add("two", two)
    port.take(b"\x80 media before anything", HERE)
    port.take(message("one:x", "p"), HERE)
    port.take(message("two:x", "p"), THERE)
    port.take(b"\x80 of one", HERE)
    port.take(b"\x16 of two", THERE)
    assert one.taken == [b"\x80 of one"]
    assert two.taken == [b"\x16 of two"]
    assert wire.sent == [(b"answer", HERE), (b"answer", THERE)]


def test_an_address_belongs_to_whoever_signed_last(wire: Wire) -> None:
    port, one, two = opened(wire), Recorder(), Recorder()
    port.add("one", one)
    port.add("two", two)
    port.take(message("one:x", "p"), HERE)
    port.take(message("two:x", "p"), HERE)
    port.take(b"\x80", HERE)
    assert (len(one.taken), len(two.taken)) == (0, 1)
    port.remove(one)
    port.take(b"\x80", HERE)
    assert len(two.taken) == 2


def test_an_unsigned_request_is_neither_answered_nor_remembered(wire: Wire) -> None:
    port, one = opened(wire), Recorder()
    one.signed = False
    port.add("one", one)
    port.take(message("one:x", "p"), HERE)
    port.take(message("nobody:x", "p"), HERE)
    port.take(b"\x80", HERE)
    assert not wire.sent
    assert not one.taken


def test_a_peer_that_is_removed_leaves_nothing(wire: Wire) -> None:
    port, one = opened(wire), Recorder()
    port.add("one", one)
    port.add("another", one)
    for number in range(2 * ADDRESSES):
        port.take(message("one:x", "p"), ("192.0.2.1", number))
    assert len(port._addresses) == ADDRESSES
    port.remove(one)
    port.remove(one)
    assert not port._addresses
    assert not port._names
    assert not port._held


@pytest.mark.parametrize(
    ("listen", "advertised", "expected"),
    [
        ("127.0.0.1:0", "", [("127.0.0.1", 0)]),
        ("[::1]:0", "", [("::1", 0)]),
        ("127.0.0.1:0", "192.0.2.7", [("192.0.2.7", 0)]),
        ("127.0.0.1:0", "192.0.2.7:9999, 2001:db8::7, [2001:db8::8]:7", [
            ("192.0.2.7", 9999), ("2001:db8::7", 0), ("2001:db8::8", 7),
        ]),
        ("127.0.0.1:0", "localhost:80", [("127.0.0.1", 80)]),
    ],
)  # fmt: skip
async def test_clients_are_told_where_the_port_is(
    listen: str, advertised: str, expected: list[tuple[str, int]]
) -> None:
    async with open_port(listen, advertised) as port:
        assert list(port.candidates) == [(host, number or port.listening) for host, number in expected]


@pytest.mark.parametrize(
    ("listen", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::1]:0", "::1")]
)
async def test_datagrams_come_and_go_by_either_protocol(listen: str, host: str) -> None:
    loop = asyncio.get_running_loop()
    async with open_port(listen, "127.0.0.1") as port:
        endpoint = Recorder()
        port.add("one", endpoint)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client_socket:
            client_socket.setblocking(False)
            client_socket.connect((host, port.listening))
            client_socket.send(message("one:x", "p"))
            client_socket.send(b"\x80 media")
            async with asyncio.timeout(5):
                assert await loop.sock_recv(client_socket, 100) == b"answer"
                while not endpoint.taken:
                    await asyncio.sleep(0.01)
        assert endpoint.taken == [b"\x80 media"]


@given(st.lists(st.binary(max_size=60)))
def test_any_datagrams_on_the_port_are_harmless(datagrams: list[bytes]) -> None:
    wire = Wire()
    port = opened(wire)
    port.add("one", Recorder())
    for data in datagrams:
        port.take(data, HERE)
    assert not wire.sent
