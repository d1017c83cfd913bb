"""How many tasks a worker may have at hand, and in which order it does what it has when it becomes careful."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tareas.work.prefetch import WELL, Prefetch, in_order


def well(prefetch: Prefetch, times: int) -> None:
    for _ in range(times):
        prefetch.met(redelivered=False)
        prefetch.ended(redelivered=False, well=True)


@pytest.mark.parametrize(
    ("most", "now", "acks"),
    [
        (1, 1, [True] * 3), (2, 2, [True] * 3), (3, 3, [True] * 3), (4, 4, [False, True, False, True]),
        (50, 50, [*[False] * 24, True, False]), (50, 1, [True] * 3),
    ],
)  # fmt: skip
def test_an_ack_is_due_when_half_of_the_prefetch_waits_for_it(most: int, now: int, acks: list[bool]) -> None:
    prefetch = Prefetch(most)
    prefetch.now = now
    for tag, due in enumerate(acks, 1):
        assert prefetch.done(tag) == due
        if due:
            assert prefetch.take() == tag and prefetch.take() == 0


@pytest.mark.parametrize("setback", ["back", "fails", "back and fails"])
def test_it_is_wide_after_so_many_first_deliveries_in_a_row_that_ended_well(setback: str) -> None:
    prefetch = Prefetch(50)
    for _ in range(2):
        well(prefetch, WELL - 1)
        assert (prefetch.wanted, prefetch.careful) == (1, True)
        well(prefetch, 1)
        assert (prefetch.wanted, prefetch.careful) == (50, True)  # until RabbitMQ is told
        prefetch.now = prefetch.wanted
        assert not prefetch.careful
        prefetch.met(redelivered="back" in setback)
        assert (prefetch.wanted == 1) == ("back" in setback)
        prefetch.ended(redelivered="back" in setback, well="fails" not in setback)
        assert prefetch.wanted == 1
        prefetch.now = 1


STEPS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=100)


@given(st.integers(1, 100), STEPS)
def test_never_more_than_asked_for_and_careful_after_each_that_came_back(
    most: int, steps: list[tuple[bool, bool, bool]]
) -> None:
    """Each step: whether the task came back, whether it ended well, whether RabbitMQ is told what is wanted."""
    prefetch, in_a_row = Prefetch(most), 0
    for back, good, tell in steps:
        prefetch.met(back)
        assert not back or prefetch.wanted == 1
        prefetch.ended(back, good)
        in_a_row = in_a_row + 1 if good and not back else 0
        assert prefetch.wanted == (most if in_a_row >= WELL else 1)
        if tell:
            prefetch.now = prefetch.wanted
        assert 1 <= prefetch.now <= most


@given(st.integers(1, 100), st.lists(st.booleans(), max_size=100))
def test_every_task_that_is_done_is_covered_by_an_ack_and_no_ack_by_none(now: int, nothing_waits: list[bool]) -> None:
    prefetch, acked = Prefetch(now), 0
    prefetch.now = now
    for tag, waits in enumerate(nothing_waits, 1):
        if prefetch.done(tag) or waits:
            assert prefetch.take() == tag
            acked = tag
        assert tag - acked < max(1, now // 2)
    assert prefetch.take() == (len(nothing_waits) if acked < len(nothing_waits) else 0)


# -- the order of what is at hand


def delivery(tag: int, number: int) -> tuple[Any, Any, bytes]:
    return SimpleNamespace(delivery_tag=tag, redelivered=number > 1), number, b""


def ordered(*numbers: int) -> list[tuple[int, int]]:
    """The deliveries with these attempts, in the order to do them: tag and attempt of each."""
    made = [delivery(tag, number) for tag, number in enumerate(numbers, 1)]
    return [(it[0].delivery_tag, it[1]) for it in in_order(made, lambda it: int(it[1]))]


@pytest.mark.parametrize(
    ("attempts", "tags"),
    [
        ([], []), ([1, 1, 1], [1, 2, 3]), ([2, 1, 1], [2, 3, 1]), ([2, 2, 2], [3, 2, 1]), ([3, 3], [1, 2]),
        ([4, 4], [2, 1]), ([3, 2, 2, 1, 3], [4, 3, 2, 1, 5]),
    ],
)  # fmt: skip
def test_in_which_order_a_careful_worker_does_what_it_has(attempts: list[int], tags: list[int]) -> None:
    assert [tag for tag, _ in ordered(*attempts)] == tags


@given(st.lists(st.integers(1, 6), max_size=60))
def test_all_of_it_and_first_deliveries_first(attempts: list[int]) -> None:
    done = ordered(*attempts)
    assert sorted(done) == list(enumerate(attempts, 1))
    assert [number for _, number in done] == sorted(attempts)
    firsts = [tag for tag, number in done if number == 1]
    assert firsts == sorted(firsts)


@given(st.integers(2, 50), st.integers(0, 49))
def test_a_task_that_kills_its_worker_each_time_takes_no_other_one_with_it(hand: int, place: int) -> None:
    """So many were at hand at its first crash. Each worker after that is careful: it acknowledges each task, and what
    it has not done by its death loses an attempt."""
    attempts = dict.fromkeys(range(hand), 2)
    killer = place % hand
    for _ in range(5):
        queue = list(attempts)  # RabbitMQ gives them back in their order
        made = [delivery(tag, attempts[task]) for tag, task in enumerate(queue)]
        order = [queue[it[0].delivery_tag] for it in in_order(made, lambda it: int(it[1]))]
        if attempts[killer] > 5:
            break
        for task in order[: order.index(killer)]:
            del attempts[task]
        for task in attempts:
            attempts[task] += 1
    assert all(number < 5 for task, number in attempts.items() if task != killer), attempts
