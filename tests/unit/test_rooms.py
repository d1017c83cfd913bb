"""The rooms of the house: who may import whom, and how much one module may hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {"producer", "worker", "admin", "demo"}
BASE = {"errors", "text", "task"}
MAY_IMPORT = {  # a room, or one of its modules: what of ours they may import, besides themselves
    "errors": set[str](),
    "text": set[str](),
    "streams": set[str](),
    "needed": set[str](),
    "task": {"errors", "text"},
    "__init__": {"errors"},
    "cli": {*BASE, "streams"},
    "rabbit": BASE,
    "work": BASE,
    "tell": {*BASE, "streams", "work.forks"},
    "lab": {"errors", "text"},
    "lab.provide": {"errors", "text", "lab", "cli"},  # a command of its own
    "story": {*BASE, "tell", "work"},
}
MAY_NAME = {"work": {"rabbit"}, "tell": {"rabbit"}}  # for type checkers alone
MOST_LINES = 260
LONGER = {"producer.py": 300, "worker.py": 320, "demo.py": 1000}
MODULES = sorted((ROOT / "tareas").rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Each module that is imported anywhere in it, and whether for type checkers alone."""
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.name, node in typing) for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import: write its whole name"
            yield from ((f"{node.module}.{each.name}", node in typing) for each in node.names)


def allowed(room: str, name: str, typing: bool, own: str) -> bool:
    """name: `tareas.rabbit.queues.dead`, say, or `tareas.rabbit.queues`, or a module of someone else's."""
    head, _, rest = name.partition(".")
    if head == "pika":
        return room == "rabbit"
    if head != "tareas":
        return head not in COMMANDS
    may = {own.partition(".")[0], *MAY_IMPORT[room], *(MAY_NAME.get(room, ()) if typing else ())}
    return any(f"{rest}.".startswith(f"{each}.") for each in may)


def not_allowed(path: Path, source: str) -> list[str]:
    own = ".".join(path.relative_to(ROOT / "tareas").with_suffix("").parts)
    room = own if own in MAY_IMPORT else own.partition(".")[0]
    return [name for name, typing in imported(ast.parse(source)) if not allowed(room, name, typing, own)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path: Path) -> None:
    assert not_allowed(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("text", "from tareas import errors"), ("errors", "import tareas.text"),
        ("cli", "from tareas.tell import words"), ("task", "from tareas import cli"),
        ("rabbit/queues", "from tareas.work import verdict"), ("work/idle", "from tareas.rabbit import queues"),
        ("work/idle", "def f():\n    from tareas.rabbit.queues import counts"), ("tell/events", "import worker"),
        ("tell/events", "from tareas.work.signals import Stopping"), ("lab/node", "from tareas.task import QUEUE"),
        ("lab/node", "from tareas.cli import run"), ("work/idle", "import pika"),
        ("story/view", "from tareas.rabbit.explain import LOST"),
    ],
)  # fmt: skip
def test_an_arrow_the_wrong_way_is_found(module: str, line: str) -> None:
    assert len(not_allowed(ROOT / "tareas" / f"{module}.py", line)) == 1


def test_a_type_of_rabbits_may_be_named_by_who_may_not_use_it() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tareas.rabbit.connection import connect"
    assert not_allowed(ROOT / "tareas/work/idle.py", source) == []
    assert not_allowed(ROOT / "tareas/lab/node.py", source) == ["tareas.rabbit.connection.connect"]


@pytest.mark.parametrize("path", [*MODULES, *ROOT.glob("*.py")], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_too_long_to_be_read_at_once(path: Path) -> None:
    if "story" not in path.parts:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGER.get(path.name, MOST_LINES)


@pytest.mark.parametrize("path", [*(ROOT / "tareas").rglob("__init__.py")], ids=lambda path: path.parent.name)
def test_every_room_says_who_lives_there(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said and "\n" not in said
