"""A terminal: events in colour, and below them one line that lives, for the running task or for a long input.

The line is redrawn in place and nothing else about the terminal is changed (the cursor stays visible), so even a
process that is killed leaves a terminal that works. rich takes its time to import: only events imports this module,
and only where it has a terminal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from tareas.tell.words import Word
from tareas.work.forks import at_fork

if TYPE_CHECKING:
    from rich.console import OverflowMethod

TURN = 0.2  # seconds between two drawings; a shorter task gets no line, which would only flicker
LONGEST_BAR = 30  # columns
SHORTEST_BAR = 5
SHORTEST_NAME = 9  # of a task: "task-0003"
NARROWEST = 20  # columns that text behind a label is wrapped to


class Screen:
    """Prints on the terminal `stream` in the name of `who` (printable). Methods may raise OSError, close never."""

    def __init__(self, stream: TextIO, who: str) -> None:
        plain = bool(os.environ.get("NO_COLOR"))  # https://no-color.org: set and not empty
        self._stream = stream
        self._who = who
        self._console = Console(
            file=stream, force_terminal=True, no_color=plain, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._styles: Callable[[str], str] = (lambda style: "") if plain else (lambda style: style)
        self._bar = "━─" if (self._console.encoding or "").startswith("utf") else "#-"
        self._live: Callable[[], Text] | None = None  # draws the line
        self._since: float | None = None  # when the running task began
        self._label = ""  # of the line that lives
        self._drawn = 0  # columns of the line that is on the screen now
        self._partial = False  # someone else has begun a line: ours must not be drawn behind it
        self._lock = threading.RLock()
        at_fork(self, Screen._in_child)
        self._running = threading.Event()
        self._closed = False
        self._ticker: threading.Thread | None = None

    def show(self, word: Word, text: str) -> None:
        """Print an event above the line."""
        if word.ends:
            self._live, self._since, self._label = None, None, ""
            self._running.clear()
        line = Text.assemble(f"{self._who}  ", (f"{word.label:<9}", self._styles(word.style)), " ")
        said = Text(text)
        said.highlight_regex(r"REDELIVERED, attempt \d+", self._styles("bold reverse magenta"))
        with self._lock, self._console:  # all of it in one write
            self._erase()
            if self._partial:
                self._partial = False
                self._console.print()
            self._console.print(self._wrapped(line, said))
            self._draw()

    def said(self, text: str) -> None:
        """Write above the line what is no event."""
        with self._lock:
            with self._console:
                self._erase()
            self._stream.write(text)
            self._stream.flush()
            self._partial = not text.endswith("\n") if text else self._partial
            with self._console:
                self._draw()

    def _wrapped(self, line: Text, said: Text) -> Text:
        """The label, and the text beside it in rows that are wrapped between words; below the label on a terminal that
        is too narrow for that."""
        indent, columns = line.cell_len, self._columns() - 1
        below = columns - indent < min(NARROWEST, said.cell_len)
        if below:
            indent = 2
            line.rstrip()
        for number, row in enumerate(said.wrap(self._console, max(columns - indent, 1))):
            row.rstrip()
            line.append("\n" + indent * " " if number or below else "").append_text(row)
        line.rstrip()
        line.no_wrap, line.overflow = True, "ignore"
        return line

    def waiting(self) -> None:
        """From now on, or still, the line shows for how long there is no connection."""
        if self._label != "waiting":
            self.running("", None, "waiting", "bold")

    def running(self, task: str, complexity: float | None, label: str = "running", style: str = "cyan") -> None:
        """From now on the line shows this task (a printable id, or "") and how many seconds it has run.

        complexity: the seconds that it will take, which make a bar; None if nobody knows.
        """
        began = time.monotonic()

        def draw() -> Text:
            seconds = time.monotonic() - began
            if not complexity:
                return self._line(label, style, task, f"{seconds:.1f} s", None)
            return self._line(label, style, task, f"{seconds:.1f} of {complexity:.1f} s", seconds / complexity)

        self._live, self._since, self._label = draw, began, label
        if self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, name="screen", daemon=True)
            self._ticker.start()
        self._running.set()

    def progress(self, text: str, part: float | None) -> None:
        """The line shows this text, and a bar of which this part (0 to 1) is done if that is known."""
        self._live = lambda: self._line("progress", "cyan", "", text, part)
        with self._lock, self._console:
            self._erase()
            self._draw()

    def close(self) -> None:
        """Take the line away."""
        self._closed, self._live, self._since = True, None, None
        self._running.set()  # the ticker ends
        # A terminal that is gone needs no cleaning.
        with contextlib.suppress(OSError, ValueError), self._lock, self._console:
            self._erase()

    def _in_child(self) -> None:
        """In a forked process: the line is the parent's, and so is the thread that holds the lock."""
        self._lock, self._live, self._since, self._drawn = threading.RLock(), None, None, 0

    def _tick(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # A signal must wake the main thread, where Python runs the handlers.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGALRM})
        while not self._closed:
            self._running.wait()
            time.sleep(TURN)
            try:
                with self._lock, self._console:
                    since = self._since
                    if since is not None and time.monotonic() - since >= TURN:
                        self._erase()
                        self._draw()
            except (OSError, ValueError):  # the terminal is gone: the next event says so to someone who can act
                return

    def _line(self, label: str, style: str, task: str, text: str, part: float | None) -> Text:
        """The line, at most as wide as the terminal. For want of room the bar gets shorter first, then the task's id;
        the label goes if not even the beginning of the id has room."""
        # Three stay free: some terminals wrap as soon as the last is written, and ^C, which they echo, takes two.
        columns = max(self._columns() - 3, 1)
        dots: OverflowMethod = "ellipsis" if self._bar[0] == "━" else "crop"
        line = Text.assemble(f"{self._who}  ", (f"{label:<9} ", self._styles(style)))
        if task:
            name = Text(task)
            before = columns - len(text) - 2
            if before - line.cell_len < min(name.cell_len, SHORTEST_NAME):
                line = Text(f"{self._who}  ")
            name.truncate(max(before - line.cell_len, 1), overflow=dots)
            line.append_text(name).append("  ")
        line.append(text)
        room = min(columns - line.cell_len - 2, LONGEST_BAR)
        if part is not None and room >= SHORTEST_BAR:
            full = min(round(part * room), room)
            line.append("  ")
            line.append(self._bar[0] * full, self._styles(style))
            line.append(self._bar[1] * (room - full))
        line.truncate(columns, overflow=dots)
        return line

    def _draw(self) -> None:
        if self._live is not None and not self._partial and not self._console.legacy_windows:
            line = self._live()
            self._drawn = line.cell_len
            self._console.print(line, end="")

    def _erase(self) -> None:
        if self._drawn:
            erase = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
            wrapped = (self._drawn - 1) // self._columns()  # rows above the last one, if the terminal was made narrower
            self._console.control(*[erase, Control((ControlType.CURSOR_UP, 1))] * wrapped, erase)
            self._drawn = 0

    def _columns(self) -> int:
        try:
            return max(os.get_terminal_size(self._stream.fileno()).columns or 80, 2)
        except (OSError, ValueError):  # no real terminal
            return 80
