"""How long to wait before connecting again, when to say so, and when to give up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tareas.errors import Trouble

FIRST = 0.25  # seconds
LONGEST = 30.0  # seconds
GROWTH = 1.5  # with 2, workers were idle for up to 8 s after a broker's restart of 10 s


class Backoff:
    """The rests between tries to connect: growing, bounded, and jittered, as many workers lose a broker at once.

    They begin anew with progress only (a confirm, an ack), or after a connection that lasted as long as the longest
    rest. A connection that is made and lost at once is no progress. give_up: seconds without a connection, None for
    ever.
    """

    def __init__(self, tell: Callable[..., None], give_up: float | None = None) -> None:
        self._tell, self._give_up = tell, give_up
        self._length = FIRST
        self._told = ""
        self._since = time.monotonic()  # without a connection
        self._connected: float | None = None  # since when

    def connected(self) -> None:
        """There is a connection, as far as work can begin."""
        self._connected = time.monotonic()

    def reset(self) -> None:
        """There is progress: the next trouble is a new one."""
        self._length, self._told = FIRST, ""

    def next(self, reason: str) -> float:
        """There is no connection, for this reason: the seconds to rest now. Tells `waiting` once for each new reason,
        not once for each try. Raises Trouble when it is time to give up."""
        now = time.monotonic()
        if self._connected is not None:
            if now - self._connected >= LONGEST:
                self.reset()
            self._connected, self._since = None, now
        if self._give_up is not None and now - self._since > self._give_up:
            raise Trouble(f"no connection within {self._give_up:g} s: {reason}")
        self.say(self._length, reason)
        rest = self._length * random.uniform(0.5, 1)
        self._length = min(self._length * GROWTH, LONGEST)
        return rest

    def say(self, seconds: float, reason: str) -> None:
        """Tell `waiting`, unless this reason is the one told last."""
        if reason != self._told:
            self._told = reason
            self._tell("waiting", seconds=round(seconds, 3), reason=reason)
