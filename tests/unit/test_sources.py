"""Where the producer's tasks come from: samples, files and pipes, good and bad."""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tareas.errors import BadLine, Trouble, WrongCall
from tareas.task import MAX_BYTES, decode
from tareas.work.sources import CHUNK, File, Item, Pipe, Sample, Source, open_source

ROOT = Path(__file__).parents[2]
PATHS = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"  # make pikas names another pika there
DEADLINE = 60  # seconds


def line(name: str, **more: object) -> bytes:
    return json.dumps({"id": name, "complexity": 1, **more}, ensure_ascii=False).encode()


def all_of(source: Source) -> list[Item]:
    """Take until the end, waiting as the producer does."""
    items = []
    while True:
        item = source.take()
        if item is not None:
            items.append(item)
        elif source.ended:
            return items
        else:
            fd = source.fileno()
            assert fd is not None, "a source that never waits has said 'not yet'"
            assert select.select([fd], [], [], DEADLINE)[0], "nothing came"


def ids(source: Source) -> list[str]:
    return [item.id for item in all_of(source)]


@pytest.fixture
def pipe() -> Iterator[tuple[int, Callable[[bytes], None], Callable[[], None]]]:
    """The reading end, and how to write to the other one and to close it."""
    reading, writing = os.pipe()
    ends = [writing]

    def write(some: bytes) -> None:
        while some:
            some = some[os.write(writing, some) :]

    def close() -> None:
        while ends:
            os.close(ends.pop())

    yield reading, write, close
    close()
    os.close(reading)


Ends = tuple[int, Callable[[bytes], None], Callable[[], None]]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return tmp_path / "tasks.jsonl"


# -- samples


def test_samples_come_to_their_end() -> None:
    source = Sample(3, (1, 2), seed=5)
    assert source.total == 3 and source.fileno() is None and not source.ended
    items = all_of(source)
    assert [item.id for item in items] == ["task-0001", "task-0002", "task-0003"]
    assert all(decode(item.body)["id"] == item.id and 1 <= decode(item.body)["complexity"] <= 2 for item in items)
    assert source.ended and source.take() is None
    assert all_of(Sample(3, (1, 2), seed=5)) == items


# -- what a file may look like

FILES = {
    "empty": (b"", []),
    "blank": (b"\n \n\r\n\t", []),
    "one": (line("a") + b"\n", ["a"]),
    "no newline at the end": (line("a") + b"\n" + line("b"), ["a", "b"]),
    "CRLF": (line("a") + b"\r\n" + line("b") + b"\r\n", ["a", "b"]),
    "blank lines between": (b"\n\n" + line("a") + b"\n\n  \n" + line("b") + b"\n\n", ["a", "b"]),
    "blanks around": (b"  " + line("a") + b" \t\n", ["a"]),
    "a byte order mark": (b"\xef\xbb\xbf" + line("a") + b"\n" + line("b"), ["a", "b"]),
    "a byte order mark and no more": (b"\xef\xbb\xbf", []),
    "the same id twice": (line("a") + b"\n" + line("a"), ["a", "a"]),
    "a task without complexity, for a handler": (b'{"id": "a", "fail_attempts": "many"}', ["a"]),
    "other scripts": (line("año-1") + b"\n" + line("任務"), ["año-1", "任務"]),
    "lines that end at a chunk's end": ((line("a") + b" " * (CHUNK - 1 - len(line("a"))) + b"\n") * 3, ["a"] * 3),
    "a task of nearly 1 MiB": (line("a", text="x" * (MAX_BYTES - 100)) + b"\n" + line("b"), ["a", "b"]),
    "many": (b"".join(line(f"t{n}") + b"\n" for n in range(5000)), [f"t{n}" for n in range(5000)]),
}


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=FILES)
def test_a_file_gives_its_tasks_in_order(content: bytes, expected: list[str], tasks: Path) -> None:
    tasks.write_bytes(content)
    source = open_source(str(tasks))
    assert isinstance(source, File) and source.total == len(expected) and source.fileno() is None
    assert ids(source) == expected
    assert source.ended and source.take() is None


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=FILES)
def test_a_pipe_gives_the_same(content: bytes, expected: list[str], pipe: Ends) -> None:
    reading, write, close = pipe
    writer = threading.Thread(target=lambda: (write(content), close()))
    writer.start()
    source = Pipe(reading)
    assert source.total is None and ids(source) == expected
    writer.join(DEADLINE)


def test_a_body_is_the_line_as_it_stands_without_the_blanks_around(tasks: Path) -> None:
    tasks.write_bytes(b'  {"id" : "a",  "complexity": 1.50, "id": "b"}\t\r\n')
    assert all_of(open_source(str(tasks))) == [Item("b", b'{"id" : "a",  "complexity": 1.50, "id": "b"}', 1)]


BAD = {
    "not JSON": (b"hello", "not JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "not UTF-8"),
    "a list": (b"[1]", "not an object"),
    "no id": (b'{"complexity": 1}', "has no id"),
    "an id with escape codes": (b'{"id": "\\u001b[1m"}', "not printable"),
    "a bad complexity": (b'{"id": "a", "complexity": "much"}', 'its complexity "much" is not in seconds'),
    "two tasks in a line": (line("a") + b" " + line("b"), "more follows after its end"),
    "a bit too big": (line("a", text="x" * MAX_BYTES), "bytes are more than 1,048,576"),
    "far too big": (b'{"id": "' + b"x" * 3 * MAX_BYTES + b'"}', "more than 1,048,576 bytes"),
    "a byte order mark in the middle": (b"\xef\xbb\xbf" + line("a"), "not JSON"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("end", [b"", b"\n", b"\n" + line("z") + b"\n"], ids=["at the end", "newline", "more after"])
def test_a_bad_line_of_a_file_is_named_before_anything_is_published(
    bad: bytes, reason: str, end: bytes, tasks: Path
) -> None:
    tasks.write_bytes((line("a") + b"\n") * 15 + b"\n" + bad + end)
    with pytest.raises(WrongCall) as caught:
        open_source(str(tasks))
    assert str(caught.value).startswith(f"{tasks}, line 17: ") and reason in str(caught.value)
    assert str(caught.value).endswith("(nothing is published)") and str(caught.value).isprintable()
    assert caught.value.status == 2


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_a_bad_line_of_a_pipe_comes_after_the_good_ones_before_it(bad: bytes, reason: str, pipe: Ends) -> None:
    reading, write, close = pipe
    writer = threading.Thread(target=lambda: (write(line("a") + b"\n" + line("b") + b"\n" + bad), close()))
    writer.start()
    source = Pipe(reading)
    taken: list[Item] = []
    with pytest.raises(BadLine) as caught:
        while not source.ended:
            item = source.take()
            if item:
                taken.append(item)
    assert [item.id for item in taken] == ["a", "b"]
    assert str(caught.value).startswith("stdin, line 3: ") and reason in str(caught.value)
    assert caught.value.status == 2 and not source.ended
    while os.read(reading, CHUNK):  # let the writer end
        pass
    writer.join(DEADLINE)


# -- a pipe, as it comes


def test_a_pipe_says_not_yet_and_goes_on_later(pipe: Ends) -> None:
    reading, write, close = pipe
    source = Pipe(reading)
    assert source.fileno() == reading
    assert source.take() is None and not source.ended
    write(line("a")[:5])
    assert source.take() is None and not source.ended
    write(line("a")[5:] + b"\n" + line("b"))
    assert source.take() == Item("a", line("a"), 1)
    assert source.take() is None and not source.ended
    close()
    assert source.take() == Item("b", line("b"), 2)
    assert source.take() is None and source.ended and source.line == 2


def test_an_item_knows_its_place_and_what_follows_it(tasks: Path, pipe: Ends) -> None:
    tasks.write_bytes(line("a") + b"\n\n" + line("b") + b"\n" + line("c") + b"\n")
    file, sample = open_source(str(tasks)), Sample(3)
    a, b = file.take(), file.take()
    made = sample.take()
    assert a and b and made
    assert (file.place(b), sample.place(made)) == (
        f"{tasks}, line 3 (task 'b', {len(b.body)} bytes)", f"sample task 1 ('{made.id}', {len(made.body)} bytes)")
    assert (file.left(), file.left(after=a.line)) == (f"line 4 and on of {tasks} (tail -n +4)",
                                                      f"line 2 and on of {tasks} (tail -n +2)")
    assert (sample.left(), sample.left(after=made.line)) == ("2 sample tasks", "2 sample tasks")
    assert [item.id for item in all_of(file)] == ["c"] and all_of(sample)[-1].line == 3
    assert (file.left(), sample.left(), sample.left(after=1)) == ("", "", "2 sample tasks")


def test_a_pipe_byte_by_byte(pipe: Ends) -> None:
    reading, write, _ = pipe
    source = Pipe(reading)
    taken = []
    for byte in b"\xef\xbb\xbf" + line("a") + b"\r\n\n" + line("b") + b"\n":
        write(bytes([byte]))
        item = source.take()
        assert not source.ended
        if item:
            taken.append(item.id)
    assert taken == ["a", "b"]


def test_a_pipe_that_another_process_has_made_non_blocking(pipe: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, write, _ = pipe
    os.set_blocking(reading, False)
    monkeypatch.setattr(Pipe, "_readable", lambda self: True)  # what was there, someone else has read
    source = Pipe(reading)
    assert source.take() is None and not source.ended
    write(line("a") + b"\n")
    assert source.take() == Item("a", line("a"), 1)


def test_reading_leaves_the_mode_of_the_pipe_alone(pipe: Ends) -> None:
    reading, _, _ = pipe
    assert Pipe(reading).take() is None
    assert os.get_blocking(reading)


def test_a_line_without_end_is_refused_in_bounded_memory(pipe: Ends) -> None:
    reading, write, close = pipe
    gone = threading.Event()

    def endless() -> None:
        some = b"x" * CHUNK
        for _ in range(64 * MAX_BYTES // CHUNK):
            if gone.is_set():
                break
            write(some)
        close()

    writer = threading.Thread(target=endless)
    tracemalloc.start()
    try:
        writer.start()
        source = Pipe(reading)
        with pytest.raises(BadLine, match="stdin, line 1: more than 1,048,576 bytes"):
            all_of(source)
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_BYTES
    finally:
        tracemalloc.stop()
        gone.set()
        while os.read(reading, CHUNK):
            pass
        writer.join(DEADLINE)


def test_a_long_file_costs_the_memory_of_a_short_one(tasks: Path) -> None:
    def peak(count: int) -> int:
        tasks.write_bytes(b"".join(line(f"task-{n:06d}") + b"\n" for n in range(count)))
        tracemalloc.start()
        try:
            source = open_source(str(tasks))
            while source.take():
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(20_000) < 1.2 * peak(3_000)


@given(st.lists(st.sampled_from([line("a"), line("b") + b"\r", b"", b" ", line("c") + b" " * CHUNK])), st.booleans(),
       st.integers(0, 2**32))
def test_any_cutting_of_the_stream_gives_the_same_tasks(lines: list[bytes], newline: bool, seed: int) -> None:
    content = b"\n".join(lines) + b"\n" * newline
    dice = random.Random(seed)

    class Cut(Pipe):
        def _readable(self) -> bool:
            return dice.random() < 0.7

        def _chunk(self) -> bytes:
            nonlocal content
            size = dice.choice([1, 7, 40, CHUNK])
            chunk, content = content[:size], content[size:]
            return chunk

    source = Cut(0)
    taken = []
    while not source.ended:
        item = source.take()
        if item:
            taken.append(item)
    assert [item.body for item in taken] == [some.strip() for some in lines if some.strip()]


@given(st.lists(st.binary(max_size=30) | st.sampled_from([line("a"), b"", b"{}"]), max_size=6))
def test_any_bytes_give_tasks_and_at_most_one_bad_line(lines: list[bytes]) -> None:
    chunks = [b"\n".join(lines), b""]

    class Given(Pipe):
        def _readable(self) -> bool:
            return True

        def _chunk(self) -> bytes:
            return chunks.pop(0)

    source = Given(0)
    try:
        while not source.ended:
            source.take()
    except BadLine as error:
        assert str(error).startswith(f"stdin, line {source.line + 1}: ") and str(error).isprintable()


# -- files that cannot be read, or not any more


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    cases = {
        str(tmp_path / "none.jsonl"): "cannot open '.*none.jsonl': No such file or directory",
        str(tmp_path): "is a folder: give a file, one task a line",
        str(tmp_path / "none" / "x"): "No such file or directory",
        "": "cannot open '': No such file or directory",
        "a\0b": r"cannot open 'a\\x00b': no file has such a name",
        "x" * 5000: "cannot open 'x+…': File name too long",
        "amqp://a:s3cret@h": r"cannot open \(not shown: .* \(where RabbitMQ is goes after --url\)",
        "--ulr=a:my s3cret@h": r"cannot open \(not shown",
    }
    for name, reason in cases.items():
        with pytest.raises(WrongCall, match=reason) as caught:
            open_source(name)
        assert caught.value.status == 2 and "s3cret" not in str(caught.value) and str(caught.value).isprintable()


def test_a_file_that_may_not_be_read_is_said(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:  # a real mode 000 does not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(WrongCall, match=f"cannot open '.*{tasks.name}': Permission denied"):
        open_source(str(tasks))


def test_a_file_name_with_escape_codes_is_shown_safely(tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[1m\n@.jsonl"
    file.write_bytes(b"bad")
    with pytest.raises(BadLine, match=r"a\\x1b\[1m\\n@.jsonl, line 1: not JSON"):
        open_source(str(file))


def test_a_file_that_is_deleted_after_its_check_is_published_all_the_same(tasks: Path) -> None:
    tasks.write_bytes(line("a") + b"\n" + line("b"))
    source = open_source(str(tasks))
    tasks.unlink()
    assert ids(source) == ["a", "b"]


def test_a_file_that_got_longer_after_its_check_is_published_as_it_was(tasks: Path) -> None:
    tasks.write_bytes(line("a") + b"\n" + line("b") + b"\n")
    source = open_source(str(tasks))
    with tasks.open("ab") as more:
        more.write(line("c") + b"\nnot a task")
    assert ids(source) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "reason", "status"),
    [
        (b"", "has changed: 3 tasks at first, now 0", 1),
        (line("a") + b"\n", "has changed: 3 tasks at first, now 1", 1),
        (line("a") + b"\n\n\n", "has changed: 3 tasks at first, now 1", 1),
        (line("a") + b"\n" + line("b")[:-3], "line 2: not JSON", 2),
        (line("a") + b"\n" + b"bad\n" * 20, "line 2: not JSON", 2),
    ],
)
def test_a_file_that_changed_after_its_check_is_no_success(
    content: bytes, reason: str, status: int, tasks: Path
) -> None:
    tasks.write_bytes(b"\n".join(map(line, "abc")))
    source = open_source(str(tasks))
    with tasks.open("r+b") as same:  # the same file, rewritten in place
        same.truncate(0)
        same.write(content)
    with pytest.raises(BadLine, match=reason) as caught:
        all_of(source)
    assert caught.value.status == status and not source.ended


def broken(*_: object) -> bytes:
    raise OSError(5, "Input/output error")


def test_a_file_that_breaks_while_it_is_checked_is_said(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.write_bytes(line("a"))
    monkeypatch.setattr(os, "read", broken)
    reason = r"tasks.jsonl cannot be read after line 0: Input/output error \(nothing is published\)"
    with pytest.raises(Trouble, match=reason) as caught:
        open_source(str(tasks))
    assert caught.value.status == 1


def test_a_file_that_breaks_while_it_is_published_is_no_success(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.write_bytes((line("a") + b"\n") * 10_000)
    source = open_source(str(tasks))
    assert source.take()
    with monkeypatch.context() as patch, pytest.raises(BadLine, match=r"cannot be read after line [1-9]") as caught:
        patch.setattr(os, "read", broken)
        all_of(source)
    assert caught.value.status == 1 and not source.ended


def test_a_pipe_that_breaks_is_no_success(pipe: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, write, _ = pipe
    write(line("a") + b"\n")
    source = Pipe(reading)
    assert source.take()
    write(b"x")
    monkeypatch.setattr(os, "read", broken)
    with pytest.raises(BadLine, match="stdin cannot be read after line 1: Input/output error") as caught:
        source.take()
    assert caught.value.status == 1 and not source.ended


# -- stdin in its many shapes, in processes of their own

SHOW = """
import select, sys
from tareas.cli import run
from tareas.work.sources import open_source
def main(argv):
    source = open_source(sys.argv[1])
    print(type(source).__name__, source.total)
    while True:
        item = source.take()
        if item:
            print(item.id, flush=True)
        elif source.ended:
            return 0
        else:
            select.select([source.fileno()], [], [])
sys.exit(run(main))
"""


def show(shell: str, folder: Path, given: str = "") -> tuple[int, str, str]:
    """`$SHOW NAME` in the shell text prints the kind of source that NAME is, its total, its tasks."""
    (folder / "show.py").write_text(SHOW)
    done = subprocess.run(
        ["bash", "-c", shell], cwd=folder, text=True, input=given, capture_output=True, timeout=DEADLINE,
        env={**os.environ, "PYTHONPATH": PATHS, "SHOW": f"{sys.executable} show.py"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_pipe_as_stdin_is_read_as_it_comes(name: str, tmp_path: Path) -> None:
    assert show(f"$SHOW {name}", tmp_path, '{"id": "a"}\n') == (0, "Pipe None\na\n", "")


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_file_as_stdin_is_checked_whole(name: str, tmp_path: Path) -> None:
    shown = "stdin" if name == "-" else name
    (tmp_path / "t").write_text('{"id": "a"}\n{"id": "b"}\n')
    assert show(f"$SHOW {name} < t", tmp_path) == (0, "File 2\na\nb\n", "")
    (tmp_path / "t").write_text('{"id": "a"}\nbad\n')
    status, out, error = show(f"$SHOW {name} < t", tmp_path)
    assert (status, out) == (2, "")
    assert error.startswith(f"show.py: {shown}, line 2: not JSON") and error.endswith("(nothing is published)\n")


def test_a_file_as_stdin_is_read_from_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "t").write_text('# a heading\n{"id": "a"}\n')
    assert show("(read; $SHOW -) < t", tmp_path) == (0, "File 1\na\n", "")


@pytest.mark.parametrize("shell", ["$SHOW - < /dev/null", "$SHOW /dev/null"])
def test_nothing_as_stdin_is_no_task_and_no_error(shell: str, tmp_path: Path) -> None:
    assert show(shell, tmp_path) == (0, "Pipe None\n", "")


def test_a_closed_stdin_is_said(tmp_path: Path) -> None:
    reason = "show.py: stdin is closed: give the name of a file, or pipe tasks into it\n"
    assert show("$SHOW - <&-", tmp_path) == (2, "", reason)


def test_a_named_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    shell = """mkfifo p; (echo '{"id": "a"}'; echo '{"id": "b"}') > p & $SHOW p"""
    assert show(shell, tmp_path) == (0, "Pipe None\na\nb\n", "")


def test_a_terminal_as_stdin_is_read_line_by_line() -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW, "-"], stdin=theirs, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": PATHS},
    )
    try:
        os.close(theirs)
        assert process.stdout is not None
        for name in ("a", "b"):
            os.write(ours, line(name) + b"\n")
            if name == "a":
                assert process.stdout.readline() == b"Pipe None\n"
            assert process.stdout.readline().decode().strip() == name
        os.write(ours, b"\x04")  # Ctrl+D
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
