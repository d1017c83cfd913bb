"""Dead letters and admin.py's words, on a fake of the connection."""

from __future__ import annotations

import http.server
import json
import re
import struct
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from hypothesis import given, strategies as st

import admin
from tareas import cli
from tareas.errors import Denied, InvalidTask, Lost, Nacked, Refused, Trouble, Unroutable
from tareas.rabbit import addresses, inside, letterbox, letters, management
from tareas.rabbit.letters import LATEST, read
from tareas.task import MAX_BYTES, decode, encode
from tareas.tell import figures, logs
from tareas.tell.letters import in_json, in_words
from tareas.text import printable
from tests.unit.fakes import Connection, Delivery, Journal, arrived, hand_out

FRAME_MAX = 131_072
WHY = {"tareas-reason": "boom", "tareas-attempts": 5, "tareas-worker": "worker-1", "tareas-time": "1700000000.5"}


def letter(body: bytes = b'{"id":"a"}', headers: dict[Any, Any] | None = None, **properties: Any) -> Any:
    return read(1, pika.BasicProperties(headers=headers, **properties), body)


def dead(*ids: str, consumers: int = 0, **options: Any) -> Connection:
    """A dead-letter queue with these."""
    made = Connection(*(Delivery(encode({"id": name}), headers=dict(WHY)) for name in ids), **options)
    made.consumers = consumers
    return made


def log(connection: Connection) -> list[str]:
    """What was done with the letters."""
    return [word for word in connection.journal.words if not word.startswith(("prefetch", "consume"))]


def ids(connection: Connection) -> list[str]:
    """Those that are in the queue."""
    return [json.loads(each.body)["id"] for each in connection.ready]


def replayed(connection: Connection) -> list[str]:
    assert all((each.routing_key, each.properties.delivery_mode) == ("q", 2) for each in connection.letters)
    return [json.loads(each.body)["id"] for each in connection.letters]


REPLAYED = ["sent to q", "stored", "ack"]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let admin.py have this connection, and return the exit status."""

    def run(connection: Connection, *argv: str) -> int:
        hand_out(monkeypatch, "admin", Journal(monkeypatch), connection)
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


def named(name: str | bytes) -> Any:
    """A message_id as pika reads it from the wire, where a short string has at most 255 bytes."""
    encoded = (name.encode() if isinstance(name, str) else name)[:255]
    decoded, _ = pika.data.decode_short_string(bytes([len(encoded)]) + encoded, 0)
    return decoded


@given(
    st.binary() | st.text().map(str.encode), st.dictionaries(NAMES, HEADER, max_size=5), DEATHS, st.text() | st.binary()
)
def test_nothing_hostile_raises_or_reaches_a_terminal(body: bytes, headers: Any, deaths: Any, message_id: Any) -> None:
    found = letter(body, {**headers, **deaths}, message_id=named(message_id))
    assert all(line.isprintable() for line in in_words(found).split("\n"))
    assert len(in_words(found).split("\n")) <= 3
    line = in_json(found)
    assert line.isascii() and line.isprintable()
    json.loads(line)
    properties, without = letters.revived(found.properties, FRAME_MAX)
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
                             content_type="application/json", correlation_id="c", reply_to="r", delivery_mode=1),
        FRAME_MAX,
    )
    properties = arrived(properties)
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
        ({"long": "x" * FRAME_MAX}, {}, "its headers, which cannot be copied"),
        (inside.UnreadableHeaders(), {}, "its headers, which cannot be copied"),
    ],
)
def test_what_a_replay_leaves_out_is_said(headers: Any, properties: Any, left_out: str) -> None:
    result, without = letters.revived(pika.BasicProperties(headers=headers, **properties), FRAME_MAX)
    assert without == [left_out]
    result = arrived(result)
    assert (result.expiration, result.user_id, result.headers or None) == (None, None, None)


# Taking and settling


def test_looking_takes_no_more_than_the_limit_and_gives_all_back(on: Any, capsys: Any) -> None:
    connection = dead("a", "b", "c")
    assert on(connection, "dead", "--limit", "2") == 0
    assert log(connection) == ["renew", "close"]
    assert (connection.delivered, ids(connection)) == (3, ["a", "b", "c"])  # who gives back some changes the order
    out = capsys.readouterr().out
    assert re.findall(r"^(\w)  dead", out, re.M) == ["a", "b"]
    assert "1 more: --limit N shows them" in out


def test_a_look_at_more_letters_than_one_consumer_may_hold(on: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(letterbox, "HELD", 2)
    connection = dead(*"abcde")
    assert on(connection, "dead") == 0
    assert (connection.delivered, ids(connection)) == (5, [*"abcde"])
    assert sum(word.startswith("consume") for word in connection.journal.words) == 3


@pytest.mark.parametrize(
    ("consumers", "said"), [(0, "no dead letters\n"), (1, "no dead letters but those that another command holds")]
)
def test_an_empty_dead_letter_queue_is_said(consumers: int, said: str, on: Any, capsys: Any) -> None:
    assert on(dead(consumers=consumers), "dead") == 0
    assert capsys.readouterr().out.startswith(said)
    assert on(dead(consumers=consumers), "dead", "--json") == 0
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(said)


def test_a_replay_publishes_before_it_acknowledges_each(on: Any, capsys: Any) -> None:
    connection = dead("a", "b")
    assert on(connection, "replay", "--all") == 0
    assert log(connection) == ["confirm mode", *REPLAYED, *REPLAYED, "close"]
    assert (replayed(connection), connection.settled) == (["a", "b"], [1, 2])
    assert capsys.readouterr().out.split("\n") == ["a  replayed", "b  replayed", "2 replayed", ""]


def test_a_replay_is_told_before_its_letter_is_gone(on: Any, capsys: Any, monkeypatch: Any) -> None:
    told: list[str] = []
    monkeypatch.setattr(Connection, "basic_ack", lambda *_: told.append(capsys.readouterr().out))
    assert on(dead("a", "b"), "replay", "--all") == 0
    assert told == ["a  replayed\n", "b  replayed\n"]


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [(KeyboardInterrupt(), 130, "interrupted; 1 are replayed"), (Lost("the cable"), 1, "the cable; 1 are replayed")],
)
def test_a_replay_that_ends_before_the_confirm_says_what_may_still_happen(
    end: BaseException, status: int, said: str, on: Any, capsys: Any
) -> None:
    def ends(connection: Connection) -> None:
        raise end

    connection = dead("a", "b", troubles=[None, ends])
    assert on(connection, "replay", "--all") == status
    assert connection.settled == [1]
    assert f"{said}, and 'b' is on its way: RabbitMQ may still replay it" in capsys.readouterr().err


def test_an_alarm_that_holds_a_replay_up_is_said(on: Any, capsys: Any) -> None:
    def alarm(connection: Connection) -> None:
        connection.block()
        connection.unblock()

    assert on(dead("a", troubles=[alarm]), "replay", "--all") == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "low on disk" in said[0]


def test_a_replay_in_json_is_an_event_a_letter_for_the_audit(on: Any, capsys: Any, tmp_path: Any) -> None:
    assert on(dead("a", "b"), "replay", "--all", "--json") == 0
    (tmp_path / "log").write_text(capsys.readouterr().out)
    first, second = logs.read([tmp_path / "log"])
    assert first.pop("time") and first.pop("log") and first == {
        "event": "replayed", "who": "admin", "id": "a", "letter": "a", "without": []
    }  # fmt: skip
    assert second["id"] == "b"


def test_a_replay_by_name_takes_every_letter_of_that_name_and_no_other(on: Any) -> None:
    connection = dead("a", "b", "a")
    assert on(connection, "replay", "a") == 0
    assert log(connection) == ["confirm mode", *REPLAYED, *REPLAYED, "renew", "close"]
    assert (replayed(connection), connection.settled, ids(connection)) == (["a", "a"], [1, 3], ["b"])


def test_a_replay_ends_though_what_it_replays_comes_back(on: Any) -> None:
    def comes_back(connection: Connection) -> None:
        connection.ready.append(Delivery(connection.letters[-1].body, headers=dict(WHY)))

    connection = dead("a", "b", troubles=[comes_back, comes_back])
    assert on(connection, "replay", "--all") == 0
    assert replayed(connection) == ["a", "b"] and connection.settled == [1, 2]


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (Nacked("full"), "queue 'q' is full: 'a' and"), (Unroutable("none"), "no queue 'q'"),
        (Refused("RabbitMQ: too large", 406, True), "RabbitMQ: too large: 'a' and those after it stay dead letters"),
    ],
)  # fmt: skip
def test_a_refused_replay_leaves_the_letter_and_says_so(on: Any, capsys: Any, refusal: Exception, said: str) -> None:
    connection = dead("a", "b", troubles=[refusal])
    assert on(connection, "replay", "--all") == 1
    assert log(connection) == ["confirm mode", "sent to q", "close"] and connection.settled == []
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_a_missing_name_is_said_after_the_others_are_replayed(on: Any, capsys: Any) -> None:
    connection = dead("a", "b")
    assert on(connection, "replay", "b", "zz", "\x1b[2J") == 1
    assert (replayed(connection), connection.settled, ids(connection)) == (["b"], [2], ["a"])
    assert "no dead letter 'zz', '\\x1b[2J' in queue 'q'" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [True, False])
def test_a_discard_shows_each_letter_before_it_is_gone(on: Any, capsys: Any, monkeypatch: Any, as_json: bool) -> None:
    shown_at_ack = []
    monkeypatch.setattr(Connection, "basic_ack", lambda *_: shown_at_ack.append(capsys.readouterr().out))
    assert on(dead("a", "b"), "discard", "--all", "--yes", *["--json"] * as_json) == 0
    assert len(shown_at_ack) == 2
    for name, text in zip("ab", shown_at_ack, strict=True):
        assert "boom" in text and (f'"id":"{name}"' if as_json else f"discarded {name}") in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused("RabbitMQ closed the channel: no queue", 404), "there is no queue 'q', or none for its dead letters"),
        (Refused("RabbitMQ closed the channel: something", 406), "RabbitMQ closed the channel: something"),
        (Lost("the cable"), "the cable"), (Denied("refuses the login"), "refuses the login"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("argv", [["status"], ["dead"], ["replay", "--all"], ["discard", "--all", "--yes"]])
def test_a_queue_that_cannot_be_looked_at_is_one_line(
    argv: list[str], error: Exception, said: str, on: Any, capsys: Any
) -> None:
    assert on(dead(refusal=error), *argv) == 1
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and shown.out == ""


# What a worker writes


@given(st.dictionaries(NAMES, HEADER, max_size=5), st.text(max_size=2000), st.integers(1, 60_000),
       st.sampled_from([4096, FRAME_MAX]))
def test_a_dead_letter_fits_into_a_frame_and_always_has_its_reason(
    headers: Any, reason: str, more: int, frame_max: int
) -> None:
    properties = pika.BasicProperties(headers={**headers, "long": "x" * more}, message_id="a", expiration="5")
    copy = letters.copy_of(properties, reason, 3, "w", frame_max)
    assert sum(map(len, copy.encode())) + letters.AROUND <= frame_max
    assert copy.headers["tareas-reason"] == printable(reason)[: len(copy.headers["tareas-reason"])]
    assert bool(copy.headers["tareas-reason"]) == bool(reason)
    assert (copy.headers["tareas-attempts"], copy.delivery_mode, copy.expiration) == (3, 2, None)


def test_headers_arrive_as_they_came_and_what_cannot_be_copied_is_said() -> None:
    """Up to 1.4, pika reads and writes a float as a whole number."""
    inside.read_any_headers()
    table = b"\x01n" + b"I" + (7).to_bytes(4, "big") + b"\x01f" + b"d" + struct.pack(">d", 1.5)
    headers, _ = pika.data.decode_table(len(table).to_bytes(4, "big") + table, 0)
    copy = letters.copy_of(pika.BasicProperties(headers=headers), "boom", 1, "w", FRAME_MAX)
    assert table in b"".join(copy.encode()) and "tareas-dropped" not in copy.headers
    replayed, without = letters.revived(pika.BasicProperties(headers=headers), FRAME_MAX)
    assert table in b"".join(replayed.encode()) and without == []
    for odd in (inside.UnreadableHeaders(), {"odd": object()}):
        copy = letters.copy_of(pika.BasicProperties(headers=odd), "boom", 1, "w", FRAME_MAX)
        assert copy.headers["tareas-dropped"] == "headers of the publisher: they cannot be copied"


def test_after_a_refusal_for_size_no_copy_as_large_is_tried() -> None:
    connection: Any = SimpleNamespace(frame_max=FRAME_MAX, sent=[])

    def publish(queue: str, body: bytes, properties: Any) -> None:
        connection.sent.append(len(body))
        if len(body) > 5:
            raise Refused("larger than 5", 406, too_large=True)

    connection.publish_and_confirm = publish
    writer = letters.Writer("q", "w")
    with pytest.raises(Refused):
        writer.write(connection, pika.BasicProperties(), b"x" * 7, "boom", 1)
    assert [writer.write(connection, pika.BasicProperties(), b"x" * size, "boom", 1) for size in (7, 8, 5)] == [
        False, False, True]
    assert connection.sent == [7, 5]


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
    connection = dead("a")
    assert on(connection, *argv) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not connection.settled and not connection.letters


# Status


def test_status_says_what_amqp_knows_and_what_it_does_not(on: Any, capsys: Any) -> None:
    assert on(dead("a", consumers=2), "status") == 0
    shown = capsys.readouterr().out
    assert "q: 1 ready, 2 consumers, 1 dead\n" in shown and "AMQP does not show unacknowledged" in shown
    assert on(dead(consumers=2), "status", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert isinstance(facts.pop("time"), float)
    assert facts == {"queue": "q", "ready": 0, "unacknowledged": None, "consumers": 2, "dead": 0}


@pytest.mark.parametrize(
    ("watch", "moment", "code"),
    [(["--watch"], "process_data_events", 0), (["--watch"], "queue_declare", 0), ([], "queue_declare", 130)],
)
def test_ctrl_c_is_the_way_to_end_a_watch_at_any_moment(
    on: Any, monkeypatch: Any, watch: list[str], moment: str, code: int
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Connection, moment, interrupt)
    assert on(dead(), "status", *watch) == code


def test_a_watch_notices_that_the_connection_is_lost(on: Any, capsys: Any) -> None:
    assert on(dead(steps=Connection.lose), "status", "--watch", "5") == 1
    assert "the cable" in capsys.readouterr().err


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
