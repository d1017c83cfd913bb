"""From the lines of a log back to events."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tareas.errors import InvalidLog
from tareas.text import printable

OPENING = b'{"time": '  # how an event begins. No text in an event has it: quotes are escaped there
NEED_ID = {"published", "confirmed", "started", "done"}  # not `replayed`: some dead letters have none
COPIED = 4096  # bytes: two logs that begin with the same ones are copies of one log


def read(paths: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    """The events of these files, one after the other, each with its "log". "-" is stdin; a path is read only once.

    A killed process leaves its last line cut short. Started again, it writes on behind that piece. The piece comes as
    {"event": "truncated"}. Any other line that is no event raises InvalidLog, and so does a log that is a copy of
    another. A file that cannot be read raises OSError.
    """
    beginnings: dict[bytes, str] = {}
    for path in dict.fromkeys(str(path) for path in paths):
        with contextlib.ExitStack() as stack:
            file: BinaryIO = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))
            name = "stdin" if path == "-" else path
            if file.seekable():
                beginning = file.read(COPIED)
                file.seek(0)
                for other, its_name in beginnings.items():
                    if beginning and (beginning.startswith(other) or other.startswith(beginning)):
                        copied = f"begins as {printable(its_name)} does: name each log once"
                        raise InvalidLog(printable(name), 1, copied)
                if beginning:
                    beginnings[beginning] = name
            for number, whole in enumerate(file, 1):
                line = whole.replace(b"\0", b"")  # what a power cut leaves of a line that was not on the disk yet
                if line.strip():
                    for event in _events(line, name, number):
                        yield {**event, "log": name}


def _events(line: bytes, path: str, number: int) -> Iterator[dict[str, Any]]:
    """The event in this line; several, if one was cut short and the next follows in the same line. Raises
    InvalidLog."""
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        pieces = [piece for piece in re.split(b"(?=" + re.escape(OPENING) + b")", line) if piece]
        if len(pieces) > 1 and pieces[0][: len(OPENING)] == OPENING[: len(pieces[0])]:
            for piece in pieces:
                yield from _events(piece, path, number)
        elif not line.startswith(OPENING) and (line.endswith(b"\n") or not line.startswith(b"{")):
            raise InvalidLog(printable(path), number, _reason(error)) from None
        else:
            yield {"event": "truncated", "line": number}
    else:
        if reason := _not_an_event(event):
            raise InvalidLog(printable(path), number, reason)
        yield event


def _not_an_event(event: Any) -> str:
    """Why it is none, or an empty text."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return 'no "event" in it'
    if not isinstance(event.get("who"), str):
        return 'no "who" in it'
    task_id = event.get("id")
    if not isinstance(task_id, str) and (task_id is not None or event["event"] in NEED_ID):
        return 'its "id" is no string'
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, RecursionError):
        return "nested too deep"
    return str(error)
