"""The edge, seen by a letter: what stands in the way of a dead letter and its reason, and what is said of it."""

from __future__ import annotations

import contextlib
import re
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pika
import pytest

from tareas.lab.node import Node
from tareas.rabbit import inside
from tests.conftest import delete_queues
from tests.edges import ONE_VERSION, alarm, one_line, raw, setting
from tests.integration.test_contract import declare, ids, publish, ready, take, until
from tests.node_keeper import SECRET
from tests.support import Command, Run

GOOD = {"id": "good", "complexity": 0}


def letters(channel: Any, queue: str, count: int = 1) -> list[tuple[Any, pika.BasicProperties, bytes]]:
    return take(channel, f"{queue}.dead", count)


def buried(worker: Command, good: bool = True) -> str:
    """The worker has drained the queue: one letter, told, and the good task behind it done. The reason that it told."""
    assert worker.wait() == 3, worker.report()
    (death,) = worker.event_list("dead_lettered")
    assert len(worker.event_list("done", id="good")) == good, worker.report()
    assert len(worker.event_list("connected")) <= 2 and worker.err == "", worker.report()
    return str(death["reason"])


# -- b: a letter that does not fit


@pytest.mark.parametrize("how", ["one channel by the URL", "one channel by the user's limit"])
def test_one_channel_is_enough(how: str, url: str, channel: Any, queue: str, run: Run) -> None:
    """For a dead letter; for a look at the dead letters, and for a replay, whose channels follow each other (too fast
    for the user's limit: RabbitMQ counts down a little late)."""
    user = url.replace("guest:guest", f"single:{SECRET}")
    options = ("--queue", queue, "--url", user if "limit" in how else f"{url}?channel_max=1")
    declare(channel, queue)
    publish(channel, queue, b"no JSON", GOOD)
    reason = buried(run("worker.py", "w", "--drain", "--json", *options))
    assert "invalid task" in reason
    if "limit" in how:
        assert letters(channel, queue)[0][1].headers["tareas-reason"] == reason
        return
    dead = run("admin.py", "dead", *options)
    assert dead.wait() == 0 and reason in dead.out, dead.report()
    replay = run("admin.py", "replay", "--all", *options)
    assert replay.wait() == 0 and "1 replayed" in replay.out, replay.report()
    assert take(channel, queue, 1)[0][2] == b"no JSON"


@pytest.mark.parametrize("frame", [4096, 8192])
def test_headers_are_cut_to_the_frame_that_was_agreed(frame: int, url: str, channel: Any, queue: str, run: Run) -> None:
    """With the reason, they would be longer than a frame; the reason and the body are what counts."""
    narrow = f"{url}?frame_max={frame}"
    declare(channel, queue)
    for size in (frame // 2, frame - 100):
        about = pika.BasicProperties(delivery_mode=2, headers={"long": "x" * size, "short": "kept or named"})
        publish(channel, queue, b"no JSON", about=about)
    publish(channel, queue, GOOD)
    try:
        with raw(narrow):
            pass
    except pika.exceptions.AMQPConnectionError:  # newer versions want 8,192 bytes at least, and hang up without a word
        argv = ("worker.py", "w", "--drain", "--connect-timeout", "0", "--queue", queue, "--url", narrow)
        assert "vhost" not in one_line(run(*argv), 1)
        return
    worker = run("worker.py", "w", "--drain", "--json", "--queue", queue, "--url", narrow)
    assert worker.wait() == 3 and worker.err == "", worker.report()
    assert worker.event_list("done", id="good") and len(worker.event_list("connected")) <= 2, worker.report()
    deaths = worker.event_list("dead_lettered")
    for death, (_, properties, body) in zip(deaths, letters(channel, queue, 2), strict=True):
        assert body == b"no JSON"
        assert properties.headers["tareas-reason"] == death["reason"] and "invalid task" in death["reason"]
    assert properties.headers.get("long") or properties.headers["tareas-dropped"]


def test_a_body_larger_than_rabbitmq_takes_by_now_is_a_dead_letter_as_it_is(killable: Node, run: Run) -> None:
    """RabbitMQ's bound was lowered after the task came: RabbitMQ takes no copy of it, and moves the message itself."""
    queue, body = "edge-shrunk", b"no JSON" + b"x" * 100_000
    with raw(killable.url) as channel:
        declare(channel, queue)
        publish(channel, queue, body, GOOD)
        with setting(killable, "max_message_size", 65_536):
            reason = buried(run("worker.py", "w", "--drain", "--json", "--queue", queue))
            assert "invalid task" in reason and "takes no copy" in reason
            dead = run("admin.py", "dead", "--queue", queue)
            assert dead.wait() == 0 and "takes no copy" in dead.out, dead.report()
        ((_, _, arrived),) = letters(channel, queue)
        assert arrived == body
    delete_queues(killable.url, queue)


# -- d: text that cannot be encoded

HANDLERS = '''
from tareas import Reject

def error(task):
    if task["id"] != "good":
        raise ValueError("cannot read caf\\udce9.txt")

def reject(task):
    if task["id"] != "good":
        raise Reject("cannot read caf\\udce9.txt")

def leave(task):
    if task["id"] != "good":
        raise SystemExit("caf\\udce9.txt")

class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no text")

def silent(task):
    if task["id"] != "good":
        raise Odd
'''


@ONE_VERSION
@pytest.mark.parametrize("how", ["as JSON", "in words"])
@pytest.mark.parametrize("handler", ["error", "reject", "leave", "silent"])
def test_a_reason_that_cannot_be_encoded_arrives_escaped(
    handler: str, how: str, url: str, channel: Any, queue: str, run: Run, tmp_path: Path
) -> None:
    """Python's own stand-in for an undecodable byte of a file name; the task is dead at once, or after its attempts."""
    (tmp_path / "odd_handlers.py").write_text(HANDLERS)
    declare(channel, queue)
    publish(channel, queue, {"id": "bad"}, GOOD)
    argv = ("worker.py", "w", "--drain", "--handler", f"odd_handlers:{handler}", "--queue", queue)
    options = ("--max-attempts", "2", "--retry-delay", "0", *(["--json"] if how == "as JSON" else []))
    worker = run(*argv, *options, env={"PYTHONPATH": str(tmp_path)})
    assert worker.wait() == 3 and worker.err == "", worker.report()
    ((_, properties, _),) = letters(channel, queue)
    reason, attempts = properties.headers["tareas-reason"], properties.headers["tareas-attempts"]
    assert attempts == (1 if handler == "reject" else 2)
    if handler != "silent":
        assert "caf\\udce9.txt" in reason and "caf\\udce9.txt" in worker.out.replace("\\\\", "\\"), reason
    else:
        assert "Odd" in reason
    if how == "as JSON":
        buried(worker)
    else:
        assert "cut off" not in worker.out and worker.out.count("connected") == 1, worker.report()


@ONE_VERSION
def test_half_a_character_in_a_task_is_an_invalid_task(channel: Any, queue: str, run: Run) -> None:
    """JSON can write one; nobody could write it on."""
    declare(channel, queue)
    publish(channel, queue, b'{"id": "caf\\udce9", "complexity": 0}', GOOD)
    worker = run("worker.py", "w", "--drain", "--json", "--queue", queue)
    reason = buried(worker)
    ((_, properties, _),) = letters(channel, queue)
    assert "invalid task" in reason and properties.headers["tareas-reason"] == reason


# -- h: an alarm


def test_a_replay_waits_for_the_end_of_an_alarm_and_nobody_says_none(killable: Node, run: Run) -> None:
    queue = "edge-replay-in-an-alarm"
    short = ("-m", "tests.doctored", "ANSWER_TIMEOUT=2")  # the bound of each call; an alarm stops its clock
    with raw(killable.url) as channel:
        declare(channel, queue)
        publish(channel, f"{queue}.dead", GOOD)
        with alarm(killable):
            replay = run(*short, "admin.py", "replay", "--all", "--queue", queue)
            replay.wait_for("RabbitMQ takes nothing", deadline=15)
            until(lambda: ready(channel, f"{queue}.dead") == 0)
            others = [
                run(*short, "admin.py", *argv, "--queue", queue)
                for argv in (["dead"], ["discard", "--all", "--yes"])
            ]
            for other in others:  # they may end, or wait, but not in silence
                until(lambda other=other: other.lines or not other.running)  # type: ignore[misc]
                assert not {"no dead letters", "0 discarded"} & set(other.lines), other.report()
            began = time.monotonic()  # by now it has been blocked for a while: and for longer than its bound
            until(lambda: not replay.running or time.monotonic() > began + 2.5)
            assert replay.running, replay.report()
        assert replay.wait() == 0, replay.report()
        assert "good  replayed" in replay.lines and "1 replayed" in replay.lines, replay.report()
        assert ids(take(channel, queue, 1)) == ["good"]
        assert ready(channel, f"{queue}.dead") == 0
    delete_queues(killable.url, queue)


def test_a_replay_that_is_stopped_amid_an_alarm_tells_what_it_did(killable: Node, run: Run) -> None:
    """Ctrl+C while RabbitMQ takes nothing: it ends soon, and the letter is where it said: nowhere else, never lost."""
    queue = "edge-stopped-in-an-alarm"
    with raw(killable.url) as channel:
        declare(channel, queue)
        publish(channel, f"{queue}.dead", GOOD)
        with alarm(killable):
            replay = run("admin.py", "replay", "--all", "--queue", queue)
            replay.wait_for("RabbitMQ takes nothing", deadline=15)
            replay.signal(signal.SIGINT)
            assert replay.wait(25) == 130, replay.report()
            assert "good  replayed" not in replay.lines, replay.report()
        # RabbitMQ hears of the end only now, after what was sent before: the letter is back, or a copy is beside it.
        until(lambda: ready(channel, f"{queue}.dead") + ready(channel, queue) >= 1)
        assert ready(channel, f"{queue}.dead") <= 1 and ready(channel, queue) <= 1
    delete_queues(killable.url, queue)


# -- i: the time to acknowledge is over


def test_an_acknowledgement_that_came_too_late_is_said_when_it_happens(
    killable: Node, run: Run, tmp_path: Path
) -> None:
    """By the worker that holds the task, in the event and in the letter that the task becomes."""
    queue, gate = "edge-too-long", tmp_path / "gate"
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(raw(killable.url))
        for name, value in (("channel_tick_interval", 500), ("quorum_tick_interval", 500), ("consumer_timeout", 2000)):
            stack.enter_context(setting(killable, name, value))
        options = ("--handler", "tests.faults.handlers:hold", "--max-attempts", "1", "--drain")
        declare(channel, queue)
        publish(channel, queue, {"id": "held", "complexity": 0, "until": str(gate)}, GOOD)
        worker = run("worker.py", "w", "--json", "--queue", queue, *options)
        worker.wait_event("started", id="held")
        until(lambda: ready(channel, queue) == 2)  # RabbitMQ has taken it back
        # 3.10 and 4.0 close the channel, with their words; 4.3 cancels the consumer, which has none.
        timed_out = re.compile(r"timed out|timeout|too long")
        worker.wait_for(lambda line: '"started"' not in line and timed_out.search(line), deadline=15)
        assert not worker.event_list("discarded") and not worker.event_list("done"), worker.report()
        gate.touch()
        reason = buried(worker)
        assert timed_out.search(reason) and "worker died" not in reason, reason
        assert len(worker.event_list("discarded", id="held")) == 1
        ((_, properties, _),) = letters(channel, queue)
        assert timed_out.search(properties.headers["tareas-reason"])
    delete_queues(killable.url, queue)


# -- j: headers that AMQP knows and pika writes otherwise

FIELDS: dict[str, bytes] = {  # as they stand in a table: type and value
    "half": b"d" + struct.pack(">d", 1.5),
    "tenth": b"d" + struct.pack(">d", 0.1),
    "single": b"f" + struct.pack(">f", 0.25),
    "tiny": b"b" + struct.pack(">b", -5),
    "short": b"s" + struct.pack(">h", -300),
    "int": b"I" + struct.pack(">i", -70_000),
    "long": b"l" + struct.pack(">q", 2**62),
    "yes": b"t\x01",
    "nothing": b"V",
    "money": b"D\x02" + struct.pack(">i", 1999),
    "bytes": b"x" + struct.pack(">I", 3) + b"\x00\xff\x80",
    "latin": b"S" + struct.pack(">I", 4) + b"caf\xe9",
    "when": b"T" + struct.pack(">Q", 1_764_000_000),
}


def table(fields: dict[str, bytes]) -> bytes:
    inside = b"".join(bytes([len(name)]) + name.encode() + field for name, field in fields.items())
    return struct.pack(">I", len(inside)) + inside


def array(*fields: bytes) -> bytes:
    inside = b"".join(fields)
    return b"A" + struct.pack(">I", len(inside)) + inside


HEADERS = FIELDS | {
    "nested": b"F" + table({"deep": FIELDS["half"], "deeper": b"F" + table({"deepest": FIELDS["tenth"]})}),
    "several": array(FIELDS["half"], FIELDS["long"], FIELDS["money"], array(FIELDS["tenth"])),
}


class Foreign(pika.BasicProperties):  # type: ignore[misc]
    """Properties with HEADERS, which pika could not write."""

    def encode(self) -> list[bytes]:
        whole = b"".join(pika.BasicProperties(headers={"it": 1}, delivery_mode=2).encode())
        mark = b"\x02itI\x00\x00\x00\x01"
        assert whole.count(mark) == 1
        return [whole.replace(struct.pack(">I", len(mark)) + mark, table(HEADERS))]


@ONE_VERSION
def test_headers_of_a_foreign_publisher_arrive_unchanged(url: str, channel: Any, queue: str, run: Run) -> None:
    """In the dead letter and in its replay, byte by byte: pika reads and writes some of them as other values."""
    inside.read_any_headers()
    declare(channel, queue)
    publish(channel, queue, b"no JSON", about=Foreign())
    buried(run("worker.py", "w", "--drain", "--json", "--queue", queue), good=False)
    ((_, properties, _),) = letters(channel, queue)
    arrived = inside.fields(properties.headers)
    assert {name: arrived.get(name) for name in HEADERS} == HEADERS and "tareas-dropped" not in arrived
    # A replay of a letter as RabbitMQ makes it, with all that came.
    publish(channel, f"{queue}.dead", b"no JSON", about=Foreign())
    replay = run("admin.py", "replay", "--all", "--queue", queue)
    assert replay.wait() == 0 and "1 replayed" in replay.out and "without" not in replay.out, replay.report()
    ((_, properties, _),) = take(channel, queue, 1)
    assert inside.fields(properties.headers) == HEADERS
