"""A minimal, reliable work queue on RabbitMQ: what producer.py, worker.py, admin.py and demo.py share."""

from tareas.errors import Reject

__all__ = ["Reject", "__version__"]
__version__ = "1.0.0"
