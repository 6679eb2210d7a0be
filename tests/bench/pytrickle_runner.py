"""What runs as the other runner in `engine_cpu`: PyTrickle's server with a processor that changes nothing.

It is run by the Python of an environment of its own, and knows nothing of this project.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from pytrickle import FrameProcessor, StreamServer  # type: ignore[import-not-found]  # not in our environment


class Unchanged(FrameProcessor):  # type: ignore[misc]  # as above
    async def load_model(self, **_: Any) -> None:
        """Nothing."""

    async def process_video_async(self, frame: Any) -> Any:
        return frame

    async def process_audio_async(self, frame: Any) -> Any:
        return [frame]

    async def update_params(self, params: dict[str, Any]) -> None:
        """Nothing."""


if __name__ == "__main__":
    server = StreamServer(frame_processor=Unchanged(), port=int(sys.argv[1]), host="127.0.0.1")
    asyncio.run(server.run_forever())
