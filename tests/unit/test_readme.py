"""README.md and README.es.md: every command exists and parses, both say the same, links lead somewhere.

That the commands do what they show is tested with a RabbitMQ: tests/integration/test_readme.py.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from tareas import task
from tareas.tell.audit import Verdict, audit
from tests.faults.table import sums
from tests.readme import ENGLISH, SPANISH, blocks, commands, masked, prose, shown
from tests.support import ROOT

PAIRS = pytest.mark.parametrize(
    ("english", "spanish"), [(ENGLISH, SPANISH), (ROOT / "examples/README.md", ROOT / "examples/README.es.md")],
    ids=["README", "examples"],
)  # fmt: skip
BOTH = pytest.mark.parametrize("path", [ENGLISH, SPANISH], ids=lambda path: path.name)
SCRIPTS = ("producer.py", "worker.py", "admin.py", "demo.py")
UNKNOWN = "--no-such-option"
OTHERS = (  # commands that are not ours, word for word
    ". .venv/bin/activate",
    "python3 -m venv .venv",
    "pip install -r requirements.txt",
    "brew install rabbitmq",
    "sudo apt install rabbitmq-server",
    "sudo rabbitmqctl add_user tareas SECRET",
    "sudo rabbitmqctl set_permissions tareas '.*' '.*' '.*'",
    """python -c 'import glob, json; [print(json.dumps({"id": f, "file": f})) for f in glob.glob("*.md")]'""",
    """grep -ao '{"time": .*'""",
    "sudo cp deploy/tareas-worker@.service /etc/systemd/system/",
    "sudo systemctl enable --now tareas-worker@1 tareas-worker@2",
)


def check(command: str) -> None:
    """Raise AssertionError if this one command, without pipes, cannot be typed as it stands."""
    if command in OTHERS:
        named = [word for word in command.split() if word.startswith(("requirements", "deploy/"))]
        assert all((ROOT / name).exists() for name in named), f"{command}: no such file"
        return
    program, *arguments = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments and set(arguments) <= set(targets), f"{command}: the Makefile has no such target"
    elif program == "echo":  # a task, for the pipe
        task.decode(" ".join(arguments).encode())
    elif program == "docker":
        check_compose(command, arguments)
    elif program == "export":
        check_url(arguments)
    else:
        assert program == "python" and arguments[0] in SCRIPTS, f"{command}: who knows it?"
        check_script(command, arguments)


def check_script(command: str, arguments: list[str]) -> None:
    """It parses to the end: the only complaint is about an option that we add."""
    done = subprocess.run(
        [sys.executable, *arguments, UNKNOWN], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, f"no option '{UNKNOWN}'" in done.stderr) == (2, True), f"{command}: {done.stderr}"


def check_compose(command: str, arguments: list[str]) -> None:
    """A call of `docker compose up` on files and services that exist."""
    words = iter(arguments)
    assert next(words) == "compose", command
    if arguments[1] == "logs":
        assert arguments[1:] == ["logs", "--no-log-prefix", "worker"], command
        return
    file, up, services = "docker-compose.yml", False, []
    for word in words:
        if word == "-f":
            file = next(words)
        elif word == "--scale":
            services.append(next(words).partition("=")[0])
        elif word == "up":
            up = True
        elif word != "-d":
            services.append(word)
    assert up, f"{command}: only `up` is known here"
    known = yaml.safe_load((ROOT / file).read_text())["services"]
    assert set(services) <= set(known), f"{command}: {file} has {sorted(known)}"


def check_url(arguments: list[str]) -> None:
    """AMQP_URL is read as we read it, up to the files, which are the user's."""
    from tareas.rabbit import addresses

    name, _, value = arguments[0].partition("=")
    assert name == "AMQP_URL"
    assert len(addresses.parse(value.replace("?cafile=ca.pem", ""))) == value.count(",") + 1


def test_every_command_can_be_typed_as_it_stands() -> None:
    for line in commands(ENGLISH):  # the other page has the same: see below
        for command in re.split(r"\s\|\s", re.sub(r" >>? .*", "", line)):
            check(command)


@pytest.mark.parametrize(
    "command",
    [
        "make everything", "make", "python worker.py --no-such", "python worker.py --max-attempts none",
        "python other.py", "python admin.py stat", "docker compose up -d broker", "docker compose down",
        "docker compose -f docker-compose.yml up --scale w=3", "pip install pika", "rabbitmqctl status",
    ],
)  # fmt: skip
def test_a_command_that_is_wrong_is_found(command: str) -> None:
    with pytest.raises(AssertionError):
        check(command)


@BOTH
def test_the_first_two_commands_run_all_of_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").index("```sh")
    assert first < 800, "the commands are on the first screen"
    assert commands(path)[:2] == ["make demo", "make test"]


@PAIRS
def test_both_have_the_same_commands_in_the_same_order(english: Path, spanish: Path) -> None:
    assert commands(english) == commands(spanish) != []
    for language in ("text", "python"):
        assert blocks(english, language) == blocks(spanish, language)


@PAIRS
def test_both_have_the_same_sections_lists_tables_and_marks(english: Path, spanish: Path) -> None:
    def shape(path: Path) -> list[str]:
        """A character for each line that starts something, and the marks where tables go."""
        return re.findall(r"^(?:#+ |- |\d\. |\||<!-- \w+ -->)", prose(path), re.MULTILINE)

    assert shape(english) == shape(spanish)
    assert len(shape(english)) > (40 if english == ENGLISH else 4)


@PAIRS
def test_both_name_the_same_options_files_and_figures(english: Path, spanish: Path) -> None:
    def facts(path: Path) -> set[str]:
        text = re.sub(r"README(\.es)?\.md", "", prose(path))  # each names the other
        return set(re.findall(r"--[a-z]+[a-z-]*|\b[a-z_-]+\.(?:py|md|yml|env|conf)\b|\d+(?:\.\d+)*", text))

    assert facts(english) == facts(spanish)


@BOTH
def test_every_link_and_picture_leads_somewhere(path: Path) -> None:
    text = prose(path)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 8
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, f"no section {target}: {sorted(anchors)}"
        elif not target.startswith("https://"):
            assert (ROOT / unquote(target).partition("#")[0]).exists(), f"no file {target}"


@functools.cache
def real_options() -> set[str]:
    """Those that --help names."""
    real: set[str] = set()
    subcommands = [["admin.py", each] for each in ("status", "dead", "replay", "discard", "audit")]
    for call in [*([name] for name in SCRIPTS), *subcommands]:
        done = subprocess.run(
            [sys.executable, *call, "--help"], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        real |= set(re.findall(r"^ +(?:-h, )?(--[a-z-]+)", done.stdout, re.MULTILINE))
    return real


@BOTH
def test_every_option_is_told_and_none_that_is_not_there(path: Path) -> None:
    real = real_options()
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose(path)))
    assert told >= real, f"not told: {sorted(real - told)}"
    others = {"--scale", "--no-log-prefix", "--port", "--help"}  # Compose's, `make broker`'s, everybody's
    assert told - real <= others, f"no such option: {sorted(told - real)}"


@BOTH
def test_the_task_and_the_verdict_that_it_shows_are_such(path: Path) -> None:
    examples = [task.decode(example.encode()) for example in re.findall(r'`(\{"id".*?\})`', prose(path))]
    assert [each["id"] for each in examples] == ["import-01"]

    line = audit([]).line()
    assert isinstance(audit([]), Verdict)
    assert [masked(each) for each in shown(path, "published")] == [masked(line)]
    assert shown(path, "published")[0].endswith("lost 0")


@BOTH
def test_the_handler_that_it_shows_is_idempotent(path: Path, tmp_path: Path) -> None:
    (source,) = blocks(path, "python")
    names: dict[str, object] = {}
    exec(compile(source, "jobs.py", "exec"), names)
    count_words = names["count_words"]
    assert callable(count_words)
    text = tmp_path / "three.md"
    text.write_text("one two three")
    for _ in range(2):
        count_words({"id": "a", "file": str(text)})
        assert (tmp_path / "three.md.words").read_text() == "3\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["three.md", "three.md.words"]
    text.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(Exception, match="is no text") as caught:
        count_words({"id": "a", "file": str(text)})
    assert type(caught.value).__name__ == "Reject"
    with pytest.raises(FileNotFoundError):
        count_words({"id": "b", "file": str(tmp_path / "none")})


def test_the_other_pages_name_files_that_exist() -> None:
    for page in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in re.findall(r"`((?:tareas|tests|deploy)/[\w./@-]*|[\w-]+\.(?:py|md|yml))`", text):
            assert (ROOT / name).exists() or (ROOT / "tests/faults" / name).exists(), f"{page}: no {name}"
    assert f"## {__import__('tareas').__version__}" in (ROOT / "CHANGELOG.md").read_text()


@BOTH
def test_its_figures_of_speed_are_those_that_were_measured(path: Path) -> None:
    """Every cell of the table is a median of bench/RESULTS.md."""
    measured = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    (table,) = [part for part in prose(path).split("\n\n") if "librabbitmq" in part and part.startswith("|")]
    figures = [figure.replace(" ", ",") for row in table.splitlines()[2:] for figure in
               re.findall(r"(?<=\| )\d[\d., ]*(?= [|(])", row)]  # fmt: skip
    assert len(figures) == 50
    for figure in figures:
        assert re.search(rf"\| {re.escape(figure)} \(", measured), figure


@BOTH
def test_its_fault_matrix_is_that_of_the_full_run(path: Path) -> None:
    """Row by row the sums of tests/faults/TABLE.md; nothing lost."""
    (table,) = [part for part in prose(path).split("\n\n") if part.startswith("|") and "|---|---:|---:" in part]
    shown_rows = [
        [int(re.sub("[ ,]", "", cell)) for cell in row.strip("|").split("|")[1:]] for row in table.splitlines()[2:]
    ]
    assert shown_rows == list(sums(ROOT / "tests" / "faults" / "TABLE.md").values())
    assert len(shown_rows) == 22 and all(row[-1] == 0 for row in shown_rows)


@BOTH
def test_the_two_scripts_are_as_short_as_it_says(path: Path) -> None:
    (most,) = re.findall(r"(?:fewer than|menos de)\s(\d+)\s(?:lines|líneas)", path.read_text(encoding="utf-8"))
    assert all(len((ROOT / name).read_text().splitlines()) < int(most) for name in ("producer.py", "worker.py"))
