"""What a delivery's headers tell, and those that pika cannot read."""

from __future__ import annotations

from typing import Any


def attempt(redelivered: bool, headers: dict[str, Any] | None, rabbitmq: tuple[int, ...]) -> int:
    """Which attempt this delivery is, from 1 on.

    Only a redelivery carries counts that RabbitMQ wrote; on a first delivery a publisher may have forged them.
    Since 4.3 x-delivery-count no longer counts a nack, x-acquired-count does; older versions leave
    an x-acquired-count of the publisher's alone.
    """
    if not redelivered:
        return 1
    count = (headers or {}).get("x-acquired-count" if rabbitmq >= (4, 3) else "x-delivery-count")
    return 1 + count if isinstance(count, int) and count > 0 else 2


class UnreadableHeaders(dict[str, Any]):
    """Stands for headers that pika cannot decode; a class of its own, so that no publisher can write one."""


def read_any_headers() -> None:
    """Let a message through whose headers pika cannot decode.

    A timestamp header in milliseconds is enough to make pika raise inside its frame decoder: the connection ends,
    RabbitMQ gives the message to the next worker, and so on for ever. pika has no hook for it, so we wrap its
    table decoder: such headers arrive as UnreadableHeaders, and the worker dead-letters the message.
    """
    import pika.data as data

    original = data.decode_table
    if getattr(original, "reads_any", False):
        return

    def decode_table(encoded: bytes, offset: int) -> tuple[dict[Any, Any], int]:
        try:
            table: tuple[dict[Any, Any], int] = original(encoded, offset)
            return table
        except Exception:  # pika raises many kinds: ValueError, OverflowError, struct.error, its own
            size = int.from_bytes(encoded[offset : offset + 4], "big")
            return UnreadableHeaders(), offset + 4 + size

    decode_table.reads_any = True  # type: ignore[attr-defined]
    data.decode_table = decode_table
