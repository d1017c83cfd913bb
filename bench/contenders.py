"""Who takes part, by which commands, configured how."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"
BOUND = VENV / "bound"  # the compiled C program


@dataclass(frozen=True)
class Contender:
    """A command line for each job, with {placeholders}; empty words are left out.

    {file}: the tasks; {queue}, {port}; {drain}: --drain where the queue was filled before; {mark}: a folder for marks;
    {name} of this worker; {prefetch}: --prefetch N, if that is not 1 (the peers have it from the environment).
    """

    name: str
    how: str
    publish: str = ""
    work: str = ""
    one: str = ""  # publish one task and end, if that is not `publish` of a file
    pool: bool = False  # `work` starts {workers} of them; otherwise it is started that often
    consumers: int = 0  # as RabbitMQ counts them, if not one for each worker
    pipelined: bool = False  # whether it publishes many before the first is confirmed
    envelope: bool = False  # whether its tasks have a form that only its own publisher makes
    events: bool = False  # whether its progress is read from its output
    prefetch: int = 1

    def at(self, prefetch: int, *, named: bool = False) -> Contender:
        """The same with this prefetch; named: and with the prefetch in its name."""
        return replace(self, prefetch=prefetch, name=f"{self.name}, prefetch {prefetch}" if named else self.name)

    def command(self, template: str, **values: object) -> list[str]:
        values |= {"python": PYTHON, "peers": HERE / "peers", "bound": BOUND, "ours": sys.executable, "root": ROOT}
        values["prefetch"] = f"--prefetch={self.prefetch}" if self.prefetch > 1 else ""
        return [word for word in (part.format(**values) for part in template.split()) if word]


TAREAS = Contender(
    "tareas",
    "`producer.py FILE`; `worker.py --drain --json`, its events to a file; tasks checked, heartbeats served",
    publish="{ours} {root}/producer.py --queue {queue} {file}",
    work="{ours} {root}/worker.py {name} --queue {queue} --json {prefetch} {drain}",
    one="{ours} {root}/producer.py --queue {queue} --count 1",
    pipelined=True,
    events=True,
)
TUTORIAL = Contender(
    "tutorial (pika)",
    "RabbitMQ's tutorial two: BlockingConnection, a confirm a publish; the task in the callback, no output, "
    "no heartbeat while it runs",
    publish="{python} {peers}/tutorial.py publish {file}",
    work="{python} {peers}/tutorial.py work",
)
AIO_PIKA = Contender(
    "aio-pika",
    "publisher confirms, 1,000 publishes gathered at a time; `queue.iterator()`, `message.process()`, set_qos()",
    publish="{python} {peers}/aio_pika_peer.py publish {file}",
    work="{python} {peers}/aio_pika_peer.py work",
    pipelined=True,
)
KOMBU = Contender(
    "kombu",
    "py-amqp, confirm_publish; a Consumer with drain_events()",
    publish="{python} {peers}/kombu_peer.py publish {file}",
    work="{python} {peers}/kombu_peer.py work",
)
DRAMATIQ = Contender(
    "dramatiq",
    "confirm_delivery; the `dramatiq` command, a process of one thread for each worker, default middleware",
    publish="{python} {peers}/dramatiq_peer.py publish {file}",
    work="{python} -m dramatiq dramatiq_peer --path {peers} --processes {workers} --threads 1",
    pool=True,
    envelope=True,
)
CELERY = Contender(
    "celery prefork",
    "confirm_publish; prefork, acks_late, the prefetch as multiplier, results ignored, no gossip, mingle, events or "
    "remote control",
    publish="{python} {peers}/celery_peer.py publish {file}",
    work="{python} {peers}/celery_peer.py work prefork {workers}",
    pool=True,
    consumers=1,
    envelope=True,
)
CELERY_THREADS = Contender(
    "celery threads", "the same with the threads pool, a process of one thread for each worker",
    publish=CELERY.publish, work="{python} {peers}/celery_peer.py work threads 1", envelope=True,
)  # fmt: skip
BOUND_C = Contender(
    "C bound",
    "our own program on librabbitmq: 1,000 unconfirmed at most; an ack a task; nothing decoded",
    publish="{bound} publish 127.0.0.1 {port} {queue} {file}",
    work="{bound} work 127.0.0.1 {port} {queue} {mark}/{name}.mark",
    pipelined=True,
)
BARE = Contender(
    "bare pika script",
    "connect, declare one queue, publish with confirm, close: nothing else imported",
    one="{python} {peers}/bare.py {arguments}",
)

ALL = (TAREAS, TUTORIAL, AIO_PIKA, KOMBU, DRAMATIQ, CELERY, CELERY_THREADS, BOUND_C, BARE)
TASK_SYSTEMS = (AIO_PIKA, DRAMATIQ, CELERY, CELERY_THREADS)  # kombu, as used here, is one more tutorial loop


def prepare() -> None:
    """Make bench/.venv with the peers, and compile the C program if it can be compiled."""
    wanted, made = HERE / "requirements.txt", VENV / "made"
    if not made.exists() or made.stat().st_mtime < wanted.stat().st_mtime:
        print(f"installing the peers into {VENV.relative_to(ROOT)} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"]
        subprocess.run([PYTHON, *pip, wanted], check=True)
        made.touch()
    source = HERE / "peers" / "bound.c"
    if not BOUND.exists() or BOUND.stat().st_mtime < source.stat().st_mtime:
        BOUND.unlink(missing_ok=True)
        gcc = shutil.which("gcc") or shutil.which("cc")
        if gcc is None or subprocess.run([gcc, "-O2", source, "-lrabbitmq", "-o", BOUND], check=False).returncode:
            print("without the C bound: it needs a C compiler and librabbitmq (apt install gcc librabbitmq-dev)")


def present(*wanted: Contender) -> list[Contender]:
    """Those of them that can run here."""
    return [contender for contender in wanted if contender is not BOUND_C or BOUND.exists()]
