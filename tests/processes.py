"""Processes for the tests that kill one, or have two at once."""

import multiprocessing
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle

# They are forked from a server. A copy of the tests' own process would share tqdm's lock with it:
# killed while it holds that, it would make the tests wait forever. So would other threads' locks.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["mlp_interp", "transformer_lens"])


def begin(function: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseProcess:
    """A process that begins to call a function as this returns; models can be given to it."""
    call = cloudpickle.dumps((function, args, kwargs))
    here, there = _server.Pipe(duplex=False)
    process = _server.Process(target=_call, args=(there, call), daemon=True)
    process.start()
    assert here.poll(60), "the process does not begin"
    return process


def sent(model: Any) -> Any:
    """A model as a process gets it: a copy, which does not say how it was loaded."""
    return pickle.loads(cloudpickle.dumps(model))


def end(process: BaseProcess) -> int | None:
    """Wait for a process, a minute at most; its exit code."""
    process.join(60)
    assert process.exitcode is not None, "the process does not end"
    return process.exitcode


def _call(there: Connection, call: bytes) -> None:
    function, args, kwargs = pickle.loads(call)
    there.send("ready")
    function(*args, **kwargs)
