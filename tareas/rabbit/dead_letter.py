"""How a worker dead-letters a task: a copy with its reason is confirmed before the original is acknowledged."""

from __future__ import annotations

import time
from typing import Any

import pika

from tareas.rabbit import connection as broker

MAX_REASON = 1000  # characters
# The headers of a message travel in one frame, which RabbitMQ bounds to 131,072 bytes unless told otherwise.
MAX_HEADERS = 120_000  # bytes

# Properties that would lose the copy or send it elsewhere, and the header that keeps each: an expiration would let it
# vanish, RabbitMQ refuses a user_id that is not ours, and CC and BCC deliver to other queues again.
MOVED_PROPERTIES = {"expiration": "tareas-expiration", "user_id": "tareas-user-id"}
MOVED_HEADERS = {"CC": "tareas-cc", "BCC": "tareas-bcc"}


def publish(
    channel: Any, queue: str, body: bytes, properties: pika.BasicProperties, reason: str, attempts: int, worker: str
) -> None:
    """Publish a copy of a delivery to the queue's dead-letter queue and wait for RabbitMQ's confirm.

    The body and the properties stay as they are; headers say why, after how many attempts, by whom and when (unix
    seconds). The channel must be in confirm mode. Raises pika's NackError (the queue is full) and UnroutableError
    (there is none), or what it raises when the connection is lost: the original must not be acknowledged then.
    """
    copy = copy_of(properties, reason, attempts, worker)
    channel.basic_publish(exchange="", routing_key=broker.dead(queue), body=body, properties=copy, mandatory=True)


def copy_of(properties: pika.BasicProperties, reason: str, attempts: int, worker: str) -> pika.BasicProperties:
    """The properties of the copy."""
    copy = pika.BasicProperties(**{name: getattr(properties, name) for name in _NAMES})
    why = {
        "tareas-reason": reason[:MAX_REASON],
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


_NAMES = ("content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
          "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id")


def _fits(properties: pika.BasicProperties) -> bool:
    try:
        return sum(map(len, properties.encode())) <= MAX_HEADERS
    except Exception:  # pika raises many kinds for a value it cannot write, and this must not end the worker
        return False
