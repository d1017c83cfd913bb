"""What every row of the fault matrix is made of: real processes, faults, and the audit at the end.

    def test_row(fleet: Fleet) -> None:
        fleet.start_workers(4)                      # worker.py, replaced whenever one dies
        fleet.produce([{"id": "a", "complexity": 1}])
        fleet.kill_busy()                           # a fault, counted
        fleet.ends("worker killed")                 # all settled, nothing lost; a line of the table

The processes write their events (--json) to a file each, so a SIGKILL loses nothing that was flushed. The harness
follows those files: whatever it knows, the audit reads too. Nothing waits for a time, all for an event.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pika
from pika.exceptions import ConnectionClosedByBroker

from tareas.rabbit import addresses, inside, queues
from tareas.rabbit.connect import connect
from tareas.rabbit.connection import Connection
from tareas.rabbit.letters import DeadLetter, read
from tareas.tell import audit, logs
from tests.faults import table

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("FAULTS") == "full"
DEADLINE = 900.0 if FULL else 90.0  # seconds for one wait: how long a busy machine may take, never how long it should
LOOK = 0.01  # seconds between two looks at the files
SETTLED = 5.0  # seconds from declaring a queue until a broker may be killed: RabbitMQ loses confirmed messages before
NO_TASK_IN_HAND = {"done", "failed", "dead_lettered", "discarded", "abandoned", "connected"}

Task = dict[str, Any]
Event = dict[str, Any]


def scaled(small: int, full: int) -> int:
    """The figure for this run: FAULTS=full takes the full one."""
    return full if FULL else small


def tasks(count: int, complexity: tuple[float, float] = (0.0, 0.0), prefix: str = "task", **facts: Any) -> list[Task]:
    """Good tasks, of seconds of work evenly spread between the two; facts go into each."""
    dice = random.Random(f"{prefix}{count}")
    return [
        {"id": f"{prefix}-{number:05d}", "complexity": round(dice.uniform(*complexity), 4), **facts}
        for number in range(1, count + 1)
    ]


class Member:
    """A command of the project as a process whose events and errors go to files."""

    def __init__(
        self, name: str, argv: Sequence[str], folder: Path, env: dict[str, str], piped: bool = False,
        prefix: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.name = name
        self.argv = list(argv)
        self.log, self.errors = folder / f"{name}.jsonl", folder / f"{name}.err"
        self.events: list[Event] = []
        self.killed = False  # by us
        self.frozen = False
        self._rest = b""
        with self.log.open("wb") as out, self.errors.open("wb") as err:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *self.argv],
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **env},
                cwd=ROOT,
                start_new_session=True,
            )
        self._file = self.log.open("rb")
        self._over = False

    def read(self) -> list[Event]:
        """The events since the last call. A line that a kill cut short is left out (the audit counts it)."""
        if self._over:
            return []
        ended = self.process.poll() is not None  # asked before reading: what a dead process wrote is all there
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        new: list[Event] = [json.loads(line) for line in lines]
        self.events += new
        if ended:
            self._over = True
            self._file.close()
        return new

    @property
    def running(self) -> bool:
        """Whether the process lives, frozen or not."""
        return self.process.poll() is None

    @property
    def task(self) -> Event | None:
        """The `started` of the task in hand, as far as the log was read."""
        for event in reversed(self.events):
            if event["event"] == "started":
                return event
            if event["event"] in NO_TASK_IN_HAND:
                return None
        return None

    @property
    def last(self) -> Event:
        """Its last event so far, or one without a word."""
        return self.events[-1] if self.events else {"event": ""}

    def having(self, word: str, **facts: object) -> list[Event]:
        """The events of this kind, read so far, that carry these facts."""
        return [event for event in self.events if event["event"] == word and facts.items() <= event.items()]

    def freeze(self) -> bool:
        """SIGSTOP, and wait until it stands still. False: it had ended before."""
        if not self.running:
            return False
        self.process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            self.frozen = True
            return True
        self.process.returncode = os.waitstatus_to_exitcode(status)  # reaped here, so Popen cannot learn it
        return False

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.killed = True
        self.frozen = False
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM; nothing happens when it has ended."""
        if self.frozen:
            self.thaw()
        self.process.terminate()

    def wait(self, deadline: float = DEADLINE) -> int:
        """The exit status."""
        return self.process.wait(deadline)

    def close(self) -> None:
        """End it whatever it does."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self._file.close()

    def report(self) -> str:
        """How it stands, its last events and its errors, for a test that failed."""
        lines = self.log.read_text(errors="replace").splitlines()[-8:]
        status = "running" if self.running else f"ended {self.process.returncode}" + " (by us)" * self.killed
        return "\n".join([f"--- {self.name}: {status}", *lines, self.errors.read_text(errors="replace")[-2000:]])


@dataclass(frozen=True)
class Ending:
    """How a row ended: the audit's verdict, the ids still in the queue, the letters of the dead-letter queue."""

    verdict: audit.Verdict
    left: list[str]
    letters: list[DeadLetter]


class Fleet:
    """Producers and workers on one queue, and what their events say. As a context manager: no process stays.

    url: of the RabbitMQ (several with commas), for every process unless it gets its own. seed: of the random choices.
    """

    def __init__(self, url: str, queue: str, folder: Path, seed: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.url, self.queue, self.folder = url, queue, folder
        self.seed = random.randrange(10**6) if seed is None else seed
        self.dice = random.Random(self.seed)
        self.members: list[Member] = []
        self.confirmed: set[str] = set()
        self.started: dict[str, list[Event]] = defaultdict(list)  # by id, as all that follow
        self.done: Counter[str] = Counter()
        self.failed: dict[str, list[Event]] = defaultdict(list)
        self.dead: dict[str, list[Event]] = defaultdict(list)
        self.faults = 0  # injected, for the table
        self.hosts: dict[str, Sequence[str]] = {}  # by url: what starts a command on the host that reaches it
        self.statuses_allowed: set[int] = set()  # of workers that end by themselves and are replaced
        self._slots: dict[str, tuple[Member, Callable[[], Member]]] = {}
        self._reading: list[Member] = []
        self._names = itertools.count(1)
        self._supervising = True
        self._began = time.monotonic()
        self._declared = 0.0
        self._client = folder / "client.jsonl"

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._supervising = False
        for member in self.members:
            member.close()
        if error is not None:
            print(self.report())  # pytest shows it

    # -- processes

    def start(self, name: str, *argv: str, url: str | None = None, piped: bool = False) -> Member:
        """Start a command of the project (argv: "producer.py", options), followed until it ends."""
        options = ["--queue", self.queue, "--json"]
        address = url or self.url
        prefix = self.hosts.get(address, ())
        member = Member(name, [*argv, *options], self.folder, {"AMQP_URL": address}, piped, prefix)
        self.members.append(member)
        self._reading.append(member)
        return member

    def start_workers(
        self, count: int, *options: str, script: str = "worker.py", url: str | None = None, wait: bool = True
    ) -> list[Member]:
        """Start workers (worker-1 ...), each replaced when it dies: worker-1-2 and so on. wait: until connected."""
        started = []
        for _ in range(count):
            slot = f"worker-{next(self._names)}"
            lives = itertools.count(1)

            def start(slot: str = slot, lives: Iterator[int] = lives) -> Member:
                life = next(lives)
                name = slot if life == 1 else f"{slot}-{life}"
                # With `-m`, a script in a package finds the project's modules; the working folder is the root.
                call = [script] if script.endswith(".py") else ["-m", script]
                return self.start(name, *call, name, *options, url=url)

            member = start()
            self._slots[slot] = (member, start)
            started.append(member)
        if wait:
            self.wait("workers connected", lambda: all(member.having("connected") for member in started))
        return started

    @property
    def workers(self) -> list[Member]:
        """The workers of now, one for each slot."""
        return [member for member, _ in self._slots.values()]

    def produce(
        self, tasks: Iterable[Task], *options: str, wait: bool = False, per_second: float | None = None,
        url: str | None = None,
    ) -> Member:  # fmt: skip
        """Publish tasks with producer.py from a JSON Lines file, or through a pipe at so many a second.

        wait: until it has ended, with status 0.
        """
        name = f"producer-{next(self._names)}"
        lines = [json.dumps(task) + "\n" for task in tasks]
        if per_second is None:
            feed = self.folder / f"{name}.tasks"
            feed.write_text("".join(lines))
            producer = self.start(name, "producer.py", str(feed), *options, url=url)
        else:
            producer = self.start(name, "producer.py", "-", *options, url=url, piped=True)
            threading.Thread(target=_pour, args=(producer, lines, per_second), daemon=True).start()
        if wait:
            self.wait_producers()
        return producer

    def poll(self) -> None:
        """Read what happened; replace workers that died."""
        for member in list(self._reading):
            for event in member.read():
                self._note(event)
            if not member.running:
                for event in member.read():
                    self._note(event)
                self._reading.remove(member)
        if self._supervising:
            for slot, (member, start) in list(self._slots.items()):
                if not member.running:
                    self._slots[slot] = (start(), start)

    def _note(self, event: Event) -> None:
        word, task_id = event["event"], event.get("id")
        if task_id is None:
            return
        if word == "confirmed":
            self.confirmed.add(task_id)
        elif word == "done":
            self.done[task_id] += 1
        elif word in ("started", "failed"):
            (self.started if word == "started" else self.failed)[task_id].append(event)
        elif word == "dead_lettered":
            self.dead[task_id].append(event)

    def tell(self, word: str, **facts: Any) -> None:
        """An event of the test's own client (`confirmed`, say), for the audit."""
        event = {"time": round(time.time(), 3), "event": word, "who": "client", **facts}
        with self._client.open("a") as file:
            file.write(json.dumps(event) + "\n")
        self._note(event)

    # -- waits

    def wait(self, what: str, holds: Callable[[], object], deadline: float = DEADLINE) -> None:
        """Wait until something holds; AssertionError after `deadline` seconds."""
        until = time.monotonic() + deadline
        self.poll()
        while not holds():
            assert time.monotonic() < until, f"within {deadline:.0f} s not: {what}\n{self.counts()}\n{self.report()}"
            time.sleep(LOOK)
            self.poll()

    def wait_producers(self) -> None:
        """Wait until every producer has ended with status 0, and all it published is confirmed."""
        producers = [member for member in self.members if member.name.startswith("producer")]
        self.wait("producers ended", lambda: not any(member.running for member in producers))
        self.poll()
        bad = [producer.report() for producer in producers if producer.wait() != 0 and not producer.killed]
        assert not bad, "\n".join(bad)

    def wait_settled(self) -> None:
        """Wait until the producers have ended and every confirmed task is done or dead."""
        self.wait_producers()
        self.wait("every confirmed task done or dead", lambda: not self.unsettled())

    def wait_done(self, count: int = 0, *ids: str) -> None:
        """Wait until so many tasks are done, and these are."""
        self.wait(f"{count} done, and {ids[:5]}", lambda: len(self.done) >= count and all(self.done[i] for i in ids))

    def wait_event(self, member: Member, *words: str, after: int = 0) -> Event:
        """Wait for one of these events in this process, after its first `after` ones."""

        def found() -> list[Event]:
            return [event for event in member.events[after:] if event["event"] in words]

        self.wait(f"{' or '.join(words)} of {member.name}", found)
        return found()[0]

    def unsettled(self) -> set[str]:
        """Confirmed tasks that no worker has said to be done or dead."""
        return self.confirmed - self.done.keys() - self.dead.keys()

    def declare(self) -> None:
        """Declare both queues, and remember when, for wait_until_safe."""
        with self.channel() as channel:
            for name, arguments in queues.declarations(self.queue):
                channel.queue_declare(name, durable=True, arguments=arguments)
        self.is_new()

    def is_new(self) -> None:
        """The queue is, or its policy: a RabbitMQ that is killed now would have forgotten it."""
        self._declared = time.monotonic()

    def wait_until_safe(self) -> None:
        """Wait until a broker may be killed: some seconds after declare()."""
        assert self._declared, "declare() first"
        self.wait("queue old enough", lambda: time.monotonic() - self._declared > SETTLED)

    # -- faults

    def busy(self) -> list[Member]:
        """Workers in the middle of a task, as far as their logs tell."""
        return [member for member in self.workers if member.running and not member.frozen and member.task]

    def freeze_busy(self, among: Sequence[Member] | None = None) -> Member:
        """SIGSTOP a random worker in the middle of a task: `task` of the one returned is what it holds, for certain.

        Whoever finished while we chose goes on, and another is tried: the log of one that stands still does not lie.
        """
        until = time.monotonic() + DEADLINE
        while True:
            assert time.monotonic() < until, f"no worker is busy\n{self.report()}"
            self.poll()
            candidates = [member for member in self.busy() if among is None or member in among]
            if candidates:
                member = self.dice.choice(candidates)
                if member.freeze():
                    for event in member.read():
                        self._note(event)
                    if member.task:
                        return member
                    member.thaw()
            time.sleep(0.002)

    def kill(self, member: Member) -> None:
        """SIGKILL one process, wait for its end, count the fault; a worker is replaced."""
        member.kill()
        self.faults += 1
        self.poll()

    def kill_busy(self) -> Event:
        """SIGKILL a random worker in the middle of a task. Returns the `started` of the task it died on."""
        member = self.freeze_busy()
        task = member.task
        assert task is not None
        self.kill(member)
        return task

    def wait_taken_over(self, start: Event) -> None:
        """Wait until another worker has the task of this `started`, announced as redelivered."""

        def taken_over() -> bool:
            later = self.started[start["id"]]
            return any(event["redelivered"] and event["who"] != start["who"] for event in later)

        self.wait(f"{start['id']} redelivered", taken_over)

    # -- what happened

    def ended_with(self, status: int) -> list[Member]:
        """The processes that ended with this status (-9: SIGKILL)."""
        return [member for member in self.members if member.process.poll() == status]

    def having(self, word: str, **facts: object) -> list[Event]:
        """The events of this kind that carry these facts, of all processes, in the order of time."""
        found = [event for member in self.members for event in member.having(word, **facts)]
        return sorted(found, key=lambda event: float(event["time"]))

    # -- the end

    @contextlib.contextmanager
    def channel(self, url: str | None = None) -> Iterator[Any]:
        """A raw pika channel to the queue's RabbitMQ."""
        inside.read_any_headers()
        each = [addresses.parameters(address, "test") for address in addresses.parse(url or self.url)]
        connection = pika.BlockingConnection(each)
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()

    def connection(self) -> Connection:
        """One of ours to the queue's RabbitMQ."""
        return connect(addresses.parse(self.url), "test")

    @property
    def version(self) -> str:
        """RabbitMQ's, as in the table: "4.3"."""
        with self.connection() as connection:
            return ".".join(map(str, connection.version[:2]))

    def stop_workers(self) -> None:
        """SIGTERM to every worker; each must end with status 0, and RabbitMQ must see it."""
        # One that is still starting has no say in how it ends yet.
        self.wait("workers connected", lambda: all(w.running and w.having("connected") for w in self.workers))
        self._supervising = False
        workers = self.workers
        for member in workers:
            member.stop()
        self.wait("workers stopped", lambda: not any(member.running for member in workers))
        bad = [worker.report() for worker in workers if worker.wait() != 0]
        assert not bad, "\n".join(bad)
        self._slots.clear()
        self._supervising = True
        self.wait("RabbitMQ knows", lambda: self._consumers() == 0)

    def _consumers(self) -> int:
        with self.channel() as channel:
            return int(channel.queue_declare(self.queue, passive=True).method.consumer_count)

    def ids_left(self) -> list[str]:
        """What is ready in the queue; it stays there."""
        return [letter.id for letter in self._messages(self.queue)]

    def letters(self) -> list[DeadLetter]:
        """The dead letters; they stay where they are."""
        return self._messages(queues.dead(self.queue))

    def _messages(self, queue: str) -> list[DeadLetter]:
        until = time.monotonic() + DEADLINE
        while True:
            try:
                with self.channel() as channel:
                    got = iter(lambda: channel.basic_get(queue), (None, None, None))
                    return [read(0, properties, body or b"") for _, properties, body in got]
            except ConnectionClosedByBroker as error:
                if error.reply_code != 541 or time.monotonic() > until:  # a queue amid an election does not answer
                    raise

    def ends(self, row: str, *, tasks: int | None = None) -> Ending:
        """Wait until all is settled, stop the workers, ask RabbitMQ what is left, audit; then a line of the table.

        tasks: for the table, where not all that was published is a task; else all that was confirmed.

        Asserts the promise: nothing lost, each double announced, each dead letter there with its reason; and that no
        worker died but by our hand, and none wrote a traceback.
        """
        self.wait_settled()
        self.stop_workers()
        left, letters = self.ids_left(), self.letters()
        verdict = self.audit(left, letters)
        print(f"{row}, RabbitMQ {self.version}: {verdict.line()}")
        assert verdict.fine, "\n".join([verdict.line(), *verdict.problems(), self.report()])
        assert all(letter.reason for letter in letters), "dead without a reason"
        vanished = self.dead.keys() - {letter.id for letter in letters}
        assert not vanished, f"said to be dead, and not in the dead-letter queue: {sorted(vanished)[:10]}"
        self._assert_healthy()
        table.record(
            row,
            self.version,
            tasks=verdict.confirmed if tasks is None else tasks,
            faults=self.faults,
            redelivered=verdict.redelivered,
            twice=len(verdict.twice),
            dead=len(letters),
            lost=len(verdict.lost),
            seconds=time.monotonic() - self._began,
        )
        return Ending(verdict, left, letters)

    def audit(self, left: list[str], letters: list[DeadLetter]) -> audit.Verdict:
        """The verdict on all logs. What only RabbitMQ dead-lettered, no worker could tell: it counts as told here."""
        files = [member.log for member in self.members] + [self._client] * self._client.exists()
        told = [
            {"event": "dead_lettered", "who": "rabbitmq", "id": letter.id, "reason": letter.reason}
            for letter in letters
            if letter.id in self.confirmed and letter.id not in self.dead
        ]
        return audit.audit(itertools.chain(logs.read(files), told), left)

    def _assert_healthy(self) -> None:
        for member in self.members:
            assert "Traceback" not in member.errors.read_text(errors="replace"), member.report()
            fine = member.killed or member.wait() in {0, *self.statuses_allowed}
            assert fine, f"died by itself: {member.report()}"

    def counts(self) -> str:
        """Where it stands, in a line."""
        left = sorted(self.unsettled())
        return (
            f"confirmed {len(self.confirmed)}, done {len(self.done)}, dead {len(self.dead)}, faults {self.faults}, "
            f"not settled {len(left)}: {', '.join(left[:5])} (seed {self.seed})"
        )

    def report(self) -> str:
        """For a test that failed: those that run, and the last that ended."""
        ended = [member for member in self.members if not member.running]
        shown = [member for member in self.members if member.running] + ended[-8:]
        return "\n".join([self.counts(), *(member.report() for member in shown)])


def _pour(member: Member, lines: Sequence[str], per_second: float) -> None:
    pipe = member.process.stdin
    assert pipe is not None
    began = time.monotonic()
    with contextlib.suppress(OSError, ValueError):  # it was killed
        for number, line in enumerate(lines):
            time.sleep(max(0.0, began + number / per_second - time.monotonic()))
            pipe.write(line.encode())
            pipe.flush()
        pipe.close()


