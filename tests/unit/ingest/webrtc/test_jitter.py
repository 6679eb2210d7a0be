from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.transports.webrtc.jitter import CAPACITY, Frame, JitterBuffer
from services.ingest.transports.webrtc.rtp import Packet

PATIENCE_S = 0.15


def packet(timestamp: int, payload: bytes, *, marker: bool = False) -> Packet:
    return Packet(96, marker, 0, timestamp, 1, payload)


def stream(frames: int, sizes: list[int], every: int) -> list[Packet]:
    """`frames` frames of some packets each; a payload says its frame and part, `K` that it begins anew."""
    packets = []
    for index in range(frames):
        count = sizes[index % len(sizes)]
        for part in range(count):
            head = b"K" if index % every == 0 and part == 0 else b"P"
            payload = head + b"%d.%d/%d" % (index, part, count)
            packets.append(packet(index * 3000, payload, marker=part == count - 1))
    return packets


def begins(payload: bytes) -> bool:
    return payload.startswith(b"K")


def video() -> JitterBuffer:
    return JitterBuffer(patience_s=PATIENCE_S, begins=begins)


def assert_whole(frame: Frame) -> int:
    """Check that every part of the frame is there, in order; return its number."""
    index, _, rest = frame.payloads[0][1:].partition(b".")
    count = int(rest.partition(b"/")[2])
    assert [part[1:] for part in frame.payloads] == [
        b"%s.%d/%d" % (index, part, count) for part in range(count)
    ]
    assert frame.timestamp == int(index) * 3000
    return int(index)


def test_a_frame_comes_out_with_its_last_packet_and_not_with_the_next_frames() -> None:
    buffer = video()
    first, second, third = stream(1, [3], 1)
    assert buffer.add(0, first, 0.0) == []
    assert buffer.add(1, second, 0.001) == []
    (frame,) = buffer.add(2, third, 0.002)
    assert frame.arrived_s == 0.002
    assert not frame.after_loss


def test_a_frame_without_marker_comes_out_with_the_next_one() -> None:
    buffer = video()
    assert buffer.add(0, packet(0, b"K0.0/1"), 0.0) == []
    (frame,) = buffer.add(1, packet(3000, b"P1.0/1"), 0.0)
    assert assert_whole(frame) == 0


def test_what_is_late_within_the_patience_delays_and_loses_nothing() -> None:
    buffer = video()
    packets = stream(4, [1], 4)
    assert len(buffer.add(0, packets[0], 0.0)) == 1
    assert buffer.add(2, packets[2], 0.01) == []
    assert buffer.missing() == [1]
    assert buffer.due_s == 0.01 + PATIENCE_S
    assert buffer.expire(0.1) == []
    assert [assert_whole(frame) for frame in buffer.add(1, packets[1], 0.12)] == [1, 2]
    assert buffer.due_s is None
    assert buffer.missing() == []


def test_what_does_not_come_is_given_up_with_all_that_needs_it() -> None:
    buffer = video()
    packets = stream(8, [1], 5)
    buffer.add(0, packets[0], 0.0)
    for index in range(2, 8):
        buffer.add(index, packets[index], 0.0)
    frames = buffer.expire(PATIENCE_S)
    assert [assert_whole(frame) for frame in frames] == [5, 6, 7]
    assert [frame.after_loss for frame in frames] == [True, False, False]
    assert buffer.given_up == 1
    assert buffer.add(1, packets[1], 0.2) == []  # too late now
    assert buffer.late == 1


def test_nothing_comes_out_before_something_that_can_be_decoded() -> None:
    buffer = video()
    packets = stream(6, [2], 4)
    frames = [frame for index in range(3, 12) for frame in buffer.add(index, packets[index], 0.0)]
    assert [assert_whole(frame) for frame in frames] == [4, 5]


def test_what_was_given_out_is_not_given_out_again_after_a_loss() -> None:
    buffer = video()
    packets = stream(4, [1], 1)
    (frame,) = buffer.add(0, packets[0], 0.0)
    assert assert_whole(frame) == 0
    buffer.add(2, packet(6000, b"P2.0/1", marker=True), 0.0)
    assert buffer.expire(PATIENCE_S) == []
    assert buffer.add(0, packets[0], 0.2) == []
    (frame,) = buffer.add(3, packets[3], 0.3)
    assert (assert_whole(frame), frame.after_loss) == (3, True)


def test_padding_is_no_frame() -> None:
    buffer = video()
    (frame,) = buffer.add(0, packet(0, b"K0.0/1", marker=True), 0.0)
    assert buffer.add(1, packet(0, b""), 0.0) == []
    (frame,) = buffer.add(2, packet(3000, b"P1.0/1", marker=True), 0.0)
    assert assert_whole(frame) == 1
    assert frame.payloads == [b"P1.0/1"]


def test_sound_goes_on_behind_what_is_given_up() -> None:
    buffer = JitterBuffer(patience_s=0.06, begins=None)
    assert len(buffer.add(0, packet(0, b"a"), 0.0)) == 1
    assert buffer.add(2, packet(1920, b"c"), 0.02) == []
    assert buffer.add(3, packet(2880, b"d"), 0.04) == []
    assert [frame.payloads for frame in buffer.expire(0.08)] == [[b"c"], [b"d"]]


def test_it_holds_no_more_than_its_capacity() -> None:
    buffer = video()
    buffer.add(0, packet(0, b"K0.0/1", marker=True), 0.0)
    for index in range(2, 3 * CAPACITY):
        buffer.add(index, packet(index, b"P"), 0.0)
        assert len(buffer._packets) <= CAPACITY + 1
    assert buffer.given_up
    searching = video()
    for index in range(3 * CAPACITY):
        searching.add(index, packet(index, b"P"), 0.0)
        assert len(searching._packets) <= CAPACITY + 1


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.integers(1, 12),
    st.lists(
        st.tuples(st.sampled_from(["ok", "ok", "ok", "lose", "twice", "late"]), st.integers(1, 30)),
        max_size=60,
    ),
)
def test_whatever_a_network_does_frames_are_whole_in_order_and_decodable(
    sizes: list[int], every: int, network: list[tuple[str, int]]
) -> None:
    packets = stream(40, sizes, every)
    arrivals: list[tuple[float, int]] = []
    lost = set()
    for index in range(len(packets)):
        what, delay = network[index % len(network)] if network else ("ok", 0)
        at_s = index * 0.01
        if what == "lose":
            lost.add(index)
            continue
        arrivals.append((at_s + (delay / 100 if what == "late" else 0), index))
        if what == "twice":
            arrivals.append((at_s + delay / 100, index))
    buffer = video()
    frames: list[Frame] = []
    now_s = 0.0
    for now_s, index in sorted(arrivals):
        frames += buffer.expire(now_s)
        frames += buffer.add(index, packets[index], now_s)
    frames += buffer.expire(now_s + 1.0)
    numbers = [assert_whole(frame) for frame in frames]
    assert numbers == sorted(set(numbers))
    previous = None
    for number, frame in zip(numbers, frames, strict=True):
        if previous is None or number != previous + 1 or frame.after_loss:
            assert frame.payloads[0].startswith(b"K")
        previous = number
    if not lost and not any(what == "late" for what, _ in network):
        assert numbers == list(range(40))
