"""The window of a producer: which tasks an answer is about, what is published again, in which order."""

from __future__ import annotations

from hypothesis import given, strategies as st

from tareas.task import SMALL_BYTES
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
    made.returned("twice", b"x")
    assert made.settle(3, multiple=True) == [(same, True), (same, False), (Item("other", b"x"), False)]


def test_a_lost_channel_gives_back_what_it_had_not_confirmed_before_what_waited_already() -> None:
    first, second, third, fourth = items(4)
    made = window_of([first, second, third])
    made.again.append(fourth)
    made.returned(third.id, third.body)
    made.settle(2, multiple=False)
    made.lost()
    assert list(made.again) == [first, third, fourth] and len(made) == 0
    made.published(first)  # numbered from 1 again, and the return of the old channel is forgotten
    made.published(third)
    assert made.settle(2, multiple=True) == [(first, False), (third, False)]


def room(made: Window, item: Item = Item("next", b"x")) -> bool:  # noqa: B008 (a tuple)
    """Whether this new one may be published now. It is not."""
    found = made.next(lambda: item)
    assert found in (None, item) and made.held in (None, item)
    made.held = None
    return found is not None


def test_it_is_full_by_number_and_by_bytes() -> None:
    made = window_of(items(window.MOST - 1))
    assert room(made)
    made.published(Item("last", b"x"))
    assert not room(made)
    made.settle(1, multiple=False)
    assert room(made)
    heavy = window_of([Item("heavy", bytes(window.MOST_BYTES))])
    for end in (lambda: heavy.settle(1, multiple=False), heavy.lost):
        assert not room(heavy)
        end()
        heavy.again.clear()
        assert room(heavy)
        heavy.published(Item("heavy", bytes(window.MOST_BYTES)))


def test_when_it_is_full_nothing_is_taken_from_the_source_and_what_waits_goes_first() -> None:
    made = window_of(items(window.MOST))
    assert made.next(lambda: 1 / 0) is None  # type: ignore[arg-type, return-value]
    made.lost()
    assert [made.next(lambda: 1 / 0) for _ in range(window.MOST)] == items(window.MOST)  # type: ignore[arg-type, return-value]
    assert made.next(lambda: None) is None and not made.waiting


def test_what_is_larger_than_anything_stored_travels_alone_and_what_was_stored_proves_the_like() -> None:
    made = window_of([Item("small", b"x")])
    big, like = Item("big", bytes(5000)), Item("like", bytes(8000))
    assert room(made, Item("next", bytes(SMALL_BYTES))) and not room(made, big)
    assert made.next(lambda: big) is None and made.waiting  # it is held
    made.settle(1, multiple=False)
    assert made.next(lambda: 1 / 0) == big  # type: ignore[arg-type, return-value]
    made.published(big)
    assert not room(made)
    made.settle(2, multiple=False)
    made.published(big)
    assert room(made, like) and not room(made, Item("larger", bytes(8193)))


def test_who_is_to_blame_is_certain_when_it_is_alone_and_else_is_looked_for_one_at_a_time() -> None:
    published = items(3)
    made = window_of(published)
    assert made.blame() is None
    made.lost()
    for tag in (1, 2):
        found = made.next(lambda: None)
        assert found is not None
        made.published(found)
        assert not room(made)
        made.settle(tag, multiple=False)
    made.published(made.again.popleft())
    assert made.blame() == made.blamed == published[2]


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
