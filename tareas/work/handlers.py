"""What a worker does with a task: simulate work, or call a function of the user's."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from tareas.errors import NothingToSimulate, SimulatedFailure, WrongCall
from tareas.text import LONGEST_TEXT, masked, printable, quoted

Handler = Callable[[dict[str, Any]], Any]
HERE = os.path.dirname(os.path.abspath(__file__))
# Between a worker's `try` and a handler.
OURS = {os.path.join(HERE, "handlers.py"), os.path.join(HERE, "forks.py"),
        os.path.join(os.path.dirname(os.path.dirname(HERE)), "worker.py")}  # fmt: skip


def simulate(task: dict[str, Any], attempt: int) -> None:
    """Sleep `complexity` seconds; in the first `fail_attempts` attempts raise, in the first `crash_attempts` die."""
    if "complexity" not in task:
        raise NothingToSimulate('the task has no "complexity": SECONDS, and this worker no --handler')
    if task["complexity"]:  # sleep(0) still costs a system call and the other threads' turn
        time.sleep(task["complexity"])
    if attempt <= task.get("crash_attempts", 0):
        os._exit(70)  # as a segmentation fault would: no clean-up, no goodbye to RabbitMQ
    if attempt <= task.get("fail_attempts", 0):
        raise SimulatedFailure(f"attempt {attempt} fails, as the task asks")


def load(name: str) -> Handler:
    """The function named by ``module:function``, looked up from the current folder first.

    Raises WrongCall when there is none, when its module raises, when it is a coroutine function or takes no task.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise WrongCall(f"--handler {quoted(name)} is not of the form module:function")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            where = f"in {quoted(os.getcwd())} or PYTHONPATH"
            hint = f" (its name has no .py: {quoted(name.replace('.py:', ':'))})" if module_name.endswith(".py") else ""
            raise WrongCall(f"--handler: no module {quoted(module_name)} {where}{hint}") from None
        raise WrongCall(f"--handler: module {quoted(module_name)} needs {quoted(str(error.name))}, which is not "
                        "installed") from None
    except (Exception, SystemExit) as error:
        what = quoted(masked(describe(error)), quotes=False, limit=500)
        raise WrongCall(f"--handler: module {quoted(module_name)} raises when imported: {what}") from None
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise WrongCall(f"--handler: module {quoted(module_name)} has no {quoted(attribute)}") from None
    if not callable(found):
        raise WrongCall(f"--handler: {quoted(name)} is not a function")
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
        raise WrongCall(f"--handler: {quoted(name)} is a coroutine or generator: calling it would do nothing"
                        " (wrap it in a function that calls asyncio.run)")
    _check_takes_a_task(found, name)
    handler: Handler = found
    return handler


def _check_takes_a_task(found: Callable[..., Any], name: str) -> None:
    """Raise WrongCall if it can't be called with one argument: each task would fail, and end as a dead letter."""
    try:
        signature = inspect.signature(found, follow_wrapped=False)  # a decorator may give what is missing
    except (TypeError, ValueError):  # some functions of C do not say
        return
    try:
        signature.bind({})
    except TypeError:
        taken = quoted(str(signature), quotes=False)
        raise WrongCall(f"--handler: {quoted(name)} must take one argument, the task; it takes {taken}") from None


def refuse_unfinished(result: Any) -> None:
    """Raise TypeError if the result is a coroutine or generator: nobody runs it, so the work is not done."""
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()  # or Python warns on stderr that it was never awaited
        raise TypeError("the handler returned a coroutine or generator: its work was not done (use asyncio.run in it)")


def describe(error: BaseException, place: bool = False) -> str:
    """The error in one line that is safe to show and to send, whatever its own __str__ does.

    place: with the line of the handler's file that it left.
    """
    where = printable(_place(error)) if place else ""
    try:
        text = printable(" ".join(str(error).split()))
    except Exception:
        text = "(its text cannot be shown)"
    kind = printable(type(error).__name__)
    return (f"{kind}: {text}" if text else kind)[: LONGEST_TEXT - len(where)] + where


def _place(error: BaseException) -> str:
    """` (jobs.py, line 12)`: the last line of the first file that is not ours; empty if there is none."""
    file, line, trace = "", 0, error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name == file or (not file and os.path.abspath(trace.tb_frame.f_globals.get("__file__") or "") not in OURS):
            file, line = name, trace.tb_lineno
        trace = trace.tb_next
    return f" ({os.path.basename(file)}, line {line})" if file else ""
