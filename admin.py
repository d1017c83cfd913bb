#!/usr/bin/env python3
"""Look after the queue: how full it is, its dead letters, and whether the logs prove that nothing was lost.

Exit status: 0 done; 1 it could not go on (RabbitMQ is away, no such dead letter, the queue is full), or the audit
found a loss; 2 a wrong call; 130 after Ctrl+C: what was not settled yet is still a dead letter.

    python admin.py status --watch                    how full, and the time left
    python admin.py dead                              dead letters, and why they died
    python admin.py replay task-0003                  give it back to the workers
    python admin.py audit producer.jsonl w1.jsonl     a verdict on logs made with --json
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
from typing import Any

from pika.exceptions import ChannelClosedByBroker

from tareas import audit, broker, dead_letters, management, status
from tareas.cli import OUTPUT_FULL, Parser, Trouble, WrongCall, positive, quoted, run
from tareas.dead_letters import DeadLetter

say = functools.partial(print, flush=True)  # what is said of a letter is out before the next is touched


def parser() -> Parser:
    """The command line."""
    result = Parser(prog="admin.py", description=__doc__)
    commands = result.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, text: str) -> Any:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(command=function)
        return added

    show = command("status", show_status, "say how many tasks are ready, how many consumers and dead letters there are")
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
    check = command("audit", audit_logs, "give a verdict on the logs that producer.py and worker.py write with --json")
    check.add_argument("files", nargs="+", metavar="FILE")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    args = parser().parse_args(argv)
    if "ids" in args and args.all == bool(args.ids):
        raise WrongCall("name the dead letters, or say --all (and not both)")
    return int(args.command(args))


@contextlib.contextmanager
def opened(args: Namespace) -> Iterator[tuple[Any, broker.Address]]:
    """A channel. However this process ends, RabbitMQ takes back the letters that were taken and not settled."""
    broker.read_any_headers()
    connection, address = broker.connect(broker.addresses(args.url or broker.default_url()), "admin")
    try:
        yield connection.channel(), address
        connection.close()
    except Trouble:
        with contextlib.suppress(*broker.LOST):
            connection.close()
        raise
    except broker.LOST as error:
        if isinstance(error, BrokenPipeError) or getattr(error, "errno", None) in OUTPUT_FULL:
            raise  # stdout's, not the connection's: pika has its own class for that
        if isinstance(error, ChannelClosedByBroker) and error.reply_code == 404:
            raise Trouble(f"there is no queue {quoted(args.queue)} with dead letters (worker.py makes both)") from None
        raise Trouble(broker.explain(error, address)) from None


def show_status(args: Namespace) -> int:
    """Print the queue's figures, with --watch again and again until Ctrl+C."""
    seen: deque[tuple[float, int]] = deque(maxlen=10)
    with opened(args) as (channel, address):
        while True:
            facts = status.figures(channel, args.queue)
            if args.management:
                facts |= management.figures(args.management, address, args.queue)
            seen.append((time.monotonic(), facts["ready"]))
            if args.watch:
                facts |= status.pace(seen)
            say(json.dumps(facts) if args.json else status.in_words(facts))
            if len(seen) == 1 and not args.management and not args.json:
                say("(AMQP does not show unacknowledged tasks, those that workers hold: --management URL does)")
            if not args.watch:
                return 0
            try:
                channel.connection.sleep(args.watch)
            except KeyboardInterrupt:
                return 0


def list_dead(args: Namespace) -> int:
    """Print the dead letters once they are back in the queue: a pager that stops reading must not hold them."""
    letter, strange = None, 0
    with tempfile.SpooledTemporaryFile(max_size=8 << 20, mode="w+", encoding="utf-8", newline="\n") as page:
        with opened(args) as (channel, _):
            for letter in dead_letters.look(channel, args.queue, args.limit):
                if not args.json:
                    page.write(dead_letters.in_words(letter) + "\n")
                elif letter.task is not None:
                    page.write(dead_letters.in_json(letter) + "\n")
                else:
                    strange += 1
            dead_letters.give_back(channel)
        page.seek(0)
        for line in page:
            say(line.removesuffix("\n"))
    aside = sys.stderr if args.json else sys.stdout
    if letter is None:
        say("no dead letters", file=aside)
    elif letter.behind:
        say(f"{letter.behind:,} more: --limit N shows them", file=aside)
    if strange:
        say(f"{strange:,} left out that are no tasks: without --json they are shown", file=aside)
    return 0


def chosen(args: Namespace, channel: Any, verb: str, limit: int | None = None) -> Iterator[DeadLetter]:
    """The letters that the call names, to be settled one by one; then the others go back. Trouble if one is missing."""
    missing, number = dict.fromkeys(args.ids), 0
    for letter in dead_letters.look(channel, args.queue, limit):
        if args.all or letter.id in args.ids:
            number += 1
            missing.pop(letter.id, None)
            yield letter
    dead_letters.give_back(channel)
    if missing:
        names = ", ".join(quoted(name) for name in missing)
        raise Trouble(f"no dead letter {names} in queue {quoted(args.queue)} (admin.py dead lists them)")
    if not args.json:
        say(f"{number:,} dead letter{'s' * (number != 1)} {verb}")


def replay_dead(args: Namespace) -> int:
    """Publish, wait for the confirm, then acknowledge: killed at any point, no letter is lost."""
    with opened(args) as (channel, _):
        channel.confirm_delivery()
        for letter in chosen(args, channel, "replayed"):
            without = dead_letters.replay(channel, args.queue, letter)
            note = f" (without {' and '.join(without)})" if without else ""
            say(dead_letters.in_json(letter) if args.json else f"{letter.id}  replayed{note}")
    return 0


def discard_dead(args: Namespace) -> int:
    """Print what goes, then acknowledge it: nothing vanishes unseen."""
    limit = None if args.yes else asked(args)
    with opened(args) as (channel, _):
        for letter in chosen(args, channel, "discarded", limit):
            say(dead_letters.in_json(letter) if args.json else f"discarded {dead_letters.in_words(letter)}")
            dead_letters.discard(channel, letter)
    return 0


def asked(args: Namespace) -> int | None:
    """Have a person confirm; how many letters at most the answer was about. Raises Trouble unless it is yes."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise WrongCall("discard deletes for good, and there is no terminal to ask at: say --yes")
    number = None
    if args.all:
        with opened(args) as (channel, _):
            number = status.counts(channel, broker.dead(args.queue)).message_count
    what = f"all {number:,} dead letters" if args.all else ", ".join(quoted(name) for name in args.ids)
    print(f"Delete for good, from queue {quoted(args.queue)}: {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Trouble("nothing is deleted")
    return number


def audit_logs(args: Namespace) -> int:
    """Print the verdict on the logs, then what is wrong, a line each."""
    try:
        verdict = audit.audit(audit.read(args.files))
    except audit.InvalidLog as error:
        raise WrongCall(str(error)) from None
    except OSError as error:
        raise WrongCall(f"{quoted(str(error.filename))} cannot be read: {error.strerror}") from None
    for line in (verdict.line(), *verdict.problems(), *verdict.notes()):
        say(line)
    return 0 if verdict.fine else 1


if __name__ == "__main__":
    sys.exit(run(main))
