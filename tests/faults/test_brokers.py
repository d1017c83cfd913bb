"""The one RabbitMQ there is stops, or dies: what it has confirmed is on its disk."""

from __future__ import annotations

import json
from pathlib import Path

from tareas.lab.node import Node
from tests.faults.feed import Feed, Round, wait_started
from tests.faults.harness import Fleet, scaled

RATE = scaled(40, 200)  # tasks a second
# RabbitMQ tries again so many seconds later when the dead-letter queue, which starts as well, is not there yet
# (dead_letter_worker_publisher_confirm_timeout); seen once, on a busy machine.
DEAD_LETTERED_AGAIN = 180
HELD = scaled(4, 10)  # tasks that are in their last attempt when RabbitMQ dies


def test_broker_restarted_and_killed(killable: Node, killable_fleet: Fleet) -> None:
    """SIGTERM and SIGKILL while tasks are published and consumed; both commands wait and go on by themselves."""
    fleet = killable_fleet
    fleet.start_workers(3)
    with Feed(fleet, RATE) as feed:
        fleet.wait_until_safe()
        for end in [killable.stop, killable.kill] * scaled(1, 10):
            fault = Round(fleet)
            fault.wait_flow()
            end()
            fleet.faults += 1
            fault.wait_lost()
            killable.start()
            fault.wait_back()
    ending = fleet.ends("broker restarted, broker killed")
    assert not ending.letters
    for member in [feed.producer, *fleet.members[:3]]:
        assert len(member.having("connection_lost")) >= fleet.faults


def test_last_attempt_spent_on_the_brokers_death(killable: Node, killable_fleet: Fleet, tmp_path: Path) -> None:
    """Tasks are held in their last attempt while RabbitMQ is killed: each lies in the dead-letter queue afterwards.

    By the worker's bound the worker that gets such a task next dead-letters it. By a limit of the queue's own (a
    policy sets it, below the worker's bound) RabbitMQ does, while it starts: dead-lettering at-most-once lost them.
    """
    fleet, kills = killable_fleet, scaled(2, 5)
    expected: list[str] = []
    for kill in range(kills):
        of_the_queue = kill % 2 == 1
        limit_deliveries(fleet, killable, of_the_queue)
        # The worker's bound is one attempt; or it is far away, and the queue's limit is one.
        workers = fleet.start_workers(
            HELD, "--handler", "tests.faults.handlers:hold", "--max-attempts", "100" if of_the_queue else "1"
        )
        gate = tmp_path / f"gate-{kill}"
        held = [f"held-{kill}-{n}" for n in range(HELD)]
        fleet.produce([{"id": name, "complexity": 0, "until": str(gate)} for name in held], wait=True)
        wait_started(fleet, *held)
        fleet.wait_until_safe()
        killable.kill()
        fleet.faults += 1
        fault = Round(fleet, workers)
        killable.start()
        gate.touch()  # only now: those who held them must have seen the connection end
        fault.wait_said("connected")
        expected += held
        wait_dead(fleet, expected)
        fleet.produce([{"id": f"after-{kill}-{n}", "complexity": 0} for n in range(20)], wait=True)
        fleet.wait_done(0, *(f"after-{kill}-{n}" for n in range(20)))
        for letter in fleet.letters():
            if letter.id not in fleet.dead:  # RabbitMQ's own: no worker tells of it
                fleet.tell("dead_lettered", id=letter.id, reason=letter.reason)
        fleet.stop_workers()
    limit_deliveries(fleet, killable, False)
    ending = fleet.ends("last attempt spent on a broker's death")
    assert sorted(letter.id for letter in ending.letters) == sorted(expected)
    reasons = {letter.id: letter.reason or "" for letter in ending.letters}
    for name in expected:
        by_rabbitmq = int(name.split("-")[1]) % 2 == 1
        assert ("delivery_limit" if by_rabbitmq else "attempts used up") in reasons[name], reasons[name]


def wait_dead(fleet: Fleet, expected: list[str]) -> None:
    """Wait until these are in the dead-letter queue, once each, and no others."""
    fleet.wait(
        "all dead",
        lambda: sorted(letter.id for letter in fleet.letters()) == sorted(expected),
        deadline=DEAD_LETTERED_AGAIN + 20,
    )


def limit_deliveries(fleet: Fleet, node: Node, limited: bool) -> None:
    """Let RabbitMQ itself dead-letter at the second delivery, or not."""
    if limited:
        node.ctl("set_policy", "limit", f"^{fleet.queue}$", '{"delivery-limit": 0}', "--apply-to", "queues")

        def applied() -> bool:
            listed = json.loads(node.ctl("list_queues", "name", "policy", "--formatter", "json"))
            return {"name": fleet.queue, "policy": "limit"} in listed

        fleet.wait("the policy is that of the queue", applied)
        fleet.is_new()
    elif "limit" in node.ctl("list_policies", "--formatter", "json"):
        node.ctl("clear_policy", "limit")
