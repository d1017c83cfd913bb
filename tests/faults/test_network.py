"""The network between us and RabbitMQ fails in every way there is: said in a line, tried again, nothing lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tareas.lab.node import Node
from tests.faults.far_host import FarHost, possible as far_host_possible
from tests.faults.feed import Feed, Round, wait_started
from tests.faults.harness import Event, Fleet, Member, scaled
from tests.faults.proxy import Proxy

HOLD = ("--handler", "tests.faults.handlers:hold")
RATE = scaled(40, 200)  # tasks a second
AGAIN = 20.0  # seconds after which the operator closes connections once more, should one have escaped


def test_connection_cut(killable: Node, killable_fleet: Fleet) -> None:
    """The operator closes all connections, while tasks are published and consumed."""
    fleet = killable_fleet
    fleet.start_workers(3)
    with Feed(fleet, RATE) as feed:
        fleet.wait_event(feed.producer, "connected")
        for _ in range(scaled(3, 30)):
            cut = Round(fleet)
            cut.wait_flow()
            close_connections(killable, fleet, cut)
            fleet.faults += 1
            cut.wait_back()
        feed.wait_written(scaled(0, 20_000))
    fleet.ends("connection cut")
    assert feed.producer.having("published", again=True) or not fleet.having("refused")
    for member in [feed.producer, *(member for member in fleet.members if member.name.startswith("worker"))]:
        lost = [event["reason"] for event in member.having("connection_lost")]
        assert len(lost) >= fleet.faults, member.report()
        assert any("closed by the test" in reason for reason in lost), lost


def close_connections(node: Node, fleet: Fleet, cut: Round) -> None:
    """rabbitmqctl close_all_connections, until each has lost its connection."""
    for last in (False, False, True):
        node.ctl("close_all_connections", "--global", "closed by the test")
        try:
            fleet.wait("connections lost", lambda: cut.all_said("connection_lost"), AGAIN)
            return
        except AssertionError:
            if last:
                raise


@contextlib.contextmanager
def stalling_network(url: str) -> Iterator[Network]:
    """A proxy that stops forwarding: nothing passes, though the other side's system still takes what is sent."""
    with Proxy(url) as proxy:
        yield Network(proxy.url, proxy.stall, proxy.resume)


@contextlib.contextmanager
def far_host(url: str) -> Iterator[Network]:
    """The commands run on another host, whose cable is pulled: what is sent goes nowhere."""
    with FarHost() as host, Proxy(url, host.near) as proxy:
        yield Network(proxy.url, host.pull, host.plug, host.prefix)


class Network(NamedTuple):
    """What lies between some commands and RabbitMQ. prefix: what starts a command on its far side."""

    url: str
    cut: Callable[[], None]
    mend: Callable[[], None]
    prefix: Sequence[str] = ()


NETWORKS = {"stalled": stalling_network, **({"cable pulled": far_host} if far_host_possible() else {})}


@pytest.mark.parametrize("how", NETWORKS)
def test_network_cut(fleet: Fleet, tmp_path: Path, how: str) -> None:
    """Nothing passes any more and nobody is told, for longer than two heartbeats.

    RabbitMQ gives the silent worker's task to another. The worker that is cut off finishes it, learns that its
    connection is dead, and comes back when the network does; so does the producer, which publishes again.
    """
    with NETWORKS[how](fleet.url) as network:
        # Short heartbeats, and short waits for an answer when connecting: the row would only take longer.
        behind = f"{network.url}?heartbeat=2&socket_timeout=3&stack_timeout=3"
        fleet.hosts[behind] = network.prefix
        (far,) = fleet.start_workers(1, *HOLD, url=behind)
        fleet.start_workers(1, *HOLD, url=f"{fleet.url}?heartbeat=2")
        for number in range(scaled(1, 5)):
            with Feed(fleet, RATE, f"fed-{number}", url=behind) as feed:
                fleet.wait_event(feed.producer, "confirmed")
                held, gate = feed.hold(far, tmp_path)
                cut = Round(fleet, [far, feed.producer])
                network.cut()
                fleet.faults += 1
                start = far.having("started", id=held)[0]
                fleet.wait_taken_over(start)
                gate.touch()
                # Between the last heartbeat that it missed and its next look, a worker may say `done`: announced.
                cut.wait_end_of(held, "done", "discarded")
                cut.wait_lost()
                network.mend()
                cut.wait_back()
            assert feed.producer.having("published", again=True), "nothing was on its way when the network was cut"
        fleet.wait_settled()  # before the network goes for good
    ending = fleet.ends(f"network cut: {how}")
    assert len(far.having("connection_lost")) >= fleet.faults
    assert ending.verdict.redelivered >= fleet.faults and not ending.letters


# What a peer that is no RabbitMQ does with those who connect, and what they are to say of it.
PEERS = {
    "close": "closed the connection before it spoke AMQP",
    "cut": "closed the connection before it spoke AMQP",
    "http": "closed the connection before it spoke AMQP",  # no complete frame: pika waits for more of it
    "mute": "no answer from",
}


def test_peer_that_is_no_rabbitmq(fleet: Fleet) -> None:
    """The connection ends in the middle of a frame; then whoever connects meets something that is no RabbitMQ."""
    with Proxy(fleet.url) as proxy:
        behind = f"{proxy.url}?socket_timeout=2&stack_timeout=2"
        fleet.start_workers(2, url=behind)
        with Feed(fleet, RATE, url=behind) as feed:
            fleet.wait_event(feed.producer, "confirmed")
            for _ in range(scaled(1, 10)):
                for mode, words in PEERS.items():
                    spoilt = Round(fleet)
                    spoilt.wait_flow()
                    proxy.be(mode)
                    proxy.cut()
                    spoilt.wait_lost()
                    spoilt.wait_reason(words)
                    fleet.faults += 1
                    proxy.be("forward")
                    spoilt.wait_back()
        assert proxy.cuts >= 3 * fleet.faults
        assert min(proxy.met.values()) >= 3
        fleet.ends("a peer that is no RabbitMQ")
    assert feed.producer.having("published", again=True), "nothing was on its way when the connection was cut"


def test_memory_alarm(killable: Node, killable_fleet: Fleet, tmp_path: Path) -> None:
    """RabbitMQ takes no messages for want of memory: who publishes says that it is blocked, waits, and goes on."""
    fleet = killable_fleet
    fleet.start_workers(2, *HOLD)
    with Feed(fleet, RATE) as feed:
        for number in range(scaled(1, 5)):
            blocked = Round(fleet, [feed.producer])
            blocked.wait_flow()
            gate = tmp_path / f"gate-{number}"
            rejected = f"rejected-{number}"
            feed.write({"id": rejected, "complexity": 0, "until": str(gate), "reject": True})
            wait_started(fleet, rejected)
            with alarm(killable):
                fleet.faults += 1
                blocked.wait_said("blocked")
                at_least = feed.written + 20
                feed.wait_written(at_least)
                gate.touch()
                # A dead letter is published too: the worker waits with it.
                fleet.wait("worker blocked", lambda: len(blocked_workers(fleet)) >= fleet.faults)
                assert not fleet.dead[rejected]
            blocked.wait_said("unblocked")
            blocked.wait_flow()
    ending = fleet.ends("memory alarm")
    assert len(ending.letters) == fleet.faults
    assert not fleet.having("connection_lost"), "an alarm costs no connection"
    assert_silent_while_blocked(feed.producer, fleet.faults)


def blocked_workers(fleet: Fleet) -> list[Event]:
    return [event for member in fleet.workers for event in member.having("blocked")]


def assert_silent_while_blocked(producer: Member, times: int) -> None:
    """Published nothing between `blocked` and `unblocked`, though there was something to publish."""
    words = [event["event"] for event in producer.events if event["event"] in ("blocked", "unblocked", "published")]
    assert words.count("blocked") == words.count("unblocked") == times
    for at, word in enumerate(words):
        if word == "blocked":
            assert words[at + 1] == "unblocked", words[at : at + 3]


@contextlib.contextmanager
def alarm(node: Node) -> Iterator[None]:
    """RabbitMQ's memory alarm, as the operator can raise it."""
    node.ctl("set_vm_memory_high_watermark", "0.0001")
    try:
        yield
    finally:
        node.ctl("set_vm_memory_high_watermark", "0.6")
