"""Each command imports this first: that a package is missing, or too old, is said in one line, not in a traceback."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

OLDEST_PIKA = (1, 3, 2)  # as requirements.txt says


def fault() -> str:
    """What is wrong with the packages, and how to mend it; empty if nothing is."""
    folder = Path(__file__).parents[1]
    activate = folder / ".venv/bin/activate"
    mend = f"type `. {activate}` first" if activate.exists() else "pip install -r requirements.txt, in a .venv or not"
    missing = [name for name in ("pika", "rich") if find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {' and no '.join(missing)} ({mend})"
    # Read, not imported: an import takes its time, in which Ctrl+C would show a traceback.
    pika = find_spec("pika")
    source = Path(pika.origin).read_text(encoding="utf-8", errors="replace") if pika and pika.origin else ""
    found = re.search(r"""^__version__ = ['"]((\d+)\.(\d+)\.(\d+).*?)['"]""", source, re.MULTILINE)
    if found and tuple(map(int, found.groups()[1:])) < OLDEST_PIKA:
        wanted = ".".join(map(str, OLDEST_PIKA))
        return f"{sys.executable} has pika {found[1]}, too old: {wanted} at least (pip install -r requirements.txt)"
    return ""


if told := fault():
    sys.exit(f"{Path(sys.argv[0]).name}: {told}")
