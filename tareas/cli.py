"""What the commands share as command lines: options and their types, one-line errors, the exit status."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tareas.errors import Abandoned, Trouble
from tareas.streams import OUTPUT_FULL, complain, leave
from tareas.task import MAX_COMPLEXITY, QUEUE
from tareas.text import HIDDEN, argument, masked, may_hold_password, quoted

MAX_COUNT = 10**9
MAX_SECONDS = 86_400
MAX_NAME_BYTES = 100  # of a worker
MAX_QUEUE_BYTES = 250  # AMQP has 255; the dead-letter queue adds five


def run(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Call a command's main and return its exit status; whatever it raises becomes one line on stderr.

    130 after Ctrl+C, 143 after SIGTERM; 1, without a word, when nobody reads our output any more (``| head``). With
    TAREAS_DEBUG=1 in the environment, an error of our own shows its traceback.
    """
    program = os.path.basename(sys.argv[0])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that has no ñ shows an escape for it
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(argv)
    except SystemExit as leaving:
        code = leaving.code
        status = code if isinstance(code, int) else 0 if code is None else complain(program, str(code), 1)
    except KeyboardInterrupt:
        status = complain(program, "interrupted", 130)
    except Abandoned as abandoned:  # the signal came when all was over
        status = complain(program, "interrupted", 128 + abandoned.signum)
    except Trouble as trouble:
        status = complain(program, str(trouble), trouble.status)
    except BrokenPipeError:
        status = 1
        leave(sys.stdout)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OUTPUT_FULL:
            status = complain(program, f"the output cannot be written: {error.strerror}", 1)
            leave(sys.stdout)
        elif os.environ.get("TAREAS_DEBUG") == "1":
            raise
        else:
            what = quoted(masked(f"{type(error).__name__}: {error}"), quotes=False)
            status = complain(program, f"internal error: {what} (set TAREAS_DEBUG=1 for the traceback)", 1)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            complain(program, f"the output cannot be written: {error.strerror}", 1)
        status = status or 1
        leave(sys.stdout)
    return status


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line that never show a password, and a help that fits a terminal.

    The first paragraph of `doc` opens the help, the others end it; indented lines stay as they are.
    """

    def __init__(self, prog: str | None = None, description: str | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", Formatter)
        super().__init__(prog, allow_abbrev=False, add_help=False, **options)
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)  # whoever reads it knows the option
        self.doc = (description or "").strip()
        self._given: list[str] = []

    def add_queue_options(self) -> None:
        """Add --queue, --url and --json."""
        self.add_argument("--queue", type=queue_name, default=QUEUE, metavar="NAME", help="the queue (%(default)s)")
        self.add_argument("--url", metavar="URLS", help="of RabbitMQ (default: $AMQP_URL, else localhost)")
        self.add_argument("--json", action="store_true", help="tell each event as a line of JSON")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The options. Exits with status 2 and one line on stderr when the call is wrong."""
        given = list(sys.argv[1:] if args is None else args)
        for parser in self._parsers():
            parser._given = given
        options, unknown = self.parse_known_args(given, namespace)
        if unknown:
            self.error(self._about(unknown[0]))
        return options

    def _about(self, unknown: str) -> str:
        if not unknown.startswith("-") or unknown == "-":
            return f"one argument too many: {argument(unknown)}"
        import difflib  # for this error alone

        name = unknown.partition("=")[0]
        command = next((each for each in self._given if each in self._commands()), "")
        parsers = [self, self._commands()[command]] if command else self._parsers()
        near = difflib.get_close_matches(name, [name for each in parsers for name in each._option_string_actions], 1)
        where = f"{command} has" if command else "there is"
        return f"{where} no option {argument(name)}" + (f": did you mean {near[0]}?" if near else "")

    def _commands(self) -> dict[str, Parser]:
        """Its subcommands."""
        found: dict[str, Parser] = {}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found.update(action.choices)
        return found

    def _parsers(self) -> list[Parser]:
        """This one and those of its subcommands."""
        return [self, *self._commands().values()]

    def error(self, message: str) -> NoReturn:
        """End with one line on stderr and status 2."""
        for given in self._given:  # whole, as a password may have blanks
            if may_hold_password(given):
                for secret in (given, given.partition("=")[2] or given):
                    for shape in (repr(secret), quoted(secret), secret):
                        message = message.replace(shape, HIDDEN)
        message = quoted(masked(message).removeprefix("argument "), quotes=False, limit=1000)
        complain(self.prog, f"{message} (try: {self.prog} --help)", 2)
        raise SystemExit(2)

    def format_help(self) -> str:
        """What it does, how to call it, its options, the rest."""
        if self.usage is None and len(self._parsers()) == 1:  # the options follow: naming them twice fills the screen
            shapes = {None: "{0}", "?": "[{0}]", "*": "[{0} ...]", "+": "{0} [{0} ...]"}
            positional = self._get_positional_actions()
            names = [shapes[action.nargs].format(action.metavar) for action in positional]  # type: ignore[index]
            self.usage = " ".join(["%(prog)s [options]", *names])
        first, _, rest = self.doc.partition("\n\n")
        parts = [wrapped(first), super().format_help().strip("\n"), *(wrapped(part) for part in rest.split("\n\n"))]
        return "\n\n".join(filter(None, parts)) + "\n"


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help no wider than 80 columns, its options in two columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=29, width=width())


def width() -> int:
    """Columns for a help."""
    import shutil  # for the help alone

    return min(80, shutil.get_terminal_size().columns)


def wrapped(paragraph: str) -> str:
    """The paragraph in lines that fit, unless some line is indented: that is an example."""
    import textwrap

    paragraph = paragraph.strip("\n")
    if re.search(r"^\s", paragraph, re.MULTILINE):
        return paragraph
    return textwrap.fill(paragraph, width(), break_on_hyphens=False)


# -- types of arguments: from text to a value, or argparse.ArgumentTypeError with what is allowed


def seconds(text: str) -> float:
    """0 to 86,400 seconds, with a fraction or without."""
    value = _number(text)
    if value is None or value > MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{argument(text)} is not a number of seconds from 0 to {MAX_SECONDS:,}")
    return value


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{argument(text)} is not a whole number from 1 to {MAX_COUNT:,}")
    return int(text)


def up_to(most: int) -> Callable[[str], int]:
    """A type: a whole number from 1 to this one."""

    def number(text: str) -> int:
        value = positive(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"{argument(text)} is too many: 1 to {most:,}")
        return value

    return number


def complexity_range(text: str) -> tuple[float, float]:
    """``MIN-MAX`` or one number, in seconds, as (least, most)."""
    first, dash, second = text.partition("-")
    low, high = _number(first), _number(second if dash else first)
    shown = argument(text)
    if low is None or high is None or high > MAX_COMPLEXITY:
        raise argparse.ArgumentTypeError(f"{shown} is not MIN-MAX in seconds from 0 to {MAX_COMPLEXITY:,}, like 0.5-3")
    if low > high:
        raise argparse.ArgumentTypeError(f"{shown} ends below its start: write {second}-{first}")
    return low, high


def worker_name(text: str) -> str:
    """The name of a worker: 1 to 100 bytes, printable, no blanks around it."""
    return _name(text, MAX_NAME_BYTES)


def queue_name(text: str) -> str:
    """The name of a queue: 1 to 250 bytes, printable, no blanks around it, not one that RabbitMQ keeps for itself."""
    if text.startswith("amq."):
        raise argparse.ArgumentTypeError(f"{argument(text)} begins with amq., which RabbitMQ keeps for itself")
    return _name(text, MAX_QUEUE_BYTES)


def _name(text: str, limit: int) -> str:
    if not text or text != text.strip() or not text.isprintable() or len(text.encode()) > limit:
        what = f"1 to {limit} bytes, printable, no blanks around it"
        raise argparse.ArgumentTypeError(f"{argument(text)} is not a name ({what})")
    return text


def _number(text: str) -> float | None:
    """A plain decimal number. None for what else float() takes: nan, inf, 1_000, ١."""
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text) else None
