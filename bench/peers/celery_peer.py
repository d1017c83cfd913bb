"""celery: publish FILE, or work POOL PROCESSES (prefork or threads)."""

import json
import sys

from celery import Celery
from common import ARGUMENTS, PREFETCH, QUEUE, URL, work
from kombu import Exchange, Queue

app = Celery("bench", broker=URL)
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    task_queues=[Queue(QUEUE, Exchange(""), routing_key=QUEUE, durable=True, queue_arguments=ARGUMENTS)],
    task_default_queue=QUEUE,
    task_default_exchange="",
    task_default_routing_key=QUEUE,
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=PREFETCH,
    worker_enable_remote_control=False,
)


@app.task(name="task")
def task(body):
    work(body)


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        with open(sys.argv[2], "rb") as lines:
            for line in lines:
                task.delay(json.loads(line))
    else:
        pool, processes = sys.argv[2:4]
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR")
        app.worker_main(["worker", "--pool", pool, "--concurrency", processes, *quiet])
