"""Processes for tests, forked from one that has imported torch, scipy and matplotlib, which takes five seconds.

In all else they are like a fresh `python -c CODE ARGUMENTS`: the code is at the top of `__main__`, the end is the
interpreter's own, nothing of `dattri` is imported, and random numbers begin where they always do.
"""

import gc
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PRELOADED = (
    "torch._dynamo", "torch.func", "numpy", "scipy.stats", "sklearn.datasets", "sklearn.metrics", "joblib",
    "cloudpickle", "filelock", "matplotlib.pyplot", "nbdev.test", "pooch", "pytest", "tqdm.auto", "typer", "yaml",
)  # fmt: skip


class ForkServer:
    """A process that forks others, and ends with the one that started it."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="forks-")
        self.address = str(Path(self.folder.name) / "socket")
        self.count = 0
        here = str(Path(__file__).parent)
        code = f"import sys; sys.path.insert(0, {here!r}); from fork_server import serve; exec(serve({self.address!r}))"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    def close(self):
        """End the server; what it has forked goes on."""
        self.process.communicate(timeout=60)
        self.folder.cleanup()

    def start(self, code, *arguments, cwd=None, new_session=False):
        """Run code in a new process with the environment of this one."""
        self.count += 1
        outputs = [str(Path(self.folder.name) / f"{self.count}.{name}") for name in ("out", "err")]
        for output in outputs:
            Path(output).touch()
        job = {
            "code": code, "arguments": [*map(str, arguments)], "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ), "outputs": outputs, "new_session": new_session,
        }  # fmt: skip
        return Fork(self.address, job)

    def run(self, code, *arguments, timeout=240, **options):
        """Run code in a new process to its end; its output, or the test fails with its errors."""
        with self.start(code, *arguments, **options) as process:
            process.wait(timeout)
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout


class Fork:
    """A process of a fork server, with what tests need of `subprocess.Popen`; its output may be read at any time."""

    def __init__(self, address, job):
        self._outputs = [Path(output) for output in job["outputs"]]
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self._socket.sendall(json.dumps(job).encode() + b"\n")
        self._replies = self._socket.makefile("r")
        self.pid = int(self._replies.readline())
        self.returncode = None

    @property
    def stdout(self):
        """What the process has written so far."""
        return self._outputs[0].read_text()

    @property
    def stderr(self):
        """The errors that the process has written so far."""
        return self._outputs[1].read_text()

    def read_line(self, number, timeout=60):
        """The line of that number, from 0, of what the process writes; waits for it."""
        deadline = time.monotonic() + timeout
        while self.stdout.count("\n") <= number:
            assert self.poll() is None and time.monotonic() < deadline, self.stdout + self.stderr
            time.sleep(0.01)
        return self.stdout.splitlines()[number]

    def poll(self):
        """Exit status, or None while the process lives."""
        if self.returncode is None and select.select([self._socket], [], [], 0)[0]:
            self.returncode = int(self._replies.readline())
        return self.returncode

    def wait(self, timeout=240):
        """Exit status, as soon as the process has ended."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired("a fork", timeout, self.stdout, self.stderr)
            select.select([self._socket], [], [], 1)
        return self.returncode

    def send_signal(self, number):
        """Send a signal to a process that lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """End the process at once."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.wait()
        self._replies.close()
        self._socket.close()


def serve(address):
    """Fork a process for every connection; this returns, with the code to run, in these alone."""
    for name in PRELOADED:
        __import__(name)
    gc.collect()
    gc.freeze()  # else the first collection of a child would copy all pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            if sys.stdin in select.select([server, sys.stdin], [], [])[0]:
                os._exit(0)  # whoever started this process has closed its end, or has died
            connection, _ = server.accept()
            if os.fork() == 0:
                break
            connection.close()
    return wait_for_fork(connection)


def wait_for_fork(connection):
    """Fork once more; the first process reports on the second, which gets its code from here."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("r") as lines:
        job = json.loads(lines.readline())
    child = os.fork()
    if child:
        try:
            connection.sendall(f"{child}\n".encode())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            connection.sendall(f"{status}\n".encode())
        finally:  # whoever asked may be gone
            os._exit(0)
    connection.close()
    return become(job)


def become(job):
    """Be a new process, with its own streams, folder, environment and random numbers; the code it is to run."""
    for number, output in enumerate([os.devnull, *job["outputs"]]):
        stream = os.open(output, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(stream, number)
        os.close(stream)
    if job["new_session"]:
        os.setsid()
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv[1:] = job["arguments"]
    random.seed(0)
    sys.modules["numpy"].random.seed(0)
    return compile(job["code"], "<string>", "exec")
