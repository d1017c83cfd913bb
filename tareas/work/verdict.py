"""What a delivery's headers tell: which attempt it is."""

from __future__ import annotations

from typing import Any


def attempt(redelivered: bool, headers: dict[str, Any] | None, rabbitmq: tuple[int, ...]) -> int:
    """Which attempt this delivery is, from 1 on.

    RabbitMQ writes its counts on redeliveries only: on a first delivery they are the publisher's, and may be forged.
    Since 4.3 a nack counts in x-acquired-count and no longer in x-delivery-count. Older versions do not write
    x-acquired-count, so there a publisher's would stay.
    """
    if not redelivered:
        return 1
    count = (headers or {}).get("x-acquired-count" if rabbitmq >= (4, 3) else "x-delivery-count")
    return 1 + count if isinstance(count, int) and count > 0 else 2
