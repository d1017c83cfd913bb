"""What it means when RabbitMQ cannot be used: one line with the way out, and whether waiting can help."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

from pika.adapters.utils.connection_workflow import AMQPConnectorException, AMQPConnectorStackTimeout
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AMQPHeartbeatTimeout,
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ConnectionOpenAborted,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    ProtocolSyntaxError,
    StreamLostError,
)

from tareas.errors import Denied, QueueDiffers, Refusing
from tareas.rabbit.addresses import Address
from tareas.text import quoted

HOW_TO_START = " (start RabbitMQ: docker compose up -d rabbitmq, or make broker)"
ANSWER_TIMEOUT = 30  # seconds to wait for the answer to one call: pika alone would wait for ever

# What a call to pika may raise when the connection is bad. ValueError: a second timed process_data_events() on a
# dead connection; AssertionError: pika's own view of its state when the stream ends in the middle of a call.
LOST = (AMQPError, AMQPConnectorException, OSError, ValueError, AssertionError)

OTHER_HOST = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH


def is_denied(error: BaseException) -> bool:
    """Whether waiting and trying again cannot help: a wrong login, vhost or certificate."""
    final = (_refused_login, _refused_vhost, _forbidden, lambda e: isinstance(e, ssl.SSLCertVerificationError))
    return any(refused(cause) for cause in _causes(error) for refused in final)


def _refused_login(error: BaseException) -> bool:
    return isinstance(error, (ProbableAuthenticationError, AuthenticationError)) or (
        isinstance(error, ConnectionClosedByBroker) and error.reply_code == 403
    )


def _refused_vhost(error: BaseException) -> bool:
    return isinstance(error, ProbableAccessDeniedError) or (
        isinstance(error, ConnectionClosedByBroker) and error.reply_code == 530
    )


def _forbidden(error: BaseException) -> bool:
    return isinstance(error, ChannelClosedByBroker) and error.reply_code == 403


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
    at, secure = address.shown, address.parameters.ssl_options is not None
    known: list[tuple[Callable[[BaseException], bool], str]] = [
        (_refused_login, f"RabbitMQ at {at} refuses the login of user {quoted(address.user)}"
         " (check user and password in AMQP_URL or --url; guest may only log in from RabbitMQ's own machine)"),
        (_refused_vhost, f"RabbitMQ at {at} has no such vhost, or user {quoted(address.user)} may not use it"
         " (list them with rabbitmqctl list_vhosts)"),
        (_forbidden, f"RabbitMQ at {at} does not permit this to user {quoted(address.user)}: {_reply(error)}"
         " (rabbitmqctl set_permissions gives configure, write and read)"),
        (lambda e: isinstance(e, ssl.SSLCertVerificationError) and e.verify_code in OTHER_HOST, "the certificate of"
         f" {at} is for another host (write the host name that stands in it into the URL)"),
        (lambda e: isinstance(e, ssl.SSLCertVerificationError), f"the certificate of {at} is not trusted"
         " (name its authority with ?cafile=FILE in the URL)"),
        (lambda e: isinstance(e, ssl.SSLError), f"TLS with {at} failed (amqps:// needs RabbitMQ's TLS port, 5671 as a"
         " rule, and perhaps a client certificate: ?certfile=&keyfile=)"),
        (lambda e: isinstance(e, ConnectionRefusedError), f"nobody listens at {at}{HOW_TO_START}"),
        (lambda e: isinstance(e, socket.gaierror), f"the host of {at} is unknown (check the URL, or the network)"),
        (lambda e: isinstance(e, AMQPHeartbeatTimeout), f"no heartbeat from {at}: it, or the network, stands still"),
        # ConnectionOpenAborted: what SelectConnection makes of its own timeout.
        (lambda e: isinstance(e, (AMQPConnectorStackTimeout, ConnectionOpenAborted, TimeoutError)),
         f"no answer from {at} in time (is it RabbitMQ's AMQP port, 5672 as a rule? is a firewall between?)"),
        (lambda e: isinstance(e, ConnectionClosedByBroker), _closed_by_broker(error, at)),
        (lambda e: isinstance(e, IncompatibleProtocolError) and "stream" in str(e).lower(),
         # With TLS 1.3 a client learns only after the handshake that its certificate is missing or not trusted.
         f"{at} closed the connection right after the TLS handshake (it may want a client certificate of an authority"
         " that it trusts: ?certfile=FILE&keyfile=FILE)" if secure else
         f"{at} closed the connection before it spoke AMQP (still starting, no RabbitMQ, or its TLS port, which wants"
         " amqps://?)"),
        (lambda e: isinstance(e, (IncompatibleProtocolError, ProtocolSyntaxError)),
         f"{at} does not speak AMQP (5672 is RabbitMQ's port as a rule; 15672 is its web page)"),
        (lambda e: isinstance(e, StreamLostError) and "no answer" in str(e), f"{at} did not answer a call within"
         f" {ANSWER_TIMEOUT} s (a queue without its majority?)"),
        (lambda e: isinstance(e, Refusing), f"RabbitMQ at {at} refuses one task after the other, and takes its time for"
         " each: trying another connection"),
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


def _reply(error: BaseException) -> str:
    told = (e.reply_text for e in _causes(error) if isinstance(e, ChannelClosedByBroker))
    return quoted(next(told, ""), quotes=False)


def _os_reason(error: BaseException) -> str:
    return next((str(e.strerror) for e in _causes(error) if isinstance(e, OSError) and e.strerror), "")


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
