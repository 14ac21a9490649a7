"""Runs that cannot mix: a checkpoint is used only where the plan has it; nothing outside of a directory is touched."""

import os
import shutil

import pytest
import torch
import yaml
from helpers import files, loss, loss_of_file, make_loader, train
from torch.utils.data import DataLoader

from dattri.metric import calculate_lds_ground_truth, calculate_loo_ground_truth
from dattri.model_util.checkpoint import load_checkpoint, owner_of, to_bytes
from dattri.model_util.retrain import retrain_lds, retrain_loo
from dattri.model_util.retrain_dir import _signed

pytestmark = pytest.mark.usefixtures("one_thread")
TESTS = DataLoader(make_loader().dataset, batch_size=4)
MOVED = r"is not the model that metadata\.yml plans here"
SMALL = {"num_subsets": 3, "num_runs_per_subset": 2}


def lds_truth(path):
    return calculate_lds_ground_truth(loss_of_file, path, TESTS)


def swap(left, right):
    left.rename(left.with_name("aside"))
    right.rename(left)
    left.with_name("aside").rename(right)


@pytest.mark.parametrize("mode", ["lds", "loo"])
def test_models_that_have_changed_places_are_refused(mode, tmp_path):
    if mode == "lds":
        retrain_lds(train, make_loader(), tmp_path, seed=0, **SMALL)
        swap(tmp_path / "0" / "model_weights_0.pt", tmp_path / "1" / "model_weights_0.pt")
    else:
        retrain_loo(train, make_loader(), tmp_path, [1, 2, 3], seed=0)
        swap(tmp_path / "index_1" / "model_weights.pt", tmp_path / "index_3" / "model_weights.pt")
    with pytest.raises(ValueError, match=MOVED):
        lds_truth(tmp_path) if mode == "lds" else calculate_loo_ground_truth(loss, tmp_path, TESTS)
    with pytest.raises(ValueError, match=MOVED):
        if mode == "lds":
            retrain_lds(train, make_loader(), tmp_path, seed=0, **SMALL)
        else:
            retrain_loo(train, make_loader(), tmp_path, [1, 2, 3], seed=0)


EDITS = [
    ("seed: 0", "seed: 1"), ("batch_size: 4", "batch_size: 2"), ("num_runs_per_subset: 2", "num_runs_per_subset: 1"),
    ("shared_seed: false", "shared_seed: true"), ("subset_ratio: 0.5", "subset_ratio: 0.25"), ("digest: ", "digest: 0"),
    ("numpy: ", "numpy: 1"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), EDITS)
def test_a_plan_that_was_edited_is_refused(before, after, tmp_path):
    retrain_lds(train, make_loader(), tmp_path, seed=0, **SMALL)
    file = tmp_path / "metadata.yml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ValueError, match=r"metadata\.yml cannot be used: it was edited"):
        lds_truth(tmp_path)


def test_models_of_another_run_are_refused(tmp_path):
    for seed in (0, 1):
        retrain_lds(train, make_loader(), tmp_path / str(seed), seed=seed, **SMALL)
    shutil.copy(tmp_path / "1" / "2" / "model_weights_1.pt", tmp_path / "0" / "2" / "model_weights_1.pt")
    with pytest.raises(ValueError, match=r"2/model_weights_1\.pt is not the model"):
        lds_truth(tmp_path / "0")


def test_checkpoints_of_before_are_read_and_continued(tmp_path):
    """Those of earlier versions, and of the original library, do not say whose they are."""
    retrain_lds(train, make_loader(), tmp_path, seed=0, **SMALL)
    expected = lds_truth(tmp_path)
    for file in tmp_path.glob("*/*.pt"):
        assert owner_of(file).startswith("dattri ")
        file.write_bytes(to_bytes(load_checkpoint(file)))
        assert owner_of(file) == ""
    (tmp_path / "1" / "model_weights_0.pt").unlink()
    retrain_lds(train, make_loader(), tmp_path, seed=0, **SMALL)
    assert all(map(torch.equal, lds_truth(tmp_path), expected))


def test_a_run_ends_when_another_takes_its_directory(start_child, tmp_path):
    """The old run goes on for as long as the new one has not begun; then it says so, and writes nothing more."""
    code = """
def slow(dataloader):
    time.sleep(0.2)
    return train(dataloader)
try:
    retrain_lds(slow, make_loader(), path, num_subsets=200, seed=0)
except ValueError as error:
    print(error)
"""
    with start_child(code, tmp_path / "run") as old:
        while not (tmp_path / "run" / "2" / "model_weights_0.pt").exists():
            assert old.poll() is None
        retrain_lds(train, make_loader(), tmp_path / "run", num_subsets=200, seed=1, overwrite=True)
        old.wait(60)
        assert "was taken over by another call with overwrite=True, so this call stops" in old.stdout
    retrain_lds(train, make_loader(), tmp_path / "alone", num_subsets=200, seed=1)
    assert files(tmp_path / "run") == files(tmp_path / "alone")


@pytest.mark.parametrize("overwrite", [False, True])
def test_links_are_not_followed(overwrite, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model_weights_0.pt").write_bytes(b"mine")
    (elsewhere / "indices.txt").write_text("mine")
    retrain_lds(train, make_loader(), tmp_path / "run", seed=0, **SMALL)
    shutil.rmtree(tmp_path / "run" / "0")
    (tmp_path / "run" / "0").symlink_to(elsewhere)
    before = files(elsewhere)
    with pytest.raises(ValueError, match="0 is a link, and links are not followed"):
        retrain_lds(train, make_loader(), tmp_path / "run", seed=0, overwrite=overwrite, **SMALL)
    assert files(elsewhere) == before


def test_metadata_that_is_a_link_to_nowhere(tmp_path):
    tmp_path.joinpath("metadata.yml").symlink_to(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"metadata\.yml is not a file, or is a broken link"):
        retrain_lds(train, make_loader(), tmp_path, seed=0, **SMALL)
    assert os.listdir(tmp_path) == ["metadata.yml"]


def test_other_people_s_files_are_left_alone(tmp_path):
    retrain_lds(train, make_loader(), tmp_path, num_subsets=1, seed=0)
    (tmp_path / ".movie.mp4.part").write_bytes(b"mine")
    (tmp_path / f".folder.{'0' * 32}.part").mkdir()
    retrain_lds(train, make_loader(), tmp_path, num_subsets=1, seed=0)
    assert (tmp_path / ".movie.mp4.part").read_bytes() == b"mine"


BOMBS = {
    "alias": "mode: lds\na: &a [1, 2]\nb: [*a, *a]\n",
    "merge": "base: &base {mode: lds}\nmore:\n  <<: *base\n",
    "nested": "mode: lds\na: " + "[" * 100_000 + "\n",
    "many subsets": "mode: lds\nformat: 1\nseed: 0\ndata_length: 12\nnum_subsets: 1000000000\nsubset_ratio: 0.5\n"
    "num_runs_per_subset: 1\nsubset_dir_map: {0: ./0}\n",
    "many runs": "mode: lds\nsubset_dir_map: {0: ./0}\nnum_runs_per_subset: 10000000000\n",
    "a key that cannot be hashed": "? {a: 1}\n: 2\n",
    "many runs, within ten million": "mode: lds\nsubset_dir_map: {0: ./0}\nnum_runs_per_subset: 9000000\n",
    "no length": "mode: lds\nsubset_dir_map: {0: ./0}\ndata_length: [1]\n",
    "no digits": "mode: lds\na: !!int ''\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_metadata_that_would_fill_the_memory(name, tmp_path):
    (tmp_path / "metadata.yml").write_text(BOMBS[name])
    with pytest.raises(ValueError, match=r"metadata\.yml cannot be used") as error:
        lds_truth(tmp_path)
    assert len(str(error.value)) < 1000


def test_a_folder_with_a_name_that_cannot_be(tmp_path):
    (tmp_path / "metadata.yml").write_text('mode: lds\nsubset_dir_map: {0: "a\\0b"}\n')
    with pytest.raises(ValueError, match=r"metadata\.yml names the folder 'a\\x00b', which is outside the directory"):
        lds_truth(tmp_path)


SIGNED = {
    "num_runs_per_subset": (3_000_000, "incomplete: missing 0/model_weights_1.pt.* and at least 9995 more .of 6000002"),
    "train_func": (["f"], r"metadata\.yml cannot be used"),
    "train_kwargs": (["f"], r"metadata\.yml cannot be used"),
}


@pytest.mark.parametrize("name", SIGNED)
def test_metadata_that_somebody_signed(name, tmp_path):
    """A digest reveals edits, not malice: numbers and kinds are checked, whatever it says."""
    value, message = SIGNED[name]
    retrain_lds(train, make_loader(), tmp_path, seed=0, num_subsets=2)
    file = tmp_path / "metadata.yml"
    file.write_text(yaml.safe_dump(_signed({**yaml.safe_load(file.read_text()), name: value})))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        lds_truth(tmp_path)


def test_a_number_with_too_many_digits(tmp_path):
    retrain_lds(train, make_loader(), tmp_path, seed=0, num_subsets=2)
    with (tmp_path / "metadata.yml").open("a") as file:
        file.write("more: " + ":".join(["59"] * 9000) + "\n")  # in base 60
    with pytest.raises(ValueError, match=r"metadata\.yml cannot be used"):
        lds_truth(tmp_path)
