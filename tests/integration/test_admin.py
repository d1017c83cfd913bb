"""admin.py as a person runs it, on a real RabbitMQ: whatever is done to a dead letter, it is never lost."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import NackError

import admin
from tareas.lab.node import Node
from tareas.lab.programs import Programs
from tareas.rabbit import addresses, inside, letterbox, letters, queues
from tareas.rabbit.connect import connect
from tareas.task import encode
from tests.integration.test_contract import declare
from tests.support import raw_connection

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 90.0  # seconds, for a busy machine
FRAME = 131_072  # bytes of the longest frame that RabbitMQ agrees to


class Place:
    """A fresh work queue with its dead-letter queue, and a channel to both."""

    def __init__(self, url: str, queue: str) -> None:
        inside.read_any_headers()
        self.url, self.queue = url, queue
        self.connection = raw_connection(addresses.parameters(addresses.parse(url)[0], "test"))
        self.channel = self.connection.channel()
        declare(self.channel, queue)
        self.channel.confirm_delivery()

    def bury(self, *ids: str, **properties: Any) -> None:
        """Dead-letter tasks of these ids, as a worker does."""
        for name in ids:
            about = pika.BasicProperties(message_id=name, content_type="application/json", **properties)
            copy = letters.copy_of(about, f"{name} went wrong", 5, "w-1", FRAME)
            self.channel.basic_publish("", queues.dead(self.queue), encode({"id": name}), copy, mandatory=True)

    def publish(self, body: bytes, dead: bool = False, **properties: Any) -> None:
        key = queues.dead(self.queue) if dead else self.queue
        self.channel.basic_publish("", key, body, pika.BasicProperties(delivery_mode=2, **properties), mandatory=True)

    def call(self, *argv: str) -> list[str]:
        return [sys.executable, "admin.py", *argv, "--queue", self.queue, "--url", self.url]

    def admin(self, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.call(*argv), cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and done.stderr.count("\n") <= 1
        return done

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.call(*argv), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def dead(self) -> list[str]:
        """The ids of the dead letters, in order, which stay."""
        return self._ids(queues.dead(self.queue))

    def stay(self, ids: list[str]) -> None:
        """These, in order, are the dead letters once those that were held are back (who looks sooner takes some out,
        and mixes them)."""
        self.until(lambda: self.counts(queues.dead(self.queue)).message_count == len(ids))
        assert self.dead() == ids

    def tasks(self) -> list[str]:
        """The ids of the tasks in the queue, in order, which stay."""
        return self._ids(self.queue)

    def _ids(self, name: str) -> list[str]:
        with contextlib.closing(self.connection.channel()) as channel:
            got = list(iter(lambda: channel.basic_get(name), (None, None, None)))
        self.until(lambda: self.counts(name).message_count >= len(got))
        return [letters.read(0, properties, body or b"").id for _, properties, body in got]

    def counts(self, name: str) -> Any:
        return self.channel.queue_declare(name, passive=True).method

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not holds():
            assert time.monotonic() < end
            self.connection.sleep(0.05)


@pytest.fixture
def place(url: str, queue: str) -> Iterator[Place]:
    made = Place(url, queue)
    yield made
    made.connection.close()


def listed(text: str) -> list[str]:
    return [line.split("  ")[0] for line in text.splitlines() if "  dead" in line]


IDS = [f"task-{n}" for n in range(5)]


def test_looking_often_loses_nothing_and_keeps_the_order(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.bury(*IDS)
    for _ in range(22):  # RabbitMQ 4.0 drops a message at the 21st look unless the queue allows more
        assert admin.main(place.call("dead")[2:]) == 0  # a connection each, but no process
        assert listed(capsys.readouterr().out) == IDS
    place.admin("replay", "--all")
    assert (place.tasks(), place.dead()) == (IDS, [])


def test_a_look_at_some_keeps_the_order_of_all(place: Place) -> None:
    place.bury(*IDS)
    for _ in range(3):
        shown = place.admin("dead", "--limit", "2").stdout
        assert listed(shown) == IDS[:2] and "3 more" in shown
        place.admin("replay", "nobody", code=1)
    assert place.dead() == IDS


def test_more_letters_than_one_consumer_may_hold_are_all_seen_and_keep_their_order(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letterbox, "HELD", 2)
    place.bury(*IDS)
    for _ in range(3):
        with connect(addresses.parse(place.url), "test") as connection:
            assert [each.id for each in letterbox.look(connection, place.queue)] == IDS
            letterbox.give_back(connection, place.queue, len(IDS))


def test_the_list_says_why_when_who_and_how_often(place: Place) -> None:
    place.bury("task-1")
    shown = place.admin("dead").stdout
    assert f"task-1  dead {datetime.now():%Y-}" in shown
    assert " by w-1 after 5 attempts, 15 bytes\n    task-1 went wrong\n" in shown


def test_what_rabbitmq_dead_letters_itself_has_its_reason_and_comes_back_clean(place: Place) -> None:
    place.publish(encode({"id": "rejected"}), headers={"mine": "kept"})
    method, _, _ = place.channel.basic_get(place.queue)
    place.channel.basic_reject(method.delivery_tag, requeue=False)
    place.publish(encode({"id": "expired"}), expiration="1")
    place.until(lambda: sorted(place.dead()) == ["expired", "rejected"])
    shown = place.admin("dead").stdout
    for name in ("expired", "rejected"):
        assert f"    RabbitMQ: {name}, in queue {place.queue}\n" in shown
    assert "expired  replayed (without its expiration of 1 ms)" in place.admin("replay", "--all").stdout
    found = {}
    while (got := place.channel.basic_get(place.queue, auto_ack=True))[0] is not None:
        found[json.loads(got[2])["id"]] = got[1]
        got[1].headers = got[1].headers or {}
    for properties in found.values():
        properties.headers.pop("x-delivery-count", None)  # RabbitMQ 3.10 says 0 to basic_get
    assert found["rejected"].headers == {"mine": "kept"}
    assert found["expired"].headers == {} and found["expired"].expiration is None


class Far(pika.BasicProperties):  # type: ignore[misc]
    """Properties with a timestamp header that pika can send and not read."""

    def encode(self) -> list[bytes]:
        return [b"".join(super().encode()).replace(b"x\0\0\0\4FAR!", b"T" + (2**60).to_bytes(8, "big"))]


def test_hostile_messages_are_shown_harmlessly_and_discarded_or_replayed_as_they_are(place: Place) -> None:
    bodies = [b"", b"\x1b[2J\x00\xff", b"[]", "\u202e".encode() * 10_000, b'{"id":"far"}']
    for body in bodies[:-1]:
        place.publish(body, dead=True, message_id="\x1b]0;owned\x07", headers={"tareas-reason": "\x1b[31mred\nno"})
    far = Far(headers={"when": b"FAR!"}, user_id="guest")
    place.channel.basic_publish("", queues.dead(place.queue), bodies[-1], far, mandatory=True)
    shown = place.admin("dead").stdout
    assert all(line.isprintable() for line in shown.splitlines()) and len(shown) < 4000
    assert "\\x1b[31mred\\nno" in shown and "the headers cannot be read" in shown
    lines = place.admin("dead", "--json")
    assert [json.loads(line)["id"] for line in lines.stdout.splitlines()] == ["far"]
    assert "4 left out that are no tasks" in lines.stderr
    names = listed(shown)
    assert len(set(names)) == 5
    discarded = json.loads(place.admin("discard", names[1], "--yes", "--json").stdout)
    assert discarded["dead_letter"] == {"id": names[1], "reason": "\x1b[31mred\nno", "attempts": None, "worker": None,
                                        "time": None, "body": "G1sySgD/"}
    assert "far  replayed (without its user_id guest and its headers" in place.admin("replay", "--all").stdout
    assert place.tasks() == [names[0], *names[2:]] and place.dead() == []


def test_letters_of_the_same_id_are_all_replayed(place: Place) -> None:
    place.bury("a", "b", "a")
    assert "2 replayed" in place.admin("replay", "a").stdout
    assert (place.tasks(), place.dead()) == (["a", "a"], ["b"])


def test_a_missing_id_is_said_and_the_others_are_replayed(place: Place) -> None:
    place.bury("a", "b")
    assert "no dead letter 'zz' in queue" in place.admin("replay", "zz", "b", code=1).stderr
    assert (place.tasks(), place.dead()) == (["b"], ["a"])


def test_a_replay_killed_between_confirm_and_ack_is_done_twice_and_not_lost(place: Place) -> None:
    place.bury("a", "b")
    dying = ("import os, sys, admin\n"
             "from tareas.rabbit.connection import Connection\n"
             "Connection.basic_ack = lambda *a, **k: os.kill(os.getpid(), 9)\n"
             "admin.main(sys.argv[1:])")
    argv = [sys.executable, "-c", dying, *place.call("replay", "--all")[2:]]
    died = subprocess.run(argv, cwd=ROOT, timeout=DEADLINE, capture_output=True, text=True)
    assert (died.returncode, died.stdout) == (-signal.SIGKILL, "a  replayed\n")  # told before the letter goes
    place.stay(["a", "b"])
    assert place.tasks() == ["a"]
    place.admin("replay", "--all")
    assert (place.tasks(), place.dead()) == (["a", "a", "b"], [])


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["replay", "discard"])
def test_killed_in_the_middle_what_is_not_settled_stays(place: Place, command: str, signum: signal.Signals) -> None:
    ids = [f"task-{n}" for n in range(200)]
    place.bury(*ids)
    process = place.start(command, "--all", *["--yes"] * (command == "discard"), "--json")
    assert process.stdout and process.stderr
    said = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signum)
    said += process.stdout.readlines()  # communicate() would miss what readline() has read ahead
    errors = process.stderr.read()
    process.wait(DEADLINE)
    assert process.returncode == {signal.SIGINT: 130}.get(signum, -signum), errors
    assert "Traceback" not in errors
    process.stdout.close()
    process.stderr.close()
    settled = [json.loads(line)["id"] for line in said]
    # What it held comes back when RabbitMQ sees that it is gone. What was deleted was told before.
    place.until(lambda: {*place.dead(), *(place.tasks() if command == "replay" else settled)} == set(ids))
    assert place.dead()
    assert len(place.tasks()) + len(place.dead()) <= len(ids) + 1


def test_a_full_queue_is_said_and_the_letters_stay(place: Place) -> None:
    place.channel.queue_delete(place.queue)
    full = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    place.channel.queue_declare(place.queue, durable=True, arguments=full)
    place.bury(*IDS)
    with pytest.raises(NackError):
        for _ in range(1000):
            place.publish(encode({"id": "filling"}))
    done = place.admin("replay", "--all", code=1)
    assert "is full: 'task-0' and those after it stay dead letters" in done.stderr and done.stdout == ""
    place.stay(IDS)


def test_without_a_work_queue_the_letters_stay(place: Place) -> None:
    place.bury(*IDS)
    place.channel.queue_delete(place.queue)
    assert "there is no queue" in place.admin("replay", "--all", code=1).stderr
    place.stay(IDS)


def test_the_lines_of_dead_go_back_through_the_producer(place: Place) -> None:
    place.bury(*IDS)
    place.publish(b"no task", dead=True)
    lines = place.admin("dead", "--json").stdout
    back = subprocess.run([sys.executable, "producer.py", "-", "--queue", place.queue, "--url", place.url], cwd=ROOT,
                          input=lines, capture_output=True, text=True, timeout=DEADLINE)
    assert back.returncode == 0, back.stdout + back.stderr
    assert place.tasks() == IDS


def test_a_reader_that_leaves_takes_no_letter_with_it(place: Place) -> None:
    place.bury(*IDS)
    process = place.start("discard", "--all", "--yes")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(DEADLINE) == 1
    assert process.stderr.read() == ""
    process.stderr.close()
    place.stay(IDS)


def at_terminal(place: Place, *argv: str, answer: Callable[[], bytes]) -> tuple[int, str]:
    """Run admin.py with a terminal as stdin and answer its question; its exit status and what it said."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(place.call(*argv), cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert process.stderr is not None
    question = ""
    while not question.endswith("[y/N] "):
        letter = process.stderr.read(1)
        assert letter, question
        question += letter
    os.write(ours, answer())
    out, err = process.communicate(timeout=DEADLINE)
    os.close(ours)
    return process.returncode, question + out + err


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"\x04"])
def test_a_discard_asks_and_takes_only_yes(place: Place, answer: bytes) -> None:
    place.bury("a", "b")
    code, said = at_terminal(place, "discard", "a", answer=lambda: answer)
    assert code == 1 and "'a'? [y/N]" in said and "nothing is deleted" in said
    assert place.dead() == ["a", "b"]


def test_a_discard_takes_no_more_than_it_asked_about(place: Place) -> None:
    place.bury("a", "b")
    place.until(lambda: place.counts(queues.dead(place.queue)).message_count == 2)

    def one_comes_meanwhile() -> bytes:
        place.bury("c")
        return b"y\n"

    code, said = at_terminal(place, "discard", "--all", answer=one_comes_meanwhile)
    assert code == 0 and "all 2 dead letters? [y/N]" in said
    assert "a went wrong" in said and "2 discarded" in said
    assert place.dead() == ["c"]


def test_a_discard_does_not_ask_about_nothing_and_counts_one_as_one(place: Place) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(place.call("discard", "--all"), cwd=ROOT, stdin=theirs, capture_output=True, text=True,
                          timeout=DEADLINE, check=False)
    for end in (ours, theirs):
        os.close(end)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 discarded\n", "")
    place.bury("a")
    place.until(lambda: place.counts(queues.dead(place.queue)).message_count == 1)
    code, said = at_terminal(place, "discard", "--all", answer=lambda: b"y\n")
    assert code == 0 and "the only dead letter? [y/N]" in said


def test_without_a_terminal_a_discard_needs_yes(place: Place) -> None:
    place.bury("a")
    assert "say --yes" in place.admin("discard", "--all", code=2).stderr
    assert place.dead() == ["a"]


def test_status_counts(place: Place) -> None:
    place.bury("a")
    place.publish(encode({"id": "b"}))
    place.publish(encode({"id": "c"}))

    def facts() -> Any:
        return json.loads(place.admin("status", "--json").stdout)

    place.until(lambda: (facts()["ready"], facts()["dead"], facts()["consumers"]) == (2, 1, 0))
    consuming = place.connection.channel()
    consuming.basic_qos(prefetch_count=1)
    consuming.basic_consume(place.queue, lambda *_: None)
    place.until(lambda: (facts()["ready"], facts()["consumers"]) == (1, 1))


def test_a_management_api_shows_who_holds_how_many(programs: Programs, place: Place, tmp_path: Path) -> None:
    if not programs.has("rabbitmq_management"):
        said = place.admin("status", "--management", "http://127.0.0.1:1", code=1).stderr
        assert "127.0.0.1:1 cannot be reached" in said and "rabbitmq-plugins enable" in said
        return
    with Node(tmp_path / "node", programs, management=True) as node:
        place = Place(node.url, "q")
        for name in IDS:
            place.publish(encode({"id": name}))
        place.channel.basic_qos(prefetch_count=2)
        place.channel.basic_consume("q", lambda *_: None, consumer_tag="w-1")
        assert node.management_url

        def shown() -> str:
            place.connection.process_data_events(0)
            return place.admin("status", "--management", str(node.management_url)).stdout

        place.until(lambda: shown() == "q: 3 ready, 2 unacknowledged, 1 consumer (w-1), 0 dead\n")  # seconds behind
        place.connection.close()


def test_a_watch_goes_on_until_ctrl_c(place: Place) -> None:
    place.publish(encode({"id": "a"}))
    process = place.start("status", "--watch", "1", "--json")
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    assert first["rate"] is None and second["rate"] is not None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (0, "")


def test_a_queue_that_is_not_there(place: Place) -> None:
    place.channel.queue_delete(queues.dead(place.queue))
    for argv in (["status"], ["dead"], ["replay", "--all"], ["discard", "--all", "--yes"]):
        assert "there is no queue" in place.admin(*argv, code=1).stderr


def test_no_rabbitmq() -> None:
    done = subprocess.run([sys.executable, "admin.py", "dead", "--url", "amqp://eva:secret@127.0.0.1:1"], cwd=ROOT,
                          capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "nobody listens" in done.stderr and "secret" not in done.stderr
