"""Fixtures that several test modules share."""

import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from local_hub import LocalHub


def forget_connections():
    """Drop what the client and transformers keep of the hub they talked to last; they make it anew when needed."""
    huggingface_hub.close_session()
    if (module := sys.modules.get("transformers.utils.hub")) is not None:
        module._hf_api = None


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
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", running.address)
        for module in (file_download, _http):  # both use the clock for nothing but the pause before they try again
            monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: None))
        forget_connections()
        yield running
        forget_connections()
