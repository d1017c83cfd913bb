"""From the addresses of RabbitMQ to a connection."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tareas.errors import Broken, Denied, Lost, Unreachable
from tareas.rabbit.addresses import Address
from tareas.rabbit.connection import Connection

REST = 0.25  # seconds before a broken handshake is tried again


def connect(addresses: Sequence[Address], name: str, *, tries: int = 1, **options: Any) -> Connection:
    """A connection to the first of the addresses that answers. tries: of each, when its connection breaks amid the
    handshake. options: those of Connection.

    Raises Denied if RabbitMQ refuses us at all of them, else Unreachable. The message has a clause for each address.
    (pika could try a list itself, but a host name that is unknown ends its whole list.)
    """
    reasons: list[Exception] = []
    for address in addresses:
        for left in range(tries - 1, -1, -1):
            try:
                return Connection(address, name, **options)
            except (Lost, Denied) as error:
                if not isinstance(error, Broken) or not left:
                    reasons.append(error)
                    break
                time.sleep(REST)
    final = all(isinstance(reason, Denied) for reason in reasons)
    raise (Denied if final else Unreachable)("; ".join(map(str, reasons)))
