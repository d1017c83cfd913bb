"""What the outbox sends is, byte for byte, what pika would have sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pika
import pytest
from hypothesis import given, strategies as st

from tareas.rabbit import outbox
from tareas.rabbit.outbox import Outbox

NOW = 1_764_000_000


def properties(**more: Any) -> pika.BasicProperties:
    return pika.BasicProperties(content_type="application/json", delivery_mode=2, app_id="producer.py", **more)


class Wire(pika.channel.Channel):  # type: ignore[misc]
    """An open channel of pika's, and the connection below it: `sent` is what goes over the wire, call by call."""

    def __init__(self, frame_max: int = 131_072) -> None:
        self.sent: list[bytes] = []
        self.params = SimpleNamespace(frame_max=frame_max)
        self.is_open_now = True
        connection: Any = SimpleNamespace(
            _output_marshaled_frames=lambda frames: self.sent.append(b"".join(frames)),
            _body_max_length=frame_max - 8, callbacks=pika.callback.CallbackManager(),
        )  # fmt: skip
        connection._send_message = lambda *args: pika.connection.Connection._send_message(connection, *args)
        connection._send_method = lambda number, method, content: connection._send_message(number, method, content)
        self.connection = connection
        self.channel_number = 3
        self._state = self.OPEN

    @property
    def is_open(self) -> bool:
        return self.is_open_now

    def outbox(self, own: pika.BasicProperties | None = None) -> Outbox:
        connection = SimpleNamespace(_output_marshaled_frames=self.connection._output_marshaled_frames,
                                     params=self.params)
        return Outbox(connection, self, "a_queue", own or properties())


def by_pika(messages: list[tuple[str, bytes]], frame_max: int = 131_072) -> bytes:
    wire = Wire(frame_max)
    for name, body in messages:
        wire.basic_publish("", "a_queue", body, properties(message_id=name, timestamp=NOW), mandatory=True)
    return b"".join(wire.sent)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW + 0.5)


ids = st.text(min_size=1).filter(lambda text: len(text.encode("utf-8", "ignore")) <= 255).filter(
    lambda text: not any(0xD800 <= ord(c) <= 0xDFFF for c in text))


@given(st.lists(st.tuples(ids, st.binary(max_size=300)), max_size=8))
def test_the_same_bytes_as_pika(messages: list[tuple[str, bytes]]) -> None:
    wire = Wire()
    box = wire.outbox()
    for name, body in messages:
        box.publish(name, body)
    box.flush()
    assert b"".join(wire.sent) == by_pika(messages)


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 10_000])
def test_a_body_longer_than_a_frame_goes_in_its_turn(size: int) -> None:
    messages = [("before", b"1"), ("big", b"x" * size), ("after", b"2")]
    wire = Wire(4096)
    box = wire.outbox()
    for name, body in messages:
        box.publish(name, body)
    box.flush()
    assert b"".join(wire.sent) == by_pika(messages, 4096)


def test_the_longest_id() -> None:
    wire = Wire()
    box = wire.outbox()
    box.publish("ñ" * 127 + "n", b"{}")
    box.flush()
    assert b"".join(wire.sent) == by_pika([("ñ" * 127 + "n", b"{}")])


def test_nothing_is_sent_before_the_flush_and_all_of_it_at_once_then() -> None:
    wire = Wire()
    box = wire.outbox()
    for n in range(100):
        box.publish(f"t{n}", b"{}")
    assert wire.sent == []
    box.flush()
    assert len(wire.sent) == 1
    box.flush()
    assert len(wire.sent) == 1


def test_what_is_much_goes_before_the_flush() -> None:
    wire = Wire()
    box = wire.outbox()
    for n in range(20):
        box.publish(f"t{n}", b"x" * 10_000)
    assert len(wire.sent) == 2 and all(len(sent) >= outbox.AT_ONCE for sent in wire.sent)


def test_the_time_of_a_message_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire()
    box = wire.outbox()
    box.publish("a", b"1")
    monkeypatch.setattr("time.time", lambda: NOW + 1.5)
    box.publish("b", b"2")
    box.flush()
    data, stamps = wire.sent[0], []
    while data:
        consumed, frame = pika.frame.decode_frame(data)
        data = data[consumed:]
        if isinstance(frame, pika.frame.Header):
            stamps.append((frame.properties.message_id, frame.properties.timestamp))
    assert stamps == [("a", NOW), ("b", NOW + 1)]


def test_another_outbox_with_the_same_properties_in_the_same_second() -> None:
    """A producer that connects again makes a new outbox."""
    shared = properties()
    for _ in range(2):
        wire = Wire()
        box = wire.outbox(shared)
        box.publish("a", b"{}")
        box.flush()
        assert b"".join(wire.sent) == by_pika([("a", b"{}")])


def test_nothing_is_sent_on_a_closed_channel() -> None:
    wire = Wire()
    box = wire.outbox()
    box.publish("a", b"{}")
    wire.is_open_now = False
    box.publish("big", b"x" * 200_000)
    box.flush()
    assert wire.sent == []
