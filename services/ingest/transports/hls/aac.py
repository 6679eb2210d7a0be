"""The sound that every player has: AAC as it is, Opus as AAC."""

from __future__ import annotations

from services.common.media.mpegts import AccessUnit, Codec
from services.common.media.sound import AudioDecoder, AudioEncoder


class AsAac:
    """Converts a stream's sound unit by unit. AAC passes; an AAC frame's worth of Opus is always inside."""

    def __init__(self) -> None:
        self._decoder: AudioDecoder | None = None
        self._encoder = AudioEncoder(Codec.AAC)

    def convert(self, unit: AccessUnit) -> list[AccessUnit]:
        if unit.codec is Codec.AAC:
            return [unit]
        assert unit.codec is Codec.OPUS, unit.codec
        if self._decoder is None:
            self._decoder = AudioDecoder(Codec.OPUS)
        heard = self._decoder.decode(unit.data, unit.pts)
        return [aac for sound in heard for aac in self._encoder.encode(sound.samples, sound.pts)]
