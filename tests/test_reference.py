"""The promises of the API reference: names, argument order, defaults, layout on disk, metadata keys."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from helpers import files, make_loader, train
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from dattri.benchmark.utils import SubsetSampler, flip_label
from dattri.metric import (
    calculate_lds_ground_truth,
    calculate_loo_ground_truth,
    lds,
    loo_corr,
    mislabel_detection_auc,
)
from dattri.model_util.retrain import RetrainError, retrain_lds, retrain_loo

SIGNATURES = {
    retrain_loo: "train_func, dataloader, path, indices=None, seed=None",
    retrain_lds: "train_func, dataloader, path, num_subsets=100, subset_ratio=0.5, num_runs_per_subset=1, start_id=0, "
    "total_num_subsets=0, seed=None",
    calculate_loo_ground_truth: "target_func, retrain_dir, test_dataloader",
    calculate_lds_ground_truth: "target_func, retrain_dir, test_dataloader",
    lds: "score, ground_truth",
    loo_corr: "score, ground_truth",
    mislabel_detection_auc: "score, ground_truth",
    flip_label: "label, label_space=None, p=0.1",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_positional_arguments_are_those_of_the_reference(function):
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in positional]
    assert ", ".join(shown) == SIGNATURES[function]
    assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY)


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_every_argument_is_documented(function):
    text = inspect.getdoc(function)
    assert "Parameters\n" in text
    for name in inspect.signature(function).parameters:
        assert f"{name} : " in text or f"{name}, " in text or f"**{name}\n" in text, name


def test_loo_layout(tmp_path):
    retrain_loo(train, make_loader(), tmp_path, indices=[4, 2], seed=1, width=3)
    assert set(files(tmp_path)) == {"metadata.yml", "model.pt", "index_4/model_weights.pt", "index_2/model_weights.pt"}
    metadata = yaml.safe_load((tmp_path / "metadata.yml").read_text())
    expected = {
        "mode": "loo", "data_length": 12, "train_func": "train", "indices": [4, 2],
        "map_index_dir": {4: "./index_4", 2: "./index_2"}, "seed": 1, "train_kwargs": {"width": "3"},
    }
    assert expected.items() <= metadata.items()
    model = torch.load(tmp_path / "model.pt", weights_only=False)
    model.load_state_dict(torch.load(tmp_path / "index_4" / "model_weights.pt"))


def test_lds_layout(tmp_path):
    retrain_lds(train, make_loader(), tmp_path, num_subsets=2, num_runs_per_subset=2, seed=1)
    per_subset = ("model_weights_0.pt", "model_weights_1.pt", "indices.txt")
    expected = {f"{subset}/{name}" for subset in (0, 1) for name in per_subset}
    assert set(files(tmp_path)) == expected | {"metadata.yml"}
    metadata = yaml.safe_load((tmp_path / "metadata.yml").read_text())
    sizes = {"num_subsets": 2, "num_runs_per_subset": 2, "subset_ratio": 0.5, "subset_dir_map": {0: "./0", 1: "./1"}}
    assert {"mode": "lds", "data_length": 12, "train_func": "train", **sizes}.items() <= metadata.items()
    indices = np.loadtxt(tmp_path / "0" / "indices.txt", dtype=int)
    assert len(set(indices.tolist())) == 6 and set(indices.tolist()) <= set(range(12))


def recording(seen):
    """A training function that writes down which samples it sees, in order."""

    def train_func(dataloader):
        seen.append([value for (batch,) in dataloader for value in batch.flatten().tolist()])
        return nn.Linear(1, 1)

    return train_func


def numbered_loader(count=20, **options):
    """A loader whose samples are their own data-set indices."""
    return DataLoader(TensorDataset(torch.arange(count)), **{"batch_size": 3, **options})


def test_subset_random_sampler_trains_on_exactly_its_samples(tmp_path):
    seen = []
    dataloader = numbered_loader(sampler=SubsetRandomSampler([10, 11, 12, 13, 14, 15]))
    retrain_loo(recording(seen), dataloader, tmp_path, seed=0)
    assert [sorted(samples) for samples in seen] == [[s for s in range(10, 16) if s != left] for left in range(10, 16)]
    truth = calculate_loo_ground_truth(lambda model, loader: torch.zeros(6), tmp_path, dataloader)
    assert truth.indices.tolist() == list(range(6)) and truth.indices.dtype == torch.int64


def test_positions_index_the_sampler(tmp_path):
    seen = []
    retrain_lds(recording(seen), numbered_loader(sampler=SubsetSampler([7, 3, 19, 0])), tmp_path, num_subsets=3, seed=0)
    for subset, samples in enumerate(seen):
        positions = np.loadtxt(tmp_path / str(subset) / "indices.txt", dtype=int)
        assert samples == [[7, 3, 19, 0][position] for position in positions]


def add_hundred(samples):
    """A collate function of a user's own."""
    return (torch.stack([sample for (sample,) in samples]) + 100,)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 1, "persistent_workers": True}])
def test_loader_options_survive(options, tmp_path):
    seen = []
    dataloader = numbered_loader(8, batch_size=3, drop_last=True, shuffle=True, collate_fn=add_hundred, **options)
    retrain_loo(recording(seen), dataloader, tmp_path, indices=[1, 5], seed=0)
    assert [len(samples) for samples in seen] == [6, 6]
    assert set(seen[0]) <= {100 + i for i in range(8)} - {101} and seen[0] != sorted(seen[0])


def test_models_with_the_same_seed_see_common_samples_in_the_same_order(tmp_path):
    seen = []
    retrain_loo(recording(seen), numbered_loader(8, shuffle=True), tmp_path, seed=0)
    common = [[sample for sample in samples if sample not in (2, 6)] for samples in (seen[2], seen[6])]
    assert common[0] == common[1] != sorted(common[0])


def test_seeds_reach_the_function_and_the_generators(tmp_path):
    seeds, draws = [], []

    def train_func(dataloader, seed=None):
        seeds.append(seed)
        draws.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
        return nn.Linear(1, 1)

    retrain_loo(train_func, numbered_loader(5), tmp_path / "loo", seed=0)
    assert len(set(seeds)) == 1 and len(set(draws)) == 1
    seeds.clear()
    draws.clear()
    retrain_lds(train_func, numbered_loader(5), tmp_path / "lds", num_subsets=4, num_runs_per_subset=2, seed=0)
    assert len(set(seeds)) == 8 == len(set(draws)) and all(0 <= seed < 2**32 for seed in seeds)


def test_worker_errors_name_the_model_and_carry_the_traceback(tmp_path):
    def divide(dataloader, by):
        return 1 / by

    with pytest.raises(RetrainError, match=r"ZeroDivisionError.*subset \d+, run 0 \(seed \d+\)") as caught:
        retrain_lds(divide, numbered_loader(5), tmp_path, num_subsets=3, seed=0, n_jobs=2, by=0)
    assert "in divide" in str(caught.value.__cause__)


REFUSED = {
    "no module": (TypeError, "NoneType.*return model", {"train_func": lambda dataloader: None}),
    "raises": (RetrainError, "KeyError", {"train_func": lambda dataloader: {}["lr"]}),
    "out of range": (ValueError, "indices: position 12", {"indices": [12]}),
    "negative": (ValueError, "indices: .*-1", {"indices": [-1]}),
    "duplicated": (ValueError, "indices: .*more than once", {"indices": [1, 1]}),
    "empty": (ValueError, "indices: .*empty", {"indices": []}),
    "empty data": (ValueError, "dataloader: .*no samples", {"dataloader": DataLoader(TensorDataset(torch.zeros(0)))}),
    "seed": (ValueError, "seed", {"seed": -3}),
    "n_jobs": (ValueError, "n_jobs", {"n_jobs": 0}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_named_and_leaves_no_harm(case, tmp_path):
    kind, match, changed = REFUSED[case]
    retrain_loo(partial(train, width=2), make_loader(), tmp_path / "before", seed=0)
    before = files(tmp_path)
    arguments = {"train_func": train, "dataloader": make_loader(), "indices": [0], "seed": 0, **changed}
    with pytest.raises(kind, match=match):
        retrain_loo(path=tmp_path / "new", **arguments)
    after = files(tmp_path)
    assert before.items() <= after.items() and set(after) - set(before) <= {"new/metadata.yml"}


def test_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("precious")
    for call in (
        lambda path: retrain_loo(train, make_loader(), path),
        lambda path: retrain_lds(train, make_loader(), path, overwrite=True),
        lambda path: calculate_loo_ground_truth(None, path, make_loader()),
    ):
        with pytest.raises(NotADirectoryError, match="is a file"):
            call(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_overwrite_leaves_what_is_not_ours(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "notes.txt").write_text("mine")
    (tmp_path / "results.csv").write_text("mine")
    retrain_lds(train, make_loader(), tmp_path, num_subsets=5, seed=0)
    retrain_lds(train, make_loader(), tmp_path, num_subsets=2, seed=0, overwrite=True)
    kept = set(files(tmp_path))
    assert {"3/notes.txt", "results.csv"} <= kept and not any(name.startswith(("2/", "4/")) for name in kept)
    (tmp_path / "metadata.yml").unlink()
    with pytest.raises(ValueError, match=r"no metadata\.yml"):
        retrain_lds(train, make_loader(), tmp_path, num_subsets=2, seed=0)
    retrain_lds(train, make_loader(), tmp_path, num_subsets=2, seed=0, overwrite=True)


def test_another_loader_of_the_same_length_is_another_run(tmp_path):
    first, second = (numbered_loader(sampler=SubsetSampler(chosen)) for chosen in ([1, 2, 3], [4, 5, 6]))
    retrain_loo(recording([]), first, tmp_path, seed=0)
    with pytest.raises(ValueError, match="samples"):
        retrain_loo(recording([]), second, tmp_path, seed=0)
    with pytest.raises(ValueError, match="batch_size: 3 there, 5 in this call"):
        retrain_loo(recording([]), numbered_loader(sampler=SubsetSampler([1, 2, 3]), batch_size=5), tmp_path, seed=0)


def test_the_device_is_no_part_of_the_plan(tmp_path):
    def train_func(dataloader, device):
        return nn.Linear(1, 1)

    retrain_loo(train_func, make_loader(), tmp_path, indices=[0], seed=0, device="cpu")
    retrain_loo(train_func, make_loader(), tmp_path, indices=[0], seed=0, device=torch.device("cpu"))
