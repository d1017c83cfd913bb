"""All that knows AMQP or pika."""
