"""The edge, seen by a producer: what ends it, what it waits for, and that nothing is published twice meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pika
import pytest

from tareas.lab.node import Node
from tests.conftest import delete_queues
from tests.edges import DELIVER, ONE_VERSION, PUBLISH, Link, alarm, jsonl, one_line, raw, setting
from tests.integration.test_contract import consumers, declare, ids, publish, ready, take, until
from tests.support import DEADLINE, OPEN, ROOT, Run

SMALL = [{"id": f"small-{number:03}", "complexity": 0} for number in range(1, 901)]
BIG = {"id": "big", "complexity": 0, "more": "x" * 100_000}
AFTER = [{"id": f"after-{number}", "complexity": 0} for number in range(20)]
MOST = 65_536  # bytes of a message


# -- a: a task that RabbitMQ does not take


@pytest.mark.parametrize("how", ["a file", "a pipe", "the first line"])
def test_a_task_that_is_too_large_for_rabbitmq_ends_the_producer(
    how: str, killable: Node, run: Run, tmp_path: Path
) -> None:
    """The answer to one publish: what is before it is confirmed once, what is after it waits for a person."""
    queue = f"edge-too-large-{len(how)}"
    before = [] if how == "the first line" else SMALL
    text, line = jsonl(*before, BIG, *AFTER), len(before) + 1
    options = ("--json", "--queue", queue)
    with setting(killable, "max_message_size", MOST):
        if how == "a pipe":
            producer = run("producer.py", "-", *options, stdin=OPEN)
            producer.send(text)  # and nobody closes it
        else:
            (tmp_path / "tasks.jsonl").write_text(text)
            producer = run("producer.py", tmp_path / "tasks.jsonl", *options)
        said = one_line(producer, 1)
    for words in ("big", f"line {line}", "larger than configured max size 65536"):
        assert words in said.replace(",", ""), said
    assert re.search(rf"tail -n \+({line}|{line + 1})\b", said), said
    names = {task["id"] for task in before}
    assert Counter(event["id"] for event in producer.event_list("confirmed")) == Counter(names)
    with raw(killable.url) as channel:
        until(lambda: ready(channel, queue) >= len(names))
        publish(channel, queue, b"the end")  # RabbitMQ counts what came before it first
        until(lambda: ready(channel, queue) > len(names))
        assert ready(channel, queue) == len(names) + 1
    delete_queues(killable.url, queue)


# -- c: connections that bring nothing

LOSSES = 8  # connections; the rests between them are some 6 s, at least 4: a quarter second, and half as much again


@pytest.mark.parametrize("command", ["producer.py", "worker.py"])
def test_the_rests_grow_while_connections_bring_nothing(
    command: str, url: str, channel: Any, queue: str, run: Run
) -> None:
    """Each connection gets as far as `connected`, and is lost at the first publish, or amid the first task."""
    declare(channel, queue)
    if command == "worker.py":
        publish(channel, queue, {"id": "task-0001", "complexity": 0.1})
        argv = ["worker.py", "w", "--drain", "--max-attempts", "50"]
    else:
        argv = ["producer.py", "--count", "1", "--complexity", "0"]
    with Link(url, barred=PUBLISH if command == "producer.py" else DELIVER) as link:
        ended = run(*argv, "--json", "--queue", queue, "--url", link.url)
        ended.wait_event("connected", count=LOSSES)
        link.barred = None
        assert ended.wait() == 0, ended.report()
    assert ended.err == "" and len(ended.event_list("confirmed")) == (command == "producer.py"), ended.report()
    assert ready(channel, queue) == (command == "producer.py")
    assert link.began[LOSSES - 1] - link.began[0] >= 3.5, ended.report()


def test_progress_makes_the_rests_short_again(url: str, queue: str, run: Run) -> None:
    """A confirm is progress: the loss after it is a new trouble."""
    with Link(url, barred=PUBLISH) as link:
        producer = run("producer.py", "-", "--json", "--queue", queue, "--url", link.url, stdin=OPEN)
        producer.send(jsonl({"id": "a", "complexity": 0}))
        producer.wait_event("connected", count=LOSSES)
        link.barred = None
        producer.wait_event("confirmed", id="a")
        link.sever()
        producer.wait_event("connection_lost", count=len(link.began))
        assert [event["seconds"] for event in producer.event_list("waiting")][-1] <= 0.25, producer.report()
        producer.send(jsonl({"id": "b", "complexity": 0}))
        producer.wait_event("confirmed", id="b")
        producer.close_stdin()
        assert producer.wait() == 0, producer.report()


# -- k: a stop while an alarm lasts


def test_a_stop_does_not_wait_for_the_end_of_an_alarm(killable: Node, run: Run) -> None:
    """The first signal bounds the wait for the confirms, and says the bound; what is left is said."""
    queue = "edge-stop-in-an-alarm"
    with raw(killable.url) as channel:
        declare(channel, queue)
    with alarm(killable):
        producers = {
            number: run("producer.py", "--count", "5", "--complexity", "0", "--json", "--queue", queue)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        for number, producer in producers.items():
            producer.wait_event("blocked")
            producer.signal(number)
        for number, producer in producers.items():
            assert re.search(r"\b\d+ s\b", producer.wait_event("stopping")["reason"]), producer.report()
            assert producer.wait(25) == 128 + number, producer.report()
            (finished,) = producer.event_list("finished")
            assert (finished["published"], finished["confirmed"]) == (5, 0), producer.report()
            assert not producer.event_list("connection_lost") and producer.err == "", producer.report()
    delete_queues(killable.url, queue)


# -- m: an output whose reader is slow


class Sluggish:
    """A command whose stdout is a pipe in non-blocking mode, as node and some supervisors leave it.

    unbuffered: as $PYTHONUNBUFFERED, which many containers set. Python then drops what the pipe does not take, and says
    nothing.
    """

    def __init__(self, url: str, unbuffered: str, *argv: object) -> None:
        self._source, sink = os.pipe()
        os.set_blocking(sink, False)
        self.process = subprocess.Popen(
            [sys.executable, *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "AMQP_URL": url, "PYTHONUNBUFFERED": unbuffered},
        )
        os.close(sink)

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        """Let it run into the full pipe, and then read it empty: its status, its events, its stderr."""
        assert self.process.stderr
        self.wait_until_full()
        time.sleep(0.5)  # the slowness: whoever does not wait for the reader has lost something by now
        said = b""
        while piece := os.read(self._source, 4096):
            said += piece
        os.close(self._source)
        lines = said.split(b"\n")
        try:
            return self.process.wait(DEADLINE), list(map(json.loads, lines[:-1])), self.process.stderr.read().decode()
        finally:
            self.process.kill()
            self.process.stderr.close()

    def wait_until_full(self) -> None:
        """Until the pipe takes no more of its 65,536 bytes, or the command has ended."""
        end = time.monotonic() + DEADLINE
        while self.process.poll() is None and time.monotonic() < end:
            count = fcntl.ioctl(self._source, termios.FIONREAD, b"\0" * 4)
            if int.from_bytes(count, sys.byteorder) >= 60_000:
                return
            time.sleep(0.01)


@ONE_VERSION
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_producer_with_a_slow_reader_publishes_nothing_twice(
    unbuffered: str, url: str, channel: Any, queue: str, tmp_path: Path
) -> None:
    names = [f"task-{number:04}" for number in range(1500)]
    (tmp_path / "tasks.jsonl").write_text(jsonl(*({"id": name, "complexity": 0} for name in names)))
    argv = ("producer.py", tmp_path / "tasks.jsonl", "--json", "--queue", queue)
    status, events, err = Sluggish(url, unbuffered, *argv).end()
    told = [event["event"] for event in events]
    assert not {"connection_lost", "waiting"} & set(told), told
    assert told.count("connected") == 1
    declare(channel, queue)
    stored = Counter(ids(take(channel, queue, ready(channel, queue))))
    assert set(stored.values()) <= {1}, "published again"
    confirmed = Counter(event["id"] for event in events if event["event"] == "confirmed")
    assert confirmed <= stored
    if status == 0:  # it has waited for the reader
        assert set(stored) == set(confirmed) == set(names) and err == ""
    else:
        assert status == 1 and err.count("\n") == 1 and "the output cannot be written" in err, err


@ONE_VERSION
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_full_queue_and_a_slow_reader_publish_nothing_twice(
    unbuffered: str, url: str, channel: Any, queue: str, tmp_path: Path
) -> None:
    """The error of our own output comes up amid RabbitMQ's answers: refusals, of a queue with room for five."""
    narrow = queue.replace("test-", "test-narrow-")
    names = [f"task-{number:04}-{'x' * 200}" for number in range(40)]
    (tmp_path / "tasks.jsonl").write_text(jsonl(*({"id": name, "complexity": 0} for name in names)))
    declare(channel, narrow)
    fill(channel, narrow)
    producer = Sluggish(url, unbuffered, "producer.py", tmp_path / "tasks.jsonl", "--json", "--queue", narrow)
    stop = threading.Event()
    stored: Counter[str] = Counter()

    def drain() -> None:
        producer.wait_until_full()  # with what is published again and again
        with raw(url) as other:
            while not stop.is_set():
                _, _, body = other.basic_get(narrow, auto_ack=True)
                if body is None:
                    stop.wait(0.01)
                elif body != b"full":
                    stored[json.loads(body)["id"]] += 1

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        status, events, err = producer.end()
    finally:
        stop.set()
        reader.join()
    told = Counter(event["event"] for event in events)
    assert told["connected"] == 1 and not told["connection_lost"] and not told["waiting"], (told, err)
    assert set(stored.values()) <= {1}, "published again"
    if status == 0:
        assert told["confirmed"] == len(names) and err == ""
    else:
        assert status == 1 and err.count("\n") == 1 and "the output cannot be written" in err, err
    delete_queues(url, narrow)


@ONE_VERSION
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_worker_with_a_slow_reader_acknowledges_only_what_it_told(
    unbuffered: str, url: str, channel: Any, queue: str, tmp_path: Path
) -> None:
    declare(channel, queue)
    names = [f"task-{number:03}-{'x' * 200}" for number in range(300)]
    publish(channel, queue, *({"id": name, "complexity": 0} for name in names))
    status, events, err = Sluggish(url, unbuffered, "worker.py", "w", "--drain", "--json", "--queue", queue).end()
    told = Counter(event["event"] for event in events)
    done = {event["id"] for event in events if event["event"] == "done"}
    assert told["connected"] == 1 and not told["connection_lost"] and not told["waiting"], (told, err)
    until(lambda: consumers(channel, queue) == 0)
    left = ids(take(channel, queue, ready(channel, queue)))
    assert done | set(left) == set(names) and len(left) == len(set(left))
    if status == 0:
        assert done == set(names) and err == ""
    else:
        assert status == 1 and err.count("\n") == 1 and "the output cannot be written" in err, err


# -- n: a slow link

RATE = 60_000.0  # bytes a second
BOUND = "ANSWER_TIMEOUT=2"  # seconds; each body takes longer
BODY = "x" * 150_000


def test_large_tasks_go_through_a_slow_link_once(url: str, channel: Any, queue: str, run: Run, tmp_path: Path) -> None:
    """A bound counts from the last byte that moved, so an answer may take as long as the bytes before it need."""
    names = ["large-1", "large-2", "large-3"]
    (tmp_path / "tasks.jsonl").write_text(jsonl(*({"id": name, "complexity": 0, "more": BODY} for name in names)))
    declare(channel, queue)
    with Link(url, RATE) as link:
        argv = ("producer.py", tmp_path / "tasks.jsonl", "--json", "--queue", queue, "--url", link.url)
        producer = run("-m", "tests.doctored", BOUND, *argv)
        assert producer.wait() == 0, producer.report()
    assert [event["id"] for event in producer.event_list("confirmed")] == names, producer.report()
    assert len(link.began) == 1 and producer.err == "", producer.report()
    assert ids(take(channel, queue, len(names))) == names


def test_a_large_dead_letter_goes_through_a_slow_link_once(url: str, channel: Any, queue: str, run: Run) -> None:
    declare(channel, queue)
    body = b"no JSON" + BODY.encode()
    publish(channel, queue, body)
    with Link(url, RATE) as link:
        options = ("--queue", queue, "--url", link.url)
        worker = run("-m", "tests.doctored", BOUND, "worker.py", "w", "--drain", "--json", *options)
        assert worker.wait() == 3, worker.report()
        assert len(link.began) == 1 and worker.err == "", worker.report()
        assert ready(channel, f"{queue}.dead") == 1
        replay = run("-m", "tests.doctored", BOUND, "admin.py", "replay", "--all", *options)
        assert replay.wait() == 0 and "1 replayed" in replay.out, replay.report()
    (task,) = take(channel, queue, 1)
    assert task[2] == body and ready(channel, f"{queue}.dead") == 0


# -- o: an output that fails for a moment


def fill(channel: Any, queue: str) -> None:
    """Until RabbitMQ refuses."""
    with contextlib.suppress(pika.exceptions.NackError):
        while True:
            publish(channel, queue, b"full")


@ONE_VERSION
@pytest.mark.parametrize("how", ["full", "busy"])
@pytest.mark.parametrize("word", ["connected", "published", "confirmed", "refused", "finished"])
def test_the_first_event_that_cannot_be_told_ends_the_producer(
    word: str, how: str, url: str, channel: Any, queue: str, run: Run
) -> None:
    """Wherever it happens, also amid RabbitMQ's answers. A disk that would take the next line changes nothing; a pipe
    that had no room for a moment gets the line then."""
    name = queue.replace("test-", "test-narrow-") if word == "refused" else queue
    declare(channel, name)
    if word == "refused":
        fill(channel, name)
    argv = ("producer.py", "--count", "20", "--complexity", "0", "--json", "--queue", name)
    producer = run("-m", "tests.doctored", f"{how}:{word}", *argv)
    if how == "busy":  # a moment later there is room: nothing is missing
        if word == "refused":  # the queue stays full
            producer.wait_event("refused")
            return
        assert producer.wait() == 0 and producer.err == "", producer.report()
        told = Counter(event["event"] for event in producer.events)
        assert told["confirmed"] == 20 and told[word] >= 1 and not told["connection_lost"], producer.report()
        return
    said = one_line(producer, 1)
    assert "the output cannot be written" in said, said
    told = Counter(event["event"] for event in producer.events)
    assert not told["connection_lost"] and told["connected"] <= 1, producer.report()
    assert told[word] <= 1, "it went on after the event that was not told"
    if name != queue:
        delete_queues(url, name)
