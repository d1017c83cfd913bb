#!/usr/bin/env python3
"""Do the tasks of the queue, one at a time: receive, do, acknowledge.

Exit status: 0 fine, 1 trouble, 2 wrong call, 3 dead letters, 130 2nd Ctrl+C.
    python worker.py worker-1                    # start as many as you like
    python worker.py --drain                     # end when no task waits
    python worker.py --handler builtins:print    # call a function of your own
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import tareas.needed  # isort: skip  # noqa: F401 (it says so if pika is missing)
import pika

from tareas.cli import Parser, positive, run, seconds, worker_name
from tareas.errors import Abandoned, ConsumerGone, Denied, Interrupted, InvalidTask, Reject, Trouble, Unreachable
from tareas.rabbit import addresses, backoff, connection as broker, explain as reasons, inside, letters, queues
from tareas.rabbit.keep_alive import KeepAlive
from tareas.streams import own_stdout
from tareas.task import QUEUE, decode
from tareas.tell.events import Events
from tareas.text import quoted
from tareas.work import forks, handlers, verdict
from tareas.work.idle import Idle
from tareas.work.signals import Stopping

MAX_ATTEMPTS = 5
RETRY_DELAY = 1.0  # seconds before the second attempt; doubled for each one after it
MAX_REST = 30.0  # seconds between two attempts
STEADY = 1.0  # seconds after which a connection was a good one, even if no task came
DRAINED_WITH_DEAD = 3
# What the first signal finds, and what it will do with it.
NOTHING = "nothing in hand"
WORKING = "finishing the task in hand; once more after a second gives it back"
RESTING = "the task that rests goes back at once"
DYING = "waiting until the dead letter is confirmed; once more after a second gives the task back"


class Worker:
    """Consumes a queue until it is stopped, or until no task is ready if `drain` is set.

    A task is acknowledged only after it is done. If this worker dies before, RabbitMQ gives the task to another.

    worker_id: its name in events, and in RabbitMQ's management page as consumer tag and connection name.
    handler: called with the task (a dict); returns: ack; raises: retry; raises Reject: dead letter.
    max_attempts: deliveries of a task before it is dead-lettered. retry_delay, grace, connect_timeout: seconds.
    """

    def __init__(
        self,
        worker_id: str,
        *,
        url: str | None = None,
        queue: str = QUEUE,
        handler: handlers.Handler | None = None,
        drain: bool = False,
        max_attempts: int = MAX_ATTEMPTS,
        retry_delay: float = RETRY_DELAY,
        grace: float | None = None,
        connect_timeout: float | None = None,
        events: Events | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.queue = queue
        self.handler = handler
        self.drain = drain
        self.max_attempts = max_attempts
        self.retry_delay = retry_delay
        self.connect_timeout = connect_timeout
        self.tasks_processed = 0
        self.tasks_failed = 0
        self.tasks_dead_lettered = 0
        self.seconds_busy = 0.0
        self.addresses = addresses.parse(url or addresses.default_url())
        self.events = events or Events(worker_id)
        self.tell = self.events.tell
        self.stopping = Stopping(self._say_stopping, grace)
        self.keep_alive = KeepAlive(self._say_lost)
        self.rests = backoff.Rests(self.tell)
        self.attempt = 1  # of the task in hand
        self._in_hand = NOTHING
        self._cancelled = False  # by us
        self._blocked = False  # by an alarm: RabbitMQ takes nothing
        self._deliveries = 0  # on this connection
        self._since: float | None = None  # when this connection came as far as consuming
        self._ever = False  # has any?
        self._address = self.addresses[0]
        self._rabbitmq: tuple[int, ...] = (0,)
        self._connection: Any = None
        self._dead_letters: Any = None

    # -- the life of a worker

    def start(self) -> int:
        """Consume, and connect again whenever the connection is lost. Returns the exit status.

        Raises Trouble when there is no way on: login refused, the queue exists with other arguments, nobody answered
        within connect_timeout.
        """
        inside.read_any_headers()
        status = 0
        with self.stopping:
            try:
                self._stay_connected()
                status = DRAINED_WITH_DEAD if self.drain and self.tasks_dead_lettered else 0
            except Interrupted:
                pass
            except Abandoned:
                status = 128 + (self.stopping.abandoned or signal.SIGINT)
            except Trouble:
                if self.seconds_busy or self.tasks_dead_lettered:
                    self._say_stopped()
                raise
            finally:
                self.keep_alive.end()
                inside.close_socket(self._connection)
        self._say_stopped()
        return status

    def _stay_connected(self) -> None:
        began = time.monotonic()
        while True:
            self._connection, self._since, self._deliveries = None, None, 0
            address = self.addresses[0]
            try:
                with self.stopping.interruptible():
                    connection, address = broker.connect(self.addresses, self.worker_id)
                self._connection = connection
                self.consume(connection, address)
                return
            except ConsumerGone as error:
                reason = str(error)
                self.tell("cancelled", reason=reason)
                # A channel whose consumer timed out is not to be used again: the connection goes with it.
                broker.close(self._connection)
            except reasons.LOST as error:
                if self.events.broken:  # an OSError too, but of our own output
                    raise
                reason = reasons.explain(error, address)
                if reasons.is_denied(error) and not self._ever:
                    broker.close(self._connection)
                    raise Denied(reason) from None
                if error is not self.keep_alive.lost:  # else it was told at once, amid the task
                    self.tell("connection_lost", reason=reason)
                broker.close(self._connection)  # the channel alone may be gone: RabbitMQ would keep our task for it
            except (Unreachable, Denied) as error:
                # A broker that comes back may not know its users yet: once we have consumed, nothing is final.
                if isinstance(error, Denied) and not self._ever:
                    raise
                reason = str(error)
            if self._since is not None:
                began = time.monotonic()
                if self._deliveries or began - self._since >= STEADY:
                    self.rests.reset()
            if self.stopping.requested:
                return
            if self.connect_timeout is not None and time.monotonic() - began > self.connect_timeout:
                raise Trouble(f"no connection within {self.connect_timeout:g} s: {reason}")
            rest = self.rests.next(reason)
            self.events.waiting()
            self.stopping.rest(rest)

    def consume(self, connection: pika.BlockingConnection, address: addresses.Address) -> None:
        """Declare, set the prefetch, consume. Returns when stopped or drained; raises when the connection is lost."""
        with self.stopping.interruptible():
            channel = connection.channel()
            queues.declare(connection, channel, self.queue)
            channel.basic_qos(prefetch_count=1)
        self._dead_letters, self._address = None, address
        self._rabbitmq = broker.version(connection)
        self.tell("connected", address=address.shown)
        self._blocked = False
        broker.tell_alarms(connection, self._on_alarm)
        inside.spare_system_calls(connection)
        forks.at_fork(self, lambda worker: inside.close_socket(worker._connection))
        self.keep_alive.serve(connection, float(address.parameters.heartbeat or 0))
        with broker.deadline(connection):
            channel.basic_consume(
                queue=self.queue, on_message_callback=self.callback, auto_ack=False, consumer_tag=self.worker_id
            )
        self._since, self._ever = time.monotonic(), True
        idle = Idle(connection, channel, lambda: queues.counts(channel, self.queue), self.drain,
                    lambda: self.stopping.requested, lambda: self._deliveries)
        channel.start_consuming()
        if not (idle.stopped or self.stopping.requested):
            raise ConsumerGone("RabbitMQ cancelled the consumer (was the queue deleted?)")
        broker.close(connection)

    # -- one task

    def callback(self, ch: Any, method: Any, properties: Any, body: bytes) -> None:
        """Do one delivery and settle it: ack, nack with requeue, or a dead letter and then ack."""
        self._deliveries += 1
        tag = method.delivery_tag
        if self.stopping.requested:
            self._heed_stop(ch)
            ch.basic_nack(delivery_tag=tag, requeue=True)
            return
        headers = properties.headers
        self.attempt = attempt = verdict.attempt(method.redelivered, headers, self._rabbitmq)
        try:
            task = decode(body, simulated=self.handler is None)
            if isinstance(headers, inside.UnreadableHeaders):
                raise InvalidTask("its headers cannot be read (a timestamp out of range?)", task["id"])
        except InvalidTask as error:
            return self._dead_letter(ch, tag, body, properties, f"invalid task: {error}", attempt, error.task_id)
        task_id = task["id"]
        if attempt > self.max_attempts:
            reason = f"{attempt - 1} attempts used up, the last without an answer: the worker died, lost its " \
                     "connection, or was stopped and gave the task back"
            return self._dead_letter(ch, tag, body, properties, reason, attempt - 1, task_id)

        self._in_hand = WORKING
        shown = {} if self.events.as_json or self.handler else {"complexity": task.get("complexity")}
        self.tell("started", id=task_id, attempt=attempt, redelivered=method.redelivered, **shown)
        began = time.monotonic()
        failure: BaseException | None = None
        try:
            with self.keep_alive:
                self.process_task(task)
        except Abandoned:
            self.seconds_busy += time.monotonic() - began
            self.tell("abandoned", id=task_id, attempt=attempt)
            raise
        except BaseException as error:  # a handler's sys.exit() or KeyboardInterrupt is its failure, not our end
            failure = error
        finally:
            self._in_hand = NOTHING
        took = time.monotonic() - began
        self.seconds_busy += took
        if self.stopping.abandoned:  # a handler swallowed Abandoned
            self.tell("abandoned", id=task_id, attempt=attempt)
            raise Abandoned
        if failure is not None:
            self.tasks_failed += 1
            self.tell("failed", id=task_id, attempt=attempt, error=handlers.describe(failure, place=True),
                      seconds=round(took, 3))
        if self._lost(ch):
            self.tell("discarded", id=task_id, attempt=attempt, reason="the connection was lost while it ran: "
                      "RabbitMQ gives the task to whoever is free")
        self._raise_if_lost(ch, "a task (was the queue deleted, or did the task take too long?)")
        self._heed_stop(ch)

        if failure is None:
            self.tell("done", id=task_id, attempt=attempt, seconds=round(took, 3))
            ch.basic_ack(delivery_tag=tag)
            self.tasks_processed += 1
        elif isinstance(failure, Reject):
            self._dead_letter(ch, tag, body, properties, f"rejected: {handlers.describe(failure)}", attempt, task_id)
        elif attempt >= self.max_attempts:
            reason = handlers.describe(failure, place=True)
            self._dead_letter(ch, tag, body, properties, reason, attempt, task_id)
        else:
            self._requeue(ch, tag, attempt, task_id)

    def process_task(self, task_data: dict[str, Any]) -> None:
        """The task's own work, and nothing else: whatever it raises is the task's failure."""
        if self.handler is None:
            handlers.simulate(task_data, self.attempt)
        else:
            with forks.parent_only():
                handlers.finish(self.handler(task_data))

    def _requeue(self, ch: Any, tag: int, attempt: int, task_id: str) -> None:
        """Give the task back after a rest. It returns to the head of the queue: without the rest, a few tasks that
        always fail would keep every worker from all the others."""
        rest = min(self.retry_delay * 2 ** min(attempt - 1, 30), MAX_REST)
        began = time.monotonic()
        self._in_hand = RESTING
        self.events.resting(task_id, rest)
        with self.keep_alive:
            self.stopping.rest(rest)
        self._in_hand = NOTHING
        self._raise_if_lost(ch, "a rest")
        self._heed_stop(ch)
        self.tell("requeued", id=task_id, attempt=attempt, rest=round(time.monotonic() - began, 3))
        ch.basic_nack(delivery_tag=tag, requeue=True)

    def _dead_letter(
        self, ch: Any, tag: int, body: bytes, properties: Any, reason: str, attempts: int, task_id: str | None
    ) -> None:
        """Confirm the dead letter, then ack the original: a worker that dies between the two leaves one too many,
        never one too few."""
        self._in_hand = DYING
        try:
            if self._dead_letters is None:
                self._dead_letters = self._connection.channel()
                self._dead_letters.confirm_delivery()
            with broker.deadline(self._connection, unless=lambda: self._blocked):
                letters.publish(self._dead_letters, self.queue, body, properties, reason, attempts, self.worker_id)
        except (pika.exceptions.NackError, pika.exceptions.UnroutableError) as error:
            full = isinstance(error, pika.exceptions.NackError)
            what = "is full, or has lost its leader" if full else "does not exist"
            self.rests.say(RETRY_DELAY, f"the dead-letter queue {quoted(queues.dead(self.queue))} {what}")
            with self.keep_alive:
                self.stopping.rest(RETRY_DELAY)
            self._raise_if_lost(ch, "a rest")
            if not full:  # connecting anew declares it
                raise ConsumerGone(f"there is no queue {quoted(queues.dead(self.queue))}") from None
            # A channel of RabbitMQ 3.10 that met the queue while its leader was down refuses for ever (measured).
            self._dead_letters.close()
            self._dead_letters = None
            self._heed_stop(ch)
            ch.basic_nack(delivery_tag=tag, requeue=True)
            return
        except pika.exceptions.ChannelClosedByBroker as error:
            if reasons.is_denied(error):  # for this task, and for every other that fails: the next worker gets it
                raise Trouble(reasons.explain(error, self._address)) from None
            raise
        finally:
            self._in_hand = NOTHING
        self.tasks_dead_lettered += 1
        shown = {} if task_id or self.events.as_json else {"message_id": properties.message_id}
        self.tell("dead_lettered", id=task_id, attempt=attempts, reason=reason, **shown)
        self._heed_stop(ch)
        ch.basic_ack(delivery_tag=tag)

    def _heed_stop(self, ch: Any) -> None:
        """Take no more if a stop was asked for. Called before an ack or nack: RabbitMQ sends the next task upon it, or
        this one again and again, an attempt each time."""
        if self.stopping.requested and not self._cancelled:
            self._cancelled = True
            with broker.deadline(self._connection):
                ch.basic_cancel(self.worker_id)

    def _lost(self, ch: Any) -> bool:
        """Whether a delivery of this channel can no longer be settled. An old delivery tag on a new channel would
        ack another task without an error; a cancelled consumer's task is already on its way to someone else."""
        ended = not self._cancelled and broker.consumer_ended(ch, self.worker_id)
        return self.keep_alive.lost is not None or not ch.is_open or ended

    def _raise_if_lost(self, ch: Any, during: str) -> None:
        if self._lost(ch):
            raise self.keep_alive.lost or ConsumerGone(f"RabbitMQ cancelled the consumer during {during}")

    # -- what it says

    def _on_alarm(self, word: str, **facts: Any) -> None:
        self._blocked = word == "blocked"
        self.tell(word, **facts)

    def _say_lost(self, error: Exception) -> None:
        self.tell("connection_lost", reason=reasons.explain(error, self._address))

    def _say_stopped(self) -> None:
        self.tell("stopped", processed=self.tasks_processed, failed=self.tasks_failed,
                  dead_lettered=self.tasks_dead_lettered, busy=round(self.seconds_busy, 3))

    def _say_stopping(self, signum: int) -> None:
        how = "Ctrl+C" if signum == signal.SIGINT else signal.Signals(signum).name
        self.tell("stopping", reason=f"{how}: {self._in_hand}")


def parse(argv: Sequence[str] | None) -> Any:
    parser = Parser("worker.py", __doc__)
    parser.add_argument("worker_id", nargs="?", type=worker_name, default=f"worker-{os.getpid()}", metavar="ID",
                        help="its name (default: worker-PID)")
    parser.add_argument("--handler", metavar="MODULE:FUNCTION", help="the function that does a task")
    parser.add_argument("--drain", action="store_true", help="end when the queue has nothing ready")
    parser.add_argument("--max-attempts", type=positive, default=MAX_ATTEMPTS, metavar="N",
                        help="deliveries of a task before it is dead-lettered (%(default)s)")
    parser.add_argument("--retry-delay", type=seconds, default=RETRY_DELAY, metavar="SECONDS",
                        help="rest before attempt 2, then doubled (%(default)g)")
    parser.add_argument("--grace", type=seconds, metavar="SECONDS", help="bound for a running task after a signal")
    parser.add_argument("--connect-timeout", type=seconds, metavar="SECONDS", help="give up without RabbitMQ")
    parser.add_queue_options()
    options = parser.parse_args(argv)
    if options.max_attempts > queues.DELIVERY_LIMIT:
        parser.error(f"--max-attempts: at most {queues.DELIVERY_LIMIT:,}, the queue's own limit")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    stdout = own_stdout() if options.json else None  # a line that a handler prints is no event
    handler: Callable[[dict[str, Any]], Any] | None = None
    if options.handler is not None:
        handler = handlers.load(options.handler)
    events = Events(options.worker_id, as_json=options.json, stream=stdout)
    try:
        sys.stdout = events.for_others() or sys.stdout  # what a handler prints does not run into the bar
        return Worker(
            options.worker_id, url=options.url, queue=options.queue, handler=handler, drain=options.drain,
            max_attempts=options.max_attempts, retry_delay=options.retry_delay, grace=options.grace,
            connect_timeout=options.connect_timeout, events=events,
        ).start()
    finally:
        events.close()


if __name__ == "__main__":
    sys.exit(run(main))
