"""Each command imports this first: that a package is missing is said in one line, not in a traceback."""

import sys
from importlib.util import find_spec
from pathlib import Path

missing = [name for name in ("pika", "rich") if find_spec(name) is None]
if missing:
    folder = Path(__file__).parents[1]
    activate = folder / ".venv/bin/activate"
    mend = f"type `. {activate}` first" if activate.exists() else "pip install -r requirements.txt, in a .venv or not"
    sys.exit(f"{Path(sys.argv[0]).name}: {sys.executable} has no {' and no '.join(missing)} ({mend})")
