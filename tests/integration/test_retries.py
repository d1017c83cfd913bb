"""Tasks that fail: exactly the attempts they should have on every version, rests between them, and the dead letter."""

from __future__ import annotations

import json
import time
from typing import Any

import pika
import pytest

from tests.integration.test_contract import PROPERTIES, declare, publish, publishers, ready, take, told, until
from tests.support import Command, Run

CRASHED = 70  # a worker's exit status when its task makes it die
CLOCK = 0.01  # seconds: events are told in milliseconds, and the clocks of sleep and time differ


def failing(name: str, fail: int, crash: int = 0) -> dict[str, Any]:
    return {"id": name, "complexity": 0, "fail_attempts": fail, "crash_attempts": crash}


def attempts(command: Command, name: str, word: str = "started") -> list[int]:
    return [event["attempt"] for event in command.event_list(word, id=name)]


@pytest.mark.parametrize("bound", [1, 2, 5])
def test_a_task_has_so_many_attempts_and_not_one_more(bound: int, channel: Any, queue: str, run: Run) -> None:
    """Tasks that fail from never up to once more than allowed, one worker, no rests."""
    declare(channel, queue)
    names = {f"fails-{n}": n for n in range(bound + 2)}
    publish(channel, queue, *(failing(name, n) for name, n in names.items()))
    options = ["--max-attempts", bound] if bound != 5 else []  # the default
    worker = run("worker.py", "w", "--drain", "--json", "--retry-delay", 0, "--queue", queue, *options)
    assert worker.wait() == 3
    for name, failures in names.items():
        dies = failures >= bound
        assert attempts(worker, name) == list(range(1, min(failures + 1, bound) + 1))
        assert attempts(worker, name, "failed") == list(range(1, min(failures, bound) + 1))
        assert attempts(worker, name, "requeued") == list(range(1, min(failures, bound - 1) + 1))
        assert attempts(worker, name, "done") == ([] if dies else [failures + 1])
        assert attempts(worker, name, "dead_lettered") == ([bound] if dies else [])
        redelivered = [event["redelivered"] for event in worker.event_list("started", id=name)]
        assert redelivered == [False] + [True] * (len(redelivered) - 1)
    assert [json.loads(body)["id"] for _, _, body in take(channel, f"{queue}.dead", 2)] == list(names)[-2:]
    take(channel, queue, 0)


def test_between_attempts_it_rests_each_time_twice_as_long(channel: Any, queue: str, run: Run) -> None:
    declare(channel, queue)
    publish(channel, queue, failing("x", 3))
    worker = run("worker.py", "w", "--json", "--drain", "--retry-delay", 0.3, "--queue", queue)
    assert worker.wait() == 0
    assert told(worker)[1:-1] == ["started", "failed", "requeued"] * 3 + ["started", "done"]
    failed, requeued, started = (worker.event_list(word) for word in ("failed", "requeued", "started"))
    for rest, before, between, after in zip((0.3, 0.6, 1.2), failed, requeued, started[1:], strict=True):
        assert between["rest"] >= rest - CLOCK
        assert between["time"] - before["time"] >= rest - CLOCK  # RabbitMQ gets it back after the rest, not before
        assert after["time"] - before["time"] >= rest - CLOCK


def test_without_retry_delay_it_does_not_rest_and_the_first_rest_is_a_second(
    channel: Any, queue: str, run: Run
) -> None:
    declare(channel, queue)
    publish(channel, queue, failing("x", 4))
    worker = run("worker.py", "--json", "--drain", "--retry-delay", 0, "--queue", queue)
    assert worker.wait() == 0
    assert max(event["rest"] for event in worker.event_list("requeued")) < 1  # the default's first one of four
    publish(channel, queue, failing("y", 1))
    worker = run("worker.py", "--json", "--drain", "--queue", queue)
    assert worker.wait() == 0
    assert worker.wait_event("requeued")["rest"] >= 1 - CLOCK


def test_while_it_rests_others_do_the_other_tasks(channel: Any, queue: str, run: Run) -> None:
    declare(channel, queue)
    publish(channel, queue, failing("x", 9))
    resting = run("worker.py", "--json", "--retry-delay", 600, "--queue", queue)
    resting.wait_event("failed")
    publish(channel, queue, *({"id": f"t-{n}", "complexity": 0} for n in range(5)))
    other = run("worker.py", "--json", "--drain", "--queue", queue)
    assert other.wait() == 0
    assert [event["id"] for event in other.event_list("done")] == [f"t-{n}" for n in range(5)]
    assert told(resting) == ["connected", "started", "failed"]


def test_a_publishers_forged_headers_count_for_nothing(channel: Any, queue: str, run: Run) -> None:
    declare(channel, queue)
    forged = {"x-delivery-count": 99, "x-acquired-count": 99, "x-death": "never", "tareas-attempts": 99}
    about = pika.BasicProperties(delivery_mode=2, headers=forged)
    publish(channel, queue, failing("x", 2), failing("y", 9), about=about)
    worker = run("worker.py", "--json", "--drain", "--max-attempts", 3, "--retry-delay", 0, "--queue", queue)
    assert worker.wait() == 3
    assert attempts(worker, "x") == [1, 2, 3] and attempts(worker, "x", "done") == [3]
    assert attempts(worker, "y") == [1, 2, 3] and attempts(worker, "y", "dead_lettered") == [3]
    ((_, properties, _),) = take(channel, f"{queue}.dead", 1)
    assert properties.headers["tareas-attempts"] == 3


def test_failures_crashes_and_kills_count_alike(channel: Any, queue: str, run: Run) -> None:
    """The headers that tell of them differ from version to version; a worker that ends takes no count along."""
    declare(channel, queue)
    publish(channel, queue, failing("x", 3, crash=1))

    def worker(*options: object) -> Command:
        return run("worker.py", "--json", "--max-attempts", 5, "--queue", queue, *options)

    crashed = worker()
    assert crashed.wait() == CRASHED
    assert told(crashed) == ["connected", "started"] and attempts(crashed, "x") == [1]
    killed = worker("--retry-delay", 0.5)  # attempt 2 fails and rests, 3 too, for twice as long
    killed.wait_event("failed", attempt=3)
    killed.kill()
    assert attempts(killed, "x") == [2, 3]
    last = worker("--drain")
    assert last.wait() == 0
    assert attempts(last, "x") == [4] and attempts(last, "x", "done") == [4]
    take(channel, queue, 0)


def test_a_task_that_kills_every_worker_is_dead_lettered_before_it_kills_one_more(
    channel: Any, queue: str, run: Run
) -> None:
    declare(channel, queue)
    publish(channel, queue, failing("deadly", 0, crash=1_000), failing("t-1", 0))
    for attempt in (1, 2):
        worker = run("worker.py", f"w-{attempt}", "--json", "--max-attempts", 2, "--queue", queue)
        assert worker.wait() == CRASHED
        assert attempts(worker, "deadly") == [attempt]
        until(lambda: ready(channel, queue) == 2)
    worker = run("worker.py", "w-3", "--json", "--max-attempts", 2, "--drain", "--queue", queue)
    assert worker.wait() == 3
    assert attempts(worker, "deadly") == [] and attempts(worker, "t-1", "done") == [1]
    ((_, properties, _),) = take(channel, f"{queue}.dead", 1)
    assert properties.headers["tareas-attempts"] == 2 and properties.headers["tareas-worker"] == "w-3"
    assert properties.headers["tareas-reason"] == worker.wait_event("dead_lettered")["reason"]
    assert "2 attempts used up" in properties.headers["tareas-reason"]


def test_the_dead_letter_is_the_task_as_it_was_and_says_why_how_often_who_and_when(
    channel: Any, queue: str, run: Run
) -> None:
    declare(channel, queue)
    body = ' {"fail_attempts":9, "id":"ñ" ,"complexity":0.0,"x":[1, 2.50]} '.encode()
    about = pika.BasicProperties(
        delivery_mode=2, message_id="m", timestamp=7, app_id="a", headers={"mine": 1}, content_type="application/json"
    )
    before = time.time()
    publish(channel, queue, body, about=about)
    worker = run("worker.py", "w-ñ", "--json", "--drain", "--max-attempts", 2, "--retry-delay", 0, "--queue", queue)
    assert worker.wait() == 3
    ((_, properties, copied),) = take(channel, f"{queue}.dead", 1)
    assert copied == body
    headers = publishers(properties.headers)
    assert before - CLOCK <= float(headers.pop("tareas-time")) <= time.time() + CLOCK
    assert headers == {
        "mine": 1, "tareas-attempts": 2, "tareas-worker": "w-ñ",
        "tareas-reason": "SimulatedFailure: attempt 2 fails, as the task asks",
    }  # fmt: skip
    properties.headers = about.headers
    assert properties == about


def test_a_failed_task_returns_to_the_head_of_the_queue(channel: Any, queue: str, run: Run) -> None:
    """What makes the rests necessary; if RabbitMQ ever changes it, the README has to change too."""
    declare(channel, queue)
    publish(channel, queue, failing("x", 1), failing("y", 0), about=PROPERTIES)
    worker = run("worker.py", "--json", "--drain", "--retry-delay", 0, "--queue", queue)
    assert worker.wait() == 0
    assert [event["id"] for event in worker.event_list("done")] == ["x", "y"]
