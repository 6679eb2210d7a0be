"""What a prompt says of looks: which of its words mean one, and how much of each they ask for. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from services.inference.engine.pipelines.looks import LOOKS
from sluice.pipeline import weighted_texts

DEFAULT_LOOK: Final = "watercolor"

# Of several words, joined by hyphens here and by those or spaces in a prompt: these mean a look together.
_WORDS_OF_LOOKS: Final = {
    "watercolor": """watercolor watercolors watercolour watercolours aquarelle acuarela aquarell gouache
        paint paints painted painting paintings painterly brush brushed brushstroke brushstrokes
        water-color water-colour""",
    "oil": """oil oils oleo impasto impressionism impressionist vangogh gogh rembrandt oil-paint oil-painted
        oil-painting oil-paintings painting-in-oil painted-in-oil van-gogh""",
    "sketch": """sketch sketches sketched sketchy pencil pencils graphite charcoal draw drawing drawings drawn
        ink inked hatching hatched lineart outline outlined line-art pencil-drawing pencil-sketch""",
    "engraving": """engraving engravings engraved etching etchings etched woodcut woodcuts linocut banknote
        crosshatch crosshatched copperplate gravure dollar cross-hatching""",
    "comic": """comic comics cartoon cartoons cartoonish manga anime halftone marvel superhero toon
        comic-book graphic-novel comic-strip ben-day-dots cel-shaded""",
    "poster": """poster posters posterised posterized posterise posterize propaganda screenprint stencil
        duotone hope-poster screen-print election-poster""",
    "popart": """popart warhol serigraph serigraphy pop-art andy-warhol""",
    "pixel": """pixel pixels pixelart pixelated pixelated-art retro-game arcade nes snes gameboy sprite
        pixel-art video-game 8-bit 16-bit game-boy""",
    "mosaic": """mosaic mosaics tesserae tesserated tile tiles tiled roman-mosaic""",
    "stainedglass": """stainedglass vitral vitrail cathedral leaded stained-glass
        church-window leaded-glass""",
    "ascii": """ascii asciiart ansi terminal teletype ascii-art text-art""",
    "matrix": """matrix digital-rain code-rain falling-code green-code""",
    "neon": """neon neons glow glows glowing cyberpunk synthwave vaporwave retrowave outrun laser lasers
        blacklight fluorescent luminous hologram holographic""",
    "thermal": """thermal infrared heatmap predator flir thermographic heat-map heat-vision thermal-camera
        infra-red thermal-vision""",
    "noir": """noir monochrome hardboiled film-noir black-and-white black-white b-w old-film""",
    "vhs": """vhs videotape camcorder vcr betamax eighties nineties analog analogue video-tape home-video 80s
        1980s 90s""",
    "glitch": """glitch glitches glitched glitchy datamosh datamoshing corrupted broken-signal databent""",
    "kaleidoscope": """kaleidoscope kaleidoscopic mandala mandalas symmetry symmetrical mirrored mirrors""",
    "dream": """dream dreams dreamy dreamlike psychedelic trippy lsd surreal hallucination trails echo echoes
        acid-trip motion-trails""",
}


def _spelt(look: str, words: str) -> Iterable[tuple[str, str]]:
    return ((word, look) for word in (look, *words.split()))


_SPELLINGS: Final = dict(
    spelling for look, words in _WORDS_OF_LOOKS.items() for spelling in _spelt(look, words)
)
WORDS: Final[Mapping[str, str]] = {word: look for word, look in _SPELLINGS.items() if word.isalpha()}
_PHRASES: Final[Mapping[str, str]] = {
    words: look for words, look in _SPELLINGS.items() if not words.isalpha()
}
_PHRASE: Final = re.compile(
    r"\b(?:"
    + "|".join(
        re.escape(words).replace(r"\-", r"[\s-]{1,2}") for words in sorted(_PHRASES, key=len, reverse=True)
    )
    + r")\b"
)

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

# "(soft neon:1.2)", or "neon:0.7", or a word, or the end of a clause.
_TOKEN: Final = re.compile(
    r"\((?P<group>[^():]*):\s*(?P<group_weight>\d{1,4}(?:\.\d{0,6})?)\)"
    r"|(?P<word>[^\W\d_]+)(?::\s*(?P<weight>\d{1,4}(?:\.\d{0,6})?))?"
    r"|(?P<stop>[,;.!?])"
)


def blend_of(prompt: Any, method: str = LINEAR) -> Blend:
    """Return the share of each look that `prompt` names; the shares add up to 1.

    Of several mentions of a look the weightiest counts. A prompt that gives none any weight means
    `DEFAULT_LOOK`. With `SLERP` two looks share as far along the arc between them as the second weighs.
    """
    weights: dict[str, float] = {}
    for text, weight in weighted_texts(prompt):
        for look, mentioned in _mentions(_PHRASE.sub(_joined, text.lower())):
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


def _joined(phrase: re.Match[str]) -> str:
    return _PHRASES[re.sub(r"[\s-]+", "-", phrase[0])]


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
