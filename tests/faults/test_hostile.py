"""Whatever a stranger publishes: bad bodies are dead letters with a reason, good tasks are done, no worker dies."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import pika

from tareas.errors import InvalidTask
from tareas.task import MAX_BYTES, decode
from tests.faults.harness import Fleet, scaled, tasks

NEW_YEAR = datetime(2026, 1, 1, tzinfo=timezone.utc)
MILLISECONDS = int(NEW_YEAR.timestamp() * 1000)  # as a timestamp, which counts seconds: the year 57,970

# Forged counts: a worker that believed them would take a first delivery for the last attempt, or crash over them.
# Not here: a malformed x-death with an expiration, a message that RabbitMQ 3.10.8 itself loses sight of.
HEADERS: dict[str, dict[str, Any]] = {
    "none": {},
    "delivery count": {"x-delivery-count": 1_000},
    "delivery count below zero": {"x-delivery-count": -7},
    "delivery count as text": {"x-delivery-count": "many"},
    "acquired count": {"x-acquired-count": 1_000},
    "acquired count huge": {"x-acquired-count": 2**62},
    "acquired count as a list": {"x-acquired-count": [1, 2, 3]},
    "both counts": {"x-delivery-count": 50, "x-acquired-count": 50},
    "x-death": {
        "x-death": [
            {
                "count": 9,
                "reason": "rejected",
                "queue": "elsewhere",
                "time": NEW_YEAR,
                "exchange": "",
                "routing-keys": ["elsewhere"],
            }
        ]
    },
    "x-death as text": {"x-death": "often"},
    "x-death of numbers": {"x-death": [1, 2, 3]},
    "x-death empty": {"x-death": []},
    "our own marks": {"tareas-reason": "none", "tareas-attempts": "x", "tareas-worker": 7, "tareas-time": "soon"},
    "odd types": {"a": Decimal("1.5"), "b": True, "c": None, "d": [[], {}], "e": b"\x00\xff", "f": {"g": {"h": [1]}}},
    "a date": {"when": NEW_YEAR},
    "odd names": {"": "empty", "x" * 128: "long", "\u202e": "turned", "a\nb": "\x1b[31m"},
    "long": {"long": "x" * 60_000},
    "copies": {"CC": ["nowhere-at-all"], "BCC": ["nowhere-at-all"]},
}
PROPERTIES: list[dict[str, Any]] = [
    {},
    {"delivery_mode": 1},
    {"content_type": "text/plain", "content_encoding": "gzip"},
    {"priority": 255, "timestamp": 2**63},
    {"user_id": "guest", "app_id": "\x1b]0;title\x07", "type": "x" * 255},
    {"reply_to": "nobody", "correlation_id": "\n"},
]


class Hostile(NamedTuple):
    """One message of the stranger's. id: its task's, None for a body that is no task."""

    body: bytes
    properties: pika.BasicProperties
    id: str | None


class Milliseconds(pika.BasicProperties):  # type: ignore[misc]
    """Properties with a header that pika cannot read: a timestamp in milliseconds, as careless programs write it."""

    def encode(self) -> list[bytes]:
        written = b"".join(super().encode())
        assert written.count(b"\x05stampl") == 1
        return [written.replace(b"\x05stampl", b"\x05stampT")]


def test_hostile_bodies_and_headers(fleet: Fleet) -> None:
    """Random and mutated bodies, forged headers and too big ones from a raw client, among a producer's good tasks."""
    messages = list(hostile(fleet.dice, scaled(400, 10_000)))
    good = [message.id for message in messages if message.id is not None]
    bad = {message.properties.message_id: message.body for message in messages if message.id is None}
    ours = tasks(scaled(60, 1000), prefix="ours")
    workers = fleet.start_workers(3, "--retry-delay", "0.05")
    fleet.produce(ours)
    with fleet.channel() as channel:
        channel.confirm_delivery()
        for message in messages:
            channel.basic_publish("", fleet.queue, message.body, message.properties, mandatory=True)
            if message.id is not None:
                fleet.tell("confirmed", id=message.id)
    fleet.faults = len(messages)
    fleet.wait_settled()
    fleet.wait("bad ones dead", lambda: len(fleet.having("dead_lettered")) >= len(bad))
    ending = fleet.ends("hostile bodies and headers", tasks=len(messages) + len(ours))

    assert len(good) > len(HEADERS) and len(bad) > len(messages) / 2, "the mixture is not what it should be"
    assert all(worker.process.returncode == 0 for worker in workers)
    assert len(fleet.members) == len(workers) + 1, "a worker was replaced, so one died"
    assert not fleet.having("connection_lost"), "a message cost a connection"
    assert {task_id: fleet.done[task_id] for task_id in good} == dict.fromkeys(good, 1)
    for task_id in good:
        starts = [event["attempt"] for event in fleet.having("started", id=task_id)]  # in the order of time
        assert starts == ([1, 2] if task_id.startswith("fails-once") else [1]), f"{task_id} {starts}"
    dead = [(letter.properties.message_id, letter.body) for letter in ending.letters]
    assert Counter(name for name, _ in dead) == Counter(bad.keys())
    assert dict(dead) == bad, "a body was changed"
    assert all(letter.properties.headers["tareas-reason"] for letter in ending.letters)
    assert all(letter.properties.expiration is None for letter in ending.letters)
    assert ending.verdict.twice == []


def hostile(dice: random.Random, count: int) -> Iterator[Hostile]:
    """Every header with a good body, one that fails once and a bad one; then random and mutated bodies with any."""
    for number, (name, headers) in enumerate(HEADERS.items()):
        for kind, facts in (("good", {}), ("fails-once", {"fail_attempts": 1}), ("bad", {"complexity": -1})):
            body = json.dumps({"id": f"{kind}-{number}", "complexity": 0, "what": name, **facts}).encode()
            yield message(body, f"{kind}-{number}", headers)
    for number in range(3):
        body = json.dumps({"id": f"unreadable-{number}", "complexity": 0}).encode()
        yield Hostile(body, Milliseconds(message_id=f"m-{number}", headers={"stamp": MILLISECONDS * 10**3}), None)
    biggest = b'{"id": "biggest", "complexity": 0, "pad": "' + b"x" * (MAX_BYTES - 45) + b'"}'
    assert len(biggest) == MAX_BYTES
    for number, body in enumerate((biggest, biggest + b" ", b"x" * (MAX_BYTES + 1), b"[" * MAX_BYTES)):
        yield message(body, f"big-{number}", {})
    # An expiration must not take the dead letter away.
    yield message(b"no task", "expires", {}, expiration="60000")
    seen = {"biggest"}
    for number in range(count):
        name = f"random-{number:05d}"
        body = FIXED[number] if number < len(FIXED) else mutated(dice, name)
        task = decoded(body)
        if task is not None and (task["id"] in seen or not harmless(task)):
            continue  # a mutation made an id twice, or hours of work
        if task is not None:
            seen.add(task["id"])
        yield message(body, name, dice.choice(list(HEADERS.values())), **dice.choice(PROPERTIES))


def message(body: bytes, name: str, headers: dict[str, Any], **properties: Any) -> Hostile:
    task = decoded(body)
    about = pika.BasicProperties(message_id=name, headers=headers or None, **properties)
    return Hostile(body, about, task["id"] if task else None)


def decoded(body: bytes) -> dict[str, Any] | None:
    """The task, if the worker takes this body for one: an odd body may well be valid."""
    try:
        return decode(body)
    except InvalidTask:
        return None


def harmless(task: dict[str, Any]) -> bool:
    return task.get("complexity", 1) <= 0.05 and "fail_attempts" not in task and "crash_attempts" not in task


def mutated(dice: random.Random, name: str) -> bytes:
    """Random bytes, or a good body that was cut, doubled, overwritten."""
    if dice.random() < 0.3:
        return dice.randbytes(dice.randrange(200))
    body = bytearray(json.dumps({"id": name, "complexity": 0.001, "note": "ñ\U0001f600"}).encode())
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        at, until = sorted(dice.randrange(len(body) + 1) for _ in range(2))
        match dice.randrange(5):
            case 0:
                body[at:until] = b""
            case 1:
                body[at:at] = body[at:until]
            case 2:
                body[at:at] = dice.randbytes(1)
            case 3:
                body[at : at + 1] = dice.choice(PIECES)
            case _:
                body[at : at + 1] = dice.randbytes(1)
    return bytes(body)


PIECES = [b"{", b"}", b"[", b'"', b"\\", b"\\ud800", b"null", b"-", b"1e999", b"NaN", b"\x00", b"\xff", b",", b":"]
FIXED = [
    b"",
    b" ",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf" + b'{"id": "bom", "complexity": 0}',
    '{"id": "utf-16", "complexity": 0}'.encode("utf-16"),
    b"null",
    b"true",
    b"0",
    b'"text"',
    b"[]",
    b"{}",
    b"NaN",
    b'{"id": "nan", "complexity": NaN}',
    b'{"id": "infinite", "complexity": Infinity}',
    b'{"id": "huge", "complexity": 1e999}',
    b'{"id": "minus", "complexity": -0.5}',
    b'{"id": "days", "complexity": 100000}',
    b'{"id": "text", "complexity": "1"}',
    b'{"id": "flag", "complexity": true}',
    b'{"id": "nothing", "complexity": null}',
    b'{"complexity": 0}',
    b'{"id": "", "complexity": 0}',
    b'{"id": 7, "complexity": 0}',
    b'{"id": null, "complexity": 0}',
    b'{"id": ["a"], "complexity": 0}',
    b'{"id": "\\u001b[2J", "complexity": 0}',
    b'{"id": "line\\nend", "complexity": 0}',
    b'{"id": "\\u202eturned", "complexity": 0}',
    b'{"id": "\\ud800", "complexity": 0}',
    b'{"id": "half", "complexity": 0, "note": "\\ud800"}',
    b'{"id": "' + b"x" * 256 + b'", "complexity": 0}',
    b'{"id": "digits", "complexity": 0, "n": ' + b"9" * 5000 + b"}",
    b'{"id": "deep", "complexity": 0, "n": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"id": "deep objects", "complexity": 0, "n": ' + b'{"a":' * 500 + b"0" + b"}" * 500 + b"}",
    b'{"id": "cut", "complexity": 0',
    b'{"id": "more", "complexity": 0} {}',
    b'{"id": "fails", "complexity": 0, "fail_attempts": "x"}',
    b'{"id": "crashes", "complexity": 0, "crash_attempts": -1}',
    # Odd, and valid.
    b'\r\n\t {"id": "blanks", "complexity": 0} \n',
    b'{"id": "first", "id": "twice the key", "complexity": 5, "complexity": 0}',
    '{"id": "\u00f1\U0001f600", "complexity": 0}'.encode(),
    b'{"id": "' + b"x" * 255 + b'", "complexity": 0}',
    b'{"id": "zero", "complexity": -0.0}',
    b'{"id": "small", "complexity": 1e-320}',
    b'{"id": "rest", "complexity": 0, "anything": [1, {"a": null}]}',
]
