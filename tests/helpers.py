"""Small real training runs that the tests share, and the bytes they leave."""

import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[1]
SUBSETS = [[0, 1, 2, 3, 4], [5, 4], [11, 0, 7, 3, 2], list(range(12)), [6], [1, 3, 5, 7, 9, 11]]
CHILD_HEADER = f"""
import os, signal, sys, time, warnings
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.set_num_threads(1)
from helpers import *
from dattri.model_util.retrain import retrain_lds, retrain_loo, retrain_subsets
path = sys.argv[1]
train(make_loader())  # what torch imports lazily is imported once, before any fork
"""


def make_loader(num_samples=12, **options):
    """A loader over numbered samples: the input is the sample's number, the label three times it."""
    inputs = torch.arange(float(num_samples))[:, None] / num_samples
    return DataLoader(TensorDataset(inputs, 3 * inputs), **{"batch_size": 4, "shuffle": True, **options})


def train(dataloader, width=8):
    """A small network trained for two epochs; its initial weights come from torch's random numbers."""
    model = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for inputs, labels in dataloader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), labels).backward()
            optimizer.step()
    return model


def files(directory):
    """Every file below a directory with its bytes; hidden and temporary ones too."""
    directory = Path(directory)
    found = sorted(file for file in directory.rglob("*") if file.is_file())
    return {str(file.relative_to(directory)): file.read_bytes() for file in found}


def count_models(directory):
    """Number of checkpoints below a directory in which others are at work."""
    return sum(name.endswith(".pt") for _, _, names in os.walk(directory) for name in names)


def loss(model, dataloader):
    """Squared error of a module on each sample."""
    with torch.no_grad():
        return torch.cat([(model(x) - y).square()[:, 0] for x, y in dataloader])


def loss_of_file(path, dataloader):
    """The same for the weights in a file, of the network that `train` makes."""
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    model.load_state_dict(torch.load(path))
    return loss(model, dataloader)


def small_train(dataloader):
    """`train` without options."""
    return train(dataloader)


def removals(train_func, path, **options):
    """A small removal test."""
    from dattri import removal_test  # noqa: PLC0415  (few tests need it)

    loader = make_loader()
    scores = torch.arange(12.0).sin()[:, None] * torch.arange(1.0, 13.0).cos()
    options = {"tests": [1], "fractions": [0.25, 0.5], "num_controls": 4, "seed": 0, **options}
    return removal_test(scores, train_func, loader, loss_of_file, DataLoader(loader.dataset), path, **options)


class Evil:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)
