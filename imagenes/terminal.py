"""A shell on a terminal of its own: what is typed there, what its screen shows, and a picture of that screen."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COLUMNS, ROWS = 80, 120  # rows: more than a picture has, nothing may scroll away
DEADLINE = 120.0  # seconds
PROMPT = re.compile(r"(\(\.venv\) )?\$($| )")
GROUND, INK = (251, 251, 248), (30, 32, 36)
# Dark enough to be read on the ground: black, red, green, yellow, blue, magenta, cyan, white.
COLOURS = [INK, (179, 32, 42), (22, 112, 60), (150, 92, 0), (30, 90, 180), (140, 50, 140), (0, 110, 125), (90, 92, 96)]
BADGE = "#f5cf66"  # the yellow behind a label
# As rich's own, without its window buttons and without a font from another host.
FORMAT = """<svg class="rich-terminal" viewBox="0 0 WIDTH HEIGHT" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
    font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace;
    font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
<rect x="0.5" y="0.5" width="FRAMEW" height="FRAMEH" rx="8" fill="#fbfbf8" stroke="#d0d0c8"/>
<g transform="translate(14, 14)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Terminal:
    """`sh` in this folder, with these variables."""

    def __init__(self, folder: Path, environment: dict[str, str], columns: int = COLUMNS) -> None:
        self._columns = columns
        self._screen = pyte.Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
                os.chdir(folder)
                shell = {"PS1": "$ ", "TERM": "xterm-256color", "PWD": str(folder)}
                os.execvpe("sh", ["sh", "-i"], environment | shell)
            finally:
                os._exit(127)
        self._until(lambda: self.lines() == ["$"], "its prompt")

    def lines(self) -> list[str]:
        """The screen, down to the cursor."""
        return [line.rstrip() for line in self._screen.display[: self._screen.cursor.y + 1]]

    def start(self, command: str, shown: str | Callable[[str], bool]) -> None:
        """Type a command, and follow the screen until it shows this."""
        self._type(command + "\n")
        self.until(shown)

    def until(self, shown: str | Callable[[str], bool]) -> None:
        """Follow the screen until it shows this."""
        self._until(lambda: shown in self._text if isinstance(shown, str) else shown(self._text), str(shown))

    def run(self, *commands: str) -> None:
        """Type commands, and follow each until it ends."""
        for command in commands:
            before = self._prompts()
            self._type(command + "\n")
            self._until(lambda before=before: self._prompts() > before and self._at_prompt(), command)  # type: ignore

    def interrupt(self) -> None:
        """Ctrl+C, and follow the screen until the command has ended."""
        self._type("\x03")
        self._until(self._at_prompt, "the end after Ctrl+C")

    def clear(self) -> None:
        """Empty the screen: the picture begins with the next command."""
        self._screen.reset()
        self._stream.feed(b"$ ")

    def close(self) -> None:
        """Hang up: the shell ends, and what still runs there."""
        os.close(self._fd)
        os.kill(self._pid, signal.SIGHUP)
        os.waitpid(self._pid, 0)

    def save(self, path: Path) -> None:
        """The screen as an SVG, commands in bold; a last prompt that waits is left out."""
        rows = [self._line(y) for y in range(self._screen.cursor.y + 1)]
        if self._at_prompt():
            rows.pop()
        while rows and not rows[-1].plain:
            rows.pop()
        with open(os.devnull, "w") as nowhere:
            console = Console(
                record=True, width=self._columns, file=nowhere, force_terminal=True, color_system="truecolor"
            )
            for row in rows:
                console.print(row, no_wrap=True, highlight=False)
            width, height = round(self._columns * 12.2) + 28, round(len(rows) * 24.4) + 32
            form = FORMAT
            for mark, value in ("FRAMEW", width - 1), ("FRAMEH", height - 1), ("WIDTH", width), ("HEIGHT", height):
                form = form.replace(mark, str(value))
            svg = console.export_svg(title="", theme=TerminalTheme(GROUND, INK, COLOURS), code_format=form)
        path.write_text(svg)

    @property
    def _text(self) -> str:
        return "\n".join(self.lines())

    def _prompts(self) -> int:
        return sum(1 for line in self.lines() if PROMPT.match(line))

    def _at_prompt(self) -> bool:
        return re.fullmatch(r"(\(\.venv\) )?\$", self.lines()[-1]) is not None

    def _type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def _until(self, seen: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + DEADLINE
        while not seen():
            if time.monotonic() > end:
                raise SystemExit(f"imagenes: not seen in time: {what}; the screen:\n{self._text}")
            if select.select([self._fd], [], [], 0.1)[0]:
                self._stream.feed(os.read(self._fd, 65536))

    def _line(self, y: int) -> Text:
        line = Text()
        row = [self._screen.buffer[y][x] for x in range(self._columns)]
        # An indent is a text of its own: some programs drop the blanks before a text of an SVG.
        indent = len(row) - len("".join(cell.data for cell in row).lstrip())
        line.append(" " * indent)
        for style, cells in itertools.groupby(row[indent:], _style):
            line.append("".join(cell.data for cell in cells), style)
        if PROMPT.match(line.plain):
            line.stylize("bold")
        line.rstrip()
        return line


def _style(cell: pyte.screens.Char) -> Style:
    colour = {"default": None, "brown": "yellow"}.get(cell.fg, cell.fg)
    return Style(color=colour, bgcolor=BADGE if cell.bg == "brown" else None, bold=cell.bold, reverse=cell.reverse)
