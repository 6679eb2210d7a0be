"""What was promised on the wire: the released descriptors, and what breaks with them.

`python -m tests.support.wire_release` makes today's contracts the released ones; run it with each release,
and never to silence a break: a process of the last release still speaks the old ones.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT: Final = Path(__file__).resolve().parents[2]
RELEASED: Final = ROOT / "protos" / "released.binpb"
COMMAND: Final = "python -m tests.support.wire_release"


def current() -> FileDescriptorSet:
    """The contracts of this tree, as the committed stubs have them."""
    files = []
    for proto in sorted((ROOT / "protos").glob("*/v1/*.proto")):
        name = proto.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") + "_pb2"
        file = FileDescriptorProto()
        importlib.import_module(name).DESCRIPTOR.CopyToProto(file)
        files.append(file)
    return FileDescriptorSet(file=files)


def released() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(RELEASED.read_bytes())


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What a peer that knows `old` would misread or miss in `new`, a sentence each."""
    return [*_message_breaks(old, new), *_enum_breaks(old, new), *_service_breaks(old, new)]


def _message_breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    now = dict(_messages(new))
    for name, was in _messages(old):
        if name not in now:
            yield f"{name} is gone"
            continue
        fields = {field.number: field for field in now[name].field}
        reserved = _numbers(now[name])
        for field in was.field:
            if field.number in fields:
                yield from _field_breaks(name, field, fields[field.number])
            elif field.number not in reserved:
                yield f"{name}.{field.name} is gone, and its number {field.number} is not reserved"
        for number in sorted(_numbers(was) & set(fields)):
            yield f"{name}.{fields[number].name} uses number {number}, which was reserved"


def _field_breaks(message: str, was: FieldDescriptorProto, now: FieldDescriptorProto) -> Iterator[str]:
    if was.name != now.name:
        yield f"{message}: number {was.number} was {was.name} and is reused for {now.name}"
    if _kind(was) != _kind(now):
        yield f"{message}.{was.name} was {_kind(was)} and is {_kind(now)}"


def _kind(field: FieldDescriptorProto) -> str:
    """The field's type as a person would write it."""
    label = FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower()
    kind = (
        field.type_name.lstrip(".")
        or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    )
    presence = " with presence" if field.proto3_optional else ""
    return (f"repeated {kind}" if label == "repeated" else kind) + presence


def _enum_breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    now = dict(_enums(new))
    for name, was in _enums(old):
        if name not in now:
            yield f"{name} is gone"
            continue
        values = {value.number: value.name for value in now[name].value}
        reserved = {n for span in now[name].reserved_range for n in range(span.start, span.end + 1)}
        for value in was.value:
            if value.number not in values:
                if value.number not in reserved:
                    yield f"{name}.{value.name} is gone, and its number {value.number} is not reserved"
            elif values[value.number] != value.name:
                yield f"{name}: {value.number} was {value.name} and is {values[value.number]}"


def _service_breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    now = _services(new)
    for name, was in _services(old).items():
        if name not in now:
            yield f"{name} is gone"
            continue
        methods = {method.name: method for method in now[name].method}
        for method in was.method:
            if method.name not in methods:
                yield f"{name}.{method.name} is gone"
            elif methods[method.name] != method:
                yield f"{name}.{method.name} takes or returns something else, or streams otherwise"


def _numbers(message: DescriptorProto) -> set[int]:
    return {number for span in message.reserved_range for number in range(span.start, span.end)}


def _messages(files: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    for file in files.file:
        for message in file.message_type:
            yield from _nested(file.package, message)


def _nested(scope: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    name = f"{scope}.{message.name}"
    yield name, message
    for inner in message.nested_type:
        yield from _nested(name, inner)


def _enums(files: FileDescriptorSet) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for file in files.file:
        for enum in file.enum_type:
            yield f"{file.package}.{enum.name}", enum
    for name, message in _messages(files):
        for enum in message.enum_type:
            yield f"{name}.{enum.name}", enum


def _services(files: FileDescriptorSet) -> Mapping[str, ServiceDescriptorProto]:
    return {f"{file.package}.{service.name}": service for file in files.file for service in file.service}


def main() -> None:
    """Write today's contracts as the released ones, and say what that breaks."""
    if RELEASED.exists():
        sys.stdout.writelines(f"breaks: {line}\n" for line in breaks(released(), current()))
    RELEASED.write_bytes(current().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
