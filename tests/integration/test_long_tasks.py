"""Tasks and waits of more than three heartbeats keep their connection: nothing is done twice, nothing is cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.integration.test_contract import declare, ids, take, until
from tests.support import OPEN, ROOT, Run

HEARTBEAT = 2  # seconds
LONG = 8  # seconds: four heartbeats
STRETCH = 2_200_000  # microseconds: more than a heartbeat; RabbitMQ gives up after two to three silent ones

# PyDLL calls C functions without letting go of Python's lock: for so long no other thread runs, heartbeats' included.
HANDLERS = f"""
import ctypes, pathlib, time

def work(task):
    globals()[task["id"]]()

def sleeps():
    time.sleep({LONG})

def computes():
    until = time.monotonic() + {LONG}
    while time.monotonic() < until:
        pass

def holds_the_lock():
    for _ in range(4):
        ctypes.PyDLL(None).usleep({STRETCH})

def fails_at_first():
    tried = pathlib.Path("tried")
    if not tried.exists():
        tried.touch()
        raise ValueError("and rests for long")
"""
ONCE = ("sleeps", "computes", "holds_the_lock")


def test_what_takes_longer_than_three_heartbeats_is_done_once(
    url: str, channel: Any, queue: str, run: Run, tmp_path: Path
) -> None:
    """At the same time: tasks that sleep, compute, and hold Python's lock for longer than a heartbeat again and again;
    a long rest before a second attempt; and a producer whose pipe is silent meanwhile."""
    (tmp_path / "long.py").write_text(HANDLERS)
    declare(channel, queue)  # or five commands at once would, and RabbitMQ may cut one of them off over it
    there = ("--queue", queue, "--json", "--url", f"{url}?heartbeat={HEARTBEAT}")
    call = (ROOT / "worker.py", "--handler", "long:work", "--retry-delay", LONG, *there)
    workers = [run(*call, cwd=tmp_path) for _ in range(4)]
    for worker in workers:
        worker.wait_event("connected")
    producer = run("producer.py", "-", *there, stdin=OPEN)
    for name in (*ONCE, "fails_at_first"):
        producer.send(json.dumps({"id": name}) + "\n")

    def events(word: str, **facts: object) -> list[dict[str, Any]]:
        told = [event for worker in workers for event in worker.event_list(word, **facts)]
        return sorted(told, key=lambda event: float(event["time"]))

    until(lambda: all(events("done", id=name) for name in (*ONCE, "fails_at_first")))
    for name in ONCE:
        (started,) = events("started", id=name)
        assert (started["attempt"], started["redelivered"]) == (1, False)
        (done,) = events("done", id=name)
        assert done["seconds"] >= LONG
    assert events("requeued", id="fails_at_first")[0]["rest"] >= LONG - 0.01
    assert [event["attempt"] for event in events("done", id="fails_at_first")] == [2]
    assert [event["redelivered"] for event in events("started", id="fails_at_first")] == [False, True]

    producer.send('{"id": "last"}\n')
    producer.wait_event("confirmed", id="last")
    producer.close_stdin()
    assert producer.wait() == 0
    assert len(producer.event_list("published")) == 5  # nothing again
    until(lambda: events("failed", id="last"))  # there is no such function
    for worker in workers:
        worker.signal()
        assert worker.wait() == 0
    assert ids(take(channel, queue, 1)) == ["last"]  # all else is acknowledged
    for command in (*workers, producer):
        assert len(command.event_list("connected")) == 1 and not command.event_list("connection_lost")
