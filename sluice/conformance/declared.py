"""Checks of what a class declares: that it can be made, offered and validated, before any frame."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from sluice.conformance.subject import FailedError, NotApplicableError, Subject
from sluice.conformance.values import shown, strangers
from sluice.pipeline import Apply, defaults, schema

LARGEST_SCHEMA: Final = 256 * 1024  # bytes: it goes with every heartbeat and to every client


def declaration(subject: Subject) -> str:
    pipeline = subject.pipeline
    try:
        pipeline()
    except TypeError as error:
        raise FailedError(f"{pipeline.__name__}() cannot be made without arguments: {error}") from error
    if "<locals>" not in pipeline.__qualname__:
        module = importlib.import_module(pipeline.__module__)
        if getattr(module, pipeline.__name__, None) is not pipeline:
            where_to = f"{pipeline.__module__}:{pipeline.__name__}"
            raise FailedError(f"{where_to} is another class: this one cannot be found by its name")
    for name, where in (("schema", schema(pipeline)), ("offered", subject.schema)):
        try:
            size = len(json.dumps(where, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise FailedError(f"{name}: no JSON: {error}") from None
        if size > LARGEST_SCHEMA:
            raise FailedError(f"{name}: {size} bytes, of at most {LARGEST_SCHEMA}")
        try:
            Draft202012Validator.check_schema(where)
        except SchemaError as error:
            raise FailedError(f"{name}: no JSON Schema: {error.message}") from None
    usual, described = defaults(pipeline), schema(pipeline)
    for what, params, against in (
        ("the defaults", usual, described),
        ("the parameters of this check", subject.base, subject.schema),
    ):
        wrong = best_match(Draft202012Validator(against).iter_errors(params))
        if wrong is not None:
            which = ".".join(str(part) for part in wrong.absolute_path) or "together"
            raise FailedError(f"{what} do not satisfy the schema: {which}: {wrong.message}")
    unbounded = [name for name, param in pipeline.params.items() if _is_unbounded(param.accepts())]
    ways = [param.apply for param in pipeline.params.values()]
    counts = ", ".join(f"{ways.count(way)} {way.value}" for way in Apply if way in ways) or "none"
    return f"parameters: {counts}" + (f"; without limits: {', '.join(unbounded)}" if unbounded else "")


def _is_unbounded(schema: Mapping[str, Any]) -> bool:
    """Whether it is a number of any size."""
    return schema.get("type") in ("number", "integer") and not (  # a tuple: it may be a list
        {"minimum", "maximum"} <= schema.keys() or "enum" in schema
    )


def refusal(subject: Subject) -> str:
    tried = 0
    for name, param in subject.pipeline.params.items():
        for value in strangers(param):
            tried += 1
            if subject.valid({**subject.base, name: value}):
                raise FailedError(f"the schema that is offered accepts {name}={shown(value)}")
    unknown = {**subject.base, "a_parameter_that_is_not_there": 1}
    if subject.valid(unknown):
        raise FailedError("the schema that is offered accepts parameters that are not there")
    if not tried:
        raise NotApplicableError("it has no parameter that could be set wrong; unknown ones are refused")
    return f"{tried} wrong values and an unknown name are refused"
