"""kombu (py-amqp below it): publish FILE, or work."""

import json
import sys

from common import ARGUMENTS, PREFETCH, QUEUE, URL, work
from kombu import Connection, Queue

queue = Queue(QUEUE, durable=True, queue_arguments=ARGUMENTS)

if sys.argv[1] == "publish":
    with Connection(URL, transport_options={"confirm_publish": True}) as connection:
        producer = connection.Producer()
        with open(sys.argv[2], "rb") as lines:
            for line in lines:
                producer.publish(
                    line.rstrip(b"\n"), routing_key=QUEUE, delivery_mode="persistent", mandatory=True,
                    content_type="application/json", content_encoding="utf-8",
                )
else:

    def on_message(message):
        work(json.loads(message.body))
        message.ack()

    with Connection(URL) as connection, connection.Consumer(queue, on_message=on_message, prefetch_count=PREFETCH):
        while True:
            connection.drain_events()
