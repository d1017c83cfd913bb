"""A command of ours with one thing changed: python -m tests.doctored CHANGE... COMMAND.py ARGUMENT...

NAME=VALUE    a constant of the package has another value (a bound of 30 s need not be waited for)
boom:WORD     telling this event raises ValueError("boom"): a bug of ours
lost:WORD     the same, with what a lost connection would raise
full:WORD     standard output takes the event's line only when it is tried again: ENOSPC, as on a disk that is full
busy:WORD     the same with EAGAIN, as of a pipe in non-blocking mode

The module of a constant is found by its text and changed before anything else is imported: whoever imports the
constant gets the other value. What a module computes from its own constant stays.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tests.support import ROOT


class Failing(io.FileIO):
    """Standard output that fails once, at the line of this event."""

    def __init__(self, word: str, number: int) -> None:
        super().__init__(1, "w", closefd=False)
        self._mark, self._number = f'"event": "{word}"'.encode(), number
        _, end = os.pipe()  # the other end stays open, and nobody reads it
        os.set_blocking(end, False)
        self._full = io.FileIO(end, "w")
        while self._full.write(b"x" * 4096):
            pass

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        if self._mark and self._mark in bytes(data):
            self._mark = b""
            if self._number == errno.EAGAIN:  # of a real pipe: Python asks C for the number
                return self._full.write(data)
            raise OSError(self._number, os.strerror(self._number))
        return super().write(data)


def home(pattern: str) -> Any:
    """The one module of the package with such a line."""
    (found,) = [file for file in (ROOT / "tareas").rglob("*.py") if re.search(pattern, file.read_text(), re.MULTILINE)]
    return importlib.import_module(".".join(found.relative_to(ROOT).with_suffix("").parts))


def change(name: str, value: str) -> None:
    """The one constant of this name in the package."""
    setattr(home(rf"^{name}\b[^=\n]*="), name, float(value))


def raise_at(word: str, error: Callable[[], Exception]) -> None:
    """Events.tell raises this for the event; all others are told."""
    events: Any = home(r"^class Events\b").Events
    tell = events.tell

    def doctored(self: Any, told: str, /, **facts: Any) -> None:
        if told == word:
            raise error()
        tell(self, told, **facts)

    events.tell = doctored


def main(argv: Sequence[str]) -> None:
    at = next(number for number, argument in enumerate(argv) if argument.endswith(".py"))
    for each in argv[:at]:
        how, colon, word = each.partition(":")
        if not colon:
            change(*each.split("="))
        elif how == "boom":
            raise_at(word, lambda: ValueError("boom"))
        elif how == "lost":
            raise_at(word, lambda: ConnectionResetError(errno.ECONNRESET, "boom"))
        else:
            raw = Failing(word, {"full": errno.ENOSPC, "busy": errno.EAGAIN}[how])
            sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")
    sys.argv = list(argv[at:])
    runpy.run_path(str(ROOT / argv[at]), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
