"""What happened, as one fact each: plain lines for a person, colours and a bar on a terminal, JSON Lines with --json.

Every event is one line, written whole and flushed before `tell` returns: a process that is killed leaves at most
its last line cut short, and whoever reads the lines (the demo, admin.py audit) sees each as it happens.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from tareas.cli import leave
from tareas.work.forks import at_fork

if TYPE_CHECKING:
    from tareas.tell.terminal import Screen

LONGEST_TEXT = 500  # characters of an error or a reason: they come from outside and may be as long as they like
PROGRESS_REST = 10.0  # seconds between two lines of progress where no terminal redraws them


class Word(NamedTuple):
    """How an event reads: label, colour (a style of rich), the text (of the facts), whether the bar ends with it."""

    label: str
    style: str
    text: str
    ends: bool = False


WARNING = "black on yellow"  # to be seen on dark grounds and on light ones, where yellow letters are not

WORDS = {
    # producer and worker
    "connected": Word("connected", "bold", "to {address}", ends=True),
    "connection_lost": Word("cut off", WARNING, "{reason}"),  # the task goes on
    "waiting": Word("waiting", "bold", "trying again in {seconds:.2f} s{because}", ends=True),
    "blocked": Word("blocked", WARNING, "RabbitMQ takes nothing for now: {reason}"),
    "unblocked": Word("unblocked", "bold", "RabbitMQ takes tasks again"),
    "stopping": Word("stopping", "bold", "{reason}"),
    # producer
    "published": Word("published", "cyan", "{id}{again}"),
    "confirmed": Word("confirmed", "green", "{id}"),
    "refused": Word("refused", WARNING, "{id}: {reason}"),
    "returned": Word("returned", WARNING, "{id}: {reason}"),
    "finished": Word("finished", "bold", "{confirmed} of {published} confirmed in {seconds:.2f} s{left}", ends=True),
    # worker
    "started": Word("started", "cyan", "{id}{loud}", ends=True),  # of the task before it
    "done": Word("done", "green", "{id} in {seconds:.2f} s", ends=True),
    "failed": Word("failed", "red", "{id} in attempt {attempt}, after {seconds:.2f} s: {error}", ends=True),
    "requeued": Word("requeued", "magenta", "{id} after attempt {attempt}, rested {rest:.2f} s", ends=True),
    "dead_lettered": Word("dead", "bold red", "{id} after attempt {attempt}: {reason}", ends=True),
    "discarded": Word("discarded", WARNING, "the result of {id}: {reason}", ends=True),
    "abandoned": Word("abandoned", "magenta", "{id} in attempt {attempt}: it goes back to the queue", ends=True),
    "cancelled": Word("cancelled", WARNING, "{reason}", ends=True),
    "stopped": Word("stopped", "bold", "{processed} done, {failed} failed, {dead_lettered} dead-lettered, "
                                       "busy {busy:.2f} s", ends=True),
    # admin.py
    "replayed": Word("replayed", "green", "{id}"),
}  # fmt: skip

# With --json into a file, and a person at the terminal: what they would wait for in vain.
ASIDE = {
    "connected", "connection_lost", "waiting", "blocked", "unblocked", "cancelled", "stopping", "finished", "stopped"
}  # fmt: skip

LOSSES = {"connection_lost", "cancelled", "waiting"}  # whose reasons follow each other

_JSON: dict[type, Any] = {  # how a fact of this type reads; every other one as json.dumps has it
    str: json.encoder.encode_basestring_ascii,
    int: int.__repr__,
    float: lambda number: repr(number) if math.isfinite(number) else json.dumps(number),
    bool: lambda yes: "true" if yes else "false",
}


class Events:
    """Tells what happens to `who` (a worker's id, or "producer") on `stream` (default: stdout).

    as_json: JSON Lines, keys in the order time (unix seconds), event, who, then the facts; changes of state also for a
    person on stderr, if that is a terminal and the stream is none. Otherwise lines for a person; with colours and a bar
    for the running task if the stream is a terminal (and TERM is not "dumb").

    Every method raises OSError if the stream takes no more: BrokenPipeError when its reader went away, ENOSPC when
    the disk is full. The caller must not go on as if the event were told: a worker that can't tell `done` must not
    ack, or the log would show a loss that is none.

    Any thread may tell, and so may a signal handler that interrupts another `tell`: its line follows that one's.
    """

    def __init__(self, who: str, as_json: bool = False, stream: TextIO | None = None) -> None:
        # With stdout closed from the start (`>&-`) Python has none: nobody listens.
        self._stream: TextIO = stream or sys.stdout or open(os.devnull, "w")  # noqa: SIM115
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
            from tareas.tell.terminal import Screen  # rich takes its time to import: only where it is seen

            self._screen = Screen(self._stream, self._shown_who)
            at_fork(self, Events._in_child)

    def tell(self, word: str, /, **facts: Any) -> None:
        """Write one event, and return when it is flushed. Raises KeyError if WORDS doesn't have the word."""
        WORDS[word]
        for name in ("reason", "error"):
            if name in facts:
                facts[name] = cut(str(facts[name]))
        self._write(word, self._as_json(word, facts) if self.as_json else self._in_words(word, facts), facts)
        if self._aside is not None and word in ASIDE:
            with contextlib.suppress(OSError):  # the terminal is gone: the log is what counts
                self._aside.tell(word, **facts)

    def progress(self, confirmed: int, total: int | None, seconds: float) -> None:
        """Show how far a long input is: tasks confirmed, of how many (None: unknown), in how many seconds.

        No event: with --json nothing is written, without a terminal a line every PROGRESS_REST seconds at most.
        """
        if self.as_json:
            return
        text = progress_text(confirmed, total, seconds)
        if self._screen is not None:
            self._write("progress", text, {"part": confirmed / total if total else None})
        elif time.monotonic() >= self._progress_due:
            self._progress_due = time.monotonic() + PROGRESS_REST
            self._write("progress", f"{self._shown_who}  {'progress':<9} {text}\n", {})

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
        """On a terminal, a stream for what else is written to it: with the bar below, not amid it. Else None."""
        if self._screen is None:
            return None
        return cast(TextIO, _ForOthers(self))

    def _in_child(self) -> None:
        """In a forked process, which may print: a thread of its parent's may have held the lock."""
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
            if self._writing:  # we are a signal handler amid the loop below: a stream cannot be entered twice
                return
            while self._pending:  # again: a signal handler may come between the last look below and the end
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
            self._stream.flush()
        elif word == "said":
            self._screen.said(text)
        elif word == "progress":
            self._screen.progress(text, facts["part"])
        else:
            self._screen.show(WORDS[word], text)
            if word == "started":
                self._screen.running(self._shown(facts["id"]), facts.get("complexity"))

    def _as_json(self, word: str, facts: dict[str, Any]) -> str:
        """`{"time": 1764050000.123, "event": "done", "who": "worker-1", "id": "task-0003", ...}` and a newline.

        A worker tells two of them a task: written by hand, it costs a third of json.dumps.
        """
        more = [f', "{name}": {_JSON.get(type(fact), json.dumps)(fact)}' for name, fact in facts.items()]
        return f'{{"time": {time.time():.3f}, "event": "{word}", "who": {self._who_as_json}{"".join(more)}}}\n'

    def _in_words(self, word: str, facts: dict[str, Any]) -> str:
        """`worker-1  done      task-0003 in 0.61 s` and a newline; for a screen only the part after the label."""
        label, _, text, _ = WORDS[word]
        shown: dict[str, Any] = {name: self._shown(it) if isinstance(it, str) else it for name, it in facts.items()}
        if shown.get("id") is None:
            shown["id"] = shown.get("message_id") or "a task without an id"
        shown["again"] = " again" if facts.get("again") else ""
        again = facts.get("redelivered")
        shown["loud"] = f" REDELIVERED, attempt {facts['attempt']}: not acknowledged before" if again else ""
        shown["left"] = f"; not published: {shown['left']}" if "left" in facts else ""
        reason = facts.get("reason")
        shown["because"] = f": {shown['reason']}" if reason and reason != self._last_reason else ""  # once is enough
        if word in LOSSES:
            self._last_reason = reason
        text = text.format_map(shown)
        return text if self._screen is not None else f"{self._shown_who}  {label:<9} {text}".rstrip() + "\n"

    def _shown(self, text: str) -> str:
        """As a stream of this encoding can take it."""
        text = cut(printable(text))
        return text if text.isascii() else text.encode(self._encoding, "backslashreplace").decode(self._encoding)


class _ForOthers:
    """A stdout for others: what they write goes above the line that lives, in the order of the events. All else, its
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


def cut(text: str) -> str:
    """At most LONGEST_TEXT characters of it."""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


def printable(text: str) -> str:
    """The text with everything escaped that could steer a terminal or end a line: an id is someone else's data.

    str.isprintable is false for controls, and for what reverses or hides text as well (U+202E, say).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def progress_text(confirmed: int, total: int | None, seconds: float) -> str:
    """`12,000 of 50,000 confirmed, 8,000/s, 5 s left`; without a total what there is of it."""
    rate = confirmed / seconds if seconds > 0 else 0.0
    text = f"{confirmed:,}{f' of {total:,}' if total is not None else ''} confirmed, {rate:,.0f}/s"
    if total is not None and rate > 0:
        text += f", {(total - confirmed) / rate:,.0f} s left"
    return text
