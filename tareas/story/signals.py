"""Ctrl+C for a program that has to clean up: it interrupts waiting, never the clean-up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """Ctrl+C, SIGTERM or a closed terminal: `signum`. Not an Exception, so that nobody takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """Within this context a signal interrupts the demo only where it waits, so that clean-up is never cut short.

    Further signals change nothing, in the context or after it: the end is on its way.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.raising = False  # a signal raises at once: somebody else's code waits
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            if hasattr(signal, name):
                self._before[getattr(signal, name)] = signal.signal(getattr(signal, name), self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.received is None:
            self.restore()
            return
        for signum in self._before:  # Python takes our handler away some milliseconds before its end
            signal.signal(signum, signal.SIG_IGN)

    def restore(self) -> None:
        """Back to the handlers that were there before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signum
            if self.raising:
                raise Interrupted(signum)

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.received is not None:
            raise Interrupted(self.received)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A stretch of somebody else's code that a signal ends at once."""
        self.raising = True
        try:
            self.check()
            yield
        finally:
            self.raising = False
