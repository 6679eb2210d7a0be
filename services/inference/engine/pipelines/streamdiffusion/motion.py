"""How noisy a frame starts, by how much moves in it: motion-aware noise. Pure but for its memory.

Where nothing moves a model may rewrite a picture from much noise; where much does, noise tears it from its
neighbours, and less of it follows the motion. The difference between two frames, the largest of the last
few, lowers the noise level of the first step by up to a tenth of the whole range, and slowly: see
StreamDiffusionV2.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.streamdiffusion.schedule import Schedule, Step

SIDE: Final = 64  # a picture this small shows motion and hides grain
MEMORY: Final = 4  # frames whose differences count
FULL_MOTION: Final = 0.2  # the root mean square difference, of pictures -1..1, that counts as all
SPAN: Final = 0.1  # of the noise range 0..1, by which full motion lowers the start
INERTIA: Final = 0.1  # of the level before in each new one


class Motion:
    """Of one stream."""

    def __init__(self) -> None:
        self.before: NDArray[np.float32] | None = None
        self.differences: deque[float] = deque(maxlen=MEMORY)
        self.lowered = 0.0  # the noise level of the last frame below that of its first step, 0..SPAN

    def see(self, rgb: NDArray[np.uint8]) -> float:
        """Take in the next picture, uint8 (H, W, 3); return how much moves, 0..1."""
        small = cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 127.5 - 1
        if self.before is not None:
            self.differences.append(float(np.sqrt(np.mean((small - self.before) ** 2))))
        self.before = small
        return min(1.0, max(self.differences, default=0.0) / FULL_MOTION)

    def first_step(
        self, rgb: NDArray[np.uint8], schedule: Schedule, steps: tuple[Step, ...], amount: float
    ) -> Step:
        """Return the step at which this picture starts: `steps[0]` if still, less noisy the more moves.

        amount: 0..1, how much of all this is wanted. Never as clean as the second step.
        """
        self.lowered = (1 - INERTIA) * SPAN * amount * self.see(rgb) + INERTIA * self.lowered
        last = steps[1].timestep + 1 if len(steps) > 1 else 1
        timestep = steps[0].timestep - round(self.lowered * len(schedule.kept))
        return schedule.step(max(timestep, min(last, steps[0].timestep)))
