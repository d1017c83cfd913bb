"""A private RabbitMQ, as a child process with its data in a folder of its own: to start, kill and start again.

    programs = find_programs()
    with Node(folder, programs) as node:    # started, on a free port of the loopback interface
        connect(node.url)
        node.kill(); node.start()           # the data is still there

It never touches a RabbitMQ that runs on this machine already: own ports, own cookie, own epmd (Erlang's port mapper),
own configuration. POSIX only, as RabbitMQ's own scripts are.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tareas.errors import NodeTrouble
from tareas.lab import guard, settings
from tareas.lab.ports import HOST, Claim, free, greet
from tareas.lab.programs import Programs

BOOT = 120.0  # seconds: 3 on an idle machine, 15 and more on a busy one
MANAGEMENT = 10_000  # from RabbitMQ's port to that of its management page: 5672, 15672


class Node:
    """One RabbitMQ node. As a context manager: started on entry, stopped on exit.

    folder: everything it writes (data, log, cookie); made if missing. port: 0 or None for a free one.
    name: the data belongs to it. config: further lines of rabbitmq.conf. management: with the management plugin.
    home, epmd: a cluster's nodes share the cookie's folder and the port mapper.
    """

    def __init__(
        self,
        folder: str | Path,
        programs: Programs,
        name: str | None = None,
        port: int | None = None,
        config: str = "",
        *,
        management: bool = False,
        home: Path | None = None,
        epmd: int | None = None,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.programs = programs
        self.name = f"{name or 'tareas'}@localhost"
        self.config = config
        self.home = home or self.folder
        self._claims: list[Claim] = []
        self.port = port or self._claim()
        self.dist_port = self._claim()
        self.own_epmd = epmd is None
        self.epmd = epmd or self._claim()
        self.management_port = self._management_port(port) if management else None
        self._guard: subprocess.Popen[bytes] | None = None
        self.version = ""  # RabbitMQ's, as it answers at the start: "3.10.8"
        self._logged: dict[Path, int] = {}  # the sizes of its logs at the launch

    def _claim(self, port: int | None = None) -> int:
        claim = Claim(port)
        self._claims.append(claim)
        return claim.port

    def _management_port(self, port: int | None) -> int:
        """15672 beside 5672, as RabbitMQ has them, 15673 beside 5673, and so on; any where that one is taken."""
        beside = (port or 0) + MANAGEMENT
        if port and beside <= 65535 and free(beside):
            with contextlib.suppress(NodeTrouble):  # another node of ours has claimed it
                return self._claim(beside)
        return self._claim()

    def __enter__(self) -> "Node":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}/%2F"

    @property
    def management_url(self) -> str | None:
        return f"http://{HOST}:{self.management_port}/" if self.management_port else None

    @property
    def pid(self) -> int | None:
        """The process id of the Erlang VM (beam.smp); None while it doesn't run."""
        return guard.read_pid(self._pid_file) if self.running else None

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    @property
    def log(self) -> Path:
        return settings.log(self.folder)

    @property
    def has_data(self) -> bool:
        """Whether it has been started before."""
        return any((self.folder / "data").glob("*"))

    @property
    def _pid_file(self) -> Path:
        return settings.pid_file(self.folder)

    def start(self, deadline: float = BOOT) -> None:
        """Start the node and wait until it answers a client. Raises NodeTrouble after `deadline` seconds."""
        self.launch()
        self.wait(deadline)

    def launch(self) -> None:
        """Start the node without waiting for it (a cluster's nodes wait for each other)."""
        if self.running:
            return
        if not free(self.port):
            version = greet(self.port)
            owner = "another program" if version is None else f"another RabbitMQ ({version or 'or its like'})"
            raise NodeTrouble(f"port {self.port} is taken by {owner}: use that one, stop it, or choose another "
                              "(make broker ARGS='--port N')")
        other = guard.read_pid(self._pid_file)
        if other is not None and is_erlang(other):
            raise NodeTrouble(f"a RabbitMQ (process {other}) runs on the data in {self.folder} already: stop it first")
        self._pid_file.unlink(missing_ok=True)
        settings.write(self.folder, self.home, self.port, self.management_port, self.config)
        self._logged = {file: file.stat().st_size for file in self.log.glob("*.log")}
        with (self.log / "console.log").open("ab") as console:
            self._guard = subprocess.Popen(
                [
                    *(sys.executable, "-I", guard.__file__, str(self._pid_file)),
                    *(str(self.epmd if self.own_epmd else 0), str(self.programs.server)),
                ],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                start_new_session=True,  # Ctrl+C at the terminal reaches only the owner, which stops the node in order
            )

    def wait(self, deadline: float = BOOT) -> None:
        """Wait until the launched node answers a client. Raises NodeTrouble after `deadline` seconds."""
        until = time.monotonic() + deadline
        while True:
            if not self.running:
                raise NodeTrouble(f"RabbitMQ ({self.programs.folder}) did not start: {self._last_words()}")
            version = greet(self.port)
            if version is not None:
                self.version = version
                return
            if time.monotonic() > until:
                raise NodeTrouble(f"RabbitMQ did not answer within {deadline:.0f} s: {self._last_words()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the node cleanly (SIGTERM), after a minute by force. A stopped node stays stopped."""
        if self._guard is None:
            return
        pid = self.pid
        try:
            if pid is None:  # still booting
                raise ProcessLookupError
            os.kill(pid, signal.SIGTERM)
            self._guard.wait(60)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        """SIGKILL the node and its helpers: no goodbye to clients, nothing more is written."""
        if self._guard is None:
            return
        if self.running:
            os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        until = time.monotonic() + 10
        while not (free(self.port) and free(self.dist_port)) and time.monotonic() < until:
            time.sleep(0.01)  # the Erlang VM is not our child: it has ended when its ports are free
        if self._guard.stdin:
            self._guard.stdin.close()
        self._guard = None
        self._pid_file.unlink(missing_ok=True)
        if self.own_epmd:
            guard.stop_epmd(self.epmd)

    def restart(self) -> None:
        """A clean stop, and a start."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the node and give its ports back. The folder stays."""
        self.stop()
        for claim in self._claims:
            claim.release()

    def ctl(self, *arguments: str, deadline: float = 60.0) -> str:
        """What `rabbitmqctl ARGUMENTS` prints. Raises NodeTrouble when it fails or takes more than `deadline` s."""
        if not self.running:
            raise NodeTrouble(f"rabbitmqctl {arguments[0]}: the node {self.name} is not running")
        command, said = [str(self.programs.folder / "rabbitmqctl"), "--quiet"], f"rabbitmqctl {' '.join(arguments)}"
        try:
            done = subprocess.run(
                [*command, *arguments], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=deadline,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise NodeTrouble(f"{said}: no answer within {deadline:.0f} s") from None
        if done.returncode:
            raise NodeTrouble(f"{said}: {' '.join((done.stderr or done.stdout).split())[:300]}")
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """What RabbitMQ's programs need to deal with this node and no other."""
        return settings.environment(self.folder, self.home, self.name, self.dist_port, self.epmd)

    def _last_words(self) -> str:
        """Why it did not start, and where its logs are.

        The first errors since the launch: what the logs have after them is only how the Erlang VM ends.
        """
        lines: list[str] = []
        for file in sorted(self.log.glob("*.log"), key=lambda file: file.stat().st_mtime):
            with file.open("rb") as log:
                log.seek(self._logged.get(file, 0))
                lines += log.read().decode(errors="replace").splitlines()
        errors = [found[1].strip() for found in map(re.compile(r"\[error\] <[\d.]+> +(.*)").search, lines) if found]
        words = list(filter(None, errors))[:2] or [line.strip() for line in lines if line.strip()][-1:]
        return f"{'; '.join(words)[:300]} (log: {self.log})"


def is_erlang(pid: int) -> bool:
    """Whether this process is an Erlang VM: a file may hold the id of a process that ended long ago."""
    said = subprocess.run(["ps", "-o", "stat=,comm=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return "beam" in said and not said.startswith("Z")  # a zombie runs no more
