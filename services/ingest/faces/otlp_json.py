"""OTLP's JSON of a trace, as far as we read it, and a span as our own API shows it. Pure.

Spans are read one by one: all of them in one call of pydantic's would keep other threads out for too long.
"""

from __future__ import annotations

import math
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

ERROR: Final = 2  # STATUS_CODE_ERROR

Plain = str | int | float | bool | list[Any] | dict[str, Any] | None


class Otlp(BaseModel):
    """Fields that we do not read are other versions'; a field that is missing has its default."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class Value(Otlp):
    """A value of an attribute: one of its fields is there."""

    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | None = None
    double_value: float | None = None
    bytes_value: str | None = None
    array_value: Values | None = None
    kvlist_value: Attributes | None = None

    def plain(self) -> Plain:
        if self.array_value is not None:
            return [value.plain() for value in self.array_value.values]
        if self.kvlist_value is not None:
            return self.kvlist_value.plain()
        if self.double_value is not None and not math.isfinite(self.double_value):
            return str(self.double_value)  # JSON has no such number
        scalars = (self.string_value, self.bool_value, self.int_value, self.double_value, self.bytes_value)
        return next((value for value in scalars if value is not None), None)


class Values(Otlp):
    """A list of values."""

    values: tuple[Value, ...] = ()


class KeyValue(Otlp):
    """One attribute."""

    key: str
    value: Value = Field(default_factory=Value)


class Attributes(Otlp):
    """Attributes by name."""

    values: tuple[KeyValue, ...] = ()

    def plain(self) -> dict[str, Plain]:
        return {each.key: each.value.plain() for each in self.values}


class Status(Otlp):
    """How a span ended; the code 2 is an error."""

    code: int = 0
    message: str = ""


class Span(Otlp):
    """One span; ids are hexadecimal."""

    span_id: str
    parent_span_id: str = ""
    name: str = ""
    start_time_unix_nano: int = 0
    end_time_unix_nano: int = 0
    attributes: tuple[KeyValue, ...] = ()
    status: Status = Status()

    def shown(self, service: Plain) -> dict[str, Any]:
        attributes = Attributes(values=self.attributes).plain()
        if self.status.message:
            attributes["error.message"] = self.status.message
        return {
            "id": self.span_id,
            "parent": self.parent_span_id or None,
            "service": service,
            "name": self.name,
            "start_unix_ns": self.start_time_unix_nano,
            "duration_ns": max(0, self.end_time_unix_nano - self.start_time_unix_nano),
            "attributes": attributes,
            "error": self.status.code == ERROR,
        }


class ScopeSpans(Otlp):
    """The spans of one library, each to be read when its turn comes."""

    spans: tuple[dict[str, Any], ...] = ()


class Resource(Otlp):
    """The process that made spans."""

    attributes: tuple[KeyValue, ...] = ()


class ResourceSpans(Otlp):
    """The spans of one process."""

    resource: Resource = Resource()
    scope_spans: tuple[ScopeSpans, ...] = ()

    def shown(self) -> list[dict[str, Any]]:
        service = Attributes(values=self.resource.attributes).plain().get("service.name")
        return [
            Span.model_validate(span).shown(service)
            for of_scope in self.scope_spans
            for span in of_scope.spans
        ]


class TracesData(Otlp):
    """A trace; `dropped_spans` is said by `deploy.local.traces` alone."""

    resource_spans: tuple[ResourceSpans, ...] = ()
    dropped_spans: int = Field(0, ge=0)

    def shown(self) -> list[dict[str, Any]]:
        """Every span, in the order of their start. Raises ValidationError."""
        found = [span for of_resource in self.resource_spans for span in of_resource.shown()]
        return sorted(found, key=lambda span: int(span["start_unix_ns"]))


class Envelope(Otlp):
    """What Jaeger answers with."""

    result: TracesData
