"""The chapters of the demo. Each says what is about to happen, makes it happen, and waits until it has."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tareas.cli import Trouble
from tareas.story.stage import HERE, Actor, Stage
from tareas.story.timeline import KILLED, Bar, Event, bars

TASKS = HERE / "examples" / "tasks.jsonl"
WORKERS = 3
MAX_ATTEMPTS = 4  # the killed worker and the killed broker each spend one
RETRY_DELAY = 0.5  # seconds; with 4 attempts the poison task rests 0.5 + 1 + 2 s
SETTLE = 5.0  # seconds between declaring a quorum queue and killing its broker: younger than 1 s, it can lose messages
WORTH_KILLING = 0.7  # seconds of work a task must have left when we kill its worker
KEPT = 4  # tasks published just before RabbitMQ is killed, so that it dies with work in the queue
KILLS = 5  # tries to hit a worker in the middle of a task: it may finish while we take aim
POISON: dict[str, Any] = {"id": "poison", "complexity": 0.3, "fail_attempts": 1000, "note": "fails at every attempt"}
DRAIN = 180.0  # seconds


class Broker(Protocol):
    """What the demo does to a RabbitMQ of its own."""

    def kill(self) -> None: ...
    def start(self) -> None: ...


class Narrator(Protocol):
    """Who tells the story: what happens next, and what came of it."""

    def announce(self, sentence: str) -> None: ...
    def note(self, sentence: str) -> None: ...


class Story:
    """Chapters on a stage, in the order in which demo.py calls them; `open` is the first and `close` the last.

    view: tells them. node: the RabbitMQ that may be killed, None when it is not ours. tasks: a JSON Lines file.
    """

    def __init__(self, stage: Stage, view: Narrator, queue: str, node: Broker | None, tasks: Path = TASKS) -> None:
        self.stage = stage
        self.announce = view.announce
        self.note = view.note
        self.node = node
        self.options = ["--queue", queue]
        self.workers: list[Actor] = []
        self.tasks: dict[str, dict[str, Any]] = {}
        self.killed = ""  # the task that was in the killed worker's hands
        try:
            for line in tasks.read_text(encoding="utf-8").splitlines():
                task = json.loads(line)
                self.tasks[task["id"]] = task
        except (OSError, ValueError, KeyError) as error:
            raise Trouble(f"{tasks} cannot be used: {error} (it comes with the project: get it again)") from None
        self._file = tasks
        self._kept: list[dict[str, Any]] = []

    @property
    def work(self) -> dict[str, float]:
        """The seconds each task takes, as far as its author knows."""
        return {task_id: task["complexity"] for task_id, task in self.tasks.items()} | {"poison": POISON["complexity"]}

    # -- chapters

    def open(self, restart: bool = True) -> None:
        """restart: a chapter in which RabbitMQ is killed is to come."""
        self.announce(f"{WORKERS} workers connect to RabbitMQ and wait; each takes one task at a time (prefetch 1).")
        for _ in range(WORKERS):
            self._new_worker()
        self._wait_connected(self.workers)
        self._kept = list(self.tasks.values())[-KEPT:] if restart and self.node else []
        first = list(self.tasks.values())[: len(self.tasks) - len(self._kept)]
        self.announce(f"The producer publishes {len(first)} tasks: what RabbitMQ has confirmed is on its disk, and may"
                      " not be lost any more.")
        self._publish(first)

    def kill(self) -> None:
        self.announce("A worker dies in the middle of a task: we kill it with SIGKILL, it cannot say goodbye.")
        for _ in range(KILLS):
            aim = self.stage.wait_for("a worker with a task in hand", self._worth_killing)
            victim = next(worker for worker in self.workers if worker.name == aim.who)
            self.stage.kill(victim)
            self.workers.remove(victim)
            held = [bar for bar in bars(self.stage.events) if bar.who == victim.name and bar.mark == KILLED]
            if held:
                break
            self._new_worker()  # it had just finished: no harm done, and nothing shown
        else:
            raise Trouble(f"{KILLS} workers were killed, and none of them while it held a task")
        self.killed = held[0].id
        self.note(f"{victim.name} is gone and {self.killed} was never acknowledged (unacked): RabbitMQ sees the"
                      " connection close and puts the task back into the queue.")
        again = self.stage.wait_for(f"{self.killed} redelivered to another worker", self._redelivered)
        self.note(f"REDELIVERED: {self.killed} went from {victim.name} to {again['who']}"
                      f" (attempt {again['attempt']}, redelivered).")

    def restart(self) -> None:
        if self.node is None:
            self.note("Skipped: RabbitMQ is not killed and restarted, for it is not the demo's own (--url, AMQP_URL).")
            return
        declared = next(event["time"] for event in self.stage.events if event["event"] == "connected")
        self.stage.sleep(max(0.0, declared + SETTLE - time.time()))
        self.announce(f"RabbitMQ itself is killed, right after confirming {len(self._kept)} more tasks, and started"
                      " again.")
        self._publish(self._kept)
        self.stage.wait_for("the tasks confirmed", lambda: {t["id"] for t in self._kept} <= self._ids("confirmed"))
        unfinished = len(self._unfinished())
        with self.stage.signals.interruptible():
            self.stage.tell("down", "RabbitMQ")
            self.node.kill()
            self.node.start()
            self.stage.tell("up", "RabbitMQ")
        up = next(event["time"] for event in reversed(self.stage.events) if event["event"] == "up")
        self._wait_connected(self.workers, since=up)
        self.note(f"It is back with its queue (durable) and the {unfinished} tasks that were not acknowledged"
                  " (persistent); the workers connected again by themselves.")

    def late(self) -> None:
        self.announce("A new worker joins late and gets its share at once: nobody has to tell RabbitMQ beforehand.")
        worker = self._new_worker()
        self._wait_connected([worker])

    def retry(self) -> None:
        task_id = self._task_that_fails_once()
        if not task_id:
            raise Trouble(f"no task in {self._file} fails once and then succeeds (fail_attempts)")
        self.announce(f"{task_id} raises an error at its first attempt: the worker rests, then gives it back"
                      " (basic_nack with requeue).")
        self.stage.wait_for(f"{task_id} fail", lambda: self._event("failed", task_id))
        done = self.stage.wait_for(f"{task_id} done", lambda: self._event("done", task_id))
        self.note(f"RETRIED: {task_id} was done by {done['who']} at attempt {done['attempt']}.")

    def poison(self) -> None:
        task_id = POISON["id"]
        self.announce(f"A poison task fails at every attempt: after {MAX_ATTEMPTS} of them it must not bother the"
                      " workers any more.")
        self._publish([POISON])
        dead = self.stage.wait_for(f"{task_id} dead-lettered", lambda: self._event("dead_lettered", task_id))
        self.note(f"DEAD LETTER: {task_id} lies in the dead-letter queue after {dead['attempt']} attempts, with its"
                      f" reason: {dead['reason']}")

    def close(self) -> None:
        self.announce("The workers finish what is left, and stop (SIGTERM): each ends after the task in its hands.")
        for actor in self.stage.actors:
            if actor.name == "producer":
                self.stage.wait_end(actor)
        self.stage.wait_for("every confirmed task done or dead", lambda: not self._unfinished(), seconds=DRAIN)
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

    def _publish(self, tasks: list[dict[str, Any]]) -> None:
        """Start a producer, and wait for nothing: the workers may be in the middle of its tasks when it ends."""
        text = "".join(json.dumps(task) + "\n" for task in tasks)
        self.stage.start("producer", "producer.py", "-", *self.options, text=text, ends=True)

    def _wait_connected(self, workers: list[Actor], since: float = 0.0) -> None:
        for worker in workers:
            self.stage.wait_for(f"{worker.name} connected", partial(self._is_connected, worker.name, since), worker)

    def _is_connected(self, name: str, since: float) -> bool:
        return any(e["event"] == "connected" and e["who"] == name and e["time"] >= since for e in self.stage.events)

    def _event(self, word: str, task_id: str) -> Event | None:
        return next((e for e in self.stage.events if e["event"] == word and e.get("id") == task_id), None)

    def _redelivered(self) -> Event | None:
        killed = next(e["time"] for e in reversed(self.stage.events) if e["event"] == "killed")
        return next((e for e in self.stage.events if e["event"] == "started" and e["id"] == self.killed
                     and e["redelivered"] and e["time"] >= killed), None)

    def _worth_killing(self) -> Bar | None:
        """The attempt that has the most work left, if that is enough to hit it; not one that is to fail by itself."""
        names = {worker.name for worker in self.workers}
        now = time.time()
        left = [
            (bar.start + self.tasks.get(bar.id, POISON)["complexity"] - now, bar)
            for bar in bars(self.stage.events)
            if bar.end is None and bar.who in names and not self.tasks.get(bar.id, POISON).get("fail_attempts")
        ]
        seconds, best = max(left, key=lambda pair: pair[0], default=(0.0, None))
        return best if seconds >= WORTH_KILLING else None

    def _task_that_fails_once(self) -> str | None:
        return next((i for i, task in self.tasks.items() if 0 < task.get("fail_attempts", 0) < MAX_ATTEMPTS - 2), None)

    def _ids(self, *words: str) -> set[str]:
        return {event["id"] for event in self.stage.events if event["event"] in words}

    def _unfinished(self) -> set[str]:
        return self._ids("confirmed") - self._ids("done", "dead_lettered")
