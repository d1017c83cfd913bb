"""The window of a producer: which tasks an answer is about, what is published again, in which order."""

from __future__ import annotations

from hypothesis import given, strategies as st

from tareas.work import window
from tareas.work.sources import Item
from tareas.work.window import Window


def items(count: int) -> list[Item]:
    return [Item(f"task-{n}", b"x") for n in range(1, count + 1)]


def window_of(published: list[Item]) -> Window:
    made = Window()
    for item in published:
        made.published(item)
    return made


def test_an_answer_for_one_task_leaves_the_others() -> None:
    published = items(3)
    made = window_of(published)
    assert made.settle(2, multiple=False) == [(published[1], False)]
    assert len(made) == 2


def test_an_answer_for_all_up_to_one_settles_them_in_their_order() -> None:
    published = items(4)
    made = window_of(published)
    made.settle(2, multiple=False)
    assert made.settle(3, multiple=True) == [(published[0], False), (published[2], False)]
    assert len(made) == 1


def test_a_returned_task_is_told_so_once_for_each_return() -> None:
    same = Item("twice", b"x")
    made = window_of([same, same, Item("other", b"x")])
    made.returned(same)
    assert made.settle(3, multiple=True) == [(same, True), (same, False), (Item("other", b"x"), False)]


def test_a_lost_channel_gives_back_what_it_had_not_confirmed_before_what_waited_already() -> None:
    first, second, third, fourth = items(4)
    made = window_of([first, second, third])
    made.again.append(fourth)
    made.returned(third)
    made.settle(2, multiple=False)
    made.lost()
    assert list(made.again) == [first, third, fourth] and len(made) == 0
    made.published(first)  # numbered from 1 again, and the return of the old channel is forgotten
    made.published(third)
    assert made.settle(2, multiple=True) == [(first, False), (third, False)]


def test_it_is_full_by_number_and_by_bytes() -> None:
    made = window_of(items(window.MOST - 1))
    assert made.has_room()
    made.published(Item("last", b"x"))
    assert not made.has_room()
    made.settle(1, multiple=False)
    assert made.has_room()
    heavy = window_of([Item("heavy", bytes(window.MOST_BYTES))])
    assert not heavy.has_room()
    heavy.settle(1, multiple=False)
    assert heavy.has_room()


@given(st.lists(st.tuples(st.sampled_from(["publish", "one", "all", "lose"]), st.integers(0, 30)), max_size=60))
def test_whatever_happens_no_task_is_lost_or_there_twice(steps: list[tuple[str, int]]) -> None:
    made, sent, tags, settled, number = Window(), set[Item](), list[int](), list[Item](), 0
    on_channel = 0
    for what, where in steps:
        if what == "publish":
            number += 1
            item = made.again.popleft() if made.again else Item(f"task-{number}", b"x")
            made.published(item)
            sent.add(item)
            on_channel += 1
            tags.append(on_channel)
        elif what == "lose":
            made.lost()
            tags, on_channel = [], 0
        elif tags:
            tag = tags[where % len(tags)]
            settled += [item for item, _ in made.settle(tag, multiple=what == "all")]
            tags = [t for t in tags if t != tag and (what == "one" or t > tag)]
    made.lost()
    assert len(settled) == len(set(settled))
    assert set(settled) | set(made.again) == sent and not set(settled) & set(made.again)
