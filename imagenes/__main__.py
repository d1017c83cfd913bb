"""Make every picture of the README from real runs: make imagenes, or python -m imagenes [NAME ...]

Each picture is the screen of a terminal where the commands in it were typed, a page of RabbitMQ's management interface
in a headless browser, or a plot of what workers and the demo told. Nothing is drawn by hand. Its packages go into
imagenes/.venv; Chromium (Debian: apt install chromium) and RabbitMQ with its management plugin must be installed.
Linux and macOS.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagenes.terminal import Terminal
    from tareas.lab.node import Node

PORT = 5672
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = HERE / ".venv"
DEADLINE = 120.0  # seconds
# Not copied to the folder where the pictures are taken.
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "imagenes", "bench", "tests")


class Scene:
    """A folder like a fresh clone with its .venv, and mostly a RabbitMQ, at the usual port if that is free."""

    def __init__(self, folder: Path, node: Node | None) -> None:
        self.folder = folder
        self._node = node
        self._terminals: list[Terminal] = []
        self._processes: list[subprocess.Popen[str]] = []
        ours = ("AMQP_URL", "NO_COLOR", "VIRTUAL_ENV", "MAKELEVEL", "MAKEFLAGS", "MFLAGS")
        kept = {key: value for key, value in os.environ.items() if key not in ours}
        self.environment = kept | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self.with_programs = {"PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"}
        if node is not None and node.port != PORT:
            self.with_programs["AMQP_URL"] = node.url

    @property
    def node(self) -> Node:
        assert self._node is not None
        return self._node

    def terminal(self, *, fresh: bool = False, columns: int = 80) -> Terminal:
        """A terminal in the folder. fresh: .venv is not active yet."""
        from imagenes.terminal import Terminal

        terminal = Terminal(self.folder, self.environment | ({} if fresh else self.with_programs), columns)
        self._terminals.append(terminal)
        return terminal

    def call(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """A command without a terminal."""
        environment = self.environment | self.with_programs
        process = subprocess.Popen(command, cwd=self.folder, env=environment, text=True, **options)
        self._processes.append(process)
        return process

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close()
        for process in self._processes:  # a picture that failed leaves them running
            process.kill()
            process.wait()


# -- the pictures


def environment(scene: Scene) -> None:
    """The environment and the installation."""
    (scene.folder / ".venv").unlink()
    terminal = scene.terminal(fresh=True)
    terminal.run("python3 -m venv .venv", ". .venv/bin/activate", "pip install -qq -r requirements.txt", "pip list")
    terminal.save(HERE / "environment.svg")


def service(scene: Scene) -> None:
    """The service coming up, and stopped with Ctrl+C."""
    terminal = scene.terminal(fresh=True)
    terminal.start("make broker" if free() else "make broker ARGS='--port 5673'", "Ctrl+C stops it.")
    terminal.interrupt()
    terminal.save(HERE / "service.svg")


def producer(scene: Scene) -> None:
    """A producer."""
    terminal = scene.terminal()
    terminal.run("python producer.py")
    terminal.save(HERE / "producer.svg")


def worker(scene: Scene) -> None:
    """A worker in the middle of a task."""
    terminal = scene.terminal()
    terminal.run("python producer.py --count 8 --complexity 0.5-3 --seed 7")
    terminal.clear()
    terminal.start("python worker.py worker-1", lambda text: text.count("done ") == 4)
    # The bar of a task that takes long enough, past its first half.
    terminal.until(lambda text: "━" * 15 in text)
    terminal.save(HERE / "worker.svg")


def balance(scene: Scene) -> None:
    """Four workers: a plot of how many tasks each has done, and how long each was busy."""
    logs = [scene.folder / f"worker-{number}.jsonl" for number in range(1, 5)]
    workers = []
    for log in logs:
        with log.open("w") as stdout:
            workers.append(scene.call("python", "worker.py", log.stem, "--json", stdout=stdout))
    wait(lambda: all(told(log, "connected") for log in logs), "four workers that are connected")
    count = ("--count", "60", "--complexity", "0.1-1.5", "--seed", "4")
    scene.call("python", "producer.py", *count, stdout=subprocess.DEVNULL).wait(DEADLINE)
    wait(lambda: sum(len(told(log, "done")) for log in logs) == 60, "60 tasks that are done")
    for process in workers:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)
    plot([log.stem for log in logs], [told(log, "stopped")[0] for log in logs])


def plot(names: Sequence[str], ends: Sequence[dict[str, Any]]) -> None:
    """Two panels of bars, one of each a worker. ends: the `stopped` events."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "tareas", "font.family": "DejaVu Sans", "font.size": 12})
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, 2, figsize=(10, 3.1), sharey=True, facecolor="#fbfbf8")
    for axes, fact, label, form in ((grid[0], "processed", "tasks done", "{:.0f}"),
                                    (grid[1], "busy", "seconds busy", "{:.1f}")):  # fmt: skip
        values = [end[fact] for end in ends]
        bars = axes.barh(names, values, color="#2f66b0", height=0.66)
        axes.bar_label(bars, [form.format(value) for value in values], padding=4)
        axes.set_title(f"{label}, {form.format(sum(values))} in all", fontsize=12, loc="left")
        axes.set_xlim(0, max(values) * 1.12)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_facecolor("#fbfbf8")
    grid[0].invert_yaxis()
    figure.suptitle("producer.py --count 60 --complexity 0.1-1.5: whoever is free gets the next task", x=0.012,
                    ha="left", fontsize=13, fontweight="bold")  # fmt: skip
    figure.tight_layout()
    figure.savefig(HERE / "balance.svg", metadata={"Date": None})


def kill(scene: Scene) -> None:
    """A worker that is killed: the demo's own picture of its timeline."""
    scene.environment.pop("AMQP_URL", None)
    (scene.folder / "imagenes").mkdir()
    scene.terminal().run("python demo.py --scenario kill --save imagenes/kill.svg")
    shutil.copyfile(scene.folder / "imagenes" / "kill.svg", HERE / "kill.svg")


def restart(scene: Scene) -> None:
    """A worker while its broker is restarted."""
    terminal = scene.terminal()
    terminal.run("python producer.py --count 5 --complexity 1-2 --seed 2")
    terminal.clear()
    terminal.start("python worker.py worker-1", lambda text: text.count("started ") == 3)
    scene.node.stop()
    terminal.until("waiting ")
    scene.node.start()
    terminal.until(lambda text: text.count("done ") >= 5)
    terminal.save(HERE / "restart.svg")


def dead(scene: Scene) -> None:
    """Two dead letters: how they came to be, and what is kept of the reason."""
    fails: tuple[int | str, ...] = (9, "often")
    lines = [json.dumps({"id": f"resize-{number}", "complexity": 0.2, "fail_attempts": fail}) + "\n"
             for number, fail in enumerate(fails, 17)]  # fmt: skip
    (scene.folder / "tasks.jsonl").write_text("".join(lines))
    terminal = scene.terminal(columns=110)
    terminal.run("python producer.py tasks.jsonl")
    terminal.clear()
    terminal.run("python worker.py worker-1 --drain --max-attempts 2 --retry-delay 0", "python admin.py dead")
    terminal.save(HERE / "dead.svg")


def routing(scene: Scene) -> None:
    """The management page of the queue: its binding to the default exchange, and its consumers."""
    from playwright.sync_api import sync_playwright

    terminal = scene.terminal()
    terminal.run("python producer.py --count 6 --complexity 60")
    for number in (1, 2):
        scene.terminal().start(f"python worker.py worker-{number}", "started ")
    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        browser = play.chromium.launch(executable_path=chromium(), args=flags)
        # bypass_csp: RabbitMQ's pages forbid eval, which wait_for_function needs.
        page = browser.new_page(viewport={"width": 860, "height": 1000}, device_scale_factor=2, bypass_csp=True)
        page.goto(f"{scene.node.management_url}")
        page.fill("input[name=username]", "guest")
        page.fill("input[name=password]", "guest")
        page.click("input[type=submit]")
        page.wait_for_selector("#logout", timeout=60_000)
        page.goto(f"{scene.node.management_url}#/queues/%2F/tareas_distribuidas")
        page.wait_for_selector("h2:has-text('Bindings')", timeout=60_000)
        page.wait_for_function(COMPLETE, timeout=60_000)  # RabbitMQ counts every five seconds
        page.add_style_tag(content=HIDDEN)
        page.evaluate(OPENED, ["Overview", "Consumers", "Bindings"])
        page.locator("#main").screenshot(path=str(HERE / "routing.png"))
        browser.close()


# All that is not about routing: the page's head, diagrams, empty rows, and the form for more bindings.
HIDDEN = """#header, #rhs, #footer, #main form, #main h3, #main .section:first-of-type .hider > :not(table.facts),
    #main .section:first-of-type table.facts-l:first-of-type > tbody > tr + tr { display: none !important; }
    #main { padding: 4px 16px 12px !important; margin: 0 !important; background: #fff; }"""
COMPLETE = "/worker-2/.test(document.body.textContent) && !/NaN/.test(document.body.textContent)"
# Shows these sections, and no others.
OPENED = """(titles) => {
    for (const section of document.querySelectorAll('#main > div.section, #main > div.section-hidden')) {
        const title = section.querySelector('h2')?.textContent || '';
        if (!titles.some((each) => title.startsWith(each))) section.style.display = 'none';
        else if (section.classList.contains('section-hidden')) section.querySelector('h2').click();
    }
}"""


# -- how they are made


def told(log: Path, word: str) -> list[dict[str, Any]]:
    """The events of this kind in a log that is still being written."""
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [event for event in map(json.loads, lines) if event["event"] == word]


def wait(seen: Any, what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not seen():
        if time.monotonic() > end:
            raise SystemExit(f"imagenes: not seen in time: {what}")
        time.sleep(0.05)


def free() -> bool:
    from tareas.lab import ports

    return ports.free(PORT)


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise SystemExit("imagenes: routing needs Chromium: sudo apt install chromium (other pictures: name them)")
    return found


@contextlib.contextmanager
def scene(name: str) -> Iterator[Scene]:
    """A fresh scene for each picture: none depends on another."""
    from tareas.lab.node import Node
    from tareas.lab.programs import find_programs

    programs = find_programs()
    if programs is None:
        raise SystemExit("imagenes: RabbitMQ is not installed: python -m tareas.lab.provide --install")
    with tempfile.TemporaryDirectory(prefix="imagenes-", ignore_cleanup_errors=True) as place, contextlib.ExitStack() \
            as stack:
        folder = Path(place, "tareas-distribuidas")
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        node = None
        if name not in ("environment", "service", "kill"):
            port = PORT if free() else None
            node = stack.enter_context(Node(Path(place, "node"), programs, port=port, management=True))
        yield stack.enter_context(contextlib.closing(Scene(folder, node)))


def prepare() -> None:
    """Make .venv and imagenes/.venv if they are not there, and continue in imagenes/.venv."""
    subprocess.run(["make", "-s", ".venv/run"], cwd=ROOT, check=True)
    wanted, made = HERE / "requirements.txt", VENV / "made"
    python = VENV / "bin" / "python"
    if not made.exists() or made.stat().st_mtime < wanted.stat().st_mtime:
        print(f"installing what draws pictures into {VENV.relative_to(ROOT)} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"]
        subprocess.run([python, *pip, wanted], check=True)
        made.touch()
    if Path(sys.prefix) != VENV:
        os.chdir(ROOT)
        os.execv(python, [str(python), "-m", "imagenes", *sys.argv[1:]])


PICTURES = (routing, service, environment, producer, worker, balance, kill, restart, dead)


def main(names: Sequence[str]) -> int:
    known = {picture.__name__: picture for picture in PICTURES}
    if unknown := [name for name in names if name not in known]:
        print(f"imagenes: no picture {unknown[0]!r}: choose from {', '.join(known)}", file=sys.stderr)
        return 2
    prepare()
    if "routing" in (names or known):
        chromium()  # fails now, not after some minutes
    for name in names or known:
        with scene(name) as made:
            known[name](made)
        print(f"{name}: made", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
