"""tell/audit.py and tell/logs.py: a verdict is worth something only if it can be bad."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tareas.errors import InvalidLog
from tareas.tell.audit import audit
from tareas.tell.logs import read

Event = dict[str, Any]


def event(word: str, task_id: str | None = None, who: str = "producer", **facts: Any) -> Event:
    return {"time": 1.0, "event": word, "who": who, **({} if task_id is None else {"id": task_id}), **facts}


def published(task_id: str, **facts: Any) -> list[Event]:
    return [event("published", task_id, **facts), event("confirmed", task_id)]


def finished(count: int) -> Event:
    return event("finished", published=count, confirmed=count, seconds=0.1)


def started(task_id: str, who: str = "w1", redelivered: bool = False) -> Event:
    return event("started", task_id, who, attempt=1 + redelivered, redelivered=redelivered)


def done(task_id: str, who: str = "w1") -> Event:
    return event("done", task_id, who, attempt=1, seconds=0.1)


def dead(task_id: str | None, reason: str | None = "it always fails", who: str = "w1") -> Event:
    return {"time": 1.0, "event": "dead_lettered", "who": who, "id": task_id, "attempt": 5, "reason": reason}


def replayed(task_id: str | None) -> Event:
    return {"time": 1.0, "event": "replayed", "who": "admin", "id": task_id}


def log(path: Path, events: list[Event], end: bytes = b"") -> Path:
    path.write_bytes("".join(json.dumps(e) + "\n" for e in events).encode() + end)
    return path


# -- what is fine


def test_a_task_that_is_confirmed_and_done_once_is_fine() -> None:
    verdict = audit([*published("a"), finished(1), started("a"), done("a")])

    assert verdict.fine and verdict.problems() == [] and verdict.notes() == ["these logs are of: producer, w1"]
    assert verdict.line() == "published 1, confirmed 1, done 1, redelivered 0, dead 0, lost 0"


def test_a_double_that_redelivery_announced_is_fine_and_counted() -> None:
    verdict = audit([*published("a"), started("a"), done("a"), started("a", "w2", True), done("a", "w2")])

    assert verdict.fine and verdict.twice == ["a"] and verdict.unannounced == []
    assert verdict.line() == "published 1, confirmed 1, done 1 (1 twice), redelivered 1, dead 0, lost 0"


def test_a_double_is_announced_whatever_order_the_logs_come_in() -> None:
    first, second = [started("a"), done("a")], [started("a", "w2", True), done("a", "w2")]

    assert audit([*second, *first, *published("a")]).fine


def test_a_double_after_published_again_is_fine() -> None:
    again = event("published", "a", again=True)

    assert audit([*published("a"), again, started("a"), done("a"), started("a", "w2"), done("a", "w2")]).fine


def test_confirmed_twice_is_fine() -> None:
    assert audit([*published("a"), event("confirmed", "a"), started("a"), done("a")]).confirmed == 1


def test_a_confirmed_task_may_be_dead_or_left_in_the_queue() -> None:
    verdict = audit([*published("a"), *published("b"), dead("a")], left=["b"])

    assert verdict.fine and verdict.dead == 1


def test_done_without_a_confirm_counts_and_is_said_but_is_no_problem() -> None:
    verdict = audit([event("published", "a"), started("a"), done("a")])

    assert verdict.fine and verdict.done == 1 and verdict.confirmed == 0 and verdict.unconfirmed == ["a"]
    assert any("without a confirm" in note and "a" in note for note in verdict.notes())


def test_of_several_tasks_with_one_id_as_many_have_to_end() -> None:
    twice = [*published("a"), event("published", "b", again=True), *published("b"), *published("a")]
    verdict = audit([*twice, started("a"), done("a"), started("b"), done("b")])

    assert verdict.lost == ["a"] and verdict.repeated == ["a"]
    assert "published as several tasks with one id: a" in verdict.notes()
    assert audit([*twice, started("b"), done("b"), started("a"), done("a"), dead("a")]).fine
    assert audit([*twice, started("b"), done("b"), started("a"), done("a")], left=["a"]).fine
    assert audit([*twice, started("b"), done("b")], left=["a"]).lost == ["a"]
    unsure = [event("published", "a"), *published("a"), started("a"), done("a")]  # killed, and started again
    assert audit(unsure).fine


def test_what_ended_long_before_it_was_published_was_another_task_of_that_id() -> None:
    def at(time: float, events: list[Event]) -> list[Event]:
        return [{**each, "time": time} for each in events]

    for end in (done("a"), dead("a")):
        night_before = at(1_000.0, [started("a"), end])
        verdict = audit([*at(87_000.0, published("a")), *night_before])
        assert verdict.lost == verdict.earlier == ["a"]
        assert any(note.startswith("done or dead long before it was published") for note in verdict.notes())
        assert audit([*at(1_500.0, published("a")), *night_before]).fine  # clocks differ
        today = at(87_001.0, [started("a"), done("a")])
        both = audit([*at(87_000.0, published("a")), *night_before, *today])
        assert both.fine and both.done == 1 and not both.twice, "one of each night, and none announced"
        twice = [*at(87_000.0, published("a")), *at(87_000.0, published("a"))]
        assert audit([*twice, *night_before, *today]).lost == ["a"]
    assert audit([*at(87_000.0, published("a")), *night_before, *at(87_001.0, [started("a"), done("a")])]).fine


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ([], "not finished: producer (its log does not end with `finished`"),
        ([event("finished", published=1, confirmed=1, left="line 7 and on of x")],
         "not finished: producer (not published: line 7 and on of x)"),
        ([event("finished", published=2, confirmed=1)], "not finished: producer (not all is confirmed)"),
        ([event("finished", published=1, confirmed=1), event("published", "b")], "not finished: producer (its log"),
    ],
)
def test_a_producer_that_has_not_finished_is_said(end: list[Event], said: str) -> None:
    verdict = audit([*published("a"), *end, started("a"), done("a")])

    assert verdict.fine and any(note.startswith(said) for note in verdict.notes())
    resumed = audit([*published("a"), *end, *published("b"), finished(1), started("a"), done("a")], left=["b"])
    assert not resumed.unfinished


def test_what_was_published_without_a_confirm_and_never_seen_again_is_said() -> None:
    verdict = audit([event("published", "a"), event("published", "b"), started("b"), done("b")])

    assert verdict.fine and verdict.pending == ["a"] and verdict.unconfirmed == ["b"]


def test_done_and_dead_is_said() -> None:
    verdict = audit([*published("a"), started("a"), done("a"), dead("a")])

    assert verdict.done_and_dead == ["a"]
    assert "done and dead: a" in verdict.notes()


def test_dead_letters_without_an_id_count_one_by_one() -> None:
    assert audit([dead(None), dead(None), dead("a"), dead("a")]).dead == 3


def test_a_replayed_letter_is_a_task_again_until_it_is_done_or_dies_again() -> None:
    story = [*published("a"), dead("a"), replayed("a")]

    assert audit(story, left=["a"]).fine and audit(story, left=[]).lost == ["a"]
    assert audit(story).line() == (
        "published 1, confirmed 1, done 0, redelivered 0, dead 0 (1 replayed), lost at most 1"
    )
    ended = audit([*story, started("a"), done("a")])
    assert ended.fine and ended.done_and_dead == []
    assert ended.line() == "published 1, confirmed 1, done 1, redelivered 0, dead 0 (1 replayed), lost 0"
    again = audit([*story, dead("a")])
    assert again.fine and again.line().endswith("dead 1 (1 replayed), lost 0")


def test_a_replay_counts_whatever_order_the_logs_come_in() -> None:
    assert audit([replayed("a"), dead("a"), *published("a")]).lost == ["a"]


def test_a_task_that_was_replayed_may_be_done_once_more_without_the_flag() -> None:
    before = [*published("a"), started("a"), done("a"), started("a", "w2", True), dead("a", who="w2")]

    assert audit([*before, replayed("a"), started("a"), done("a")]).fine
    assert audit([*before, started("a"), done("a")]).unannounced == ["a"]


def test_replayed_letters_without_an_id_are_counted_off() -> None:
    assert audit([dead(None), dead(None), replayed(None)]).dead == 1
    assert audit([replayed(None)]).dead == 0  # what RabbitMQ dead-lettered itself is in no log


def test_whose_logs_were_read_is_said() -> None:
    events = [*published("a"), *(e for n in range(12) for e in (started("a", f"w{n}", n > 0), done("a", f"w{n}")))]

    assert audit(events).notes()[-1] == (
        "these logs are of: producer, w0, w1, w2, w3, w4, w5, w6, w7, w8 and 3 more"
    )


# -- what is not


def test_a_confirmed_task_of_which_nothing_is_heard_again_is_lost() -> None:
    events = [*published("a"), *published("b"), started("b"), done("b"), started("a")]
    verdict = audit(events, left=[])

    assert not verdict.fine and verdict.lost == ["a"]
    assert verdict.line().endswith("lost 1")
    assert verdict.problems() == ["lost: confirmed, but neither done nor dead nor left in the queue: a"]


def test_logs_alone_cannot_tell_what_is_lost_from_what_is_still_to_do() -> None:
    verdict = audit([*published("a"), *published("b"), started("b"), done("b")])

    assert not verdict.fine and verdict.line().endswith(" lost at most 1")
    [problem] = verdict.problems()
    assert problem.startswith("confirmed, but neither done nor dead in these logs") and problem.endswith(": a")
    assert "still in the queue" in problem and "cut short" not in problem
    assert audit([*published("a"), started("a"), done("a")]).line().endswith(" lost 0")


@pytest.mark.parametrize("word", ["failed", "requeued", "discarded", "abandoned"])
def test_a_task_that_ended_in_any_other_way_is_lost(word: str) -> None:
    assert audit([*published("a"), started("a"), event(word, "a", "w1", attempt=1)]).lost == ["a"]


def test_ten_lost_tasks_are_named_and_the_others_counted() -> None:
    [problem] = audit([e for n in range(13) for e in published(f"t{n}")]).problems()

    assert problem.endswith(": t0, t1, t2, t3, t4, t5, t6, t7, t8, t9 and 3 more")


def test_a_double_without_redelivery_is_a_problem() -> None:
    verdict = audit([*published("a"), started("a"), done("a"), started("a", "w2"), done("a", "w2")])

    assert not verdict.fine and verdict.unannounced == verdict.twice == ["a"]
    assert verdict.problems() == ["done twice, and not announced as redelivered: a"]


def test_redelivery_to_one_worker_does_not_announce_the_double_of_another() -> None:
    events = [*published("a"), started("a"), done("a"), started("a", "w3", True), started("a", "w2"), done("a", "w2")]

    assert audit(events).unannounced == ["a"]


def test_published_again_once_announces_one_double_only() -> None:
    thrice = [e for who in ("w1", "w2", "w3") for e in (started("a", who), done("a", who))]

    assert audit([*published("a"), event("published", "a", again=True), *thrice]).unannounced == ["a"]


def test_two_tasks_with_one_id_are_done_once_each() -> None:
    both = [*published("a"), *published("a"), started("a"), done("a"), started("a"), done("a")]

    assert audit(both).fine
    assert audit([*both, started("a"), done("a")]).unannounced == ["a"]


@pytest.mark.parametrize("reason", [None, "", "  \n"])
@pytest.mark.parametrize(("task_id", "shown"), [("a", "a"), (None, "(no id)")])
def test_a_dead_letter_without_a_reason_is_a_problem(reason: str | None, task_id: str | None, shown: str) -> None:
    verdict = audit([dead(task_id, reason)])

    assert not verdict.fine and verdict.reasonless == [shown]
    assert verdict.problems() == [f"dead without a reason: {shown}"]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([done("a")], id="never started"),
        pytest.param([started("a", "w2"), done("a")], id="started by another"),
        pytest.param([started("b"), done("a")], id="another task started"),
        pytest.param([done("a"), started("a")], id="started afterwards"),
        pytest.param([started("a", redelivered=True), done("a"), done("a")], id="one start, done twice"),
        pytest.param([started("a"), event("failed", "a", "w1"), done("a")], id="that start failed"),
    ],
)
def test_done_without_a_start_is_a_problem(events: list[Event]) -> None:
    verdict = audit([*published("a"), *events])

    assert not verdict.fine and verdict.unstarted == ["a"]


def test_ids_with_odd_characters_stay_apart_and_are_shown_harmless() -> None:
    odd = ["\x1b[2J", "a\nb", "a b", "ñandú", "a,b", "\u202etxt", "\ud800", "A", "a", "null"]
    verdict = audit([e for i in odd for e in published(i)])

    assert verdict.lost == odd
    [problem] = verdict.problems()
    assert problem.isprintable() and "\\x1b[2J" in problem and "ñandú" in problem


# -- reading


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    one = log(tmp_path / "producer.jsonl", published("ñ"))
    two = log(tmp_path / "worker.jsonl", [started("ñ"), done("ñ")])

    assert audit(read([one, two])).line() == "published 1, confirmed 1, done 1, redelivered 0, dead 0, lost 0"
    assert audit(read([two, str(one), one])).fine, "a path named twice is read once"


def test_a_dash_is_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps(e) + "\n" for e in published("a")).encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))

    assert audit(read(["-"])).lost == ["a"]


def test_every_cut_of_a_last_line_is_tolerated_and_counted(tmp_path: Path) -> None:
    history = [*published("a"), started("a"), done("a")]
    last = json.dumps(done("b")).encode()
    for length in range(1, len(last)):
        verdict = audit(read([log(tmp_path / "log", history, last[:length])]))
        assert (verdict.fine, len(verdict.truncated), verdict.done) == (True, 1, 1), last[:length]
    assert any(note.startswith("cut short") and note.endswith("log line 5") for note in verdict.notes())


def test_what_a_process_wrote_behind_a_cut_line_is_read(tmp_path: Path) -> None:
    """A disk was full, the worker was started again with `>> log`."""
    last = json.dumps(done("b")).encode()
    behind = b"\n".join(json.dumps(e).encode() for e in (started("a"), done("a")))
    for length in range(1, len(last)):
        path = log(tmp_path / "log", published("a"), last[:length] + behind + b"\n")
        verdict = audit(read([path]))
        assert (verdict.fine, len(verdict.truncated), verdict.done) == (True, 1, 1), last[:length]
    whole = json.dumps(published("b")[0]).encode() + behind  # all but its newline
    verdict = audit(read([log(tmp_path / "log", published("a"), whole)]))
    assert (verdict.fine, verdict.truncated, verdict.published) == (True, [], 2)

    thrice = last[:50] + last[:30] + last[:20] + behind
    verdict = audit(read([log(tmp_path / "log", published("a"), thrice)]))
    assert (verdict.fine, len(verdict.truncated), verdict.done) == (True, 3, 1)


def test_a_loss_may_be_in_a_cut_line(tmp_path: Path) -> None:
    path = log(tmp_path / "log", [*published("a"), started("a")], json.dumps(done("a")).encode()[:-20])
    assert "or in a line that was cut short" in audit(read([path])).problems()[0]


def test_a_whole_last_line_counts_without_its_newline(tmp_path: Path) -> None:
    path = log(tmp_path / "log", [*published("a"), started("a")], json.dumps(done("a")).encode())

    assert audit(read([path])).fine
    assert audit(read([path])).truncated == []


def test_a_copy_of_a_log_is_refused_be_it_whole_or_older(tmp_path: Path) -> None:
    whole = log(tmp_path / "w1.log", [started(f"t{n}") for n in range(200)])
    for part in (whole.stat().st_size, 3000, 100_00):
        copy = tmp_path / f"copy-{part}"
        copy.write_bytes(whole.read_bytes()[:part])
        for paths in ([whole, copy], [copy, whole]):
            with pytest.raises(InvalidLog, match=f"{paths[1].name}, line 1: begins as .*{paths[0].name} does"):
                audit(read(paths))
    log(tmp_path / "empty", [])
    other = log(tmp_path / "w2.log", [started("t0", "w2")])
    audit(read([whole, other, tmp_path / "empty", whole]))


def test_a_torn_line_is_one_even_if_something_has_ended_it(tmp_path: Path) -> None:
    """grep does, say."""
    path = log(tmp_path / "log", published("a"), b'{"time": 1.0, "event": "do\n{"time": 1, "ev{"time": 2.0, "conn\n')

    verdict = audit(read([path]))
    assert verdict.lost == ["a"] and verdict.truncated == [f"{path} line 3", f"{path} line 4", f"{path} line 4"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_producer_that_finished_does_not_speak_for_another_of_that_name(tmp_path: Path, order: int) -> None:
    logs = [log(tmp_path / "killed.log", published("a")), log(tmp_path / "fine.log", [*published("b"), finished(1)])]

    [said] = audit(read(logs[::order])).unfinished
    assert said.startswith(f"producer in {logs[0]} (its log does not end with `finished`")


def test_what_a_power_cut_leaves_is_passed_by(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\0" * 600 + b"\n" + json.dumps(started("a")).encode() + b"\n" + b'{"time": 1' + b"\0" * 90
                     + json.dumps(done("a")).encode() + b"\n" + b"\0" * 50)

    assert [each["event"] for each in read([path])] == ["started", "truncated", "done"]


def test_the_cut_line_itself_proves_nothing(tmp_path: Path) -> None:
    path = log(tmp_path / "log", [*published("a"), started("a")], json.dumps(done("a")).encode()[:-1])

    assert audit(read([path])).lost == ["a"]


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b'{hello} {"time": 2.0, "event": "connected", "who": "w1"}\n', "not JSON"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"worker-1  done      a in 0.61 s\n", "not JSON"),
        (b"worker-1  done      a in 0.61 s", "not JSON"),
        (b"[1, 2]\n", 'no "event"'),
        (b"12", 'no "event"'),
        (b'{"id": "a", "complexity": 1}\n', 'no "event"'),
        (b'{"event": 3, "who": "w"}\n', 'no "event"'),
        (b'{"event": "stopped"}\n', 'no "who"'),
        (b'{"event": "done", "who": "w"}\n', '"id" is no string'),
        (b'{"event": "done", "who": "w", "id": null}\n', '"id" is no string'),
        (b'{"event": "dead_lettered", "who": "w", "id": ["a"]}\n', '"id" is no string'),
        (b"[" * 100_000 + b"\n", ""),
    ],
)
def test_garbage_is_an_error_that_names_file_line_and_reason(tmp_path: Path, garbage: bytes, reason: str) -> None:
    path = log(tmp_path / "log\x1b[2J", published("a"), garbage)

    with pytest.raises(InvalidLog) as caught:
        audit(read([path]))

    assert caught.value.line == 3 and reason in caught.value.reason
    assert "log\\x1b[2J, line 3: " in str(caught.value) and str(caught.value).isprintable()


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        audit(read([tmp_path / "nothing"]))


# -- any history that keeps the promise is fine, and no `done` of it can go unnoticed

task_ids = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=8, unique=True)
WAYS = ["requeued", "killed", "abandoned", "killed before ack"]  # in which a delivery comes back


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[str], list[Event]]:
    """Task ids, and a correct history of them: each process's own lines in order, the processes mixed at random."""
    ids = draw(task_ids)
    lines: dict[str, list[Event]] = {}
    for task_id in ids:
        lines.setdefault("producer", []).extend(published(task_id))
        for last in (False, True):
            redelivered = False
            for way in draw(st.lists(st.sampled_from(WAYS), max_size=3)):
                who = draw(st.sampled_from(["w1", "w2", "w3"]))
                lines.setdefault(who, []).append(started(task_id, who, redelivered))
                if way == "requeued":
                    lines[who] += [event("failed", task_id, who), event("requeued", task_id, who)]
                elif way == "abandoned":
                    lines[who].append(event("abandoned", task_id, who))
                elif way == "killed before ack":
                    lines[who].append(done(task_id, who))
                redelivered = True
            who = draw(st.sampled_from(["w1", "w2", "w3"]))
            lines.setdefault(who, []).append(started(task_id, who, redelivered))
            if draw(st.booleans()):
                lines[who].append(done(task_id, who))
                break
            lines[who].append(dead(task_id, who=who))
            if last or not draw(st.booleans()):
                break
            lines.setdefault("admin", []).append(replayed(task_id))
    return ids, list(mixed(lines, draw(st.randoms(use_true_random=False))))


def mixed(lines: dict[str, list[Event]], dice: random.Random) -> Iterator[Event]:
    queues = [list(reversed(events)) for events in lines.values()]
    while queues := [queue for queue in queues if queue]:
        yield dice.choice(queues).pop()


@given(histories())
def test_any_mixture_of_a_correct_history_is_fine(case: tuple[list[str], list[Event]]) -> None:
    ids, events = case
    verdict = audit(events)

    assert verdict.problems() == []
    assert verdict.published == verdict.confirmed == len(ids)
    assert set(verdict.twice) == {i for i in ids if len(done_at(events, i)) > 1}


@given(histories(), st.data())
def test_whatever_ends_a_task_cannot_be_taken_away_unnoticed(
    case: tuple[list[str], list[Event]], data: st.DataObject
) -> None:
    ids, events = case
    victim = data.draw(st.sampled_from(ids))
    rest = [e for e in events if e.get("id") != victim or e["event"] not in ("done", "dead_lettered")]

    assert audit(rest).lost == [victim]
    assert audit(rest, left={victim}).fine
    once = done_at(events, victim)
    if len(once) == 1 and victim not in audit(events).done_and_dead:
        assert audit(events[: once[0]] + events[once[0] + 1 :]).lost == [victim]


@given(histories())
def test_no_start_of_a_done_task_can_be_taken_away_unnoticed(case: tuple[list[str], list[Event]]) -> None:
    ids, events = case
    for victim in ids:
        rest = [e for e in events if (e["event"], e.get("id")) != ("started", victim)]
        assert audit(rest).unstarted == ([victim] if done_at(events, victim) else [])


def done_at(events: list[Event], task_id: str) -> list[int]:
    return [i for i, e in enumerate(events) if e["event"] == "done" and e["id"] == task_id]
