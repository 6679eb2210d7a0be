"""A workflow as ComfyUI is to run it: its own nodes where the stream comes in and goes out. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.inference.engine.pipelines.comfyui.conversion import Converted
from services.inference.engine.pipelines.comfyui.gallery import SENT
from services.inference.engine.pipelines.comfyui.workflow import Link

LOAD: Final = "LoadImage"
SEND: Final = "SaveImageWebsocket"
SHOW: Final = "PreviewAny"
FOLDER: Final = "sluice"  # in ComfyUI's temporary directory, which it empties itself when it starts


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to send, and where in what comes back the results are."""

    nodes: Mapping[str, Mapping[str, Any]]
    frames: tuple[str, ...]
    picture: str | None
    texts: Mapping[str, bool]  # by node, with whether line breaks go
    pictures: Mapping[str, str]  # that were sent along, as they came, by the name of the file that is wanted

    @classmethod
    def of(cls, converted: Converted) -> Prompt:
        """Only what the stream needs: another output of the workflow would write files with each frame."""
        nodes = converted.workflow.api()
        needed = _ancestors(converted)
        kept = {id_: node for id_, node in nodes.items() if id_ in needed}
        texts: dict[str, bool] = {}
        for id_ in converted.texts:
            inputs = kept[id_]["inputs"]
            texts[id_] = bool(inputs.get("remove_linebreaks", True))
            kept[id_] = {"class_type": SHOW, "inputs": {"source": inputs.get("data", "")}}
        if converted.picture is not None:
            images = kept[converted.picture]["inputs"].get("images")
            kept[converted.picture] = {"class_type": SEND, "inputs": {"images": images}}
        for id_ in converted.frames:
            if id_ in kept:
                kept[id_] = {"class_type": LOAD, "inputs": {"image": ""}}
        pictures: dict[str, str] = {}
        for node in kept.values():
            image = node["inputs"].get("image")
            if isinstance(image, str) and image.startswith(SENT):
                file = f"{hashlib.sha256(image.encode()).hexdigest()[:32]}.img"
                pictures[file] = image
                node["inputs"]["image"] = name_of(file)
        frames = tuple(id_ for id_ in converted.frames if id_ in kept)
        return cls(kept, frames, converted.picture, texts, pictures)

    def with_frame(self, file: str) -> dict[str, Any]:
        """The workflow for a frame that was uploaded as `file`."""
        frame = {"class_type": LOAD, "inputs": {"image": name_of(file)}}
        return {**self.nodes, **dict.fromkeys(self.frames, frame)}


def name_of(file: str) -> str:
    """What a LoadImage calls an uploaded file."""
    return f"{FOLDER}/{file} [temp]"


def _ancestors(converted: Converted) -> set[str]:
    found: set[str] = set()
    waiting = list(converted.outputs)
    while waiting:
        id_ = waiting.pop()
        node = converted.workflow.nodes.get(id_)
        if id_ in found or node is None:
            continue
        found.add(id_)
        waiting += [link.node for link in node.inputs.values() if isinstance(link, Link)]
    return found
