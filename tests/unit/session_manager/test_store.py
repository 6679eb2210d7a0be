"""Records on the wire and back."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from protos.sessions.v1 import sessions_pb2 as pb
from services.session_manager.machine import (
    Delivery,
    Latency,
    Move,
    Phase,
    Place,
    Policy,
    Session,
    SessionId,
    StageLatency,
    Stream,
    StreamId,
    Wishes,
)
from services.session_manager.revisions import Before, Scheduled
from services.session_manager.store import (
    patch_to_proto,
    session_from_proto,
    session_to_proto,
    stream_from_proto,
    stream_to_proto,
    written,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
COUNT = st.integers(0, 2**63 - 1)
SMALL = st.integers(0, 2**31 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PARAMS = st.dictionaries(TEXT, VALUES, max_size=4)

WISHES = st.builds(
    Wishes,
    region=TEXT,
    gpu_class=TEXT,
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
    max_micro_per_second=COUNT,
    policy=st.sampled_from(Policy),
    priority=st.integers(-100, 100),
    max_wait_ms=COUNT,
)
PLACES = st.builds(
    Place,
    runner=TEXT,
    address=TEXT,
    slot=SMALL,
    slot_epoch=COUNT,
    epoch=COUNT,
    boot_id=TEXT,
    why=TEXT,
)
MOVES = st.builds(
    Move,
    unix_ms=COUNT,
    left=TEXT,
    to=TEXT,
    why=TEXT,
    epoch=COUNT,
    freeze_ms=COUNT,
    lost=COUNT,
    repeated=COUNT,
)

SESSIONS = st.builds(
    Session,
    id=TEXT.map(SessionId),
    stream=TEXT.map(StreamId),
    tenant=TEXT,
    pipeline=TEXT,
    owner=TEXT,
    bridge=TEXT,
    created_unix_ms=COUNT,
    phase=st.sampled_from(Phase),
    end_reason=TEXT,
    end_message=TEXT,
    epoch=COUNT,
    runner=TEXT,
    runner_address=TEXT,
    slot=SMALL,
    slot_epoch=COUNT,
    paid_until_ms=COUNT,
    micro_per_second=COUNT,
    ended_unix_ms=COUNT,
    settled=st.booleans(),
    revision=COUNT,
    degraded_by=TEXT,
    traceparent=TEXT,
    delivery=st.sampled_from(Delivery),
    max_duration_ms=COUNT,
    latency=st.builds(
        Latency, COUNT, st.lists(st.builds(StageLatency, TEXT, COUNT, COUNT), max_size=3).map(tuple)
    ),
    wishes=WISHES,
    next=st.none() | PLACES,
    move_wanted=TEXT,
    moves=st.lists(MOVES, max_size=3).map(tuple),
    failures=SMALL,
    bridge_lost_unix_ms=COUNT,
    boot_id=TEXT,
)
STREAMS = st.builds(
    Stream,
    id=TEXT.map(StreamId),
    tenant=TEXT,
    name=TEXT,
    pipeline=TEXT,
    params=PARAMS,
    params_schema=PARAMS,
    created_unix_ms=COUNT,
    revision=COUNT,
    delivery=st.sampled_from(Delivery),
    session=TEXT,
    last_session=TEXT,
    output_rtmp_url=TEXT,
    processes_audio=st.booleans(),
    author=TEXT,
    deleted=st.booleans(),
    scheduled=st.lists(st.builds(Scheduled, COUNT, PARAMS, COUNT), max_size=3).map(tuple),
    history=st.lists(st.builds(Before, COUNT, PARAMS, st.lists(TEXT).map(tuple)), max_size=3).map(tuple),
    wishes=WISHES,
)


@given(SESSIONS)
def test_a_session_comes_back_from_its_bytes_as_it_was(session: Session) -> None:
    raw = session_to_proto(session).SerializeToString()
    assert session_from_proto(pb.Session.FromString(raw)) == session


@given(STREAMS)
def test_a_stream_comes_back_from_its_bytes_as_it_was(stream: Stream) -> None:
    raw = stream_to_proto(stream).SerializeToString()
    assert stream_from_proto(pb.Stream.FromString(raw)) == stream


def test_the_wire_has_every_fact_of_a_record_and_no_other() -> None:
    assert {field.name for field in fields(Session)} == {f.name for f in pb.Session.DESCRIPTOR.fields}
    assert {field.name for field in fields(Stream)} == {f.name for f in pb.Stream.DESCRIPTOR.fields}


def test_the_wires_phases_are_the_machines() -> None:
    wire = {name.removeprefix("PHASE_"): value for name, value in pb.Phase.items() if value}
    assert wire == {phase.name: phase.value for phase in Phase}


def test_a_patch_is_json_with_its_revision_and_its_picture() -> None:
    message = patch_to_proto(Scheduled(3, {"b": None, "a": 1}, 90_000))
    assert (message.revision, message.patch, message.apply_at_pts) == (3, '{"a":1,"b":null}', 90_000)


def test_what_a_newer_version_wrote_beside_stays_when_an_older_one_changes_the_record() -> None:
    """In a rollout both have the same records in their hands."""
    newer = b"\xf8\x3f\x07"  # field 1023, a number
    was = pb.Session(id="ses_aaaaaaaa", phase=pb.PHASE_LIVE, move_wanted="drain").SerializeToString() + newer
    raw = written(pb.Session(id="ses_aaaaaaaa", phase=pb.PHASE_ENDED), was)
    assert pb.Session.FromString(raw).phase == pb.PHASE_ENDED
    assert pb.Session.FromString(raw).move_wanted == "", "what is known is as it was written"
    assert raw.endswith(newer)
