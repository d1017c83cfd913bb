"""What a task is: every body becomes a task or InvalidTask, and nothing else."""

from __future__ import annotations

import json
import math
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from tareas.errors import InvalidTask
from tareas.task import MAX_BYTES, MAX_DEPTH, QUEUE, decode, encode, sample

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks.jsonl"


def body(**facts: Any) -> bytes:
    return json.dumps(facts).encode()


def with_value(text: str) -> bytes:
    return b'{"id": "a", "complexity": 1, "value": %s}' % text.encode()


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    """A valid task with `depth` containers inside each other, the task's own object among them."""
    return with_value(opening * (depth - 1) + closing * (depth - 1))


GOOD = {
    "the least": b'{"id":"a","complexity":0}',
    "everything else passes": body(id="a", complexity=1.5, file="x.jpg", sizes=[1, 2], nothing=None, deep={"a": {}}),
    "a day": body(id="a", complexity=86_400),
    "blanks around": b' \r\n\t{"id": "a", "complexity": 1}\n ',
    "255 bytes of id": body(id="ñ" * 127 + "n", complexity=1),
    "an id with blanks, quotes and other scripts": '{"id": "día 1 \'é\' 任務", "complexity": 1}'.encode(),
    "attempts": body(id="a", complexity=1, fail_attempts=0, crash_attempts=1_000_000),
    "the same key twice: the last one counts": b'{"id": "b", "id": "a", "complexity": 1}',
    "a whole surrogate pair": b'{"id": "a\\ud83d\\ude00", "complexity": 1}',
    "a backslash before what looks like half a pair": b'{"id": "a", "complexity": 1, "value": "\\\\ud83d"}',
    "400 digits": with_value("9" * 400),
    "many digits in a string": with_value('"' + "9" * 5000 + '"'),
    "a tiny number": with_value("1e-999"),
    "as deep as it may be": nested(MAX_DEPTH),
    "many brackets, not deep": with_value("[" + ",".join(["[]"] * 500) + "]"),
    "brackets in a string": with_value('"' + "[" * 2000 + '"'),
    "the biggest": b'{"id":"a","complexity":1}' + b" " * (MAX_BYTES - 25),
}


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
def test_a_good_body_is_decoded_as_json_has_it(good: bytes) -> None:
    assert decode(good) == json.loads(good)


BAD = {
    "empty": (b"", "empty"),
    "blank": (b" \n", "empty"),
    "not UTF-8": (b'{"id": "\xff"}', "not UTF-8 at byte 9"),
    "UTF-16": ('{"id": "a"}'.encode("utf-16"), "not UTF-8"),
    "a byte order mark": (b'\xef\xbb\xbf{"id": "a", "complexity": 1}', "not JSON"),
    "text": (b"hello", "not JSON: expecting value at character 1"),
    "cut short": (b'{"id": "a", "complexity": 1', "not JSON: expecting ',' delimiter at character 28"),
    "single quotes": (b"{'id': 'a'}", "not JSON"),
    "a control character in a string": (b'{"id": "a\x1b", "complexity": 1}', "not JSON: invalid control character"),
    "two objects": (b'{"id": "a", "complexity": 1} {}', "more follows after its end, at character 29"),
    "a list": (b'[{"id": "a"}]', "a JSON list, not an object"),
    "a string": (b'"a"', "a JSON string, not an object"),
    "a number": (b"1.5", "a JSON number, not an object"),
    "null": (b"null", "a JSON null, not an object"),
    "true": (b"true", "a JSON true or false, not an object"),
    "NaN": (with_value("NaN"), "NaN is not JSON"),
    "Infinity": (with_value("Infinity"), "Infinity is not JSON"),
    "-Infinity": (with_value("-Infinity"), "-Infinity is not JSON"),
    "NaN as complexity": (b'{"id": "a", "complexity": NaN}', "NaN is not JSON"),
    "a float that overflows": (with_value("1e999"), "1e999 is too big"),
    "a negative float that overflows": (with_value("[-1e999]"), "-1e999 is too big"),
    "too many digits": (with_value("9" * 401), "401 digits"),
    "far too many digits": (with_value("-" + "9" * 900_000), "digits"),
    "a float of many digits": (with_value("9" * 900_000 + ".0"), "the number 99999999999999999999 is too big"),
    "a bit too deep": (nested(MAX_DEPTH + 1), "nested more than 100 deep"),
    "objects too deep": (nested(MAX_DEPTH + 1, '{"a":', "}").replace(b":}", b":0}"), "nested more than 100 deep"),
    "a thousand brackets deep": (nested(1000), "nested more than 100 deep"),
    "half a million brackets deep": (nested(500_000), "nested more than 100 deep"),
    "half a million brackets never closed": (b"[" * 500_000, "nested more than 100 deep"),
    "half a surrogate pair": (with_value('"\\ud83d"'), "half a surrogate pair"),
    "half a surrogate pair in capitals, as a key": (with_value('{"\\uDE00": 1}'), "half a surrogate pair"),
    "half a surrogate pair in the id": (b'{"id": "\\ud83d", "complexity": 1}', "half a surrogate pair"),
    "2 MiB": (b'{"id": "a", "complexity": 1}' + b" " * 2 * MAX_BYTES, "bytes are more than 1,048,576"),
    "no id": (body(complexity=1), 'has no id: add "id"'),
    "an empty object": (b"{}", "has no id"),
    "an id that is a number": (body(id=7, complexity=1), "its id 7 is not a string"),
    "an id that is null": (body(id=None, complexity=1), "its id null is not a string"),
    "an id that is a list": (body(id=["a"], complexity=1), "its id [...] is not a string"),
    "an empty id": (body(id="", complexity=1), 'its id "" is empty'),
    "256 bytes of id": (body(id="ñ" * 128, complexity=1), "256 bytes: at most 255"),
    "a long id": (body(id="x" * 100_000, complexity=1), "100,000 bytes: at most 255"),
    "an id with escape codes": (body(id="\x1b[31mred", complexity=1), 'its id "\\u001b[31mred" is not printable'),
    "an id of two lines": (body(id="a\nb", complexity=1), "is not printable"),
    "an id with a null": (body(id="a\0", complexity=1), "is not printable"),
    "an id with C1 controls": (body(id="a\x9b31m", complexity=1), "is not printable"),
    "an id that turns the text round": (body(id="a\u202eb", complexity=1), "is not printable"),
    "an id with a line separator": (body(id="a\u2028b", complexity=1), "is not printable"),
    "complexity true": (body(id="a", complexity=True), "its complexity true is not in seconds"),
    "complexity null": (body(id="a", complexity=None), "its complexity null is not in seconds"),
    "complexity a string": (body(id="a", complexity="1"), 'its complexity "1" is not in seconds'),
    "complexity a list": (body(id="a", complexity=[1]), "its complexity [...] is not in seconds"),
    "complexity negative": (body(id="a", complexity=-0.01), "its complexity -0.01 is not in seconds"),
    "complexity above a day": (body(id="a", complexity=86_400.01), "is not in seconds from 0 to 86,400"),
    "complexity far above": (b'{"id": "a", "complexity": %s}' % (b"9" * 400), "is not in seconds"),
    "fail_attempts true": (body(id="a", complexity=1, fail_attempts=True), "its fail_attempts true is not a whole"),
    "fail_attempts a fraction": (body(id="a", complexity=1, fail_attempts=1.0), "its fail_attempts 1.0 is not a whole"),
    "fail_attempts negative": (body(id="a", complexity=1, fail_attempts=-1), "its fail_attempts -1 is not a whole"),
    "fail_attempts null": (body(id="a", complexity=1, fail_attempts=None), "its fail_attempts null is not a whole"),
    "crash_attempts too many": (body(id="a", complexity=1, crash_attempts=10**6 + 1), "from 0 to 1,000,000"),
    "crash_attempts a string": (body(id="a", complexity=1, crash_attempts="1"), 'its crash_attempts "1" is not'),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_a_bad_body_is_refused_with_the_reason_in_one_short_line(bad: bytes, reason: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        decode(bad)
    message = str(caught.value)
    assert reason in message
    assert caught.value.task_id == ("a" if re.match("its (complexity|.*_attempts) ", message) else None)
    assert message.isprintable() and message.isascii() and len(message) <= 200


def test_a_deep_body_is_judged_alike_however_deep_the_stack_is() -> None:
    def from_below(frames: int, text: bytes) -> Any:
        return from_below(frames - 1, text) if frames else decode(text)

    assert from_below(300, nested(MAX_DEPTH))["id"] == "a"
    with pytest.raises(InvalidTask, match="nested"):
        from_below(300, nested(MAX_DEPTH + 1))


def test_with_a_handler_complexity_may_be_missing_and_attempts_are_its_own() -> None:
    task = {"id": "a", "fail_attempts": "often", "crash_attempts": [1]}
    assert decode(encode(task), simulated=False) == task


@pytest.mark.parametrize("complexity", [True, "1", -1, 86_401, None, [], {}])
def test_a_complexity_that_is_there_must_be_valid_with_a_handler_too(complexity: Any) -> None:
    with pytest.raises(InvalidTask, match="complexity"):
        decode(body(id="a", complexity=complexity), simulated=False)


@pytest.mark.parametrize(
    "task",
    [
        {}, {"id": ""}, {"id": 1}, {"id": "a", "complexity": math.nan}, {"id": "a", "complexity": -1},
        {"id": "a", "value": math.inf}, {"id": "a", "value": b"bytes"}, {"id": "a", "value": {1, 2}},
        {"id": "a", "value": "\ud800"}, {"id": "\udcff"}, {"id": "a", "value": 10**400}, {"id": "a", ("a", "b"): 1},
        {"id": "a", "value": "x" * MAX_BYTES}, {"id": "a", "value": object()},
    ],
    ids=lambda task: str(task)[:40],
)
def test_what_cannot_be_read_back_is_not_encoded(task: Any) -> None:
    with pytest.raises(InvalidTask) as caught:
        encode(task)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 200


def test_what_contains_itself_or_is_too_deep_is_not_encoded() -> None:
    task: dict[str, Any] = {"id": "a"}
    task["self"] = task
    with pytest.raises(InvalidTask):
        encode(task)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidTask):
        encode({"id": "a", "value": deep})


def test_encoded_is_compact_utf_8() -> None:
    assert encode({"id": "año", "complexity": 1.0, "a": [1, 2]}) == '{"id":"año","complexity":1.0,"a":[1,2]}'.encode()


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)
IDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60)
TASKS = st.builds(
    lambda rest, name, seconds: {**rest, "id": name, "complexity": seconds},
    st.dictionaries(TEXT, JSON, max_size=5),
    IDS, st.floats(0, 86_400) | st.integers(0, 86_400),
)


@given(TASKS)
def test_a_task_comes_back_as_it_went(task: dict[str, Any]) -> None:
    assert decode(encode(task), simulated=False) == task
    assert encode(decode(encode(task), simulated=False)) == encode(task)


@given(TASKS)
def test_a_task_written_by_another_program_with_escapes_is_read(task: dict[str, Any]) -> None:
    assert decode(json.dumps(task, indent=1).encode(), simulated=False) == task


def judge(some: bytes, simulated: bool) -> None:
    """Only a task or InvalidTask comes out; a task can be encoded again."""
    try:
        task = decode(some, simulated)
    except InvalidTask as error:
        assert str(error) and str(error).isprintable() and len(str(error)) <= 200
    else:
        assert isinstance(task["id"], str)
        assert decode(encode(task), simulated) == task


@given(st.binary(), st.booleans())
@example(b"\xed\xa0\x80", True)
def test_random_bytes_are_judged(some: bytes, simulated: bool) -> None:
    judge(some, simulated)


@given(JSON | TASKS, st.booleans())
def test_random_json_is_judged(some: Any, simulated: bool) -> None:
    judge(json.dumps(some).encode(), simulated)


@given(
    st.dictionaries(st.sampled_from(["id", "complexity", "fail_attempts", "crash_attempts", "x"]),
                    st.sampled_from([0, -1, 1.5, True, None, "", "\x1b[1m", "\ud800", 10**300, [], {}, "é" * 200])),
    st.booleans(),
)
def test_tasks_that_are_nearly_right_are_judged(some: dict[str, Any], simulated: bool) -> None:
    judge(json.dumps(some).encode(), simulated)


@given(TASKS, st.data())
def test_mutated_tasks_are_judged(task: dict[str, Any], data: st.DataObject) -> None:
    mutated = bytearray(json.dumps(task).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4) | st.sampled_from(
            [b"\\ud800", b"NaN", b"1e999", b"[[", b'"', b"\\", b"-", b"\xef\xbb\xbf", b"{"]))
        if not mutated:
            break
    judge(bytes(mutated), True)


def test_samples_have_names_in_order_and_complexities_in_the_range() -> None:
    tasks = list(sample(10_001, (0.5, 3.0), seed=1))
    assert [task["id"] for task in tasks[:2]] == ["task-0001", "task-0002"]
    assert tasks[-1]["id"] == "task-10001"
    assert all(decode(encode(task)) == task and 0.5 <= task["complexity"] <= 3.0 for task in tasks)
    assert all(task["complexity"] == round(task["complexity"], 2) for task in tasks)
    assert min(task["complexity"] for task in tasks) < 0.6 and max(task["complexity"] for task in tasks) > 2.9


def test_the_same_seed_makes_the_same_samples_and_another_one_others() -> None:
    assert list(sample(50, seed=7)) == list(sample(50, seed=7))
    assert list(sample(50, seed=7)) != list(sample(50, seed=8))
    assert list(sample(50)) != list(sample(50))


def test_a_range_narrower_than_the_rounding_is_kept() -> None:
    assert {task["complexity"] for task in sample(50, (0.001, 0.004))} <= {0.001, 0.004}
    assert {task["complexity"] for task in sample(5, (2, 2))} == {2}


def test_samples_are_made_one_at_a_time() -> None:
    assert [task["id"] for task in islice(sample(10**15), 2)] == ["task-0001", "task-0002"]
    assert list(sample(0)) == []


def test_the_tasks_that_ship_with_the_project_are_valid() -> None:
    tasks = [decode(line) for line in EXAMPLES.read_bytes().splitlines()]
    assert len({task["id"] for task in tasks}) == len(tasks) == 12
    assert all(0.2 <= task["complexity"] <= 1.5 for task in tasks)
    assert [task["fail_attempts"] for task in tasks if "fail_attempts" in task] == [1]


def test_the_queue_has_the_name_of_the_project() -> None:
    assert QUEUE == "tareas_distribuidas"
