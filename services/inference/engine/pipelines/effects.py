"""The pipeline of painted looks: which words of a prompt mean which look, and how one fades into the next.

These are picture filters and not a model: of a prompt only the words in `WORDS` count, and what `DEGREES` and
numbers do to them. The looks are in `looks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import cv2

from services.inference.engine.pipelines.looks import LOOKS, Picture, Sheet
from sluice.pipeline import TICKS_PER_SECOND, Param, Pipeline, Prompt, VideoFrame, weighted_texts

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

# "(soft neon:1.2)", or "neon:0.7", or a word, or the end of a clause.
_TOKEN: Final = re.compile(
    r"\((?P<group>[^():]*):\s*(?P<group_weight>\d{1,4}(?:\.\d{0,6})?)\)"
    r"|(?P<word>[^\W\d_]+)(?::\s*(?P<weight>\d{1,4}(?:\.\d{0,6})?))?"
    r"|(?P<stop>[,;.!?])"
)
# Below half a level in 255ths a look cannot be seen, so it is not painted.
_UNSEEN: Final = 0.5 / 255


def blend_of(prompt: Any) -> Blend:
    """Return the share of each look that `prompt` names; the shares add up to 1.

    Of several mentions of a look the weightiest counts. A prompt that gives none any weight means
    `DEFAULT_LOOK`.
    """
    weights: dict[str, float] = {}
    for text, weight in weighted_texts(prompt):
        for look, mentioned in _mentions(text.lower()):
            weights[look] = max(weights.get(look, 0.0), weight * mentioned)
    total = sum(weights.values())
    if total <= 0:
        return {DEFAULT_LOOK: 1.0}
    return {look: weights[look] / total for look in LOOKS if weights.get(look, 0.0) > 0}


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
    """A change from one blend to another over media time, which starts and ends gently."""

    before: Blend
    after: Blend
    start_pts: int
    ticks: float

    def at(self, pts: int) -> Blend:
        """Return the blend at `pts`. A time before the start is of another clock; the fade is over there."""
        elapsed = pts - self.start_pts
        if elapsed < 0 or elapsed >= self.ticks:
            return self.after
        passed = elapsed / self.ticks
        share = passed * passed * (3 - 2 * passed)
        blend = {
            look: (1 - share) * self.before.get(look, 0.0) + share * self.after.get(look, 0.0)
            for look in LOOKS
        }
        return {look: weight for look, weight in blend.items() if weight > 0}


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
    }

    def __init__(self) -> None:
        self._sheet: Sheet | None = None
        self._prompt: Any = None
        self._blend: Blend = {}
        self._fade: Fade | None = None

    def load(self) -> None:
        # A frame is too little work to share out: beside other streams a second thread makes it slower.
        cv2.setNumThreads(1)

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        blend = self._blend_at(frame.pts, params["prompt"], float(params["transition_s"]))
        strength = float(params["strength"])
        if strength < _UNSEEN:
            return frame
        sheet = self._sheet_for(frame.rgb, int(params["seed"]))
        return frame.with_rgb(_painted(frame.rgb, blend, strength, sheet))

    def close(self) -> None:
        self._sheet = None

    def _blend_at(self, pts: int, prompt: Any, transition_s: float) -> Blend:
        if self._fade is None or prompt != self._prompt:
            self._prompt, self._blend = prompt, blend_of(prompt)
        if self._fade is None:
            self._fade = Fade(self._blend, self._blend, pts, 0)
        elif self._fade.after != self._blend:
            self._fade = Fade(self._fade.at(pts), self._blend, pts, transition_s * TICKS_PER_SECOND)
        return self._fade.at(pts)

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
