"""A process of the last release still understands one of this tree: what is on the wire only ever grows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from tests.support.wire_release import COMMAND, breaks, current, released


def test_nothing_that_was_released_is_broken() -> None:
    found = breaks(released(), current())
    assert not found, "\n".join([*found, f"reserve what you remove; with a release: {COMMAND}"])


def test_the_release_knows_every_area() -> None:
    packages = {file.package for file in released().file}
    assert packages <= {file.package for file in current().file}
    assert {
        f"sluice.{area}.v1" for area in ("billing", "events", "inference", "ingest", "router", "sessions")
    } <= packages


def copied() -> FileDescriptorSet:
    files = FileDescriptorSet()
    files.CopyFrom(current())
    return files


def file(files: FileDescriptorSet, area: str) -> FileDescriptorProto:
    return next(one for one in files.file if one.package == f"sluice.{area}.v1")


def message(files: FileDescriptorSet, area: str, name: str) -> DescriptorProto:
    return next(one for one in file(files, area).message_type if one.name == name)


def field(files: FileDescriptorSet, area: str, of: str, name: str) -> FieldDescriptorProto:
    return next(one for one in message(files, area, of).field if one.name == name)


def enum(files: FileDescriptorSet, area: str, name: str) -> EnumDescriptorProto:
    return next(one for one in file(files, area).enum_type if one.name == name)


def change_type(files: FileDescriptorSet) -> None:
    field(files, "sessions", "Session", "tenant").type = FieldDescriptorProto.TYPE_INT32


def change_width(files: FileDescriptorSet) -> None:
    field(files, "billing", "Entry", "micro").type = FieldDescriptorProto.TYPE_INT32


def change_label(files: FileDescriptorSet) -> None:
    field(files, "events", "Heartbeat", "claims").label = FieldDescriptorProto.LABEL_OPTIONAL


def change_message_type(files: FileDescriptorSet) -> None:
    field(files, "inference", "UpdateRequest", "patch").type_name = ".sluice.inference.v1.DrainRequest"


def reuse_number(files: FileDescriptorSet) -> None:
    field(files, "events", "UsageWindow", "quantity").name = "litres"


def remove_field(files: FileDescriptorSet) -> None:
    fields = message(files, "events", "UsageWindow").field
    fields.remove(field(files, "events", "UsageWindow", "quantity"))


def remove_message(files: FileDescriptorSet) -> None:
    file(files, "router").message_type.remove(message(files, "router", "Grant"))


def change_map(files: FileDescriptorSet) -> None:
    (entry,) = message(files, "router", "Requirements").nested_type
    entry.field[1].type = FieldDescriptorProto.TYPE_INT64


def rename_value(files: FileDescriptorSet) -> None:
    enum(files, "sessions", "Phase").value[3].name = "PHASE_ALIVE"


def remove_value(files: FileDescriptorSet) -> None:
    del enum(files, "ingest", "Publisher").value[-1]


def rename_nested_value(files: FileDescriptorSet) -> None:
    message(files, "inference", "SlotReport").enum_type[0].value[2].name = "STATE_GOING"


def remove_method(files: FileDescriptorSet) -> None:
    del file(files, "billing").service[0].method[0]


def change_request(files: FileDescriptorSet) -> None:
    file(files, "billing").service[0].method[0].input_type = ".sluice.billing.v1.PricesRequest"


def stream_answer(files: FileDescriptorSet) -> None:
    file(files, "billing").service[0].method[0].server_streaming = True


def remove_service(files: FileDescriptorSet) -> None:
    del file(files, "sessions").service[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_type, "sluice.sessions.v1.Session.tenant was string and is int32"),
        (change_width, "sluice.billing.v1.Entry.micro was int64 and is int32"),
        (change_label, "Heartbeat.claims was repeated sluice.events.v1.SlotClaim and is"),
        (change_message_type, "UpdateRequest.patch was sluice.inference.v1.Patch and is"),
        (reuse_number, "sluice.events.v1.UsageWindow: number 11 was quantity and is reused for litres"),
        (remove_field, "UsageWindow.quantity is gone, and its number 11 is not reserved"),
        (remove_message, "sluice.router.v1.Grant is gone"),
        (change_map, "sluice.router.v1.Requirements.LabelsEntry.value was string and is int64"),
        (rename_value, "sluice.sessions.v1.Phase: 3 was PHASE_LIVE and is PHASE_ALIVE"),
        (remove_value, "Publisher.PUBLISHER_GONE is gone, and its number 5 is not reserved"),
        (rename_nested_value, "SlotReport.State: 2 was STATE_RUNNING and is STATE_GOING"),
        (remove_method, "sluice.billing.v1.Billing.Authenticate is gone"),
        (change_request, "sluice.billing.v1.Billing.Authenticate takes or returns something else"),
        (stream_answer, "sluice.billing.v1.Billing.Authenticate takes or returns something else"),
        (remove_service, "sluice.sessions.v1.Jobs is gone"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_break_is_found_and_named(change: Callable[[FileDescriptorSet], None], said: str) -> None:
    files = copied()
    change(files)
    (found,) = breaks(current(), files)
    assert said in found


def test_a_field_that_is_reserved_may_go_and_never_comes_back() -> None:
    files = copied()
    remove_field(files)
    message(files, "events", "UsageWindow").reserved_range.add(start=11, end=12)
    assert breaks(current(), files) == []
    (found,) = breaks(files, current())
    assert found == "sluice.events.v1.UsageWindow.quantity uses number 11, which was reserved"


def test_a_value_that_is_reserved_may_go() -> None:
    files = copied()
    remove_value(files)
    enum(files, "ingest", "Publisher").reserved_range.add(start=5, end=5)
    assert breaks(current(), files) == []


def test_what_is_added_breaks_nothing() -> None:
    files = copied()
    message(files, "router", "Grant").field.add(
        name="zone",
        number=100,
        type=FieldDescriptorProto.TYPE_STRING,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
    )
    enum(files, "sessions", "Phase").value.add(name="PHASE_RESTING", number=100)
    file(files, "router").message_type.add(name="More")
    file(files, "router").service[0].method.add(name="More", input_type=".a", output_type=".b")
    assert breaks(current(), files) == []
