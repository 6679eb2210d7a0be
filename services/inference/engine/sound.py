"""The sound of one session in the engine: packets in, samples through the pipeline, packets out.

It has two threads of its own, so that a picture that takes long to decode or to encode does not hold it up;
between them it is the pipeline's turn, on the pipeline's thread. What comes in as AAC goes out as AAC, and
Opus as Opus.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from services.common.media.mpegts import Codec
from services.common.media.sound import CHANNELS, AudioDecoder, AudioEncoder, DecodedSound, Samples
from services.inference.engine.inbox import SOUNDS, Inbox
from services.inference.engine.mailbox import Waiting
from services.inference.packets import Packet, Sound
from sluice.pipeline import AudioFrame

PACKETS: Final = 1 << 16  # the supervisor's window bounds it


class SoundTrack:
    """Give it packets with `take`, and what the pipeline made of the sound in `inbox` with `put`."""

    def __init__(
        self,
        slot: int,
        inbox: Inbox[Any, DecodedSound],
        *,
        send: Callable[[Packet], None],
        taken: Callable[[], None],
        contained: Callable[[Callable[[], None]], None],
    ) -> None:
        self.errors = 0  # packets that gave no sound
        self._slot = slot
        self._inbox = inbox
        self._send = send
        self._taken = taken
        self._codec: Codec | None = None  # of the input
        self._packets: Waiting[Sound] = Waiting(PACKETS)
        self._made: Waiting[DecodedSound] = Waiting(SOUNDS)
        self._threads = [
            threading.Thread(target=contained, args=(work,), name=f"{name}-{slot}", daemon=True)
            for name, work in (("hear", self._hear), ("speak", self._speak))
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._packets) + len(self._made)

    def take(self, packet: Sound) -> None:
        self._inbox.announce_sound()
        self._packets.put(packet)

    def put(self, heard: DecodedSound, made: AudioFrame) -> None:
        """Pass on what the pipeline `made` of what it `heard`. Raises TypeError if it may not return that."""
        if not isinstance(made, AudioFrame):
            raise TypeError(f"process_audio returned {type(made).__name__}, not an AudioFrame")
        count = heard.samples.shape[1]
        if made.samples.shape[1] != count:
            raise TypeError(f"process_audio returned {made.samples.shape[1]} samples for {count}")
        samples: Samples = np.broadcast_to(made.samples, (CHANNELS, count))
        self._made.put(DecodedSound(heard.pts, samples))

    def finish_input(self) -> None:
        """No more packets: what is inside goes through the pipeline."""
        self._packets.finish()

    def finish_output(self) -> None:
        """No more from the pipeline: what is inside comes out; then `join` returns."""
        self._made.finish()

    def abort(self) -> None:
        self._packets.abort()
        self._made.abort()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _hear(self) -> None:
        decoder: AudioDecoder | None = None
        while (packet := self._packets.get()) is not None:
            if decoder is None or packet.codec is not self._codec:
                decoder, self._codec = AudioDecoder(packet.codec), packet.codec
            errors = decoder.errors
            for sound in decoder.decode(packet.data, packet.pts):
                self._inbox.put_sound(sound.pts, sound)
            self.errors += decoder.errors - errors
            self._inbox.sound_decoded()
            self._taken()
        self._inbox.finish_sound()

    def _speak(self) -> None:
        encoder: AudioEncoder | None = None
        codec: Codec | None = None
        while (sound := self._made.get()) is not None:
            if encoder is None or codec is not self._codec:
                assert self._codec is not None
                codec = self._codec
                encoder = AudioEncoder(codec)
            for unit in encoder.encode(sound.samples, sound.pts):
                self._send(Sound(self._slot, unit.codec, unit.pts, unit.data))
        for unit in encoder.flush() if encoder is not None else ():
            self._send(Sound(self._slot, unit.codec, unit.pts, unit.data))
