"""Every notebook runs: its examples are the tests of the module it exports."""

import os

import pytest
from helpers import ROOT

NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if not path.name.startswith("_"))
RUN = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
flags = get_config().tst_flags.split()
passed, seconds = test_nb(Path(sys.argv[1]), skip_flags=flags, force_flags=sys.argv[2].split(), basepath=sys.argv[3])
sys.exit(not passed)
"""


def with_marks(path):
    """A notebook with a name and with the marks of the engines that it starts."""
    name = str(path.relative_to(ROOT / "nbs"))
    engines = [pytest.mark.ray, pytest.mark.dask] if name == "tutorials/clusters.ipynb" else []
    return pytest.param(path, id=name, marks=engines)


@pytest.mark.parametrize("notebook", map(with_marks, NOTEBOOKS))
def test_notebook(notebook, fork_server):
    """Flagged cells run too if NBDEV_FLAGS names their flag, e.g. NBDEV_FLAGS="cuda slow"."""
    fork_server.run(RUN, notebook, os.environ.get("NBDEV_FLAGS", ""), ROOT, cwd=ROOT, timeout=600)
