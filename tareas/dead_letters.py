"""What a dead letter is: looking at those that lie in the dead-letter queue, replaying and discarding them.

Looking takes letters without acknowledging them, so that RabbitMQ keeps each until it is replayed or discarded; the
rest goes back to where it was, in order. Each look counts as a delivery, hence the queue's enormous delivery limit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pika
from pika.exceptions import NackError, UnroutableError

from tareas import broker
from tareas.cli import Trouble, quoted
from tareas.dead_letter import MAX_HEADERS, MOVED_HEADERS
from tareas.task import MAX_BYTES, InvalidTask, decode, encode

SHOWN = 300  # characters of a reason or a foreign body that a person sees
LATEST = 253_402_300_800  # unix seconds: the year 10000, which no calendar shows

# Written by RabbitMQ or a worker while the letter died: on a replay they would lie about its new life.
MARKS = ("tareas-", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")


class NotReplayed(Trouble):
    """The queue did not take the task back; its dead letter stays."""


@dataclass(frozen=True)
class DeadLetter:
    """One message of the dead-letter queue, taken and not yet settled.

    id: the task's, else the message's, else "body-" and a digest of the body: something to name it by, printable.
    task: None when the body is no task. reason: None when nobody gave one. attempts, worker, time (unix seconds): None
    when not known, as for what RabbitMQ dead-lettered itself. behind: how many letters waited after this one.
    """

    tag: int
    behind: int
    body: bytes
    properties: pika.BasicProperties
    id: str
    task: dict[str, Any] | None
    reason: str | None
    attempts: int | None
    worker: str | None
    time: float | None


def look(channel: Any, queue: str, limit: int | None = None) -> Iterator[DeadLetter]:
    """Take the dead letters of this work queue, oldest first: at most `limit`, and none that arrives meanwhile.

    Settle each with replay() or discard(), the others with give_back(). A channel that closes gives back, too.
    """
    while limit is None or limit > 0:
        with broker.deadline(channel.connection):
            method, properties, body = channel.basic_get(broker.dead(queue))
        if method is None:
            return
        # Bounded by the first answer: a letter that is replayed and fails again comes back, for ever. (The count in
        # the answer to a passive declare is no bound: right after a look it can be too small.)
        limit = min(method.message_count if limit is None else limit - 1, method.message_count)
        yield read(method.delivery_tag, method.message_count, properties, body or b"")


def give_back(channel: Any) -> None:
    """Return to the queue, in order, every letter taken through this channel and not settled."""
    channel.basic_nack(0, multiple=True, requeue=True)


def replay(channel: Any, queue: str, letter: DeadLetter) -> list[str]:
    """Publish the task to its queue again, wait for RabbitMQ's confirm, then remove the dead letter.

    Killed between the two, the task is in both queues: done twice perhaps, never lost. The channel must be in confirm
    mode. Returns what the task did not get back, see revived(). Raises NotReplayed, or what pika raises.
    """
    properties, without = revived(letter.properties)
    try:
        with broker.deadline(channel.connection):
            channel.basic_publish("", queue, letter.body, properties, mandatory=True)
    except NackError:
        what = f"{quoted(letter.id)} and those after it stay dead letters"
        raise NotReplayed(f"queue {quoted(queue)} is full: {what} (replay them when there is room)") from None
    except UnroutableError:
        raise NotReplayed(f"there is no queue {quoted(queue)} (worker.py makes it): all dead letters stay") from None
    channel.basic_ack(letter.tag)
    return without


def discard(channel: Any, letter: DeadLetter) -> None:
    """Remove the dead letter for good."""
    channel.basic_ack(letter.tag)


def revived(properties: pika.BasicProperties) -> tuple[pika.BasicProperties, list[str]]:
    """The properties for a replay, without the marks of death, and what else is left out, in words.

    An expiration is not restored: it was reckoned from the first publish, and whoever replays wants the task done.
    Nor are user_id, which RabbitMQ takes from its own user only, and CC and BCC, whose queues had their copy.
    """
    headers = {} if properties.headers is None else properties.headers
    without = []
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    expiration = headers.get("tareas-expiration") or properties.expiration or first.get("original-expiration")
    if expiration:
        without.append(f"its expiration of {_shown(expiration)} ms")
    user = headers.get("tareas-user-id") or properties.user_id
    if user:
        without.append(f"its user_id {_shown(user)}")
    kept = {k: v for k, v in headers.items() if not str(k).startswith(MARKS) and k not in MOVED_HEADERS}
    result = pika.BasicProperties(
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        headers=kept or None,
        delivery_mode=pika.DeliveryMode.Persistent.value,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_id=properties.message_id,
        timestamp=properties.timestamp,
        type=properties.type,
        app_id=properties.app_id,
    )
    try:
        fits = sum(map(len, result.encode())) <= MAX_HEADERS
    except Exception:  # pika raises many kinds for a value that it can read and not write
        fits = False
    if not fits or isinstance(headers, broker.UnreadableHeaders):
        result.headers = None
        without.append("its headers, which cannot be copied")
    return result, without


def read(tag: int, behind: int, properties: pika.BasicProperties, body: bytes) -> DeadLetter:
    """Understand a message of the dead-letter queue; whatever a stranger wrote into it, this does not raise."""
    headers = {} if properties.headers is None else properties.headers
    try:
        task: dict[str, Any] | None = decode(body, simulated=False)
    except InvalidTask:
        task = None
    mark, worker, attempts = (headers.get(f"tareas-{name}") for name in ("reason", "worker", "attempts"))
    reason, at = (mark if isinstance(mark, str) else None), _time(headers.get("tareas-time"))
    if reason is None:
        reason, at = _broker_reason(headers)
    return DeadLetter(
        tag,
        behind,
        body,
        properties,
        id=task["id"] if task else _name(properties.message_id, body),
        task=task,
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
    if isinstance(headers, broker.UnreadableHeaders):
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
    worker = "" if letter.worker is None else f" by {_shown(letter.worker)}"
    lines = [
        f"{letter.id}  dead{when}{worker}{attempts}, {len(letter.body):,} byte{'s' * (len(letter.body) != 1)}",
        f"    {'no reason given' if letter.reason is None else _shown(letter.reason)}",
    ]
    if letter.task is None:
        lines.append(f"    no task: {_shown(letter.body[: SHOWN * 4])}")
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


def _shown(value: Any) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return quoted(text, quotes=False, limit=SHOWN)
