"""The record of a setting, and the registry: what is wrong with a setting is said when it is made."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dattri import EnsembleTarget, EnsembleTrainer, Setting, digits, find_setting, list_benchmarks, register_setting
from dattri.benchmark.models.linear import MLP

wide = partial(MLP, 64, hidden=(64, 64))
MINE = Setting(
    model="wide",
    dataset="digits",
    create_model=wide,
    create_datasets=digits,
    train_func=EnsembleTrainer(
        wide, nn.functional.cross_entropy, optimizer=partial(torch.optim.SGD, lr=0.1), num_epochs=2
    ),
    target_func=EnsembleTarget(wide, partial(nn.functional.cross_entropy, reduction="none")),
    train_size=300,
    test_size=50,
    batch_size=32,
    metrics=("lds",),
)
WRONG = {
    "no such metric": ({"metrics": ("auc",)}, "metrics: expected a tuple of lds"),
    "metrics as text": ({"metrics": "lds"}, "metrics: expected a tuple"),
    "no metrics": ({"metrics": ()}, "metrics: expected a tuple"),
    "no samples": ({"train_size": 0}, "train_size"),
    "half a run": ({"num_runs": 1.5}, "num_runs"),
    "negative seed": ({"seed": -1}, "seed"),
    "two halves": ({"num_subsets": 2}, "num_subsets: expected at least 3 for 'lds', got 2; fewer are"),
    "more removed than used": ({"num_removed": 301}, "num_removed: expected at most train_size=300"),
    "no wrong labels": ({"flip_fraction": 0}, "flip_fraction"),
    "a path": ({"model": "../x"}, "model: expected letters"),
    "too few samples": ({"train_size": 2000}, "train_size: digits_wide uses 2000 samples, but its data set has 1297"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers_are_named(name):
    fields, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        replace(MINE, **fields).loaders(digits())


@pytest.mark.parametrize("fields", [{"create_model": nn.Linear(1, 1)}, {"train_func": "x"}], ids=["model", "training"])
def test_functions_are_functions(fields):
    with pytest.raises(TypeError, match=f"{next(iter(fields))}: expected a function"):
        replace(MINE, **fields)


@pytest.mark.parametrize("data", [None, [1, 2], [TensorDataset(torch.zeros(3))]])
def test_data_are_training_and_test_data(data):
    with pytest.raises(TypeError, match="create_datasets: expected training and test data"):
        replace(MINE, create_datasets=lambda folder: data).load_datasets(None)


def test_a_model_is_a_module():
    with pytest.raises(TypeError, match=r"create_model: expected a torch\.nn\.Module, but it returned NoneType"):
        replace(MINE, create_model=lambda: None).new_model()


@pytest.mark.usefixtures("registry")
def test_a_setting_is_replaced_only_on_request():
    register_setting(MINE)
    with pytest.raises(ValueError, match="replace=True"):
        register_setting(replace(MINE, seed=1))
    register_setting(replace(MINE, seed=1), replace=True)
    assert find_setting("wide", "digits").seed == 1
    with pytest.raises(TypeError, match="setting: expected a Setting, got dict"):
        register_setting({})


def test_fingerprint_and_metrics():
    assert MINE.fingerprint()["train_func num_epochs"] == "2"
    assert "metrics" not in MINE.fingerprint()
    with pytest.raises(ValueError, match=r"digits_wide has no ground truth for 'loo'; expected one of lds"):
        MINE.metric("loo")


def test_the_table_is_shown_in_notebooks_too():
    assert "<td>resnet9</td>" in list_benchmarks()._repr_html_()
