"""A dead letter: how a worker makes one, what it says, and what of it a replay gives back."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pika

from tareas.errors import InvalidTask, Refused
from tareas.rabbit import inside
from tareas.rabbit.connection import Connection
from tareas.rabbit.inside import UnreadableHeaders
from tareas.rabbit.queues import dead
from tareas.task import SMALL_BYTES, decode
from tareas.text import printable, shown

MAX_REASON = 1000  # characters
# The properties of a message travel in one frame. Beside them it has the frame's own bytes, and those of its header.
AROUND = 32  # bytes

# Properties that would lose the copy or send it elsewhere, and the header that keeps each: an expiration would let it
# vanish, RabbitMQ refuses a user_id that is not ours, and CC and BCC deliver to other queues again.
MOVED_PROPERTIES = {"expiration": "tareas-expiration", "user_id": "tareas-user-id"}
MOVED_HEADERS = {"CC": "tareas-cc", "BCC": "tareas-bcc"}

# Written by RabbitMQ or a worker while the letter died: on a replay they would lie about its new life.
MARKS = ("tareas-", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
LATEST = 253_402_300_800  # unix seconds: the year 10000, which no calendar shows

NO_COPY = "RabbitMQ takes no copy of so large a message (max_message_size), and moves the message itself"

_NAMES = ("content_type", "content_encoding", "priority", "correlation_id", "reply_to",
          "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id")


# -- made


class Writer:
    """Writes the dead letters of one worker of this queue."""

    def __init__(self, queue: str, worker: str) -> None:
        self._queue, self._worker = queue, worker
        self._too_large: int | None = None  # bytes of a body of which RabbitMQ takes no copy

    def write(
        self, connection: Connection, properties: pika.BasicProperties, body: bytes, reason: str, attempts: int
    ) -> bool:
        """Publish a copy of a delivery to the dead-letter queue and wait for RabbitMQ's confirm.

        The body and the properties stay as they are. Headers say why, after how many attempts, by whom and when (unix
        seconds). False: RabbitMQ takes no copy of so large a body (its max_message_size was lowered), only RabbitMQ can
        move the message itself. Raises Nacked (the queue is full) and Unroutable (there is none), or Lost: the original
        must not be acknowledged then.
        """
        if self._too_large is not None and len(body) >= self._too_large:
            return False
        copy = copy_of(properties, reason, attempts, self._worker, connection.frame_max)
        try:
            connection.publish_and_confirm(dead(self._queue), body, copy)
        except Refused as error:
            if error.too_large:
                self._too_large = len(body)
            raise
        return True


def copy_of(
    properties: pika.BasicProperties, reason: str, attempts: int, worker: str, frame_max: int
) -> pika.BasicProperties:
    """The properties of the copy. frame_max: bytes of the longest frame."""
    kept = {name: getattr(properties, name) for name in _NAMES}
    why: dict[str, Any] = {
        "tareas-reason": printable(reason)[:MAX_REASON],
        "tareas-attempts": attempts,
        "tareas-worker": worker,
        "tareas-time": str(round(time.time(), 3)),  # a string: not every pika can write a float
    }
    for name, header in MOVED_PROPERTIES.items():
        if kept[name] is not None:
            why[header] = str(kept[name])
            kept[name] = None
    fields = inside.fields(properties.headers)
    if len(fields) < len(properties.headers or {}) or isinstance(properties.headers, UnreadableHeaders):
        why["tareas-dropped"] = "headers of the publisher: they cannot be copied"
    for name, header in MOVED_HEADERS.items():
        if name in fields:
            fields[header] = fields.pop(name)
    fields = {name: value for name, value in fields.items() if name not in why}
    kept |= {"delivery_mode": pika.DeliveryMode.Persistent.value, "headers": why}
    copy = inside.Copy(fields, **kept)
    if not fits(copy, frame_max):
        copy.fields = {}
        why["tareas-dropped"] = "headers of the publisher: longer than a frame"
    if not fits(copy, frame_max):
        why["tareas-reason"] = why["tareas-reason"][: MAX_REASON // 10]
    return copy


def fits(properties: pika.BasicProperties, frame_max: int) -> bool:
    """Whether they can be written, into one frame."""
    try:
        return sum(map(len, properties.encode())) <= frame_max - AROUND
    except Exception:  # pika raises many kinds, and this must not end a worker
        return False


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
        reason, at = _broker_reason(headers, body)
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


def _broker_reason(headers: dict[str, Any], body: bytes) -> tuple[str | None, float | None]:
    """Why and when RabbitMQ itself dead-lettered it (https://www.rabbitmq.com/docs/dlx: the newest entry is first)."""
    if isinstance(headers, UnreadableHeaders):
        return "unknown: the headers cannot be read", None
    deaths = headers.get("x-death")
    if not isinstance(deaths, list) or not deaths or not isinstance(deaths[0], dict):
        return None, None
    death = deaths[0]
    at = death.get("time")
    moment = at.timestamp() if isinstance(at, datetime) else None
    why = f"RabbitMQ: {death.get('reason')}, in queue {death.get('queue')}"
    if death.get("reason") == "rejected" and len(body) > SMALL_BYTES:
        why += f" (by a worker of ours? {NO_COPY}, and the worker's log has the reason)"
    return why, _time(moment)


# -- replayed


def revived(properties: pika.BasicProperties, frame_max: int) -> tuple[pika.BasicProperties, list[str]]:
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
    fields = {
        name: value
        for name, value in inside.fields(headers).items()
        if not str(name).startswith(MARKS) and name not in MOVED_HEADERS
    }
    result = inside.Copy(
        fields,
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        delivery_mode=pika.DeliveryMode.Persistent.value,
        priority=properties.priority,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_id=properties.message_id,
        timestamp=properties.timestamp,
        type=properties.type,
        app_id=properties.app_id,
    )
    if not fits(result, frame_max) or isinstance(headers, UnreadableHeaders):
        result.fields = {}
        without.append("its headers, which cannot be copied")
    return result, without
