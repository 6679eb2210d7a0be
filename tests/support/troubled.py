"""A pipeline that takes its time, refuses values and fails on request, for what clients are told of that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sluice.pipeline import Apply, Param, ParamError, Pipeline, Setup, VideoFrame


class Troubled(Pipeline):
    """`gain` 13 fails each picture, `style` "bad" cannot be prepared, `model` "none" cannot be loaded."""

    name = "troubled"
    version = "1.0"
    description = "Says what it does, and what it cannot."
    params = MappingProxyType(
        {
            "gain": Param(default=1, help="Thirteen is unlucky.", minimum=0, maximum=20),
            "style": Param(default="plain", help="Anything but bad.", max_length=20, apply=Apply.WARM),
            "model": Param(default="small", help="Anything but none.", max_length=20, apply=Apply.RELOAD),
        }
    )

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        if params["model"] == "none":
            raise ParamError("model", "there is no model none")
        for percent in range(0, 100, 20):
            setup.progress("weights", percent / 100)
            time.sleep(0.1)

    def prepare(self, params: Mapping[str, Any]) -> object:
        if params["style"] == "bad":
            raise ParamError("style", "bad is no style")
        return params["style"]

    def adopt(self, prepared: object) -> None:
        """The style is in no picture."""

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        if params["gain"] == 13:
            raise ZeroDivisionError("thirteen")
        return frame
