"""Every setting of every service as a Markdown page: `make docs` writes it, a test compares it."""

from __future__ import annotations

import sys
from typing import Final

from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from deploy.local.settings import LocalSettings
from services.billing.settings import BillingSettings
from services.inference.engine.pipelines.comfyui.settings import ComfyUISettings
from services.inference.settings import InferenceSettings
from services.ingest.settings import IngestSettings
from services.router.settings import RouterSettings
from services.session_manager.settings import SessionManagerSettings

CLASSES: Final[tuple[tuple[str, type[BaseSettings]], ...]] = (
    ("ingest", IngestSettings),
    ("router", RouterSettings),
    ("session-manager", SessionManagerSettings),
    ("billing", BillingSettings),
    ("inference", InferenceSettings),
    ("the pipeline comfyui", ComfyUISettings),
    ("make run", LocalSettings),
)
HEAD: Final = """# Settings

Read once from the environment when a process starts; a wrong value ends it with status 2 and a line that
names the variable. Units are in the names. Written by `make docs`.
"""


def page() -> str:
    parts = [HEAD]
    for title, settings in CLASSES:
        parts.append(f"\n## {title}\n\n| variable | default | what |\n| --- | --- | --- |")
        prefix = str(settings.model_config.get("env_prefix", ""))
        for name, field in sorted(settings.model_fields.items()):
            default = "(required)" if field.default is PydanticUndefined else f"`{field.default}`"
            what = (field.description or "").replace("|", "\\|")
            parts.append(f"| `{prefix}{name.upper()}` | {default} | {what} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
