"""Looking at dead letters counts as a delivery, and some versions drop what was delivered too often: not ours."""

from __future__ import annotations

import json
import subprocess
import sys

from tareas.rabbit import letterbox, queues
from tests.faults.harness import DEADLINE, FULL, ROOT, Fleet, scaled, tasks


def test_dead_letters_looked_at(fleet: Fleet) -> None:
    """Each is listed again and again, also by one who is killed over it; then all are replayed, and done.

    Without a delivery limit in its arguments, RabbitMQ 4.0 drops a letter at the 21st look.
    """
    count, looks, commands = scaled(10, 50), scaled(40, 100), scaled(2, 100)
    names = [task["id"] for task in tasks(count)]
    fleet.start_workers(2, "--handler", "tests.faults.handlers:reject")
    fleet.produce(tasks(count), wait=True)
    fleet.wait_settled()
    fleet.stop_workers()
    assert sorted(fleet.dead) == names

    def ready() -> int:
        """How many letters nobody holds: those of a closed connection come back a moment later."""
        with fleet.connection() as connection:
            return int(queues.counts(connection, queues.dead(fleet.queue)).message_count)

    if not FULL:  # the command takes its time to start: what counts is the look
        for _ in range(looks - commands):
            fleet.wait("the letters are back", lambda: ready() == count)
            with fleet.connection() as connection:
                seen = [letter.id for letter in letterbox.look(connection, fleet.queue)]
                assert sorted(seen) == names
                if fleet.faults % 2:  # else the connection closes over them, as when the one who looks is killed
                    letterbox.give_back(connection, fleet.queue, len(names))
            fleet.faults += 1
    for number in range(commands):
        fleet.wait("the letters are back", lambda: ready() == count)
        assert admin(fleet, "dead") == names, number
        fleet.faults += 1

    assert admin(fleet, "replay", "--all") == names
    assert fleet.letters() == []
    assert ready() == 0
    fleet.start_workers(2)
    fleet.wait_done(count)
    fleet.dead.clear()  # they lived again
    ending = fleet.ends("dead letters looked at")
    assert ending.verdict.done == count and not ending.letters and not ending.left
    assert all(fleet.done[name] == 1 for name in names)


def admin(fleet: Fleet, *argv: str) -> list[str]:
    """The ids of the letters that a command of admin.py shows, sorted."""
    call = [sys.executable, "admin.py", *argv, "--json", "--queue", fleet.queue, "--url", fleet.url]
    ended = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert ended.returncode == 0, ended.stderr
    return sorted(json.loads(line)["id"] for line in ended.stdout.splitlines())
