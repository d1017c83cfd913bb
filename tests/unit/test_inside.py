"""Every touch of what pika keeps to itself, asked of the pika that is installed: another one may not have it."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from hypothesis import given, strategies as st
from pika import spec

from tareas.rabbit import inside
from tareas.rabbit.connection import Connection
from tests.unit.fakes import arrived
from tests.unit.peer import Peer, close_connection, until

ROOT = Path(__file__).parents[2]
OURS = sorted([*ROOT.glob("*.py"), *(ROOT / "tareas").rglob("*.py")])
BIG = 1_000_000  # bytes
BEAT = pika.frame.Heartbeat().marshal()


@pytest.fixture
def connection(peer: Peer) -> Iterator[Connection]:
    with Connection(peer.address(), "test") as made:
        yield made
        made.abort()


def in_loop(connection: Connection, call: Any) -> Any:
    """What this returns when the thread of the loop calls it."""
    return connection._wait(lambda answer: connection._hand_over(lambda: answer.give(call())))


# -- each touch


def test_pika_has_what_we_touch(connection: Connection) -> None:
    """The names in inside.py, asked of the objects that it has in hand."""
    real = connection._connection
    transport = real._transport
    touched = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(inside)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        and node.value.id in ("connection", "transport")
    }  # fmt: skip
    assert {"_transport", "_output_marshaled_frames", "_state", "_STATE_ACTIVE", "_sock", "get_write_buffer_size",
            "write", "bytes_received", "bytes_sent", "frames_received", "frames_sent"} == touched
    for name in touched:
        assert hasattr(real, name) != hasattr(transport, name), name
    assert transport._state == transport._STATE_ACTIVE and transport.get_write_buffer_size() == 0
    assert isinstance(transport._sock, socket.socket)
    assert callable(real.callbacks.add)


def test_frames_that_are_ready_are_sent_as_they_are(peer: Peer, connection: Connection) -> None:
    frames = b"".join(pika.frame.Method(1, spec.Basic.Ack(tag)).marshal() for tag in range(1, 501))
    in_loop(connection, lambda: inside.send_frames(connection._connection, frames))
    peer.wait_for(spec.Basic.Ack, 500)
    assert [ack.delivery_tag for ack in peer.of(spec.Basic.Ack)] == list(range(1, 501))


def stop_reading(peer: Peer, connection: Connection) -> None:
    """More is on its way than the socket takes."""
    assert peer._socket is not None
    connection._connection._transport._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    peer.reading.clear()
    peer.send(spec.Basic.Ack(1))
    big = pika.frame.Body(1, bytes(BIG)).marshal()
    in_loop(connection, lambda: inside.send_frames(connection._connection, big))
    assert in_loop(connection, lambda: connection._connection._transport.get_write_buffer_size()) > 0


def test_a_heartbeat_goes_between_two_frames_only(peer: Peer, connection: Connection) -> None:
    in_loop(connection, lambda: inside.send_heartbeat(connection._connection))
    peer.wait_for(pika.frame.Heartbeat)
    stop_reading(peer, connection)
    in_loop(connection, lambda: inside.send_heartbeat(connection._connection))
    peer.reading.set()
    peer.wait_for(pika.frame.Body)
    assert len(peer.of(pika.frame.Heartbeat)) == 1


class Socket:
    """A socket that sends so many bytes, or raises this."""

    def __init__(self, outcome: int | Exception) -> None:
        self._outcome = outcome

    def fileno(self) -> int:
        return 0

    def send(self, data: bytes) -> int:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


@pytest.mark.parametrize(
    ("outcome", "left"), [(8, None), (3, BEAT[3:]), (BlockingIOError(), BEAT), (BrokenPipeError(), BEAT)]
)
def test_what_the_socket_does_not_take_at_once_is_left_to_pika(
    outcome: Any, left: bytes | None, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, buffered = connection._connection._transport, list[bytes]()

    def send() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(transport, "_sock", Socket(outcome))
            patched.setattr(transport, "_buffer_tx_data", buffered.append)
            patched.setattr(transport, "_nbio", type("Nobody", (), {"set_writer": lambda *it: None})())
            inside.send_heartbeat(connection._connection)

    in_loop(connection, send)
    assert buffered == ([] if left is None else [left])


def test_over_tls_pika_sends_itself() -> None:
    """OpenSSL wants the bytes again that it could not send, before all others."""

    class Transport:
        _sock = ssl.create_default_context().wrap_socket(socket.socket(), server_hostname="x",
                                                         do_handshake_on_connect=False)

        def write(self, data: bytes) -> None: ...

    transport = Transport()
    inside.send_straight(type("C", (), {"_transport": transport}))
    assert "write" not in vars(transport)
    transport._sock.close()


def test_no_heartbeat_on_a_connection_that_has_ended(peer: Peer, connection: Connection) -> None:
    peer.cut()
    until(lambda: connection.lost)
    until(lambda: not connection._thread.is_alive())
    inside.send_heartbeat(connection._connection)
    inside.moved(connection._connection)
    inside.close_socket(connection._connection)


def test_what_moves_is_counted_and_heartbeats_are_not(peer: Peer, connection: Connection) -> None:
    def moved() -> int:
        return int(in_loop(connection, lambda: inside.moved(connection._connection)[0]))

    before = moved()
    for _ in range(5):
        peer.send_bytes(BEAT)
    received = connection._connection.frames_received
    until(lambda: connection._connection.frames_received >= received + 5 or moved() < 0)
    in_loop(connection, lambda: inside.send_heartbeat(connection._connection))
    peer.wait_for(pika.frame.Heartbeat)
    until(lambda: moved() >= before)  # the other side has acknowledged it
    assert moved() - before in range(9)
    connection.queue_declare("q")
    assert moved() > before + 20


def test_what_waits_to_be_sent_has_not_moved(peer: Peer, connection: Connection) -> None:
    stop_reading(peer, connection)
    time.sleep(0.1)
    before = in_loop(connection, lambda: inside.moved(connection._connection)[0])
    assert before < BIG
    peer.reading.set()
    peer.wait_for(pika.frame.Body)
    until(lambda: in_loop(connection, lambda: inside.moved(connection._connection)[0]) >= BIG)


def test_rabbitmqs_own_words_are_heard_before_pikas_guess(peer: Peer) -> None:
    """callbacks.add, amid the handshake."""
    peer.answers[spec.Connection.StartOk] = close_connection(403, "ACCESS_REFUSED - its own words")
    with pytest.raises(Exception, match="its own words"):
        Connection(peer.address(), "test")


def test_letting_go_of_the_socket_is_no_goodbye(peer: Peer, connection: Connection) -> None:
    fd = connection._connection._transport._sock.fileno()
    copy = os.dup(fd)  # as the parent has it
    connection.forget()
    with pytest.raises(OSError):
        os.fstat(fd)
    connection.forget()  # a second time it is gone
    os.close(copy)
    peer.wait_for(None)
    assert not peer.of(spec.Connection.Close)


# -- headers


def table(headers: dict[Any, Any] | bytes) -> bytes:
    if isinstance(headers, bytes):
        return len(headers).to_bytes(4, "big") + headers
    pieces: list[bytes] = []
    pika.data.encode_table(pieces, headers)
    return b"".join(pieces)


def decoded(encoded: bytes) -> Any:
    """Headers as they arrive with a message."""
    inside.read_any_headers()
    inside.read_any_headers()  # once is enough, twice does no harm
    properties = pika.BasicProperties()
    properties.decode(struct.pack(">H", pika.BasicProperties.FLAG_HEADERS) + encoded)
    return properties.headers


@pytest.mark.parametrize(
    ("bad", "readable"), [(b"\x04when" + b"T" + b"\xff" * 8, pika.__version__ >= "1.5"), (b"\x01a?", False)]
)
def test_what_pika_cannot_decode_arrives_all_the_same(bad: bytes, readable: bool) -> None:
    assert isinstance(decoded(table(bad)), inside.UnreadableHeaders) != readable
    assert decoded(table({"a": 1})) == {"a": 1}


VALUES = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5,
)  # fmt: skip
HEADERS = st.dictionaries(st.text(max_size=20), VALUES, max_size=4)


@given(HEADERS, HEADERS, st.none() | st.text(max_size=20))
def test_a_copy_has_their_headers_and_ours_and_the_other_properties_as_they_were(
    theirs: Any, ours: Any, content_type: str | None
) -> None:
    ours = {f"tareas-{name}": value for name, value in ours.items()}
    fields = inside.fields(decoded(table(theirs)))
    copy = inside.Copy(fields, headers=ours, content_type=content_type, message_id="a", delivery_mode=2)
    found = arrived(copy)
    assert found.headers == {**theirs, **ours}
    assert (found.content_type, found.message_id, found.delivery_mode) == (content_type, "a", 2)


def test_values_that_pika_does_not_write_as_they_came_are_copied_byte_for_byte() -> None:
    odd = b"\x01fd" + struct.pack(">d", 1.5) + b"\x01ss" + struct.pack(">h", -2) + b"\x01xx\x00\x00\x00\x02\xff\x00"
    assert inside.fields(decoded(table(odd))) == {"f": odd[2:11], "s": odd[13:16], "x": odd[18:]}
    assert odd in b"".join(inside.Copy(inside.fields(decoded(table(odd)))).encode())


# -- and nobody else


def private(tree: ast.AST) -> set[str]:
    """The private attributes that a module asks something for which is not its own self, nor defined in it."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own |= {node.attr for node in attributes if ast.unparse(node.value) == "self"}
    return {
        node.attr
        for node in attributes
        if node.attr.startswith("_") and not node.attr.startswith("__") and node.attr not in own
    }  # fmt: skip


@functools.cache
def pikas_own() -> set[str]:
    """Every private name that some object of pika's has."""
    found: set[str] = set()
    for path in Path(pika.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {name for name in found if name.startswith("_")}


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_touches_what_pika_keeps_to_itself(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name == "inside.py":
        assert private(tree) & pikas_own()
        return
    assert private(tree) & (pikas_own() - {"_exit"}) == set(), "it belongs into tareas/rabbit/inside.py"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [each.name for each in node.names] + [getattr(node, "module", "") or ""]
            if any(name.split(".")[0] == "pika" for name in names):
                assert not any(part.startswith("_") for name in names for part in name.split(".")), ast.unparse(node)


@pytest.mark.parametrize("line", ["connection._impl", "channel.connection._transport", "x._output_marshaled_frames"])
def test_such_a_touch_is_found(line: str) -> None:
    assert private(ast.parse(line)) & pikas_own()
