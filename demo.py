#!/usr/bin/env python3
"""Watch that no task is lost: workers and RabbitMQ are killed, then the verdict.

It runs producer.py and worker.py as they are and reads what they print with
--json. Ctrl+C ends it at any moment, and leaves nothing behind.

Exit status: 0 nothing was lost and every chapter came out as told; 1 not so,
or no RabbitMQ; 2 a wrong call; 130 or 143 ended by a signal.

    python demo.py                        # all of it, on a RabbitMQ of its own
    python demo.py --scenario kill        # one chapter alone
    python demo.py --scenario poison      # another one
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tareas.cli import Parser, Trouble, run
from tareas.story.signals import Interrupted, Signals
from tareas.story.stage import Missed, Stage
from tareas.task import QUEUE

SCENARIOS = {
    "all": ("kill", "retry", "restart", "late", "poison"),
    "kill": ("kill", "late"),
    "restart": ("restart",),
    "retry": ("retry",),
    "poison": ("poison",),
}


def perform(options: Any, signals: Signals) -> int:
    """The demo from curtain to curtain. Returns the exit status; raises Trouble, or Interrupted after a signal."""
    # Here, and not at the top: these take a while to import, and Ctrl+C is ours by now.
    from tareas import audit, private_broker
    from tareas.story.chapters import Story
    from tareas.story.view import View, complain

    view = View()
    if not (options.url or os.environ.get("AMQP_URL")):
        view.remark("A private RabbitMQ starts ...")
    signals.raising = True  # till the first line of the block: starting RabbitMQ is what takes long
    with private_broker.provide(options.url) as rabbitmq:
        signals.raising = False
        signals.check()
        queue = QUEUE if rabbitmq.node else f"{QUEUE}.demo-{secrets.token_hex(4)}"
        with contextlib.nullcontext() if rabbitmq.node else borrowed(rabbitmq.url, queue, signals, view.remark):
            try:
                with view, Stage(signals, view.event, {"AMQP_URL": rabbitmq.url}) as stage:
                    story = Story(stage, view, queue, rabbitmq.node)
                    view.work.update(story.work)
                    chapters = SCENARIOS[options.scenario]
                    story.open(restart="restart" in chapters)
                    for chapter in chapters:
                        getattr(story, chapter)()
                    story.close()
            except Missed as missed:
                complain(missed.words)
                raise
    verdict = audit.audit(event for event in stage.events if event["event"] not in ("killed", "down", "up"))
    view.timeline(stage.events)
    view.verdict(verdict.line(), verdict.fine)
    return 0 if verdict.fine else 1


@contextlib.contextmanager
def borrowed(url: str, queue: str, signals: Signals, say: Callable[[str], None]) -> Iterator[None]:
    """A queue of this run alone on a RabbitMQ that lives on: it and its dead-letter queue are deleted afterwards.

    Raises Trouble at once if RabbitMQ cannot be reached: the workers would wait for it.
    """
    from tareas import addresses, broker, reasons

    with signals.interruptible():
        connection, address = broker.connect(addresses.parse(url), "demo.py")
        connection.close()  # it has to be used or it goes stale, and we only look and wait
    say(f"The queue is {queue} at {address.shown}; it is deleted at the end.")
    try:
        yield
    finally:
        try:
            connection, _ = broker.connect(addresses.parse(url), "demo.py")
            with contextlib.closing(connection), broker.deadline(connection):
                channel = connection.channel()
                for name, _ in broker.declarations(queue):
                    channel.queue_delete(name)
        except (Trouble, *reasons.LOST):
            print(f"demo.py: the queues {queue} and {broker.dead(queue)} could not be deleted", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status. Raises Trouble with what went wrong."""
    parser = Parser("demo.py", __doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, default="all", help="one chapter alone (all)")
    parser.add_argument("--url", metavar="URLS", help="RabbitMQ ($AMQP_URL, else a private one)")
    options = parser.parse_args(argv)
    with Signals() as signals:
        try:
            return perform(options, signals)
        except Interrupted as interrupted:
            signum = interrupted.signum
        # Only here is everything that the exception held on to let go.
        how = "Ctrl+C" if signum == signal.SIGINT else signal.Signals(signum).name
        print(f"demo.py: ended by {how}: its workers and queue are gone, nothing is left behind", file=sys.stderr)
        return 128 + signum


if __name__ == "__main__":
    sys.exit(run(main))
