"""What the Python peers share: where to publish, with which arguments, and the marks by which they are measured.

The environment, set by the harness: AMQP_URL, BENCH_QUEUE, BENCH_ARGUMENTS (the work queue's, as JSON), BENCH_MARKS
(a folder), BENCH_PREFETCH (of a worker).
"""

import json
import mmap
import os
import struct
import time

URL = os.environ["AMQP_URL"]
QUEUE = os.environ["BENCH_QUEUE"]
ARGUMENTS = json.loads(os.environ["BENCH_ARGUMENTS"])
PREFETCH = int(os.environ["BENCH_PREFETCH"])

_SLOT = struct.Struct("<Qddd")  # tasks started, first start, last start, last end
_own: dict[int, list] = {}  # by process: a peer may fork after the import


def work(task: dict) -> None:
    """The task itself, which every contender calls: leave a mark, sleep for its complexity, leave a mark.

    The marks are in shared memory, read by the harness: some 0.5 µs a task, and no peer has to print or to count.
    """
    own = _own.get(os.getpid()) or _own.setdefault(os.getpid(), [_open(), 0, time.time()])
    own[1] += 1
    started = time.time()
    _SLOT.pack_into(own[0], 0, own[1], own[2], started, started)
    if task["complexity"]:
        time.sleep(task["complexity"])
        _SLOT.pack_into(own[0], 0, own[1], own[2], started, time.time())


def _open() -> mmap.mmap:
    path = os.path.join(os.environ["BENCH_MARKS"], f"{os.getpid()}.mark")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, _SLOT.size)
    return mmap.mmap(fd, _SLOT.size)
