"""Every exception of ours that crosses a module."""

from __future__ import annotations


class Trouble(Exception):
    """There is no way on. The text says in one line what, where and how to mend it. `status`: the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class WrongCall(Trouble):
    """The command, or a file given to it, is wrong: mend it and call again."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message, status)


# -- a task, and the input that it comes from


class InvalidTask(ValueError):
    """The body is no task. The text says in one line what is wrong and how to mend it. `task_id`: its id, None if it
    has none that can be used."""

    def __init__(self, text: str, task_id: str | None = None) -> None:
        super().__init__(text)
        self.task_id = task_id


class BadLine(WrongCall):
    """The input is of no use from here on: a line is no task (status 2), or it cannot be read (status 1)."""


# -- RabbitMQ


class Lost(Exception):
    """The connection to RabbitMQ is over; trying again may help. The text says why, in one line."""


class Unreachable(Lost):
    """No RabbitMQ answers at any of the addresses; it may later."""


class Broken(Lost):
    """Somebody answered, and the stream ended. If that was amid the handshake, the next try may get through."""


class ConsumerGone(Lost):
    """RabbitMQ sends us nothing any more, though the connection lives."""


class Refused(Lost):
    """RabbitMQ closed the channel, in answer to what we had sent. code: RabbitMQ's own. too_large: it takes no message
    of that size."""

    def __init__(self, message: str, code: int, too_large: bool = False) -> None:
        super().__init__(message)
        self.code, self.too_large = code, too_large


class Nacked(Exception):
    """RabbitMQ does not store a message: its queue is full, or has lost its leader."""


class Unroutable(Exception):
    """No queue takes a message: there is none of that name."""


class Denied(Trouble):
    """RabbitMQ answers, and does not let us in, or do what we ask: waiting will not help."""


class QueueDiffers(Trouble):
    """The queue exists with other arguments than ours."""


class NoSuchLetter(Trouble):
    """No dead letter has that id."""


class NotReplayed(Trouble):
    """The queue did not take the task back; its dead letter stays."""


# -- what a worker does with a task


class Reject(Exception):
    """A handler raises this to say that trying again is useless: the task goes to the dead-letter queue at once."""


class SimulatedFailure(Exception):
    """The task asked for it with fail_attempts."""


class NothingToSimulate(Exception):
    """A task for a handler came to a worker without one. It may be the wrong worker. So the task is given back, and
    becomes a dead letter only after all its attempts."""


class Interrupted(BaseException):
    """The first signal, raised only where there is nothing to finish: while a connection is being made."""


class Abandoned(BaseException):
    """The second signal, or the end of the grace time; `signum`: of the signal to exit by. A BaseException: a handler's
    `except Exception` lets it by."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


# -- what happened, and a RabbitMQ of one's own


class InvalidLog(ValueError):
    """A line that is no event, in a place where no killed process can have left it. `log`: its file, as it is shown."""

    def __init__(self, log: str, line: int, reason: str) -> None:
        super().__init__(f"{log}, line {line}: {reason} (an audit reads what --json prints)")
        self.log, self.line, self.reason = log, line, reason


class NodeTrouble(Trouble):
    """A private RabbitMQ node did not start, stop or answer."""
