"""A RabbitMQ of one's own, to start, kill and restart."""
