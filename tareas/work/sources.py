"""Where the producer's tasks come from: samples, a file, a pipe. One at a time, in constant memory."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from tareas import task
from tareas.errors import BadLine, InvalidTask, Trouble, WrongCall
from tareas.text import argument, quoted

CHUNK = 64 * 1024  # bytes read at once
MAX_LINE = task.MAX_BYTES + 1024  # bytes of a line: a task with some blanks around it
BOM = b"\xef\xbb\xbf"  # what some editors put before UTF-8
WINDOWS = os.name == "nt"  # there, nothing can wait for a pipe and a socket at once: reading stdin may block


class Item(NamedTuple):
    """A task to publish: its id, a body that decode has accepted, and its line in the input, counted from 1."""

    id: str
    body: bytes
    line: int = 0


class Source(Protocol):
    """Tasks, one after the other. total: how many there will be, None if nobody knows."""

    ended: bool
    total: int | None

    def take(self) -> Item | None:
        """The next task. None at the end (`ended` is true then), or when there is none yet. Raises BadLine."""

    def fileno(self) -> int | None:
        """What to wait for when there is none yet; None for a source that never says so."""

    def left(self, after: int | None = None) -> str:
        """What follows this line (None: the last one taken), in words, and how to get at it; empty if nothing."""

    def place(self, item: Item) -> str:
        """The task in words: where in the input it stands, its id and its size."""


class Sample:
    """`count` tasks made up, with a complexity in seconds between the two; the same seed makes the same tasks."""

    def __init__(
        self, count: int, complexity: tuple[float, float] = task.SAMPLE_COMPLEXITY, seed: int | None = None
    ) -> None:
        self.ended = False
        self.total: int | None = count
        self._taken = 0
        self._tasks = task.sample(count, complexity, seed)

    def take(self) -> Item | None:
        """The next task; None at the end."""
        made = next(self._tasks, None)
        if made is None:
            self.ended = True
            return None
        self._taken += 1
        return Item(made["id"], task.encode(made), self._taken)

    def fileno(self) -> int | None:
        """None: it never waits."""
        return None

    def left(self, after: int | None = None) -> str:
        """How many follow the last one taken, or this one; empty if none."""
        left = (self.total or 0) - (self._taken if after is None else after)
        return f"{left:,} sample tasks" if left else ""

    def place(self, item: Item) -> str:
        """The task in words."""
        return f"sample task {item.line:,} ({quoted(item.id)}, {len(item.body):,} bytes)"


class Pipe:
    """Tasks from an open file descriptor, a JSON object a line, as they come.

    Blank lines are passed over. A body is its line as it stands, without the blanks around it.
    """

    def __init__(self, fd: int, name: str = "stdin") -> None:
        self.name = name
        self.line = 0  # the last one taken, counted from 1
        self.ended = False
        self.total: int | None = None
        self._fd = fd
        self._lines: Iterator[bytes] = iter(())  # read and not yet taken
        self._partial = bytearray()  # of a line whose end is not read yet
        self._at_end = False

    def fileno(self) -> int | None:
        """The descriptor to wait for; None on Windows, where take waits itself."""
        return None if WINDOWS else self._fd

    def left(self, after: int | None = None) -> str:
        """What follows the last line taken, or this one, in words, and how to get at it; empty if nothing."""
        if self.ended and after is None:
            return ""
        first = (self.line if after is None else after) + 1
        return f"line {first:,} and on of {self.name} (tail -n +{first})"

    def place(self, item: Item) -> str:
        """The task in words."""
        return f"{self.name}, line {item.line:,} (task {quoted(item.id)}, {len(item.body):,} bytes)"

    def take(self) -> Item | None:
        """The next task; None at the end, or when the other side has not written one yet. Raises BadLine."""
        while True:
            for line in self._lines:
                self.line += 1
                if self.line == 1:
                    line = line.removeprefix(BOM)
                body = line.strip()
                if body:
                    try:
                        return Item(task.decode(body, simulated=False)["id"], body, self.line)
                    except InvalidTask as error:
                        raise self._bad_line(str(error)) from None
            if self._at_end:
                self.ended = True
                return None
            if len(self._partial) > MAX_LINE:
                self.line += 1
                raise self._bad_line(f"more than {task.MAX_BYTES:,} bytes: one task a line, big data in its own file")
            if not self._read():
                return None

    def _read(self) -> bool:
        """Read what is there. False if nothing is there yet."""
        try:
            # Not O_NONBLOCK: it would hold for every process that shares this terminal or pipe.
            chunk = self._chunk() if self._readable() else None
        except BlockingIOError:  # another process has set it
            chunk = None
        except OSError as error:
            raise self._lost(f"cannot be read after line {self.line:,}: {error.strerror}") from None
        if chunk is None:
            return False
        if not chunk:
            self._at_end = True
            self._lines = iter([bytes(self._partial)])
        elif b"\n" not in chunk:
            self._partial += chunk
        else:
            lines = chunk.split(b"\n")
            lines[0] = bytes(self._partial) + lines[0]
            self._partial = bytearray(lines.pop())
            self._lines = iter(lines)
        return True

    def _readable(self) -> bool:
        return WINDOWS or bool(select.select([self._fd], [], [], 0)[0])

    def _chunk(self) -> bytes:
        return os.read(self._fd, CHUNK)

    def _bad_line(self, reason: str) -> BadLine:
        self.line -= 1  # it is not taken
        return BadLine(f"{self.name}, line {self.line + 1}: {reason}")

    def _lost(self, reason: str) -> BadLine:
        return BadLine(f"{self.name} {reason}", status=1)


class File(Pipe):
    """Tasks from an open regular file, from its current position on: check reads it whole before the first take.

    What is appended after the check is left out. A file that got shorter is an error.
    """

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._left: int | None = None  # bytes that check has seen and take has not read yet
        self._taken = 0

    def check(self) -> int:
        """Read all, keep nothing. Returns how many tasks there are. Raises BadLine for the first line that is none."""
        try:
            start = os.lseek(self._fd, 0, os.SEEK_CUR)
            total = 0
            while self.take() is not None:
                total += 1
            size = os.lseek(self._fd, 0, os.SEEK_CUR) - start
            os.lseek(self._fd, start, os.SEEK_SET)
        except BadLine as error:
            raise BadLine(f"{error} (nothing is published)", error.status) from None
        except OSError as error:
            raise self._lost(f"cannot be read: {error.strerror} (nothing is published)") from None
        File.__init__(self, self._fd, self.name)
        self._left, self.total = size, total
        return total

    def take(self) -> Item | None:
        """The next task; None at the end. Raises BadLine, also when the file is not what check has seen."""
        item = super().take()
        if item is not None:
            self._taken += 1
        elif self.total is not None and self._taken != self.total:
            self.ended = False
            raise self._lost(f"has changed: {self.total:,} tasks at first, now {self._taken:,}")
        return item

    def fileno(self) -> int | None:
        """None: it never waits."""
        return None

    def left(self, after: int | None = None) -> str:
        """The same; the last task may be taken and the end not found yet."""
        return "" if after is None and self._taken == self.total else super().left(after)

    def _readable(self) -> bool:
        return True

    def _chunk(self) -> bytes:
        if self._left is None:
            return super()._chunk()
        chunk = os.read(self._fd, min(CHUNK, self._left))
        self._left -= len(chunk)
        return chunk


def open_source(name: str) -> Source:
    """The tasks of a file, checked whole before this returns; or, with ``-`` or the path of a pipe, as they come.

    Raises WrongCall if there is nothing to read, BadLine if a line of a file is no task.
    """
    if name == "-":
        if sys.stdin is None:
            raise WrongCall("stdin is closed: give the name of a file, or pipe tasks into it")
        fd, shown = sys.stdin.fileno(), "stdin"
    else:
        try:
            fd = os.open(name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:  # ValueError: a null character
            reason = error.strerror if isinstance(error, OSError) else "no file has such a name"
            hint = " (where RabbitMQ is goes after --url)" if "://" in name else ""
            hint = f" (so many sample tasks: --count {name})" if name.isdecimal() else hint
            raise WrongCall(f"cannot open {argument(name, limit=200)}: {reason}{hint}") from None
        shown = quoted(name, quotes=False)
    try:
        kind = os.fstat(fd).st_mode
    except OSError as error:
        raise Trouble(f"{shown} cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(kind):
        raise WrongCall(f"{shown} is a folder: give a file, one task a line")
    if not stat.S_ISREG(kind):
        return Pipe(fd, shown)
    file = File(fd, shown)
    file.check()
    return file
