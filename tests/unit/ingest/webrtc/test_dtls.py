"""Two of ours against each other, and what strangers do to one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.transports.webrtc.dtls import MTU, Certificate, Dtls

CERTIFICATE = Certificate()


class Side:
    """One end, and what became of it."""

    def __init__(
        self, *, client: bool, expects: Certificate = CERTIFICATE, mine: Certificate = CERTIFICATE
    ) -> None:
        self.opened = 0
        self.over: list[str] = []
        self.records: list[bytes] = []
        self.sent: list[bytes] = []
        self.deliver: Callable[[bytes], None] | None = None
        algorithm, value = expects.fingerprint.split()
        self.dtls = Dtls(
            mine,
            [(algorithm, value)],
            client=client,
            send=self._send,
            opened=self._open,
            data=self.records.append,
            closed=self.over.append,
        )

    def _open(self) -> None:
        self.opened += 1

    def _send(self, data: bytes) -> None:
        self.sent.append(data)
        if self.deliver is not None:
            asyncio.get_running_loop().call_soon(self.deliver, data)


def joined(client: Side, server: Side) -> None:
    client.deliver, server.deliver = server.dtls.receive, client.dtls.receive
    client.dtls.begin()


async def settled(*sides: Side) -> None:
    async with asyncio.timeout(10):
        while not all(side.opened or side.over for side in sides):
            await asyncio.sleep(0.005)


async def pair() -> tuple[Side, Side]:
    client, server = Side(client=True), Side(client=False)
    joined(client, server)
    await settled(client, server)
    return client, server


async def test_both_ends_have_the_same_keys() -> None:
    client, server = await pair()
    packet = b"\x80\x60" + bytes(30)
    for ours, theirs in ((client, server), (server, client)):
        assert ours.opened == 1
        assert ours.dtls.outgoing is not None
        assert theirs.dtls.incoming is not None
        assert theirs.dtls.incoming.unprotect(ours.dtls.outgoing.protect(packet)) == packet
    assert all(len(data) <= MTU for data in client.sent + server.sent)


async def test_data_goes_both_ways_and_the_end_is_told() -> None:
    client, server = await pair()
    client.dtls.write(b"to the server")
    server.dtls.write(b"to the client")
    await asyncio.sleep(0.05)
    assert server.records == [b"to the server"]
    assert client.records == [b"to the client"]
    client.dtls.close()
    await asyncio.sleep(0.05)
    assert server.over == ["dtls_closed"]
    assert client.over == []
    client.dtls.write(b"nobody is there")
    server.dtls.close()


async def test_a_certificate_that_was_not_offered_is_refused() -> None:
    other = Certificate()
    client, server = Side(client=True, expects=other), Side(client=False)
    joined(client, server)
    await settled(client)
    assert client.over == ["dtls_fingerprint"]
    assert client.dtls.outgoing is None
    server.dtls.close()


@pytest.mark.looptime
async def test_a_lost_flight_is_sent_again() -> None:
    client, server = Side(client=True), Side(client=False)
    client.dtls.begin()
    assert len(client.sent) == 1
    client.sent.clear()  # it is lost
    assert client.dtls._timer is not None
    client.dtls._timer.cancel()
    client.dtls._resend()
    # OpenSSL's own clock has not reached a second, so nothing is due; the timer is set for the rest of it.
    assert client.dtls._timer is not None
    client.dtls.close()
    assert client.dtls._timer is None
    server.dtls.close()


async def test_a_damaged_record_costs_itself() -> None:
    client, server = await pair()
    server.dtls.receive(b"\x17\xfe\xfd\x00\x01\x00\x00\x00\x00\x00\x09\x00\x10" + bytes(16))
    client.dtls.write(b"still here")
    await asyncio.sleep(0.05)
    assert server.records == [b"still here"]
    client.dtls.close()
    server.dtls.close()


@given(st.lists(st.binary(max_size=120), max_size=5), st.booleans())
async def test_any_datagrams_end_it_at_most(datagrams: list[bytes], framed: bool) -> None:
    server = Side(client=False)
    for data in datagrams:
        record = b"\x16\xfe\xfd" + bytes(8) + len(data).to_bytes(2, "big") + data
        server.dtls.receive(record if framed else data)
    assert not server.opened
    assert len(server.over) <= 1
    server.dtls.close()
