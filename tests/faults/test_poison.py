"""Tasks that always fail, and tasks that fail at first: exactly the attempts they should have, with rests between."""

from __future__ import annotations

from tests.faults.harness import Event, Fleet, scaled, tasks

ALWAYS = 1_000_000
MAX_ATTEMPTS = 5  # worker.py's default
DELAY = 0.1  # seconds before the second attempt; doubled for each one after it
NOISE = 30.0  # seconds that a busy machine may add to a rest
CLOCK = 0.01  # seconds: events are told in milliseconds, and the clocks of sleep and time differ


def test_task_always_or_sometimes_fails(fleet: Fleet) -> None:
    """The attempts and the rests are exact on every version, whichever header carries the count there."""
    always = tasks(scaled(3, 40), prefix="always", fail_attempts=ALWAYS)
    sometimes = tasks(scaled(3, 40), prefix="sometimes", fail_attempts=2)
    last = tasks(scaled(2, 20), prefix="last", fail_attempts=MAX_ATTEMPTS - 1)
    good = tasks(scaled(30, 500), prefix="good")
    mixed = [*always, *sometimes, *last, *good]
    fleet.dice.shuffle(mixed)
    fleet.start_workers(3, "--retry-delay", str(DELAY))
    fleet.produce(mixed)
    fleet.wait_settled()
    fleet.faults = sum(map(len, fleet.failed.values()))
    ending = fleet.ends("task always or sometimes fails")

    for group, failures in ((always, MAX_ATTEMPTS), (sometimes, 2), (last, MAX_ATTEMPTS - 1), (good, 0)):
        for task in group:
            assert_attempts(fleet, task["id"], failures)
            assert fleet.done[task["id"]] == (0 if failures == MAX_ATTEMPTS else 1)
    for task in always:
        (dead,) = fleet.dead[task["id"]]
        assert dead["attempt"] == MAX_ATTEMPTS and "SimulatedFailure" in dead["reason"]
    assert sorted(letter.id for letter in ending.letters) == sorted(task["id"] for task in always)
    assert all(letter.attempts == MAX_ATTEMPTS for letter in ending.letters)


def assert_attempts(fleet: Fleet, task_id: str, failures: int) -> None:
    """So many failures, each but the last allowed one followed by its rest and one more attempt."""
    story = [event for event in life(fleet, task_id) if event["event"] in ("started", "failed", "requeued")]
    started, failed, requeued = (
        [event for event in story if event["event"] == word] for word in ("started", "failed", "requeued")
    )
    starts = min(failures + 1, MAX_ATTEMPTS)
    assert [event["attempt"] for event in started] == list(range(1, starts + 1)), story
    assert [event["redelivered"] for event in started] == [False] + [True] * (starts - 1), story
    assert [event["attempt"] for event in failed] == list(range(1, failures + 1)), story
    assert [event["attempt"] for event in requeued] == list(range(1, starts)), story
    for failure, rest, again in zip(failed, requeued, started[1:], strict=False):
        due = DELAY * 2 ** (failure["attempt"] - 1)
        assert due - CLOCK <= rest["rest"] <= due + NOISE, story
        assert again["time"] - failure["time"] >= due - CLOCK, story


def life(fleet: Fleet, task_id: str) -> list[Event]:
    """All events of a task."""
    return sorted(
        (event for member in fleet.members for event in member.events if event.get("id") == task_id),
        key=lambda event: float(event["time"]),
    )


def test_poison_does_not_starve(fleet: Fleet) -> None:
    """As many tasks that always fail as workers, ahead of the good ones, which must not wait for ever.

    A requeued task returns to the head of the queue: without bound and rests the good ones would never be done.
    """
    count = scaled(120, 500)
    fleet.start_workers(2, "--retry-delay", "0.3")
    alone = seconds_for(fleet, "alone", [], count)
    poison = tasks(2, prefix="poison", fail_attempts=ALWAYS)
    fleet.faults = len(poison)
    among = seconds_for(fleet, "among", poison, count)
    fleet.ends("poison must not starve")

    rests = sum(event["rest"] for event in fleet.having("requeued"))
    assert len(fleet.having("requeued")) == 2 * (MAX_ATTEMPTS - 1)
    print(f"{count} good tasks: {alone:.2f} s alone, {among:.2f} s among poison that rested {rests:.2f} s in all")
    assert among <= 1.5 * alone + rests + 2  # 2 s: for the noise of a short run


def seconds_for(fleet: Fleet, prefix: str, before: list[dict[str, object]], count: int) -> float:
    """Seconds from the first start to the last good task's end; the tasks `before` come first in the queue."""
    good = tasks(count, (0.02, 0.02), prefix=prefix)
    began = len(fleet.having("started"))
    fleet.produce([*before, *good])
    fleet.wait_settled()
    fleet.wait("good tasks done", lambda: all(fleet.done[task["id"]] for task in good))
    first = fleet.having("started")[began]
    last = [event for event in fleet.having("done") if str(event["id"]).startswith(prefix)][-1]
    return float(last["time"] - first["time"])
