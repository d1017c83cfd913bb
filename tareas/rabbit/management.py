"""RabbitMQ's management API: what AMQP does not tell about a queue (https://www.rabbitmq.com/docs/management)."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tareas.errors import Trouble, WrongCall
from tareas.rabbit.addresses import Address
from tareas.text import quoted

TIMEOUT = 10  # seconds, below the heartbeat: the AMQP connection waits meanwhile


def figures(url: str, address: Address, name: str) -> dict[str, Any]:
    """How many of the queue's tasks are unacknowledged, and by which consumers they are held.

    url: http(s)://[user:password@]host:port. Without a user in it, user and password are those of the AMQP address; the
    vhost always is. Returns {"unacknowledged": int, "workers": [consumer tags]}; the API is some seconds late.
    Raises WrongCall for a URL that is none, Trouble when the API does not answer with these figures. Neither shows a
    password.
    """
    try:
        parts = urlsplit(url)
        where = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WrongCall("--management is not a URL like http://localhost:15672")
    where = quoted(where, quotes=False)
    login = address.parameters.credentials
    user = unquote(parts.username or login.username)
    password = unquote(parts.password or "") if parts.username else login.password
    vhost = quote(address.parameters.virtual_host, safe="")
    base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    request = urllib.request.Request(
        f"{base}/api/queues/{vhost}/{quote(name, safe='')}",
        headers={"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            facts = json.load(answer)
        return {
            "unacknowledged": int(facts.get("messages_unacknowledged", 0)),
            "workers": sorted(str(consumer["consumer_tag"]) for consumer in facts.get("consumer_details", [])),
        }
    except urllib.error.HTTPError as error:
        hint = {401: " (check user and password)", 404: " (no such queue or vhost there)"}.get(error.code, "")
        raise Trouble(f"the management API at {where} answers {error.code}{hint}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise Trouble(f"the management API at {where} cannot be reached: {quoted(str(reason), quotes=False)}"
                      " (is the plugin on? rabbitmq-plugins enable rabbitmq_management)") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Trouble(f"what answers at {where} is not RabbitMQ's management API") from None
