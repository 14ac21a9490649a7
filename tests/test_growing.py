"""A directory that is asked for more models keeps those that it has, and ends like one that was asked for all."""

import re
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from helpers import SUBSETS, files, loss, loss_of_file, make_loader, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dattri import (
    EnsembleTrainer,
    calculate_lds_ground_truth,
    calculate_loo_ground_truth,
    calculate_targets,
    retrain_lds,
    retrain_loo,
    retrain_subsets,
)
from dattri.model_util import retrain_dir
from dattri.model_util.checkpoint import load_checkpoint
from dattri.model_util.retrain_dir import DifferentRunError

pytestmark = pytest.mark.usefixtures("one_thread")
TESTS = DataLoader(make_loader().dataset, batch_size=5)
ENSEMBLE = EnsembleTrainer(
    partial(nn.Linear, 1, 1), nn.functional.mse_loss, optimizer=partial(torch.optim.SGD, lr=0.1), num_epochs=2
)
PLANS = {
    "more subsets": (retrain_lds, {"num_subsets": 3}, {"num_subsets": 5}),
    "more runs": (retrain_lds, {"num_subsets": 3}, {"num_subsets": 3, "num_runs_per_subset": 3}),
    "more of both": (retrain_lds, {"num_subsets": 2}, {"num_subsets": 4, "num_runs_per_subset": 2}),
    "shared seed": (
        retrain_lds, {"num_subsets": 2, "shared_seed": True}, {"num_subsets": 4, "shared_seed": True}
    ),
    "a shard of more": (
        retrain_lds, {"num_subsets": 2}, {"num_subsets": 2, "start_id": 2, "total_num_subsets": 4}
    ),
    "more subsets of one's own": (retrain_subsets, {"subsets": SUBSETS[:2]}, {"subsets": SUBSETS}),
    "more runs of them": (
        retrain_subsets, {"subsets": SUBSETS}, {"subsets": SUBSETS, "num_runs_per_subset": 2}
    ),
    "more samples to leave out": (retrain_loo, {"indices": [3, 1]}, {"indices": [0, 1, 7, 3]}),
    "all samples": (retrain_loo, {"indices": [3, 1]}, {}),
}  # fmt: skip
SMALLER = [name for name in PLANS if "shard" not in name]


def contents(path):
    """Every file with its bytes, but for the lock of those who enlarge the plan, and subsets of a smaller one."""
    found = files(path)
    plans = {name for name in found if name.startswith("subsets_")}
    current = {f"subsets_{yaml.safe_load(found['metadata.yml']).get('subsets_sha256', '')[:16]}.npy"}
    return {name: data for name, data in found.items() if name not in (plans - current) | {".metadata.lock"}}


@pytest.mark.parametrize("seed", [7, None], ids=["same seed", "no seed"])
@pytest.mark.parametrize("trainer", [train, ENSEMBLE], ids=["one by one", "ensemble"])
@pytest.mark.parametrize("name", PLANS)
def test_it_ends_like_a_directory_that_was_asked_for_all(name, trainer, seed, tmp_path):
    verb, less, more = PLANS[name]
    verb(trainer, make_loader(), tmp_path / "grown", seed=7, **less)
    before = files(tmp_path / "grown")
    verb(trainer, make_loader(), tmp_path / "grown", seed=seed, **more)
    after = files(tmp_path / "grown")
    replaced = ("metadata.yml", "model.pt")  # the module without weights is saved with the first of the samples
    assert all(after[file] == content for file, content in before.items() if file not in replaced)
    if "shard" in name:
        verb(trainer, make_loader(), tmp_path / "grown", seed=7, **{**more, "start_id": 0})
    verb(trainer, make_loader(), tmp_path / "whole", seed=7, **more)
    if "shard" in name:
        verb(trainer, make_loader(), tmp_path / "whole", seed=7, **{**more, "start_id": 0})
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", SMALLER)
def test_a_smaller_plan_is_refused_and_changes_nothing(name, tmp_path):
    verb, less, more = PLANS[name]
    verb(train, make_loader(), tmp_path, seed=7, **less)
    verb(train, make_loader(), tmp_path, seed=7, **more)
    before = files(tmp_path)
    with pytest.raises(DifferentRunError, match="already holds models of a different run") as error:
        verb(train, make_loader(), tmp_path, seed=7, **less)
    if verb is retrain_lds:
        assert re.search(r"To continue it, pass at least its num_(subsets|runs_per_subset)", str(error.value))
    assert files(tmp_path) == before


def other_train(dataloader, width):
    return train(dataloader, width)


OTHERS = {
    "another seed": {"seed": 8}, "another ratio": {"subset_ratio": 0.25}, "shared seeds": {"shared_seed": True},
    "another function": {"train_func": other_train},
    "other options": {"width": 4}, "other batches": {"dataloader": make_loader(batch_size=3)},
    "other samples": {"dataloader": make_loader(13)},
    "fewer runs": {"num_runs_per_subset": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_more_models_of_another_run_are_refused(name, tmp_path):
    call = {
        "train_func": train, "dataloader": make_loader(), "path": tmp_path, "num_subsets": 2, "num_runs_per_subset": 2,
        "seed": 7, "width": 8,
    }  # fmt: skip
    retrain_lds(**call)
    before = files(tmp_path)
    with pytest.raises(DifferentRunError, match="different run"):
        retrain_lds(**{**call, "num_subsets": 4, **OTHERS[name]})
    assert files(tmp_path) == before


@pytest.mark.parametrize("changed", [[SUBSETS[1], SUBSETS[0], SUBSETS[2]], [SUBSETS[0], SUBSETS[2], SUBSETS[1]]])
def test_subsets_of_ones_own_must_begin_with_those_of_before(changed, tmp_path):
    retrain_subsets(train, make_loader(), tmp_path, SUBSETS[:2], seed=7)
    with pytest.raises(DifferentRunError, match="subsets_sha256") as error:
        retrain_subsets(train, make_loader(), tmp_path, changed, seed=7)
    assert set(error.value.fields) == {"num_subsets", "subsets_sha256"}


def test_it_grows_again_and_again_and_is_read(tmp_path):
    for num_subsets, num_runs in ((2, 1), (2, 2), (3, 2), (5, 3)):
        retrain_lds(train, make_loader(), tmp_path / "grown", num_subsets, num_runs_per_subset=num_runs, seed=7)
        truth = calculate_lds_ground_truth(loss_of_file, tmp_path / "grown", TESTS)
        assert truth.values.shape == (num_subsets, 12)
    retrain_lds(train, make_loader(), tmp_path / "whole", 5, num_runs_per_subset=3, seed=7)
    whole = calculate_lds_ground_truth(loss_of_file, tmp_path / "whole", TESTS)
    assert torch.equal(truth.values, whole.values)
    assert torch.equal(truth.indices, whole.indices)
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


def test_leave_one_out_is_read_in_the_order_of_the_last_call(tmp_path):
    retrain_loo(train, make_loader(), tmp_path, [3, 1], seed=7)
    retrain_loo(train, make_loader(), tmp_path, [0, 1, 3], seed=7)
    values, indices = calculate_loo_ground_truth(loss, tmp_path, TESTS)
    assert sorted(indices.tolist()) == [0, 1, 3]
    retrain_loo(train, make_loader(), tmp_path / "alone", [0, 1, 3], seed=7)
    assert torch.equal(values, calculate_loo_ground_truth(loss, tmp_path / "alone", TESTS)[0])


def test_values_that_were_kept_are_used_again(tmp_path):
    asked = []

    def counted(path, dataloader):
        asked.append(path)
        return loss_of_file(path, dataloader)

    for num_subsets in (2, 5):
        retrain_lds(train, make_loader(), tmp_path, num_subsets, num_runs_per_subset=2, seed=7)
        asked.clear()
        targets = calculate_targets(counted, tmp_path, TESTS, cache="loss")
        assert targets.values.shape == (num_subsets, 2, 12)
    assert len(asked) == 3 * 2


def test_a_model_of_a_plan_that_it_has_not_grown_from_is_refused(tmp_path):
    retrain_lds(train, make_loader(), tmp_path / "run", 2, seed=7)
    retrain_lds(train, make_loader(), tmp_path / "run", 3, seed=7)
    retrain_lds(train, make_loader(), tmp_path / "other", 3, seed=8)
    stolen = (tmp_path / "other" / "1" / "model_weights_0.pt").read_bytes()
    (tmp_path / "run" / "1" / "model_weights_0.pt").write_bytes(stolen)
    with pytest.raises(ValueError, match=r"is not the model that metadata\.yml plans here"):
        calculate_lds_ground_truth(loss_of_file, tmp_path / "run", TESTS)


def test_a_model_of_other_subsets_is_refused(tmp_path):
    """Of the same number and seed: only the samples differ."""
    for name, subsets in (("run", SUBSETS), ("other", SUBSETS[::-1])):
        retrain_subsets(train, make_loader(), tmp_path / name, subsets, seed=7)
    stolen = (tmp_path / "other" / "1" / "model_weights_0.pt").read_bytes()
    (tmp_path / "run" / "1" / "model_weights_0.pt").write_bytes(stolen)
    with pytest.raises(ValueError, match=r"is not the model that metadata\.yml plans here"):
        calculate_lds_ground_truth(loss_of_file, tmp_path / "run", TESTS)


def test_a_smaller_run_goes_on_when_its_directory_grows(start_child, tmp_path):
    code = """
def slow(dataloader):
    time.sleep(0.1)
    return train(dataloader)
retrain_lds(slow, make_loader(), path, num_subsets=30, seed=0)
"""
    with start_child(code, tmp_path / "run") as old:
        while not (tmp_path / "run" / "2" / "model_weights_0.pt").exists():
            assert old.poll() is None
        retrain_lds(named_slow(), make_loader(), tmp_path / "run", num_subsets=40, seed=0)
        assert old.wait(60) == 0
    retrain_lds(named_slow(), make_loader(), tmp_path / "alone", num_subsets=40, seed=0)
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")


def named_slow():
    """A function of the name in the child's plan that does not wait."""

    def slow(dataloader):
        return train(dataloader)

    return slow


def test_many_that_grow_at_once_agree(start_child, tmp_path):
    retrain_lds(train, make_loader(), tmp_path / "run", 4, seed=0)
    code = "retrain_lds(train, make_loader(), path, 4, seed=0, start_id={start}, total_num_subsets=16)"
    children = [start_child(code.format(start=start), tmp_path / "run") for start in (0, 4, 8, 12)]
    for child in children:
        with child:
            assert child.wait(120) == 0
    retrain_lds(train, make_loader(), tmp_path / "alone", 16, seed=0)
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")


def test_a_kill_while_it_grows_loses_nothing(start_child, tmp_path):
    retrain_subsets(train, make_loader(), tmp_path / "run", SUBSETS[:2], seed=0)
    code = """
from dattri.model_util import retrain_dir
from dattri.model_util.checkpoint import load_checkpoint
kept = retrain_dir.atomic_write
def killed(file, *arguments, **options):
    if {before}: os.kill(os.getpid(), signal.SIGKILL)
    kept(file, *arguments, **options)
    if not {before}: os.kill(os.getpid(), signal.SIGKILL)
retrain_dir.atomic_write = killed
retrain_subsets(train, make_loader(), path, SUBSETS, seed=0)
"""
    for before in (True, False, True, False, False):
        with start_child(code.format(before=before), tmp_path / "run") as child:
            child.wait(60)
    retrain_subsets(train, make_loader(), tmp_path / "run", SUBSETS, seed=0)
    retrain_subsets(train, make_loader(), tmp_path / "alone", SUBSETS, seed=0)
    assert contents(tmp_path / "run") == contents(tmp_path / "alone")
    truth = calculate_lds_ground_truth(loss_of_file, tmp_path / "run", TESTS)
    assert [np.flatnonzero(row).tolist() for row in members(truth)] == [sorted(subset) for subset in SUBSETS]


def members(truth):
    """Which sample is in which subset."""
    found = np.zeros((len(truth.values), 12), dtype=bool)
    for row, positions in zip(found, truth.indices, strict=True):
        row[[position for position in positions.tolist() if position >= 0]] = True
    return found


def test_a_directory_of_format_1_is_continued_and_read_but_does_not_grow(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # as it was written then: the number of models was part of each owner
        patch.setattr(retrain_dir, "FORMAT", 1)
        patch.setattr(retrain_dir, "_signed", dict)
        retrain_lds(train, make_loader(), tmp_path / "lds", num_subsets=3, seed=7)
        retrain_subsets(train, make_loader(), tmp_path / "own", SUBSETS, seed=7)
    for name, verb, more in (
        ("lds", partial(retrain_lds, num_subsets=3), {"num_subsets": 5}),
        ("own", partial(retrain_subsets, subsets=SUBSETS), {"subsets": [*SUBSETS, [1, 2]]}),
    ):
        whole = files(tmp_path / name)
        assert b"format: 1\n" in whole["metadata.yml"]
        assert b"digest" not in whole["metadata.yml"]
        (tmp_path / name / "1" / "model_weights_0.pt").unlink()
        verb(train, make_loader(), tmp_path / name, seed=7)
        assert files(tmp_path / name) == whole
        calculate_lds_ground_truth(loss_of_file, tmp_path / name, TESTS)
        with pytest.raises(DifferentRunError, match="num_subsets"):
            verb(train, make_loader(), tmp_path / name, seed=7, **more)
        assert files(tmp_path / name) == whole


def test_the_module_of_a_directory_is_the_same_whichever_model_is_first(tmp_path):
    """It has zeros for weights; buffers that no state dict holds keep their values, and the user's model its own."""
    made = []

    def train_func(dataloader, seed):
        model = nn.Linear(1, 1)
        model.register_buffer("table", torch.arange(3.0), persistent=False)
        made.append((model, model.weight.detach().clone()))
        return model

    loader = DataLoader(TensorDataset(torch.zeros(8, 1)))
    for name, firsts in (("one", [[0, 3], [0, 3, 5]]), ("other", [[5], [0, 3, 5]])):
        for indices in firsts:
            retrain_loo(train_func, loader, tmp_path / name, indices, seed=0)
    files = [tmp_path / name / "model.pt" for name in ("one", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    module = load_checkpoint(files[0], modules=True)
    assert not module.weight.any() and module.table.tolist() == [0, 1, 2]
    assert all(torch.equal(model.weight, before) and before.any() for model, before in made)
