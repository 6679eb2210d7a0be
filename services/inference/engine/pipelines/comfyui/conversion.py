"""Which nodes of a workflow are the stream's picture, and which its result, by ComfyStream's rules. Pure.

ComfyStream's names of nodes, its counts and its words stand. What it let through and could not run is
refused: two LoadImage of which neither is said to be the stream, two pictures as the result, sound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from services.inference.engine.pipelines.comfyui.refusals import NodeProblem, WorkflowError
from services.inference.engine.pipelines.comfyui.workflow import Node, Workflow

PRIMARY: Final = "PrimaryInputLoadImage"
FRAME: Final = "LoadTensor"
LOAD_IMAGE: Final = "LoadImage"
AUDIO_IN: Final = "LoadAudioTensor"
PICTURE: Final = "SaveTensor"
PICTURES: Final = (PICTURE, "PreviewImage", "SaveImage", "SaveImageWebsocket")
TEXT: Final = "SaveTextTensor"
AUDIO_OUT: Final = "SaveAudioTensor"
PRIMARY_MAX: Final = 1
INPUTS_MAX: Final = 2
OUTPUTS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Converted:
    """A workflow whose frames come in at `LoadTensor` nodes and go out at one `SaveTensor`, if at any."""

    workflow: Workflow
    frames: tuple[str, ...]
    picture: str | None
    texts: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*((self.picture,) if self.picture is not None else ()), *self.texts)


def convert(workflow: Workflow) -> Converted:
    """Make the stream's ends of what ComfyStream takes for them. Raises WorkflowError."""
    primary = workflow.of_class(PRIMARY)
    inputs = workflow.of_class(PRIMARY, FRAME, LOAD_IMAGE, AUDIO_IN)
    pictures, texts = workflow.of_class(*PICTURES), workflow.of_class(TEXT)
    sound = workflow.of_class(AUDIO_IN, AUDIO_OUT)
    outputs = [*pictures, *texts, *workflow.of_class(AUDIO_OUT)]
    if len(primary) > PRIMARY_MAX:
        raise WorkflowError(f"too many primary inputs in prompt: {_named(primary)}; one is the stream")
    if not primary and len(inputs) > INPUTS_MAX:
        raise WorkflowError(
            f"too many inputs in prompt: {_named(inputs)}; make the stream's a {PRIMARY}, then any number of "
            f"{LOAD_IMAGE} may stand beside it"
        )
    if len(outputs) > OUTPUTS_MAX:
        raise WorkflowError(f"too many outputs in prompt: {_named(outputs)}")
    if not inputs:
        raise WorkflowError(f"missing input: no {FRAME}, {PRIMARY} or {LOAD_IMAGE} for the stream's picture")
    if not outputs:
        raise WorkflowError(
            f"missing output: no {PICTURE}, PreviewImage or SaveImage", type="prompt_no_outputs"
        )
    if sound:
        problems = [
            NodeProblem(
                node.id, node.class_type, "invalid_prompt", "a stream's sound goes round the workflow"
            )
            for node in sound
        ]
        raise WorkflowError("sound is not processed", problems)
    if len(pictures) > 1:
        raise WorkflowError(f"too many outputs in prompt: {_named(pictures)}; one is the result")
    frames = primary or workflow.of_class(FRAME)
    if not frames:
        candidates = workflow.of_class(LOAD_IMAGE)
        if len(candidates) > 1:
            raise WorkflowError(
                f"{_named(candidates)}: none of them is said to be the stream; make it a {PRIMARY}"
            )
        frames = candidates
    renamed = [
        *(replace(node, class_type=FRAME, inputs={}) for node in frames),
        *(replace(node, class_type=PICTURE) for node in pictures),
    ]
    return Converted(
        workflow.with_nodes(*renamed),
        tuple(node.id for node in frames),
        pictures[0].id if pictures else None,
        tuple(node.id for node in texts),
    )


def _named(nodes: list[Node]) -> str:
    return ", ".join(f"{node.id} ({node.class_type})" for node in nodes)
