"""What a worker calls for a task: the function that --handler names, and the simulated work."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tareas.errors import SimulatedFailure, WrongCall
from tareas.work.handlers import describe, load, refuse_unfinished, simulate

ROOT = Path(__file__).parents[2]

MODULES = {
    "mine.py": """
import functools

class Shop:
    class Till:
        def sell(task): return "sold"
    def __call__(self, task): return "called"

def work(task): return "worked"
def alone(): pass
def with_database(function):
    @functools.wraps(function)
    def called(task): return function(task, "db")
    return called
@with_database
def decorated(task, db): return db
class Dynamic:
    def __getattr__(self, name): return object()
    def __call__(self, task): return "dynamic"
dynamic = Dynamic()
def pair(task, other): pass
def named(*, task): pass
async def later(task): ...
def some(task): yield
async def some_later(task): yield
with_tax = functools.partial(work)
shop = Shop()
number = 7
nothing = None
""",
    "raises.py": "raise RuntimeError('no licence\\x1b[31m\\nfor this')",
    "exits.py": "import sys; sys.exit('bye')",
    "wrong.py": "def work(task:\n",
    "needs.py": "import no_such_package.part",
    "asks_for_more.py": "from mine import no_such_name",
    "pack/__init__.py": "",
    "pack/inner.py": "def work(task): return 'packed'",
    "pack/needs.py": "import pack.no_such_part",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user's, from which the worker is called; what is imported from it is forgotten afterwards."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "result"),
    [("mine:work", "worked"), ("mine:Shop.Till.sell", "sold"), ("mine:with_tax", "worked"), ("mine:shop", "called"),
     ("mine:decorated", "db"), ("mine:dynamic", "dynamic"),
     ("pack.inner:work", "packed"), ("builtins:len", 1)],
)
def test_a_handler_is_found_from_the_current_folder(name: str, result: object, folder: Path) -> None:
    assert load(name)({"id": "a"}) == result


def test_a_class_is_called_as_a_function_is(folder: Path) -> None:
    assert load("builtins:dict")({"id": "a"}) == {"id": "a"}


WRONG = {
    "": "--handler '' is not of the form module:function",
    "mine": "--handler 'mine' is not of the form module:function",
    "mine:": "--handler 'mine:' is not of the form module:function",
    ":work": "--handler ':work' is not of the form module:function",
    "mine.py": "--handler 'mine.py' is not of the form module:function",
    "mine.work": "--handler 'mine.work' is not of the form module:function",
    "nowhere:work": "--handler: no module 'nowhere' in '{folder}' or PYTHONPATH",
    "pack.nowhere:work": "--handler: no module 'pack.nowhere' in '{folder}' or PYTHONPATH",
    "mine.nowhere:work": "--handler: no module 'mine.nowhere' in '{folder}' or PYTHONPATH",
    "nowhere.at.all:work": "--handler: no module 'nowhere.at.all' in '{folder}' or PYTHONPATH",
    "mine.py:work": "--handler: no module 'mine.py' in '{folder}' or PYTHONPATH (its name has no .py: 'mine:work')",
    "./mine:work": "--handler './mine:work' is not of the form module:function",
    ".mine:work": "--handler '.mine:work' is not of the form module:function",
    "..:work": "--handler '..:work' is not of the form module:function",
    "\x1b[31m:work": "--handler: no module '\\x1b[31m' in '{folder}' or PYTHONPATH",
    "needs:work": "--handler: module 'needs' needs 'no_such_package', which is not installed",
    "pack.needs:work": "--handler: module 'pack.needs' needs 'pack.no_such_part', which is not installed",
    "raises:work": "--handler: module 'raises' raises when imported: RuntimeError: no licence\\x1b[31m for this",
    "exits:work": "--handler: module 'exits' raises when imported: SystemExit: bye",
    "wrong:work": "--handler: module 'wrong' raises when imported: SyntaxError: ",
    "asks_for_more:work": "--handler: module 'asks_for_more' raises when imported: ImportError: cannot import name ",
    "mine:wrok": "--handler: module 'mine' has no 'wrok'",
    "mine:Shop.Till.buy": "--handler: module 'mine' has no 'Shop.Till.buy'",
    "mine:Shop.": "--handler: module 'mine' has no 'Shop.'",
    "mine:work:fast": "--handler: module 'mine' has no 'work:fast'",
    "mine:work()": "--handler: module 'mine' has no 'work()'",
    "mine:number": "--handler: 'mine:number' is not a function",
    "mine:nothing": "--handler: 'mine:nothing' is not a function",
    "mine:alone": "--handler: 'mine:alone' must take one argument, the task; it takes ()",
    "mine:pair": "--handler: 'mine:pair' must take one argument, the task; it takes (task, other)",
    "mine:named": "--handler: 'mine:named' must take one argument, the task; it takes (*, task)",
    "mine:later": "--handler: 'mine:later' is a coroutine or generator: calling it would do nothing",
    "mine:some": "--handler: 'mine:some' is a coroutine or generator: calling it would do nothing",
    "mine:some_later": "--handler: 'mine:some_later' is a coroutine or generator: calling it would do nothing",
}


@pytest.mark.parametrize(("name", "message"), WRONG.items(), ids=map(repr, WRONG))
def test_a_wrong_handler_is_answered_in_one_line(name: str, message: str, folder: Path) -> None:
    with pytest.raises(WrongCall) as caught:
        load(name)
    assert str(caught.value).startswith(message.format(folder=folder))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    assert caught.value.status == 2


def test_a_wrong_handler_ends_the_worker_before_it_connects(folder: Path) -> None:
    ended = subprocess.run([sys.executable, ROOT / "worker.py", "--handler", "mine:wrok", "--url", "amqp://127.0.0.1:1"],
                           cwd=folder, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "worker.py: --handler: module 'mine' has no 'wrok'\n"


# -- what a handler returns


def coroutine() -> Any:
    async def work() -> None: ...

    return work()


def some_later() -> Any:
    async def work() -> Any:
        yield

    return work()


def future() -> Any:
    loop = asyncio.new_event_loop()
    loop.close()
    return asyncio.Future(loop=loop)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [coroutine, some_later, lambda: (n for n in "ab"), future])
def test_work_that_nobody_has_done_is_no_result(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="its work was not done"):
        refuse_unfinished(make())


@pytest.mark.parametrize("result", [None, 0, False, "text", [], {}, range(3), iter([]), ValueError("returned")])
def test_any_other_result_is_fine(result: object) -> None:
    refuse_unfinished(result)


# -- the simulated work


def test_simulated_work_takes_its_complexity(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    simulate({"id": "a", "complexity": 0.25}, 1)
    simulate({"id": "a", "complexity": 0}, 1)
    assert slept == [0.25]


@pytest.mark.parametrize(("attempt", "fails"), [(1, True), (2, True), (3, False), (4, False)])
def test_it_fails_in_as_many_attempts_as_the_task_asks(attempt: int, fails: bool) -> None:
    task = {"id": "a", "complexity": 0, "fail_attempts": 2}
    if fails:
        with pytest.raises(SimulatedFailure, match=f"attempt {attempt} fails"):
            simulate(task, attempt)
    else:
        simulate(task, attempt)


@pytest.mark.parametrize(("attempt", "dies"), [(1, True), (2, False)])
def test_it_dies_after_its_work_in_as_many_attempts_as_the_task_asks(
    attempt: int, dies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[object] = []
    monkeypatch.setattr("time.sleep", happened.append)
    monkeypatch.setattr("os._exit", happened.append)
    simulate({"id": "a", "complexity": 0.5, "crash_attempts": 1}, attempt)
    assert happened == ([0.5, 70] if dies else [0.5])


# -- errors as text


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Number(Exception):
    def __str__(self) -> Any:
        return 7


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a  b\n\tc"), "ValueError: a b c"), (ValueError(), "ValueError"), (KeyError("x"), "KeyError: 'x'"),
        (Mute(), "Mute: (its text cannot be shown)"), (Number(), "Number: (its text cannot be shown)"),
        (SystemExit(3), "SystemExit: 3"), (ValueError(" \n "), "ValueError"),
    ],
)
def test_an_error_is_described_in_one_line(error: BaseException, text: str) -> None:
    assert describe(error) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [("caf\udce9.txt is gone", "caf\\udce9.txt is gone"), ("\x1b[2J\x07", "\\x1b[2J\\x07"), ("a\u202eb", "a\\u202eb")],
)
def test_the_text_of_an_error_can_be_shown_and_sent(text: str, said: str) -> None:
    """A file's name that is no UTF-8 comes as half a surrogate pair, which no header can carry."""
    assert describe(ValueError(text)) == f"ValueError: {said}"
    odd = type("Odd\x1b", (Exception,), {})
    assert describe(odd(text)) == f"Odd\\x1b: {said}"


def test_a_long_error_is_cut() -> None:
    assert describe(ValueError("x" * 10**6)) == "ValueError: " + "x" * 488


def test_an_error_says_in_which_line_of_the_handlers_file_it_came_up() -> None:
    """Not in which line of json: who wrote the handler looks into that."""

    def parse(text: str) -> Any:
        return json.loads(text)

    for text in ("{", "{" + "x" * 1000):
        try:
            parse(text)
        except ValueError as error:
            said = describe(error, place=True)
        assert said.endswith(f" (test_handlers.py, line {parse.__code__.co_firstlineno + 1})") and len(said) <= 500
        assert said.startswith("JSONDecodeError: Expecting property name")


def test_the_line_of_an_error_of_ours_is_not_told() -> None:
    with pytest.raises(SimulatedFailure) as caught:
        simulate({"id": "a", "complexity": 0, "fail_attempts": 1}, 1)
    assert describe(caught.value.with_traceback(caught.tb.tb_next), place=True) == (
        "SimulatedFailure: attempt 1 fails, as the task asks"
    )
