"""A benchmark that is small enough to be broken in many ways: built, published, loaded, and looked at."""

import copy
import hashlib
import io
import json
import os
import signal
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from helpers import files
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from dattri.benchmark.datasets import Datasets
from dattri.benchmark.load import load_benchmark
from dattri.benchmark.models.linear import LogisticRegression
from dattri.benchmark.settings import Setting
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.target import EnsembleTarget

SIZES = {"num_full": 3, "num_half": 5, "num_subsets": 4, "num_runs": 1}
REPO = "someone/points"
CHILD = """
import benchmark_helpers
from benchmark_helpers import *
from dattri.benchmark.settings import register_setting
path = Path(path)
register_setting(SMALL)
def start(function, *arguments):  # a process of its own, which need not import all that again
    if (number := os.fork()) == 0:
        function(*arguments)
        os._exit(0)
    return number
def end(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
"""


def points(folder):
    """Three clouds of points; nothing is downloaded."""
    noise = torch.randn(17, 2, generator=torch.Generator().manual_seed(0)) / 10
    labels = torch.arange(17) % 3
    inputs = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])[labels] + noise
    return Datasets(TensorDataset(inputs[:12], labels[:12]), TensorDataset(inputs[12:], labels[12:]))


classifier = partial(LogisticRegression, 2, 3)
SMALL = Setting(
    model="lr", dataset="points", create_model=classifier, create_datasets=points, repo_id=REPO, metrics=("lds", "loo"),
    train_func=EnsembleTrainer(classifier, cross_entropy, optimizer=partial(torch.optim.SGD, lr=0.5), num_epochs=5),
    target_func=EnsembleTarget(classifier, partial(cross_entropy, reduction="none")),
    train_size=12, test_size=5, batch_size=4, **SIZES,
)
FULL, HALF = (f"points_lr/points_lr_{kind}.zip" for kind in ("full", "half"))
MANIFEST = "points_lr/manifest.json"
INDICES, VALUES = (f"points_lr/lds/{what}_lds.pt" for what in ("indices", "target_values"))
WHOLE = ["lds", "manifest.json", "models_full", "models_half"]
LOCAL = replace(SMALL, repo_id=None)
FOLDER = Path("benchmark", "points_lr")


def plain_models(attributes, kind):
    """The models of a benchmark, loaded with torch alone."""
    models = []
    for path in attributes[f"models_{kind}"]:
        assert type(path) is str
        models.append(copy.deepcopy(attributes["model"]))
        models[-1].load_state_dict(torch.load(path), strict=True)
    return models


def load(path, metric="lds", **options):
    """Load the small benchmark."""
    return load_benchmark("lr", "points", metric, path / "load", **options)


def in_place(path):
    """Parts of the small benchmark that are there; the test fails if anything else was left anywhere."""
    assert {file.name for file in path.iterdir()} <= {"hub", "load"}
    assert {file.name for file in (path / "load").iterdir()} == {"benchmark"}
    assert {file.name for file in (path / "load" / "benchmark").iterdir()} <= {"points_lr", ".points_lr.lock"}
    return sorted(file.name for file in (path / "load" / "benchmark" / "points_lr").iterdir())


def bytes_in_place(path):
    """Hash of all that is in place."""
    return {name: data for name, data in files(path / "load" / "benchmark" / "points_lr").items() if name[-3:] == ".pt"}


def with_manifest(published):
    """Files of a repository with a manifest that lists the models and tensors among them, whatever they are."""
    contents = {name.removeprefix("points_lr/"): data for name, data in published.items() if name.endswith(".pt")}
    for name, part in ((FULL, "models_full"), (HALF, "models_half")):
        with zipfile.ZipFile(io.BytesIO(published[name])) as archive:
            contents |= {f"{part}/{member}": archive.read(member) for member in archive.namelist()}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    return published | {MANIFEST: json.dumps(json.loads(published[MANIFEST]) | {"files": hashes}).encode()}


def check_whole(path, **options):
    """Load the small benchmark; all of it is there."""
    attributes, truth = load(path, **options)
    assert [len(plain_models(attributes, kind)) for kind in ("full", "half")] == [3, 5]
    assert truth.values.shape == (4, 5) and in_place(path) == WHOLE


def train_longer(dataloader, seed, epochs):
    """A small model; its initial weights come from the seed."""
    return replace(SMALL.train_func, num_epochs=epochs)(dataloader, seed)


def trained_for(epochs):
    """The small setting with a training function whose body has changed, but not its name."""

    def changed(dataloader, seed=None):
        return train_longer(dataloader, seed, epochs)

    return replace(LOCAL, train_func=changed)


def weights(path, kind):
    """First weights of the models of a build, one row each."""
    models = sorted((path / FOLDER / f"models_{kind}").glob("*/model_weights_0.pt"))
    return [torch.load(file)["linear.weight"] for file in models]


TRAINED, FATAL = [], None


def train_until_killed(dataloader, seed=None):
    """Train one model, or kill the process if this is the fatal one."""
    TRAINED.append(seed)
    if len(TRAINED) == FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
    return SMALL.train_func(dataloader, seed=seed)


KILLED = replace(LOCAL, train_func=train_until_killed, metrics=("lds",))
