"""dramatiq: publish FILE. Its workers are dramatiq's own: `python -m dramatiq dramatiq_peer -p PROCESSES -t 1`."""

import json
import sys

import dramatiq
from common import ARGUMENTS, QUEUE, URL, work
from dramatiq.brokers.rabbitmq import RabbitmqBroker


class Quorum(RabbitmqBroker):
    """dramatiq declares classic queues and has no option for another kind."""

    def _build_queue_arguments(self, queue_name):
        return ARGUMENTS


broker = Quorum(url=URL, confirm_delivery=True)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=QUEUE, actor_name="task")
def task(body):
    work(body)


if __name__ == "__main__":
    with open(sys.argv[2], "rb") as lines:
        for line in lines:
            task.send(json.loads(line))
    broker.close()
