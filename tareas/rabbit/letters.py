"""A dead letter: how a worker makes one, what it says, and what of it a replay gives back."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pika

from tareas.errors import InvalidTask
from tareas.rabbit.inside import UnreadableHeaders
from tareas.rabbit.queues import dead
from tareas.task import decode
from tareas.text import printable, shown

MAX_REASON = 1000  # characters
# The headers of a message travel in one frame, which RabbitMQ bounds to 131,072 bytes unless told otherwise.
MAX_HEADERS = 120_000  # bytes

# Properties that would lose the copy or send it elsewhere, and the header that keeps each: an expiration would let it
# vanish, RabbitMQ refuses a user_id that is not ours, and CC and BCC deliver to other queues again.
MOVED_PROPERTIES = {"expiration": "tareas-expiration", "user_id": "tareas-user-id"}
MOVED_HEADERS = {"CC": "tareas-cc", "BCC": "tareas-bcc"}

# Written by RabbitMQ or a worker while the letter died: on a replay they would lie about its new life.
MARKS = ("tareas-", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
LATEST = 253_402_300_800  # unix seconds: the year 10000, which no calendar shows

_NAMES = ("content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
          "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id")


# -- made


def publish(
    channel: Any, queue: str, body: bytes, properties: pika.BasicProperties, reason: str, attempts: int, worker: str
) -> None:
    """Publish a copy of a delivery to the queue's dead-letter queue and wait for RabbitMQ's confirm.

    The body and the properties stay as they are; headers say why, after how many attempts, by whom and when (unix
    seconds). The channel must be in confirm mode. Raises pika's NackError (the queue is full) and UnroutableError
    (there is none), or what it raises when the connection is lost: the original must not be acknowledged then.
    """
    copy = copy_of(properties, reason, attempts, worker)
    channel.basic_publish(exchange="", routing_key=dead(queue), body=body, properties=copy, mandatory=True)


def copy_of(properties: pika.BasicProperties, reason: str, attempts: int, worker: str) -> pika.BasicProperties:
    """The properties of the copy."""
    copy = pika.BasicProperties(**{name: getattr(properties, name) for name in _NAMES})
    why = {
        "tareas-reason": printable(reason)[:MAX_REASON],
        "tareas-attempts": attempts,
        "tareas-worker": worker,
        "tareas-time": str(round(time.time(), 3)),  # a string: pika writes a float as an integer
    }
    for name, header in MOVED_PROPERTIES.items():
        if getattr(copy, name) is not None:
            why[header] = str(getattr(copy, name))
            setattr(copy, name, None)
    headers = dict(properties.headers or {})
    for name, header in MOVED_HEADERS.items():
        if name in headers:
            why[header] = headers.pop(name)
    copy.delivery_mode = pika.DeliveryMode.Persistent.value
    copy.headers = {**headers, **why}
    if not _fits(copy):
        copy.headers = {**{k: v for k, v in why.items() if k not in MOVED_HEADERS.values()},
                        "tareas-dropped": "the publisher's headers: too long, or of a type that cannot be copied"}
    return copy


# -- read


@dataclass(frozen=True)
class DeadLetter:
    """One message of the dead-letter queue, taken and not yet settled.

    id: a printable name for it. The body's id, else the message's, else "body-" and a digest of the body.
    task: None when the body is no task. task_id: the body's id, which even such a body may have; else None.
    reason: None when nobody gave one. attempts, worker, time (unix seconds): None when they are not known. What
    RabbitMQ itself dead-lettered tells no attempts and no worker.
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


# -- replayed


def revived(properties: pika.BasicProperties) -> tuple[pika.BasicProperties, list[str]]:
    """The properties for a replay, without the marks of death, and what else is left out, in words.

    Not restored: the expiration, which was reckoned from the first publish, while whoever replays wants the task done;
    the user_id, which RabbitMQ takes from that user alone; CC and BCC, whose queues have had their copy.
    """
    headers = {} if properties.headers is None else properties.headers
    without = []
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    expiration = headers.get("tareas-expiration") or properties.expiration or first.get("original-expiration")
    if expiration:
        without.append(f"its expiration of {shown(expiration)} ms")
    user = headers.get("tareas-user-id") or properties.user_id
    if user:
        without.append(f"its user_id {shown(user)}")
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
    if not _fits(result) or isinstance(headers, UnreadableHeaders):
        result.headers = None
        without.append("its headers, which cannot be copied")
    return result, without


def _fits(properties: pika.BasicProperties) -> bool:
    try:
        return sum(map(len, properties.encode())) <= MAX_HEADERS
    except Exception:  # pika raises many kinds for a value that it can read and not write; this must not end a worker
        return False
