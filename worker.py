#!/usr/bin/env python3
"""Do the tasks of the queue, one at a time: receive, do, acknowledge.

Exit status: 0 fine, 1 trouble, 2 wrong call, 3 dead letters, 130 2nd Ctrl+C.
    python worker.py worker-1                    # start as many as you like
    python worker.py --drain                     # end when no task waits
    python worker.py --handler builtins:print    # call a function of your own
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import tareas.needed  # isort: skip  # noqa: F401 (it says so if pika is missing)
from tareas.cli import Parser, run, seconds, up_to, worker_name
from tareas.errors import Abandoned, ConsumerGone, Denied, Interrupted, Lost, Nacked, Trouble, Unroutable
from tareas.rabbit import addresses, letters, queues
from tareas.rabbit.backoff import Backoff
from tareas.rabbit.connect import connect
from tareas.rabbit.connection import Connection
from tareas.rabbit.inside import UnreadableHeaders, read_any_headers
from tareas.streams import own_stdout
from tareas.task import QUEUE
from tareas.tell.events import Events
from tareas.work import forks, handlers, verdict
from tareas.work.link import Hand, Link
from tareas.work.refusals import RENEW_AFTER
from tareas.work.signals import Stopping
from tareas.work.verdict import Bury, Do, GiveBack

MAX_ATTEMPTS = 5
RETRY_DELAY = 1.0  # seconds before the second attempt; doubled for each one after it
MOST_PREFETCH = 1000
DRAINED_WITH_DEAD = 3


class Worker:
    """Consumes a queue until it is stopped, or until no task is ready if `drain` is set.

    A task is acknowledged only after it is done. If this worker dies before, RabbitMQ gives the task to another.

    worker_id: its name in events, and in RabbitMQ's management page as consumer tag and connection name.
    handler: called with the task (a dict); returns: ack; raises: retry; raises Reject: dead letter.
    max_attempts: deliveries of a task before it is dead-lettered. retry_delay, grace, connect_timeout: seconds.
    prefetch: tasks that RabbitMQ may send ahead.
    """

    def __init__(
        self, worker_id: str, *, url: str | None = None, queue: str = QUEUE, handler: handlers.Handler | None = None,
        drain: bool = False, max_attempts: int = MAX_ATTEMPTS, retry_delay: float = RETRY_DELAY, prefetch: int = 1,
        grace: float | None = None, connect_timeout: float | None = None, events: Events | None = None,
    ) -> None:  # fmt: skip
        self.worker_id, self.queue, self.handler, self.drain = worker_id, queue, handler, drain
        self.max_attempts, self.retry_delay, self.prefetch = max_attempts, retry_delay, prefetch
        self.addresses = addresses.parse(url or addresses.default_url())
        self.tasks_processed = self.tasks_failed = self.tasks_dead_lettered = 0
        self.seconds_busy = 0.0
        self.attempt = 1  # of the task in hand
        self.hand = Hand.NOTHING  # what this worker does now, for whoever stops it
        self.cut: tuple[str, str] | None = None  # the id of the last task that lost its connection, and why it did
        self.events = events or Events(worker_id)
        self.tell = self.events.tell
        self.stopping = Stopping(self._say_stopping, grace)
        self.link = Link(None, worker_id, self.stopping, queue, drain, prefetch)  # what ends with the connection
        self.backoff = Backoff(self.tell, connect_timeout)  # between two tries to connect
        self.letters = letters.Writer(queue, worker_id)

    # -- the life of a worker

    def start(self) -> int:
        """Consume, and connect again whenever the connection is lost. Returns the exit status. Raises Trouble if there
        is no way on: login refused, the queue exists with other arguments, nobody answered within connect_timeout."""
        read_any_headers()  # or pika would lose the connection over some of them
        with self.stopping:  # it handles Ctrl+C and SIGTERM
            try:
                self._stay_connected()
                status = DRAINED_WITH_DEAD if self.drain and self.tasks_dead_lettered else 0
            except Interrupted:  # the first signal came while it connected
                status = 0
            except Abandoned as abandoned:  # the second signal, or the end of the grace time
                status = 128 + abandoned.signum
            except Trouble:
                if self.seconds_busy or self.tasks_dead_lettered:
                    self._say_stopped()
                raise
        self._say_stopped()
        return status

    def _stay_connected(self) -> None:
        while True:
            connection = None
            try:
                with self.stopping.interruptible():
                    connection = connect(self.addresses, self.worker_id, on_alarm=self.tell, on_lost=self._on_lost)
                with connection:  # closed at the end
                    self.consume(connection)
                return
            except (Lost, Denied) as error:
                # Denied before the first consume, or on the connection that consumed, is final: waiting will not help.
                # Denied on connecting again is not: a broker that comes back may not know its users yet.
                if isinstance(error, Denied) and self.link.connection in (None, connection):
                    raise
                if connection is not None and error is not connection.lost:  # else _on_lost was called at once
                    self._on_lost(error)
                reason = str(error)
            if self.stopping.requested:
                return
            rest = self.backoff.next(reason)
            self.events.waiting()
            self.stopping.rest(rest)

    def consume(self, connection: Connection) -> None:
        """Declare, set the prefetch, consume. Returns when stopped or drained. Raises Lost, or what ends the worker."""
        with self.stopping.interruptible():
            for name, arguments in queues.declarations(self.queue):
                connection.queue_declare(queue=name, durable=True, arguments=arguments)
            connection.confirm_delivery()  # of dead letters
        self.tell("connected", address=connection.address.shown)
        link = self.link = Link(connection, self.worker_id, self.stopping, self.queue, self.drain, self.prefetch)
        self.backoff.connected()
        forks.at_fork(self, lambda worker: connection.forget())  # a handler's child must not keep the socket open
        try:
            while not self.stopping.requested:
                if link.do_next(self.callback):  # a delivery that is here already
                    link.idle.busy()
                elif not link.consuming:  # at first, and again when the prefetch changes
                    link.prefetch.now = link.prefetch.wanted
                    connection.basic_qos(prefetch_count=link.prefetch.now)
                    connection.basic_consume(
                        queue=self.queue, on_message_callback=self.callback, auto_ack=False, consumer_tag=self.worker_id
                    )
                    link.consuming = True
                elif connection.process_data_events(link.idle.tick):  # it waits, and calls the callback
                    link.idle.busy()
                elif link.idle.drained(connection):
                    break
            link.take_no_more()
            while link.do_next(self.callback):  # what is here already is done before the stop
                pass
        finally:
            with contextlib.suppress(Lost):  # or it would hide an error of our own
                link.ack_done(connection)

    # -- one task

    def callback(self, ch: Any, method: Any, properties: Any, body: bytes) -> None:
        """Do one delivery and settle it: ack, nack with requeue, or a dead letter and then ack."""
        link, tag = self.link, method.delivery_tag
        if self.stopping.requested and link.prefetch.most == 1:  # too late; if several are at hand, all are done
            link.before_settling()
            ch.basic_nack(delivery_tag=tag, requeue=True)
            return
        if not link.may_begin((method, properties, body)):
            return  # link.do_next brings it again
        self.attempt = verdict.attempt(method.redelivered, properties.headers, link.version)
        todo = verdict.on_delivery(
            body, self.attempt, self.max_attempts, simulated=self.handler is None, cut=self.cut,
            readable=not isinstance(properties.headers, UnreadableHeaders),
        )  # fmt: skip
        if isinstance(todo, Bury):
            return self._bury(ch, tag, properties, body, todo)

        failure, took = self._do(todo, method.redelivered)
        link.prefetch.ended(method.redelivered, well=failure is None)
        task_id, attempt = todo.task["id"], todo.attempt
        try:
            link.before_settling()
        except Lost as error:
            self.cut = task_id, str(error)
            self.tell("discarded", id=task_id, attempt=attempt, reason="the connection was lost while it ran: "
                      "RabbitMQ gives the task to whoever is free")
            raise
        outcome = verdict.on_end(failure, todo, self.max_attempts, self.retry_delay)
        if isinstance(outcome, Bury):
            self._bury(ch, tag, properties, body, outcome)
        elif isinstance(outcome, GiveBack):
            # The task returns to the head of the queue. Without a rest, a few tasks that always fail would keep all
            # workers from all other tasks.
            link.ack_done(ch)  # these must not wait for the rest
            self.hand, began = Hand.RESTING, time.monotonic()
            self.events.resting(task_id, outcome.rest)
            self.stopping.rest(outcome.rest)
            self.hand = Hand.NOTHING
            link.before_settling()
            self.tell("requeued", id=task_id, attempt=attempt, rest=round(time.monotonic() - began, 3))
            ch.basic_nack(delivery_tag=tag, requeue=True)
        else:
            self.tell("done", id=task_id, attempt=attempt, seconds=round(took, 3))
            self.tasks_processed += 1
            if link.prefetch.careful:
                ch.basic_ack(delivery_tag=tag)
            elif link.prefetch.done(tag):  # enough are done for one ack that covers them all
                link.ack_done(ch)
            self.backoff.reset()

    def _do(self, do: Do, redelivered: bool) -> tuple[BaseException | None, float]:
        """Have the task done. Returns what it raised, and the seconds it took."""
        task_id, attempt = do.task["id"], do.attempt
        self.hand, failure, began = Hand.WORKING, None, time.monotonic()
        shown = {} if self.events.as_json or self.handler else {"complexity": do.task.get("complexity")}
        self.tell("started", id=task_id, attempt=attempt, redelivered=redelivered, **shown)
        try:
            self.process_task(do.task)
        except BaseException as error:  # a handler's sys.exit() or KeyboardInterrupt is its failure, not our end
            failure = error
        self.hand, took = Hand.NOTHING, time.monotonic() - began
        self.seconds_busy += took
        if self.stopping.abandoned:  # even if the handler has swallowed Abandoned
            self.tell("abandoned", id=task_id, attempt=attempt)
            raise Abandoned(self.stopping.abandoned)
        if failure is not None:
            self.tasks_failed += 1
            self.tell("failed", id=task_id, attempt=attempt, error=handlers.describe(failure, place=True),
                      seconds=round(took, 3))
        return failure, took

    def process_task(self, task_data: dict[str, Any]) -> None:
        """The task's own work, and nothing else: whatever it raises is the task's failure."""
        if self.handler is None:
            handlers.simulate(task_data, self.attempt)
        else:
            with forks.parent_only():  # a child that it forks never gets past here
                handlers.refuse_unfinished(self.handler(task_data))

    def _bury(self, ch: Any, tag: int, properties: Any, body: bytes, why: Bury) -> None:
        """Confirm the dead letter, then ack the original: a worker that dies between the two leaves one too many,
        never one too few."""
        self.link.before_settling()
        self.link.ack_done(ch)
        self.hand = Hand.BURYING
        try:
            copied = self.letters.write(ch, properties, body, why.reason, why.attempts)
        except (Nacked, Unroutable) as error:
            return self._give_back_unburied(ch, tag, error)
        finally:
            self.hand = Hand.NOTHING
        self.link.refused = 0
        self.tasks_dead_lettered += 1
        shown = {} if why.task_id or self.events.as_json else {"message_id": properties.message_id}
        reason = why.reason if copied else f"{why.reason}; {letters.NO_COPY}"
        self.tell("dead_lettered", id=why.task_id, attempt=why.attempts, reason=reason, **shown)
        self.link.before_settling()
        if copied:
            ch.basic_ack(delivery_tag=tag)
        else:  # RabbitMQ takes no copy of this message: it moves the message itself
            ch.basic_nack(delivery_tag=tag, requeue=False)
        self.backoff.reset()

    def _give_back_unburied(self, ch: Any, tag: int, refusal: Exception) -> None:
        """RabbitMQ has not taken the dead letter: rest, then give the task back."""
        reason = f"the dead-letter {refusal}"
        self.backoff.say(RETRY_DELAY, reason)
        self.stopping.rest(RETRY_DELAY)
        self.link.refused += 1
        if isinstance(refusal, Unroutable):  # connecting anew declares the queue
            raise Lost(reason)
        self.link.before_settling()
        if self.link.refused % RENEW_AFTER:
            ch.basic_nack(delivery_tag=tag, requeue=True)
        else:  # a channel of RabbitMQ 3.10 that met the queue while its leader was down refuses for ever (measured)
            self.link.renew()

    # -- what it says

    def _on_lost(self, error: Exception) -> None:
        """The connection ended. In its own thread, at once, whatever the task does."""
        if isinstance(error, Lost):  # else it is Trouble, which ends this worker with a line of its own
            self.tell("cancelled" if isinstance(error, ConsumerGone) else "connection_lost", reason=str(error))

    def _say_stopped(self) -> None:
        self.tell("stopped", processed=self.tasks_processed, failed=self.tasks_failed,
                  dead_lettered=self.tasks_dead_lettered, busy=round(self.seconds_busy, 3))

    def _say_stopping(self, signum: int) -> None:
        how = "Ctrl+C" if signum == signal.SIGINT else signal.Signals(signum).name
        self.tell("stopping", reason=f"{how}: {self.hand.value}")


def parse(argv: Sequence[str] | None) -> Any:
    parser = Parser("worker.py", __doc__)
    parser.add_argument("worker_id", nargs="?", type=worker_name, default=f"worker-{os.getpid()}", metavar="ID",
                        help="its name (default: worker-PID)")
    parser.add_argument("--handler", metavar="MODULE:FUNCTION", help="the function that does a task")
    parser.add_argument("--drain", action="store_true", help="end when the queue has nothing ready")
    parser.add_argument("--prefetch", type=up_to(MOST_PREFETCH), default=1, metavar="N",
                        help="tasks sent ahead, more than one if tiny (%(default)s)")
    parser.add_argument("--max-attempts", type=up_to(queues.DELIVERY_LIMIT), default=MAX_ATTEMPTS, metavar="N",
                        help="deliveries of a task before it is dead-lettered (%(default)s)")
    parser.add_argument("--retry-delay", type=seconds, default=RETRY_DELAY, metavar="SECONDS",
                        help="rest before attempt 2, then doubled (%(default)g)")
    parser.add_argument("--grace", type=seconds, metavar="SECONDS", help="bound for a running task after a signal")
    parser.add_argument("--connect-timeout", type=seconds, metavar="SECONDS", help="give up without RabbitMQ")
    parser.add_queue_options()
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    stdout = own_stdout() if options.json else None  # a line that a handler prints is no event
    handler = None if options.handler is None else handlers.load(options.handler)
    events = Events(options.worker_id, as_json=options.json, stream=stdout)
    try:
        sys.stdout = events.for_others() or sys.stdout  # what a handler prints does not run into the bar
        return Worker(
            options.worker_id, url=options.url, queue=options.queue, handler=handler, drain=options.drain,
            max_attempts=options.max_attempts, retry_delay=options.retry_delay, prefetch=options.prefetch,
            grace=options.grace, connect_timeout=options.connect_timeout, events=events,
        ).start()  # fmt: skip
    finally:
        events.close()


if __name__ == "__main__":
    sys.exit(run(main))
