"""A worker dies or stands still, in every way there is: its task is done by another, and nothing is lost."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from collections.abc import Sequence

from tests.faults.harness import Fleet, Member, scaled, tasks

CRASHED = 70  # what a simulated crash ends a worker with
ALWAYS = 1_000_000
PREFETCH = 50
SEVERAL = ("--prefetch", str(PREFETCH))  # tasks in one worker's hand, done one after the other


def test_worker_killed(fleet: Fleet) -> None:
    """SIGKILL in the middle of a task, at random, each worker replaced."""
    count, kills = scaled(240, 2000), scaled(8, 60)
    fleet.start_workers(4)
    fleet.produce(tasks(count, (0, 0.05)))
    for kill in range(1, kills + 1):
        fleet.wait_done(kill * count // (kills + 1))
        fleet.wait_taken_over(fleet.kill_busy())
    ending = fleet.ends("worker killed")
    assert fleet.faults == len(fleet.ended_with(-signal.SIGKILL)) == kills
    assert len(fleet.done) == count and not ending.letters and not ending.left
    assert ending.verdict.redelivered >= kills


def test_worker_killed_between_work_and_ack(fleet: Fleet) -> None:
    """The work is done and said to be done, the ack is not sent: done again, and the second start says redelivered.

    The same for dead letters: a worker that dies after the confirmed copy and before the ack leaves one too many.
    """
    kills = scaled(8, 200)
    dead = kills // 4
    held = tasks(kills - dead, prefix="held", hold=True)
    rejected = tasks(dead, prefix="rejected", hold=True, reject=True)
    plain = tasks(2 * kills, prefix="plain")
    mixed = [*held, *rejected, *plain]
    fleet.dice.shuffle(mixed)
    fleet.start_workers(3, "--handler", "tests.faults.handlers:work", script="tests.faults.slow_ack_worker")
    fleet.produce(mixed, wait=True)
    while fleet.faults < kills:
        fleet.wait("a worker between work and ack", lambda: holding(fleet))
        for member in holding(fleet):
            fleet.kill(member)
    fleet.wait("all done again", lambda: all(fleet.done[task["id"]] == 2 for task in held))
    fleet.wait("all dead again", lambda: all(len(fleet.dead[task["id"]]) == 2 for task in rejected))
    ending = fleet.ends("worker killed between work and ack")
    assert set(ending.verdict.twice) == {task["id"] for task in held}
    assert ending.verdict.redelivered == fleet.faults == kills
    assert sorted(letter.id for letter in ending.letters) == sorted(2 * [task["id"] for task in rejected])


def holding(fleet: Fleet) -> list[Member]:
    """Workers that told the end of a task that is to be held, on its first delivery, and so wait for their end."""
    return [
        member
        for member in fleet.workers
        if member.running
        and member.last["event"] in ("done", "dead_lettered")
        and str(member.last["id"]).startswith(("held", "rejected"))
        and member.having("started", id=member.last["id"], redelivered=False)
    ]


def test_worker_frozen(fleet: Fleet) -> None:
    """SIGSTOP past the heartbeat: another does the task. After SIGCONT its late result is discarded; it goes on."""
    rounds, at_once = scaled(1, 5), 2
    # RabbitMQ gives a silent client up after two to three heartbeats.
    workers = fleet.start_workers(4, url=f"{fleet.url}?heartbeat=2")
    discarded = 0
    for number in range(rounds):
        fleet.produce(tasks(12, (1, 1), prefix=f"round-{number}"), wait=True)
        frozen: list[Member] = []
        starts = []
        for _ in range(at_once):
            member = fleet.freeze_busy(among=[member for member in workers if member not in frozen])
            assert member.task is not None
            frozen.append(member)
            starts.append(member.task)
            fleet.faults += 1
        for start in starts:
            fleet.wait_taken_over(start)
            fleet.wait_done(0, start["id"])
        before = [len(member.events) for member in frozen]
        for member in frozen:
            member.thaw()
        for member, start, seen in zip(frozen, starts, before, strict=True):
            # Frozen between the last look at its connection and `done`, it says `done`, and the double was announced.
            fleet.wait_event(member, "discarded", "done", after=seen)
            fleet.wait_event(member, "connected", after=seen)
            discarded += len(member.having("discarded", id=start["id"]))
        goes_on(fleet, frozen, f"after-{number}")
    ending = fleet.ends("worker frozen")
    assert fleet.workers == [] and not any(member.killed for member in workers)
    assert discarded > fleet.faults / 2
    assert ending.verdict.redelivered >= fleet.faults and not ending.letters
    assert len(ending.verdict.twice) <= fleet.faults - discarded


def goes_on(fleet: Fleet, members: Sequence[Member], prefix: str) -> None:
    """Give work until each of these has done some of it."""
    for number in itertools.count():
        assert number < 20, fleet.report()
        batch = f"{prefix}-{number}"
        fleet.produce(tasks(2 * len(fleet.workers), (0.1, 0.1), prefix=batch), wait=True)
        fleet.wait_settled()
        if all(any(batch in str(event["id"]) for event in member.having("done")) for member in members):
            return
        prefix = f"{prefix}x"


def test_worker_crashed_by_the_task(fleet: Fleet) -> None:
    """A task that kills its worker: again up to the bound, then a dead letter; its supervisor restarts the worker.

    The worker that finds the attempts used up dead-letters the task before it can kill one more.
    """
    poison = tasks(scaled(2, 20), prefix="poison", crash_attempts=ALWAYS)
    twice = tasks(scaled(2, 20), prefix="twice", crash_attempts=2)
    good = tasks(scaled(40, 500), (0, 0.02), prefix="good")
    mixed = [*poison, *twice, *good]
    fleet.dice.shuffle(mixed)
    fleet.statuses_allowed.add(CRASHED)
    fleet.start_workers(3)
    fleet.produce(mixed)
    fleet.wait_settled()
    crashes = fleet.ended_with(CRASHED)
    fleet.faults = len(crashes)
    ending = fleet.ends("worker crashed by the task")

    assert len(crashes) == 5 * len(poison) + 2 * len(twice)
    for task in poison:
        assert attempts(fleet, task["id"]) == [1, 2, 3, 4, 5]
        (dead,) = fleet.dead[task["id"]]
        assert dead["attempt"] == 5 and "attempts used up" in dead["reason"]
    for task in twice:
        assert attempts(fleet, task["id"]) == [1, 2, 3] and fleet.done[task["id"]] == 1
    for task in good:
        assert attempts(fleet, task["id"]) == [1] and fleet.done[task["id"]] == 1
    assert sorted(letter.id for letter in ending.letters) == sorted(task["id"] for task in poison)
    assert all(letter.attempts == 5 for letter in ending.letters)


def test_crashers_among_tiny_tasks(fleet: Fleet) -> None:
    """A crash gives back all that its worker held, also what never began: an attempt of each is spent.

    Only the crasher may die of it. More workers than a task has attempts: whatever came back beside the crasher could
    go with it from one full hand to the next.
    """
    count, crashers, workers = scaled(1500, 20_000), scaled(4, 40), 8
    poison = tasks(crashers, prefix="poison", crash_attempts=ALWAYS)
    good = tasks(count - crashers, prefix="good")
    mixed = list(good)
    apart = len(good) // (crashers + 1)  # far enough for a worker that is careful to hold many again
    for number, task in enumerate(poison, 1):
        mixed.insert(number * apart, task)
    fleet.statuses_allowed.add(CRASHED)
    fleet.produce(mixed, wait=True)  # first, so that there is always more than fits into the hands
    fleet.start_workers(workers, *SEVERAL, wait=False)  # the first may crash before the last is connected
    fleet.wait_settled()
    fleet.faults = len(fleet.ended_with(CRASHED))
    ending = fleet.ends("crashers among tiny tasks")

    assert sorted(letter.id for letter in ending.letters) == sorted(task["id"] for task in poison)
    assert all(letter.attempts is not None and letter.attempts >= 5 for letter in ending.letters)
    assert crashers <= fleet.faults <= 5 * crashers  # a crasher may lose an attempt as the neighbour of another
    assert all(fleet.done[task["id"]] for task in good)
    spent = [max(int(event["attempt"]) for event in fleet.started[task["id"]]) - 1 for task in good]
    print(f"{crashers} crashers cost good tasks {sum(spent)} attempts; tasks by attempts lost: {Counter(spent)}")
    assert sum(spent), "no worker ever held more than one"
    assert sum(spent) <= 2 * crashers * (PREFETCH - 1), "neighbours pay for more than the first crash"


def test_workers_killed_at_prefetch_50(fleet: Fleet) -> None:
    """SIGKILL in the middle of a task with others behind it, and acks that cover many: each double is announced."""
    kills = scaled(5, 60)
    count = 500 * kills
    fleet.produce(tasks(count, (0, 0.01)), wait=True)
    fleet.start_workers(4, *SEVERAL)
    for kill in range(1, kills + 1):
        fleet.wait_done(kill * count // (kills + 1))
        fleet.wait_taken_over(fleet.kill_busy())
    ending = fleet.ends("workers killed at prefetch 50")
    assert fleet.faults == len(fleet.ended_with(-signal.SIGKILL)) == kills
    assert len(fleet.done) == count and not ending.letters and not ending.left
    assert ending.verdict.redelivered >= 2 * kills, "no worker ever held more than one"
    assert set(ending.verdict.twice) <= {event["id"] for event in fleet.having("started", redelivered=True)}


def attempts(fleet: Fleet, task_id: str) -> list[int]:
    """The attempts that were started, in their order."""
    return [event["attempt"] for event in fleet.having("started", id=task_id)]
