"""Dead letters and admin.py's words, on a channel that is a list."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from hypothesis import given, strategies as st
from pika.exceptions import NackError, UnroutableError

import admin
from tareas import cli
from tareas.errors import InvalidTask, Trouble
from tareas.rabbit import addresses, inside, letterbox, letters, management, queues
from tareas.rabbit.letters import LATEST, read
from tareas.task import MAX_BYTES, decode, encode
from tareas.tell import figures, logs
from tareas.tell.letters import in_json, in_words

WHY = {"tareas-reason": "boom", "tareas-attempts": 5, "tareas-worker": "worker-1", "tareas-time": "1700000000.5"}


def letter(body: bytes = b'{"id":"a"}', headers: dict[Any, Any] | None = None, **properties: Any) -> Any:
    return read(1, pika.BasicProperties(headers=headers, **properties), body)


@dataclass
class Channel:
    """A dead-letter queue with these ids, and a log of what is done to it; it is its own second channel, too."""

    ids: list[str]
    refuse: type[Exception] | None = None  # what a publish raises
    comes_back: bool = False  # a published task fails again at once
    log: list[tuple[Any, ...]] = field(default_factory=list)
    tag: int = 0
    consumers: list[Any] = field(default_factory=list)
    held: dict[int, str] = field(default_factory=dict)

    @property
    def connection(self) -> Any:
        return SimpleNamespace(
            close=lambda: self.log.append(("end",)),
            channel=lambda: self,
            process_data_events=self.process_data_events,
            sleep=lambda seconds: None,
        )

    def close(self) -> None:
        self.log.append(("close",))
        self.ids[:0] = self.held.values()
        self.held.clear()

    def basic_qos(self, prefetch_count: int) -> None:
        self.window = prefetch_count

    def basic_consume(self, queue: str, callback: Any, consumer_tag: str) -> None:
        assert queue == "q.dead"
        self.consumers.append([callback, 0])

    def process_data_events(self, time_limit: float) -> None:
        """Deliver one message, if there is one and a consumer may have it."""
        for consumer in self.consumers:
            if self.ids and consumer[1] < self.window:
                consumer[1] += 1
                self.tag += 1
                self.held[self.tag] = self.ids[0]
                properties = pika.BasicProperties(headers=dict(WHY))
                consumer[0](self, SimpleNamespace(delivery_tag=self.tag), properties, encode({"id": self.ids.pop(0)}))
                return

    def basic_publish(self, exchange: str, key: str, body: bytes, properties: Any, mandatory: bool) -> None:
        assert (exchange, key, mandatory, properties.delivery_mode) == ("", "q", True, 2)
        if self.refuse:
            raise self.refuse([])
        self.log.append(("publish", json.loads(body)["id"]))
        if self.comes_back:
            self.ids.append(json.loads(body)["id"])

    def basic_ack(self, tag: int) -> None:
        self.log.append(("ack", tag))
        del self.held[tag]

    def queue_declare(self, queue: str, passive: bool) -> Any:
        assert passive
        return SimpleNamespace(method=SimpleNamespace(message_count=len(self.ids), consumer_count=2))

    def confirm_delivery(self) -> None:
        self.log.append(("confirms",))


GIVEN_BACK = ("close",)  # a channel that closes gives back what it holds


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let admin.py talk to this fake channel, and return the exit status and its log."""

    def run(channel: Channel, *argv: str) -> int:
        monkeypatch.setattr(admin, "connect", lambda nodes, name: (channel.connection, nodes[0]))
        for module in (letterbox, queues):
            monkeypatch.setattr(module, "deadline", lambda connection: contextlib.nullcontext())
        return cli.run(admin.main, [*argv, "--queue", "q"])

    return run


# What a dead letter says


def test_a_workers_dead_letter_says_what_the_worker_wrote() -> None:
    found = letter(headers=WHY)
    assert (found.id, found.reason, found.attempts) == ("a", "boom", 5)
    assert (found.worker, found.time) == ("worker-1", 1700000000.5)


def test_the_brokers_own_dead_letter_says_what_x_death_says() -> None:
    at = datetime(2025, 1, 2, tzinfo=timezone.utc)
    death = {"reason": "delivery_limit", "queue": "q", "count": 1, "time": at}
    found = letter(headers={"x-death": [death, {"reason": "older"}]})
    assert found.reason == "RabbitMQ: delivery_limit, in queue q"
    assert (found.time, found.attempts, found.worker) == (at.timestamp(), None, None)


@pytest.mark.parametrize(
    ("body", "message_id", "expected"),
    [
        (b'{"id":"a"}', "other", "a"),
        (b"no json", "its-id", "its-id"),
        (b"no json", "\x1b[2J", "body-"),
        (b"no json", b"\xff", "body-"),
        (b"no json", None, "body-"),
        (b"", None, "body-"),
    ],
)
def test_every_dead_letter_has_a_name(body: bytes, message_id: Any, expected: str) -> None:
    name = letter(body, message_id=message_id).id
    assert name == expected if expected != "body-" else re.fullmatch("body-[0-9a-f]{12}", name)


HEADER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*WHY, "x-death", "tareas-expiration", "tareas-user-id", "CC", b"\xff"]) | st.text(max_size=9)
DEATHS = st.fixed_dictionaries({}, optional={"x-death": st.lists(st.fixed_dictionaries(
    {}, optional={"reason": HEADER, "queue": HEADER, "time": HEADER, "original-expiration": HEADER}))})


def arrived(name: str | bytes) -> Any:
    """A message_id as pika reads it from the wire, where a short string has at most 255 bytes."""
    encoded = (name.encode() if isinstance(name, str) else name)[:255]
    decoded, _ = pika.data.decode_short_string(bytes([len(encoded)]) + encoded, 0)
    return decoded


@given(
    st.binary() | st.text().map(str.encode), st.dictionaries(NAMES, HEADER, max_size=5), DEATHS, st.text() | st.binary()
)
def test_nothing_hostile_raises_or_reaches_a_terminal(body: bytes, headers: Any, deaths: Any, message_id: Any) -> None:
    found = letter(body, {**headers, **deaths}, message_id=arrived(message_id))
    assert all(line.isprintable() for line in in_words(found).split("\n"))
    assert len(in_words(found).split("\n")) <= 3
    line = in_json(found)
    assert line.isascii() and line.isprintable()
    json.loads(line)
    properties, without = letters.revived(found.properties)
    properties.encode()
    assert all(text.isprintable() for text in without)


def test_a_long_reason_and_a_long_body_are_cut_for_a_person() -> None:
    words = in_words(letter(b"x" * 2_000_000, {"tareas-reason": "y" * 100_000}))
    assert len(words) < 1000 and "2,000,000 bytes" in words


def test_a_dead_letter_without_a_reason_says_so() -> None:
    assert letter().reason is None
    assert "no reason given" in in_words(letter())


@pytest.mark.parametrize("attempts", [True, -1, "5", 2.5])
def test_forged_attempts_and_times_are_no_reason_to_fail(attempts: Any) -> None:
    for at in ("nan", "inf", "-1", "1e300", b"1", [1], True):
        found = letter(headers={**WHY, "tareas-attempts": attempts, "tareas-time": at})
        assert found.attempts is None or type(found.attempts) is int
        assert found.time is None or 0 <= found.time < LATEST
        in_words(found)


# What a producer takes back


def test_the_json_line_of_a_task_is_that_task_for_a_producer() -> None:
    line = in_json(letter(b'{"id":"a","n":[1.5,"\xc3\xb1"]}', WHY))
    task = decode(line.encode(), simulated=False)
    about = task.pop("dead_letter")
    assert task == {"id": "a", "n": [1.5, "ñ"]}
    assert about == {"id": "a", "reason": "boom", "attempts": 5, "worker": "worker-1", "time": 1700000000.5}


def test_the_largest_task_fits_into_a_line_that_a_producer_takes() -> None:
    for filling in ("x", "ñ", "\u202e", "\x7f"):
        body = b'{"id":"a","x":"%s"}' % (filling.encode() * ((MAX_BYTES - 100) // len(filling.encode())))
        line = in_json(letter(body, WHY))
        assert line.isprintable()
        assert json.loads(line)["x"] == json.loads(body)["x"]
        if filling.isprintable():
            assert decode(line.encode(), simulated=False) == json.loads(body)


def test_a_body_that_is_no_task_is_whole_in_json_and_refused_by_a_producer() -> None:
    line = in_json(letter(b"\xff\x00"))
    assert json.loads(line)["dead_letter"]["body"] == "/wA="
    with pytest.raises(InvalidTask):
        decode(line.encode(), simulated=False)


# What a replayed task takes along


def test_a_replay_keeps_the_publishers_properties_and_drops_the_marks_of_death() -> None:
    theirs = {"trace": "7", "x-mine": 1}
    marks = {**WHY, "x-death": [{}], "x-first-death-queue": "q", "x-last-death-reason": "r", "x-delivery-count": 3,
             "x-acquired-count": 4, "CC": ["elsewhere"], "tareas-cc": ["elsewhere"]}
    properties, without = letters.revived(
        pika.BasicProperties(headers={**theirs, **marks}, message_id="a", timestamp=5, priority=1, type="t", app_id="p",
                             content_type="application/json", correlation_id="c", reply_to="r", delivery_mode=1)
    )
    assert properties.headers == theirs
    assert (properties.message_id, properties.timestamp, properties.priority, properties.type) == ("a", 5, 1, "t")
    assert (properties.app_id, properties.correlation_id, properties.reply_to) == ("p", "c", "r")
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert without == []


@pytest.mark.parametrize(
    ("headers", "properties", "left_out"),
    [
        ({"tareas-expiration": "5000"}, {}, "its expiration of 5000 ms"),
        ({}, {"expiration": "60"}, "its expiration of 60 ms"),
        ({"x-death": [{"original-expiration": "7"}]}, {}, "its expiration of 7 ms"),
        ({"tareas-user-id": "ana"}, {}, "its user_id ana"),
        ({}, {"user_id": "ana"}, "its user_id ana"),
        ({"odd": object()}, {}, "its headers, which cannot be copied"),
        ({"long": "x" * 130_000}, {}, "its headers, which cannot be copied"),
        (inside.UnreadableHeaders(), {}, "its headers, which cannot be copied"),
    ],
)
def test_what_a_replay_leaves_out_is_said(headers: Any, properties: Any, left_out: str) -> None:
    result, without = letters.revived(pika.BasicProperties(headers=headers, **properties))
    assert without == [left_out]
    assert (result.expiration, result.user_id, result.headers) == (None, None, None)


# Taking and settling


def test_looking_takes_no_more_than_the_limit_and_gives_all_back(on: Any, capsys: Any) -> None:
    channel = Channel(["a", "b", "c"])
    assert on(channel, "dead", "--limit", "2") == 0
    assert channel.log == [GIVEN_BACK, ("close",), ("end",)]
    assert (channel.tag, channel.ids) == (3, ["a", "b", "c"])  # all were taken: who gives back some changes the order
    out = capsys.readouterr().out
    assert re.findall(r"^(\w)  dead", out, re.M) == ["a", "b"]
    assert "1 more: --limit N shows them" in out


def test_an_empty_dead_letter_queue_is_said(on: Any, capsys: Any) -> None:
    assert on(Channel([]), "dead") == 0
    assert capsys.readouterr().out == "no dead letters\n"
    assert on(Channel([]), "dead", "--json") == 0
    assert capsys.readouterr().out == ""


def test_a_replay_publishes_before_it_acknowledges_each(on: Any, capsys: Any) -> None:
    channel = Channel(["a", "b"])
    assert on(channel, "replay", "--all") == 0
    settled = [("publish", "a"), ("ack", 1), ("publish", "b"), ("ack", 2)]
    assert channel.log == [("confirms",), *settled, ("end",)]
    assert capsys.readouterr().out.split("\n") == ["a  replayed", "b  replayed", "2 replayed", ""]


def test_a_replay_in_json_is_an_event_a_letter_for_the_audit(on: Any, capsys: Any, tmp_path: Any) -> None:
    assert on(Channel(["a", "b"]), "replay", "--all", "--json") == 0
    (tmp_path / "log").write_text(capsys.readouterr().out)
    first, second = logs.read([tmp_path / "log"])
    assert first.pop("time") and first.pop("log") and first == {
        "event": "replayed", "who": "admin", "id": "a", "letter": "a", "without": []
    }  # fmt: skip
    assert second["id"] == "b"


def test_a_replay_by_name_takes_every_letter_of_that_name_and_no_other(on: Any) -> None:
    channel = Channel(["a", "b", "a"])
    assert on(channel, "replay", "a") == 0
    settled = [("publish", "a"), ("ack", 1), ("publish", "a"), ("ack", 3)]
    assert channel.log == [("confirms",), *settled, GIVEN_BACK, ("close",), ("end",)]
    assert channel.ids == ["b"]


def test_a_replay_ends_though_what_it_replays_comes_back(on: Any) -> None:
    channel = Channel(["a", "b"], comes_back=True)
    assert on(channel, "replay", "--all") == 0
    assert [entry for entry in channel.log if entry[0] == "publish"] == [("publish", "a"), ("publish", "b")]
    assert channel.ids == ["a", "b"]


@pytest.mark.parametrize(
    ("refuse", "said"), [(NackError, "queue 'q' is full: 'a' and"), (UnroutableError, "no queue 'q'")]
)
def test_a_refused_replay_leaves_the_letter_and_says_so(on: Any, capsys: Any, refuse: Any, said: str) -> None:
    channel = Channel(["a", "b"], refuse=refuse)
    assert on(channel, "replay", "--all") == 1
    assert channel.log == [("confirms",), ("end",)]
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_a_missing_name_is_said_after_the_others_are_replayed(on: Any, capsys: Any) -> None:
    channel = Channel(["a", "b"])
    assert on(channel, "replay", "b", "zz", "\x1b[2J") == 1
    assert ("publish", "b") in channel.log and ("publish", "a") not in channel.log and GIVEN_BACK in channel.log
    assert "no dead letter 'zz', '\\x1b[2J' in queue 'q'" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [True, False])
def test_a_discard_shows_each_letter_before_it_is_gone(on: Any, capsys: Any, as_json: bool) -> None:
    shown_at_ack = []

    class Watched(Channel):
        def basic_ack(self, tag: int) -> None:
            shown_at_ack.append(capsys.readouterr().out)

    assert on(Watched(["a", "b"]), "discard", "--all", "--yes", *["--json"] * as_json) == 0
    assert len(shown_at_ack) == 2
    for name, text in zip("ab", shown_at_ack, strict=True):
        assert "boom" in text and (f'"id":"{name}"' if as_json else f"discarded {name}") in text


# Wrong calls


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["replay"], "name the dead letters, or say --all"),
        (["replay", "a", "--all"], "and not both"),
        (["discard"], "name the dead letters, or say --all"),
        (["discard", "a"], "say --yes"),
        (["dead", "--limit", "0"], "--limit"),
        (["status", "--watch", "0"], "--watch"),
        (["status", "--management", "localhost:15672"], "--management is not a URL"),
        (["status", "--management", "http://[bad"], "--management is not a URL"),
        (["frobnicate"], "frobnicate"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_call_is_answered_with_one_line(on: Any, capsys: Any, argv: list[str], said: str) -> None:
    channel = Channel(["a"])
    assert on(channel, *argv) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not any(entry[0] in ("ack", "publish") for entry in channel.log)


# Status


def test_status_says_what_amqp_knows_and_what_it_does_not(on: Any, capsys: Any) -> None:
    assert on(Channel(["a"]), "status") == 0
    shown = capsys.readouterr().out
    assert "q: 1 ready, 2 consumers, 1 dead\n" in shown and "AMQP does not show unacknowledged" in shown
    assert on(Channel([]), "status", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert isinstance(facts.pop("time"), float)
    assert facts == {"queue": "q", "ready": 0, "unacknowledged": None, "consumers": 2, "dead": 0}


@pytest.mark.parametrize(
    ("watch", "moment", "code"),
    [(["--watch"], "sleep", 0), (["--watch"], "queue_declare", 0), ([], "queue_declare", 130)],
)
def test_ctrl_c_is_the_way_to_end_a_watch_at_any_moment(on: Any, watch: list[str], moment: str, code: int) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    class Interrupted(Channel):
        @property
        def connection(self) -> Any:
            made = super().connection
            made.sleep = interrupt
            return made

    channel = Interrupted([])
    if moment == "queue_declare":
        channel.queue_declare = interrupt  # type: ignore[method-assign]
    assert on(channel, "status", *watch) == code


@pytest.mark.parametrize(
    ("seen", "rate", "left"),
    [
        ([(0.0, 10)], None, None),
        ([(0.0, 10), (2.0, 6)], 2.0, 3.0),
        ([(0.0, 10), (1.0, 50), (2.0, 6)], 2.0, 3.0),
        ([(0.0, 5), (2.0, 9)], -2.0, None),
        ([(0.0, 5), (2.0, 5)], 0.0, None),
        ([(0.0, 5), (1.0, 0)], 5.0, 0.0),
    ],
)
def test_the_pace_of_a_queue(seen: Any, rate: float | None, left: float | None) -> None:
    assert figures.pace(seen) == {"rate": rate, "left": left}


def test_the_pace_in_words() -> None:
    facts = {"queue": "q", "ready": 1200, "unacknowledged": 3, "consumers": 1, "dead": 0, "workers": ["w\x1b"]}
    assert figures.in_words({**facts, "rate": 2.0, "left": 600.0}) == (
        "q: 1,200 ready, 3 unacknowledged, 1 consumer (w\\x1b), 0 dead, 2.0 fewer a second, about 0:10:00 left"
    )
    assert figures.in_words({**facts, "rate": -2.0, "left": None}).endswith("0 dead, 2.0 more a second")


# The management API


class Api(http.server.BaseHTTPRequestHandler):
    """Answers what the server's `answer` says and notes the request."""

    def do_GET(self) -> None:
        code, body = self.server.answer  # type: ignore[attr-defined]
        self.server.asked = (self.path, self.headers["Authorization"])  # type: ignore[attr-defined]
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Any]:
    server: Any = http.server.HTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_management_api_tells_who_holds_how_many(api: Any) -> None:
    details = [{"consumer_tag": "w2"}, {"consumer_tag": "w1"}]
    api.answer = 200, json.dumps({"messages_unacknowledged": 3, "consumer_details": details}).encode()
    [address] = addresses.parse("amqp://ana:s%40crt@localhost/my%2Fhost")
    facts = management.figures(f"http://127.0.0.1:{api.server_port}/", address, "a/b")
    assert facts == {"unacknowledged": 3, "workers": ["w1", "w2"]}
    assert api.asked == ("/api/queues/my%2Fhost/a%2Fb", "Basic YW5hOnNAY3J0")
    management.figures(f"http://eva:x@127.0.0.1:{api.server_port}", address, "a")
    assert api.asked[1] == "Basic ZXZhOng="


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, b""), "answers 401 (check user and password)"),
        ((404, b""), "answers 404"),
        ((200, b"<html>"), "is not RabbitMQ's management API"),
        ((200, b"[1]"), "is not RabbitMQ's management API"),
        ((200, b'{"consumer_details": [{}]}'), "is not RabbitMQ's management API"),
    ],
)
def test_a_management_api_that_does_not_tell(api: Any, answer: Any, said: str) -> None:
    api.answer = answer
    [address] = addresses.parse("amqp://ana:secret@localhost")
    with pytest.raises(Trouble) as caught:
        management.figures(f"http://ana:secret@127.0.0.1:{api.server_port}", address, "q")
    assert said in str(caught.value) and "secret" not in str(caught.value)


def test_no_management_api() -> None:
    [address] = addresses.parse("amqp://localhost")
    with pytest.raises(Trouble, match=r"cannot be reached: .*refused"):
        management.figures("http://eva:secret@127.0.0.1:1", address, "q")


# Audit


def line(event: str, **facts: Any) -> str:
    return json.dumps({"time": 1.0, "event": event, "who": facts.pop("who", "worker-1"), **facts}) + "\n"


FINISHED = line("finished", published=1, confirmed=1)
DONE = line("started", id="a", attempt=1, redelivered=False) + line("done", id="a", attempt=1, seconds=0)


@pytest.mark.parametrize(
    ("log", "code", "said"),
    [
        (line("confirmed", id="a") + FINISHED + DONE, 0, "lost 0"),
        (line("confirmed", id="a") + DONE, 1, "lost 0\nnot finished: worker-1 in"),
        (line("published", id="b") + line("confirmed", id="a") + FINISHED + DONE, 1, "without a confirm, and neither"),
        (line("confirmed", id="a"), 1, "lost at most 1\nconfirmed, but neither done nor dead in these logs"),
        (line("confirmed", id="a") + DONE + DONE, 1, "done twice"),
    ],
)
def test_the_audit_prints_its_verdict_and_what_is_wrong(
    tmp_path: Any, capsys: Any, log: str, code: int, said: str
) -> None:
    (tmp_path / "log").write_text(log)
    assert cli.run(admin.main, ["audit", str(tmp_path / "log")]) == code
    assert said in capsys.readouterr().out


def test_an_audit_without_the_producers_log_is_a_wrong_call(tmp_path: Any, capsys: Any) -> None:
    (tmp_path / "log").write_text(DONE)
    assert cli.run(admin.main, ["audit", str(tmp_path / "log")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "no published task in these logs (done 1, dead 0)" in said.err


def test_an_audit_of_what_is_no_log_is_a_wrong_call(tmp_path: Any, capsys: Any) -> None:
    (tmp_path / "log").write_text("hello\n" + DONE)
    assert cli.run(admin.main, ["audit", str(tmp_path / "log")]) == 2
    assert "line 1: not JSON" in capsys.readouterr().err
    for path in (tmp_path / "none", tmp_path):
        assert cli.run(admin.main, ["audit", str(path)]) == 2
        assert "cannot be read" in capsys.readouterr().err
