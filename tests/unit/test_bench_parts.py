"""The hot path stays hot: what every task costs us, as a ratio to the least that Python can do for it.

No seconds: a slow machine slows both sides. The two run in turns, and the fastest round of each counts, so a busy
machine must spoil all rounds of one side and none of the other's to matter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from tareas.rabbit.outbox import Outbox
from tareas.task import decode
from tareas.tell.events import Events
from tests.unit.test_outbox import by_pika, properties

BODY = b'{"id":"task-00000001","complexity":0.25,"pad":"' + b"x" * 51 + b'"}'
ROUNDS, CALLS = 60, 50
BOUND = 1.75  # the work done twice is 2.0


def ratio(ours: Callable[[], object], plain: Callable[[], object]) -> float:
    """How many times as long ours takes."""
    best = {ours: float("inf"), plain: float("inf")}
    for _ in range(ROUNDS):
        for part in best:
            began = time.perf_counter()
            for _ in range(CALLS):
                part()
            best[part] = min(best[part], time.perf_counter() - began)
    return best[ours] / best[plain]


def test_a_task_is_decoded_and_checked_at_a_few_times_the_cost_of_json_alone() -> None:
    assert len(BODY) == 100
    assert ratio(lambda: decode(BODY), lambda: json.loads(BODY)) < BOUND  # measured: 1.0


def test_an_event_is_told_at_little_more_than_the_cost_of_writing_its_line(tmp_path: Path) -> None:
    facts = {"id": "task-00000001", "attempt": 1, "seconds": 0.25}
    with (tmp_path / "ours").open("w") as ours, (tmp_path / "plain").open("w") as plain:
        events = Events("worker-1", as_json=True, stream=ours)

        def write() -> None:
            plain.write(json.dumps({"time": round(time.time(), 3), "event": "done", "who": "worker-1", **facts}) + "\n")
            plain.flush()

        assert ratio(lambda: events.tell("done", **facts), write) < BOUND  # measured: 1.2


def test_a_task_is_published_at_a_fraction_of_the_cost_of_pika_s_own_publish() -> None:
    own, box = properties(message_id="task-00000001"), Outbox(1, 131_072)

    def ours() -> None:
        for _ in range(20):
            box.gather("", "a_queue", BODY, own, True)
        box.take()

    def pikas() -> None:
        by_pika([("a_queue", BODY, own, True)] * 20, 131_072)

    assert ratio(ours, pikas) < 0.5  # measured: 0.13
