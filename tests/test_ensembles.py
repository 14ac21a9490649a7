"""Ensembles: where each model ends alone, with the same bytes for any number of threads, whatever is drawn."""

import random
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from dattri.model_util import stack as stack_module
from dattri.model_util import target as target_module
from dattri.model_util.ensemble import EnsembleTrainer, _Samples
from dattri.model_util.loader import LoaderRecipe
from dattri.model_util.target import EnsembleTarget

INPUTS = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(INPUTS, torch.arange(60) % 3)
SUBSETS = [np.sort(np.random.default_rng(number).choice(60, 30, replace=False)) for number in range(21)]


class Attention(nn.Module):
    """A transformer over eight tokens, with torch's fused attention."""

    def __init__(self, dropout):
        super().__init__()
        self.mixed, self.head, self.dropout = nn.Linear(8, 24), nn.Linear(8, 3), dropout

    def forward(self, x):
        query, key, value = self.mixed(x.flatten(1, 2)).chunk(3, -1)
        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.head(nn.functional.dropout(mixed, dropout).mean(1))


class Noisy(nn.Module):
    """Draws from a generator that all threads share, from the given step on."""

    def __init__(self, draw, first=0):
        super().__init__()
        self.layer, self.draw, self.first, self.calls = nn.Linear(64, 3), draw, first, 0

    def forward(self, x):
        self.calls += 1
        noise = self.draw() if self.training and self.calls > self.first else 0.0
        return self.layer(x.flatten(1)) + noise


class Augmented(Dataset):
    """Draws at each access."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, place):
        return DATA[place][0] + 0.1 * torch.randn(1, 8, 8), DATA[place][1]


def mlp(dropout=0.0, width=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 3))


def conv():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


MODELS = {
    "lr": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
    "mlp": mlp,
    "conv": conv,
    "attention": partial(Attention, 0.0),
    "dropout": partial(mlp, 0.3),
    "attention-dropout": partial(Attention, 0.2),
    "alpha-dropout": lambda: nn.Sequential(mlp(), nn.AlphaDropout(0.2)),
    "numpy": lambda: Noisy(lambda: float(np.random.rand())),  # noqa: NPY002
    "python": lambda: Noisy(random.random),
    "late": lambda: Noisy(random.random, first=5),
}
WORK = {"small": {}, "medium": {"_BLOCK_WORK": 0}, "heavy": {"_HEAVY_STEP": 0}}


@pytest.fixture(params=WORK)
def work(request, monkeypatch):
    """Lets the small models of these tests count as larger ones."""
    for name, value in WORK[request.param].items():
        monkeypatch.setattr(stack_module, name, value)
    return request.param


def trainer_of(model_fn, **options):
    settings = {"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9), "num_epochs": 2, "batch_size": 8}
    return EnsembleTrainer(model_fn, cross_entropy, **{**settings, **options})


def train(trainer, subsets=SUBSETS, data=DATA, **options):
    """Weights of all models, with whatever the caller's random state is."""
    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
    state = torch.get_rng_state()
    groups = trainer.train_many(data, subsets, range(len(subsets)), **options)
    models = [model for group in groups for _, model in group]
    assert torch.equal(torch.get_rng_state(), state)
    return [torch.cat([value.flatten().double() for value in model.state_dict().values()]) for model in models]


def assert_same(left, right):
    assert len(left) == len(right)
    assert all(map(torch.equal, left, right))


@pytest.mark.parametrize("name", MODELS)
def test_bytes_do_not_depend_on_threads(name, work, with_threads):
    trainer = trainer_of(MODELS[name])
    trained = [with_threads(count, partial(train, trainer)) for count in (1, 2, 4)]
    assert_same(trained[0], trained[1])
    assert_same(trained[0], trained[2])
    assert not torch.equal(trained[0][0], trained[0][1])


def collated(samples):
    """A collate function of the user's."""
    return default_collate(samples)


@pytest.mark.parametrize("options", [{"data": Augmented()}, {"collate_fn": collated}])
def test_bytes_do_not_depend_on_threads_for_data(options, work, with_threads):
    trained = [with_threads(count, partial(train, trainer_of(mlp), **options)) for count in (1, 2, 4)]
    assert_same(trained[0], trained[1])
    assert_same(trained[0], trained[2])


@pytest.mark.parametrize("name", ["lr", "mlp", "conv", "attention"])
def test_models_end_where_they_end_alone_in_any_group(name, work):
    trainer = trainer_of(MODELS[name])
    whole = train(trainer)
    for size in (2, 5, 20):
        assert_same(train(trainer_of(MODELS[name], max_models=size)), whole)
    assert_same(train(trainer, SUBSETS[:1]), whole[:1])
    (alone,) = train(trainer_of(MODELS[name], max_models=1), SUBSETS[:1])
    torch.testing.assert_close(alone, whole[0], atol=1e-4, rtol=1e-4)


def test_dropout_of_a_heavy_model_does_not_depend_on_its_group(monkeypatch):
    monkeypatch.setattr(stack_module, "_HEAVY_STEP", 0)
    assert_same(train(trainer_of(MODELS["dropout"]), SUBSETS[:1]), train(trainer_of(MODELS["dropout"]))[:1])


@pytest.mark.filterwarnings("error:.*batching rule")
def test_attention_is_one_call_for_all_models():
    train(trainer_of(MODELS["attention"]))


def test_models_are_trained_by_several_threads(with_threads, monkeypatch):
    """And each of them uses one."""
    monkeypatch.setattr(stack_module, "_BLOCK_WORK", 0)
    seen = set()

    def loss_fn(outputs, labels):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return cross_entropy(outputs, labels)

    trainer = EnsembleTrainer(mlp, loss_fn, optimizer=torch.optim.Adam, num_epochs=3, batch_size=8)
    with_threads(2, partial(train, trainer))
    assert len(seen) == 2
    assert {count for _, count in seen} == {1}


def test_an_error_of_one_block_ends_the_others(with_threads, monkeypatch):
    monkeypatch.setattr(stack_module, "_BLOCK_WORK", 0)
    steps = []

    def loss_fn(outputs, labels):
        steps.append(threading.get_ident())
        if len(steps) == 20:
            raise KeyError("the loss is broken")
        return cross_entropy(outputs, labels)

    trainer = EnsembleTrainer(mlp, loss_fn, optimizer=torch.optim.Adam, num_epochs=10_000, batch_size=8)
    with pytest.raises(KeyError, match="broken"):
        with_threads(2, partial(train, trainer))


@pytest.mark.parametrize("name", ["lr", "mlp", "conv", "attention"])
def test_targets_do_not_depend_on_threads(name, work, with_threads, monkeypatch):
    monkeypatch.setattr(target_module, "_WORTH_THREADS", 0)
    models = [MODELS[name]() for _ in range(21)]
    loss_fn = partial(cross_entropy, reduction="none")
    target = EnsembleTarget(MODELS[name], loss_fn)
    loader = DataLoader(DATA, batch_size=16)
    targets = [with_threads(count, lambda: target.evaluate_many(models, loader)) for count in (1, 2, 4)]
    assert torch.equal(targets[0], targets[1])
    assert torch.equal(targets[0], targets[2])
    expected = torch.stack([loss_fn(model.eval()(INPUTS), DATA.tensors[1]) for model in models])
    torch.testing.assert_close(targets[0], expected.detach(), atol=1e-4, rtol=1e-4)


OPTIMIZERS = {  # eps: where a gradient is 0 but for rounding, Adam would make full steps of the noise
    "SGD": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "AdamW": partial(torch.optim.AdamW, lr=1e-3, eps=1e-3),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-3, eps=1e-3),
}
UNEQUAL = [*SUBSETS[:5], np.arange(7), np.arange(9)]


def encoder():
    """Torch's own layer, for whose attention it has no rule for several models."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Linear(64, 3))


def train_together(trainer, subsets=UNEQUAL, data=DATA, **options):
    """Models by the numbers of their subsets."""
    groups = trainer.train_many(data, subsets, range(len(subsets)), **options)
    return dict(pair for group in groups for pair in group)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model_fn", [MODELS["lr"], mlp, conv, encoder], ids=["lr", "mlp", "conv", "encoder"])
def test_each_model_ends_where_it_ends_alone(model_fn, optimizer):
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    trainer = trainer_of(
        model_fn, optimizer=OPTIMIZERS[optimizer], num_epochs=3, max_models=4, scheduler=schedule, batch_size=None
    )
    recipe = LoaderRecipe.of(DataLoader(DATA, batch_size=8, shuffle=True))
    together = train_together(trainer, batch_size=8)
    for number, subset in enumerate(UNEQUAL):
        alone = trainer(recipe.build(subset, number), seed=number)
        assert together[number].training
        torch.testing.assert_close(together[number].state_dict(), alone.state_dict(), atol=1e-4, rtol=1e-4)


def centred(samples):
    """Looks at the whole batch."""
    inputs, labels = default_collate(samples)
    return inputs - inputs.mean(0), labels


def test_a_collate_function_sees_the_batches_of_each_model():
    trainer = trainer_of(mlp, batch_size=None)
    recipe = LoaderRecipe.of(DataLoader(DATA, batch_size=8, shuffle=True, collate_fn=centred))
    for number, model in train_together(trainer, batch_size=8, collate_fn=centred).items():
        alone = trainer(recipe.build(UNEQUAL[number], number), seed=number)
        torch.testing.assert_close(model.state_dict(), alone.state_dict(), atol=1e-5, rtol=1e-5)


def test_a_group_that_does_not_fit_the_memory_is_halved_and_the_size_remembered():
    """A CPU runs out of memory in another way; a loss that fails at its first call stands in for it."""
    calls = []

    def crowded(outputs, labels):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return cross_entropy(outputs, labels)

    trainer = EnsembleTrainer(mlp, crowded, optimizer=OPTIMIZERS["SGD"], num_epochs=1, batch_size=8)
    with pytest.warns(UserWarning, match="max_models=2") as caught:
        groups = list(trainer.train_many(DATA, SUBSETS[:5], range(5)))
    assert [len(group) for group in groups] == [2, 2, 1]
    assert len(caught) == 1
    assert len(next(trainer.train_many(DATA, SUBSETS[:5], range(5)))) == 2  # no second attempt


def ragged(samples):
    """Batches whose shape depends on their content."""
    inputs, labels = default_collate(samples)
    return inputs[..., : 1 + int(labels[0])], labels


FIXED = mlp()
MISUSES = {
    "ragged batches": (ValueError, "collate_fn: .*different shapes", {}, {"collate_fn": ragged}),
    "two batch sizes": (ValueError, "trainer has 8 but the dataloader 4", {}, {"batch_size": 4}),
    "one module": (ValueError, "same module twice", {"model_fn": lambda: FIXED}, {}),
    "a mean per sample": (ValueError, "loss_fn.*reduction", {"loss_fn": partial(cross_entropy, reduction="none")}, {}),
    "a module": (TypeError, "model_fn: expected a function that creates a model", {"model_fn": FIXED}, {}),
    "no model": (TypeError, "model_fn: .*returned NoneType", {"model_fn": lambda: None}, {}),
    "no loss": (TypeError, "loss_fn", {"loss_fn": "x"}, {}),
    "no scheduler": (TypeError, "scheduler", {"scheduler": 1}, {}),
    "no device": (ValueError, "device: 'gpu'", {"device": "gpu"}, {}),
    "num_epochs": (ValueError, "num_epochs", {"num_epochs": -1}, {}),
    "batch_size": (ValueError, "batch_size", {"batch_size": 0}, {}),
    "max_models": (ValueError, "max_models", {"max_models": 0}, {}),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_named(name):
    kind, message, fields, options = MISUSES[name]
    with pytest.raises(kind, match=message):
        train_together(replace(trainer_of(mlp), **fields), **options)


def test_seeds_and_batches_must_fit():
    trainer = trainer_of(mlp)
    with pytest.raises(ValueError, match="batch_size"):
        trainer(DataLoader(DATA, batch_size=3))
    with pytest.raises(ValueError, match="seeds"):
        list(trainer.train_many(DATA, SUBSETS, [1]))


def test_samples_that_are_too_large_to_stay_are_fetched_batch_by_batch():
    places = torch.tensor([[3, 1], [2, 0]])
    fetched = _Samples(DATA, None, torch.device("cpu"), limit_bytes=0)
    assert fetched.resident is None
    assert torch.equal(fetched.batch(places)[1], DATA.tensors[1][places])
    with pytest.raises(ValueError, match="equal shapes"):
        _Samples([(torch.zeros(size),) for size in (1, 2)], None, torch.device("cpu"), 10**6)
    with pytest.raises(TypeError, match="batches"):
        _Samples([1, 2], None, torch.device("cpu"), 10**6)


def test_a_made_optimizer_and_a_class_of_losses_are_refused():
    """Frequent slips: an optimizer that already has parameters, and a loss that was not called."""
    made = torch.optim.SGD(nn.Linear(64, 3).parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer: got SGD with the parameters of one.*partial\(torch.optim.SGD"):
        EnsembleTrainer(mlp, cross_entropy, optimizer=made, num_epochs=1)
    for make in (partial(EnsembleTrainer, optimizer=torch.optim.SGD, num_epochs=1), EnsembleTarget):
        with pytest.raises(TypeError, match=r"loss_fn: .*got the class CrossEntropyLoss; .*CrossEntropyLoss\(\)"):
            make(mlp, nn.CrossEntropyLoss)


def test_a_single_model_has_the_errors_of_many():
    trainer = EnsembleTrainer(
        partial(nn.Linear, 2, 3), partial(cross_entropy, reduction="none"), optimizer=torch.optim.SGD, num_epochs=1
    )
    data = TensorDataset(torch.zeros(4, 2), torch.arange(4) % 3)
    for train in (
        lambda: trainer(DataLoader(data, batch_size=4), seed=0),
        lambda: list(trainer.train_many(data, [np.arange(4)] * 2, [0, 1], batch_size=4)),
    ):
        with pytest.raises(ValueError, match=r"loss_fn: expected the mean loss .*, got shape \(4,\)"):
            train()
    with pytest.raises(TypeError, match=r"dataloader: .*batches .*got dict"):
        trainer(DataLoader([{"input": torch.zeros(2), "label": 0}]), seed=0)
