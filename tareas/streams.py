"""Stdout and stderr: whose they are, and what happens when nobody reads them or the disk behind them is full."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import time
from typing import TextIO

PAUSE = 0.01  # seconds before a stream that can be written again is written
REFUSALS = 500  # by a stream that its system calls writable
# What writing may meet.
OUTPUT_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EAGAIN)


def complain(program: str, message: str, status: int) -> int:
    """Say on stderr, in one line, what went wrong. Returns the status."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(_fitted(f"{program}: {message}"), file=sys.stderr, flush=True)
    return status


def _fitted(line: str) -> str:
    """The line; on a terminal where it is too long, wrapped between words."""
    if not sys.stderr.isatty():
        return line
    import textwrap  # here: it is for the rare end

    columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return textwrap.fill(line, columns - 1, break_long_words=False, break_on_hyphens=False) if columns > 20 else line


def buffered(stream: TextIO) -> TextIO:
    """The stream, or another on the same file: without a buffer (PYTHONUNBUFFERED) Python drops, without an error, what
    a pipe that does not block has no room for."""
    if not isinstance(getattr(stream, "buffer", None), io.RawIOBase):
        return stream
    return open(stream.fileno(), "w", encoding=stream.encoding, errors=stream.errors, closefd=False)


def flush(stream: TextIO) -> None:
    """Flush the stream. If it is a pipe that does not block (some supervisors leave theirs so), wait for its reader.

    Raises OSError when the stream takes no more, or refuses again and again although its system says that it can write.
    """
    for _ in range(REFUSALS):
        with contextlib.suppress(BlockingIOError):
            return stream.flush()
        select.select([], [stream], [])
        time.sleep(PAUSE)
    stream.flush()


def leave(stream: TextIO) -> None:
    """Send what is still in this stream's buffer nowhere: Python would try it again as it ends, with a traceback."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def own_stdout() -> TextIO | None:
    """Stdout for the caller alone: what a handler prints, or a program that it runs, goes to stderr from now on.

    None, and nothing changed, if stdout is closed (`>&-`) or no file.
    """
    try:
        fd = sys.stdout.fileno()
        sys.stdout.flush()
    except (AttributeError, OSError):
        return None
    # Where stderr is closed, its number would be the next to be given out, to our events.
    aside = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else sys.stderr.fileno()
    own = open(os.dup(fd), "w", encoding="utf-8")  # noqa: SIM115
    os.dup2(aside, fd)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return own
