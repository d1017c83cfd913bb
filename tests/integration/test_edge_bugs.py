"""A bug of ours is no lost connection: it ends the program with its one line and status 1, and costs one delivery."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.edges import ONE_VERSION, one_line
from tests.integration.test_contract import declare, ids, publish, ready, take
from tests.support import Command, Run

GOOD, FAILS = {"id": "it", "complexity": 0}, {"id": "it", "complexity": 0, "fail_attempts": 1}


def ended(command: Command, error: str) -> None:
    said = one_line(command, 1)
    assert f"internal error: {error}" in said and "Traceback" not in command.out, command.report()
    told = Counter(event["event"] for event in command.events)
    assert told["connected"] <= 1 and not told["connection_lost"] and not told["waiting"], command.report()


ERRORS = {"boom": "ValueError: boom", "lost": "ConnectionResetError: [Errno 104] boom"}


@ONE_VERSION
@pytest.mark.parametrize(
    ("how", "word", "task"),
    [
        ("boom", "started", GOOD),
        ("boom", "done", GOOD),
        ("lost", "done", GOOD),
        ("boom", "failed", FAILS),
        ("boom", "requeued", FAILS),
        ("boom", "dead_lettered", b"no JSON"),
        ("lost", "dead_lettered", b"no JSON"),
    ],
)
def test_a_bug_ends_a_worker_and_its_task_goes_back_once(
    how: str, word: str, task: Any, channel: Any, queue: str, run: Run
) -> None:
    declare(channel, queue)
    publish(channel, queue, task)
    argv = ("worker.py", "w", "--json", "--retry-delay", "0", "--queue", queue)
    worker = run("-m", "tests.doctored", f"{how}:{word}", *argv)
    ended(worker, ERRORS[how])
    assert len(worker.event_list("started")) == (task is not FAILS and word in ("done",)) + (task is FAILS)
    ((method, properties, body),) = take(channel, queue, 1)
    assert body == (task if isinstance(task, bytes) else json.dumps(task).encode())
    assert method.redelivered and properties.headers["x-delivery-count"] == 1
    assert ready(channel, f"{queue}.dead") == (word == "dead_lettered"), "the letter was confirmed before it was told"


@ONE_VERSION
@pytest.mark.parametrize("how", ERRORS)
@pytest.mark.parametrize("word", ["connected", "published", "confirmed", "finished"])
def test_a_bug_ends_a_producer_and_nothing_is_published_twice(
    how: str, word: str, channel: Any, queue: str, run: Run
) -> None:
    declare(channel, queue)
    argv = ("producer.py", "--count", "5", "--complexity", "0", "--json", "--queue", queue)
    producer = run("-m", "tests.doctored", f"{how}:{word}", *argv)
    ended(producer, ERRORS[how])
    assert not producer.event_list(word)
    published = ids(take(channel, queue, ready(channel, queue)))
    assert len(published) == len(set(published)) and (word != "finished" or len(published) == 5)


@ONE_VERSION
@pytest.mark.parametrize("how", ERRORS)
def test_a_bug_ends_a_replay_and_the_letter_stays(how: str, channel: Any, queue: str, run: Run) -> None:
    """Confirmed and not told: the task is in both queues, done twice perhaps, never lost."""
    declare(channel, queue)
    publish(channel, f"{queue}.dead", GOOD)
    replay = run("-m", "tests.doctored", f"{how}:replayed", "admin.py", "replay", "--all", "--json", "--queue", queue)
    ended(replay, ERRORS[how])
    assert ids(take(channel, queue, 1)) == ids(take(channel, f"{queue}.dead", 1)) == ["it"]
