"""One task by hand, the least that pika can do: connect, declare, publish with a confirm, close."""

import os
import sys

import pika

queue = os.environ["BENCH_QUEUE"]
words = (argument.split("=") for argument in sys.argv[1:])  # x-queue-type=quorum ...: json would have to be imported
arguments = {name: int(value) if value.isdigit() else value for name, value in words}

connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
channel = connection.channel()
channel.queue_declare(queue=queue, durable=True, arguments=arguments)
channel.confirm_delivery()
body = b'{"id":"task-0001","complexity":1.23}'
channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True)
connection.close()
