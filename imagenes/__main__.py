"""Make every picture of the README from real runs: python -m imagenes [NAME ...]

Each picture is what a command printed in a terminal of its own (an SVG of that screen), a page of RabbitMQ's
management interface in a headless browser, or a plot of what workers told with --json. Nothing is drawn by hand.
Needs Chromium for the page, and RabbitMQ's programs with their management plugin.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from tareas.local_broker import Node, find_programs

HERE = Path(__file__).parent
ROOT = HERE.parent
COLUMNS, ROWS = 88, 30
DEADLINE = 120.0  # seconds
THEME = TerminalTheme(
    (250, 250, 248), (30, 32, 36),
    [(30, 32, 36), (178, 34, 34), (22, 120, 60), (150, 95, 0), (30, 90, 180), (140, 50, 140), (0, 115, 130),
     (90, 92, 96)],
)  # fmt: skip


class Terminal:
    """A command on a terminal of its own, and what its screen shows."""

    def __init__(self, command: str, url: str, rows: int = ROWS) -> None:
        self.title = command
        self.screen = pyte.Screen(COLUMNS, rows)
        self._stream = pyte.ByteStream(self.screen)
        pid, self._fd = pty.fork()
        if pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, COLUMNS, 0, 0))
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            environment = {**os.environ, "AMQP_URL": url, "TERM": "xterm-256color", "PATH": path}
            environment.pop("NO_COLOR", None)
            os.chdir(ROOT)
            os.execvpe("sh", ["sh", "-c", f"exec {command}" if "|" not in command and ";" not in command else command],
                       environment)
        self.pid = pid

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def until(self, done: Callable[[str], bool] | str | None) -> Terminal:
        """Follow the screen until it shows this; None: until the command ends."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            if (isinstance(done, str) and done in self.text) or (callable(done) and done(self.text)):
                return self
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    data = os.read(self._fd, 65536)
                except OSError:  # Linux's way to say that the other side is closed
                    data = b""
                if not data:
                    if done is None:
                        return self
                    break
                self._stream.feed(data)
        raise SystemExit(f"imagenes: {self.title}: not seen in time; its screen:\n{self.text}")

    def end(self, signum: int = signal.SIGINT) -> Terminal:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)
        self.until(None)
        os.waitpid(self.pid, 0)
        return self

    def save(self, name: str, title: str | None = None) -> None:
        lines = [self._line(y) for y in range(self.screen.lines)]
        while lines and not lines[-1].plain.strip():
            lines.pop()
        save_svg(name, [Text(f"$ {title or self.title}", style="bold"), *lines])

    def _line(self, y: int) -> Text:
        line = Text()
        for x in range(self.screen.columns):
            cell = self.screen.buffer[y][x]
            colour = {"default": None, "brown": "yellow"}.get(cell.fg, cell.fg)
            if colour and re.fullmatch(r"[0-9a-f]{6}", colour):
                colour = f"#{colour}"
            elif colour and colour.startswith("bright"):
                colour = f"bright_{colour[6:]}"
            line.append(cell.data, Style(color=colour, bold=cell.bold, reverse=cell.reverse))
        line.rstrip()
        return line


def save_svg(name: str, lines: list[Text]) -> None:
    """One picture of these terminal lines."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        for line in lines:
            console.print(line, soft_wrap=False, no_wrap=True, highlight=False)
        svg = console.export_svg(title="", theme=THEME)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no font from another host
    svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace")
    (HERE / name).write_text(svg)


@contextlib.contextmanager
def node() -> Iterator[Node]:
    programs = find_programs()
    if programs is None:
        raise SystemExit("imagenes: RabbitMQ's programs are not there (make demo installs or names them)")
    folder = Path(tempfile.mkdtemp(prefix="tareas-imagenes-"))
    try:
        with Node(folder, programs, management=True) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- the pictures


def environment(rabbitmq: Node) -> None:
    """The virtual environment and what it holds."""
    with tempfile.TemporaryDirectory() as folder:
        steps = f"python3 -m venv {folder}/v; {folder}/v/bin/pip install -q -r requirements.txt 2>/dev/null; " \
                f"{folder}/v/bin/pip list --disable-pip-version-check 2>/dev/null"
        terminal = Terminal(steps, rabbitmq.url, 16).until(None)
    terminal.save("environment.svg", "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt"
                                     " && .venv/bin/pip list")


def service(rabbitmq: Node) -> None:
    """make broker."""
    with tempfile.TemporaryDirectory() as folder:
        port = rabbitmq._claim()
        terminal = Terminal(f"{sys.executable} -m tareas.private_broker --port {port} --folder {folder}", rabbitmq.url)
        terminal.until("Ctrl+C")
        terminal.end()
    terminal.save("service.svg", "make broker")


def producer(rabbitmq: Node) -> None:
    Terminal("python producer.py --count 12 --complexity 0.5-3 --seed 7", rabbitmq.url).until(None).save("producer.svg")


def worker(rabbitmq: Node) -> None:
    """In the middle of its fourth task."""
    terminal = Terminal("python worker.py worker-1", rabbitmq.url)
    terminal.until(lambda text: text.count("done ") >= 3)
    shown = time.monotonic() + 0.6
    terminal.until(lambda text: time.monotonic() > shown)
    terminal.save("worker.svg")
    terminal.end()
    Terminal("python worker.py --drain", rabbitmq.url).until(None)


def balance(rabbitmq: Node) -> None:
    """Four workers, 60 tasks: a plot of tasks and busy seconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run = {"env": {**os.environ, "AMQP_URL": rabbitmq.url}, "cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    count = ["--count", "60", "--complexity", "0.05-0.6", "--seed", "4"]
    subprocess.run([sys.executable, "producer.py", *count], check=True, **run)  # type: ignore[call-overload]
    names = [f"worker-{n}" for n in range(1, 5)]
    workers = [subprocess.Popen([sys.executable, "worker.py", name, "--drain", "--json"], **run)  # type: ignore
               for name in names]  # fmt: skip
    tasks, busy = [], []
    for process in workers:
        last = json.loads(process.communicate(timeout=DEADLINE)[0].splitlines()[-1])
        tasks.append(last["processed"])
        busy.append(last["busy"])
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
    for axis, values, label in zip(axes, (tasks, busy), ("tasks done", "seconds busy"), strict=True):
        bars = axis.barh(names, values, color="#1e5ab4")
        axis.bar_label(bars, [f"{value:g}" for value in values], padding=3)
        axis.set_xlabel(label)
        axis.set_xlim(0, max(values) * 1.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle("60 tasks of 0.05 to 0.6 s, four workers, prefetch 1", fontsize=11)
    figure.tight_layout()
    figure.savefig(HERE / "balance.png", dpi=150)


def kill(rabbitmq: Node) -> None:
    """The demo's chapter of a killed worker, with its timeline."""
    Terminal("python demo.py --scenario kill", rabbitmq.url, 60).until(None).save("kill.svg")


def restart(rabbitmq: Node) -> None:
    """A worker while its broker is restarted."""
    Terminal("python producer.py --count 6 --complexity 0.6-1.2 --seed 2", rabbitmq.url).until(None)
    terminal = Terminal("python worker.py worker-1", rabbitmq.url).until(lambda text: text.count("done ") >= 2)
    rabbitmq.stop()
    rabbitmq.start()
    terminal.until(lambda text: text.count("done ") >= 6)
    terminal.end()
    terminal.save("restart.svg")


def dead(rabbitmq: Node) -> None:
    """Two dead letters with their reasons."""
    tasks = ['{"id": "resize-17", "complexity": 0.2, "fail_attempts": 9}', '{"id": "no-complexity"}']
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tasks.jsonl")
        path.write_text("\n".join(tasks) + "\n")
        Terminal(f"python producer.py {path}", rabbitmq.url).until(None)
    Terminal("python worker.py worker-1 --drain --retry-delay 0", rabbitmq.url).until(None)
    Terminal("python admin.py dead", rabbitmq.url).until(None).save("dead.svg")


def routing(rabbitmq: Node) -> None:
    """The management page of the queue: its arguments, its binding to the default exchange, its consumers."""
    from playwright.sync_api import sync_playwright

    Terminal("python producer.py --count 3 --complexity 30", rabbitmq.url).until(None)
    workers = [Terminal(f"python worker.py worker-{n}", rabbitmq.url).until("started") for n in (1, 2)]
    try:
        with sync_playwright() as play:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            page: Any = browser.new_page(viewport={"width": 1000, "height": 900})
            page.goto(f"{rabbitmq.management_url}#/login/guest/guest")
            page.wait_for_selector("#logout, #user", timeout=60_000)
            page.goto(f"{rabbitmq.management_url}#/queues/%2F/tareas_distribuidas")
            page.wait_for_selector("h2:has-text('Bindings')", timeout=60_000)
            page.wait_for_function("document.body.innerText.includes('worker-2')", timeout=60_000)
            for title in ("Consumers", "Bindings"):
                section = page.locator(f"div.section:has(> h2:has-text('{title}'))").first
                if "section-hidden" in (section.get_attribute("class") or ""):
                    section.locator("h2").first.click()
            page.evaluate("""() => { for (const e of document.querySelectorAll('div.section, div.section-hidden')) {
                const title = e.querySelector('h2')?.innerText || '';
                if (!/Consumers|Bindings/.test(title)) e.style.display = 'none'; } }""")
            page.locator("#main").screenshot(path=str(HERE / "routing.png"))
            browser.close()
    finally:
        for terminal in workers:
            terminal.end(signal.SIGKILL)


PICTURES = (environment, service, routing, producer, worker, balance, kill, dead, restart)


def main(names: list[str]) -> int:
    known = {picture.__name__: picture for picture in PICTURES}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"imagenes: no picture {unknown[0]!r}: choose from {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        with node() as rabbitmq:  # a fresh one each: no picture depends on another
            if name in ("worker",):
                Terminal("python producer.py --count 12 --complexity 0.5-3 --seed 7", rabbitmq.url).until(None)
            known[name](rabbitmq)
        print(f"{name}: made", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
