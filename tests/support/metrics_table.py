"""Every metric of every service as a Markdown page: `make docs` writes it, a test compares it."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from prometheus_client.metrics import MetricWrapperBase

import services

HEAD: Final = """# Metrics

Each service serves its own at `/metrics`: Prometheus' text, and with `Accept: application/openmetrics-text`
the exemplars too, which name the trace of a session in a bucket. No label has a session, a stream, a tenant,
a runner or a key in it: how many series there are does not grow with use. Written by `make docs`.
"""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric and the package that counts it: a service, or `common` for all that use that part."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    package: str


def metrics() -> list[Metric]:
    found = {}
    for module in _modules():
        for value in list(vars(module).values()):
            if isinstance(value, MetricWrapperBase):
                (facts,) = value.describe()
                text = Path(str(module.__file__)).read_text()
                if f'"{facts.name}' in text:  # else it is only imported there
                    name = f"{facts.name}_total" if facts.type == "counter" else facts.name
                    package = module.__name__.split(".")[1].replace("_", "-")
                    labels = tuple(value._labelnames)
                    found[name] = Metric(name, facts.type, labels, facts.documentation, package)
    return sorted(found.values(), key=lambda metric: (metric.package, metric.name))


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(services.__path__, "services."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def page() -> str:
    parts = [HEAD]
    package = ""
    for metric in metrics():
        if metric.package != package:
            package = metric.package
            parts.append(f"\n## {package}\n\n| metric | kind | labels | what |\n| --- | --- | --- | --- |")
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        parts.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
