"""The chapters of the demo. Each says what is about to happen, makes it happen, and waits until it has."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from tareas.errors import Trouble
from tareas.story.stage import DEADLINE, Actor, Stage
from tareas.story.tasks import LONG, Task, killable, own, shares
from tareas.story.timeline import KILLED, Bar, Event, bars

CHAPTERS = ("kill", "late", "retry", "restart", "poison")
MAX_ATTEMPTS = 4  # the killed worker and the killed broker each spend one
RETRY_DELAY = 0.5  # seconds; with 4 attempts the poison task rests 0.5 + 1 + 2 s
SETTLE = 5.0  # seconds from the declare of a quorum queue to the kill of its broker: before 1 s it may lose messages
WORKED, LEFT = 0.4, 0.3  # seconds of work behind and before a task when we kill its worker
KILLS = 5  # tries to kill a worker in the middle of a task: it may finish just before

T = TypeVar("T")


class Broker(Protocol):
    """What the demo does to a RabbitMQ of its own."""

    def kill(self) -> None: ...
    def start(self) -> None: ...


class Narrator(Protocol):
    """Who tells the story: what happens next, and what came of it. work: the seconds that each task takes."""

    work: dict[str, float]

    def announce(self, sentence: str) -> None: ...
    def paused(self) -> contextlib.AbstractContextManager[None]: ...
    def note(self, sentence: str) -> None: ...


class Story:
    """Some of CHAPTERS on a stage, between `open` and `close`. No task is published twice; each chapter has its own.

    node: the RabbitMQ that may be killed, None when it is not ours. tasks: their ids differ. workers: at first.
    pause: wait for Enter before each chapter.
    """

    def __init__(
        self, stage: Stage, view: Narrator, queue: str, node: Broker | None, *,
        tasks: Sequence[Task], workers: int, chapters: Sequence[str] = CHAPTERS, pause: bool = False,
    ) -> None:
        self.stage = stage
        self.view = view
        self.pause = pause
        self.announce = view.announce
        self.note = view.note
        self.work = view.work
        self.node = node
        self.options = ["--queue", queue]
        self.count = workers
        self.workers: list[Actor] = []
        self.chapters = chapters
        possible = [chapter for chapter in chapters if chapter != "restart" or node]
        self.shares = shares(tasks, possible, workers - ("kill" in chapters))
        self.tasks = {task["id"]: task for share in self.shares.values() for task in share}
        self._published: set[str] = set()
        self.work.update({task_id: task["complexity"] for task_id, task in self.tasks.items()})

    def play(self) -> None:
        """All of it. Raises Missed or Trouble when something does not come out as told, Interrupted after a signal."""
        for chapter in ("open", *self.chapters, "close"):
            if self.pause and chapter != "open":
                with self.view.paused():
                    self.stage.wait_for_enter()
            getattr(self, chapter)()

    # -- chapters

    def open(self) -> None:
        self.announce(f"{self.count} workers connect to RabbitMQ and wait for tasks (basic_consume). Each takes one at"
                      " a time (prefetch 1).")
        for _ in range(self.count):
            self._new_worker()
        self._wait_connected(self.workers)
        first = self.shares["open"]
        what = "1 task" if len(first) == 1 else f"{len(first)} tasks"
        self.announce(f"The producer publishes {what}. RabbitMQ answers for each: it is on disk (publisher confirm)."
                      " From then on it may not be lost.")
        self._publish(first)

    def kill(self) -> None:
        self.announce("A worker dies in the middle of a task: we kill it (SIGKILL), it cannot say goodbye.")
        for _ in range(KILLS):
            if aim := self._wait("a worker in the middle of a task", self._aim):
                victim = next(worker for worker in self.workers if worker.name == aim[0].who)
                self.stage.kill(victim)
                self.workers.remove(victim)
                held = [bar.id for bar in bars(self.stage.events) if bar.who == victim.name and bar.mark == KILLED]
                if held:
                    break
                self._new_worker()  # it had just finished its task: another worker, another try
            self._publish([self._another_long_one()])
        else:
            raise Trouble(f"{KILLS} times no worker could be killed while it held a task")
        self.note(f"{victim.name} is gone, and {held[0]} was never acknowledged (unacked). RabbitMQ sees the"
                  " connection closed, and puts the task back into the queue (requeued).")
        killed = next(event["time"] for event in reversed(self.stage.events) if event["event"] == "killed")
        again = self._wait_event("started", held[0], redelivered=True, since=killed)
        self.note(f"REDELIVERED: RabbitMQ gives {held[0]} to {again['who']}, and says that it did so before"
                  f" (redelivered, attempt {again['attempt']}).")

    def late(self) -> None:
        share = self.shares["late"]
        at_work = min(len(self.workers), len(self.shares["open"]))
        self._wait("the others at work", lambda: len(self._ids("done", "dead_lettered")) >= at_work)
        self.announce("A new worker joins late. It only asks for tasks (basic_consume), nobody has to tell RabbitMQ"
                      f" beforehand. The producer publishes {len(share)} more.")
        worker = self._new_worker()
        self._wait_connected([worker])
        self._publish(share)
        began = self._wait(f"a task for {worker.name}", partial(self._event, "started", who=worker.name))
        self.note(f"SHARED: {worker.name} was given {began['id']}. Whoever is free gets the next task (prefetch 1).")

    def retry(self) -> None:
        failing = self.shares["retry"]
        task_id = failing[0]["id"]
        self.announce(f"{task_id} raises an error at its first attempt. Its worker rests, then gives it back"
                      " (basic_nack with requeue).")
        self._publish(failing)
        self._wait_event("failed", task_id)
        done = self._wait_event("done", task_id)
        self.note(f"RETRIED: {task_id} was delivered again, and done by {done['who']} at attempt {done['attempt']}.")

    def restart(self) -> None:
        if self.node is None:
            self.note("Skipped: RabbitMQ is not killed and restarted, for it is not the demo's own (--url, AMQP_URL).")
            return
        kept = self.shares["restart"]
        declared = self._wait("a connection", partial(self._event, "connected"))["time"]
        self.stage.sleep(max(0.0, declared + SETTLE - time.time()))
        self.announce(f"RabbitMQ itself is killed (SIGKILL), right after it has confirmed {len(kept)} more tasks, and"
                      " started again.")
        self._publish(kept)
        self._wait("the tasks confirmed", lambda: {task["id"] for task in kept} <= self._ids("confirmed"))
        with self.stage.signals.interruptible():
            unfinished = len(self._unfinished())
            self.stage.tell("down", "RabbitMQ")
            down = self.stage.events[-1]["time"]
            self.node.kill()
            self.node.start()
            self.stage.tell("up", "RabbitMQ")
        self._wait_connected(self.workers, since=down)
        self.note("It is back. The queue is still there (durable), and so are the tasks that nobody had acknowledged"
                  f" (persistent): {unfinished}. The workers connected again by themselves.")

    def poison(self) -> None:
        poison = self.shares["poison"]
        task_id = poison[0]["id"]
        self.announce(f"A poison task fails at every attempt, and after each one the worker rests longer. After"
                      f" {MAX_ATTEMPTS} it must bother nobody any more.")
        self._publish(poison)
        dead = self._wait_event("dead_lettered", task_id)
        self.note(f"DEAD LETTER: {task_id} lies in the dead-letter queue after {dead['attempt']} attempts, with its"
                  f" reason: {dead['reason']}")

    def close(self) -> None:
        self.announce("The workers finish what is left, and stop (SIGTERM): each acknowledges the task in its hands"
                      " first (basic_ack).")
        for actor in self.stage.actors:
            if actor.name == "producer":
                self.stage.wait_end(actor)
        self._wait("every confirmed task done or dead", lambda: not self._unfinished())
        for worker in self.workers:
            self.stage.ask_to_stop(worker)
        for worker in self.workers:
            self.stage.wait_end(worker)

    # -- what they share

    def _new_worker(self) -> Actor:
        name = f"worker-{sum(actor.name.startswith('worker') for actor in self.stage.actors) + 1}"
        bounds = ["--max-attempts", str(MAX_ATTEMPTS), "--retry-delay", str(RETRY_DELAY)]
        worker = self.stage.start(name, "worker.py", name, *bounds, *self.options)
        self.workers.append(worker)
        return worker

    def _publish(self, tasks: list[Task]) -> None:
        """Start a producer, and wait for its `finished`: all its events belong to this chapter."""
        self._published |= {task["id"] for task in tasks}
        text = "".join(json.dumps(task) + "\n" for task in tasks)
        before, events = len(self.stage.events), self.stage.events
        self.stage.start("producer", "producer.py", "-", *self.options, text=text, ends=True)
        self._wait("the producer finished", lambda: any(event["event"] == "finished" for event in events[before:]))

    def _another_long_one(self) -> Task:
        task = own(LONG, self.tasks)
        self.tasks[task["id"]] = task
        self.work[task["id"]] = task["complexity"]
        return task

    def _wait(self, what: str, found: Callable[[], T | None], by: Actor | None = None) -> T:
        """As Stage.wait_for, with time for the work of all tasks."""
        return self.stage.wait_for(what, found, by, DEADLINE + sum(self.work.values()))

    def _wait_event(self, word: str, task_id: str, since: float = 0.0, **facts: object) -> Event:
        return self._wait(f"{task_id} {word}", lambda: self._event(word, since, id=task_id, **facts))

    def _wait_connected(self, workers: list[Actor], since: float = 0.0) -> None:
        for worker in workers:
            self._wait(f"{worker.name} connected", partial(self._event, "connected", since, who=worker.name), worker)

    def _event(self, word: str, since: float = 0.0, **facts: object) -> Event | None:
        """The first such event from that moment on (unix seconds)."""
        return next((event for event in self.stage.events if event["event"] == word and event["time"] >= since
                     and facts.items() <= event.items()), None)

    def _aim(self) -> list[Bar] | None:
        """A list of the one attempt to cut short. Empty: there will be none. None: there is none yet."""
        names = {worker.name for worker in self.workers}
        now = time.time()
        ripe = [bar for bar in bars(self.stage.events)
                if bar.end is None and bar.who in names and killable(self.tasks[bar.id])
                and bar.start + WORKED <= now <= bar.start + self.work[bar.id] - LEFT]  # fmt: skip
        if ripe:
            return [max(ripe, key=lambda bar: bar.start + self.work[bar.id])]
        open_ids = self._published - self._ids("done", "dead_lettered")
        return None if any(killable(self.tasks[task_id]) for task_id in open_ids) else []

    def _ids(self, *words: str) -> set[str]:
        return {event["id"] for event in self.stage.events if event["event"] in words}

    def _unfinished(self) -> set[str]:
        return self._ids("confirmed") - self._ids("done", "dead_lettered")

