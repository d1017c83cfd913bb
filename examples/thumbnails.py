"""A real job: thumbnails of a folder of pictures. One task is one picture, and any worker may do it.

    pip install -r examples/requirements.txt
    find pictures -type f -print0 | python -m examples.thumbnails | python producer.py -
    python worker.py --handler examples.thumbnails:thumbnail

$PICTURES (default: pictures) is the folder they are in, $THUMBNAILS (default: thumbnails) where their thumbnails go.
A task names a picture by its path in $PICTURES: {"id": "summer/sea.png", "picture": "summer/sea.png"}; what is made
of it is thumbnails/summer/sea.png.jpg.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from tareas import Reject

SIZE = 320  # pixels: the longer side
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")  # Pillow knows more; one of them starts a program
UNFINISHED = ".unfinished"  # the folder in $THUMBNAILS where files are written; a killed worker may leave one there


def thumbnail(task: dict[str, Any]) -> None:
    """Make one picture's thumbnail. Done twice, it leaves what doing it once leaves.

    What the file system says (no space, no right, no such folder) is raised as it is, and tried again; what is no
    picture stays none, and is rejected.
    """
    pictures, thumbnails = folders()
    name = task.get("picture")
    if not isinstance(name, str) or not name or "\0" in name:
        raise Reject('the task names no picture: write "picture": "summer/sea.png"')
    source = (pictures / name).resolve()
    if not source.is_relative_to(pictures):  # whoever can publish a task shall not have other files read or written
        raise Reject(f"{name!r} is not in the folder of the pictures")
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        if pictures.is_dir():
            raise Reject(f"there is no {name!r} any more") from None
        raise
    try:
        small = shrink(data)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for data that is no picture, or a broken one
        raise Reject(f"{name!r} is not a picture that can be read: {error}") from None
    save(small, thumbnails, Path(f"{source.relative_to(pictures)}.jpg"))


def shrink(data: bytes) -> bytes:
    """A JPEG of at most SIZE x SIZE pixels, turned as the camera was, on white where the picture is transparent."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        picture.draft(None, (SIZE, SIZE))  # a JPEG need not be decoded at its full size
        small = ImageOps.exif_transpose(picture).convert("RGBA")
    small.thumbnail((SIZE, SIZE))
    white = Image.new("RGBA", small.size, "white")
    result = io.BytesIO()
    Image.alpha_composite(white, small).convert("RGB").save(result, "JPEG", quality=85)
    return result.getvalue()


def save(data: bytes, folder: Path, name: Path) -> None:
    """Write folder/name whole or not at all: nobody sees half a file, not even when this process is killed.

    It is on disk when this returns, for then RabbitMQ forgets the task.
    """
    target = folder / name
    part = folder / UNFINISHED / uuid.uuid4().hex  # a name of its own: another worker may be at the same task
    for each in (target, part):
        each.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":  # the new name is on disk when its folder is
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def folders() -> tuple[Path, Path]:
    """Where the pictures are, and where their thumbnails go."""
    return Path(os.environ.get("PICTURES", "pictures")).resolve(), Path(os.environ.get("THUMBNAILS", "thumbnails"))


def main() -> int:
    """Paths from stdin, each ended by a NUL as `find -print0` ends them; the task for each to stdout, a line each.

    The NUL and JSON's escapes let every name through, with blanks, quotes, ñ, even a line end. Exit status 1 if one was
    left out.
    """
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without a traceback when the producer has ended
    pictures, _ = folders()
    status = 0
    for path in filter(None, sys.stdin.buffer.read().split(b"\0")):
        try:
            source = Path(path.decode()).resolve()
            name = str(source.relative_to(pictures))
        except ValueError as error:
            why = "its name is not UTF-8" if isinstance(error, UnicodeError) else f"not in {pictures} ($PICTURES)"
            print(f"left out, {why}: {os.fsdecode(path)!a}", file=sys.stderr)
            status = 1
            continue
        print(json.dumps({"id": task_id(name), "picture": name}))
    return status


def task_id(name: str) -> str:
    """The name, or something as good where a task's id must not be such a text."""
    if name.isprintable() and len(name.encode()) <= 255:
        return name
    return hashlib.sha256(name.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
