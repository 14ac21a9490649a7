"""The script that computes published numbers again, on a stand-in for MNIST: digits enlarged to 28 x 28 and shifted."""

import gzip
import json
import math
import struct
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from dattri.benchmark import datasets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published():
    """The script as a module."""
    sys.path.insert(0, str(ROOT / "perf"))
    try:
        import published as module  # noqa: PLC0415
    finally:
        sys.path.remove(str(ROOT / "perf"))
    return module


@pytest.fixture(scope="module")
def stand_in():
    """5,600 images with labels that are no MNIST: digits of scikit-learn, enlarged, each also shifted in three ways."""
    data = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    large = interpolate(small, size=(28, 28), mode="bilinear")[:, 0]
    shifted = [large.roll(shift, (1, 2)) for shift in ((0, 0), (1, 2), (-2, 1), (2, -1))]
    order = np.random.default_rng(0).permutation(4 * len(large))[:5600]
    images = (torch.cat(shifted) * 255).round().to(torch.uint8).numpy()[order]
    return images, np.tile(data.target, 4)[order]


def idx(array):
    """Bytes of an IDX file."""
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


QUICK = [
    "--train-size", "200", "--test-size", "40", "--num-subsets", "6", "--num-full", "2", "--num-removed", "8",
    "--device", "cpu", "--damping", "0.1",
]  # fmt: skip


def test_the_whole_script_on_a_file(published, stand_in, tmp_path, capsys):
    images, labels = (array[:300] for array in stand_in)
    np.savez(tmp_path / "stand_in.npz", images=images, labels=labels)
    out = tmp_path / "results" / "published-stand-in.json"
    options = ["--images", str(tmp_path / "stand_in.npz"), "--home", str(tmp_path / "home"), "--out", str(out)]
    published.main([*options, "--model", "lr", *QUICK])
    printed = capsys.readouterr().out
    assert "images of stand_in.npz: 200 training and 40 test samples, one run per subset" in printed
    record = json.loads(out.read_text())
    rows = {(row["metric"], row["method"]): row for row in record["rows"]}
    assert record["comparable"] and {metric for metric, _ in rows} == {"lds", "loo", "mislabel"}
    assert {method for _, method in rows} == {*published.METHODS}
    found = published.Row(**rows["lds", "IF explicit"])
    assert found.published == 0.798 and -1 <= found.low <= found.high <= 1 and found.option == "damping 0.1"
    assert found.difference == (found.value - 0.798, found.low - 0.798, found.high - 0.798)
    assert f"{found.difference[0]:+.3f} [{found.difference[1]:+.3f}, {found.difference[2]:+.3f}]" in printed
    assert rows["mislabel", "IF CG"]["value"] is None and "costs too much" in rows["mislabel", "IF CG"]["error"]
    assert rows["lds", "IF CG"]["value"] == pytest.approx(found.value, abs=0.05)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("with_tests", [True, False])
def test_folders_of_idx_files(published, stand_in, tmp_path, compressed, with_tests):
    images, labels = stand_in[0], stand_in[1].astype(np.uint8)
    parts = {"train": slice(0, 5050), "t10k": slice(5050, None)} if with_tests else {"train": slice(None)}
    for part, rows in parts.items():
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array[rows])
            file = tmp_path / (f"{part}-{kind}-ubyte" + ".gz" * compressed)
            file.write_bytes(gzip.compress(content) if compressed else content)
    train, test = published.find_images(tmp_path, tmp_path).data
    assert len(train) == 5000 and len(test) == 500 and train.tensors[0].shape[1:] == (1, 28, 28)
    normal = (torch.tensor(images[:3], dtype=torch.float32) / 255 - 0.1307) / 0.3081
    assert torch.allclose(train.tensors[0][:3, 0], normal) and train.tensors[1][:9].tolist() == labels[:9].tolist()
    first = 5050 if with_tests else 5000
    assert test.tensors[1].tolist() == labels[first : first + 500].tolist()


def test_the_protocol_is_the_published_one(published, stand_in):
    images = published.Images("stand-in", published.cut([published.as_tensors(*stand_in)], 5000, 500), True)
    lr, mlp = (published.protocol(model, images) for model in ("lr", "mlp"))
    assert (lr.num_runs, lr.batch_size, lr.train_func.num_epochs, lr.train_size, lr.test_size) == (1, 32, 20, 5000, 500)
    assert lr.train_func.optimizer.keywords == {"lr": 0.01} and lr.metrics == ("lds", "loo", "mislabel")
    assert (mlp.num_runs, mlp.batch_size, mlp.train_func.num_epochs, mlp.num_subsets) == (1, 64, 50, 50)
    assert mlp.train_func.optimizer.keywords == {"lr": 0.01, "momentum": 0.9} and mlp.metrics == ("lds",)
    counts = [sum(part.numel() for part in setting.new_model().parameters()) for setting in (lr, mlp)]
    assert counts == [7850, 109386] and lr.repo_id is None


def test_digits_have_no_difference(published, tmp_path, monkeypatch, capsys):
    def no_network(_):
        raise OSError("train-images could not be downloaded")

    monkeypatch.setattr(datasets, "mnist", no_network)
    images = published.find_images(None, tmp_path)
    assert images.name == "digits" and not images.comparable and "digits are judged instead" in capsys.readouterr().out
    assert published.protocol("lr", images).dataset == "digits" and published.protocol("mlp", images).train_size == 1297
    row = published.Row("lr", "lds", "Grad-Dot", "", 0.3, 0.2, 0.4, 1.0, 0.328)
    head, line = published.cells([row], images.comparable)
    assert head[-1] == "published for MNIST" and line[-1] == "0.328"
    assert published.cells([row], True)[1][-1] == "-0.028 [-0.128, +0.072]"
    assert math.isnan(published.Row("mlp", "lds", "IF explicit", "", 0.3, 0.2, 0.4, 1.0, None).difference[0])


def test_mnist_from_the_network_is_cut_to_the_published_size(published, stand_in, tmp_path, monkeypatch):
    whole = published.cut([published.as_tensors(*stand_in)], 5050, 550)
    monkeypatch.setattr(datasets, "mnist", lambda _: whole)
    images = published.find_images(None, tmp_path)
    assert images.name == "MNIST" and images.comparable and [len(part) for part in images.data] == [5000, 500]
    assert torch.equal(images.data.test.tensors[0], whole.test.tensors[0][:500])


def test_files_that_are_no_images(published, stand_in, tmp_path):
    images, labels = stand_in
    with pytest.raises(FileNotFoundError, match="--images: no file or folder"):
        published.read_images(tmp_path / "missing.npz")
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte"):
        published.read_images(tmp_path)
    (tmp_path / "text.npz").write_bytes(b"text")
    np.savez(tmp_path / "other.npz", images=images[:3])
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object), labels=labels[:1])
    for name in ("text", "other", "objects"):
        with pytest.raises(ValueError, match=f"--images .*{name}.npz: expected arrays images and labels"):
            published.read_images(tmp_path / f"{name}.npz")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x0d\x01")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match="expected an IDX file of bytes"):
        published.read_images(tmp_path)
    with pytest.raises(ValueError, match=r"expected shape \(num_images, 28, 28\).*got \(5600, 784\)"):
        published.as_tensors(images.reshape(-1, 784), labels)
    with pytest.raises(ValueError, match="--images: expected 6,000 images or more, got 5,600"):
        published.cut([published.as_tensors(images, labels)], 5500, 500)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in it"):
        published.read_images(tmp_path)
