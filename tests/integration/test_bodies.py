"""Bodies that are no task, from whatever program: each is dead-lettered with its reason, and the worker goes on."""

from __future__ import annotations

import time
from typing import Any

import pika
import pytest

from tests.integration.test_contract import ALL, declare, publish, publishers, take
from tests.support import Run

GOOD = b'{"id":"good","complexity":0}'
WRONG = {  # what the body is: the body, and what its reason says
    "empty": (b"", "empty"),
    "blank": (b" \r\n", "empty"),
    "not UTF-8": (b'{"id":"\xff","complexity":0}', "not UTF-8 at byte 8"),
    "not JSON": (b"resize cat.png", "not JSON"),
    "cut short": (GOOD[:-1], "not JSON"),
    "two of them": (GOOD * 2, "more follows after its end"),
    "a list": (b"[%s]" % GOOD, "a JSON list, not an object"),
    "a number": (b"7", "a JSON number, not an object"),
    "no id": (b'{"complexity":0}', "has no id"),
    "an id that is no string": (b'{"id":7,"complexity":0}', "its id 7 is not a string"),
    "an id with escape codes": (rb'{"id":"\u001b[2J\u001b]0;owned\u0007","complexity":0}', "not printable"),
    "an id with raw escape codes": (b'{"id":"\x1b[2J","complexity":0}', "not JSON"),
    "an id that turns the text": ('{"id":"\u202egood","complexity":0}'.encode(), "not printable"),
    "an id too long": (b'{"id":"%s","complexity":0}' % (b"x" * 256), "its id has 256 bytes: at most 255"),
    "half a surrogate pair": (rb'{"id":"\ud800","complexity":0}', "surrogate"),
    "NaN": (b'{"id":"a","complexity":NaN}', "NaN is not JSON"),
    "Infinity": (b'{"id":"a","complexity":0,"x":-Infinity}', "-Infinity is not JSON"),
    "too big a number": (b'{"id":"a","complexity":1e999}', "1e999 is too big"),
    "a negative complexity": (b'{"id":"a","complexity":-1}', "its complexity -1"),
    "2 MiB": (b'{"id":"a","complexity":0,"x":"%s"}' % (b"x" * 2**21), "bytes are more than 1,048,576"),
    "a thousand brackets": (b'{"id":"a","complexity":0,"x":%s}' % (b"[" * 1000 + b"]" * 1000), "nested more than 100"),
    "no brackets to match": (b"[" * 1000, "n"),  # not JSON or nested too deep: it depends on Python's version
}
# All that RabbitMQ lets a stranger set. It would refuse another's user_id, and the copy has to live longer than 1 h.
ABOUT = pika.BasicProperties(
    content_type="text/x-odd", content_encoding="none", headers={"mine": "kept", "n": [1, {"x": None}]},
    delivery_mode=1, priority=4, correlation_id="c-1", reply_to="somewhere", expiration="3600000", message_id="m-1",
    timestamp=86_400, type="t", user_id="guest", app_id="stranger", cluster_id="c",
)  # fmt: skip
MOVED = {"expiration": "3600000", "user_id": "guest"}  # to a header


@pytest.mark.parametrize("handler", [False, True], ids=["simulated", "handler"])
def test_what_is_no_task_is_dead_lettered_with_its_reason_and_nothing_else_of_it_changes(
    handler: bool, channel: Any, queue: str, run: Run
) -> None:
    declare(channel, queue)
    before = time.time()
    for body, _ in WRONG.values():
        publish(channel, queue, body, about=ABOUT)
        publish(channel, queue, GOOD)
    worker = run("worker.py", "w", "--drain", "--json", "--queue", queue, *(["--handler", "builtins:len"] * handler))
    assert worker.wait() == 3
    assert worker.err == ""
    assert len(worker.event_list("done", id="good", attempt=1)) == len(WRONG)
    named = [event["id"] for event in worker.event_list("dead_lettered", attempt=1)]
    assert len(named) == len(WRONG) and set(named) == {None, "a"}
    assert worker.events[-1].items() >= {"processed": len(WRONG), "failed": 0, "dead_lettered": len(WRONG)}.items()
    take(channel, queue, 0)

    letters = take(channel, f"{queue}.dead", len(WRONG))
    for (what, (body, reason)), (_, properties, copied), event in zip(
        WRONG.items(), letters, worker.event_list("dead_lettered"), strict=True
    ):
        assert copied == body, what
        headers = publishers(properties.headers)
        told = headers.pop("tareas-reason")
        assert told.startswith("invalid task: ") and reason in told, what
        assert told.isprintable() and len(told) < 200 and event["reason"] == told, what
        assert (headers.pop("tareas-attempts"), headers.pop("tareas-worker")) == (1, "w"), what
        assert before - 0.01 <= float(headers.pop("tareas-time")) <= time.time() + 0.01, what
        assert {headers.pop(f"tareas-{name.replace('_', '-')}") for name in MOVED} == set(MOVED.values()), what
        assert headers == ABOUT.headers, what
        for name in ALL:
            if name != "headers":
                expected = 2 if name == "delivery_mode" else None if name in MOVED else getattr(ABOUT, name)
                assert getattr(properties, name) == expected, (what, name)


@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "terminal"])
def test_no_body_writes_to_the_terminal(tty: bool, channel: Any, queue: str, run: Run) -> None:
    declare(channel, queue)
    publish(channel, queue, *(body for body, _ in WRONG.values()), GOOD)
    worker = run("worker.py", "w", "--drain", "--queue", queue, tty=tty)
    assert worker.wait() == 3
    worker.wait_for(f"1 done, 0 failed, {len(WRONG)} dead-lettered")
    for evil in ("\x1b[2J", "\x1b]", "\x07", "\u202e"):
        assert evil not in worker.out
    if not tty:
        assert all(line.isprintable() and len(line) < 250 for line in worker.lines), worker.lines
        assert len(worker.lines) == len(WRONG) + 4  # connected, started, done, stopped
