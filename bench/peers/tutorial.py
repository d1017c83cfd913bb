"""The two scripts of RabbitMQ's tutorial two, on a quorum queue: publish FILE, or work.

They publish with confirms, one by one, and do each task in the callback: no heartbeat is answered meanwhile.
"""

import json
import sys

import pika
from common import ARGUMENTS, PREFETCH, QUEUE, URL, work

connection = pika.BlockingConnection(pika.URLParameters(URL))
channel = connection.channel()
channel.queue_declare(queue=QUEUE, durable=True, arguments=ARGUMENTS)

if sys.argv[1] == "publish":
    channel.confirm_delivery()
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    with open(sys.argv[2], "rb") as lines:
        for line in lines:
            channel.basic_publish("", QUEUE, line.rstrip(b"\n"), persistent, mandatory=True)
    connection.close()
else:

    def callback(ch, method, properties, body):
        work(json.loads(body))
        ch.basic_ack(delivery_tag=method.delivery_tag)

    channel.basic_qos(prefetch_count=PREFETCH)
    channel.basic_consume(queue=QUEUE, on_message_callback=callback)
    channel.start_consuming()
