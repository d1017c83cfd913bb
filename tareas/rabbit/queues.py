"""Which queues there are, declared by each command in the same way, and how full they are."""

from __future__ import annotations

import time
from typing import Any

from tareas.rabbit.connection import Connection

# The worker bounds the attempts itself; the queue's limit is the backstop far above it. RabbitMQ counts broker
# restarts and killed workers towards this limit too.
DELIVERY_LIMIT = 1000
# Looking at a dead letter counts as a delivery. RabbitMQ 4.0 drops it at the 21st when no limit is set, 3.10 at the
# first when the limit is -1; a million is safe on all versions.
DEAD_DELIVERY_LIMIT = 1_000_000


def dead(queue: str) -> str:
    """The name of the queue's dead-letter queue."""
    return f"{queue}.dead"


def declarations(queue: str) -> list[tuple[str, dict[str, Any]]]:
    """Both queues with their arguments, the dead-letter queue first: nothing may be dead-lettered into the void.

    https://www.rabbitmq.com/docs/quorum-queues: at-least-once dead-lettering needs overflow reject-publish; without
    it RabbitMQ falls back to at-most-once, silently.
    """
    return [
        (
            dead(queue),
            {"x-queue-type": "quorum", "x-delivery-limit": DEAD_DELIVERY_LIMIT, "x-overflow": "reject-publish"},
        ),
        (
            queue,
            {
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead(queue),
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-delivery-limit": DELIVERY_LIMIT,
            },
        ),
    ]


def figures(connection: Connection, queue: str) -> dict[str, Any]:
    """The work queue's ready tasks and consumers, and its dead letters, now.

    unacknowledged is None: AMQP does not tell it. Raises Refused when there is no such queue.
    """
    work, letters = counts(connection, queue), counts(connection, dead(queue))
    return {
        "time": round(time.time(), 3),
        "queue": queue,
        "ready": work.message_count,
        "unacknowledged": None,
        "consumers": work.consumer_count,
        "dead": letters.message_count,
    }


def counts(connection: Connection, name: str) -> Any:
    """RabbitMQ's answer to a passive declare, which creates nothing: message_count (ready ones), consumer_count."""
    return connection.queue_declare(name, passive=True)
