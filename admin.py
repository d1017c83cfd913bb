#!/usr/bin/env python3
"""Look after the queue: its figures, its dead letters, proof that nothing is lost.

Exit status: 0 done; 1 it could not go on (RabbitMQ is away, no such dead
letter, the queue is full), or the audit found a loss, or a producer that has
not finished; 2 a wrong call; 130 after Ctrl+C: what was not settled yet is
still a dead letter.

    python admin.py status --watch       # how full, and the time left
    python admin.py dead                 # dead letters, and why they died
    python admin.py replay --all         # give them back to the workers
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

import tareas.needed  # isort: skip  # noqa: F401 (it says so if pika is missing)
from tareas.cli import Parser, positive, run
from tareas.errors import InvalidLog, Lost, Refused, Trouble, WrongCall
from tareas.rabbit import addresses, letterbox, management, queues
from tareas.rabbit.connect import connect
from tareas.rabbit.connection import Connection
from tareas.rabbit.explain import NOT_FOUND
from tareas.rabbit.inside import read_any_headers
from tareas.rabbit.letters import DeadLetter
from tareas.streams import complain, flush
from tareas.tell import audit, figures, logs
from tareas.tell.events import Events
from tareas.tell.letters import in_json, in_words
from tareas.tell.words import WORDS
from tareas.text import quoted

HELD = " but those that another command holds (a replay?): look again later"


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line and flush it: each dead letter is shown before the next one is touched."""
    stream = file or sys.stdout
    print(text, file=stream)
    if stream is not None:
        flush(stream)


def parser() -> Parser:
    """The command line."""
    result = Parser(prog="admin.py", description=__doc__)
    commands = result.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, text: str) -> Any:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(command=function)
        return added

    show = command("status", show_status, "count ready tasks, consumers and dead letters")
    show.add_argument("--watch", nargs="?", type=positive, const=2, metavar="SECONDS",
                      help="again every so many seconds (%(const)s), with rate and time left, until Ctrl+C")
    show.add_argument("--management", metavar="URL",
                      help="RabbitMQ's management API, like http://localhost:15672: shows unacknowledged tasks, too")
    dead = command("dead", list_dead, "list dead letters, which stay where they are")
    dead.add_argument("--limit", type=positive, default=100, metavar="N", help="how many at most (%(default)s)")
    replay = command("replay", replay_dead, "give dead letters back to the workers")
    discard = command("discard", discard_dead, "delete dead letters for good, after asking")
    discard.add_argument("--yes", action="store_true", help="do not ask")
    for each in (replay, discard):
        each.add_argument("ids", nargs="*", metavar="ID", help="as the command dead names them")
        each.add_argument("--all", action="store_true", help="all that are there now")
    for each in (show, dead, replay, discard):
        each.add_queue_options()
    check = command("audit", audit_logs, "say from logs made with --json whether a task is lost")
    check.add_argument("files", nargs="+", metavar="FILE")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    args = parser().parse_args(argv)
    if "ids" in args and args.all == bool(args.ids):
        raise WrongCall("name the dead letters, or say --all (and not both)")
    return int(args.command(args))


@contextlib.contextmanager
def opened(args: Namespace) -> Iterator[Connection]:
    """A connection. However this process ends, the letters that it has not settled go back to their queue."""
    read_any_headers()
    try:
        with connect(addresses.parse(args.url or addresses.default_url()), "admin", tries=3, on_alarm=warn) as opened:
            yield opened
            opened.basic_qos(1)  # its answer follows all acks: a connection that broke before is no success
    except Refused as error:
        if error.code != NOT_FOUND:
            raise Trouble(str(error)) from None
        raise Trouble(f"there is no queue {quoted(args.queue)}, or none for its dead letters: producer.py and "
                      "worker.py make both, for the --queue that they are given") from None
    except Lost as error:
        raise Trouble(str(error)) from None


def warn(word: str, **facts: Any) -> None:
    """Say on stderr that an alarm blocks us, or that it has ended."""
    complain("admin.py", WORDS[word].text.format_map(facts), 0)


def show_status(args: Namespace) -> int:
    """Print the queue's figures, with --watch again and again until Ctrl+C."""
    seen: deque[tuple[float, int]] = deque(maxlen=10)
    with contextlib.suppress(*[KeyboardInterrupt] if args.watch else []), opened(args) as connection:
        while True:
            facts = queues.figures(connection, args.queue)
            if args.management:
                facts |= management.figures(args.management, connection.address, args.queue)
            seen.append((time.monotonic(), facts["ready"]))
            if args.watch:
                facts |= figures.pace(seen)
            say(json.dumps(facts) if args.json else figures.in_words(facts))
            if len(seen) == 1 and not args.management and not args.json:
                say("(AMQP does not show unacknowledged tasks, those that workers hold: --management URL does)")
            if not args.watch:
                break
            wait(connection, args.watch)
    return 0


def holders(connection: Connection, args: Namespace) -> int:
    """How many other commands consume the dead letters, when this one has found none to consume."""
    return int(queues.counts(connection, queues.dead(args.queue)).consumer_count)


def wait(connection: Connection, seconds: float) -> None:
    """Wait, and notice if the connection is lost."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        connection.process_data_events(left)


def list_dead(args: Namespace) -> int:
    """Print the dead letters once they are back in the queue: a pager that stops reading must not hold them."""
    number = strange = 0
    with tempfile.SpooledTemporaryFile(max_size=8 << 20, mode="w+", encoding="utf-8", newline="\n") as page:
        with opened(args) as connection:
            for number, each in enumerate(letterbox.look(connection, args.queue), 1):
                if number > args.limit:
                    continue  # taken all the same: see give_back
                if not args.json:
                    page.write(in_words(each) + "\n")
                elif each.task is not None:
                    page.write(in_json(each) + "\n")
                else:
                    strange += 1
            letterbox.give_back(connection, args.queue, number)
            held = not number and holders(connection, args)
        page.seek(0)
        for line in page:
            say(line.removesuffix("\n"))
    aside = sys.stderr if args.json else sys.stdout
    if not number:
        say(f"no dead letters{HELD if held else ''}", file=aside)
    if number > args.limit:
        say(f"{number - args.limit:,} more: --limit N shows them", file=aside)
    if strange:
        say(f"{strange:,} left out that are no tasks: without --json they are shown", file=aside)
    return 0


def replay_dead(args: Namespace) -> int:
    """Publish, wait for the confirm, tell it, then acknowledge: killed at any point, no letter is lost."""
    number, events = 0, Events("admin", as_json=True) if args.json else None

    def tell(each: DeadLetter, without: list[str]) -> None:
        if events is not None:
            events.tell("replayed", id=each.task_id, letter=each.id, without=without)
        else:
            note = f" (without {' and '.join(without)})" if without else ""
            say(f"{each.id}  replayed{note}")

    with opened(args) as connection:
        connection.confirm_delivery()
        for each in letterbox.chosen(connection, args.queue, args.ids):
            try:
                letterbox.replay(connection, args.queue, each, functools.partial(tell, each))
            except (KeyboardInterrupt, Lost) as end:  # published perhaps, and not confirmed
                why, status = ("interrupted", 130) if isinstance(end, KeyboardInterrupt) else (str(end), 1)
                raise Trouble(f"{why}; {number:,} are replayed, and {quoted(each.id)} is on its way: RabbitMQ may "
                              "still replay it", status) from None
            number += 1
        held = not number and holders(connection, args)
    if not args.json:
        say(f"{number:,} replayed{HELD if held else ''}")
    return 0


def discard_dead(args: Namespace) -> int:
    """Print what goes, then acknowledge it: nothing vanishes unseen."""
    limit, number = None if args.yes else asked(args), 0
    with opened(args) as connection:
        for each in letterbox.chosen(connection, args.queue, args.ids, limit):
            say(in_json(each) if args.json else f"discarded {in_words(each)}")
            letterbox.discard(connection, each)
            number += 1
        held = not number and holders(connection, args)
    if not args.json:
        say(f"{number:,} discarded{HELD if held else ''}")
    return 0


def asked(args: Namespace) -> int | None:
    """Ask a person. Returns how many letters the answer covers at most. Raises Trouble unless the answer is yes."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise WrongCall("discard deletes for good, and there is no terminal to ask at: say --yes")
    number, what = None, ", ".join(quoted(name) for name in args.ids)
    if args.all:
        with opened(args) as connection:
            number = queues.counts(connection, queues.dead(args.queue)).message_count
        if number == 0:
            return 0
        what = "the only dead letter" if number == 1 else f"all {number:,} dead letters"
    print(f"Delete for good, from queue {quoted(args.queue)}: {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Trouble("nothing is deleted")
    return number


def audit_logs(args: Namespace) -> int:
    """Print the verdict on the logs, then what is wrong, a line each."""
    try:
        verdict = audit.audit(logs.read(args.files))
    except InvalidLog as error:
        raise WrongCall(str(error)) from None
    except OSError as error:
        raise WrongCall(f"{quoted(str(error.filename))} cannot be read: {error.strerror}") from None
    if verdict.fine and not (verdict.published or verdict.confirmed):
        raise WrongCall(f"no published task in these logs (done {verdict.done}, dead {verdict.dead}), so nothing can "
                        "be found lost: name the producer's log, too")
    for line in (verdict.line(), *verdict.problems(), *verdict.notes()):
        say(line)
    return 0 if verdict.fine and not verdict.unfinished and not verdict.pending else 1


if __name__ == "__main__":
    sys.exit(run(main))
