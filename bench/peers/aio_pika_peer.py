"""aio-pika: publish FILE (1,000 publishes awaited at a time, each with its confirm), or work."""

import asyncio
import itertools
import json
import sys

import aio_pika
from common import ARGUMENTS, PREFETCH, QUEUE, URL, work

AT_ONCE = 1000


async def publish(path):
    async with await aio_pika.connect_robust(URL) as connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.declare_queue(QUEUE, durable=True, arguments=ARGUMENTS)
        exchange = channel.default_exchange
        with open(path, "rb") as lines:
            while some := list(itertools.islice(lines, AT_ONCE)):
                await asyncio.gather(*(exchange.publish(message(line.rstrip(b"\n")), QUEUE) for line in some))


def message(body):
    return aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, content_type="application/json")


async def consume():
    async with await aio_pika.connect_robust(URL) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=PREFETCH)
        queue = await channel.declare_queue(QUEUE, durable=True, arguments=ARGUMENTS)
        async with queue.iterator() as messages:
            async for delivery in messages:
                async with delivery.process():
                    # The rows with empty tasks come here without a sleep; the others do nothing else meanwhile.
                    work(json.loads(delivery.body))


asyncio.run(publish(sys.argv[2]) if sys.argv[1] == "publish" else consume())
