"""JSON objects from the world, and how one patches another. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidError


def merge_patch(target: object, patch: object) -> object:
    """Return `target` with `patch` applied; neither is changed (RFC 7396 section 2)."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def json_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object. Raises InvalidError that names the field."""
    try:
        value = json.loads(text or "{}", parse_float=_finite, parse_constant=_finite)
    except ValueError as error:
        raise InvalidError(f"{name} is not JSON: {error}", field=name) from None
    except RecursionError:
        raise InvalidError(f"{name} is nested too deeply", field=name) from None
    if not isinstance(value, dict):
        raise InvalidError(f"{name} must be a JSON object, not {type(value).__name__}", field=name)
    return value


def _finite(text: str) -> float:
    """Python takes NaN and 1e999, which no limit of a schema refuses and no answer can then carry."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value
