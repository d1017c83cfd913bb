"""The real job of examples/: pictures, tasks from the shell pipe of its page, two workers, one killed on the way."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from examples import thumbnails
from tareas import Reject
from tareas.task import decode
from tareas.tell.audit import audit
from tareas.tell.logs import read
from tests.readme import blocks
from tests.support import DEADLINE, ROOT, Command, Run, raw_connection

PAGE = ROOT / "examples" / "README.md"
HANDLER = "examples.thumbnails:thumbnail"
PICTURES = [  # names that a shell, JSON or a file system may trip over
    "sea.jpg", "it's.png", 'a "quoted" one.gif', "Año Nuevo, ñandú.jpg", "  blanks  .png", "-dash.jpg",
    "$HOME `x` \\.png", "two\nlines.jpg", "100%.bmp", "sub folder/café/{1}.jpg", "日本.tiff", "x" * 200 + ".webp",
]  # fmt: skip
HELD = "sub folder/café/{1}.jpg"  # the one whose worker is killed
RED, BLUE = (230, 30, 30), (30, 30, 230)


def draw(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, RED)
    ImageDraw.Draw(picture).rectangle((size[0] // 2, 0, *size), fill=BLUE)
    return picture.convert(mode)


def bytes_of(picture: Image.Image, kind: str, **options: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, kind, **options)
    return written.getvalue()


NO_PICTURES = {"notes.txt": b"milk, bread", "cut short.png": bytes_of(draw((800, 400)), "PNG")[:700], "empty.jpg": b""}


def near(found: Any, wanted: tuple[int, int, int]) -> bool:
    return all(abs(a - b) < 40 for a, b in zip(found, wanted, strict=True))


def is_right(path: Path, size: tuple[int, int]) -> bool:
    """Whether this is the thumbnail, whole: its size, red on the left, blue on the right."""
    with Image.open(path) as picture:
        width, height = picture.size
        left, right = picture.getpixel((width // 8, height // 2)), picture.getpixel((width - width // 8, height // 2))
        return picture.format == "JPEG" and picture.size == size and near(left, RED) and near(right, BLUE)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of the pictures, with nothing in it yet, and that of the thumbnails, which isn't there."""
    pictures, made = tmp_path / "pictures", tmp_path / "thumbnails"
    pictures.mkdir()
    monkeypatch.setenv("PICTURES", str(pictures))
    monkeypatch.setenv("THUMBNAILS", str(made))
    return pictures, made


def shell(command: str, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line as a person pastes it into a shell where .venv is active."""
    python = folder / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    there = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "AMQP_URL": url}
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=there, capture_output=True, text=True, timeout=DEADLINE
    )


def pipe() -> str:
    (found,) = [block.strip() for block in blocks(PAGE, "sh") if "find " in block]
    return found


def holder(workers: list[Command], task_id: str) -> Command:
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        for worker in workers:
            if worker.event_list("started", id=task_id):
                return worker
        time.sleep(0.05)
    raise AssertionError(f"nobody has started {task_id}")


def test_every_picture_gets_its_thumbnail_though_a_worker_is_killed(
    folders: tuple[Path, Path], queue: str, url: str, run: Run, tmp_path: Path
) -> None:
    pictures, made = folders
    kinds = {".jpg": "JPEG", ".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".tiff": "TIFF", ".webp": "WEBP"}
    for name in PICTURES:
        path = pictures / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes_of(draw((800, 400)), kinds[path.suffix]))
    for name, data in NO_PICTURES.items():
        (pictures / name).write_bytes(data)
    tasks = len(PICTURES) + len(NO_PICTURES)

    published = shell(f"set -o pipefail; {pipe()} --queue {queue} --json", url, tmp_path)
    assert published.returncode == 0, published.stderr

    # The picture becomes a pipe that nobody writes to: whoever reads it is held, for as long as this test wants.
    trap, away = pictures / HELD, tmp_path / "away.jpg"
    trap.rename(away)
    os.mkfifo(trap)
    workers = [run("worker.py", f"worker-{n}", "--handler", HANDLER, "--queue", queue, "--json") for n in (1, 2)]
    victim = holder(workers, HELD)
    away.rename(trap)
    victim.kill()
    assert not victim.event_list("done", id=HELD)

    (left,) = [worker for worker in workers if worker is not victim]
    left.wait_event("done", id=HELD, attempt=2)
    ended = len(victim.event_list("done")) + len(victim.event_list("dead_lettered"))
    done = len(PICTURES) - len(victim.event_list("done"))
    left.wait_event("done", count=done)
    if dead := tasks - ended - done:
        left.wait_event("dead_lettered", count=dead)
    left.signal(signal.SIGINT)
    assert left.wait() == 0

    thumbs = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert thumbs == {f"{name}.jpg" for name in PICTURES}, "each thumbnail, and nothing else: no half file"
    assert [name for name in PICTURES if not is_right(made / f"{name}.jpg", (320, 160))] == []

    logs = [tmp_path / "producer.jsonl", tmp_path / "worker-1.jsonl", tmp_path / "worker-2.jsonl"]
    for log, text in zip(logs, [published.stdout, *(worker.out for worker in workers)], strict=True):
        log.write_text(text)
    verdict = audit(read(logs))
    assert verdict.problems() == [] and verdict.redelivered == 1
    assert (verdict.confirmed, verdict.done, verdict.dead) == (tasks, len(PICTURES), len(NO_PICTURES))

    reasons = {}
    with contextlib.closing(raw_connection(url)) as connection:
        channel = connection.channel()
        assert channel.queue_declare(queue, passive=True).method.message_count == 0
        for _ in NO_PICTURES:
            _, properties, body = channel.basic_get(f"{queue}.dead", auto_ack=True)
            reasons[json.loads(body)["picture"]] = properties.headers["tareas-reason"]
    assert set(reasons) == set(NO_PICTURES)
    for reason in reasons.values():
        assert reason.startswith("rejected: ") and "is not a picture that can be read: " in reason


def test_doing_a_picture_twice_leaves_the_same_file(folders: tuple[Path, Path]) -> None:
    pictures, made = folders
    (pictures / "a.png").write_bytes(bytes_of(draw((100, 900)), "PNG"))
    task = {"id": "a", "picture": "a.png"}
    thumbnails.thumbnail(task)
    once = (made / "a.png.jpg").read_bytes()
    thumbnails.thumbnail(task)
    assert (made / "a.png.jpg").read_bytes() == once
    assert is_right(made / "a.png.jpg", (36, 320))
    assert [path.name for path in made.rglob("*") if path.is_file()] == ["a.png.jpg"]


def test_a_thumbnail_is_replaced_as_a_whole(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, made = folders
    for size in ((100, 100), (300, 100)):
        (pictures / "a.png").write_bytes(bytes_of(draw(size), "PNG"))
        thumbnails.thumbnail({"id": "a", "picture": "a.png"})
        if size == (100, 100):
            os.link(made / "a.png.jpg", tmp_path / "seen.jpg")  # as a program that has the old file open
    assert is_right(tmp_path / "seen.jpg", (100, 100)) and is_right(made / "a.png.jpg", (300, 100))


def test_a_write_that_fails_leaves_the_old_file_and_no_half_one(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, made = folders
    (pictures / "a.png").write_bytes(bytes_of(draw((100, 100)), "PNG"))
    thumbnails.thumbnail({"id": "a", "picture": "a.png"})
    once = (made / "a.png.jpg").read_bytes()
    (pictures / "a.png").write_bytes(bytes_of(draw((300, 100)), "PNG"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):  # not Reject: it is tried again
        thumbnails.thumbnail({"id": "a", "picture": "a.png"})
    assert (made / "a.png.jpg").read_bytes() == once
    assert [path.name for path in made.rglob("*") if path.is_file()] == ["a.png.jpg"]


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK", "1"])
def test_pictures_of_every_mode(folders: tuple[Path, Path], mode: str) -> None:
    pictures, made = folders
    kind = "TIFF" if mode == "CMYK" else "PNG"
    (pictures / "a").write_bytes(bytes_of(draw((640, 640), mode), kind))
    thumbnails.thumbnail({"id": "a", "picture": "a"})
    if mode in ("L", "1"):
        with Image.open(made / "a.jpg") as picture:
            assert picture.size == (320, 320)
    else:
        assert is_right(made / "a.jpg", (320, 320))


def test_a_photo_is_turned_as_the_camera_was_and_transparent_parts_are_white(folders: tuple[Path, Path]) -> None:
    pictures, made = folders
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (pictures / "turned.jpg").write_bytes(bytes_of(draw((640, 320)).rotate(180), "JPEG", exif=exif))
    (pictures / "clear.png").write_bytes(bytes_of(Image.new("RGBA", (10, 10), (0, 0, 0, 0)), "PNG"))
    for name in ("turned.jpg", "clear.png"):
        thumbnails.thumbnail({"id": name, "picture": name})
    assert is_right(made / "turned.jpg.jpg", (320, 160))
    with Image.open(made / "clear.png.jpg") as picture:
        assert near(picture.getpixel((5, 5)), (255, 255, 255))


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (None, "names no picture"), ("", "names no picture"), (7, "names no picture"), ("a\0b", "names no picture"),
        ("../secret.png", "not in the folder"), ("link.png", "not in the folder"), ("{secret}", "not in the folder"),
        ("gone.png", "there is no"), ("page.ppm", "not a picture"),
    ],
)  # fmt: skip
def test_what_is_hopeless_is_rejected(folders: tuple[Path, Path], picture: Any, reason: str) -> None:
    """{secret}: the full path of a picture outside."""
    pictures, made = folders
    secret = pictures.parent / "secret.png"
    secret.write_bytes(bytes_of(draw((10, 10)), "PNG"))
    (pictures / "link.png").symlink_to(secret)
    (pictures / "page.ppm").write_bytes(bytes_of(draw((10, 10)), "PPM"))  # a picture, but of a kind that is not opened
    if picture == "{secret}":
        picture = str(secret)
    with pytest.raises(Reject, match=reason):
        thumbnails.thumbnail({"id": "a", "picture": picture})
    assert not made.exists()


def test_a_folder_that_is_not_mounted_is_no_reason_to_reject(folders: tuple[Path, Path]) -> None:
    pictures, _ = folders
    pictures.rmdir()
    with pytest.raises(FileNotFoundError):
        thumbnails.thumbnail({"id": "a", "picture": "a.png"})


def made_of(names: bytes) -> tuple[int, list[dict[str, str]], str]:
    call = [sys.executable, "-m", "examples.thumbnails"]
    done = subprocess.run(call, cwd=ROOT, input=names, capture_output=True, timeout=DEADLINE)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_the_tasks_name_their_pictures_and_each_has_an_id_of_its_own(folders: tuple[Path, Path]) -> None:
    pictures, _ = folders
    long = "/".join(["x" * 200] * 2)
    names = ["a.jpg", "two\nlines.jpg", "two\tlines.jpg", long]
    status, tasks, _ = made_of("".join(f"{pictures}/{name}\0" for name in names).encode())
    assert status == 0 and [task["picture"] for task in tasks] == names
    assert tasks[0] == {"id": "a.jpg", "picture": "a.jpg"}
    assert len({decode(json.dumps(task).encode(), simulated=False)["id"] for task in tasks}) == 4


def test_what_no_worker_could_find_is_left_out_and_said(folders: tuple[Path, Path]) -> None:
    pictures, _ = folders
    names = b"/elsewhere/a.jpg\0" + os.fsencode(pictures) + b"/ma\xf1ana.jpg\0" + os.fsencode(pictures) + b"/b.jpg\0"
    status, tasks, said = made_of(names)
    assert status == 1 and [task["picture"] for task in tasks] == ["b.jpg"]
    assert "$PICTURES" in said and "not UTF-8" in said and "Traceback" not in said


def test_the_page_calls_what_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"--handler {HANDLER}" in text and "python -m examples.thumbnails" in pipe()
    assert thumbnails.__doc__ is not None and f"--handler {HANDLER}" in thumbnails.__doc__
    assert "python -m examples.thumbnails | python producer.py -" in thumbnails.__doc__
    assert len(text.splitlines()) <= 40, "one screen"
