#!/usr/bin/env python3
"""Publish tasks to the queue, and say so only when RabbitMQ has confirmed them.

Exit status: 0 every task is confirmed; 1 it could not go on; 2 a wrong call or
a bad line in the input; 130 or 143 stopped by a signal before the end.

    python producer.py --count 50 --complexity 0.5-3    # sample tasks
    python producer.py examples/tasks.jsonl             # a JSON object a line
    cat examples/tasks.jsonl | python producer.py -     # the same from a pipe
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import tareas.needed  # isort: skip  # noqa: F401 (it says so if pika is missing)
import pika

from tareas.cli import Parser, complexity_range, positive, run, seconds
from tareas.errors import Abandoned, BadLine, Denied, Interrupted, Lost, Refused, Trouble
from tareas.rabbit import addresses, queues
from tareas.rabbit.backoff import Backoff
from tareas.rabbit.connect import connect
from tareas.rabbit.connection import Connection
from tareas.rabbit.explain import ANSWER_TIMEOUT, PRECONDITION_FAILED, no_answer
from tareas.task import QUEUE, SAMPLE_COMPLEXITY
from tareas.tell.events import Events
from tareas.work.refusals import Refusals
from tareas.work.signals import Stopping
from tareas.work.sources import Item, Sample, Source, open_source
from tareas.work.window import Window

TICK = 0.1  # seconds between two looks at signals
STOP_WAIT = 10.0  # seconds after a signal in which RabbitMQ may still confirm
SHOWN = 20  # tasks that a person sees confirmed one by one; after them, the progress


class Producer:
    """Publishes every task of a source, with a window of them unconfirmed.

    A task is safe once it is confirmed: RabbitMQ has it on disk. What was not confirmed when a connection breaks is
    published again. So a task may be there twice, but none is lost.
    """

    def __init__(
        self, source: Source, *, url: str | None = None, queue: str = QUEUE, events: Events | None = None,
        connect_timeout: float | None = None,
    ) -> None:  # fmt: skip
        self.source = source
        self.queue = queue
        self.addresses = addresses.parse(url or addresses.default_url())
        self.events = events or Events("producer")
        self.tell = self.events.tell
        self.published = self.confirmed = 0  # different tasks
        self.connected = False  # now, and ready to publish
        self.bad_line: BadLine | None = None  # what ended the source before its time
        self.progress_due = 0.0
        self.began = time.monotonic()
        self.window, self.refusals = Window(), Refusals()
        self.stopping = Stopping(self._say_stopping)
        self.backoff = Backoff(self.tell, connect_timeout)  # between two tries to connect
        self.properties = pika.BasicProperties(
            content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent.value, app_id="producer.py"
        )

    # -- the life of a producer

    def start(self) -> int:
        """Publish all, connecting again as often as needed. Returns the exit status.

        Raises Trouble when there is no way on, and BadLine after everything before the bad line is confirmed.
        """
        try:
            with self.stopping, contextlib.suppress(Interrupted, Abandoned):
                self._stay_connected()
        except Trouble as error:
            error.args = (f"{error}; {self._summary(left=True)}",)
            raise
        stopped = 0 if self._all_confirmed() else self.stopping.abandoned or self.stopping.requested
        left = self._left() if stopped or self.bad_line else ""
        self.tell("finished", published=self.published, confirmed=self.confirmed,
                  seconds=round(time.monotonic() - self.began, 3), **({"left": left} if left else {}))
        if self.bad_line is not None:
            raise BadLine(f"{self.bad_line}; {self._summary()}", status=self.bad_line.status)
        return 128 + stopped if stopped else 0

    def _stay_connected(self) -> None:
        """Take one connection after the other until all is done."""
        while not self._finished():
            connection = None
            try:
                with self.stopping.interruptible():  # Ctrl+C ends it at once: nothing is on its way
                    connection = connect(self.addresses, "producer", on_alarm=self.tell, on_lost=self._on_lost)
                with connection:
                    self.publish(connection)
                return
            except (Lost, Denied) as error:
                # A login refused is final before the first confirm. After it, trying again may help: a broker that
                # comes back may not know its users yet.
                if isinstance(error, Denied) and (connection is not None or not self.confirmed):
                    raise
                if connection is not None and error is not connection.lost:  # else _on_lost was called at once
                    self._on_lost(error)
                if isinstance(error, Refused) and error.code == PRECONDITION_FAILED and (item := self.window.blame()):
                    raise Trouble(f"{self.source.place(item)} is not stored: {error}") from None
                reason = str(error)
            self.connected = False
            self.window.lost()
            if self._stops_now():
                return
            rest = self.backoff.next(reason)
            self.events.waiting()
            self.stopping.rest(rest)

    def publish(self, connection: Connection) -> None:
        """Declare, publish, wait for the confirms. Returns when all is confirmed, or after a signal."""
        with self.stopping.interruptible():
            self._declare(connection)
            connection.confirm_delivery(self._on_confirm, self._on_return)
        self.connected = True
        self.tell("connected", address=connection.address.shown)
        self.backoff.connected()
        try:
            while True:
                if (item := self._next(connection)) is not None:
                    self.window.published(item)
                    self.properties.message_id, self.properties.timestamp = item.id, int(time.time())
                    connection.basic_publish(
                        exchange="", routing_key=self.queue, body=item.body, properties=self.properties, mandatory=True
                    )
                elif self._finished() or self._stops_now():
                    break
                else:
                    connection.process_data_events(TICK)  # it waits, and calls _on_confirm and _on_return
                    self._tend(connection)
        except (Lost, Trouble):
            while connection.process_data_events():  # confirms that came before it: those tasks are not published again
                pass
            raise
        connection.close()

    def _next(self, connection: Connection) -> Item | None:
        """The task to publish now, new or once more. None: there is none now, or it has to wait."""
        if connection.blocked or self.stopping.requested or self.refusals.resting:
            return None
        again = bool(self.window.again)
        item = self.window.next(lambda: self._take(connection))  # a new one is taken only if there is room for it
        if item is not None and self.events.as_json:
            self.tell("published", id=item.id, **({"again": True} if again else {}))
        return item

    def _take(self, connection: Connection) -> Item | None:
        """A new task from the source. None: it has none now, or is at its end."""
        if self.bad_line or self.source.ended:
            return None
        try:
            item = self.source.take()
        except BadLine as error:
            self.bad_line = error
            return None
        if item is not None:
            self.published += 1
        elif not self.source.ended and (fd := self.source.fileno()) is not None:
            connection.watch(fd)  # process_data_events returns when the pipe has more
        return item

    # -- what RabbitMQ answers

    def _on_confirm(self, frame: Any) -> None:
        """RabbitMQ's ack (stored) or nack (not stored), for one task or for all up to one."""
        method = frame.method
        stored = isinstance(method, pika.spec.Basic.Ack)
        for item, returned in self.window.settle(method.delivery_tag, method.multiple):
            if returned:
                self.window.again.append(item)
            elif stored:
                self.refusals.number = 0
                self.confirmed += 1
                if self.events.as_json or self.confirmed <= SHOWN:
                    self.tell("confirmed", id=item.id)
            else:
                self.window.again.append(item)
                if self.refusals.add():
                    self.tell("refused", id=item.id, reason="RabbitMQ does not store it: the queue is full, or has "
                              "lost its leader; trying again")
        if stored:
            self.backoff.reset()

    def _on_return(self, properties: Any, body: bytes) -> None:
        """A task reached no queue, as the queue was deleted: the task is published again after its confirm."""
        self.window.returned(str(properties.message_id), body)

    def _on_lost(self, error: Exception) -> None:
        """The connection ended. In its own thread, at once."""
        if self.connected and isinstance(error, Lost):  # else the next line says why: `waiting`, or what ends us
            self.tell("connection_lost", reason=str(error))

    def _tend(self, connection: Connection) -> None:
        """Show the progress, and mend what keeps tasks from being confirmed: no queue, no answer, only refusals."""
        if not self.events.as_json and self.confirmed > SHOWN and time.monotonic() >= self.progress_due:
            self.progress_due = time.monotonic() + 1
            self.events.progress(self.confirmed, self.source.total, time.monotonic() - self.began)
        if connection.blocked or self.stopping.requested is not None:
            return
        if self.window.missing is not None:
            self.tell("returned", id=self.window.missing, reason=f"there is no queue {self.queue}: declaring it anew")
            self._declare(connection)
            while connection.process_data_events():  # returns from before the queue was there
                pass
            self.window.missing = None
        if self.window and time.monotonic() - max(self.window.since, connection.sending) > ANSWER_TIMEOUT:
            # A node of RabbitMQ 4.3 that had stood still left a thousand tasks unconfirmed for ever (measured).
            raise no_answer(connection.address)
        if self.refusals.stuck:
            self.refusals.renewed()
            if self.window:  # the leader stands still: each of a thousand refusals takes seconds
                raise Lost(f"RabbitMQ at {connection.address.shown} refuses one task after the other, and takes its "
                           "time for each: trying another connection")
            connection.renew()
            self.window.lost()
            self._declare(connection)
            connection.confirm_delivery(self._on_confirm, self._on_return)

    def _declare(self, connection: Connection) -> None:
        for name, arguments in queues.declarations(self.queue):
            connection.queue_declare(queue=name, durable=True, arguments=arguments)

    # -- what is left to do

    def _finished(self) -> bool:
        """Whether nothing more will be published, and nothing waits for its confirm."""
        ended = not self.window.waiting and (self.bad_line is not None or self.source.ended)
        return not self.window and (ended or self.stopping.requested is not None)

    def _stops_now(self) -> bool:
        """Whether a signal came, and the confirms that were still to come are here or took too long."""
        return self.stopping.requested is not None and (not self.window or self.stopping.age > STOP_WAIT)

    def _all_confirmed(self) -> bool:
        return self.source.ended and not self.window and not self.window.waiting and self.bad_line is None

    # -- what it says

    def _summary(self, left: bool = False) -> str:
        if not self.published:
            return "nothing is published"
        not_published = self._left() if left else ""
        return (f"{self.confirmed:,} of the {self.published:,} tasks read are confirmed"
                + (f"; not published: {not_published}" if not_published else ""))

    def _left(self) -> str:
        """What of the source is not published, and how many tasks before that are not confirmed; empty if all is."""
        blamed = self.window.blamed
        left, unsure = self.source.left(after=blamed and blamed.line), self.published - self.confirmed
        return f"{left}; unconfirmed before it: {unsure:,}" if left and unsure and not blamed else left

    def _say_stopping(self, signum: int) -> None:
        waiting = len(self.window)
        self.tell("stopping", reason=f"waiting for {waiting} confirms, {STOP_WAIT:g} s at most; once more stops at once"
                  if waiting else "")


def parse(argv: Sequence[str] | None) -> Any:
    parser = Parser("producer.py", __doc__)
    parser.add_argument("file", nargs="?", metavar="FILE", help="a JSON Lines file of tasks; - reads a pipe")
    parser.add_argument("--count", type=positive, metavar="N", help="sample tasks to make (12)")
    parser.add_argument("--complexity", type=complexity_range, metavar="MIN-MAX",
                        help="seconds of work of a sample task (0.5-3)")
    parser.add_argument("--seed", type=int, metavar="N", help="make the same sample tasks each time")
    parser.add_argument("--connect-timeout", type=seconds, metavar="SECONDS", help="give up without RabbitMQ")
    parser.add_queue_options()
    options = parser.parse_args(argv)
    if options.file is not None and (options.count, options.complexity, options.seed) != (None, None, None):
        parser.error("--count, --complexity and --seed make sample tasks: leave them out with FILE")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    if options.file is None:
        source: Source = Sample(options.count or 12, options.complexity or SAMPLE_COMPLEXITY, options.seed)
    else:
        source = open_source(options.file)
    events = Events("producer", as_json=options.json)
    try:
        return Producer(
            source, url=options.url, queue=options.queue, events=events, connect_timeout=options.connect_timeout
        ).start()
    finally:
        events.close()


if __name__ == "__main__":
    sys.exit(run(main))
