"""Files of ground truth: every kind comes back as it was, anything else is refused, and nothing in a file is run."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import Evil, make_loader, train

from dattri.metric import GroundTruth
from dattri.metric.ground_truth import calculate_lds_ground_truth, calculate_loo_ground_truth
from dattri.model_util.retrain import retrain_lds, retrain_loo

VALUES = torch.tensor([[0.5, -1.5], [2.0, 3.0], [0.0, 7.0]])
INDICES = {
    "removed": torch.tensor([4, 0, 2]),
    "matrix": torch.tensor([[0, 1], [2, 3], [1, 4]]),
    "unequal": [torch.tensor([0, 1]), torch.tensor([4]), torch.tensor([0, 2, 3])],
    "mask": torch.tensor([[True, False, True], [False, True, True], [True, True, False]]),
}
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint16, torch.bool]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]


def same(one, other):
    """Whether two tensors or lists of tensors have equal dtypes, shapes and values."""
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return one.dtype == other.dtype and one.shape == other.shape and one.tolist() == other.tolist()


def writers(truth, file):
    """Every way to write a ground truth."""
    yield lambda: truth.save(file)
    yield lambda: torch.save(truth, file)
    yield lambda: torch.save(tuple(truth), file)
    yield lambda: torch.save(list(truth), file)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", INDICES)
def test_comes_back_as_it_was(tmp_path, kind, dtype):
    truth = GroundTruth(VALUES.to(dtype), INDICES[kind])
    for write in writers(truth, tmp_path / "truth.pt"):
        write()
        values, indices = GroundTruth.load(tmp_path / "truth.pt")
        assert same(values, truth.values)
        assert same(indices, truth.indices)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("kind", ["removed", "matrix", "unequal"])
def test_positions_keep_their_dtype(tmp_path, kind, dtype):
    positions = INDICES[kind]
    indices = [part.to(dtype) for part in positions] if isinstance(positions, list) else positions.to(dtype)
    GroundTruth(VALUES, indices).save(tmp_path / "truth.pt")
    assert same(GroundTruth.load(tmp_path / "truth.pt").indices, indices)


def test_arrays_and_views_are_written_as_tensors_of_their_own(tmp_path):
    large = torch.zeros(1000, 1000, requires_grad=True)
    GroundTruth(large[:3, :2], np.array([[0, 1], [2, 3], [1, 4]], ">i4")[:, ::-1]).save(tmp_path / "truth.pt")
    assert (tmp_path / "truth.pt").stat().st_size < 10_000
    loaded = GroundTruth.load(tmp_path / "truth.pt")
    assert loaded.indices.tolist() == [[1, 0], [3, 2], [4, 1]]
    assert not loaded.values.requires_grad


def test_ground_truth_of_retraining(tmp_path):
    loader = make_loader(8)
    retrain_loo(train, loader, tmp_path / "loo", seed=0)
    retrain_lds(train, loader, tmp_path / "lds", num_subsets=3, seed=0)
    for truth in (
        calculate_loo_ground_truth(lambda model, data: torch.arange(8.0), tmp_path / "loo", loader),
        calculate_lds_ground_truth(lambda path, data: torch.arange(8.0), tmp_path / "lds", loader),
    ):
        for write in writers(truth, tmp_path / "truth.pt"):
            write()
            assert all(map(same, GroundTruth.load(tmp_path / "truth.pt"), truth))
        torch.save(truth, tmp_path / "truth.pt")
        assert type(torch.load(tmp_path / "truth.pt", weights_only=True)) is GroundTruth


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (VALUES, "expected a pair of tensors .values, indices., got Tensor"),
        ((VALUES,), "got tuple of length 1"),
        ({"values": VALUES, "indices": INDICES["matrix"]}, "got dict"),
        ((VALUES[0], INDICES["removed"]), r"values: expected shape \(num_models, num_test\), got \(2,\)"),
        ((VALUES, INDICES["removed"][:2]), r"indices: expected one removed .* 3 rows of values, got shape \(2,\)"),
        ((VALUES, INDICES["unequal"][:2]), "3 rows of values, got 2 tensors"),
        ((VALUES, INDICES["matrix"][None]), "3 rows of values, got shape"),
        ((VALUES, INDICES["matrix"].float()), r"integer dtype.*got torch.float32 of shape \(3, 2\)"),
        ((VALUES, INDICES["mask"][0]), "integer dtype.*got torch.bool"),
        ((VALUES.to(torch.complex64), INDICES["matrix"]), "values: expected real numbers.*complex64"),
        ((VALUES.to_sparse(), INDICES["matrix"]), "values: expected real numbers.*to_dense"),
        (("values", INDICES["matrix"]), "values: got str"),
        ((VALUES, None), "indices: got NoneType"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_refused_contents(tmp_path, content, match):
    file = tmp_path / "truth.pt"
    torch.save(content, file)
    with pytest.raises((TypeError, ValueError), match=f"^ground truth {file}.*{match}"):
        GroundTruth.load(file)


def test_what_load_refuses_is_not_written(tmp_path):
    file = tmp_path / "truth.pt"
    GroundTruth(VALUES, INDICES["matrix"]).save(file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"^ground_truth, indices"):
        GroundTruth(VALUES, INDICES["matrix"][:1]).save(file)
    with pytest.raises(OSError, match="cannot write"):
        GroundTruth(VALUES, INDICES["matrix"]).save(tmp_path / "no folder" / "truth.pt")
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["truth.pt"]


def test_nothing_in_a_file_is_run(tmp_path):
    file, witness = tmp_path / "truth.pt", tmp_path / "ran"
    for content in (Evil(witness), (VALUES, Evil(witness))):
        torch.save(content, file)
        with pytest.raises(ValueError, match="could run code"):
            GroundTruth.load(file)
    assert not witness.exists()


def test_damage_is_seen(tmp_path):
    file = tmp_path / "truth.pt"
    GroundTruth(torch.arange(2000.0).view(1000, 2), torch.arange(1000)).save(file)
    whole = file.read_bytes()
    for damaged in (b"", b"1,2", whole[:-40], whole[: len(whole) // 2], whole[:2000] + b"?" + whole[2001:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(file)):
            GroundTruth.load(file)
    with pytest.raises(FileNotFoundError, match="file not found"):
        GroundTruth.load(tmp_path)


def test_saved_files_need_no_dattri(tmp_path):
    GroundTruth(VALUES, INDICES["unequal"]).save(tmp_path / "truth.pt")
    program = "import sys, torch; print(torch.load(sys.argv[1])[0].shape); assert 'dattri' not in sys.modules"
    command = [sys.executable, "-c", program, tmp_path / "truth.pt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "torch.Size([3, 2])\n"
