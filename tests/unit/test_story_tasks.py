"""The demo's tasks: what it reads, what it refuses, which chapter publishes which."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from tareas.errors import WrongCall
from tareas.story.chapters import CHAPTERS
from tareas.story.tasks import EXAMPLES, KEPT, MOST, Task, killable, own, read, samples, shares
from tareas.task import sample


def lines(folder: Path, *tasks: str) -> str:
    path = folder / "tasks.jsonl"
    path.write_text("".join(task + "\n" for task in tasks), encoding="utf-8")
    return str(path)


def test_the_file_of_the_project_has_all_that_the_chapters_need() -> None:
    tasks = read(str(EXAMPLES))
    assert len(tasks) == 12
    published = [task for share in shares(tasks, CHAPTERS, workers=2).values() for task in share]
    assert {task["id"] for task in published} == {task["id"] for task in tasks} | {"poison"}


def test_tasks_are_read_as_they_stand(tmp_path: Path) -> None:
    tasks = [{"id": "ñ", "complexity": 1, "extra": [1]}, {"id": "b", "complexity": 0.5, "fail_attempts": 2}]
    assert read(lines(tmp_path, *map(json.dumps, tasks))) == tasks


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[]", "line 2: a JSON list"),
        ('{"id": "b"}', "line 2: has no complexity"),
        ('{"id": "a", "complexity": 2}', "line 2: the id 'a' is there already"),
        ('{"id": "b", "complexity": 1, "crash_attempts": 1}', "line 2: crash_attempts ends workers"),
        ('{"id": "\\u001b[2J", "complexity": 1}', "line 2: its id"),
    ],
)
def test_a_task_that_the_demo_cannot_use_is_refused_with_its_line(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(WrongCall) as refused:
        read(lines(tmp_path, '{"id": "a", "complexity": 1}', body))
    assert says in str(refused.value)
    assert str(refused.value).isprintable()


def test_an_empty_file_too_many_tasks_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match="no task in it"):
        read(lines(tmp_path))
    with pytest.raises(WrongCall, match="more than 1,000"):
        read(lines(tmp_path, *(json.dumps(task) for task in sample(MOST + 1))))
    assert len(read(lines(tmp_path, *(json.dumps(task) for task in sample(MOST))))) == MOST
    with pytest.raises(WrongCall, match="is no file"):
        read(os.devnull)


def test_the_same_seed_makes_the_same_tasks() -> None:
    assert samples(20, seed=7) == samples(20, seed=7) == list(sample(20, seed=7)) != samples(20, seed=8)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 100])
@pytest.mark.parametrize("workers", [1, 2, 16])
def test_whatever_the_chapters_each_task_is_published_once_and_each_chapter_has_what_it_shows(
    count: int, workers: int
) -> None:
    tasks = samples(count, seed=3)
    for size in range(len(CHAPTERS) + 1):
        for chapters in itertools.combinations(CHAPTERS, size):
            found = shares(tasks, chapters, workers)
            ids = [task["id"] for share in found.values() for task in share]
            assert len(ids) == len(set(ids))
            assert {task["id"] for task in tasks} <= set(ids)
            assert found.keys() == {"open", *chapters} - {"kill"}
            assert found["open"]
            assert "kill" not in chapters or any(killable(task) for task in found["open"])
            assert "restart" not in chapters or len(found["restart"]) == KEPT
            assert "late" not in chapters or len(found["late"]) == workers + 1
            assert "retry" not in chapters or [task["fail_attempts"] for task in found["retry"]] == [1]
            assert "poison" not in chapters or found["poison"][0]["fail_attempts"] > 100


def test_enough_tasks_of_the_users_leave_no_need_for_ours() -> None:
    tasks: list[Task] = [*samples(30, seed=1), {"id": "shaky", "complexity": 1, "fail_attempts": 1}]
    found = shares(tasks, ("kill", "late", "retry", "restart"), workers=3)
    assert sorted(task["id"] for share in found.values() for task in share) == sorted(task["id"] for task in tasks)
    assert [task["id"] for task in found["retry"]] == ["shaky"]


def test_the_only_task_is_there_from_the_beginning_even_if_it_fails_once() -> None:
    shaky: Task = {"id": "shaky", "complexity": 1, "fail_attempts": 1}
    assert shares([shaky], ("retry",), 3)["open"] == [shaky]


def test_a_task_that_is_short_or_fails_is_none_to_kill_a_worker_for() -> None:
    assert killable({"id": "a", "complexity": 1.5})
    assert not killable({"id": "a", "complexity": 0.5})
    assert not killable({"id": "a", "complexity": 1.5, "fail_attempts": 1})


def test_our_own_take_another_name_when_theirs_is_taken() -> None:
    task: Task = {"id": "poison", "complexity": 1}
    assert own(task, [])["id"] == "poison"
    assert own(task, ["poison", "poison-2"])["id"] == "poison-3"
    assert task["id"] == "poison"
    found = shares([{"id": "poison", "complexity": 2}], CHAPTERS, 2)
    assert found["poison"][0]["id"] == "poison-2"
