"""What the tests of the edge share: a link that is slow or that ends at a certain call, and a node's inner settings."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from tareas.lab.node import Node
from tests.conftest import PARAMS
from tests.faults.proxy import Proxy, end
from tests.support import DEADLINE, Command

# For what does not depend on the version: the newest boots fastest.
ONE_VERSION = pytest.mark.parametrize(
    "programs", PARAMS[-1:], indirect=True, ids=lambda programs: programs.name if programs else "none"
)
PUBLISH, DELIVER = b"\x00\x3c\x00\x28", b"\x00\x3c\x00\x3c"  # class and method, as a frame has them


class Link(Proxy):
    """rate: bytes a second that pass, each way. barred: the connection ends instead of a PUBLISH, or right after a
    DELIVER; None: all passes. `began`: when each connection came, by time.monotonic()."""

    def __init__(self, url: str, rate: float | None = None, barred: bytes | None = None) -> None:
        super().__init__(url)
        self.rate, self.barred = rate, barred
        self.began: list[float] = []
        if rate is not None:  # little waits here: the rest waits with the sender, as before a slow line
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def __enter__(self) -> Link:
        return self

    def _join(self, client: socket.socket, most: int | None) -> None:
        self.began.append(time.monotonic())
        super()._join(client, most)

    def _pump(self, source: socket.socket, target: socket.socket, to_client: bool, most: int | None = None) -> None:
        free = time.monotonic()
        with contextlib.suppress(OSError):
            while data := source.recv(2048 if self.rate else 65536):
                if self.barred is not None and self.barred in data:
                    if to_client:
                        target.sendall(data)
                    break
                if self.rate is not None:
                    free = max(free, time.monotonic() - 0.1) + len(data) / self.rate
                    time.sleep(max(0.0, free - time.monotonic()))
                target.sendall(data)
        end(source)
        end(target)


# A process of the node's that runs what is written into a file: rabbitmqctl is seconds of CPU for each call.
HAND = """
spawn(fun() ->
  Loop = fun(Self) ->
    case file:script("{todo}") of
      {{error, enoent}} -> ok;
      Answer -> file:delete("{todo}"),
                file:write_file("{answer}.new", io_lib:format("~0p", [Answer])),
                file:rename("{answer}.new", "{answer}")
    end,
    timer:sleep(30),
    Self(Self)
  end,
  Loop(Loop)
end), ok.
"""
_hands: dict[Path, int | None] = {}


def erlang(node: Node, code: str) -> None:
    """Evaluate an Erlang expression in this node."""
    todo, answer = node.folder / "todo.erl", node.folder / "answer"
    if _hands.get(node.folder) != node.pid:
        node.ctl("eval", HAND.format(todo=todo, answer=answer))
        _hands[node.folder] = node.pid
    answer.unlink(missing_ok=True)
    fresh = todo.with_suffix(".new")
    fresh.write_text(f"{code}.\n")
    fresh.rename(todo)
    until = time.monotonic() + DEADLINE
    while not answer.exists():
        assert node.running and time.monotonic() < until, f"no answer to {code}"
        time.sleep(0.01)
    assert answer.read_text().startswith("{ok,"), answer.read_text()


@contextlib.contextmanager
def alarm(node: Node) -> Iterator[None]:
    """RabbitMQ's memory alarm."""
    what = "{resource_limit, memory, node()}"
    erlang(node, f"rabbit_alarm:set_alarm({{{what}, []}})")
    try:
        yield
    finally:
        erlang(node, f"rabbit_alarm:clear_alarm({what})")


@contextlib.contextmanager
def setting(node: Node, name: str, value: int) -> Iterator[None]:
    """A setting of RabbitMQ's while it runs, for channels that are opened from now on.

    Newer versions keep some of them in a persistent term, which the setting alone would not change.
    """
    key, old = f"{{tareas_test, {name}}}", f"tareas_test_{name}"
    erlang(node, f"""begin
      application:set_env(rabbit, {old}, {{application:get_env(rabbit, {name}), persistent_term:get({name}, none)}}),
      application:set_env(rabbit, {name}, {value}),
      persistent_term:get({name}, none) =:= none orelse persistent_term:put({name}, {value}), {key}
    end""")
    try:
        yield
    finally:
        erlang(node, f"""begin
          {{ok, {{Was, Term}}}} = application:get_env(rabbit, {old}),
          case Was of {{ok, V}} -> application:set_env(rabbit, {name}, V);
                      undefined -> application:unset_env(rabbit, {name}) end,
          Term =:= none orelse persistent_term:put({name}, Term), {key}
        end""")


def one_line(command: Command, status: int) -> str:
    """It ends with this status and one line on stderr: that line."""
    assert command.wait() == status, command.report()
    assert command.err.count("\n") == 1 and command.err[:-1].isprintable(), command.report()
    return command.err


def jsonl(*tasks: dict[str, Any]) -> str:
    return "".join(json.dumps(task) + "\n" for task in tasks)


@contextlib.contextmanager
def raw(url: str) -> Iterator[Any]:
    """A channel of pika's own."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        yield connection.channel()
