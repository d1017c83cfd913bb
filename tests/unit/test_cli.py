"""Command lines: what a wrong call and a wrong situation answer, and with which exit status."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tareas import cli
from tareas.cli import Parser, run
from tareas.errors import Abandoned, Trouble, WrongCall
from tareas.streams import own_stdout
from tareas.text import HIDDEN

ROOT = Path(__file__).parents[2]
DEADLINE = 60  # seconds


# -- types of arguments

GOOD: list[tuple[Callable[[str], Any], str, Any]] = [
    (cli.seconds, "0", 0.0), (cli.seconds, "1.5", 1.5), (cli.seconds, ".5", 0.5), (cli.seconds, "5.", 5.0),
    (cli.seconds, "86400", 86_400.0),
    (cli.positive, "1", 1), (cli.positive, "1000000000", 10**9), (cli.positive, "007", 7),
    (cli.complexity_range, "0.5-3", (0.5, 3.0)), (cli.complexity_range, "2", (2.0, 2.0)),
    (cli.complexity_range, "0-0", (0.0, 0.0)), (cli.complexity_range, "1-86400", (1.0, 86_400.0)),
    (cli.worker_name, "worker-1", "worker-1"), (cli.worker_name, "día uno", "día uno"),
    (cli.worker_name, "ñ" * 50, "ñ" * 50),
    (cli.queue_name, "tareas_distribuidas", "tareas_distribuidas"), (cli.queue_name, "x" * 250, "x" * 250),
]
NUMBERS = ["", " ", "-1", "+1", "nan", "NaN", "inf", "-inf", "1e3", "1_0", "0x10", "١", "１", "five", "9" * 500,
           "\x1b[1m", "1 ", "1\n", "--", "."]
BAD: list[tuple[Callable[[str], Any], str, str]] = [
    *((cli.seconds, text, "is not a number of seconds from 0 to 86,400") for text in [*NUMBERS, "86400.1", "1-2"]),
    *((cli.positive, text, "is not a whole number from 1 to 1,000,000,000")
      for text in [*NUMBERS, "0", "1.0", "1.5", "1000000001"]),
    *((cli.complexity_range, text, "is not MIN-MAX in seconds from 0 to 86,400, like 0.5-3")
      for text in [*NUMBERS, "1-", "-", "1-2-3", "-1-2", "1--2", "nan-1", "1-inf", "0-86401", "1:2", "a-b"]),
    (cli.complexity_range, "5-1", "'5-1' ends below its start: write 1-5"),
    *((cli.worker_name, text, "is not a name (1 to 100 bytes, printable, no blanks around it)")
      for text in ["", " ", " a", "a ", "a\n", "\x1b[1m", "a\u202eb", "\udcff", "ñ" * 51, "x" * 101]),
    *((cli.queue_name, text, "is not a name (1 to 250 bytes") for text in ["", "a\tb", "x" * 251]),
    (cli.queue_name, "amq.x", "begins with amq., which RabbitMQ keeps for itself"),
]


@pytest.mark.parametrize(("kind", "text", "value"), GOOD)
def test_a_good_argument_has_its_value(kind: Callable[[str], Any], text: str, value: Any) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(("kind", "text", "reason"), BAD)
def test_a_bad_argument_is_answered_with_what_is_allowed(kind: Callable[[str], Any], text: str, reason: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        kind(text)
    assert reason in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 200


@given(st.sampled_from([cli.seconds, cli.positive, cli.complexity_range, cli.worker_name, cli.queue_name]),
       st.text() | st.from_regex(r"[0-9.\-]{0,9}", fullmatch=True))
def test_any_argument_is_accepted_or_answered(kind: Callable[[str], Any], text: str) -> None:
    try:
        kind(text)
    except argparse.ArgumentTypeError as error:
        assert str(error).isprintable()


# -- parser


def parser() -> Parser:
    result = Parser("producer.py", """Publish tasks.

    python producer.py --count 5

Long paragraphs, which the source may write as wide as it likes, are wrapped for a terminal that is eighty columns wide.
""")
    result.add_argument("file", nargs="?", metavar="FILE", help="a file")
    result.add_argument("--count", type=cli.positive, metavar="N", help="how many")
    result.add_argument("--complexity", type=cli.complexity_range, metavar="MIN-MAX", help="how long")
    result.add_queue_options()
    return result


def with_commands() -> Parser:
    result = Parser(prog="admin.py", description="Look after it.", epilog="examples:\n  admin.py status")
    commands = result.add_subparsers(metavar="COMMAND", required=True)
    status = commands.add_parser("status", help="figures")
    status.add_argument("--watch", type=cli.positive)
    commands.add_parser("dead", help="dead letters").add_queue_options()
    return result


CALLS = [
    (parser, ["--count", "-5"], "--count: '-5' is not a whole number from 1 to 1,000,000,000"),
    (parser, ["--complexity", "5-1"], "--complexity: '5-1' ends below its start: write 1-5"),
    (parser, ["--count"], "--count: expected one argument"),
    (parser, ["--cuont", "5"], "there is no option '--cuont': did you mean --count?"),
    (parser, ["--jsn"], "there is no option '--jsn': did you mean --json?"),
    (parser, ["--co=5"], "there is no option '--co'"),
    (parser, ["--\x1b[1m\n"], "there is no option '--\\x1b[1m\\n'"),
    (parser, ["a", "b"], "one argument too many: 'b'"),
    (parser, ["--queue", "amq.x"], "--queue: 'amq.x' begins with amq."),
    (with_commands, [], "the following arguments are required: COMMAND"),
    (with_commands, ["stauts"], "invalid choice: 'stauts'"),
    (with_commands, ["status", "--wacht", "2"], "status has no option '--wacht': did you mean --watch?"),
    (with_commands, ["status", "--watch", "x"], "--watch: 'x' is not a whole number"),
]


def answer(make: Callable[[], Parser], argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        make().parse_args(argv)
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.out == ""
    return said.err


@pytest.mark.parametrize(("make", "argv", "reason"), CALLS)
def test_a_wrong_call_is_answered_in_one_line(
    make: Callable[[], Parser], argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = answer(make, argv, capsys)
    program = "admin.py" if make is with_commands else "producer.py"
    assert line.startswith(program) and reason in line and line.endswith(" --help)\n")
    assert line[:-1].isprintable()


SECRETS = ["amqp://guest:s3cret@host", "guest:s3cret@host/", "amqp://guest:s3cret", "amqp://guest:my s3cret pass@host",
           "amqp://guest:" + "s3cret " * 40 + "@host", "amqp://guest:it's s3cret@host", "amqp://u:\ts3cret\n@h"]


PLACES = [["--count", "{}"], ["--count={}"], ["--complexity", "{}"], ["--queue", "amq.{}"], ["x", "{}"],
          ["--", "x", "{}"], ["--ulr", "x", "{}"], ["--ulr={}"], ["--json={}"], ["-{}"], ["--{}"]]


@pytest.mark.parametrize("place", PLACES, ids=" ".join)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_password_is_never_shown(place: list[str], secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(parser, [*(part.format(secret) for part in place), "--no-such-option"], capsys)
    assert "s3cret" not in said and "guest:" not in said


def test_a_password_given_to_a_subcommand_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert HIDDEN in answer(with_commands, ["status", "--watch", "amqp://a:my s3cret pass@h"], capsys)
    assert "s3cret" not in answer(with_commands, ["amqp://a:my s3cret pass@h"], capsys)
    assert "s3cret" not in answer(with_commands, ["status", "my s3cret pass@h"], capsys)


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--coun" in answer(parser, ["--coun", "5"], capsys)


def test_a_good_call_has_its_values() -> None:
    options = parser().parse_args(["tasks.jsonl", "--complexity", "1-2", "--url", "amqp://a:b@c", "--json"])
    assert (options.file, options.complexity, options.json) == ("tasks.jsonl", (1, 2), True)
    assert options.url == "amqp://a:b@c"
    assert options.queue == "tareas_distribuidas"
    assert parser().parse_args(["-"]).file == "-"
    assert with_commands().parse_args(["dead", "--json"]).json


def test_the_arguments_of_the_process_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["producer.py", "--count", "3"])
    assert parser().parse_args().count == 3


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_help_says_first_what_it_does_and_fits(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    text = parser().format_help()
    assert text.startswith("Publish tasks.\n\nusage: producer.py [options] [FILE]\n")
    assert "\n    python producer.py --count 5\n" in text
    assert max(map(len, text.splitlines())) <= min(80, columns)
    assert columns < 80 or len(text.splitlines()) <= 24
    assert "(default: $AMQP_URL, else localhost)" in " ".join(text.split())


@pytest.mark.parametrize(("nargs", "shown"), [
    (None, "FILE"), ("?", "[FILE]"), ("*", "[FILE ...]"), ("+", "FILE [FILE ...]"),
])
def test_the_usage_says_how_many_arguments_there_may_be(nargs: str | None, shown: str) -> None:
    one = Parser("x", "Doc.")
    one.add_argument("files", nargs=nargs, metavar="FILE")
    assert f"usage: x [options] {shown}\n" in one.format_help()


def test_the_help_of_a_program_with_subcommands_ends_with_its_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = with_commands().format_help()
    assert text.startswith("Look after it.\n\nusage: admin.py") and text.endswith("examples:\n  admin.py status\n")


# -- run: from what main raises to an exit status


def raising(error: BaseException) -> Callable[[list[str] | None], int]:
    def main(argv: list[str] | None) -> int:
        raise error

    return main


ENDS = [
    (Trouble("the broker is away"), 1, "worker.py: the broker is away\n"),
    (Trouble("another end", status=3), 3, "worker.py: another end\n"),
    (WrongCall("no such file"), 2, "worker.py: no such file\n"),
    (KeyboardInterrupt(), 130, "worker.py: interrupted\n"),
    (KeyboardInterrupt("a handler's own"), 130, "worker.py: interrupted\n"),
    (Abandoned(signal.SIGTERM), 143, "worker.py: interrupted\n"),
    (SystemExit(4), 4, ""),
    (SystemExit(), 0, ""),
    (SystemExit("text"), 1, "worker.py: text\n"),
    (ZeroDivisionError("a\nb"), 1,
     "worker.py: internal error: ZeroDivisionError: a\\nb (set TAREAS_DEBUG=1 for the traceback)\n"),
    (ValueError("bad amqp://a:s3cret@h"), 1,
     f"worker.py: internal error: ValueError: bad {HIDDEN} (set TAREAS_DEBUG=1 for the traceback)\n"),
]


@pytest.mark.parametrize(("error", "status", "line"), ENDS, ids=lambda part: repr(part)[:30])
def test_what_main_raises_becomes_a_status_and_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/worker.py"])
    monkeypatch.delenv("TAREAS_DEBUG", raising=False)
    assert run(raising(error)) == status
    assert capsys.readouterr() == ("", line)


def test_what_main_returns_is_the_status_and_argv_goes_to_it() -> None:
    assert run(lambda argv: len(argv or []), ["a", "b", "c"]) == 3
    assert run(lambda argv: 7 if argv is None else 0) == 7


def test_an_error_of_our_own_is_raised_for_who_debugs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAREAS_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


def program(main: str, shell: str = '"$@"', stdout: int = subprocess.PIPE, **environment: str) -> Any:
    """Run a small program around `run` in a process of its own; `shell` says what stands around the call."""
    imports = "import sys\nfrom tareas.cli import *\nfrom tareas.streams import *"
    code = f"{imports}\ndef main(argv): {main}\nsys.exit(run(main))"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell}", "bash", sys.executable, "-c", code], cwd=ROOT, text=True,
        stdout=stdout, stderr=subprocess.PIPE, timeout=DEADLINE,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )


@pytest.fixture
def nobody() -> Iterator[int]:
    """A pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    done = program("[print(n) for n in range(10**6)]", '"$@" | head -1')
    assert (done.returncode, done.stdout, done.stderr) == (1, "0\n", "")


def test_a_reader_that_went_away_before_the_last_flush_ends_it_quietly(nobody: int) -> None:
    done = program("print('x'); return 0", stdout=nobody)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("main", ["print('x'); return 0", "print('x', flush=True); return 0"])
def test_a_full_disk_is_said(main: str) -> None:
    done = program(main, '"$@" > /dev/full')
    assert (done.returncode, done.stderr) == (1, "-c: the output cannot be written: No space left on device\n")


def test_a_trouble_is_said_though_nobody_reads_the_output(nobody: int) -> None:
    done = program("print('x'); raise Trouble('away', 5)", stdout=nobody)
    assert (done.returncode, done.stderr) == (5, "-c: away\n")


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_closed_streams_do_no_harm(closed: str) -> None:
    done = program("print('x'); raise Trouble('away', 5)", f'"$@" {closed}')
    assert done.returncode == 5
    assert done.stdout == ("x\n" if closed == "2>&-" else "")


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    done = program("print('año'); return 0", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\\xf1o\n", "")


def test_ctrl_c_is_no_traceback() -> None:
    done = program("import os, signal; os.kill(os.getpid(), signal.SIGINT); return 0")
    assert (done.returncode, done.stderr) == (130, "-c: interrupted\n")


def test_help_into_a_pipe_that_closes_is_quiet(nobody: int) -> None:
    done = program("Parser('x', 'Doc.').parse_args(['--help'])", stdout=nobody)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_complaint_is_wrapped_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 2

    monkeypatch.setattr("os.get_terminal_size", lambda fd: os.terminal_size((40, 24)))
    monkeypatch.setattr(sys, "argv", ["worker.py"])
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def main(argv: object) -> int:
        raise Trouble("nobody listens at localhost:5672 (start RabbitMQ: make broker)")

    assert cli.run(main) == 1
    assert terminal.getvalue().splitlines() == [
        "worker.py: nobody listens at", "localhost:5672 (start RabbitMQ: make", "broker)",
    ]  # fmt: skip


PRINTS = "own = own_stdout(); print('mine', file=own or sys.stdout, flush=True); print('printed'); import os; "


@pytest.mark.parametrize(("closed", "out", "err"), [("", "mine\n", "printed\nrun\nmore\n"), ("2>&-", "mine\n", ""),
                                                    (">&-", "", ""), (">&- 2>&-", "", "")])
def test_own_stdout_is_nobody_elses(closed: str, out: str, err: str) -> None:
    done = program(PRINTS + "os.system('echo run; echo more >&2 2>/dev/null'); return 0", f'"$@" {closed}')
    assert done.returncode == 0 and done.stdout == out
    assert closed or done.stderr == err


def test_own_stdout_does_not_take_the_number_of_a_closed_stderr() -> None:
    done = program(PRINTS + "os.write(2, b'to stderr'); return 0", '"$@" 2>&-')
    assert (done.returncode, done.stdout) == (0, "mine\n")


def test_own_stdout_leaves_alone_what_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert own_stdout() is None
    print("as ever")
    assert capsys.readouterr() == ("as ever\n", "")
