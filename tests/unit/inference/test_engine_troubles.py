"""What is said of failures, how often, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from services.inference.blackbox import Stage
from services.inference.engine.containment import Action
from services.inference.engine.troubles import LONGEST_MESSAGE, Troubles
from sluice.pipeline import ParamError


class Spoken:
    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.now_s = 100.0
        self.troubles = Troubles(0, self.say, lambda: self.now_s)

    def say(self, kind: str, /, **fields: Any) -> None:
        self.said.append((kind, fields))


def test_of_held_frames_one_a_second_is_told_and_every_remedy() -> None:
    spoken = Spoken()
    for frame in range(90):
        spoken.now_s = 100 + frame / 30
        spoken.troubles.problem(ValueError("no"), Stage.PROCESS, Action.HELD, frame=frame)
        if frame % 10 == 0:
            spoken.troubles.problem(ValueError("no"), Stage.PROCESS, Action.RELOADING, frame=frame)
    actions = [fields["action"] for _, fields in spoken.said]
    assert (actions.count("held"), actions.count("reloading")) == (3, 9)


@pytest.mark.parametrize(
    ("error", "stage", "action", "kind"),
    [
        (ValueError(), Stage.PROCESS, Action.HELD, "pipeline_error"),
        (ValueError(), Stage.PROCESS, Action.ROLLED_BACK, "poisoned_param"),
        (ValueError(), Stage.LOAD, Action.ENDED, "load_failed"),
        (ParamError("a", "b"), Stage.PREPARE, Action.HELD, "poisoned_param"),
        (MemoryError(), Stage.LOAD, Action.HELD, "out_of_memory"),
    ],
)
def test_each_failure_is_of_a_kind(error: Exception, stage: Stage, action: Action, kind: str) -> None:
    spoken = Spoken()
    spoken.troubles.problem(error, stage, action)
    assert spoken.said[0][1]["kind"] == kind
    assert spoken.said[0][1]["error"] == type(error).__name__


@pytest.mark.parametrize(
    ("error", "field", "reason", "message"),
    [
        (ParamError("lora_dict.x", "is not here"), "params.lora_dict.x", "param_refused", "is not here"),
        (ParamError("", "no"), "", "param_refused", "no"),
        (ZeroDivisionError("division by zero"), "", "poisoned_param", "ZeroDivisionError: division by zero"),
        (MemoryError(), "", "out_of_memory", "MemoryError: "),
    ],
)
def test_a_refusal_names_the_field_if_there_is_one_and_says_why(
    error: Exception, field: str, reason: str, message: str
) -> None:
    spoken = Spoken()
    spoken.troubles.refused(7, error)
    told = {"revision": 7, "field": field, "reason": reason, "message": message}
    assert spoken.said == [("refused", told)]


def test_words_without_end_are_cut() -> None:
    spoken = Spoken()
    spoken.troubles.problem(ValueError("x" * 10_000), Stage.PROCESS, Action.HELD)
    spoken.troubles.refused(7, ValueError("x" * 10_000))
    assert {len(fields["message"]) for _, fields in spoken.said} == {LONGEST_MESSAGE}
