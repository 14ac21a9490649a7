"""Files of scores and ground truth that users hand in: what is read, and what is refused in our own words."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from helpers import Evil

from dattri.metric import GroundTruth
from dattri.metric.files import read_ground_truth, read_scores
from dattri.metric.report import judge

NPY = io.BytesIO()
np.save(NPY, np.arange(6.0).reshape(2, 3))
HEADERS = [
    "", "{", "}", "{'descr': '<f8'}", "'\\", "\x00" * 20,
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }}",
    "{'descr': '<f8', 'fortran_order': 0, 'shape': (2, 3)}",
    "{'descr': 'f99', 'fortran_order': False, 'shape': (2, 3)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, -3)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': '23'}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (10**30,)}",
    f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30},)}}",
    "[" * 3000, "(" * 300 + ")" * 300, "{'descr': '<f8'" + " " * 20_000 + "}",
    "__import__('os').system('true')",
]
OTHERS = [np.zeros((2, 2), complex), np.zeros(2, "f4,f4"), np.array(["a"]), torch.eye(2).to_sparse()]


def npy(header):
    """A file of numpy.save with this header before the numbers."""
    content = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content + np.arange(6.0).tobytes()


def refused(file, match="."):
    """The message, which must be one of ours: no advice to run code, one line."""
    with pytest.raises(ValueError, match=match) as error:
        read_scores(file)
    message = str(error.value)
    assert message.startswith("scores: ")
    assert str(file) in message
    assert "\n" not in message
    assert "allow_pickle" not in message
    assert "weights_only" not in message


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_headers_that_numpy_cannot_parse(tmp_path, number):
    (tmp_path / "bad.npy").write_bytes(npy(HEADERS[number]))
    refused(tmp_path / "bad.npy", "header or its length is damaged|Python objects")


def test_every_changed_byte_of_a_header_is_read_or_refused(tmp_path):
    file, whole, generator = tmp_path / "changed.npy", NPY.getvalue(), np.random.default_rng(0)
    outcomes = []
    for place in range(128):
        for byte in (0, 255, *generator.integers(0, 256, 2).tolist()):
            file.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                outcomes.append(read_scores(file).size)
            except ValueError as error:
                outcomes.append(None)
                assert str(error).startswith("scores")
                assert "allow_pickle" not in str(error)
    assert 10 < outcomes.count(None) < len(outcomes)


@pytest.mark.parametrize("content", ["0.5,0.25\n", "", "pickle", "torch", "zip", "cut"])
def test_other_files_named_npy(tmp_path, content):
    file = tmp_path / "scores.npy"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("scores.npy", NPY.getvalue())
    stored = io.BytesIO()
    torch.save(torch.ones(2, 2), stored)
    others = {"torch": stored.getvalue(), "zip": archive.getvalue(), "cut": NPY.getvalue()[:-1]}
    others["pickle"] = pickle.dumps([0.5])
    file.write_bytes(others.get(content, content.encode()))
    refused(file, "length is damaged" if content == "cut" else "does not start as numpy.save starts a file")


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_nothing_in_a_file_is_run(tmp_path, suffix):
    file, witness = tmp_path / f"scores{suffix}", tmp_path / "ran"
    if suffix == ".pt":
        torch.save(Evil(witness), file)
    else:
        np.save(file, np.array([Evil(witness)], dtype=object), allow_pickle=True)
    refused(file, "could run code")
    with pytest.raises(ValueError, match=r"^ground truth: .*could run code"):
        read_ground_truth(file)
    assert not witness.exists()


@pytest.mark.parametrize("values", OTHERS, ids=lambda values: str(values.dtype))
def test_arrays_of_something_else(tmp_path, values):
    file = tmp_path / ("scores.pt" if isinstance(values, torch.Tensor) else "scores.npy")
    torch.save(values, file) if isinstance(values, torch.Tensor) else np.save(file, values)
    with pytest.raises(ValueError, match=f"^scores {file}: expected real numbers"):
        read_scores(file)


def test_ground_truth_of_every_metric(tmp_path):
    values, score = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    pairs = {
        "loo": [torch.tensor([3, 1, 2, 0])],
        "lds": [torch.tensor([[0, 1], [1, 2], [2, 3], [0, 3]]), list(torch.arange(4)[:, None]), torch.eye(4).bool()],
    }
    for metric, several in pairs.items():
        for indices in several:
            GroundTruth(values, indices).save(tmp_path / "truth.pt")
            truth = read_ground_truth(tmp_path / "truth.pt")
            assert judge(score, truth).metric == judge(score, truth, metric).metric == metric
            with pytest.raises(ValueError, match=f"^metric: 'mislabel' does not fit.*as for '{metric}'"):
                judge(score, truth, "mislabel")
    for labels in (torch.tensor([1, 0]), torch.tensor([True, False])):
        torch.save(labels, tmp_path / "labels.pt")
        np.save(tmp_path / "labels.npy", labels.numpy())
        for name in ("labels.pt", "labels.npy"):
            truth = read_ground_truth(tmp_path / name)
            assert truth.tolist() == labels.tolist()
            assert judge(torch.tensor([0.5, 0.1]), truth).metric == "mislabel"
    np.save(tmp_path / "matrix.npy", values.numpy())
    with pytest.raises(ValueError, match=r"^ground truth: .* one array of shape \(4, 3\); expected a pair"):
        read_ground_truth(tmp_path / "matrix.npy")


@pytest.mark.parametrize("kind", ["?", "i1", ">i2", ">i8", "u1", "u2", ">u4", "u8", "f2", ">f4", "f8"])
def test_report_reads_self_attribution_of_every_dtype(tmp_path, kind):
    labels = np.array([0, 1, 1, 0, 0, 1])
    score = np.array([0, 1, 1, 1, 0, 1]).astype(kind)
    np.save(tmp_path / "own.npy", score)
    np.save(tmp_path / "square.npy", np.diag(score))
    for form in (score, score[::-1].copy()[::-1], np.diag(score), *map(read_scores, tmp_path.glob("*.npy"))):
        assert judge(form, labels.astype(kind)).value == pytest.approx(1 - 0.5 / 3)


def test_what_a_file_holds(tmp_path):
    score = torch.ones(3, 2)
    torch.save({"score": score}, tmp_path / "dict.pt")
    refused(tmp_path / "dict.pt", "holds dict; expected one tensor")
    damaged = r"is damaged \(BadZipFile: File is not a zip file\); expected"
    for name, message in [("bad.pt", damaged), ("bad.csv", "is neither .npy")]:
        (tmp_path / name).write_text("1,2")
        refused(tmp_path / name, message)
    torch.save(torch.nn.Parameter(score), tmp_path / "parameter.pt")
    assert not read_scores(tmp_path / "parameter.pt").requires_grad
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_scores(tmp_path / "missing.pt")
