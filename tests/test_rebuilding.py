"""A benchmark is of one build: whatever was trained again, interrupted, copied or changed, two are never mixed."""

import re
import shutil
import subprocess
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import child_command, files
from huggingface_hub import DatasetCard
from test_benchmarks import SMALL, classifier, points
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dattri.benchmark import build, folders
from dattri.benchmark.build import BuildError, build_benchmark
from dattri.benchmark.datasets import Datasets
from dattri.benchmark.hub import publish_benchmark
from dattri.benchmark.load import load_setting
from dattri.benchmark.manifest import Manifest
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.target import EnsembleTarget

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = replace(SMALL, repo_id=None)
FOLDER = Path("benchmark", "points_lr")


def train(dataloader, seed, epochs):
    """A small model; its initial weights come from the seed."""
    return replace(SMALL.train_func, num_epochs=epochs)(dataloader, seed)


def trained_for(epochs):
    """The small setting with a training function whose body has changed, but not its name."""

    def changed(dataloader, seed=None):
        return train(dataloader, seed, epochs)

    return replace(HERE, train_func=changed)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The build of a changed training function, with nothing there before."""
    path = tmp_path_factory.mktemp("fresh")
    build_benchmark(trained_for(9), path)
    return path


def weights(path, kind):
    """First weights of the models of a build, one row each."""
    models = sorted((path / FOLDER / f"models_{kind}").glob("*/model_weights_0.pt"))
    return [torch.load(file)["linear.weight"] for file in models]


def check_is(path, fresh, setting, metric):
    """What is loaded from a path is, all of it, what was built in another."""
    attributes, truth = load_setting(setting, metric, path)
    assert torch.equal(truth.values, torch.load(fresh / FOLDER / metric / f"target_values_{metric}.pt"))
    for kind in ("full", "half"):
        found = [torch.load(file)["linear.weight"] for file in attributes[f"models_{kind}"]]
        assert all(map(torch.equal, found, weights(fresh, kind)))


def test_what_was_built_again_is_loaded(tmp_path, fresh):
    load_setting(trained_for(2), "lds", tmp_path)
    changed = trained_for(9)
    build_benchmark(changed, tmp_path, overwrite=True)
    check_is(tmp_path, fresh, changed, "lds")
    check_is(tmp_path, fresh, changed, "loo")


@pytest.mark.parametrize("fatal", [1, 2, 3, 4])
def test_training_anew_is_interrupted(tmp_path, fresh, monkeypatch, fatal):
    build_benchmark(trained_for(2), tmp_path)
    changed = trained_for(9)
    retrain, calls = build._retrain, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        return retrain(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "_retrain", interrupted)
        build_benchmark(changed, tmp_path, overwrite=True)
    build_benchmark(changed, tmp_path)
    assert files(tmp_path / FOLDER) == files(fresh / FOLDER)


def never(dataloader, seed=None):
    """Nothing may be trained."""
    raise AssertionError


never.__name__ = "changed"


def test_a_build_is_enough(tmp_path, fresh):
    """The retrained models are not needed to load; a damaged file is refused, and built again when asked for."""
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / FOLDER / "retrained")
    for metric in ("loo", "lds"):
        check_is(tmp_path, fresh, replace(HERE, train_func=never), metric)
    damaged = tmp_path / FOLDER / "models_half" / "1" / "model_weights_0.pt"
    damaged.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{damaged} has changed.*redownload=True"):
        load_setting(trained_for(9), "lds", tmp_path)
    load_setting(trained_for(9), "lds", tmp_path, redownload=True)
    check_is(tmp_path, fresh, trained_for(9), "lds")


def test_other_tests_need_no_training(tmp_path, fresh):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    load_setting(trained_for(9), "lds", tmp_path)
    fewer = replace(HERE, train_func=never, test_size=4)
    with pytest.raises(ValueError, match=r"test_size: 5 there, 4 now.*replace it: build_benchmark\(setting, "):
        load_setting(fewer, "lds", tmp_path)
    build_benchmark(fewer, tmp_path)
    assert load_setting(fewer, "lds", tmp_path)[1].values.shape == (4, 4)


def test_only_what_was_built_is_published(tmp_path, fresh, hub):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    (tmp_path / FOLDER / "lds" / ".DS_Store").write_bytes(b"x")
    build_benchmark(replace(trained_for(3), metrics=("lds",), seed=7), tmp_path, overwrite=True)
    (tmp_path / FOLDER / "lds" / ".DS_Store").write_bytes(b"x")
    publish_benchmark(tmp_path, "me/points")
    assert {*hub.files("me/points")} == {"README.md"} | {f"points_lr/{name}" for name in (
        "manifest.json", "points_lr_full.zip", "points_lr_half.zip", "lds/indices_lds.pt", "lds/target_values_lds.pt",
    )}


def test_the_card(tmp_path, fresh, hub):
    """It has all benchmarks of the repository, those of earlier commits too; a card that somebody wrote stays."""
    publish_benchmark(fresh, "me/points", license="cc-by-4.0")
    build_benchmark(replace(HERE, model="other", metrics=("lds",)), tmp_path)
    publish_benchmark(tmp_path, "me/points", license="mit")
    card = DatasetCard(hub.files("me/points")["README.md"].decode())
    assert card.data.license == "mit" and card.data.size_categories == ["n<1K"] and "dattri" in card.data.tags
    for text in ("## points_lr", "## points_other", "load_setting(setting, 'lds')", "| lds: all targets are finite |"):
        assert text in card.text
    hub.change(("dataset", "me/points"), {"README.md": b"# By hand", "bad/manifest.json": b"{"})
    publish_benchmark(tmp_path / "benchmark" / "points_other", "me/points")
    assert hub.files("me/points")["README.md"] == b"# By hand"


def as_earlier(path):
    """Let what was built at a path lie as an earlier version left it."""
    groups = {"full": "models_full", "half": "models_half", "lds": "retrained/lds", "loo": "retrained/loo"}
    for group, place in groups.items():
        shutil.copytree(path / FOLDER / place, path / "retrained" / "points_lr" / group)
    shutil.rmtree(path / FOLDER / "retrained")
    (path / FOLDER / "manifest.json").unlink()
    for part in (path / FOLDER).iterdir():
        (part / ".sha256.json").write_text("{}")


def test_models_of_an_earlier_version_are_adopted(tmp_path, fresh):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    as_earlier(tmp_path)
    setting = replace(HERE, train_func=never)
    for call in (partial(load_setting, setting, "lds"), partial(build_benchmark, setting)):
        with pytest.raises(ValueError, match=f"{tmp_path / FOLDER} was filled by an earlier version.*redownload=True"):
            call(tmp_path)
    for metric in ("lds", "loo"):
        load_setting(setting, metric, tmp_path, redownload=True)
        check_is(tmp_path, fresh, setting, metric)
    assert files(tmp_path / FOLDER) == files(fresh / FOLDER)


BAD_MANIFESTS = {
    "cut off": (lambda text: text[:-20], "is cut off or damaged"),
    "newer": (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2, written by a newer version"),
    "outside": (lambda text: text.replace("lds/indices", "../lds/indices"), "which is not inside its folder"),
    "absolute": (lambda text: text.replace("lds/indices", "/lds/indices"), "which is not inside its folder"),
    "no file": (lambda text: text.replace("lds/indices", "lds/others"), "others_lds.pt is missing"),
    "other hash": (lambda text: re.sub('(indices_lds.pt": ")....', r"\g<1>0000", text), "indices_lds.pt has changed"),
    "other seed": (lambda text: text.replace('"seed": "0"', '"seed": "8"'), "seed: 8 there, 0 now"),
}


@pytest.mark.parametrize("what", BAD_MANIFESTS)
def test_a_manifest_that_must_not_be_used(tmp_path, fresh, what):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    spoil, problem = BAD_MANIFESTS[what]
    file = tmp_path / FOLDER / "manifest.json"
    file.write_text(spoil(file.read_text()))
    with pytest.raises(ValueError, match=f"(?s)points_lr.*{problem}.*(redownload=True|build_benchmark|upgrade)"):
        load_setting(trained_for(9), "lds", tmp_path)
    load_setting(trained_for(9), "lds", tmp_path, redownload=True)
    check_is(tmp_path, fresh, trained_for(9), "lds")


def test_what_was_built_and_what_was_fetched_are_not_mixed(tmp_path, hub):
    published = replace(HERE, repo_id="me/points", metrics=("lds", "loo"))
    build_benchmark(published, tmp_path / "one", metrics=["lds"])
    load_setting(published, "lds", tmp_path / "one")
    with pytest.raises(ValueError, match=r"built here, without loo: build_benchmark\(setting, .*'loo'\]\) adds it"):
        load_setting(published, "loo", tmp_path / "one")
    build_benchmark(published, tmp_path / "one")
    publish_benchmark(tmp_path / "one", "me/points")
    load_setting(published, "lds", tmp_path / "two")
    with pytest.raises(ValueError, match=r"downloaded from me/points; use another path, or replace .* overwrite=True"):
        build_benchmark(published, tmp_path / "two")
    with pytest.raises(ValueError, match="repo_id: me/points there, None now"):
        load_setting(HERE, "lds", tmp_path / "two")
    with pytest.raises(FileNotFoundError, match="path: nothing that was built"):
        publish_benchmark(tmp_path / "two", "me/points")
    build_benchmark(published, tmp_path / "two", overwrite=True)
    assert files(tmp_path / "two" / FOLDER) == files(tmp_path / "one" / FOLDER)


def test_a_cache_for_reading_only(tmp_path, fresh, monkeypatch):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    setting = trained_for(9)
    load_setting(setting, "lds", tmp_path)
    monkeypatch.setattr(folders.os, "access", lambda *_: False)  # root may write everywhere
    lock = tmp_path / "benchmark" / ".points_lr.lock"
    lock.unlink(missing_ok=True)
    check_is(tmp_path, fresh, setting, "lds")
    assert not lock.exists()


def test_who_waits_says_so(tmp_path, fresh):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    setting = trained_for(9)
    load_setting(setting, "lds", tmp_path)
    code = """
from filelock import FileLock
with FileLock(path):
    print("locked", flush=True)
    time.sleep(4)
"""
    with subprocess.Popen(
        child_command(code, tmp_path / "benchmark" / ".points_lr.lock"), stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.warns(UserWarning, match="another process is at work in .*points_lr; this one waits"):
            load_setting(setting, "lds", tmp_path)


@pytest.mark.parametrize("name", ["path", "download_path"])
def test_a_file_is_no_directory(tmp_path, name):
    file = tmp_path / "file"
    file.write_bytes(b"")
    call = partial(build_benchmark, HERE) if name == "path" else partial(load_setting, HERE, "lds")
    with pytest.raises(NotADirectoryError, match=f"^{name}: .*file is a file; expected a directory"):
        call(file)


def test_a_relative_path(tmp_path, fresh, monkeypatch):
    shutil.copytree(fresh, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    attributes, _ = load_setting(trained_for(9), "lds", "home")
    assert Path(attributes["models_full"][0]).is_absolute()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_within_a_mode_without_gradients(tmp_path, mode):
    with mode():
        attributes, truth = load_setting(HERE, "lds", tmp_path)
        assert not torch.is_grad_enabled()
    inputs, labels = attributes["train_dataset"].tensors
    (nn.Parameter(torch.ones(2)) * inputs).sum().backward()
    assert not truth.values.is_inference() and not labels.is_inference()


def test_with_a_default_device(tmp_path):
    torch.set_default_device("meta")
    try:
        attributes, truth = load_setting(HERE, "lds", tmp_path)
        assert torch.zeros(1).is_meta
    finally:
        torch.set_default_device(None)
    tensors = [truth.values, *attributes["train_dataset"].tensors, *attributes["model"].parameters()]
    assert not any(tensor.is_meta for tensor in tensors)


def test_a_list_of_metrics_is_refused(tmp_path):
    for metric in (["lds"], ("lds",)):
        with pytest.raises(ValueError, match="points_lr has no ground truth for"):
            load_setting(HERE, metric, tmp_path)


# --- data and models of many kinds ---


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
        HERE, create_model=create, create_datasets=partial(numbers, change), metrics=("lds",),
        train_func=partial(plain_training, create, loss_fn),
        target_func=EnsembleTarget(create, partial(loss_fn, reduction="none"), max_models=1),
    )
    folder = build_benchmark(setting, tmp_path)
    assert any("accuracy of full models" in check.what for check in Manifest.read(folder).checks) == known


def test_another_model_is_found_before_the_ground_truth(tmp_path):
    setting = replace(HERE, train_func=partial(plain_training, partial(nn.Linear, 2, 3), cross_entropy))
    with pytest.raises(ValueError, match=r"(?s)train_func: it gives another model than create_model .*linear\.weight"):
        build_benchmark(setting, tmp_path)
    assert not (tmp_path / FOLDER / "retrained" / "lds").exists()


def test_models_that_learn_nothing_are_found_before_the_ground_truth(tmp_path):
    with pytest.raises(BuildError, match="mean target"):
        build_benchmark(trained_for(0), tmp_path)
    assert not (tmp_path / FOLDER / "retrained" / "lds").exists()


def test_sizes_that_make_no_benchmark():
    for name in ("num_subsets", "num_removed"):
        with pytest.raises(ValueError, match=rf"{name}: expected .* 2"):
            replace(HERE, **{name: 1})
    with pytest.raises(ValueError, match=r"flip_fraction: 0\.05 of 12 training samples is less than one"):
        replace(HERE, metrics=("mislabel",), flip_fraction=0.05)


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
        load_setting(HERE, "lds", tmp_path)
