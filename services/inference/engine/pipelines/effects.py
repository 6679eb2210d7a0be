"""The pipeline of painted looks: how they mix, and how those of one prompt fade into those of the next.

These are picture filters and not a model: of a prompt only the words in `looks/words.py` count, and what
degrees and numbers do to them. The looks are in `looks`.

Whoever knows Scope's parameters says the same here in one patch, each time with all that the row names:

    Scope                                       effects
    prompts: [{text, weight}], no transition    prompt: the same list, transition_frames: 0
    transition: {target_prompts, num_steps,     prompt: target_prompts, transition_frames: num_steps,
        temporal_interpolation_method}              temporal_interpolation_method: the same
    prompt_interpolation_method                 the same, for the mixture of a prompt that names two looks
    noise_scale                                 strength
    base_seed                                   seed
    reset_cache                                 transition_frames: 0: a fade that is under way ends; what is
                                                left is what `dream` echoes, for a few seconds

A step of Scope is a generation of several pictures; here it is one. `slerp` is spherical between shares of
looks, for there are no embeddings: it differs from `linear` by some hundredths of a share. Scope's other
parameters have no meaning here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import cv2
import numpy as np

from services.inference.engine.pipelines.looks import LOOKS, Echo, Picture, Sheet
from services.inference.engine.pipelines.looks.words import (
    DEFAULT_LOOK,
    LINEAR,
    SLERP,
    Blend,
    between,
    blend_of,
)
from sluice.pipeline import TICKS_PER_SECOND, Param, Pipeline, Prompt, Setup, VideoFrame

BY_TIME: Final = -1  # of `transition_frames`
SNAPSHOT_MAX: Final = 1 << 20
# Below half a level in 255ths a look cannot be seen, so it is not painted.
_UNSEEN: Final = 0.5 / 255


@dataclass(frozen=True, slots=True)
class Fade:
    """A change from one blend to another: over media time, gently at both ends, or in equal steps.

    `steps`: how many pictures it takes, of which the last is as `after` says; None is by time.
    """

    before: Blend
    after: Blend
    start_pts: int
    ticks: float
    steps: int | None = None
    method: str = LINEAR

    def at(self, pts: int, step: int = 0) -> Blend:
        """Return the blend of the picture at `pts`, which is the `step`th of the change, from 1 on.

        A time before the start is of another clock; the fade is over there.
        """
        share = self._by_time(pts) if self.steps is None else step / max(self.steps, 1)
        return self.after if share >= 1 else between(self.before, self.after, share, self.method)

    def _by_time(self, pts: int) -> float:
        elapsed = pts - self.start_pts
        if elapsed < 0 or elapsed >= self.ticks:
            return 1.0
        passed = elapsed / self.ticks
        return passed * passed * (3 - 2 * passed)


class Effects(Pipeline):
    """Nineteen looks, from watercolour to falling code, and mixtures of them."""

    name = "effects"
    version = "2.0"
    description = (
        "Picture filters, not a model, so it needs no GPU and no weights. The words of the prompt choose and "
        f"mix the looks {', '.join(LOOKS)}. Other words have no effect."
    )
    params: ClassVar[Mapping[str, Param]] = {
        "prompt": Prompt(
            default=DEFAULT_LOOK,
            help=(
                f"Which looks: {', '.join(LOOKS)}, or synonyms such as painting, pencil and cyberpunk. "
                "Name several to mix them, with weights if wanted: 'neon:0.7 watercolor:0.3', "
                "or a list of [text, weight]. A prompt that names none means watercolor."
            ),
            max_length=2000,
        ),
        "strength": Param(
            default=1.0, help="How much of the looks; 0 keeps the picture as it is.", minimum=0, maximum=1
        ),
        "seed": Param(
            default=0,
            help="Which sheet of paper, pane of glass or reel of film: all that is left to chance.",
            minimum=0,
            maximum=2**32 - 1,
        ),
        "transition_s": Param(
            default=0.5,
            help="How long the looks take to change into those of a new prompt, in seconds of the video.",
            minimum=0,
            maximum=5,
        ),
        "transition_frames": Param(
            default=BY_TIME,
            help=(
                "The same in pictures, in equal steps: the last of them has the new looks. "
                "0 is at once, and ends a change that is under way. -1: transition_s tells."
            ),
            minimum=BY_TIME,
            maximum=600,
        ),
        "prompt_interpolation_method": Param(
            default=LINEAR,
            help="How two looks of a prompt share the picture: by their weights, or along an arc.",
            choices=(LINEAR, SLERP),
        ),
        "temporal_interpolation_method": Param(
            default=LINEAR,
            help="How the shares go from one prompt's looks to the next's: straight, or along an arc.",
            choices=(LINEAR, SLERP),
        ),
    }

    def __init__(self) -> None:
        self._sheet: Sheet | None = None
        self._wanted: tuple[Any, str] | None = None  # the prompt, and how its looks share
        self._blend: Blend = {}
        self._fade: Fade | None = None
        self._step = 0  # of the fade
        self._restored: Echo | None = None

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        # A frame is too little work to share out: beside other streams a second thread makes it slower.
        cv2.setNumThreads(1)

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        blend = self._blend_at(frame.pts, params)
        strength = float(params["strength"])
        if strength < _UNSEEN:
            return frame
        sheet = self._sheet_for(frame.rgb, int(params["seed"]))
        return frame.with_rgb(_painted(frame.rgb, frame.pts, blend, strength, sheet))

    def snapshot(self) -> bytes | None:
        """The change that is under way, and what the looks that are shown remember of the pictures."""
        fade = self._fade
        if fade is None:
            return None
        echo = self._echo if any(LOOKS[look].remembers for look in fade.after) else None
        told = {
            "before": fade.before,
            "after": fade.after,
            "start_pts": fade.start_pts,
            "ticks": fade.ticks,
            "steps": fade.steps,
            "method": fade.method,
            "step": self._step,
            "echo_pts": None if echo is None else echo.pts,
        }
        line = json.dumps(told).encode() + b"\n"
        if echo is None:
            return line
        encoded = cv2.imencode(".png", echo.picture, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1].tobytes()
        if len(line) + len(encoded) <= SNAPSHOT_MAX:
            return line + encoded
        return json.dumps({**told, "echo_pts": None}).encode() + b"\n"

    def restore(self, snapshot: bytes) -> None:
        line, _, encoded = snapshot.partition(b"\n")
        try:
            told = json.loads(line)
            fade = Fade(
                _known(told["before"]),
                _known(told["after"]),
                int(told["start_pts"]),
                float(told["ticks"]),
                None if told["steps"] is None else int(told["steps"]),
                str(told["method"]),
            )
            step, echo = int(told["step"]), None
            if told["echo_pts"] is not None:
                picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
                if picture is None:
                    raise ValueError("the picture of the snapshot cannot be read")
                echo = Echo(np.asarray(picture, np.uint8), int(told["echo_pts"]))
        except (KeyError, TypeError, AttributeError, cv2.error) as error:
            raise ValueError(f"not a snapshot of effects: {error!r}") from error
        self._fade, self._step, self._restored = fade, step, echo

    def close(self) -> None:
        self._sheet = None

    @property
    def _echo(self) -> Echo | None:
        return self._restored if self._sheet is None else self._sheet.echo

    def _blend_at(self, pts: int, params: Mapping[str, Any]) -> Blend:
        wanted = params["prompt"], params["prompt_interpolation_method"]
        if wanted != self._wanted:
            self._wanted, self._blend = wanted, blend_of(*wanted)
        if self._fade is None or self._fade.after != self._blend:
            self._fade, self._step = self._towards(self._blend, pts, params), 0
            self.say({"looks": {look: round(share, 3) for look, share in self._blend.items()}})
        elif params["transition_frames"] == 0:
            self._fade = Fade(self._blend, self._blend, pts, 0)
        self._step += 1
        return self._fade.at(pts, self._step)

    def _towards(self, blend: Blend, pts: int, params: Mapping[str, Any]) -> Fade:
        if self._fade is None:
            return Fade(blend, blend, pts, 0)  # nothing to come from
        steps = int(params["transition_frames"])
        return Fade(
            self._fade.at(pts, self._step),
            blend,
            pts,
            float(params["transition_s"]) * TICKS_PER_SECOND,
            None if steps == BY_TIME else steps,
            params["temporal_interpolation_method"],
        )

    def _sheet_for(self, rgb: Picture, seed: int) -> Sheet:
        height, width = rgb.shape[:2]
        if self._sheet is None or not self._sheet.fits(height, width, seed):
            echo = self._echo
            self._sheet = Sheet(height, width, seed)
            self._sheet.echo = echo
        return self._sheet


def _known(blend: Mapping[str, Any]) -> Blend:
    """Return what a snapshot says of shares. Raises ValueError for a look that there is not any more."""
    if not blend.keys() <= LOOKS.keys():
        raise ValueError(f"not all looks of today: {', '.join(blend)}")
    return {look: float(share) for look, share in blend.items()}


def _painted(rgb: Picture, pts: int, blend: Blend, strength: float, sheet: Sheet) -> Picture:
    """Mix the looks of `rgb` by their shares, and with what `strength` leaves of the source."""
    shares = {look: share * strength for look, share in blend.items() if share * strength >= _UNSEEN}
    laid = 1 - sum(shares.values())
    if laid < _UNSEEN:
        laid = 0.0
    out = rgb
    for look, share in shares.items():
        layer = LOOKS[look].paint(rgb, sheet, pts)
        if laid:
            cv2.addWeighted(out, laid / (laid + share), layer, share / (laid + share), 0, layer)
        out, laid = layer, laid + share
    return out
