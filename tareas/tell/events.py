"""What happened, as one fact each: plain lines for a person, colours and a bar on a terminal, JSON Lines with --json.

Every event is one line, written whole and flushed before `tell` returns: a process that is killed leaves at most
its last line cut short, and whoever reads the lines (the demo, admin.py audit) sees each as it happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO, cast

from tareas.streams import buffered, flush, leave
from tareas.tell import words
from tareas.tell.words import WORDS
from tareas.text import cut, printable
from tareas.work.forks import at_fork

if TYPE_CHECKING:
    from tareas.tell.terminal import Screen

PROGRESS_REST = 10.0  # seconds between two lines of progress where no terminal redraws them


class Events:
    """Tells what happens to `who` (a worker's id, or "producer") on `stream` (default: stdout).

    as_json: JSON Lines; their keys are time (unix seconds), event, who, and then the facts. If stderr is a terminal and
    the stream is not, a person sees the changes of state there. Without as_json: lines for a person. If the stream is a
    terminal (and TERM is not "dumb"), they have colours, and the running task a bar.

    Every method raises OSError if the stream takes no more: BrokenPipeError when its reader went away, ENOSPC when
    the disk is full. A worker that could not tell `done` must not ack: the log would show a loss that is none.

    Any thread may tell. So may a signal handler that interrupts another `tell`: its line comes after the other one.
    """

    def __init__(self, who: str, as_json: bool = False, stream: TextIO | None = None) -> None:
        # With stdout closed from the start (`>&-`) Python has none: nobody listens.
        self._stream: TextIO = buffered(stream or sys.stdout or open(os.devnull, "w"))  # noqa: SIM115
        self.who = who
        self.as_json = as_json
        self._encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._shown_who = self._shown(who)
        self._who_as_json = json.dumps(who)
        self._progress_due = time.monotonic() + PROGRESS_REST
        self._lock = threading.RLock()  # a signal handler runs in the thread that may hold it
        self._writing = False
        self.broken: OSError | None = None  # set for good once the stream takes no more
        self._last_reason: object = None
        self._pending: deque[tuple[str, str, dict[str, Any]]] = deque()
        self._screen: Screen | None = None
        self._aside: Events | None = None
        if as_json and sys.stderr is not None and sys.stderr.isatty() and not self._stream.isatty():
            self._aside = Events(who, stream=sys.stderr)
        if not as_json and self._stream.isatty() and os.environ.get("TERM") != "dumb":
            from tareas.tell.terminal import Screen

            self._screen = Screen(self._stream, self._shown_who)
            at_fork(self, Events._in_child)

    def tell(self, word: str, /, **facts: Any) -> None:
        """Write one event, and return when it is flushed. Raises KeyError if WORDS doesn't have the word."""
        WORDS[word]
        for name in ("reason", "error"):
            if name in facts:
                facts[name] = cut(str(facts[name]))
        text = words.in_json(word, self._who_as_json, facts) if self.as_json else self._in_words(word, facts)
        self._write(word, text, facts)
        if self._aside is not None and word in words.ASIDE:
            with contextlib.suppress(OSError):  # the terminal is gone: the log is what counts
                self._aside.tell(word, **facts)

    def progress(self, confirmed: int, total: int | None, seconds: float) -> None:
        """Show how far a long input is: tasks confirmed, of how many (None: unknown), in how many seconds.

        No event: with --json nothing is written; without a terminal, a line every PROGRESS_REST seconds at most.
        """
        if self.as_json:
            return
        text = words.progress_text(confirmed, total, seconds)
        if self._screen is not None:
            self._write("progress", text, {"part": confirmed / total if total else None})
        elif time.monotonic() >= self._progress_due:
            self._progress_due = time.monotonic() + PROGRESS_REST
            self._write("progress", self._line("progress", text), {})

    def resting(self, task_id: str, seconds: float) -> None:
        """A terminal shows the rest of this task before it is given back; nowhere else is it an event."""
        if self._screen is not None:
            with self._lock:
                self._screen.running(self._shown(task_id), seconds, "resting")

    def waiting(self) -> None:
        """A terminal shows for how long there is no connection, until there is one; nowhere else is it an event."""
        for events in (self, self._aside):
            if events is not None and events._screen is not None:
                with events._lock:
                    events._screen.waiting()

    def for_others(self) -> TextIO | None:
        """A stdout for all that is no event: it keeps the bar below what is written. None if there is no bar."""
        if self._screen is None:
            return None
        return cast(TextIO, _ForOthers(self))

    def _in_child(self) -> None:
        """In a forked process, which may print: a thread that held the lock does not exist there."""
        self._lock, self._writing = threading.RLock(), False
        self._pending.clear()

    def close(self) -> None:
        """Leave the terminal clean. Never raises; calling it twice is fine."""
        for shown in (self._screen, self._aside):
            if shown is not None:
                shown.close()
        if self.broken is not None:
            leave(self._stream)

    def _write(self, word: str, text: str, facts: dict[str, Any]) -> None:
        with self._lock:
            self._pending.append((word, text, facts))
            if self._writing:  # a signal handler amid the loop below: that loop writes this, too
                return
            while self._pending:  # once more: a signal handler may come after the last look of the inner loop
                self._writing = True
                try:
                    while self._pending:
                        self._put(*self._pending.popleft())
                except OSError as error:
                    self.broken = error
                    raise
                finally:
                    self._writing = False

    def _put(self, word: str, text: str, facts: dict[str, Any]) -> None:
        if self._screen is None:
            self._stream.write(text)
            flush(self._stream)
        elif word == "said":
            self._screen.said(text)
        elif word == "progress":
            self._screen.progress(text, facts["part"])
        else:
            self._screen.show(WORDS[word], text)
            if word == "started":
                self._screen.running(self._shown(facts["id"]), facts.get("complexity"))

    def _in_words(self, word: str, facts: dict[str, Any]) -> str:
        """`worker-1  done      task-0003 in 0.61 s` and a newline; for a screen only the part after the label."""
        text = words.in_words(word, facts, self._shown, self._last_reason)
        if word in words.LOSSES:
            self._last_reason = facts.get("reason")
        return text if self._screen is not None else self._line(WORDS[word].label, text)

    def _line(self, label: str, text: str) -> str:
        return f"{self._shown_who}  {label:<9} {text}".rstrip() + "\n"

    def _shown(self, text: str) -> str:
        """As a stream of this encoding can take it."""
        text = cut(printable(text))
        return text if text.isascii() else text.encode(self._encoding, "backslashreplace").decode(self._encoding)


class _ForOthers:
    """A stdout for others: what they write goes above the bar, in its order among the events. Every other attribute,
    `buffer` say, is that of the terminal's own stream."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def write(self, text: str) -> int:
        self._events._write("said", text, {})
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        """Nothing waits here."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._events._stream, name)
