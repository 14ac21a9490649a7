"""Building a benchmark: kills, equal bytes, and labels, models and training functions of many kinds."""

import warnings
from dataclasses import replace
from functools import partial

import benchmark_helpers
import pytest
import torch
from benchmark_helpers import CHILD, FOLDER, KILLED, LOCAL, classifier, points, trained_for
from helpers import files
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dattri.benchmark.build import BuildError, build_benchmark
from dattri.benchmark.datasets import Datasets
from dattri.benchmark.load import load_setting
from dattri.benchmark.manifest import Manifest
from dattri.benchmark.settings import find_setting
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.target import EnsembleTarget

pytestmark = pytest.mark.usefixtures("one_thread", "registry")
BUILD = """
from dattri.benchmark import build
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def in_training():
    benchmark_helpers.FATAL = 10
    build.build_benchmark(KILLED, path)
def in_writing():
    build.Workspace.new_manifest = kill
    build.build_benchmark(KILLED, path)
for function in (in_training, in_writing):
    print(end(start(function)))
"""


AT_ONCE = """
from dattri.benchmark import build
def rebuild():
    build.build_benchmark(LOCAL, path, overwrite=True)
numbers = [start(rebuild) for _ in range(4)]
print([end(number) for number in numbers])
"""


def test_several_builds_that_overwrite_take_turns(run_child, tmp_path):
    build_benchmark(LOCAL, tmp_path / "quiet")
    assert run_child(CHILD + AT_ONCE, tmp_path / "built", timeout=120).splitlines()[-1] == "[0, 0, 0, 0]"
    assert files(tmp_path / "built" / FOLDER) == files(tmp_path / "quiet" / FOLDER)


def test_workers_are_not_started_for_models_that_are_trained_as_one(tmp_path):
    """And nothing warns of workers that would have nothing to do."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_benchmark(LOCAL, tmp_path, n_jobs=2)


def test_a_benchmark_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    (tmp_path / FOLDER).parent.mkdir()
    (tmp_path / FOLDER).symlink_to(tmp_path / "elsewhere")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="points_lr is a link, and links are not followed"):
            build_benchmark(LOCAL, tmp_path, overwrite=overwrite)
    assert files(tmp_path / "elsewhere") == {"mine.txt": b"mine"}


@pytest.mark.parametrize("part", ["", "lds", "models_full"])
def test_parts_of_a_benchmark_that_are_links_are_not_followed(part, tmp_path):
    """What lies behind a link is neither removed as an old part nor written as a new one."""
    build_benchmark(LOCAL, tmp_path)
    place, elsewhere = (tmp_path / FOLDER / part if part else tmp_path / "benchmark"), tmp_path / "elsewhere"
    place.rename(elsewhere)
    (elsewhere / "mine.txt").write_text("mine")
    place.symlink_to(elsewhere)
    before = files(elsewhere)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=f"{place.name} is a link, and links are not followed"):
            build_benchmark(LOCAL, tmp_path, overwrite=overwrite)
    assert files(elsewhere) == before


def test_a_build_that_is_killed_twice(run_child, tmp_path):
    assert run_child(CHILD + BUILD, tmp_path / "killed", timeout=120).split() == ["-9", "-9"]
    assert not (tmp_path / "killed" / "benchmark" / "points_lr" / "manifest.json").exists()
    benchmark_helpers.TRAINED.clear()
    build_benchmark(KILLED, tmp_path / "killed")
    assert not benchmark_helpers.TRAINED, "all models were there"
    build_benchmark(KILLED, tmp_path / "quiet")
    assert len(benchmark_helpers.TRAINED) == 12
    assert files(tmp_path / "killed") == files(tmp_path / "quiet")


def test_two_builds_are_the_same(tmp_path):
    setting = replace(find_setting("lr", "digits"), num_full=2, num_half=2, num_subsets=3, num_runs=1, num_removed=4)
    setting = replace(setting, train_func=replace(setting.train_func, num_epochs=8))
    one, two = (build_benchmark(setting, tmp_path / name) for name in ("one", "two"))
    assert files(one) == files(two) and (one / "manifest.json").exists()


class WithNumbers(Dataset):
    """Samples whose labels are plain numbers, as torchvision's are."""

    def __init__(self, data, change=int):
        self.data, self.change = data, change

    def __len__(self):
        return len(self.data)

    def __getitem__(self, place):
        inputs, label = self.data[place]
        return inputs, self.change(label)


def numbers(change, folder):
    """The points with changed labels."""
    return Datasets(*(WithNumbers(part, change) for part in points(folder)))


class OneLogit(nn.Module):
    """Tells the first class from the others."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, inputs):
        return self.linear(inputs)[:, 0]


class Branching(nn.Module):
    """Looks at its outputs, which only a model that is called alone can do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, inputs):
        outputs = self.linear(inputs)
        return outputs if outputs.sum() > 1e9 else outputs + 0


def first_or_not(outputs, labels, reduction="mean"):
    return binary_cross_entropy_with_logits(outputs, (labels == 0).float(), reduction=reduction)


def signed(outputs, labels, reduction="mean"):
    return binary_cross_entropy_with_logits(outputs, (labels > 0).float(), reduction=reduction)


def plain_training(create, loss_fn, dataloader):
    """A training function of one's own."""
    model = create()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        for inputs, labels in dataloader:
            optimizer.zero_grad()
            loss_fn(model(inputs), labels).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize(
    "create, change, loss_fn, known",
    [
        (classifier, int, cross_entropy, True),
        (Branching, int, cross_entropy, True),
        (OneLogit, int, first_or_not, False),
        (OneLogit, lambda label: 1 if label == 0 else -1, signed, False),
        (OneLogit, lambda label: torch.tensor(float(label == 0)), signed, False),
    ],
)
def test_labels_and_outputs_of_many_kinds(tmp_path, create, change, loss_fn, known):
    """Where labels are classes and outputs are their scores, the accuracy is checked; elsewhere it is left out."""
    setting = replace(
        LOCAL, create_model=create, create_datasets=partial(numbers, change), metrics=("lds",),
        train_func=partial(plain_training, create, loss_fn),
        target_func=EnsembleTarget(create, partial(loss_fn, reduction="none"), max_models=1),
    )
    folder = build_benchmark(setting, tmp_path)
    assert any("accuracy of full models" in check.what for check in Manifest.read(folder).checks) == known


def test_another_model_is_found_before_the_ground_truth(tmp_path):
    setting = replace(LOCAL, train_func=partial(plain_training, partial(nn.Linear, 2, 3), cross_entropy))
    with pytest.raises(ValueError, match=r"(?s)it returns a different model than create_model .*linear\.weight"):
        build_benchmark(setting, tmp_path)
    assert not (tmp_path / FOLDER / "retrained" / "lds").exists()


def test_models_that_learn_nothing_are_found_before_the_ground_truth(tmp_path):
    with pytest.raises(BuildError, match="mean target"):
        build_benchmark(trained_for(0), tmp_path)
    assert not (tmp_path / FOLDER / "retrained" / "lds").exists()


def test_sizes_that_make_no_benchmark():
    for name, metric, fewest in (("num_subsets", "lds", 3), ("num_removed", "loo", 4)):
        for wrong in range(1, fewest):
            with pytest.raises(ValueError, match=rf"{name}: expected at least {fewest} for '{metric}', got {wrong};"):
                replace(LOCAL, metrics=(metric,), **{name: wrong})
        replace(LOCAL, metrics=(metric,), **{name: fewest})
        replace(LOCAL, metrics=("mislabel",), **{name: 1})  # which has no such models
    with pytest.raises(ValueError, match=r"flip_fraction: 0\.05 of 12 training samples is less than one"):
        replace(LOCAL, metrics=("mislabel",), flip_fraction=0.05)


def test_one_seed_one_model():
    """With dropout and a loader that shuffles, and whatever the caller's random state is."""

    def new():
        return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    trainer = EnsembleTrainer(new, cross_entropy, optimizer=partial(torch.optim.SGD, lr=0.5), num_epochs=3)
    loader = DataLoader(TensorDataset(*points(None).train.tensors), batch_size=4, shuffle=True)
    first = trainer(loader, seed=3).state_dict()
    torch.rand(7)
    state = torch.get_rng_state()
    again, other = trainer(loader, seed=3).state_dict(), trainer(loader, seed=4).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)


def test_nothing_is_warned_of(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_setting(LOCAL, "lds", tmp_path)
