"""What the operator says of workflows: where a ComfyUI is, where pictures lie. Never a client's to say."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field
from pydantic_settings import BaseSettings

from services.common.settings import config

URL: Final = r"^(https?://[^\s]+)?$"


class ComfyUISettings(BaseSettings):
    """`SLUICE_COMFYUI_*`, of the runner."""

    model_config = config("comfyui")

    url: str = Field(
        "",
        pattern=URL,
        description="A ComfyUI that runs workflows with nodes that are not built in, such as"
        " http://127.0.0.1:8188. Empty: only built-in nodes. It has no keys of its own, so nobody else should"
        " reach it.",
    )
    pictures: Path | None = Field(
        None, description="Directory of the pictures that LoadImage may name. Unset: only those sent along."
    )
    frame_timeout_s: float = Field(
        3.0,
        gt=0,
        description="A frame that ComfyUI has not finished by then is given up and counts as failed; three in"
        " a row, after which the workflow is loaded again, are below the runner's hang_after_s.",
    )
    load_timeout_s: float = Field(
        50.0,
        gt=0,
        description="The first frame of a workflow, for which ComfyUI reads its models; below the runner's"
        " engine_start_timeout_s.",
    )
    return_within_s: float = Field(
        45.0,
        gt=0,
        description="How long a workflow waits to be loaded while ComfyUI is away; above what that needs to"
        " start again, below the runner's engine_start_timeout_s.",
    )
