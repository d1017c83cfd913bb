"""The tasks of the demo: from a file, or samples; which chapter publishes which; and the few of its own."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from tareas.errors import InvalidTask, WrongCall
from tareas.task import decode, sample
from tareas.text import quoted
from tareas.work.sources import File, open_source

Task = dict[str, Any]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "tasks.jsonl"
SAMPLES = 12
MOST = 1000
KEPT = 4  # tasks published just before RabbitMQ is killed, so that it dies with work in the queue
KILLABLE = 1.0  # seconds that a task must take for its worker to be killed in the middle of it

LONG: Task = {"id": "long", "complexity": 1.5, "note": "long enough to kill its worker in the middle"}
FAILS_ONCE: Task = {"id": "fails-once", "complexity": 0.6, "fail_attempts": 1}
POISON: Task = {"id": "poison", "complexity": 0.3, "fail_attempts": 1000, "note": "fails at every attempt"}
EXTRA: Task = {"id": "extra", "complexity": 0.4}


def read(name: str) -> list[Task]:
    """The tasks of a JSON Lines file. Raises WrongCall with the line that the demo cannot use."""
    source = open_source(name)
    if not isinstance(source, File):
        raise WrongCall(f"{quoted(name)} is no file: the demo has to know all its tasks beforehand")
    tasks: dict[str, Task] = {}
    while (item := source.take()) is not None:
        where = f"{source.name}, line {source.line}"
        try:
            task = decode(item.body)
        except InvalidTask as error:
            raise WrongCall(f"{where}: {error}") from None
        if "complexity" not in task:
            raise WrongCall(f'{where}: has no complexity: add "complexity": SECONDS, for the demo has no other work')
        if item.id in tasks:
            raise WrongCall(f"{where}: the id {quoted(item.id)} is there already, and the demo tells tasks apart by it")
        if task.get("crash_attempts"):
            raise WrongCall(f"{where}: crash_attempts ends workers that the demo needs: leave it out")
        tasks[item.id] = task
        if len(tasks) > MOST:
            raise WrongCall(f"{source.name} has more than {MOST:,} tasks: the demo is no place for them")
    if not tasks:
        raise WrongCall(f"{source.name} has no task in it")
    return list(tasks.values())


def samples(count: int = SAMPLES, seed: int | None = None) -> list[Task]:
    """The tasks that `producer.py --count N --seed N` makes."""
    return list(sample(count, seed=seed))


def own(task: Task, taken: Container[str]) -> Task:
    """A copy of one of ours, under an id that is not taken."""
    name, number = task["id"], 1
    while name in taken:
        number += 1
        name = f"{task['id']}-{number}"
    return {**task, "id": name}


def shares(tasks: Sequence[Task], chapters: Sequence[str], workers: int) -> dict[str, list[Task]]:
    """The tasks that each chapter publishes, "open" being the first. Where a chapter needs more, it gets some of ours.

    workers: how many there are when the chapter "late" begins.
    """
    left = list(tasks)
    taken = {task["id"] for task in tasks}

    def add(task: Task) -> Task:
        named = own(task, taken)
        taken.add(named["id"])
        return named

    def last(count: int) -> list[Task]:
        start = max(len(left) - count, 1)  # at least one stays for "open"
        found = left[start:]
        del left[start:]
        return found + [add(EXTRA) for _ in range(count - len(found))]

    found: dict[str, list[Task]] = {}
    if "retry" in chapters:
        failing = next((task for task in left if task.get("fail_attempts") == 1), None)
        if failing and len(left) > 1:
            left.remove(failing)
            found["retry"] = [failing]
        else:
            found["retry"] = [add(FAILS_ONCE)]
    if "restart" in chapters:
        found["restart"] = last(KEPT)
    if "late" in chapters:
        found["late"] = last(workers + 1)
    if "poison" in chapters:
        found["poison"] = [add(POISON)]
    if "kill" in chapters and not any(killable(task) for task in left):
        left.insert(0, add(LONG))
    found["open"] = left
    return found


def killable(task: Task) -> bool:
    """Whether it takes long enough, and does not fail by itself."""
    return bool(task["complexity"] >= KILLABLE) and not task.get("fail_attempts")
