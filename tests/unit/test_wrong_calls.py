"""Every wrong call of the three commands: one line that says what, where and how to mend it; exit status 2.

All in one table. What is wrong is seen before anybody looks for RabbitMQ, so none is needed; the calls run in this
process, as they are many. The few that need a queue to look at are in tests/integration/test_situations.py.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import admin
import producer
import worker
from tareas import cli
from tareas.task import MAX_BYTES
from tests import certificates

SECRET = "s3cr3t-Pa55"
LOGIN = f"eva:{SECRET}"
PEOPLE = {"admin.py": admin.main, "producer.py": producer.main, "worker.py": worker.main}
NOBODY = 65534  # user id


class Call(NamedTuple):
    """argv[0]: the command. words: what the line must hold: what is wrong, where, how to mend it."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    status: int
    words: Sequence[str]


def call(line: str, *words: str, status: int = 2, **environment: str) -> Call:
    """A row: the command line, with blanks between its arguments, and '' for an empty one."""
    return Call([part.strip("'") for part in line.split()], environment, status, words)


HELP = ("(try: {} --help)",)
RANGE = "is not MIN-MAX in seconds from 0 to 86,400, like 0.5-3"
DURATION = "is not a number of seconds from 0 to 86,400"
FROM_1 = "is not a whole number from 1 to 1,000,000,000"
WRITE = "(write amqp://user:password@host:5672/vhost, with %2F for the vhost /)"
AS_XX = "write a special character of a user, password or vhost as %XX"
TASK = 'write {"id": "...", ...}'
NONE = "(nothing is published)"

OF_PRODUCER = [
    call("--complexity 5-1", "--complexity: '5-1' ends below its start", "write 1-5", *HELP),
    call("--complexity -1", "--complexity: '-1'", RANGE, *HELP),
    call("--complexity=-2--1", "--complexity: '-2--1'", RANGE, *HELP),
    call("--complexity -1-2", "--complexity: expected one argument", *HELP),
    call("--complexity NaN", "--complexity: 'NaN'", RANGE, *HELP),
    call("--complexity 0-inf", "--complexity: '0-inf'", RANGE, *HELP),
    call("--complexity 0-86401", "--complexity: '0-86401'", RANGE, *HELP),
    call("--complexity ''", "--complexity: ''", RANGE, *HELP),
    call("--count 0", "--count: '0'", FROM_1, *HELP),
    call("--count -3", "--count: '-3'", FROM_1, *HELP),
    call("--count 1.5", "--count: '1.5'", FROM_1, *HELP),
    call("--count nan", "--count: 'nan'", FROM_1, *HELP),
    call("--count", "--count: expected one argument", *HELP),
    call("--seed x", "--seed: ", "'x'", *HELP),
    call("--cuont 3", "there is no option '--cuont'", "did you mean --count?", *HELP),
    call("-n 3", "there is no option '-n'", *HELP),
    call("--count 3 good.jsonl", "--count", "make sample tasks", "leave them out with FILE", *HELP),
    call("good.jsonl more.jsonl", "one argument too many: 'more.jsonl'", *HELP),
    # files
    call("seventeen.jsonl", "seventeen.jsonl, line 17: not JSON", "at character 33", TASK, NONE),
    call("latin.jsonl", "latin.jsonl, line 2: not UTF-8 at byte ", "encode it as UTF-8", NONE),
    call("list.jsonl", "list.jsonl, line 1: a JSON list, not an object", TASK, NONE),
    call("nameless.jsonl", "nameless.jsonl, line 3: has no id", 'add "id"', NONE),
    call("nan.jsonl", "nan.jsonl, line 1: NaN is not JSON", "leave it out or write null", NONE),
    call("negative.jsonl", "negative.jsonl, line 1: its complexity -1 is not in seconds from 0 to 86,400", NONE),
    call("escape.jsonl", "escape.jsonl, line 1: its id", "is not printable", "use letters and digits", NONE),
    call("big.jsonl", "big.jsonl, line 1: its 1,048,6", "more than 1,048,576", "put big data in a file", NONE),
    call("locked.jsonl", "cannot open 'locked.jsonl'", "Permission denied"),
    call("none.jsonl", "cannot open 'none.jsonl'", "No such file or directory"),
    call("50", "cannot open '50'", "(so many sample tasks: --count 50)"),
    call("folder", "folder is a folder", "give a file, one task a line"),
    call("''", "cannot open ''", "No such file or directory"),
    call(f"amqp://{LOGIN}@h", "cannot open (not shown", "(where RabbitMQ is goes after --url)"),
    call("-", "stdin is closed", "give the name of a file, or pipe tasks into it"),
]
OF_WORKER = [
    call("--max-attempts 1001", "--max-attempts: '1001' is too many: 1 to 1,000", *HELP),
    call("--prefetch 1001", "--prefetch: '1001' is too many: 1 to 1,000", *HELP),
    call("--prefetch 0", "--prefetch: '0'", *HELP),
    call("--max-attempts 0", "--max-attempts: '0'", FROM_1, *HELP),
    call("--retry-delay NaN", "--retry-delay: 'NaN'", DURATION, *HELP),
    call("--retry-delay=-1", "--retry-delay: '-1'", DURATION, *HELP),
    call("--grace never", "--grace: 'never'", DURATION, *HELP),
    call("--dran", "there is no option '--dran'", "did you mean --drain?", *HELP),
    call("one two", "one argument too many: 'two'", *HELP),
    call("''", "ID: '' is not a name", "(1 to 100 bytes, printable, no blanks around it)", *HELP),
    call("\x1b[31mred", "ID: '\\x1b[31mred' is not a name", "printable", *HELP),
    # handlers
    call("--handler work", "--handler 'work' is not of the form module:function"),
    call("--handler :work", "--handler ':work' is not of the form module:function"),
    call("--handler absent:work", "--handler: no module 'absent' in ", "or PYTHONPATH"),
    call("--handler folder.absent:work", "--handler: no module 'folder.absent'"),
    call("--handler needy:work", "--handler: module 'needy' needs 'surely_not_installed'", "which is not installed"),
    call("--handler good:wrok", "--handler: module 'good' has no 'wrok'"),
    call("--handler good:CONSTANT", "--handler: 'good:CONSTANT' is not a function"),
    call("--handler good:later", "--handler: 'good:later' is a coroutine", "asyncio.run"),
    call("--handler raises:work", "--handler: module 'raises' raises when imported", "RuntimeError: first second"),
    call("--handler leaves:work", "--handler: module 'leaves' raises when imported", "SystemExit: 3"),
    call("--handler broken:work", "--handler: module 'broken' raises when imported", "SyntaxError", "broken.py, line"),
    call("--handler painted:work", "--handler: module 'painted' raises when imported", "RuntimeError", "red"),
    call("--handler talks:work", "--handler: module 'talks' raises when imported", "RuntimeError", "cannot log in"),
]
OF_ADMIN = [
    call("", "required: COMMAND", *HELP),
    call("''", "invalid choice: ''", "status", *HELP),
    call("stauts", "invalid choice: 'stauts'", "status", *HELP),
    call("status --wacht", "status has no option '--wacht'", "did you mean --watch?", *HELP),
    call("status --watch 0", "--watch: '0'", FROM_1, "(try: admin.py status --help)"),
    call("dead --limit NaN", "--limit: 'NaN'", FROM_1, "(try: admin.py dead --help)"),
    call("replay", "name the dead letters, or say --all (and not both)"),
    call("replay --all task-1", "name the dead letters, or say --all (and not both)"),
    call("discard task-1", "discard deletes for good, and there is no terminal to ask at", "say --yes"),
    call("audit", "required: FILE", "(try: admin.py audit --help)"),
    call("audit none.jsonl", "'none.jsonl' cannot be read", "No such file or directory"),
    call("audit folder", "'folder' cannot be read", "Is a directory"),
    call("audit locked.jsonl", "'locked.jsonl' cannot be read", "Permission denied"),
    call("audit seventeen.jsonl", "seventeen.jsonl"),
]
OF_EACH = [
    call("--queue ''", "--queue: '' is not a name", "(1 to 250 bytes, printable, no blanks around it)"),
    call(f"--queue {'x' * 251}", "--queue: ", "is not a name", "1 to 250 bytes"),
    call("--queue amq.tasks", "--queue: 'amq.tasks' begins with amq., which RabbitMQ keeps for itself"),
    call("--queue", "--queue: expected one argument"),
    # URLs
    call(f"--url {LOGIN}@h:5672", "the URL does not begin with amqp:// or amqps://", WRITE),
    call(f"--url http://{LOGIN}@h:15672", "the URL does not begin with amqp:// or amqps://", WRITE),
    call("", "the URL does not begin with amqp:// or amqps://", WRITE, AMQP_URL=f"{LOGIN}@h:5672"),
    call(f"--url amqp://{LOGIN}@", "the URL cannot be read", WRITE),
    call(f"--url amqp://{LOGIN}@h:56720000", "the URL has a port or host that cannot be read", WRITE),
    call(f"--url amqp://{LOGIN}@h:port", "the URL has a port or host that cannot be read", WRITE),
    call(f"--url amqp://{LOGIN}@h:0", "the URL has port 0", WRITE),
    call(f"--url amqp://{LOGIN}@{'h' * 64}", "the URL has a host that no host is called: 'hhhh", WRITE),
    call(f"--url amqp://{LOGIN}@h..example", "the URL has a host that no host is called: 'h..example'", WRITE),
    call(f"--url amqp://{LOGIN}@h/one/two", "the URL cannot be read", WRITE, AS_XX),
    call(f"--url amqp://eva:#{SECRET}@h", "the URL", WRITE),
    call(f"--url amqp://eva:a/{SECRET}@h/%2F", "the URL", WRITE),
    call(f"--url amqp://eva:a@b/{SECRET}@h/%2F", "the URL cannot be read", WRITE, AS_XX),
    call(f"--url amqp://{LOGIN}@h?verify=no", "the URL has an unknown option 'verify'", "(known: heartbeat,"),
    call(f"--url amqp://{LOGIN}@h?heartbeat=soon", "the URL: heartbeat must be a number that is not negative"),
    call(f"--url amqp://{LOGIN}@h?stack_timeout=-1", "the URL: stack_timeout must be a number that is not negative"),
    call(f"--url amqp://{LOGIN}@h?channel_max=0.5", "the URL has an option that RabbitMQ's client refuses", WRITE),
    call(f"--url amqp://a@h,http://{LOGIN}@h", "the URL", WRITE),
    call(f"--url amqp://{LOGIN}@h,amqp://{LOGIN}@h:0", "URL 2 has port 0", WRITE),
    # TLS
    call(f"--url amqp://{LOGIN}@h?cafile=ca.pem", "the URL names cafile without TLS", "begin it with amqps://"),
    call(f"--url amqps://{LOGIN}@h?cafile=none.pem", "cafile 'none.pem' is not a file that can be read"),
    call(f"--url amqps://{LOGIN}@h?cafile=locked.jsonl", "cafile 'locked.jsonl' is not a file that can be read"),
    call(f"--url amqps://{LOGIN}@h?cafile=folder", "cafile 'folder' is not a file that can be read"),
    call(f"--url amqps://{LOGIN}@h?cafile=good.jsonl", "the URL: cafile 'good.jsonl'", "PEM"),
    call(f"--url amqps://{LOGIN}@h?keyfile=client.key", "the URL: keyfile needs a certfile"),
    call(f"--url amqps://{LOGIN}@h?certfile=client.pem", "the URL: certfile 'client.pem'", "keyfile"),
    call(f"--url amqps://{LOGIN}@h?certfile=client.pem&keyfile=server.key", "keyfile 'server.key'", "'client.pem'"),
]


def completed(line: Call, command: str, *more: str) -> Call:
    """The row with its command before the arguments, and in its words."""
    words = [each.replace("{}", command) for each in line.words]
    return line._replace(argv=[command, *more, *line.argv], words=words)


WRONG_CALLS = [
    *(completed(line, "producer.py") for line in OF_PRODUCER),
    *(completed(line, "worker.py") for line in OF_WORKER),
    *(completed(line, "admin.py") for line in OF_ADMIN),
    *(completed(line, *who) for who in [("producer.py",), ("worker.py",), ("admin.py", "dead")] for line in OF_EACH),
    *(completed(call("--connect-timeout=-1", "--connect-timeout: '-1'", DURATION, *HELP), who)
      for who in ["producer.py", "worker.py"]),
]

GOOD = '{"id": "task-1", "complexity": 0}\n'
FILES: dict[str, str | bytes] = {
    "good.jsonl": GOOD,
    "more.jsonl": GOOD,
    "seventeen.jsonl": GOOD * 16 + '{"id": "task-17", "complexity": seventeen}\n' + GOOD,
    "latin.jsonl": (GOOD + '{"id": "año"}\n').encode("latin-1"),
    "list.jsonl": "[1, 2]\n",
    "nameless.jsonl": GOOD * 2 + '{"complexity": 1}\n',
    "nan.jsonl": '{"id": "task-1", "complexity": NaN}\n',
    "negative.jsonl": '{"id": "task-1", "complexity": -1}\n',
    "escape.jsonl": '{"id": "\\u001b[31m"}\n',
    "big.jsonl": f'{{"id": "task-1", "text": "{"x" * MAX_BYTES}"}}\n',
    "locked.jsonl": GOOD,
    # modules of a handler
    "good.py": "CONSTANT = 1\ndef work(task): pass\nasync def later(task): pass\n",
    "needy.py": "import surely_not_installed\n",
    "raises.py": "raise RuntimeError('first\\nsecond')\n",
    "leaves.py": "import sys; sys.exit(3)\n",
    "broken.py": "def work(task) pass\n",
    "painted.py": "raise RuntimeError('\\x1b[31mred')\n",
    "talks.py": f"raise RuntimeError('cannot log in to amqp://{LOGIN}@h')\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the calls are made: FILES, the certificates, a folder."""
    place = tmp_path_factory.mktemp("calls")
    for name, content in FILES.items():
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    certificates.make(place)
    (place / "folder").mkdir()
    (place / "locked.jsonl").chmod(0)
    return place


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """As a user whom file modes stop; root they don't."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In that folder; whatever is imported from it is forgotten afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", None)
    importlib.invalidate_caches()
    yield folder
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.timeout(30)  # a call that is taken for a right one waits for RabbitMQ
@pytest.mark.parametrize("row", WRONG_CALLS, ids=lambda row: repr(" ".join(row.argv))[1:-1].replace(SECRET, "*")[:70])
def test_a_wrong_call_is_answered_in_one_line(
    row: Call, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command, *argv = row.argv
    monkeypatch.setattr(sys, "argv", [command, *argv])
    for name, value in row.environment.items():
        monkeypatch.setenv(name, value)
    with without_privileges() if any("locked" in part for part in argv) else contextlib.nullcontext():
        status = cli.run(PEOPLE[command], argv)
    out, err = capfd.readouterr()
    assert (status, out) == (row.status, ""), err
    assert err.startswith(f"{command}: ") or err.startswith(f"{command} {argv[0]}: ")
    assert err.count("\n") == 1 and err.endswith("\n") and err[:-1].isprintable(), err
    for words in row.words:
        assert words in err
    assert SECRET not in err


@pytest.mark.parametrize("script", ["producer.py", "worker.py", "admin.py", "demo.py"])
def test_a_python_without_the_packages_is_answered_in_one_line(script: str) -> None:
    """-S, -E: without site-packages and PYTHONPATH. Who forgets to activate the .venv meets this first."""
    here = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-S", "-E", script], cwd=here, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{script}: {sys.executable} has no pika and no rich (")
    assert done.stderr.count("\n") == 1
