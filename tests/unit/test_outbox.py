"""What the outbox gathers is, byte for byte, what pika would send, and what pika reads as the message."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from hypothesis import given, settings, strategies as st

from tareas.rabbit.outbox import Outbox

NOW, NUMBER = 1_764_000_000, 3
Message = tuple[str, bytes, pika.BasicProperties, bool]


def properties(**more: Any) -> pika.BasicProperties:
    return pika.BasicProperties(content_type="application/json", delivery_mode=2, app_id="producer.py", **more)


def by_pika(messages: list[Message], frame_max: int) -> bytes:
    """What an open channel of pika's sends."""
    sent: list[bytes] = []
    connection: Any = SimpleNamespace(_output_marshaled_frames=sent.extend, _body_max_length=frame_max - 8)
    for key, body, about, mandatory in messages:
        method = pika.spec.Basic.Publish(exchange="", routing_key=key, mandatory=mandatory)
        pika.connection.Connection._send_message(connection, NUMBER, method, (about, body))
    return b"".join(sent)


def read(data: bytes) -> list[Message]:
    """The messages, as pika's own decoder reads them."""
    found: list[Message] = []
    while data:
        consumed, frame = pika.frame.decode_frame(data)
        assert frame is not None and frame.channel_number == NUMBER, "not a whole frame of this channel"
        data = data[consumed:]
        if isinstance(frame, pika.frame.Method):
            publish: Any = frame.method
            assert isinstance(publish, pika.spec.Basic.Publish) and publish.exchange == ""
        elif isinstance(frame, pika.frame.Header):
            size, about = frame.body_size, frame.properties
            found.append((publish.routing_key, b"", about, publish.mandatory))
        else:
            key, body, about, mandatory = found.pop()
            found.append((key, body + frame.fragment, about, mandatory))
            assert len(found[-1][1]) <= size
    return found


IDS = st.text(min_size=1, max_size=255).map(lambda text: text.encode("utf-8", "ignore")[:255].decode("utf-8", "ignore"))
HEADERS = st.none() | st.dictionaries(
    st.sampled_from(["a", "tareas-reason"]), st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9) | st.booleans()
)


@st.composite
def conversations(draw: Any) -> tuple[int, list[Message]]:
    frame_max = draw(st.sampled_from([4096, 8192, 131_072]))
    longest = frame_max - 8
    sizes = st.sampled_from([0, 1, 2, longest - 1, longest, longest + 1, 2 * longest, 2 * longest + 1, 3 * longest + 5])
    messages = []
    for number in range(draw(st.integers(1, 8))):
        about = properties(message_id=draw(st.none() | IDS), timestamp=NOW + draw(st.integers(0, 2)),
                           headers=draw(HEADERS), priority=draw(st.none() | st.integers(0, 9)))  # fmt: skip
        body = draw(st.binary(max_size=99)) if draw(st.booleans()) else bytes([number]) * draw(sizes)
        messages.append((draw(st.sampled_from(["q", "q.dead"])), body, about, draw(st.booleans())))
    return frame_max, messages


@given(conversations())
def test_the_same_bytes_as_pika_and_pika_reads_each_message_in_them(conversation: tuple[int, list[Message]]) -> None:
    frame_max, messages = conversation
    box = Outbox(NUMBER, frame_max)
    for key, body, about, mandatory in messages:
        box.gather("", key, body, about, mandatory)
    size, data = box.size, box.take()
    assert size == len(data)
    assert data == by_pika(messages, frame_max)
    assert read(data) == messages


@pytest.mark.parametrize("frame_max", [4096, 131_072])
def test_no_frame_is_longer_than_what_was_agreed(frame_max: int) -> None:
    box = Outbox(NUMBER, frame_max)
    box.gather("", "q", b"x" * 300_000, properties(message_id="a"), True)
    data, longest = box.take(), 0
    while data:
        size: int = struct.unpack_from(">I", data, 3)[0] + 8
        longest, data = max(longest, size), data[size:]
    assert longest == frame_max


def test_what_is_taken_is_gathered_no_more() -> None:
    box = Outbox(NUMBER, 4096)
    assert (box.size, box.take()) == (0, b"")
    box.gather("", "q", b"{}", properties(message_id="a"), True)
    assert box.size > 0 and len(read(box.take())) == 1
    assert (box.size, box.take()) == (0, b"")


@settings(max_examples=20)
@given(st.lists(st.tuples(IDS, st.integers(NOW, NOW + 3)), min_size=1, max_size=8))
def test_the_id_and_the_time_of_each_message_are_its_own_though_all_share_their_properties(
    messages: list[tuple[str, int]]
) -> None:
    """As a producer does it. And a producer that connects again makes a new outbox."""
    shared = properties()
    for _ in range(2):
        box = Outbox(NUMBER, 4096)
        for name, at in messages:
            shared.message_id, shared.timestamp = name, at
            box.gather("", "q", b"{}", shared, True)
        assert [(about.message_id, about.timestamp) for _, _, about, _ in read(box.take())] == messages


def test_properties_that_cannot_be_written_raise_and_leave_nothing_behind() -> None:
    box = Outbox(NUMBER, 4096)
    with pytest.raises(Exception):  # noqa: B017 (pika has many kinds)
        box.gather("", "q", b"{}", properties(message_id="a", headers={"odd": object()}), True)
    assert (box.size, box.take()) == (0, b"")
