"""The AMQP contract, to the letter: nothing but AMQP and JSON stands between our commands and ten lines of pika.

Whatever is expected here is spelled out, not taken from the code. The first functions are for other tests too: a raw
pika client's view of the queues.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import pytest

from tareas.lab.node import Node
from tests.faults.cuts import CLIENT, RABBITMQ, CuttingProxy
from tests.support import DEADLINE, OPEN, ROOT, Command, Run, raw_connection

DEFAULT = "tareas_distribuidas"
PROPERTIES = pika.BasicProperties(delivery_mode=2, content_type="application/json")
ALL = ("content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
       "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id")  # fmt: skip


def work_arguments(queue: str) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{queue}.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 1000,
    }


DEAD_ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000, "x-overflow": "reject-publish"}


def declare(channel: Any, queue: str) -> None:
    """Both queues, as the contract has them: RabbitMQ refuses the one that comes second if it differs."""
    channel.queue_declare(f"{queue}.dead", durable=True, arguments=DEAD_ARGUMENTS)
    channel.queue_declare(queue, durable=True, arguments=work_arguments(queue))


def publish(channel: Any, queue: str, *tasks: dict[str, Any] | bytes, about: pika.BasicProperties = PROPERTIES) -> None:
    """Tasks or raw bodies into a queue that exists, each confirmed."""
    with contextlib.closing(channel.connection.channel()) as confirming:
        confirming.confirm_delivery()
        for task in tasks:
            body = task if isinstance(task, bytes) else json.dumps(task).encode()
            confirming.basic_publish("", queue, body, about, mandatory=True)


def ready(channel: Any, queue: str) -> int:
    """Messages that nobody holds."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def until(holds: Callable[[], object]) -> None:
    """Wait until RabbitMQ's view of things is as expected."""
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, "not within the deadline"
        time.sleep(0.02)


def consumers(channel: Any, queue: str) -> int:
    """How many consumers RabbitMQ counts."""
    return int(channel.queue_declare(queue, passive=True).method.consumer_count)


def take(channel: Any, queue: str, count: int) -> list[tuple[Any, pika.BasicProperties, bytes]]:
    """Exactly so many messages, which leave the queue: (method, properties, body). One too many fails.

    Nothing may be held by anybody any more, or about to come back: whoever consumed has to be gone.
    """
    until(lambda: consumers(channel, queue) == 0)
    until(lambda: ready(channel, queue) >= count)
    publish(channel, queue, b"the end")  # RabbitMQ gives back before it takes this
    got = list(iter(lambda: channel.basic_get(queue, auto_ack=True), (None, None, None)))
    assert got and got.pop()[2] == b"the end"
    assert len(got) == count, [body for _, _, body in got]
    return got


def ids(got: list[tuple[Any, pika.BasicProperties, bytes]]) -> list[str]:
    return [json.loads(body)["id"] for _, _, body in got]


def publishers(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers without RabbitMQ's own counts."""
    return {name: value for name, value in headers.items() if name not in ("x-delivery-count", "x-acquired-count")}


def told(command: Command, *leave_out: str) -> list[str]:
    """The kinds of events, in their order."""
    return [event["event"] for event in command.events if event["event"] not in leave_out]


# -- ten lines of pika, as anybody writes them

AS_ANYBODY = {"PYTHONWARNINGS": None}  # pika 1.5 warns of BlockingConnection
PUBLISHER = """
import json, sys, pika
url, queue = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
for n in range(3):
    body = json.dumps({"id": f"raw-{n}", "complexity": 0, "of": "somebody's", "ñ": [n]})
    channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))
connection.close()
"""

CONSUMER = """
import json, sys, pika
url, queue, arguments = sys.argv[1:]
channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
channel.queue_declare(queue, durable=True, arguments=json.loads(arguments))
channel.basic_qos(prefetch_count=1)
print("consuming", flush=True)
for method, properties, body in channel.consume(queue):
    print(json.dumps([vars(method), vars(properties), json.loads(body)]), flush=True)
    channel.basic_ack(method.delivery_tag)
"""


def test_ten_lines_of_pika_publish_to_our_worker(url: str, queue: str, run: Run) -> None:
    worker = run("worker.py", "w", "--json", "--queue", queue)
    worker.wait_event("connected")
    assert run("-c", PUBLISHER, url, queue, env=AS_ANYBODY).wait() == 0
    worker.wait_event("done", count=3)
    facts = {"attempt": 1, "redelivered": False}
    assert [event["id"] for event in worker.event_list("started", **facts)] == ["raw-0", "raw-1", "raw-2"]
    assert [event["id"] for event in worker.event_list("done", attempt=1)] == ["raw-0", "raw-1", "raw-2"]


def test_ten_lines_of_pika_consume_from_our_producer(url: str, queue: str, run: Run) -> None:
    """They declare the queue first, so its durability and arguments are what the contract says, or we are refused."""
    consumer = run("-c", CONSUMER, url, queue, json.dumps(work_arguments(queue)), env=AS_ANYBODY)
    consumer.wait_for("consuming")
    before = int(time.time())
    lines = '{"id": "a", "complexity": 0.5}\n  {"id":"ñ","x":[1,null],"complexity":0}  \n'
    assert run("producer.py", "-", "--queue", queue, stdin=lines).wait() == 0
    consumer.wait_for("[", count=2)
    after = time.time()
    first, second = (json.loads(line) for line in consumer.out.splitlines()[1:])
    for (method, properties, task), expected in zip((first, second), lines.splitlines(), strict=True):
        assert task == json.loads(expected)
        assert (method["exchange"], method["routing_key"], method["redelivered"]) == ("", queue, False)
        assert before <= properties.pop("timestamp") <= after
        assert {name: value for name, value in properties.items() if value is not None} == {
            "delivery_mode": 2, "content_type": "application/json", "app_id": "producer.py", "message_id": task["id"],
        }  # fmt: skip


def test_what_rabbitmq_knows_of_us(killable: Node, run: Run) -> None:
    """The queues, the consumer and the connections as rabbitmqctl lists them; without --queue, the seed's name."""
    worker = run("worker.py", "worker-7", "--json")
    worker.wait_event("connected")
    producer = run("producer.py", "-", "--json", "--queue", "other", stdin=OPEN)
    producer.wait_event("connected")

    def listed(*arguments: str) -> list[dict[str, Any]]:
        found = json.loads(killable.ctl(*arguments, "--formatter", "json", "-q"))
        assert isinstance(found, list)
        return found

    def plain(arguments: Any) -> dict[str, Any]:
        """rabbitmqctl's table of arguments: 3.10 has a list of [name, type, value], later ones an object."""
        return arguments if isinstance(arguments, dict) else {name: value for name, _, value in arguments}

    queues = listed("list_queues", "name", "type", "durable", "auto_delete", "arguments")
    found = {each["name"]: plain(each["arguments"]) for each in queues}
    ours = {
        DEFAULT: work_arguments(DEFAULT), f"{DEFAULT}.dead": DEAD_ARGUMENTS,
        "other": work_arguments("other"), "other.dead": DEAD_ARGUMENTS,
    }  # fmt: skip
    assert {name: found.get(name) for name in ours} == ours
    assert {(each["type"], each["durable"], each["auto_delete"]) for each in queues if each["name"] in ours} == {
        ("quorum", True, False)
    }

    consumers = listed("list_consumers", "queue_name", "consumer_tag", "ack_required", "prefetch_count", "active")
    assert [each for each in consumers if each["queue_name"] == DEFAULT] == [{
        "queue_name": DEFAULT, "consumer_tag": "worker-7", "ack_required": True, "prefetch_count": 1, "active": True,
    }]  # fmt: skip
    connections = [plain(each["client_properties"]) for each in listed("list_connections", "client_properties")]
    assert {"producer", "worker-7"} <= {each.get("connection_name") for each in connections}


def test_the_producer_says_confirmed_of_what_is_in_the_queue_and_of_nothing_else(killable: Node, run: Run) -> None:
    """A queue that takes three (RabbitMQ lets some more in before it refuses), and ten tasks: the rest is not claimed,
    and published once there is room."""
    with raw_connection(killable.url) as connection:
        channel = connection.channel()
        declare(channel, "full")
        killable.ctl("set_policy", "only-three", "^full$", json.dumps({"max-length": 3}), "--apply-to", "queues")
        for n in itertools.count():  # until the policy holds
            try:
                publish(channel, "full", {"id": f"before-{n}"})
            except pika.exceptions.NackError:
                break
        there = ready(channel, "full")
        assert there >= 3
        producer = run("producer.py", "--count", 10, "--queue", "full", "--json")
        producer.wait_event("refused")
        claimed = len(producer.event_list("confirmed"))
        assert claimed == ready(channel, "full") - there < 10
        assert producer.running
        bodies: list[bytes] = []

        def all_taken() -> bool:
            """Make room, bit by bit."""
            method, _, body = channel.basic_get("full", auto_ack=True)
            bodies.extend([body] if method else [])
            return len(bodies) == there + 10

        until(all_taken)
        assert producer.wait() == 0
        confirmed = [event["id"] for event in producer.event_list("confirmed")]
        published = [json.loads(body)["id"] for body in bodies[there:]]
        assert sorted(confirmed) == sorted(published) == [f"task-{n:04d}" for n in range(1, 11)]
        (finished,) = producer.event_list("finished")
        assert (finished["published"], finished["confirmed"]) == (10, 10)


def test_a_worker_holds_one_task_and_its_death_gives_it_back(channel: Any, queue: str, run: Run) -> None:
    declare(channel, queue)
    publish(channel, queue, {"id": "long", "complexity": 600}, *({"id": f"t-{n}", "complexity": 0} for n in range(3)))
    worker = run("worker.py", "w-1", "--json", "--queue", queue)
    worker.wait_event("started", id="long", redelivered=False)
    assert ready(channel, queue) == 3  # with a higher prefetch RabbitMQ would have sent more along with the first
    worker.kill()
    until(lambda: ready(channel, queue) == 4)

    second = run("worker.py", "w-2", "--json", "--queue", queue)
    second.wait_event("started", id="long", redelivered=True, attempt=2)
    second.kill()
    assert ids(take(channel, queue, 4)) == ["long", "t-0", "t-1", "t-2"]


def test_several_workers_share_the_tasks(channel: Any, queue: str, run: Run) -> None:
    workers = [run("worker.py", f"w-{n}", "--json", "--queue", queue) for n in range(3)]
    for worker in workers:
        worker.wait_event("connected")
    until(lambda: consumers(channel, queue) == 3)
    publish(channel, queue, *({"id": f"t-{n}", "complexity": 0.1} for n in range(9)))
    until(lambda: sum(len(worker.event_list("done")) for worker in workers) == 9)
    done = [[event["id"] for event in worker.event_list("done")] for worker in workers]
    assert sorted(itertools.chain(*done)) == [f"t-{n}" for n in range(9)]
    assert min(map(len, done)) >= 2, done  # of three each, as RabbitMQ hands them round
    for worker in workers:
        worker.signal()
        assert worker.wait() == 0
    take(channel, queue, 0)


def test_the_same_seed_makes_the_same_tasks(channel: Any, queue: str, run: Run) -> None:
    def bodies(*options: object) -> list[bytes]:
        assert run("producer.py", *options, "--queue", queue).wait() == 0
        return [body for _, _, body in take(channel, queue, int(str(options[1])))]

    first = bodies("--count", 30, "--complexity", "0.5-3", "--seed", 7)
    assert bodies("--count", 30, "--complexity", "0.5-3", "--seed", 7) == first
    assert bodies("--count", 30, "--complexity", "0.5-3", "--seed", 8) != first
    assert [json.loads(body)["id"] for body in first] == [f"task-{n:04d}" for n in range(1, 31)]
    costs = [json.loads(body)["complexity"] for body in first]
    assert 0.5 <= min(costs) < 1 and 2.5 < max(costs) <= 3
    assert [json.loads(body) for body in bodies("--count", 1, "--complexity", "2")] == [
        {"id": "task-0001", "complexity": 2}
    ]


def test_tasks_come_from_a_file_a_pipe_and_a_slow_pipe(channel: Any, queue: str, run: Run, tmp_path: Path) -> None:
    """In their order, and their bodies are the lines."""
    lines = [b'{"id":"a","complexity":0}', '{"id": "ñ", "x": {"y": [1, 2.50]}}'.encode(), b'{"id":"c"}']
    file = tmp_path / "tasks.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\n  " + lines[1] + b"  \n" + lines[2])
    assert run("producer.py", file, "--queue", queue).wait() == 0
    assert [body for _, _, body in take(channel, queue, 3)] == lines
    assert run("producer.py", "-", "--queue", queue, stdin=b"\n".join(lines)).wait() == 0
    assert [body for _, _, body in take(channel, queue, 3)] == lines

    slow = run("producer.py", "-", "--queue", queue, "--json", stdin=OPEN)
    for number, line in enumerate(lines, 1):
        text = line.decode()
        slow.send(text[:7])
        slow.send(text[7:] + "\n")
        slow.wait_event("confirmed", count=number)  # each as it comes, not at the end
    assert slow.running
    slow.close_stdin()
    assert slow.wait() == 0
    assert [body for _, _, body in take(channel, queue, 3)] == lines


def test_the_events_of_json_are_these_in_this_order(queue: str, run: Run) -> None:
    began = time.time()
    lines = '{"id":"a","complexity":0.1}\n{"id":"b","complexity":0,"fail_attempts":1}\n'
    producer = run("producer.py", "-", "--json", "--queue", queue, stdin=lines)
    assert producer.wait() == 0
    assert told(producer) == ["connected", "published", "published", "confirmed", "confirmed", "finished"]
    assert [event["id"] for event in producer.events[1:-1]] == ["a", "b", "a", "b"]

    worker = run("worker.py", "w", "--json", "--queue", queue, "--drain", "--retry-delay", 0.1)
    assert worker.wait() == 0
    expected = {
        "connected": ["address"],
        "started": ["id", "attempt", "redelivered"],
        "done": ["id", "attempt", "seconds"],
        "failed": ["id", "attempt", "error", "seconds"],
        "requeued": ["id", "attempt", "rest"],
        "stopped": ["processed", "failed", "dead_lettered", "busy"],
    }
    story = ["connected", "started", "done", "started", "failed", "requeued", "started", "done", "stopped"]
    assert told(worker) == story
    assert [event.get("id") for event in worker.events] == [None, *"aabbbbb", None]
    assert [list(event) for event in worker.events] == [["time", "event", "who", *expected[word]] for word in story]
    assert worker.events[-1].items() >= {"processed": 2, "failed": 1, "dead_lettered": 0}.items()
    assert 0.1 <= worker.events[2]["seconds"] <= worker.events[-1]["busy"]
    for command, who in ((producer, "producer"), (worker, "w")):
        assert command.err == ""
        assert {event["who"] for event in command.events} == {who}
        times = [event["time"] for event in command.events]
        assert times == sorted(times) and began - 0.01 <= times[0] and times[-1] <= time.time() + 0.01


def test_drain_ends_with_the_queue_and_its_status_says_whether_a_task_died(channel: Any, queue: str, run: Run) -> None:
    declare(channel, queue)

    def drained(*tasks: dict[str, Any]) -> Command:
        publish(channel, queue, *tasks)
        worker = run("worker.py", "--drain", "--json", "--max-attempts", 1, "--queue", queue)
        worker.wait()
        take(channel, queue, 0)
        return worker

    good = [{"id": f"t-{n}", "complexity": 0} for n in range(20)]
    empty, fine, deadly = drained(), drained(*good), drained({"id": "x", "complexity": 0, "fail_attempts": 1}, *good)
    assert [worker.wait() for worker in (empty, fine, deadly)] == [0, 0, 3]
    assert [len(worker.event_list("done")) for worker in (empty, fine, deadly)] == [0, 20, 20]
    assert ids(take(channel, f"{queue}.dead", 1)) == ["x"]
    assert drained(*good).wait() == 0  # of others' dead letters it says nothing


@pytest.mark.parametrize("options", [(), ("--prefetch", 50)], ids=["one-at-hand", "several-at-hand"])
def test_nobody_asks_rabbitmq_once_a_task(
    url: str, channel: Any, queue: str, run: Run, options: tuple[object, ...]
) -> None:
    """A drain looks at its queue when none comes, not at each task: that would cost a round trip more for each."""
    count = 500
    declare(channel, queue)
    publish(channel, queue, *({"id": f"t-{n}", "complexity": 0} for n in range(count)))
    with CuttingProxy(url) as proxy:
        worker = run("worker.py", "--drain", "--json", "--queue", queue, *options, env={"AMQP_URL": proxy.url})
        assert worker.wait() == 0
        assert len(worker.event_list("done")) == count
        asked, heard = proxy.said(CLIENT), proxy.said(RABBITMQ)
    assert len(proxy.frames) == 1 and heard["Basic.Deliver"] == count  # so the proxy has seen all
    assert 1 <= asked.pop("Basic.Ack") <= count
    assert 2 <= asked["Queue.Declare"] + asked["Basic.Get"] <= 20, asked
    assert asked.total() <= 40, asked  # whatever else it may ask


HANDLERS = """
import subprocess, sys
from tareas import Reject

def work(task):
    if task["id"] == "leaves":
        sys.exit("enough")
    if task["id"] == "bad":
        raise Reject("never mind")
    if task["id"] == "raises":
        raise ValueError("one", "two")
    print(sorted(task.items()))  # with --json on stderr, as the words of a program are that it runs
    subprocess.run(["echo", "done"])
    return False  # what it returns says nothing

class Deep:
    inner = staticmethod(work)
"""


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(HANDLERS.splitlines(), 1) if text in line)


@pytest.mark.parametrize("name", ["work", "Deep.inner"])
def test_a_function_of_the_users_does_the_task(
    name: str, channel: Any, queue: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(HANDLERS)
    declare(channel, queue)
    odd = {"id": "odd", "fail_attempts": 3, "crash_attempts": "many", "x": {"y": [None]}}  # no complexity
    publish(channel, queue, odd, {"id": "bad"}, {"id": "raises"}, {"id": "leaves"})
    call = [ROOT / "worker.py", "w", "--handler", f"mine:{name}", "--max-attempts", 2, "--retry-delay", 0]
    worker = run(*call, "--drain", "--json", "--queue", queue, cwd=tmp_path)
    assert worker.wait() == 3
    assert worker.err == f"{sorted(odd.items())}\ndone\n"
    assert {event["who"] for event in worker.events} == {"w"}
    assert [event["id"] for event in worker.event_list("done")] == ["odd"]
    reasons = {event["id"]: (event["attempt"], event["reason"]) for event in worker.event_list("dead_lettered")}
    assert reasons == {
        "bad": (1, "rejected: Reject: never mind"),
        "raises": (2, f"ValueError: ('one', 'two') (mine.py, line {line_of('raise ValueError')})"),
        "leaves": (2, f"SystemExit: enough (mine.py, line {line_of('sys.exit')})"),
    }
    assert sorted(ids(take(channel, f"{queue}.dead", 3))) == ["bad", "leaves", "raises"]
    take(channel, queue, 0)
