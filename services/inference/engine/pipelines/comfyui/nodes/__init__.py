"""The nodes that are run here: ComfyUI's own around images and masks, and ComfyStream's ends."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from services.inference.engine.pipelines.comfyui.declarations import Kind
from services.inference.engine.pipelines.comfyui.gallery import Gallery
from services.inference.engine.pipelines.comfyui.nodes import ends, filters, images, masks, scaling, values


def catalogue(gallery: Gallery) -> Mapping[str, Kind]:
    """All of them by `class_type`."""
    kinds = (
        *ends.kinds(gallery),
        *images.KINDS,
        *scaling.KINDS,
        *filters.KINDS,
        *masks.KINDS,
        *values.KINDS,
    )
    return MappingProxyType({kind.class_type: kind for kind in kinds})
