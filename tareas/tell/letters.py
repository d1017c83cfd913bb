"""A dead letter, for a person and as JSON."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import TYPE_CHECKING, Any

from tareas.task import MAX_BYTES, encode
from tareas.text import SHOWN, shown

if TYPE_CHECKING:
    from tareas.rabbit.letters import DeadLetter


def in_words(letter: DeadLetter) -> str:
    """The letter for a person: two lines, three when its body is no task. Nothing in it moves a terminal's cursor."""
    attempts = "" if letter.attempts is None else f" after {letter.attempts} attempt{'s' * (letter.attempts != 1)}"
    when = "" if letter.time is None else time.strftime(" %Y-%m-%d %H:%M:%S", time.localtime(letter.time))
    worker = "" if letter.worker is None else f" by {shown(letter.worker)}"
    lines = [
        f"{letter.id}  dead{when}{worker}{attempts}, {len(letter.body):,} byte{'s' * (len(letter.body) != 1)}",
        f"    {'no reason given' if letter.reason is None else shown(letter.reason)}",
    ]
    if letter.task is None:
        lines.append(f"    no task: {shown(letter.body[: SHOWN * 4])}")
    return "\n".join(lines)


def in_json(letter: DeadLetter) -> str:
    """The letter as a line of JSON in ASCII: the task, which producer.py takes back, with `dead_letter` added to it.

    A body that is no task stands in `dead_letter`, in base64; a producer refuses such a line.
    """
    about: dict[str, Any] = {
        "id": letter.id,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "worker": letter.worker,
        "time": letter.time,
    }
    if letter.task is None:
        about["body"] = base64.b64encode(letter.body).decode("ascii")
    line = json.dumps({**(letter.task or {}), "dead_letter": about}, separators=(",", ":"))
    if letter.task is not None and len(line) > MAX_BYTES:  # too long for producer.py: the task without `dead_letter`
        line = re.sub(r"[^ -~]", _escaped, encode(letter.task).decode())
    return line


def _escaped(found: re.Match[str]) -> str:
    """A character as it is if a terminal can show it, else as JSON escapes it."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]
