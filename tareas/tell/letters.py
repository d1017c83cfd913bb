"""One dead letter: what it says of its task and of its death, for a person and as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pika

from tareas.cli import quoted
from tareas.task import MAX_BYTES, InvalidTask, decode, encode
from tareas.work.verdict import UnreadableHeaders

SHOWN = 300  # characters of a reason or a foreign body that a person sees
LATEST = 253_402_300_800  # unix seconds: the year 10000, which no calendar shows


@dataclass(frozen=True)
class DeadLetter:
    """One message of the dead-letter queue, taken and not yet settled.

    id: the body's, else the message's, else "body-" and a digest of the body: something to name it by, printable.
    task: None when the body is no task; task_id: the id that it has nevertheless, if any. reason: None when nobody gave
    one. attempts, worker, time (unix seconds): None when not known, as for what RabbitMQ dead-lettered itself.
    """

    tag: int
    body: bytes
    properties: pika.BasicProperties
    id: str
    task: dict[str, Any] | None
    task_id: str | None
    reason: str | None
    attempts: int | None
    worker: str | None
    time: float | None


def read(tag: int, properties: pika.BasicProperties, body: bytes) -> DeadLetter:
    """Understand a message of the dead-letter queue; whatever a stranger wrote into it, this does not raise."""
    headers = {} if properties.headers is None else properties.headers
    task: dict[str, Any] | None = None
    try:
        task = decode(body, simulated=False)
        task_id: str | None = task["id"]
    except InvalidTask as error:
        task_id = error.task_id
    mark, worker, attempts = (headers.get(f"tareas-{name}") for name in ("reason", "worker", "attempts"))
    reason, at = (mark if isinstance(mark, str) else None), _time(headers.get("tareas-time"))
    if reason is None:
        reason, at = _broker_reason(headers)
    return DeadLetter(
        tag,
        body,
        properties,
        id=task_id or _name(properties.message_id, body),
        task=task,
        task_id=task_id,
        reason=reason,
        attempts=int(attempts) if isinstance(attempts, int) and attempts >= 0 else None,
        worker=worker if isinstance(worker, str) else None,
        time=at,
    )


def _name(message_id: Any, body: bytes) -> str:
    if isinstance(message_id, str) and message_id and message_id.isprintable():
        return message_id
    return f"body-{hashlib.sha256(body).hexdigest()[:12]}"


def _time(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < LATEST else None


def _broker_reason(headers: dict[str, Any]) -> tuple[str | None, float | None]:
    """Why and when RabbitMQ itself dead-lettered it (https://www.rabbitmq.com/docs/dlx: the newest entry is first)."""
    if isinstance(headers, UnreadableHeaders):
        return "unknown: the headers cannot be read", None
    deaths = headers.get("x-death")
    if not isinstance(deaths, list) or not deaths or not isinstance(deaths[0], dict):
        return None, None
    death = deaths[0]
    at = death.get("time")
    moment = at.timestamp() if isinstance(at, datetime) else None
    return f"RabbitMQ: {death.get('reason')}, in queue {death.get('queue')}", _time(moment)


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
    """The letter as one line of JSON, ASCII only: the task, for producer.py to take back, and `dead_letter` beside it.

    A body that is no task stands in `dead_letter` in base64; a producer refuses such a line.
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
    if letter.task is not None and len(line) > MAX_BYTES:  # a task that is as large as can be: then itself alone
        line = re.sub(r"[^ -~]", _escaped, encode(letter.task).decode())
    return line


def _escaped(found: re.Match[str]) -> str:
    """A character as it is if a terminal can show it, else as JSON escapes it."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def shown(value: Any) -> str:
    """What a stranger wrote, in one short line without terminal escapes."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return quoted(text, quotes=False, limit=SHOWN)
