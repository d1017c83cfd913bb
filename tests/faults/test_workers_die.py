"""A worker dies, in every way there is: each of its tasks is done by another, and nothing is lost."""

from __future__ import annotations

from tests.faults.harness import Fleet, scaled, tasks


def test_worker_killed(fleet: Fleet) -> None:
    """SIGKILL in the middle of tasks, each worker replaced."""
    count, kills = scaled(240, 2000), scaled(8, 60)
    fleet.start_workers(4)
    fleet.produce(tasks(count, (0, 0.05)))
    for kill in range(1, kills + 1):
        fleet.wait("more tasks done", lambda due=kill * count // (kills + 1): len(fleet.done) >= due)  # type: ignore[misc]
        died_on = fleet.kill_busy()
        # Its connection died with it, so RabbitMQ gives the task to the next, and says so.
        fleet.wait("redelivered", lambda died_on=died_on: [  # type: ignore[misc]
            event for event in fleet.started[died_on["id"]] if event["redelivered"] and event["who"] != died_on["who"]
        ])
    ending = fleet.ends("worker killed")
    assert ending.verdict.done == count and ending.verdict.redelivered >= kills and not ending.letters
