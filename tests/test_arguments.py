"""Arguments of a training function are checked before anything is written; a model is called diverged only if it is."""

import warnings
from functools import partial

import pytest
import torch
from helpers import files, make_loader, train
from torch import nn

from dattri.metric import calculate_lds_ground_truth
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.retrain import retrain_lds, retrain_loo


def plain(loader):
    return train(loader)


def with_rate(dataloader, rate=0.1, *, num_epochs=2):
    return train(dataloader)


def with_seed(dataloader, seed):
    return train(dataloader)


def with_needs(dataloader, rate, *, num_epochs):
    return train(dataloader)


def with_all(dataloader, **kwargs):
    return train(dataloader)


class Callable:
    def __call__(self, dataloader, rate=0.1, num_epochs=2):
        return train(dataloader)

    def method(self, dataloader, rate=0.1, num_epochs=2):
        return train(dataloader)


class Unknown(Callable):
    """Its signature cannot be inspected."""

    __signature__ = "none"


sgd = partial(torch.optim.SGD, lr=0.1)
trainer = EnsembleTrainer(partial(nn.Linear, 1, 1), nn.functional.mse_loss, optimizer=sgd, num_epochs=1)
ACCEPTED = {
    "function": (plain, {}),
    "keywords": (with_rate, {"rate": 1, "num_epochs": 1}),
    "a seed is ours": (with_seed, {}),
    "what is needed": (with_needs, {"rate": 1, "num_epochs": 1}),
    "any": (with_all, {"num_subset": 1}),
    "partial": (partial(with_needs, rate=1), {"num_epochs": 1}),
    "partial given again": (partial(with_needs, rate=1, num_epochs=2), {"num_epochs": 1}),
    "object": (Callable(), {"rate": 1}),
    "bound method": (Callable().method, {"rate": 1}),
    "unknown signature": (Unknown(), {"rate": 1}),
    "trainer": (trainer, {}),
    "device of a trainer": (trainer, {"device": "cpu"}),
}


@pytest.mark.parametrize("verb", [partial(retrain_lds, num_subsets=2), partial(retrain_loo, indices=[0, 3])])
@pytest.mark.parametrize("function,kwargs", ACCEPTED.values(), ids=ACCEPTED)
def test_what_a_training_function_takes_reaches_it(function, kwargs, verb, tmp_path):
    verb(function, make_loader(), path=tmp_path, seed=0, **kwargs)
    assert sum(name.endswith("weights.pt") or "weights_" in name for name in files(tmp_path)) == 2


REFUSED = {
    "option of retrain_lds": (plain, {"num_subset": 1}, r"num_subset: .*Did you mean num_subsets=\?"),
    "option of both": (plain, {"njobs": 1}, r"njobs: .*Did you mean n_jobs=\?"),
    "keyword": (with_rate, {"num_epoch": 1}, r"num_epoch: .*Did you mean num_epochs=\?.*takes rate, num_epochs"),
    "nothing like it": (with_rate, {"momentum": 1}, "momentum: neither .* takes this argument. retrain_lds takes"),
    "of several": (with_rate, {"rate": 1, "rates": 1}, r"rates: .*Did you mean rate=\?"),
    "the loader by name": (plain, {"loader": 1}, "loader: neither"),
    "missing": (with_needs, {"rate": 1}, r"num_epochs: train_func \(with_needs\) needs"),
    "all missing": (with_needs, {}, "rate: train_func"),
    "partial": (partial(with_rate, rate=1), {"num_epoch": 1}, r"train_func \(with_rate\)"),
    "partial, missing": (partial(with_needs, rate=1), {}, "num_epochs: train_func"),
    "object": (Callable(), {"num_epoch": 1}, r"Did you mean num_epochs=\?.*train_func \(Callable\)"),
    "bound method": (Callable().method, {"num_epoch": 1}, r"Did you mean num_epochs=\?"),
    "trainer": (trainer, {"num_epochs": 1}, "num_epochs: neither"),
    "keyword of the trainer's own call": (trainer, {"dataset": 1}, "dataset: neither"),
    "no loader": (lambda: train(make_loader()), {}, "cannot be called with a dataloader"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("function,kwargs,message", REFUSED.values(), ids=REFUSED)
def test_other_arguments_are_refused_before_anything_is_written(function, kwargs, message, overwrite, tmp_path):
    retrain_lds(train, make_loader(), tmp_path / "old", num_subsets=2, seed=0)
    before = files(tmp_path)
    for name in ("old", "new"):
        with pytest.raises(TypeError, match=message):
            retrain_lds(function, make_loader(), tmp_path / name, overwrite=overwrite, **kwargs)
    assert files(tmp_path) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("wrong", [{"overwrite": "no"}, {"overwrite": 1}, {"overwrite": None}, {"seed": True}], ids=str)
@pytest.mark.parametrize("verb", [retrain_loo, retrain_lds])
def test_no_text_or_number_stands_for_yes_and_deletes_models(verb, wrong, tmp_path):
    verb(train, make_loader(), tmp_path, seed=0)
    before = files(tmp_path)
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got {value!r}"):
        verb(train, make_loader(), tmp_path, **{"seed": 1, **wrong})
    assert files(tmp_path) == before


def test_targets_are_real_numbers(tmp_path):
    retrain_lds(train, make_loader(), tmp_path, num_subsets=2, seed=0)
    for values in (torch.zeros(12, dtype=torch.complex64), torch.zeros(12).to_sparse()):
        with pytest.raises(ValueError, match=r"what target_func returned for .*_0\.pt: expected real numbers"):
            calculate_lds_ground_truth(lambda *_, values=values: values, tmp_path, make_loader())
    with pytest.raises(ValueError, match=r"^retrain_dir: expected the name of a directory, got <function"):
        calculate_lds_ground_truth(tmp_path, train, make_loader())


def test_retrain_loo_names_its_own_options(tmp_path):
    with pytest.raises(TypeError, match=r"mean indices=\?.*retrain_loo takes indices, seed, partition"):
        retrain_loo(plain, make_loader(), tmp_path / "run", indexes=[1])
    assert not (tmp_path / "run").exists()


class Masked(nn.Module):
    """One parameter, a causal mask, and a batch norm, some of them spoilt."""

    def __init__(self, **values):
        super().__init__()
        self.layer, self.norm = nn.Linear(1, 1), nn.BatchNorm1d(1)
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        for name, value in values.items():
            self.get_parameter(name).data.fill_(value) if "layer" in name else self.get_buffer(name).fill_(value)


NAN, INF = float("nan"), float("inf")
DIVERGED = [
    ({}, None),
    ({"mask": -INF}, None),
    ({"norm.running_var": INF}, None),
    ({"mask": NAN}, "mask"),
    ({"norm.running_var": NAN}, "norm.running_var"),
    ({"layer.weight": NAN}, "layer.weight"),
    ({"layer.weight": INF}, "layer.weight"),
    ({"layer.bias": -INF, "norm.running_mean": NAN}, "layer.bias, norm.running_mean"),
]


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("values,names", DIVERGED)
def test_diverged_is_what_is_nan_or_an_infinite_parameter(values, names, n_jobs, tmp_path):
    def masked(dataloader):
        return nn.Sequential(Masked(**values))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        retrain_lds(masked, make_loader(), tmp_path, num_subsets=1, n_jobs=n_jobs)
    messages = [str(warning.message) for warning in told if "diverged" in str(warning.message)]
    expected = [] if names is None else [", ".join(f"0.{name}" for name in names.split(", "))]
    assert [text.split(" in ")[1].split(":")[0] for text in messages] == expected
