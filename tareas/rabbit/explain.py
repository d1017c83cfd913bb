"""What it means when RabbitMQ cannot be used: one exception of ours, and in it one line with the way out.

Only RabbitMQ's own words are a refusal. A connection that ends without them is broken: it is tried again, wherever it
was cut. (pika guesses that a stream which ends amid the handshake means a wrong login or vhost. A RabbitMQ that starts,
or a balancer without a node, ends it as well.)
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout
from pika.exceptions import (
    AMQPConnectionError,
    AMQPHeartbeatTimeout,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ConnectionOpenAborted,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    ProtocolSyntaxError,
    StreamLostError,
)

from tareas.errors import Broken, Denied, Lost, QueueDiffers, Refused, Trouble
from tareas.rabbit.addresses import Address
from tareas.text import quoted

HOW_TO_START = " (start RabbitMQ: docker compose up -d rabbitmq, or make broker)"
# Seconds without a byte that moves, after which an answer is not waited for: RabbitMQ never answers for a queue without
# its majority, while heartbeats go on.
ANSWER_TIMEOUT = 30.0

# https://www.rabbitmq.com/docs/access-control, https://www.rabbitmq.com/docs/vhosts#limits
FORBIDDEN, NOT_FOUND, LOCKED, PRECONDITION_FAILED, NOT_ALLOWED = 403, 404, 405, 406, 530
PASSES = re.compile(r"limit|is down", re.IGNORECASE)  # in the words of a 530: a slot frees itself, a vhost comes up

# What pika makes of a stream that ends then.
AMID_HANDSHAKE = (IncompatibleProtocolError, ProbableAuthenticationError, ProbableAccessDeniedError, StreamLostError)

CANCELLED = "RabbitMQ cancelled the consumer (queue deleted, or a task longer than RabbitMQ's consumer_timeout?)"

EXPIRED, NOT_YET = 10, 9  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED and _NOT_YET_VALID
OTHER_HOST = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH


def meaning(error: BaseException, address: Address) -> Lost | Denied:
    """What ended a connection: Denied if trying again is of no use, else Lost (or Broken, a kind of it)."""
    causes, text = list(_causes(error)), explain(error, address)
    if any(_refuses(cause) or isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return Denied(text)
    return (Broken if any(isinstance(cause, AMID_HANDSHAKE) for cause in causes) else Lost)(text)


def channel_closed(error: ChannelClosedByBroker, address: Address, declaring: str | None = None) -> Exception:
    """What ended a channel. declaring: the queue, if that is what RabbitMQ answers to."""
    code, words = error.reply_code, _words(error.reply_text)
    if code == PRECONDITION_FAILED and "larger than" in error.reply_text:  # of a message
        return Refused(f"RabbitMQ at {address.shown} closed the channel: {words}", code, too_large=True)
    if code == FORBIDDEN and "exclusive use" not in error.reply_text:
        what = f"declare queue {quoted(declaring)}" if declaring else "do this"
        return Denied(f"RabbitMQ at {address.shown} does not permit user {quoted(address.user)} to {what}: {words}"
                      " (rabbitmqctl set_permissions gives configure, write and read)")
    if declaring is None:
        return Refused(f"RabbitMQ at {address.shown} closed the channel: {words}", code)
    name = quoted(declaring)
    if code == LOCKED:
        return QueueDiffers(f"queue {name}: {words} (it belongs to another connection: use --queue NAME)")
    if code == PRECONDITION_FAILED and "inequivalent arg" in error.reply_text:
        return QueueDiffers(f"queue {name} exists with other arguments ({words}): use --queue NAME, or empty the old "
                            "queue and delete it")
    if code == PRECONDITION_FAILED:  # a limit of queues, say: RabbitMQ's words alone
        return Trouble(f"queue {name} cannot be declared: {words}")
    return Refused(f"queue {name} cannot be declared: {words}", code)


def no_answer(address: Address) -> Lost:
    """Why we end a connection that gives none."""
    return Lost(f"{address.shown} did not answer within {ANSWER_TIMEOUT:g} s (a queue without its majority?)")


def _refuses(error: BaseException) -> bool:
    """Whether RabbitMQ says so itself, and for good."""
    if not isinstance(error, ConnectionClosedByBroker):
        return False
    code: int = error.reply_code
    return code == FORBIDDEN or (code == NOT_ALLOWED and not PASSES.search(error.reply_text))


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
    causes = list(_causes(error))
    certificate = next((e for e in causes if isinstance(e, ssl.SSLCertVerificationError)), None)
    if certificate is not None:
        return _about_certificate(certificate, at)
    closed = next((e for e in causes if isinstance(e, ConnectionClosedByBroker)), None)
    if closed is not None:
        return _about_close(closed, address)
    known: list[tuple[Callable[[BaseException], bool], str]] = [
        (lambda e: isinstance(e, ssl.SSLError), f"TLS with {at} failed (amqps:// needs RabbitMQ's TLS port, 5671 as a"
         " rule, and perhaps a client certificate: ?certfile=&keyfile=)"),
        (lambda e: isinstance(e, ConnectionRefusedError), f"nobody listens at {at}{HOW_TO_START}"),
        (lambda e: isinstance(e, socket.gaierror), f"the host of {at} is unknown (check the URL, or the network)"),
        (lambda e: isinstance(e, AMQPHeartbeatTimeout), f"no heartbeat from {at}: it, or the network, stands still"),
        # ConnectionOpenAborted: what SelectConnection makes of its own timeout.
        (lambda e: isinstance(e, (AMQPConnectorStackTimeout, ConnectionOpenAborted, TimeoutError)),
         f"no answer from {at} in time (is it RabbitMQ's AMQP port, 5672 as a rule? is a firewall between?)"),
        (lambda e: isinstance(e, (ProbableAuthenticationError, ProbableAccessDeniedError)),
         f"{at} ended the connection amid the login, without a reason (RabbitMQ starts or stops?)"),
        (lambda e: isinstance(e, IncompatibleProtocolError) and "stream" in str(e).lower(),
         # With TLS 1.3 a client learns only after the handshake that its certificate is missing or not trusted.
         f"{at} closed the connection right after the TLS handshake (it may want a client certificate of an authority"
         " that it trusts: ?certfile=FILE&keyfile=FILE)" if secure else
         f"{at} closed the connection before it spoke AMQP (still starting, no RabbitMQ, or its TLS port, which wants"
         " amqps://?)"),
        (lambda e: isinstance(e, (IncompatibleProtocolError, ProtocolSyntaxError)),
         f"{at} does not speak AMQP (5672 is RabbitMQ's port as a rule; 15672 is its web page)"),
        (lambda e: isinstance(e, (StreamLostError, ConnectionResetError, BrokenPipeError)),
         f"the connection to {at} broke"),
        (lambda e: isinstance(e, OSError) and bool(e.strerror), f"{at} cannot be reached: {_os_reason(error)}"),
        (lambda e: isinstance(e, AMQPConnectionError), f"the connection to {at} ended"),
    ]
    for matches, message in known:
        if any(matches(cause) for cause in causes):
            return message
    return f"the connection to {at} failed: {type(error).__name__}"


def _about_certificate(error: ssl.SSLCertVerificationError, at: str) -> str:
    if error.verify_code in OTHER_HOST:
        return f"the certificate of {at} is for another host (write the host name that stands in it into the URL)"
    if error.verify_code == EXPIRED:
        return f"the certificate of {at} has expired (RabbitMQ needs a new one; or this machine's clock is wrong)"
    if error.verify_code == NOT_YET:
        return f"the certificate of {at} is not valid yet (is this machine's clock right?)"
    return f"the certificate of {at} is not trusted (name its authority with ?cafile=FILE in the URL)"


def _about_close(error: ConnectionClosedByBroker, address: Address) -> str:
    at, words, user = address.shown, _words(error.reply_text), quoted(address.user)
    if error.reply_code == FORBIDDEN:
        return (f"RabbitMQ at {at} refuses the login of user {user}: {words} (check user and password in AMQP_URL or"
                " --url; guest may only log in from RabbitMQ's own machine)")
    if error.reply_code == NOT_ALLOWED and _refuses(error):
        return (f"RabbitMQ at {at} has no such vhost, or user {user} may not use it: {words} (list them with"
                " rabbitmqctl list_vhosts)")
    return f"RabbitMQ at {at} closed the connection: {words}"


def _words(text: str) -> str:
    """What RabbitMQ said."""
    return quoted(text, quotes=False, limit=400)


def _os_reason(error: BaseException) -> str:
    return next((str(e.strerror) for e in _causes(error) if isinstance(e, OSError) and e.strerror), "")
