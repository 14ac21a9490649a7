"""Every notebook runs: its examples are the tests of the module it exports. Tutorials run in a real Jupyter kernel."""

import importlib.util
import os
import re
import tempfile

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient
from nbdev.config import get_config
from traitlets.config import Config

NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if not path.name.startswith("_"))
TUTORIALS = [path for path in NOTEBOOKS if path.parent.name == "tutorials"]
QUICKSTART = ROOT / "nbs" / "tutorials" / "quickstart.ipynb"
RUN = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
flags = get_config().tst_flags.split()
passed, seconds = test_nb(Path(sys.argv[1]), skip_flags=flags, force_flags=sys.argv[2].split(), basepath=sys.argv[3])
sys.exit(not passed)
"""


def with_name(path):
    """A notebook as it is called on the command line, with the marks of the engines that it starts."""
    marks = [pytest.mark.ray, pytest.mark.dask] if path.stem == "clusters" else []
    if path.stem == "other_libraries":
        absent = [name for name in ("captum", "trak", "kronfluence") if importlib.util.find_spec(name) is None]
        marks = [pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")]
    return pytest.param(path, id=str(path.relative_to(ROOT / "nbs")), marks=marks)


def forced_flags():
    """Flagged cells run too if NBDEV_FLAGS names their flag, e.g. NBDEV_FLAGS="cuda slow"."""
    return os.environ.get("NBDEV_FLAGS", "")


def sockets_in(folder):
    """Kernels that start at once may choose the same free port before either binds it; files of their own differ."""
    return Config() if os.name == "nt" else Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})


def run_in_kernel(path):
    """The notebook as a reader's Jupyter leaves it, after all cells without a flag; the first error is raised."""
    notebook = nbformat.read(path, as_version=4)
    skipped = set(get_config(ROOT / "settings.ini").tst_flags.split()) - set(forced_flags().split())
    flags = [set(re.findall(r"^#\|\s*(\w+)", cell.source, re.MULTILINE)) for cell in notebook.cells]
    notebook.cells = [cell for cell, named in zip(notebook.cells, flags, strict=True) if not named & skipped]
    where = {"metadata": {"path": str(path.parent)}}
    with tempfile.TemporaryDirectory() as folder:
        return NotebookClient(notebook, timeout=600, resources=where, config=sockets_in(folder)).execute()


@pytest.mark.parametrize("notebook", [with_name(path) for path in NOTEBOOKS if path not in TUTORIALS])
def test_notebook(notebook, fork_server):
    fork_server.run(RUN, notebook, forced_flags(), ROOT, cwd=ROOT, timeout=600)


@pytest.mark.parametrize("notebook", [with_name(path) for path in TUTORIALS if path != QUICKSTART])
def test_tutorial(notebook):
    run_in_kernel(notebook)


def test_quickstart_with_its_progress_bars():
    """What a reader sees: bars that end full, and nothing on stderr."""
    notebook = run_in_kernel(QUICKSTART)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    widgets = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    bars = [widget["state"] for widget in widgets if widget["model_name"] == "FloatProgressModel"]
    assert [bar["value"] for bar in bars] == [bar["max"] for bar in bars] == [40, 40, 20, 20]  # train, evaluate; twice
    assert len(shown) == len(bars)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
