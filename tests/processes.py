"""Processes for the tests that kill one, or have two at once."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

# They are forked from a server. A copy of the tests' own process would share tqdm's lock with it:
# killed while it holds that, it would make the tests wait forever. So would other threads' locks.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["mlp_interp", "transformer_lens"])


def begin(function: Callable[..., Any], *args: Any, make: Any = None, **kwargs: Any) -> BaseProcess:
    """A process that begins to call a function as this returns.

    Args:
        function: What it calls.
        args: With what.
        make: Gives the first argument, before it begins: not every model can be sent.
        kwargs: Other arguments.
    """
    here, there = _server.Pipe(duplex=False)
    process = _server.Process(target=_call, args=(there, make, function, args, kwargs), daemon=True)
    process.start()
    assert here.poll(60), "the process does not begin"
    return process


def end(process: BaseProcess) -> int | None:
    """Wait for a process, a minute at most; its exit code."""
    process.join(60)
    assert process.exitcode is not None, "the process does not end"
    return process.exitcode


def _call(there: Connection, make: Any, function: Any, args: Any, kwargs: Any) -> None:
    made = [] if make is None else [make()]
    there.send("ready")
    function(*made, *args, **kwargs)
