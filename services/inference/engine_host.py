"""The engine as the host of this runner's sessions."""

from __future__ import annotations

from services.common.latest import Latest
from services.inference.address import Berth
from services.inference.assignment import Assignment
from services.inference.bypass import Bypass
from services.inference.hosting import Offer
from services.inference.session import Session, Voices
from services.inference.settings import InferenceSettings
from services.inference.supervisor import Supervisor


class EngineHost:
    """What `Slots` and `Presence` need of it; see `hosting.Host`."""

    def __init__(self, settings: InferenceSettings, supervisor: Supervisor) -> None:
        self._settings = settings
        self.supervisor = supervisor

    @property
    def offers(self) -> Latest[tuple[Offer, ...]]:
        return self.supervisor.offers

    @property
    def ready(self) -> bool:
        return self.supervisor.ready

    def session(self, of: Assignment) -> Session:
        berth = Berth(of.channels)
        return Session(of, self.supervisor, self._settings, Voices.at_bridge(berth, self._settings), berth)

    def session_for(self, of: Assignment, voices: Voices, bypass: Bypass) -> Session:
        """One for somebody who has another way to speak to it, and wants the sound in its output."""
        return Session(of, self.supervisor, self._settings, voices, Berth(of.channels), bypass)
