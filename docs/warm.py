"""Kernels for the demos, forked from one process that has torch and more imported already.

Each demo would import the same for seconds. `kernels` starts that process, and lets Jupyter find a
kernel that asks it for a copy of itself. All else of a copy is its own.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Thread

IMPORTED = "ipykernel.kernelapp", "pandas", "plotly.graph_objects", "transformer_lens"


@contextmanager
def kernels() -> Iterator[None]:
    """While this is open, Jupyter's kernel ``python3`` is such a copy."""
    with tempfile.TemporaryDirectory() as folder:
        address, spec = f"{folder}/socket", Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        asks = [sys.executable, __file__, "ask", address, "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": asks, "display_name": "warm", "language": "python"}))
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        serves = [sys.executable, __file__, "serve", address]
        with subprocess.Popen(serves, stdin=subprocess.PIPE) as warm:  # ends when this is closed
            while not Path(address).exists():  # Jupyter would not wait as long on a busy machine
                if warm.poll() is not None:
                    raise RuntimeError("what kernels are forked from did not begin: see above")
                time.sleep(0.1)
            yield


def ask(address: str, *arguments: str) -> None:
    """Have a kernel started, and end when it does. It ends when this does, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter's, before it ends a kernel
    with socket.socket(socket.AF_UNIX) as server:
        while server.connect_ex(address):
            time.sleep(0.1)
        names = dict(os.environ)
        request = {"arguments": arguments, "folder": os.getcwd(), "names": names}
        server.sendall(json.dumps(request).encode() + b"\n")
        server.recv(1)


def serve(address: str) -> None:
    """Fork a kernel for whoever asks, until the standard input ends."""
    del sys.path[0]  # where this file is
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # read once, when this is imported
    for name in IMPORTED:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for kernels
    with socket.socket(socket.AF_UNIX) as asked:
        asked.bind(address)
        asked.listen()
        while select.select([0, asked], [], [])[0] == [asked]:
            one, _ = asked.accept()
            if not os.fork():
                asked.close()
                return be_kernel(one)
            one.close()


def be_kernel(asker: socket.socket) -> None:
    """Do what Jupyter's own command would, as if begun by who asked."""
    with asker.makefile() as file:
        request = json.loads(file.readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["names"])
    quiet = "--IPKernelApp.log_level=ERROR"  # it warns of each that TCP is not encrypted
    sys.argv = ["ipykernel_launcher", *request["arguments"], quiet]

    def end_with(asker: socket.socket) -> None:
        asker.recv(1)
        os._exit(1)

    Thread(target=end_with, args=[asker], daemon=True).start()

    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


if __name__ == "__main__":
    {"ask": ask, "serve": serve}[sys.argv[1]](*sys.argv[2:])
