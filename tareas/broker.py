"""Where RabbitMQ is, how to reach it, and which queues there are.

Everything that the commands say to RabbitMQ before the first task is here, so that each of them declares
the same queues and explains the same failure in the same words.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException, AMQPConnectorStackTimeout
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AMQPHeartbeatTimeout,
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    ProtocolSyntaxError,
    StreamLostError,
)

from tareas.cli import Trouble, WrongCall, quoted

DEFAULT_URL = "amqp://guest:guest@localhost:5672/%2F"
HEARTBEAT = 20  # seconds; RabbitMQ's documentation recommends 5 to 20: it bounds how long a frozen machine keeps a task
CONNECT_TIMEOUT = 10  # seconds for TCP, and again for TLS and AMQP together
ANSWER_TIMEOUT = 30  # seconds to wait for the answer to one call: pika alone would wait for ever

# The worker bounds the attempts itself; the queue's limit is the backstop far above it. RabbitMQ counts broker
# restarts and killed workers towards this limit too.
DELIVERY_LIMIT = 1000
# Looking at a dead letter counts as a delivery. RabbitMQ 4.0 drops it at the 21st when no limit is set, 3.10 at the
# first when the limit is -1; a million is safe on all versions.
DEAD_DELIVERY_LIMIT = 1_000_000

# What a call to pika may raise when the connection is bad. ValueError: a second timed process_data_events() on a
# dead connection; AssertionError: pika's own view of its state when the stream ends in the middle of a call.
LOST = (AMQPError, AMQPConnectorException, OSError, ValueError, AssertionError)

TLS_OPTIONS = ("cafile", "certfile", "keyfile")
PIKA_OPTIONS = ("heartbeat", "socket_timeout", "stack_timeout", "blocked_connection_timeout", "channel_max", "frame_max")


class Unreachable(Trouble):
    """No RabbitMQ answers at any of the addresses; it may later."""


class Denied(Trouble):
    """RabbitMQ answers, and does not let us in: waiting will not help."""


class QueueDiffers(Trouble):
    """The queue exists with other arguments than ours."""


@dataclass(frozen=True)
class Address:
    """One RabbitMQ: what to show of it (never the password), and pika's parameters to reach it."""

    shown: str
    user: str
    parameters: pika.ConnectionParameters


def default_url() -> str:
    """$AMQP_URL, or RabbitMQ's own defaults on this machine."""
    return os.environ.get("AMQP_URL") or DEFAULT_URL


def addresses(text: str) -> list[Address]:
    """The RabbitMQ nodes named by one or more URLs, separated by commas.

    Beyond what pika knows, an ``amqps`` URL takes ``cafile``, ``certfile`` and ``keyfile`` (paths to PEM files).
    Raises WrongCall, which never shows the text itself: it may hold a password.
    """
    parts = re.split(r",(?=\s*amqps?://)", text.strip())
    return [_address(part.strip(), f"URL {n}" if len(parts) > 1 else "the URL") for n, part in enumerate(parts, 1)]


def _address(url: str, where: str) -> Address:
    hint = "(write amqp://user:password@host:5672/vhost, with %2F for the vhost /)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise WrongCall(f"{where} has a port or host that cannot be read {hint}") from None
    if parts.scheme not in ("amqp", "amqps"):
        raise WrongCall(f"{where} does not begin with amqp:// or amqps:// {hint}")
    if not parts.hostname or "@" in parts.hostname or parts.fragment or parts.path.count("/") > 1:
        raise WrongCall(
            f"{where} cannot be read {hint}; write a special character of a user, password or vhost as %XX"
        )
    if port == 0:
        raise WrongCall(f"{where} has port 0 {hint}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - set(PIKA_OPTIONS) - set(TLS_OPTIONS))
    if unknown:
        known = ", ".join(PIKA_OPTIONS + TLS_OPTIONS)
        raise WrongCall(f"{where} has an unknown option {quoted(unknown[0])} (known: {known})")
    tls = {name: options.pop(name) for name in TLS_OPTIONS if name in options}
    if tls and parts.scheme == "amqp":
        raise WrongCall(f"{where} names {', '.join(tls)} without TLS: begin it with amqps://")
    options = {"socket_timeout": str(CONNECT_TIMEOUT), "stack_timeout": str(CONNECT_TIMEOUT), **options}
    options.setdefault("heartbeat", str(HEARTBEAT))
    userinfo, _, place = parts.netloc.rpartition("@")
    if userinfo and ":" not in userinfo:
        userinfo += ":"  # pika takes a user without a password for an error
    netloc = f"{userinfo}@{place}" if userinfo else f"guest:guest@{place}"
    for name, value in options.items():
        try:
            if not 0 <= float(value) <= 2**31:
                raise ValueError
        except ValueError:
            raise WrongCall(f"{where}: {name} must be a number that is not negative") from None
    rebuilt = urlunsplit((parts.scheme, netloc, parts.path or "/%2F", urlencode(options), ""))
    try:
        parameters = pika.URLParameters(rebuilt)
    except Exception:  # pika raises many kinds here, and their texts hold the password
        raise WrongCall(f"{where} has an option that RabbitMQ's client refuses {hint}") from None
    if parts.scheme == "amqps":
        parameters.ssl_options = _tls(parts.hostname, tls, where)
    vhost = "" if parameters.virtual_host == "/" else f"/{parameters.virtual_host}"
    user = unquote(userinfo.partition(":")[0]) or "guest"
    return Address(quoted(f"{parameters.host}:{parameters.port}{vhost}", quotes=False), user, parameters)


def _tls(host: str, files: dict[str, str], where: str) -> pika.SSLOptions:
    """The peer must prove with a certificate that it is the host we asked for; there is no option to skip that."""
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise WrongCall(f"{where}: {name} {quoted(path)} is not a file that can be read")
    try:
        context = ssl.create_default_context(cafile=files.get("cafile"))
        if "certfile" in files:
            context.load_cert_chain(files["certfile"], files.get("keyfile"), password=lambda: "")
        elif "keyfile" in files:
            raise WrongCall(f"{where}: keyfile needs a certfile")
    except (ssl.SSLError, OSError) as error:
        raise WrongCall(f"{where}: the TLS files cannot be used: {quoted(str(error), quotes=False)}") from None
    return pika.SSLOptions(context, host)


def parameters(address: Address, name: str) -> pika.ConnectionParameters:
    """pika's parameters for this address, with the name that RabbitMQ's management page shows for the connection."""
    result = address.parameters
    result.client_properties = {"connection_name": name, "product": "tareas distribuidas"}
    return result


def connect(nodes: Sequence[Address], name: str) -> tuple[pika.BlockingConnection, Address]:
    """A connection to the first of the nodes that answers, each tried once.

    Raises Denied if all that answer refuse us, else Unreachable; the message has one clause per address.
    pika could try a list itself, but an unknown host name aborts its whole list.
    """
    reasons, denied = [], []
    for address in nodes:
        try:
            return pika.BlockingConnection(parameters(address, name)), address
        except LOST as error:
            reasons.append(explain(error, address))
            denied.append(is_denied(error))
    raise (Denied if all(denied) else Unreachable)("; ".join(reasons))


def dead(queue: str) -> str:
    """The name of the queue's dead-letter queue."""
    return f"{queue}.dead"


def declarations(queue: str) -> list[tuple[str, dict[str, Any]]]:
    """Both queues with their arguments, the dead-letter queue first: nothing may be dead-lettered into the void.

    https://www.rabbitmq.com/docs/quorum-queues: at-least-once dead-lettering needs overflow reject-publish; without
    it RabbitMQ falls back to at-most-once, silently.
    """
    return [
        (
            dead(queue),
            {"x-queue-type": "quorum", "x-delivery-limit": DEAD_DELIVERY_LIMIT, "x-overflow": "reject-publish"},
        ),
        (
            queue,
            {
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead(queue),
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-delivery-limit": DELIVERY_LIMIT,
            },
        ),
    ]


def declare(connection: pika.BlockingConnection, channel: Any, queue: str) -> None:
    """Make sure that both queues exist, as ours. Raises QueueDiffers, or what pika raises."""
    for name, arguments in declarations(queue):
        try:
            with deadline(connection):
                channel.queue_declare(queue=name, durable=True, arguments=arguments)
        except ChannelClosedByBroker as error:
            raise refused_declare(error, name) from None


def refused_declare(error: ChannelClosedByBroker, queue: str) -> Exception:
    """What to say when RabbitMQ closes the channel instead of declaring the queue; the error itself if it may pass."""
    if error.reply_code == 406:
        which = re.search(r"inequivalent arg '([^']+)'", error.reply_text)
        what = f" ({which[1]} differs)" if which else ""
        return QueueDiffers(
            f"queue {quoted(queue)} exists with other arguments{what}: use --queue NAME, "
            "or empty the old queue and delete it"
        )
    if error.reply_code == 403:
        return Denied(f"no permission to declare queue {quoted(queue)} (give the user configure, write and read on it)")
    if error.reply_code == 405:
        return QueueDiffers(f"queue {quoted(queue)} belongs to another connection (exclusive): use --queue NAME")
    as_it_is: Exception = error
    return as_it_is


@contextlib.contextmanager
def deadline(connection: pika.BlockingConnection, seconds: float = ANSWER_TIMEOUT) -> Iterator[None]:
    """End the connection if a call to RabbitMQ gets no answer within so many seconds.

    A queue without its majority never answers a declare, while heartbeats go on: pika would wait for ever. It has no
    public way to bound one call; its own inner connection has timers that run while it waits.
    """
    timer = give_up_after(seconds, connection)
    try:
        yield
    finally:
        timer.cancel()


def give_up_after(seconds: float, connection: Any) -> Any:
    """End the connection in so many seconds, unless the timer returned is cancelled before."""
    inner: Any = getattr(connection, "_impl", connection)
    reason = StreamLostError(f"no answer within {seconds:g} s")
    return inner._adapter_call_later(seconds, lambda: inner.is_closed or inner._terminate_stream(reason))


def version(connection: pika.BlockingConnection) -> tuple[int, ...]:
    """RabbitMQ's version, (0,) if it does not say."""
    told = (getattr(connection._impl, "server_properties", None) or {}).get("version", "")
    return tuple(int(n) for n in re.findall(r"\d+", str(told))[:3]) or (0,)


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


def tell_alarms(connection: Any, tell: Callable[..., None]) -> None:
    """Tell `blocked` and `unblocked` when RabbitMQ stops and resumes taking messages (memory or disk alarm).

    On the inner connection: the blocking one calls back only from process_data_events(), so a publish that waits for
    its confirm, which is what an alarm holds up, would wait in silence.
    """
    inner: Any = getattr(connection, "_impl", connection)
    inner.add_on_connection_blocked_callback(
        lambda _, frame: tell("blocked", reason=quoted(str(frame.method.reason), quotes=False))
    )
    inner.add_on_connection_unblocked_callback(lambda _, frame: tell("unblocked"))


def consumer_ended(channel: Any, consumer_tag: str) -> bool:
    """Whether RabbitMQ has cancelled this consumer. BlockingChannel tells only after its callback has returned."""
    return consumer_tag not in channel._impl.consumer_tags


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


def is_denied(error: BaseException) -> bool:
    """Whether waiting and trying again cannot help: a wrong login, vhost or certificate."""
    return any(isinstance(e, ssl.SSLCertVerificationError) or _refused_login(e) or _refused_vhost(e) for e in _causes(error))


def _refused_login(error: BaseException) -> bool:
    return isinstance(error, (ProbableAuthenticationError, AuthenticationError)) or (
        isinstance(error, ConnectionClosedByBroker) and error.reply_code == 403
    )


def _refused_vhost(error: BaseException) -> bool:
    return isinstance(error, ProbableAccessDeniedError) or (
        isinstance(error, ConnectionClosedByBroker) and error.reply_code == 530
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: pika packs the true one into phases and workflows."""
    seen: list[BaseException] = [error]
    while seen:
        current = seen.pop()
        yield current
        inner: list[Any] = [getattr(current, "exception", None), *getattr(current, "exceptions", ()), *current.args]
        seen.extend(e for e in inner if isinstance(e, BaseException))


def explain(error: BaseException, address: Address) -> str:
    """One line: what is wrong between us and this RabbitMQ, and how to mend it. It never holds a password."""
    at = address.shown
    known: list[tuple[Callable[[BaseException], bool], str]] = [
        (_refused_login, f"RabbitMQ at {at} refuses the login of user {quoted(address.user)}"
         " (check user and password in AMQP_URL or --url; guest may only log in from RabbitMQ's own machine)"),
        (_refused_vhost, f"RabbitMQ at {at} has no such vhost, or user {quoted(address.user)} may not use it"
         " (list them with rabbitmqctl list_vhosts)"),
        (lambda e: isinstance(e, ssl.SSLCertVerificationError), f"the certificate of {at} is not trusted"
         " (name its authority with ?cafile=FILE in the URL; the host name must be the certificate's)"),
        (lambda e: isinstance(e, ssl.SSLError), f"TLS with {at} failed"
         " (amqps:// needs RabbitMQ's TLS port, 5671 as a rule, and perhaps a client certificate: ?certfile=&keyfile=)"),
        (lambda e: isinstance(e, ConnectionRefusedError), f"nobody listens at {at}"
         " (start RabbitMQ: docker compose up -d rabbitmq, or make broker)"),
        (lambda e: isinstance(e, socket.gaierror), f"the host of {at} is unknown (check the URL, or the network)"),
        (lambda e: isinstance(e, AMQPHeartbeatTimeout), f"no heartbeat from {at}: it, or the network, stands still"),
        (lambda e: isinstance(e, (AMQPConnectorStackTimeout, TimeoutError)), f"no answer from {at} in time"
         " (is it RabbitMQ's AMQP port, 5672 as a rule? is a firewall between?)"),
        (lambda e: isinstance(e, ConnectionClosedByBroker), _closed_by_broker(error, at)),
        (lambda e: isinstance(e, IncompatibleProtocolError) and "stream" in str(e).lower(),
         f"{at} closed the connection before it spoke AMQP (still starting, or no RabbitMQ?)"),
        (lambda e: isinstance(e, (IncompatibleProtocolError, ProtocolSyntaxError)),
         f"{at} does not speak AMQP (5672 is RabbitMQ's port as a rule; 15672 is its web page)"),
        (lambda e: isinstance(e, StreamLostError) and "no answer" in str(e), f"{at} did not answer a call within"
         f" {ANSWER_TIMEOUT} s (a queue without its majority?)"),
        (lambda e: isinstance(e, (StreamLostError, ConnectionResetError, BrokenPipeError)),
         f"the connection to {at} broke"),
        (lambda e: isinstance(e, OSError) and bool(e.strerror), f"{at} cannot be reached: {_os_reason(error)}"),
    ]
    causes = list(_causes(error))
    for matches, message in known:
        if any(matches(cause) for cause in causes):
            return message
    if isinstance(error, ChannelClosedByBroker):
        return f"RabbitMQ at {at} closed the channel: {quoted(error.reply_text, quotes=False)}"
    if any(isinstance(e, AMQPConnectionError) for e in causes):
        return f"the connection to {at} ended"
    return f"the connection to {at} failed: {type(error).__name__}"


def _closed_by_broker(error: BaseException, at: str) -> str:
    for cause in _causes(error):
        if isinstance(cause, ConnectionClosedByBroker):
            return f"RabbitMQ at {at} closed the connection: {quoted(cause.reply_text, quotes=False)}"
    return ""


def _os_reason(error: BaseException) -> str:
    return next((str(e.strerror) for e in _causes(error) if isinstance(e, OSError) and e.strerror), "")
