"""The demo's picture: who did which task when, from nothing but events."""

from __future__ import annotations

from typing import Any

import pytest

from tareas.story.timeline import Bar, bars, draw, labels


def event(time: float, word: str, who: str, **facts: Any) -> dict[str, Any]:
    return {"time": 1000 + time, "event": word, "who": who, **facts}


def started(time: float, who: str, task_id: str, attempt: int = 1) -> dict[str, Any]:
    return event(time, "started", who, id=task_id, attempt=attempt, redelivered=attempt > 1)


def done(time: float, who: str, task_id: str, attempt: int = 1) -> dict[str, Any]:
    return event(time, "done", who, id=task_id, attempt=attempt, seconds=1.0)


KILLED_AND_REDELIVERED = [
    event(0, "connected", "worker-1", address="localhost:5672"),
    event(0, "connected", "worker-2", address="localhost:5672"),
    started(0, "worker-1", "task-0001"),
    started(0, "worker-2", "task-0002"),
    event(4, "killed", "worker-2"),
    done(5, "worker-1", "task-0001"),
    started(5, "worker-1", "task-0002", attempt=2),
    done(10, "worker-1", "task-0002", attempt=2),
]


def test_an_attempt_is_a_bar_from_started_to_done() -> None:
    assert bars([started(1, "w", "a"), done(3.5, "w", "a")]) == [Bar("w", "a", 1001, False, 1003.5, "")]


def test_a_killed_worker_ends_the_bar_of_what_it_had_in_hand_and_the_next_bar_is_marked_as_redelivered() -> None:
    first, second, third = bars(KILLED_AND_REDELIVERED)
    assert (second.who, second.id, second.end, second.mark, second.again) == ("worker-2", "task-0002", 1004, "X", False)
    assert (third.who, third.id, third.mark, third.again) == ("worker-1", "task-0002", "", True)
    assert first.mark == ""


def test_a_worker_killed_between_two_tasks_leaves_no_mark() -> None:
    (bar,) = bars([started(0, "w", "a"), done(1, "w", "a"), event(2, "killed", "w")])
    assert bar.mark == ""


@pytest.mark.parametrize(
    ("word", "mark"), [("done", ""), ("failed", "!"), ("dead_lettered", "!"), ("discarded", "?"), ("abandoned", "?")]
)
def test_every_end_of_an_attempt_has_its_mark(word: str, mark: str) -> None:
    (bar,) = bars([started(0, "w", "a"), event(1, word, "w", id="a")])
    assert (bar.end, bar.mark) == (1001, mark)


def test_the_end_of_another_task_or_of_another_worker_ends_nothing() -> None:
    (bar,) = bars([started(0, "w", "a"), done(1, "v", "a"), done(1, "w", "b"), event(2, "killed", "v")])
    assert bar.end is None


def test_events_may_come_in_any_order() -> None:
    story = [started(0, "w", "a"), done(1, "w", "a"), started(2, "w", "b"), event(3, "killed", "w")]
    assert bars(reversed(story)) == bars(story)


def test_an_attempt_whose_end_was_never_told_ends_where_the_next_one_begins() -> None:
    first, _ = bars([started(0, "w", "a"), started(2, "w", "b")])
    assert (first.end, first.mark) == (1002, "?")


def test_labels_are_the_numbers_of_the_ids_else_their_first_letters() -> None:
    assert labels(["task-0007", "task-0012", "poison"]) == {"task-0007": "7", "task-0012": "12", "poison": "PO"}


def test_labels_that_would_be_the_same_become_numbers() -> None:
    assert labels(["a-1", "b-1", "a-1"]) == {"a-1": "1", "b-1": "2"}


def test_the_picture_of_a_kill() -> None:
    assert draw(KILLED_AND_REDELIVERED, width=41) == [
        "         0 s            5",
        "worker-1 1==============>2==============",
        "worker-2 2==========X",
    ]


def test_rows_are_sorted_by_the_numbers_of_the_workers() -> None:
    story = [started(n, name, name) for n, name in enumerate(("worker-10", "worker-9", "worker-1"))]
    assert [row.split()[0] for row in draw(story)[1:4]] == ["worker-1", "worker-9", "worker-10"]


def test_a_row_for_rabbitmq_when_it_was_down() -> None:
    story = [*KILLED_AND_REDELIVERED, event(2, "down", "RabbitMQ"), event(6, "up", "RabbitMQ")]
    *_, workers, rabbitmq = draw(story, width=41)
    assert workers.startswith("worker-2 ")
    assert rabbitmq == "RabbitMQ       X~~~~~~~~~~~~"[: len(rabbitmq)]
    assert rabbitmq.count("~") == 11


def test_ids_that_share_a_number_are_explained_below() -> None:
    story = [started(0, "w", "mail-1"), done(5, "w", "mail-1"), started(5, "w", "photo-1"), done(9, "w", "photo-1")]
    assert draw(story)[-1] == "1 mail-1  2 photo-1"


def test_a_thousand_short_tasks_stay_within_the_width() -> None:
    story = [
        one for n in range(1000) for one in (started(n / 100, "w", f"t-{n}"), done(n / 100 + 0.005, "w", f"t-{n}"))
    ]
    assert all(len(row) <= 60 for row in draw(story, width=60))


def test_a_long_name_and_a_running_task_stay_within_the_width() -> None:
    story = [started(0, "w" * 90, "a"), started(3, "v", "b"), done(4, "v", "b")]
    rows = draw(story, width=50)
    assert all(len(row) <= 50 for row in rows)
    assert rows[1].endswith("=")  # it runs to the end of the picture


def test_no_attempt_no_picture() -> None:
    assert draw([event(0, "connected", "w", address="localhost:5672")]) == []
