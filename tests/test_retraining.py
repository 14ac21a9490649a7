"""Retraining over what users pass: forms of training functions, trainers, indices, data, devices."""

import itertools
import time
from functools import partial

import numpy as np
import pytest
import torch
from helpers import files, make_loader, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dattri.model_util.checkpoint import load_checkpoint, to_bytes
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.retrain import RetrainError, retrain_lds, retrain_loo

SMALL = {"num_subsets": 3, "num_runs_per_subset": 2, "seed": 0}
TRAINER = EnsembleTrainer(
    partial(nn.Linear, 1, 1), nn.functional.mse_loss, optimizer=partial(torch.optim.SGD, lr=0.1), num_epochs=2
)


def weights(directory):
    """Bytes of all tensors; a checkpoint itself also says whose it is."""
    names = [name for name in files(directory) if name.endswith(".pt") and name != "model.pt"]
    return {name: to_bytes(load_checkpoint(directory / name)) for name in names}


class Callable:
    def __call__(self, dataloader, scale=1):
        return train(dataloader)


def with_seed(dataloader, seed=None):
    torch.manual_seed(seed)
    return train(dataloader)


def with_kwargs(dataloader, seed, **kwargs):
    assert kwargs == {"lr": 1}
    return train(dataloader)


def named(dataloader, *, lr):
    return train(dataloader)


FORMS = {
    "object": (Callable(), {}),
    "with a seed": (with_seed, {}),
    "with any keywords": (with_kwargs, {"lr": 1}),
    "partial": (partial(named, lr=1), {}),
    "lambda": (lambda loader: train(loader), {}),  # noqa: PLW0108
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What a plain function trains."""
    path = tmp_path_factory.mktemp("plain")
    retrain_lds(train, make_loader(), path, **SMALL)
    return weights(path)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_training_function_give_the_same_weights(form, n_jobs, plain, tmp_path):
    function, kwargs = FORMS[form]
    retrain_lds(function, make_loader(), tmp_path, n_jobs=n_jobs, **SMALL, **kwargs)
    assert weights(tmp_path) == plain


def one_by_one(dataloader, seed):
    return TRAINER(dataloader, seed=seed)


@pytest.mark.usefixtures("one_thread")
def test_a_trainer_gives_what_it_gives_one_by_one(tmp_path):
    for name, function in (("together", TRAINER), ("alone", one_by_one)):
        retrain_lds(function, make_loader(), tmp_path / name / "lds", **SMALL)
        retrain_loo(function, make_loader(), tmp_path / name / "loo", seed=0)
    for verb in ("lds", "loo"):
        for name in weights(tmp_path / "together" / verb):
            states = [load_checkpoint(tmp_path / kind / verb / name) for kind in ("together", "alone")]
            torch.testing.assert_close(*states, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("one_thread")
def test_groups_of_a_trainer_are_resumed_and_divided_with_the_same_bytes(tmp_path):
    retrain_lds(TRAINER, make_loader(), tmp_path / "whole", **SMALL)
    before = files(tmp_path / "whole")
    (tmp_path / "whole" / "1" / "model_weights_0.pt").unlink()
    retrain_lds(TRAINER, make_loader(), tmp_path / "whole", n_jobs=2, **SMALL)
    assert files(tmp_path / "whole") == before
    for start_id in (2, 0, 1):
        shard = {**SMALL, "num_subsets": 1, "total_num_subsets": 3, "start_id": start_id}
        retrain_lds(TRAINER, make_loader(), tmp_path / "shards", **shard)
    assert files(tmp_path / "shards") == before


def broken_loss(outputs, labels):
    raise KeyError("no such loss")


def test_a_trainer_s_options_and_errors(tmp_path):
    retrain_lds(TRAINER, make_loader(), tmp_path / "run", **SMALL)
    other = EnsembleTrainer(TRAINER.model_fn, TRAINER.loss_fn, optimizer=TRAINER.optimizer, num_epochs=9)
    with pytest.raises(ValueError, match="num_epochs"):
        retrain_lds(other, make_loader(), tmp_path / "run", **SMALL)
    broken = EnsembleTrainer(TRAINER.model_fn, broken_loss, optimizer=TRAINER.optimizer, num_epochs=1)
    with pytest.raises(RetrainError, match=r"KeyError.*subset 0, run 0.*to subset 2, run 1"):
        retrain_lds(broken, make_loader(), tmp_path / "broken", **SMALL)


def failing_with_a_sentence(dataloader):
    raise ValueError("the loss is not finite; use a smaller learning rate.")


def test_an_error_that_ends_with_a_period_is_quoted_without_it(tmp_path):
    with pytest.raises(RetrainError, match=r"smaller learning rate, while training subset 0"):
        retrain_lds(failing_with_a_sentence, make_loader(), tmp_path, **SMALL)


def local_class(dataloader):
    class Local(nn.Linear):
        pass

    return Local(1, 1)


def not_loadable(dataloader):
    return nn.TransformerEncoderLayer(2, 1, 2)


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize(
    ("function", "message"), [(local_class, "could not be saved.*model="), (not_loadable, "relu.*model=")]
)
def test_a_module_that_cannot_be_kept_is_a_warning(function, message, n_jobs, tmp_path):
    with pytest.warns(UserWarning, match=message):
        retrain_loo(function, make_loader(), tmp_path, indices=[2], seed=1, n_jobs=n_jobs)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-9])])
def test_a_damaged_module_is_restored(damage, tmp_path):
    retrain_loo(train, make_loader(), tmp_path, [2, 1], seed=0)
    before = files(tmp_path)
    damage(tmp_path / "model.pt")
    retrain_loo(train, make_loader(), tmp_path, [2, 1], seed=0)
    assert files(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", [torch.tensor, list, tuple, np.array, iter])
def test_kinds_of_indices(kind, overwrite, tmp_path):
    retrain_loo(train, make_loader(), tmp_path, kind([2, 1]), seed=0, overwrite=overwrite)
    before = files(tmp_path)
    retrain_loo(train, make_loader(), tmp_path, [2, 1], seed=0, overwrite=overwrite)
    assert files(tmp_path) == before


def test_other_samples_are_another_run(tmp_path):
    retrain_loo(train, make_loader(), tmp_path, [2, 1], seed=0)
    inputs, labels = make_loader().dataset.tensors
    flipped = DataLoader(TensorDataset(inputs, -labels), batch_size=4, shuffle=True)
    with pytest.raises(ValueError, match="samples"):
        retrain_loo(train, flipped, tmp_path, [2, 1], seed=0)


def test_numpy_numbers_and_loaders_with_workers(tmp_path):
    one = np.int64(1)
    retrain_lds(train, make_loader(), tmp_path / "a", num_subsets=one, total_num_subsets=one * 2, seed=np.int64(0))
    retrain_lds(train, make_loader(num_workers=1), tmp_path / "b", num_subsets=2, seed=0, n_jobs=2)
    assert (tmp_path / "a" / "0" / "indices.txt").read_text() == (tmp_path / "b" / "0" / "indices.txt").read_text()


REFUSED = [
    {"subset_ratio": 2}, {"num_subsets": 0}, {"seed": "x"}, {"start_id": 3}, {"total_num_subsets": 4}, {"n_jobs": 0},
    {"dataloader": make_loader(batch_size=8, drop_last=True)},
]  # fmt: skip


@pytest.mark.parametrize("bad", REFUSED, ids=lambda bad: next(iter(bad)))
def test_what_is_refused_overwrites_nothing(bad, tmp_path):
    retrain_lds(train, make_loader(), tmp_path, **SMALL)
    before = files(tmp_path)
    name = next(iter(bad))
    arguments = {"dataloader": make_loader(), **SMALL, "overwrite": True, **bad}
    with pytest.raises(ValueError, match="drop_last" if name == "dataloader" else name):
        retrain_lds(train, path=tmp_path, **arguments)
    with pytest.raises(TypeError, match="train_func"):
        retrain_lds("train", make_loader(), tmp_path, overwrite=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("returned", "remedy"),
    [
        (lambda model: None, r"returned NoneType .* Does it end with `return model`"),
        (lambda model: model.state_dict(), r"returned OrderedDict .* Return the module itself: its state_dict\(\)"),
        (lambda model: 3.0, r"returned float .* not a network, return a torch.nn.Module .* module.register_buffer"),
    ],
    ids=["nothing", "state dict", "another model"],
)
def test_a_training_function_that_returns_no_module_is_told_what_to_return(returned, remedy, tmp_path):
    with pytest.raises(TypeError, match=rf"^train_func {remedy}"):
        retrain_lds(lambda dataloader: returned(train(dataloader)), make_loader(), tmp_path, **SMALL)


def test_overwriting_a_shard_keeps_the_seed_and_the_other_shards(tmp_path):
    retrain_lds(train, make_loader(), tmp_path, num_subsets=1, total_num_subsets=2, seed=0)
    before = files(tmp_path)
    retrain_lds(train, make_loader(), tmp_path, num_subsets=1, total_num_subsets=2, start_id=1, overwrite=True)
    assert files(tmp_path).items() > before.items()
    retrain_lds(train, make_loader(), tmp_path, num_subsets=1, seed=5, overwrite=True)
    assert len(weights(tmp_path)) == 1


def test_a_file_named_like_the_module_is_not_taken_for_ours(tmp_path):
    (tmp_path / "model.pt").write_text("my own")
    with pytest.raises(ValueError, match=r"model\.pt"):
        retrain_loo(train, make_loader(), tmp_path, seed=0)


def test_the_user_s_random_numbers_go_on(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    retrain_loo(train, make_loader(), tmp_path / "loo", seed=0)
    assert torch.equal(torch.rand(3), expected)
    for _ in range(2):  # the second call goes on with the seed that the first has drawn
        retrain_lds(train, make_loader(), tmp_path / "lds", num_subsets=2)


def on_device(dataloader, seed, device, used):
    (used / str(device)).mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    time.sleep(0.05)
    (used / str(device) / str(seed)).write_text(f"{start} {time.monotonic()}")
    return train(dataloader).to(device)


def test_a_device_has_one_model_at_a_time(tmp_path):
    function, run = partial(on_device, used=tmp_path / "used"), tmp_path / "run"
    retrain_lds(function, make_loader(), run, num_subsets=8, seed=0, devices=["cpu:0", "cpu:1"])
    retrain_lds(partial(function, device="cpu"), make_loader(), run, num_subsets=8, seed=0)  # continued
    used = [path.name for path in (tmp_path / "used").iterdir() if path.name != "cpu"]
    assert {*used} <= {"cpu:0", "cpu:1"}
    for device in used:
        spans = [map(float, file.read_text().split()) for file in (tmp_path / "used" / device).iterdir()]
        spans = sorted(map(tuple, spans))
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), spans


@pytest.mark.usefixtures("one_thread")
def test_groups_are_divided_among_devices(tmp_path):
    retrain_lds(TRAINER, make_loader(), tmp_path / "two", num_subsets=8, seed=0, devices=["cpu:0", "cpu:1"])
    with pytest.warns(UserWarning, match=r"2 workers share 1 unit.*max_models=4 or less"):
        retrain_lds(TRAINER, make_loader(), tmp_path / "one", num_subsets=8, seed=0, n_jobs=2)
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": []}, "devices: expected a list"),
        ({"devices": ["cpu"], "device": "cpu"}, "pass only one"),
        ({"devices": ["cpu"], "train_func": train}, "takes no device="),
    ],
)
def test_wrong_devices(options, message, tmp_path):
    function = partial(on_device, used=tmp_path / "used")
    arguments = {"train_func": function, "dataloader": make_loader(), "path": tmp_path / "no", **options}
    with pytest.raises(ValueError, match=message):
        retrain_loo(**arguments)
    assert not (tmp_path / "no").exists()
