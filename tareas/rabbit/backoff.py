"""How long to wait before connecting again, and when to say so."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST = 0.25  # seconds
LONGEST = 30.0  # seconds
GROWTH = 1.5  # with 2, workers were idle for up to 8 s after a broker's restart of 10 s


class Rests:
    """The rests between tries to connect: growing, bounded, and jittered, as many workers lose a broker at once."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._length = FIRST
        self._told = ""

    def reset(self) -> None:
        """The connection was good: the next trouble is a new one."""
        self._length, self._told = FIRST, ""

    def next(self, reason: str) -> float:
        """The seconds to rest now. Tells `waiting` once for each new reason, not once for each try."""
        self.say(self._length, reason)
        rest = self._length * random.uniform(0.5, 1)
        self._length = min(self._length * GROWTH, LONGEST)
        return rest

    def say(self, seconds: float, reason: str) -> None:
        """Tell `waiting`, unless this reason is the one told last."""
        if reason != self._told:
            self._told = reason
            self._tell("waiting", seconds=round(seconds, 3), reason=reason)
