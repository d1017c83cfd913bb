"""The exhaustive cut: the connection ends after every frame, and amid every frame, in both directions.

One conversation for each command. An uncut run tells which frames there are; then each place gets a run, a queue and a
proxy of its own, several at once. By default a few places each, with all steps of the handshake; all with FAULTS=full.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pika
import pytest

from tareas.rabbit import addresses, letters, queues
from tareas.rabbit.connect import connect
from tareas.rabbit.letters import DeadLetter, read
from tareas.tell import audit
from tests.conftest import delete_queues
from tests.faults import table
from tests.faults.cuts import CLIENT, GREETING, RABBITMQ, CuttingProxy, Frame, Place, places
from tests.faults.harness import FULL, Event
from tests.integration.test_admin import FRAME
from tests.integration.test_contract import consumers, declare, publish, until
from tests.support import Command

AT_ONCE = 6  # runs: most of each is waiting
GOOD = ["good-1", "good-2", "good-3", "good-4"]
BROKEN = b'{"id": "broken", "complexity": 0'
LETTERS = ["dead-1", "dead-2", "dead-3", "dead-4"]
CHOSEN = "dead-2"
THE_END = b"the end"  # behind all that is in a queue
REASON = "ValueError: it went wrong"

DID_NOT_COME = "which did not come"

# What is told of a cut is that: none of these.
UNTRUE = re.compile(
    "login|user|password|vhost|permi|certificate|majority|no dead letter|no queue|does not speak|internal error", re.I
)
CUT = re.compile(r"\b(broke|broken|closed the connection|ended|lost|cut)\b", re.I)

# The places of a small sweep: at the first frame of such a name, or at the last, where the conversation has it.
FIRST = {
    (CLIENT, GREETING, False),
    (RABBITMQ, "Connection.Start", True),
    (CLIENT, "Connection.StartOk", False),
    (RABBITMQ, "Connection.Tune", False),
    (CLIENT, "Connection.Open", False),
    (RABBITMQ, "Connection.OpenOk", True),
    (RABBITMQ, "Basic.Deliver", False),
    (CLIENT, "body", False),
    (RABBITMQ, "Basic.Ack", True),
    (CLIENT, "Basic.Ack", False),
    (CLIENT, "Connection.Close", False),
}
LAST = {(CLIENT, "Queue.Declare", False)}  # a look at the queue


@dataclass
class Run:
    """One run of a command on a queue of its own, and all that is left of it."""

    status: int
    out: str
    err: str
    address: str  # of the proxy, as the command knows it
    left: list[DeadLetter]  # what is ready in the work queue
    letters: list[DeadLetter]
    client: list[Event]  # what the test itself published, as events
    frames: list[Frame]  # of the first connection
    connections: int
    place: Place | None
    was_cut: bool
    wrong: list[str] = field(default_factory=list)

    @property
    def events(self) -> list[Event]:
        """What the command told with --json, after what the test did."""
        return self.client + [json.loads(line) for line in self.out.splitlines()]

    def told(self, word: str) -> list[str | None]:
        """The ids in the events of this kind."""
        return [event.get("id") for event in self.events if event.get("event") == word]

    def want(self, holds: object, what: str) -> None:
        """Note what is wrong unless this holds; so one run names all of it."""
        if not holds:
            self.wrong.append(what)

    def report(self) -> str:
        """For a test that failed."""
        at = f"{self.place} ({name_of(self.frames, self.place)})" if self.place else "uncut"
        left, dead = ([letter.id for letter in letters] for letters in (self.left, self.letters))
        return (f"{at}: {'; '.join(self.wrong)}\n    status {self.status}, left {left}, dead {dead}, "
                f"{self.connections} connections, {self.err.strip()!r}")  # fmt: skip


@dataclass(frozen=True)
class Conversation:
    """What is cut: a command, what is in the queue before it, and what has to be true after it.

    tasks: how many are at stake. fill: gets a channel and the queue; returns what it published, as events.
    """

    name: str
    tasks: int
    argv: tuple[str, ...]
    fill: Callable[[Any, str], list[Event]]
    judge: Callable[[Run], None]
    stdin: str | None = None


# -- a producer with five tasks

TASKS = [{"id": f"task-{n}", "complexity": 0} for n in range(1, 6)]


def nothing(channel: Any, queue: str) -> list[Event]:
    return []


def judge_producer(run: Run) -> None:
    """It goes on by itself: every task is confirmed, and in the queue at least once."""
    run.want(run.status == 0, "does not go on")
    run.want(not run.err, "says something beside its events")
    left = Counter(letter.id for letter in run.left)
    run.want(left.keys() == {task["id"] for task in TASKS}, "not every task is in the queue")
    # Published again is what was not confirmed on the one connection that was cut.
    run.want(max(left.values(), default=0) <= 1 + run.was_cut, "a task is there too often")
    run.want(sorted(map(str, run.told("confirmed"))) == sorted(str(task["id"]) for task in TASKS), "confirms differ")
    run.want(not run.letters, "something died")
    audited(run)


# -- a worker with four good tasks, one that fails once, and one broken body


def fill_work(channel: Any, queue: str) -> list[Event]:
    tasks: list[dict[str, Any]] = [{"id": name, "complexity": 0} for name in GOOD]
    tasks.insert(2, {"id": "once", "complexity": 0, "fail_attempts": 1})
    publish(channel, queue, *tasks[:3], BROKEN, *tasks[3:])
    return [event(word, str(task["id"])) for task in tasks for word in ("published", "confirmed")]


def judge_worker(run: Run) -> None:
    """It goes on by itself: all good tasks are done, the broken body alone is dead, with the true reason."""
    run.want(run.status == 3, "does not end drained with a dead letter")
    run.want(not run.err, "says something beside its events")
    done = Counter(run.told("done"))
    run.want(done.keys() == {*GOOD, "once"}, "not every good task is done")
    run.want(max(done.values(), default=0) <= 1 + run.was_cut, "a task is done too often")
    run.want(not run.left, "something is left in the queue")
    run.want(1 <= len(run.letters) <= 1 + run.was_cut, "the broken body is not the one dead letter")
    for letter in run.letters:
        run.want(letter.body == BROKEN, "an innocent one is dead")
        run.want("invalid task: " in (letter.reason or ""), f"a false reason: {letter.reason}")
    audited(run)


def audited(run: Run) -> None:
    verdict = audit.audit(run.events, [letter.id for letter in run.left])
    run.want(verdict.fine, "the audit: " + "; ".join(verdict.problems()))


# -- dead letters, replayed or discarded


def bury(channel: Any, queue: str) -> list[Event]:
    with contextlib.closing(channel.connection.channel()) as confirming:
        confirming.confirm_delivery()
        for name in LETTERS:
            body, about = json.dumps({"id": name}).encode(), pika.BasicProperties(message_id=name)
            copy = letters.copy_of(about, REASON, 5, "w-1", FRAME)
            confirming.basic_publish("", queues.dead(queue), body, copy, mandatory=True)
    return []


def judge_admin(run: Run, wanted: list[str], told: list[str], back: Counter[str]) -> None:
    """It goes on by itself, or ends with 1 and one true line. What it has not told is where it was.

    told: the ids of the letters it said to have settled. back: how often each is in the work queue.
    """
    dead = Counter(letter.id for letter in run.letters)
    run.want("Traceback" not in run.err, "a traceback")
    run.want(run.status in (0, 1) and (run.was_cut or run.status == 0), "a wrong status")
    if run.status == 0:
        run.want(not run.err, "status 0, and it complains")
        run.want(set(told) == set(wanted), "status 0, and not all is told")
        run.want(not dead.keys() & set(wanted), "status 0, and letters are still there")
    else:
        run.want(run.err.count("\n") == 1, "not one line")
        run.want(run.address in run.err and CUT.search(run.err), "the line does not say what happened, and where")
        run.want(not UNTRUE.search(run.err), "the line is not true")
        spoke = any(frame.sender == RABBITMQ for frame in run.frames[:-1])
        run.want(not (spoke and "before it spoke" in run.err), "the line is not true: it spoke")
    run.want([letter.id for letter in run.letters] == sorted(dead), "the dead letters are not in their order")
    run.want(max(dead.values(), default=0) <= 1, "a dead letter is doubled")
    gone = set(LETTERS) - dead.keys()
    run.want(gone <= set(wanted), "a letter is gone that was not named")
    run.want(gone <= set(told), "a letter is gone untold")
    run.want(set(told) <= set(wanted), "more is told than was named")
    # A try that goes on by itself may tell one letter again, that whose end it did not see.
    run.want(sum(Counter(told).values()) - len(set(told)) <= run.was_cut, "told too often")
    run.want(back.keys() <= set(wanted) and max(back.values(), default=0) <= 1 + run.was_cut, "replayed too often")
    for letter in run.letters:
        run.want((letter.reason, letter.attempts) == (REASON, 5), f"a letter has changed: {letter.reason}")


def judge_replay(*wanted: str) -> Callable[[Run], None]:
    def judge(run: Run) -> None:
        told, back = [str(name) for name in run.told("replayed")], Counter(letter.id for letter in run.left)
        judge_admin(run, list(wanted), told, back)
        dead = {letter.id for letter in run.letters}
        run.want(set(LETTERS) <= dead | back.keys(), "a letter is lost")
        run.want(set(told) <= back.keys(), "told, and not replayed")

    return judge


def judge_discard(*wanted: str) -> Callable[[Run], None]:
    def judge(run: Run) -> None:
        told = [str(json.loads(line)["id"]) for line in run.out.splitlines()]
        judge_admin(run, list(wanted), told, Counter(letter.id for letter in run.left))
        run.want(not run.left, "discarded into the work queue")

    return judge


FED = "".join(json.dumps(task) + "\n" for task in TASKS)
DRAIN = ("worker.py", "w-1", "--drain", "--retry-delay", "0.05")
DEAD = len(LETTERS)

CONVERSATIONS = [
    Conversation("producer", len(TASKS), ("producer.py", "-"), nothing, judge_producer, FED),
    Conversation("worker", len(GOOD) + 2, DRAIN, fill_work, judge_worker),
    Conversation("replay", DEAD, ("admin.py", "replay", CHOSEN), bury, judge_replay(CHOSEN)),
    Conversation("replay --all", DEAD, ("admin.py", "replay", "--all"), bury, judge_replay(*LETTERS)),
    Conversation("discard", DEAD, ("admin.py", "discard", CHOSEN, "--yes"), bury, judge_discard(CHOSEN)),
    Conversation("discard --all", DEAD, ("admin.py", "discard", "--all", "--yes"), bury, judge_discard(*LETTERS)),
]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda each: each.name.replace(" --", "-"))
def test_connection_cut_at_every_frame(url: str, queue: str, conversation: Conversation) -> None:
    began = time.monotonic()
    uncut = converse(conversation, url, f"{queue}-uncut", None)
    assert not uncut.wrong and uncut.connections == 1, uncut.report()
    assert uncut.frames[0] == (CLIENT, GREETING) and uncut.frames[-1] == (RABBITMQ, "Connection.CloseOk")
    swept = chosen(uncut.frames)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = list(pool.map(lambda at: converse(conversation, url, f"{queue}-{at[0]}", at[1]), enumerate(swept)))

    bad = [run.report() for run in runs if run.wrong]
    if bad:
        pytest.fail(f"{len(bad)} of {len(runs)} places:\n" + "\n".join(bad), pytrace=False)
    cut = [run for run in runs if run.was_cut]
    print(f"{conversation.name}: cut at {len(cut)} of {len(runs)} places")
    # How often a command looks at its queue at the end depends on the clock: the last frames are not always there.
    missed = [run for run in runs if not run.was_cut and name_of(run.frames, run.place) != DID_NOT_COME]
    assert not missed and len(cut) > len(runs) / 2, f"only {len(cut)} of {len(runs)} were cut"
    record(conversation, version(url), runs, time.monotonic() - began)


def chosen(frames: list[Frame]) -> list[Place]:
    """All places of a full sweep; those of a small one."""
    every = places(frames)
    if FULL:
        return [place for place, _ in every]
    first: dict[tuple[str, str, bool], Place] = {}
    last: dict[tuple[str, str, bool], Place] = {}
    for place, name in every:
        key = (place.sender, name, place.amid)
        first.setdefault(key, place)
        last[key] = place
    return [first[key] for key in sorted(FIRST & first.keys())] + [last[key] for key in sorted(LAST & last.keys())]


def converse(conversation: Conversation, url: str, queue: str, place: Place | None) -> Run:
    """One run of the command, its first connection cut there."""
    with channel_to(url) as channel:
        declare(channel, queue)
        try:
            client = conversation.fill(channel, queue)
            with CuttingProxy(url, place) as proxy:
                command = Command(
                    *conversation.argv, "--json", "--queue", queue,
                    env={"AMQP_URL": proxy.url}, stdin=conversation.stdin,
                )  # fmt: skip
                with contextlib.suppress(AssertionError):  # it still runs: its status is that of the kill
                    command.wait()
                command.close()
                run = Run(
                    command.process.returncode, command.out, command.err, proxy.address, taken(channel, queue),
                    taken(channel, queues.dead(queue)), client, next(iter(proxy.frames), []), len(proxy.frames), place,
                    proxy.was_cut,
                )  # fmt: skip
        finally:
            delete_queues(url, queue)
    conversation.judge(run)
    return run


def taken(channel: Any, queue: str) -> list[DeadLetter]:
    """All messages of a queue, which leave it, once nobody holds any."""
    until(lambda: consumers(channel, queue) == 0)
    publish(channel, queue, THE_END)  # RabbitMQ gives back before it takes this
    found: list[DeadLetter] = []
    while True:
        _, properties, body = channel.basic_get(queue, auto_ack=True)
        if body == THE_END:
            return found
        if body is not None:
            found.append(read(0, properties, body))


@contextlib.contextmanager
def channel_to(url: str) -> Iterator[Any]:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        yield connection.channel()


def event(word: str, task_id: str) -> Event:
    return {"time": round(time.time(), 3), "event": word, "who": "test", "id": task_id}


def name_of(frames: list[Frame], place: Place | None) -> str:
    """The name of the frame at this place."""
    return next((name for found, name in places(frames) if found == place), DID_NOT_COME)


def version(url: str) -> str:
    """RabbitMQ's, as in the table: "4.3"."""
    with contextlib.closing(connect(addresses.parse(url), "test")) as connection:
        return ".".join(map(str, connection.version[:2]))


def record(conversation: Conversation, version: str, runs: list[Run], seconds: float) -> None:
    """A line of the table, over all runs. None is lost, or they would not be right."""
    started = [event for run in runs for event in run.events if event.get("event") == "started"]
    done = [Counter(run.told("done")) for run in runs]
    table.record(
        f"connection cut at every frame: {conversation.name}",
        version,
        tasks=conversation.tasks * len(runs),
        faults=sum(run.was_cut for run in runs),
        redelivered=sum(event["redelivered"] for event in started),
        twice=sum(count > 1 for counts in done for count in counts.values()),
        dead=sum(len(run.letters) for run in runs),
        lost=0,
        seconds=seconds,
    )
