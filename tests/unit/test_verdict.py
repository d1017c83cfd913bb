"""What is to be done with a delivery, and with its task when it has ended: decisions that touch nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tareas.errors import Reject
from tareas.work.verdict import MAX_REST, Ack, Bury, Do, GiveBack, attempt, on_delivery, on_end


@pytest.mark.parametrize(
    ("version", "redelivered", "headers", "number"),
    [
        ((3, 10, 8), False, None, 1),
        ((4, 0, 5), False, {"x-delivery-count": 4, "x-acquired-count": 4}, 1),  # forged by the publisher
        ((4, 3, 6), False, {"x-delivery-count": 4, "x-acquired-count": 4}, 1),
        ((3, 10, 8), True, {"x-delivery-count": 1}, 2),
        ((4, 0, 5), True, {"x-delivery-count": 3}, 4),
        ((4, 0, 5), True, {"x-delivery-count": 3, "x-acquired-count": 0}, 4),  # before 4.3 still the publisher's
        ((4, 2, 9), True, {"x-delivery-count": 1, "x-acquired-count": 4}, 2),
        ((4, 3, 0), True, {"x-acquired-count": 2}, 3),
        ((4, 3, 6), True, {"x-delivery-count": 1, "x-acquired-count": 3}, 4),
        ((4, 10, 0), True, {"x-delivery-count": 1, "x-acquired-count": 3}, 4),  # above 4.3, as numbers
        ((5, 0, 0), True, {"x-delivery-count": 1, "x-acquired-count": 3}, 4),
        ((4, 3, 6), True, {"x-delivery-count": 4}, 2),
        ((4, 0, 5), True, None, 2),
        ((4, 0, 5), True, {}, 2),
        ((4, 0, 5), True, {"x-delivery-count": "4"}, 2),
        ((4, 0, 5), True, {"x-delivery-count": -7}, 2),
        ((0,), True, {"x-delivery-count": 2}, 3),  # it does not say its version
    ],
)
def test_which_attempt_a_delivery_is(
    version: tuple[int, ...], redelivered: bool, headers: dict[str, Any] | None, number: int
) -> None:
    assert attempt(redelivered, headers, version) == number


HEADERS = st.none() | st.dictionaries(
    st.sampled_from(["x-delivery-count", "x-acquired-count", "x-death"]),
    st.integers() | st.text() | st.booleans() | st.floats() | st.none(),
)
VERSIONS = st.lists(st.integers(0, 20), max_size=3).map(tuple)


@given(st.booleans(), HEADERS, VERSIONS)
def test_an_attempt_is_the_first_one_exactly_if_it_is_the_first_delivery(
    redelivered: bool, headers: Any, version: tuple[int, ...]
) -> None:
    found = attempt(redelivered, headers, version)
    assert type(found) is int
    assert found >= 2 if redelivered else found == 1


# -- a delivery

GOOD = b'{"id": "a", "complexity": 0}'
BY_OTHERS = ("the worker died, lost its connection, took longer than RabbitMQ's consumer_timeout, or was stopped and "
             "gave the task back")


@pytest.mark.parametrize(
    ("body", "number", "options", "todo"),
    [
        (GOOD, 1, {}, Do({"id": "a", "complexity": 0}, 1)),
        (GOOD, 5, {}, Do({"id": "a", "complexity": 0}, 5)),
        (GOOD, 5, {"cut": ("a", "the cable")}, Do({"id": "a", "complexity": 0}, 5)),
        (GOOD, 6, {}, Bury(f"5 attempts used up, the last without an answer: {BY_OTHERS}", 5, "a")),
        (GOOD, 9, {"cut": ("b", "the cable")},
         Bury(f"8 attempts used up, the last without an answer: {BY_OTHERS}", 8, "a")),
        (GOOD, 6, {"cut": ("a", "the cable")},
         Bury("5 attempts used up, the last without an answer: the cable", 5, "a")),
        (b"{}", 3, {}, Bury("invalid task: has no id", 3, None)),
        (b'{"id": "a", "complexity": -1}', 1, {},
         Bury("invalid task: its complexity -1 is not in seconds from 0 to 86,400", 1, "a")),
        (b'{"id": "a", "fail_attempts": []}', 1, {"simulated": False}, Do({"id": "a", "fail_attempts": []}, 1)),
        (GOOD, 1, {"readable": False},
         Bury("invalid task: its headers cannot be read (a timestamp out of range?)", 1, "a")),
    ],
)  # fmt: skip
def test_what_to_do_with_a_delivery(body: bytes, number: int, options: dict[str, Any], todo: Do | Bury) -> None:
    found = on_delivery(body, number, 5, **{"simulated": True, **options})
    if isinstance(todo, Bury) and todo.reason == "invalid task: has no id":
        assert isinstance(found, Bury) and found.reason.startswith(todo.reason)
        found = Bury(todo.reason, found.attempts, found.task_id)
    assert found == todo


BODIES = st.binary(max_size=30) | st.dictionaries(
    st.sampled_from(["id", "complexity", "x"]), st.text(max_size=5) | st.integers(-1, 9) | st.floats() | st.none()
).map(lambda task: json.dumps(task).encode()) | st.just(GOOD)


@given(BODIES, st.integers(1, 2000), st.integers(1, 1000), st.booleans(), st.booleans())
def test_no_task_is_done_above_its_attempts_and_none_is_buried_without_a_reason(
    body: bytes, number: int, most: int, simulated: bool, readable: bool
) -> None:
    todo = on_delivery(body, number, most, simulated=simulated, readable=readable)
    if isinstance(todo, Do):
        assert todo.attempt == number <= most and readable
        assert isinstance(todo.task, dict) and todo.task["id"]
    else:
        assert todo.reason and todo.reason.isprintable()
        assert todo.attempts in (number, number - 1)


# -- the end of a task

@pytest.mark.parametrize(
    ("failure", "number", "todo"),
    [
        (None, 1, Ack()),
        (None, 5, Ack()),
        (ValueError("boom"), 1, GiveBack(1.0)),
        (ValueError("boom"), 4, GiveBack(8.0)),
        (ValueError("boom"), 5, Bury("ValueError: boom", 5, "a")),
        (ValueError(), 7, Bury("ValueError", 7, "a")),
        (SystemExit(0), 1, GiveBack(1.0)),
        (KeyboardInterrupt(), 5, Bury("KeyboardInterrupt", 5, "a")),
        (Reject("no such customer"), 1, Bury("rejected: Reject: no such customer", 1, "a")),
        (Reject(), 5, Bury("rejected: Reject", 5, "a")),
        (ValueError("\udce9\x1b[2J"), 5, Bury("ValueError: \\udce9\\x1b[2J", 5, "a")),
        (Reject("\udce9"), 1, Bury("rejected: Reject: \\udce9", 1, "a")),
    ],
)
def test_what_to_do_when_a_task_has_ended(failure: BaseException | None, number: int, todo: Any) -> None:
    assert on_end(failure, Do({"id": "a"}, number), 5, 1.0) == todo


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError


FAILURES = st.sampled_from([ValueError, Reject, SystemExit, Silent, type("\x1b", (Exception,), {})])


@given(FAILURES, st.text(max_size=2000), st.integers(1, 10**9), st.integers(1, 10**9), st.floats(0, 86_400))
def test_a_failure_is_given_back_after_a_bounded_rest_or_buried_with_a_reason(
    kind: type[BaseException], text: str, number: int, most: int, delay: float
) -> None:
    todo = on_end(kind(text), Do({"id": "a"}, number), most, delay)
    if isinstance(todo, GiveBack):
        assert number < most and kind is not Reject
        assert 0 <= todo.rest <= MAX_REST and (todo.rest >= delay or todo.rest == MAX_REST)
        after = on_end(kind(text), Do({"id": "a"}, number + 1), most, delay)
        assert not isinstance(after, GiveBack) or after.rest >= todo.rest
    else:
        assert isinstance(todo, Bury)
        assert todo.reason and todo.reason.isprintable() and (todo.attempts, todo.task_id) == (number, "a")
