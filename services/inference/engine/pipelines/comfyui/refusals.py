"""What is wrong with a workflow, in ComfyUI's own shape: what shows its errors can show these. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sluice.pipeline import ParamError

WORDS_MAX: Final = 6  # problems that a message names; `answer` has all of them
VALUE_MAX: Final = 80  # characters of a value that a message repeats


@dataclass(frozen=True, slots=True)
class NodeProblem:
    """One thing that is wrong with one node; `type` and `message` are ComfyUI's."""

    node: str
    class_type: str
    type: str
    message: str
    details: str = ""
    input: str = ""  # its name, where it is about one

    def words(self) -> str:
        what = f"node {self.node} ({self.class_type})" if self.class_type else f"node {self.node}"
        if self.type in {"value_smaller_than_min", "value_bigger_than_max", "required_input_missing"}:
            return f"{what}, {self.input}: {self.message}"
        return f"{what}: {self.message}" + (f" ({self.details})" if self.details else "")

    def error(self) -> dict[str, Any]:
        """As in the `errors` of a node in ComfyUI's answer."""
        extra = {"input_name": self.input} if self.input else {}
        return {"type": self.type, "message": self.message, "details": self.details, "extra_info": extra}


@dataclass(frozen=True, slots=True)
class Dependents:
    """Which outputs are not to be had for a node's sake."""

    of: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __getitem__(self, node: str) -> list[str]:
        return list(self.of.get(node, ()))


class WorkflowError(ParamError):
    """A workflow that is not run. `answer` is what ComfyUI would have answered to it."""

    def __init__(
        self,
        message: str,
        problems: Iterable[NodeProblem] = (),
        *,
        type: str = "invalid_prompt",  # noqa: A002 - ComfyUI's name of it
        dependents: Dependents | None = None,
        at: str = "workflow",
    ) -> None:
        self.problems = tuple(problems)
        self.type = type
        self.summary = message
        self._dependents = dependents or Dependents()
        super().__init__(at, said(message, self.problems))

    def about(self, name: str) -> WorkflowError:
        """The same, of a workflow that was sent by another name."""
        if self.field != "workflow":
            return self
        return WorkflowError(
            self.summary, self.problems, type=self.type, dependents=self._dependents, at=name
        )

    @property
    def answer(self) -> dict[str, Any]:
        """`{"error": ..., "node_errors": ...}`."""
        nodes: dict[str, Any] = {}
        for problem in self.problems:
            entry = nodes.setdefault(
                problem.node,
                {
                    "errors": [],
                    "dependent_outputs": self._dependents[problem.node],
                    "class_type": problem.class_type,
                },
            )
            entry["errors"].append(problem.error())
        details = "\n".join(problem.words() for problem in self.problems)
        error = {"type": self.type, "message": self.summary, "details": details, "extra_info": {}}
        return {"error": error, "node_errors": nodes}


class NodeFailedError(Exception):
    """A node that raised while it ran; it says which and what, as ComfyUI's `execution_error` does."""

    def __init__(self, node: str, class_type: str, exception: str, message: str) -> None:
        super().__init__(f"node {node} ({class_type}): {exception}: {message}")
        self.node = node
        self.class_type = class_type
        self.exception = exception
        self.message = message


def said(message: str, problems: Sequence[NodeProblem]) -> str:
    """The message, and the first few problems after it."""
    named = "; ".join(problem.words() for problem in problems[:WORDS_MAX])
    more = f"; and {len(problems) - WORDS_MAX} more" if len(problems) > WORDS_MAX else ""
    return f"{message}: {named}{more}" if named else message


def shown(value: object) -> str:
    """A value as a message repeats it."""
    text = repr(value)
    return text if len(text) <= VALUE_MAX else f"{text[:VALUE_MAX]}..."
