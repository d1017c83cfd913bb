#!/usr/bin/env python3
"""Watch that no task is lost: workers and RabbitMQ are killed, then the verdict.

Exit status: 0 nothing was lost and every chapter came out as told; 1 not so,
or no RabbitMQ; 2 a wrong call; 129, 130 or 143 ended by a signal.

    python demo.py                             # on a RabbitMQ of its own
    python demo.py --scenario kill             # one chapter alone
    python demo.py --tasks 30 --workers 5 --save timeline.svg
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tareas.needed  # isort: skip  # noqa: F401 (it says so if pika is missing)
from tareas.cli import Parser, positive, run
from tareas.errors import Lost, Trouble
from tareas.story import picture
from tareas.story.chapters import CHAPTERS, Story
from tareas.story.signals import Interrupted, Signals
from tareas.story.stage import Missed, Stage
from tareas.story.tasks import EXAMPLES, MOST, SAMPLES, Task, read, samples
from tareas.story.timeline import OWN
from tareas.task import QUEUE
from tareas.text import quoted

WORKERS = (2, 16)  # one has nobody to take over its task; more do not fit on a screen


def perform(options: Any, tasks: Sequence[Task], signals: Signals) -> int:
    """The whole demo: it runs producer.py and worker.py as they are, and reads what they print.

    Returns the exit status. Raises Trouble, or Interrupted after a signal.
    """
    # Not at the top: these take a while to import, and by now we handle Ctrl+C.
    from tareas.lab.provide import provide
    from tareas.rabbit.explain import HOW_TO_START
    from tareas.story.view import View, complain
    from tareas.tell import audit

    view = View(unsaid=HOW_TO_START)  # the demo starts RabbitMQ itself
    if not (options.url or os.environ.get("AMQP_URL")):
        view.remark("A private RabbitMQ starts ...")
    signals.raising = True  # while RabbitMQ starts, which takes long
    with provide(options.url) as rabbitmq:
        signals.raising = False
        signals.check()
        queue = QUEUE if rabbitmq.node else f"{QUEUE}.demo-{secrets.token_hex(4)}"
        with contextlib.nullcontext() if rabbitmq.node else borrowed(rabbitmq.url, queue, signals, view.remark):
            try:
                with view, Stage(signals, view.event, {"AMQP_URL": rabbitmq.url}) as stage:
                    chapters = CHAPTERS if options.scenario == "all" else (options.scenario,)
                    Story(
                        stage, view, queue, rabbitmq.node, tasks=tasks, workers=options.workers, chapters=chapters,
                        pause=options.pause and sys.stdin is not None,
                    ).play()
            except Missed as missed:
                complain(missed.words)
                raise
    verdict = audit.audit((event for event in stage.events if event["event"] not in OWN), left=())
    view.timeline(stage.events)
    if verdict.twice:
        names = ", ".join(verdict.twice)
        view.remark(f"Done twice: {names}. The first ack was lost, so RabbitMQ delivered again (at least once): what"
                    " a task does must bear being done again (idempotent).")
    unsaved = None
    if options.save:
        try:
            picture.save(options.save, stage.events, verdict.line(), verdict.fine)
            view.remark(f"The picture is in {options.save}.")
        except OSError as error:
            unsaved = Trouble(f"{quoted(options.save)} cannot be written: {error.strerror}")
    view.verdict(verdict.line(), verdict.problems())
    if unsaved:
        raise unsaved
    return 0 if verdict.fine else 1


@contextlib.contextmanager
def borrowed(url: str, queue: str, signals: Signals, say: Callable[[str], None]) -> Iterator[None]:
    """The queues of this run on a RabbitMQ that is not its own. They are deleted afterwards.

    Raises Trouble at once if RabbitMQ cannot be reached: the workers would wait for it.
    """
    from tareas.rabbit import addresses, queues
    from tareas.rabbit.connect import connect

    try:
        with signals.interruptible(), connect(addresses.parse(url), "demo.py", tries=3) as connection:
            say(f"The queue is {queue} at {connection.address.shown}; it is deleted at the end.")
    except Lost as error:
        raise Trouble(str(error)) from None
    try:
        yield
    finally:
        try:
            with connect(addresses.parse(url), "demo.py", tries=3) as connection:
                for name, _ in queues.declarations(queue):
                    connection.queue_delete(name)
        except (Trouble, Lost):
            print(f"demo.py: the queues {queue} and {queues.dead(queue)} could not be deleted", file=sys.stderr)


def parse(argv: Sequence[str] | None) -> Any:
    parser = Parser("demo.py", __doc__)
    parser.add_argument("file", nargs="?", metavar="FILE", help="a JSON Lines file of tasks (examples/tasks.jsonl)")
    parser.add_argument("--scenario", choices=("all", *CHAPTERS), default="all", metavar="NAME",
                        help=f"one chapter alone: {', '.join(CHAPTERS)}")
    parser.add_argument("--tasks", type=positive, metavar="N", help="make N sample tasks instead")
    parser.add_argument("--seed", type=int, metavar="N", help="make the same sample tasks each time")
    parser.add_argument("--workers", type=positive, metavar="N", default=3, help="how many at first (%(default)s)")
    parser.add_argument("--pause", action="store_true", help="wait for Enter before each chapter")
    parser.add_argument("--save", metavar="FILE.svg", help="keep the timeline as a picture")
    parser.add_argument("--url", metavar="URLS", help="RabbitMQ ($AMQP_URL, else a private one)")
    options = parser.parse_args(argv)
    if options.file is not None and (options.tasks, options.seed) != (None, None):
        parser.error("--tasks and --seed make sample tasks: leave them out with FILE")
    if options.tasks is not None and options.tasks > MOST:
        parser.error(f"argument --tasks: {options.tasks} are too many to watch: 1 to {MOST:,}")
    if not WORKERS[0] <= options.workers <= WORKERS[1]:
        parser.error(f"argument --workers: {options.workers} is not from {WORKERS[0]} to {WORKERS[1]}")
    if options.save is not None and (reason := picture.unwritable(options.save)):
        parser.error(f"argument --save: {quoted(options.save)} {reason}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status. Raises Trouble with what went wrong."""
    options = parse(argv)
    if options.file is None and (options.tasks, options.seed) != (None, None):
        tasks = samples(options.tasks or SAMPLES, options.seed)
    else:
        tasks = read(options.file or str(EXAMPLES))
        if not options.file and options.scenario not in ("all", "retry"):  # one chapter shows one thing
            tasks = [task for task in tasks if not task.get("fail_attempts")]
    with Signals() as signals:
        try:
            return perform(options, tasks, signals)
        except Interrupted as interrupted:
            signum = interrupted.signum
        # Outside of `except`: in there, the exception keeps alive what is to be cleaned up.
        how = "Ctrl+C" if signum == signal.SIGINT else signal.Signals(signum).name
        print(f"demo.py: ended by {how}: its workers and queue are gone, nothing is left behind", file=sys.stderr)
        return 128 + signum


if __name__ == "__main__":
    sys.exit(run(main))
