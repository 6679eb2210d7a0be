"""The pipeline of painted looks: which words of a prompt mean which look, and how one fades into the next.

These are picture filters and not a model: of a prompt only the words in `WORDS` count, and what `DEGREES` and
numbers do to them. The looks are in `looks.py`.

Whoever knows Scope's parameters says the same here in one patch, each time with all that the row names:

    Scope                                       effects
    prompts: [{text, weight}], no transition    prompt: the same list, transition_frames: 0
    transition: {target_prompts, num_steps,     prompt: target_prompts, transition_frames: num_steps,
        temporal_interpolation_method}              temporal_interpolation_method: the same
    prompt_interpolation_method                 the same, for the mixture of a prompt that names two looks
    noise_scale                                 strength
    base_seed                                   seed
    reset_cache                                 transition_frames: 0: a fade that is under way ends, and there
                                                is nothing else that a picture inherits from those before it

A step of Scope is a generation of several pictures; here it is one. `slerp` is spherical between shares of
looks, for there are no embeddings: it differs from `linear` by some hundredths of a share. Scope's other
parameters have no meaning here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import cv2

from services.inference.engine.pipelines.looks import LOOKS, Picture, Sheet
from sluice.pipeline import TICKS_PER_SECOND, Param, Pipeline, Prompt, Setup, VideoFrame, weighted_texts

DEFAULT_LOOK: Final = "watercolor"

_WORDS_OF_LOOKS: Final = {
    "watercolor": """watercolor watercolors watercolour watercolours aquarelle acuarela aquarell gouache
        paint paints painted painting paintings painterly brush brushed brushstroke brushstrokes""",
    "sketch": """sketch sketches sketched sketchy pencil pencils graphite charcoal draw drawing drawings drawn
        ink inked etching engraving crosshatch crosshatched hatching hatched lineart outline outlined""",
    "neon": """neon neons glow glows glowing cyberpunk synthwave vaporwave retrowave outrun laser lasers
        blacklight fluorescent luminous hologram holographic""",
}
WORDS: Final[Mapping[str, str]] = {
    word: look for look, words in _WORDS_OF_LOOKS.items() for word in words.split()
}

# What a word before a look's word, in the same clause, does to its weight.
DEGREES: Final[Mapping[str, float]] = {
    **dict.fromkeys(("no", "not", "without"), 0.0),
    **dict.fromkeys(
        ("slightly", "slight", "subtle", "subtly", "faint", "faintly", "hint", "touch", "bit"), 0.35
    ),
    **dict.fromkeys(("somewhat", "partly"), 0.5),
    **dict.fromkeys(("very", "strongly", "strong", "mostly", "heavy", "heavily"), 2.0),
}

Blend = Mapping[str, float]

LINEAR, SLERP = "linear", "slerp"
SAME_ANGLE: Final = 1e-4  # radians; closer than this there is no arc to go along
BY_TIME: Final = -1  # of `transition_frames`

# "(soft neon:1.2)", or "neon:0.7", or a word, or the end of a clause.
_TOKEN: Final = re.compile(
    r"\((?P<group>[^():]*):\s*(?P<group_weight>\d{1,4}(?:\.\d{0,6})?)\)"
    r"|(?P<word>[^\W\d_]+)(?::\s*(?P<weight>\d{1,4}(?:\.\d{0,6})?))?"
    r"|(?P<stop>[,;.!?])"
)
# Below half a level in 255ths a look cannot be seen, so it is not painted.
_UNSEEN: Final = 0.5 / 255


def blend_of(prompt: Any, method: str = LINEAR) -> Blend:
    """Return the share of each look that `prompt` names; the shares add up to 1.

    Of several mentions of a look the weightiest counts. A prompt that gives none any weight means
    `DEFAULT_LOOK`. With `SLERP` two looks share as far along the arc between them as the second weighs.
    """
    weights: dict[str, float] = {}
    for text, weight in weighted_texts(prompt):
        for look, mentioned in _mentions(text.lower()):
            weights[look] = max(weights.get(look, 0.0), weight * mentioned)
    total = sum(weights.values())
    if total <= 0:
        return {DEFAULT_LOOK: 1.0}
    blend = {look: weights[look] / total for look in LOOKS if weights.get(look, 0.0) > 0}
    if method == SLERP and len(blend) == 2:
        one, other = blend
        return between({one: 1.0}, {other: 1.0}, blend[other], SLERP)
    return blend


def between(before: Blend, after: Blend, share: float, method: str) -> Blend:
    """Return the blend that is `share` of the way from one to the other; its shares add up to 1."""
    parts = 1 - share, share
    if method == SLERP:
        lengths = math.hypot(*before.values()), math.hypot(*after.values())
        cosine = sum(weight * after.get(look, 0.0) for look, weight in before.items()) / math.prod(lengths)
        angle = math.acos(min(cosine, 1.0))
        if angle > SAME_ANGLE:
            parts = (
                math.sin((1 - share) * angle) / lengths[0],
                math.sin(share * angle) / lengths[1],
            )
    blend = {look: parts[0] * before.get(look, 0.0) + parts[1] * after.get(look, 0.0) for look in LOOKS}
    total = sum(blend.values())
    return {look: weight / total for look, weight in blend.items() if weight > 0}


def _mentions(text: str) -> Iterable[tuple[str, float]]:
    degree = 1.0
    for token in _TOKEN.finditer(text):
        if token["group"] is not None:
            for look, mentioned in _mentions(token["group"]):
                yield look, degree * mentioned * float(token["group_weight"])
            degree = 1.0
        elif token["stop"]:
            degree = 1.0
        elif token["word"] in DEGREES:
            degree = DEGREES[token["word"]]
        elif token["word"] in WORDS:
            yield WORDS[token["word"]], degree * float(token["weight"] or 1)
            degree = 1.0


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
    """Watercolour, pencil sketch and neon, and mixtures of them."""

    name = "effects"
    version = "1.0"
    description = (
        "Picture filters, not a model, so it needs no GPU and no weights: the looks watercolor, sketch and "
        "neon, chosen and mixed by the words of the prompt. Other words have no effect."
    )
    params: ClassVar[Mapping[str, Param]] = {
        "prompt": Prompt(
            default=DEFAULT_LOOK,
            help=(
                "Which looks: watercolor, sketch, neon, or synonyms such as painting, pencil and cyberpunk. "
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
            help="Which sheet of paper: its grain, and how the brush and the pencil wander on it.",
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

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        # A frame is too little work to share out: beside other streams a second thread makes it slower.
        cv2.setNumThreads(1)

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        blend = self._blend_at(frame.pts, params)
        strength = float(params["strength"])
        if strength < _UNSEEN:
            return frame
        sheet = self._sheet_for(frame.rgb, int(params["seed"]))
        return frame.with_rgb(_painted(frame.rgb, blend, strength, sheet))

    def close(self) -> None:
        self._sheet = None

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
            self._sheet = Sheet(height, width, seed)
        return self._sheet


def _painted(rgb: Picture, blend: Blend, strength: float, sheet: Sheet) -> Picture:
    """Mix the looks of `rgb` by their shares, and with what `strength` leaves of the source."""
    shares = {look: share * strength for look, share in blend.items() if share * strength >= _UNSEEN}
    laid = 1 - sum(shares.values())
    if laid < _UNSEEN:
        laid = 0.0
    out = rgb
    for look, share in shares.items():
        layer = LOOKS[look](rgb, sheet)
        if laid:
            cv2.addWeighted(out, laid / (laid + share), layer, share / (laid + share), 0, layer)
        out, laid = layer, laid + share
    return out
