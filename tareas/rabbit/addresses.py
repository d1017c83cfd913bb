"""Where RabbitMQ is: from URLs to what pika needs to reach it, and what may be shown of that (never a password)."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import pika

from tareas.errors import WrongCall
from tareas.text import quoted

DEFAULT_URL = "amqp://guest:guest@localhost:5672/%2F"
HEARTBEAT = 20  # seconds; RabbitMQ's documentation recommends 5 to 20: it bounds how long a frozen machine keeps a task
CONNECT_TIMEOUT = 10  # seconds for TCP, and again for TLS and AMQP together

TLS_OPTIONS = ("cafile", "certfile", "keyfile")
PIKA_OPTIONS = (
    "heartbeat", "socket_timeout", "stack_timeout", "blocked_connection_timeout", "channel_max", "frame_max",
)  # fmt: skip


@dataclass(frozen=True)
class Address:
    """One RabbitMQ: what to show of it (never the password), and pika's parameters to reach it."""

    shown: str
    user: str
    parameters: pika.ConnectionParameters


def default_url() -> str:
    """$AMQP_URL, or RabbitMQ's own defaults on this machine."""
    return os.environ.get("AMQP_URL") or DEFAULT_URL


def parse(text: str) -> list[Address]:
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
    try:
        parts.hostname.encode("idna")  # as the lookup of the name will do
    except UnicodeError:
        raise WrongCall(f"{where} has a host that no host is called: {quoted(parts.hostname)} {hint}") from None
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
        if os.path.isdir(path) or not os.access(path, os.R_OK):
            raise WrongCall(f"{where}: {name} {quoted(path)} is not a file that can be read")
    if "keyfile" in files and "certfile" not in files:
        raise WrongCall(f"{where}: keyfile needs a certfile")
    try:  # OpenSSL's own words ("[SSL] PEM lib") name neither the file nor the fault
        context = ssl.create_default_context(cafile=files.get("cafile"))
    except (ssl.SSLError, OSError):
        raise WrongCall(f"{where}: cafile {quoted(files.get('cafile', ''))} holds no certificate (as PEM)") from None
    try:
        if "certfile" in files:
            context.load_cert_chain(files["certfile"], files.get("keyfile"), password=lambda: "")
    except (ssl.SSLError, OSError):
        certificate, key = quoted(files["certfile"]), files.get("keyfile")
        what = f"keyfile {quoted(key)} is not the key of certfile {certificate}" if key else (
            f"certfile {certificate} does not hold a certificate and its key (one of its own goes after &keyfile=)")
        raise WrongCall(f"{where}: {what} (as PEM, the key without a password)") from None
    return pika.SSLOptions(context, host)


def parameters(address: Address, name: str) -> pika.ConnectionParameters:
    """pika's parameters for this address, with the name that RabbitMQ's management page shows for the connection."""
    result = address.parameters
    result.client_properties = {"connection_name": name, "product": "tareas distribuidas"}
    return result
