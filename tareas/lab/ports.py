"""Ports of this machine for private nodes: free ones, claimed ones, and who answers at one."""

import random
import re
import socket

from tareas.errors import NodeTrouble

HOST = "127.0.0.1"
PORTS = range(21000, 31000)  # below the ports that Linux and macOS hand out to clients by themselves


def greet(port: int) -> str | None:
    """The version of the RabbitMQ that answers at this port; "" for another AMQP broker, None if nobody answers.

    Source: AMQP 0-9-1, 2.2.4: the client sends the protocol header, the server answers with connection.start, whose
    server properties carry `version` as a long string.
    """
    try:
        with socket.create_connection((HOST, port), timeout=5) as peer:
            peer.sendall(b"AMQP\x00\x00\x09\x01")
            answer = b""
            while len(answer) < 7 or len(answer) < 7 + int.from_bytes(answer[3:7], "big"):
                more = peer.recv(65536)
                if not more or not (answer + more).startswith(b"\x01\x00\x00"):
                    return None
                answer += more
    except OSError:
        return None
    found = re.search(rb"\x07versionS\x00\x00\x00.([0-9][0-9A-Za-z.+~-]*)", answer, re.DOTALL)
    return found[1].decode() if found else ""


class Claim:
    """A free TCP port that no other private node takes, in this process or another, until it is released.

    The claim is a UDP socket bound to the same number. RabbitMQ has no use for that; the operating system gives it to
    one process only, and takes it back when that process dies.
    """

    def __init__(self, port: int | None = None) -> None:
        candidates = [port] if port is not None else random.sample(PORTS, len(PORTS))
        for candidate in candidates:
            claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                claim.bind((HOST, candidate))
                if port is None and not free(candidate):
                    raise OSError
            except OSError:
                claim.close()
                continue
            self.port, self._socket = candidate, claim
            return
        raise NodeTrouble(f"no free port: {port or f'none of {PORTS.start} to {PORTS.stop}'}")

    def release(self) -> None:
        self._socket.close()


def free(port: int) -> bool:
    """Whether a server could listen at this port of the loopback interface now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as RabbitMQ does: a port in TIME_WAIT is free
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
