"""What a task is: a JSON object in UTF-8 with an id. Decode and validate, encode, make samples.

Everything here takes a body from anywhere (another program may have published it) and answers with a task or
InvalidTask, nothing else. Every worker decodes every task: the usual checks cost nanoseconds, the rare ones run only
on bodies that may need them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

from tareas.errors import InvalidTask

QUEUE = "tareas_distribuidas"
MAX_BYTES = 2**20  # of a body
SMALL_BYTES = 4096  # of a body that any RabbitMQ takes, whatever its max_message_size
MAX_ID_BYTES = 255  # the id travels as AMQP's message_id, a short string
MAX_COMPLEXITY = 86_400  # seconds: a day
MAX_DEPTH = 100  # objects and lists inside each other; Python's own limit varies with its version and the stack
MAX_DIGITS = 400  # of a whole number: Python refuses to print very long ones, and takes ages to read them
MAX_ATTEMPTS = 1_000_000  # that a task may ask to fail or to crash in

SAMPLE_COMPLEXITY = (0.5, 3.0)  # seconds


def decode(body: bytes, simulated: bool = True) -> dict[str, Any]:
    """The task in the body of a message.

    `id` must be there; `complexity`, in seconds, must be valid where it is there. With `simulated`, for a worker
    without a handler of the user's, `fail_attempts` and `crash_attempts` are checked as well. All else passes
    untouched. Raises InvalidTask, nothing else, whatever the bytes.
    """
    if len(body) > MAX_BYTES:
        raise InvalidTask(f"its {len(body):,} bytes are more than {MAX_BYTES:,}: put big data in a file and name that")
    try:
        text = body.decode().strip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise InvalidTask(f"not UTF-8 at byte {error.start + 1:,}: encode it as UTF-8") from None
    try:
        task, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise InvalidTask(f"not JSON: more follows after its end, at character {end + 1:,}: one object and no more")
        if not isinstance(task, dict):
            raise InvalidTask(f'a JSON {_JSON_NAMES[type(task)]}, not an object: write {{"id": "...", ...}}')
        if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(task) > MAX_DEPTH:
            raise RecursionError
    except InvalidTask:
        raise
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg[:1].lower()}{error.msg[1:]} at character {error.pos + 1:,}" if text else "empty"
        raise InvalidTask(f'{what}: write {{"id": "...", ...}}') from None
    except RecursionError:
        raise InvalidTask(f"nested more than {MAX_DEPTH} deep: make it flatter") from None
    # UTF-8 itself has no surrogates; JSON's escapes may bring one in that cannot be encoded again.
    if b"\\u" in body and _SURROGATE.search(body) and not _encodable(task):
        raise InvalidTask("half a surrogate pair in a \\u escape: write the whole pair, or the character itself")
    _check_id(task)
    try:
        _check_work(task, simulated)
    except InvalidTask as error:
        error.task_id = task["id"]
        raise
    return task


def encode(task: dict[str, Any]) -> bytes:
    """The body of a task: compact JSON in UTF-8, which decode reads back. Raises InvalidTask if it would not."""
    try:
        body = _ENCODER.encode(task).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTask(f"cannot be written as JSON: {_shown(str(error), 100)}") from None
    decode(body, simulated=False)
    return body


def sample(
    count: int, complexity: tuple[float, float] = SAMPLE_COMPLEXITY, seed: int | None = None
) -> Iterator[dict[str, Any]]:
    """Make `count` tasks, one at a time: task-0001 and so on, complexity (seconds) evenly spread between the two.

    The same seed makes the same tasks.
    """
    low, high = complexity
    dice = random.Random(seed)
    for number in range(1, count + 1):
        cost = min(max(round(dice.uniform(low, high), 2), low), high)
        yield {"id": f"task-{number:04d}", "complexity": cost}


def _check_id(task: dict[str, Any]) -> None:
    try:
        name = task["id"]
    except KeyError:
        raise InvalidTask('has no id: add "id": "some-name"') from None
    if not isinstance(name, str):
        raise InvalidTask(f'its id {_shown(name)} is not a string: write "id": "some-name"')
    # Not printable: control characters and terminal escapes, line ends, what turns the direction of the text.
    if not name or not name.isprintable():
        raise InvalidTask(f"its id {_shown(name)} is {'not printable' if name else 'empty'}: use letters and digits")
    if len(name) > MAX_ID_BYTES // 4 and len(name.encode()) > MAX_ID_BYTES:
        raise InvalidTask(f"its id has {len(name.encode()):,} bytes: at most {MAX_ID_BYTES}")


def _check_work(task: dict[str, Any], simulated: bool) -> None:
    if "complexity" in task:
        seconds = task["complexity"]
        if (type(seconds) is not float and type(seconds) is not int) or not 0 <= seconds <= MAX_COMPLEXITY:
            raise InvalidTask(f"its complexity {_shown(seconds)} is not in seconds from 0 to {MAX_COMPLEXITY:,}")
    if simulated:
        for key in ("fail_attempts", "crash_attempts"):
            if key in task and (type(task[key]) is not int or not 0 <= task[key] <= MAX_ATTEMPTS):
                raise InvalidTask(f"its {key} {_shown(task[key])} is not a whole number from 0 to {MAX_ATTEMPTS:,}")


def _shown(value: Any, limit: int = 40) -> str:
    """A value from outside in one short line of plain ASCII, as JSON has it."""
    if isinstance(value, (dict, list)):
        return "{...}" if isinstance(value, dict) else "[...]"
    text = json.dumps(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[:limit] + '..."' * isinstance(value, str)


def _depth(value: Any) -> int:
    """How many objects and lists stand inside each other; the value itself counts."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    return depth


def _encodable(value: Any) -> bool:
    try:
        _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise InvalidTask(f"a number of {len(digits):,} digits: at most {MAX_DIGITS}, or write it as a string")
    return int(digits)


def _fraction(digits: str) -> float:
    value = float(digits)
    if value - value != 0:  # infinite
        raise InvalidTask(f"the number {digits[:20]} is too big: write it as a string")
    return value


def _no_constant(name: str) -> Any:
    raise InvalidTask(f"{name} is not JSON: leave it out or write null")


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_fraction, parse_constant=_no_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_JSON_NAMES = {list: "list", str: "string", int: "number", float: "number", bool: "true or false", type(None): "null"}
