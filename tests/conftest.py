"""Fixtures that several test modules share."""

import hashlib
import http.server
import os
import sys
import threading
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from benchmark_helpers import REPO, SMALL, trained_for
from fork_server import ForkServer
from helpers import CHILD_HEADER
from huggingface_hub import constants, file_download, hf_api
from huggingface_hub.utils import _http
from local_hub import LocalHub

from dattri.benchmark import datasets, settings
from dattri.benchmark.build import build_benchmark
from dattri.benchmark.hub import publish_benchmark

SLOWEST = (  # parts of the names of what takes more than 15 seconds, the slowest first; their tests stay together
    "tutorials/command", "tutorials/clusters", "published.ipynb", "tutorials/removal", "tutorials/wrong_labels",
    "test_quickstart", "tutorials/scikit_learn", "plot.ipynb", "tutorials/leave_one_out", "tutorials/benchmarks",
    "test_readme_prints", "00_ground_truth.ipynb", "demo.ipynb", "04_hub.ipynb", "index.ipynb", "[ray]", "[dask]",
    "06_retrain.ipynb",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Let each worker begin with some of the slowest tests, so that none is left to run alone at the end.

    The list is dealt out in equal chunks, one for each worker; who has finished takes from the end of another's.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if not workers:
        return
    slow, rest = [[] for _ in SLOWEST], []
    for item in items:
        next((group for part, group in zip(SLOWEST, slow, strict=True) if part in item.nodeid), rest).append(item)
    ordered = []
    for number in range(workers):
        size = (len(items) - len(ordered)) // (workers - number)
        first = [item for group in slow[number::workers] for item in group]
        count = max(0, size - len(first))
        ordered += first + rest[:count]
        rest = rest[count:]
    items[:] = ordered + rest


def forget_connections():
    """Drop what the client and transformers keep of the hub they talked to last; they make it anew when needed."""
    reset = huggingface_hub.close_session if hasattr(huggingface_hub, "close_session") else _http.reset_sessions
    reset()  # the latter before version 1
    if (module := sys.modules.get("transformers.utils.hub")) is not None:
        module._hf_api = None


@pytest.fixture(scope="session")
def fork_server():
    """Where processes are forked that need not import torch first."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def start_child(fork_server):
    """Start code in a process of its own, with the helpers and a `path` argument."""
    return lambda code, *arguments, **options: fork_server.start(CHILD_HEADER + code, *arguments, **options)


@pytest.fixture
def run_child(fork_server):
    """Run code as `start_child` does, to its end: its output, or the test fails with its errors."""
    return lambda code, *arguments, **options: fork_server.run(CHILD_HEADER + code, *arguments, **options)


@pytest.fixture
def one_thread():
    """Equal thread counts here and in the child processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def with_threads():
    """Calls a function with a number of torch threads."""
    before = torch.get_num_threads()

    def call(count, function):
        torch.set_num_threads(count)
        try:
            return function()
        finally:
            assert torch.get_num_threads() == count
            torch.set_num_threads(before)

    return call


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine that `huggingface_hub` and transformers use for one test, here and in child processes."""
    with LocalHub() as running:
        settings = {
            "HF_ENDPOINT": running.address,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN": running.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        read_at_import = {
            "ENDPOINT": running.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": settings["HF_HUB_CACHE"],
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
            "HF_HUB_OFFLINE": False,
            "DOWNLOAD_CHUNK_SIZE": 256,  # a download that is cut resumes after its last whole chunk
        }
        for name, value in read_at_import.items():
            monkeypatch.setattr(constants, name, value, raising=name != "HF_HUB_DISABLE_XET")  # not in older versions
            if hasattr(file_download, name):  # which have copies of some
                monkeypatch.setattr(file_download, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", running.address)
        for module in (file_download, _http):  # both use the clock for nothing but the pause before they try again
            monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: None))
        forget_connections()
        yield running
        forget_connections()


@pytest.fixture
def offline(hub, monkeypatch):
    """A function that turns HF_HUB_OFFLINE on or off, as if it were set before the start."""

    def turn(on=True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", on)
        forget_connections()  # before version 1 of the client, these decide

    return turn


@pytest.fixture
def registry(monkeypatch):
    """A registry of settings of its own for each test."""
    monkeypatch.setattr(settings, "_REGISTRY", dict(settings._REGISTRY))


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The small benchmark, built; nothing may be changed in it."""
    path = tmp_path_factory.mktemp("built")
    build_benchmark(SMALL, path)
    return path


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """The build of a changed training function, with nothing there before; nothing may be changed in it."""
    path = tmp_path_factory.mktemp("fresh")
    build_benchmark(trained_for(9), path)
    return path


@pytest.fixture
def on_hub(hub, registry, built):
    """Files of the small benchmark, which are on the hub; its setting is registered."""
    settings.register_setting(SMALL)
    publish_benchmark(built, REPO)
    hub.requests.clear()
    return hub.files(REPO)


@pytest.fixture
def serve(monkeypatch):
    """Put files on a server and make sources of them, their hashes included; gives a list of the requests."""
    content, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path not in content:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content[self.path])))
            self.end_headers()
            self.wfile.write(content[self.path])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"

    def add(key, data, *, mirrors=1, wrong=False):
        name = datasets.SOURCES[key].name
        content["/" + name] = data[:-1] if wrong else data
        urls = (*(f"{address}missing{number}/{name}" for number in range(mirrors - 1)), address + name)
        source = datasets.Source(name, urls, hashlib.sha256(data).hexdigest())
        monkeypatch.setitem(datasets.SOURCES, key, source)
        return source

    yield add, asked
    server.shutdown()
    server.server_close()
