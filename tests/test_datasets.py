"""The readers of the data sets, on small files in the real formats from a server on this machine."""

import numpy as np
import pytest
import torch
from data_files import cifar_archive, idx

from dattri.benchmark import datasets


def test_mnist(serve, tmp_path):
    add, asked = serve
    generator = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 5), ("test", 3)):
        images = generator.integers(256, size=(count, 28, 28), dtype=np.uint8)
        files[part] = images, generator.integers(10, size=count, dtype=np.uint8)
        for kind, array in zip(("images", "labels"), files[part], strict=True):
            add(f"mnist_{part}_{kind}", idx(array), mirrors=2)
    for part, (images, labels) in zip(datasets.mnist(tmp_path), files.values(), strict=True):
        expected = (images[:, None].astype(np.float32) / 255 - 0.1307) / 0.3081
        np.testing.assert_allclose(part.tensors[0].numpy(), expected, atol=1e-6)
        assert part.tensors[1].tolist() == labels.tolist()
    count = len(asked)
    datasets.mnist(tmp_path)
    assert len(asked) == count == 8, "the mirror was asked after the first server, and nothing a second time"


def test_cifar2(serve, tmp_path):
    add, _ = serve
    generator = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    size = 6, 3, 32, 32
    batches = {name: (generator.integers(256, size=size, dtype=np.uint8), [3, 5, 0, 5, 9, 3]) for name in names}
    add("cifar10", cifar_archive(batches))
    train, test = datasets.cifar2(tmp_path)
    assert train.tensors[1].tolist() == [0, 1, 1, 0] * 5 and test.tensors[1].tolist() == [0, 1, 1, 0]
    expected = batches["data_batch_2"][0][[0, 1, 3, 5]].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(train.tensors[0][4:8].numpy(), expected, atol=1e-6)


def test_shakespeare(serve, tmp_path):
    add, _ = serve
    text = "abc\n" * 1000
    add("shakespeare", text.encode())
    train, test = datasets.shakespeare(tmp_path)
    inputs, later = train.tensors
    assert inputs.shape == (14, 256) and len(test) == 1
    assert inputs.flatten()[:5].tolist() == [1, 2, 3, 0, 1]
    assert torch.equal(later.flatten()[:-1], inputs.flatten()[1:]) and later[-1, -1] == 1


@pytest.mark.parametrize("fault", ["wrong bytes", "not found"])
def test_a_bad_download_leaves_nothing_and_the_next_one_works(serve, tmp_path, fault):
    add, _ = serve
    source = add("shakespeare", b"to be or not to be", wrong=fault == "wrong bytes")
    if fault == "not found":
        source = datasets.Source(source.name, (source.urls[0] + "x",), source.sha256)
    with pytest.raises(OSError, match=r"tinyshakespeare.txt could not be downloaded .*http://127.0.0.1.*digits"):
        datasets.fetch(source, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert datasets.fetch(add("shakespeare", b"to be or not to be"), tmp_path).read_bytes() == b"to be or not to be"
