"""The dead letters of a queue: looking at them, replaying and discarding them.

Looking takes letters without acknowledging them, so that RabbitMQ keeps each until it is replayed or discarded; the
rest goes back, in order. Each look counts as a delivery, hence the queue's enormous delivery limit.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pika
from pika.exceptions import NackError, UnroutableError

from tareas.cli import Trouble, quoted
from tareas.rabbit import connection as broker
from tareas.rabbit.dead_letter import MAX_HEADERS, MOVED_HEADERS
from tareas.tell import figures as status
from tareas.tell.letters import DeadLetter, read, shown
from tareas.work import verdict as delivery

HELD = 50_000  # letters that one consumer may hold unacknowledged (AMQP's most is 65,535)
AHEAD = 50  # letters that RabbitMQ sends ahead when each is settled: memory holds so many bodies
PATIENCE = 10.0  # seconds to wait for a letter that RabbitMQ counted

# Written by RabbitMQ or a worker while the letter died: on a replay they would lie about its new life.
MARKS = ("tareas-", "x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")


class NoSuchLetter(Trouble):
    """No dead letter has that id."""


class NotReplayed(Trouble):
    """The queue did not take the task back; its dead letter stays."""


def look(channel: Any, queue: str, limit: int | None = None, settling: bool = False) -> Iterator[DeadLetter]:
    """Take the dead letters of this work queue, oldest first: at most `limit`, and none that arrives meanwhile.

    settling: each is replayed or discarded before the next; without it all are held, and memory holds one. Use a
    channel for one look, and give_back() after it. Raises what pika raises, as when there is no such queue.
    """
    taken: deque[tuple[Any, pika.BasicProperties, bytes]] = deque()
    # Bounded by what is there now: a letter that is replayed and fails again comes back, for ever.
    number = status.counts(channel, broker.dead(queue)).message_count
    number = number if limit is None else min(limit, number)
    window = AHEAD if settling else HELD
    channel.basic_qos(prefetch_count=window)
    for n in range(number):
        if n == 0 or (n % window == 0 and not settling):  # the consumer before this one holds all that it may
            name = f"admin-{n:09}"  # RabbitMQ takes back from its consumers in the order of their names (measured)
            with broker.deadline(channel.connection):
                channel.basic_consume(broker.dead(queue), lambda *it: taken.append(it[1:]), consumer_tag=name)
        since = time.monotonic()
        while not taken:
            channel.connection.process_data_events(time_limit=PATIENCE)
            if not taken and time.monotonic() - since >= PATIENCE:
                return  # someone else took the rest
        method, properties, body = taken.popleft()
        yield read(method.delivery_tag, properties, body)


def give_back(channel: Any, queue: str, held: int) -> None:
    """Close the channel, and wait until RabbitMQ has put so many letters that it held back into their queue.

    RabbitMQ keeps what comes back in a line of its own, before the others, and adds to its end (measured on 3.10, 4.0
    and 4.3): whoever gives back only some of that line changes its order. So look at all, or settle all.
    """
    connection = channel.connection
    channel.close()
    end = time.monotonic() + PATIENCE
    with contextlib.closing(connection.channel()) as fresh:
        while status.counts(fresh, broker.dead(queue)).message_count < held and time.monotonic() < end:
            connection.sleep(0.01)


def chosen(channel: Any, queue: str, ids: Collection[str], limit: int | None = None) -> Iterator[DeadLetter]:
    """The dead letters with one of these ids; without ids all, at most `limit`. Settle each before the next.

    Those that share an id are all meant. Afterwards the others go back. Raises NoSuchLetter at the end, when the rest
    is settled.
    """
    if not ids:
        yield from look(channel, queue, limit, settling=True)
        return
    found, others = [], 0
    for letter in look(channel, queue):
        if letter.id in ids:
            found.append(letter)
        else:
            others += 1
    yield from found
    give_back(channel, queue, others)
    missing = [name for name in dict.fromkeys(ids) if all(letter.id != name for letter in found)]
    if missing:
        names = ", ".join(quoted(name) for name in missing)
        raise NoSuchLetter(f"no dead letter {names} in queue {quoted(queue)} (admin.py dead lists them)")


def replay(channel: Any, queue: str, letter: DeadLetter, tell: Callable[[list[str]], None]) -> None:
    """Publish the task to its queue again, wait for RabbitMQ's confirm, tell it, then remove the dead letter.

    Killed before the end, the task is in both queues: done twice perhaps, never lost, nor replayed untold. The channel
    must be in confirm mode. tell: gets what the task did not get back, see revived(). Raises NotReplayed, or what pika
    and tell raise.
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
    tell(without)
    channel.basic_ack(letter.tag)


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
    try:
        fits = sum(map(len, result.encode())) <= MAX_HEADERS
    except Exception:  # pika raises many kinds for a value that it can read and not write
        fits = False
    if not fits or isinstance(headers, delivery.UnreadableHeaders):
        result.headers = None
        without.append("its headers, which cannot be copied")
    return result, without
