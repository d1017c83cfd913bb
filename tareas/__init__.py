"""A minimal, reliable work queue on RabbitMQ: what producer.py, worker.py, admin.py and demo.py share."""

__version__ = "1.0.0"


class Reject(Exception):
    """A handler raises this to say that trying again is useless: the task goes to the dead-letter queue at once."""
