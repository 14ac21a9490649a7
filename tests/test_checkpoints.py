"""Checkpoints of all sizes: the recorded digest covers every byte, and loaded tensors lie in the memory of the file."""

import hashlib
import io

import numpy as np
import pytest
import torch
from torch import nn

from dattri.model_util.checkpoint import (
    content_id,
    load_checkpoint,
    nonfinite_names,
    to_bytes,
    verify_checksums,
    with_owner,
)

SIZES = [10, 2**14, 2**16, 2**18 + 1]  # numbers of 4 bytes; the first file is hashed whole


def state_of(size):
    draw = torch.Generator().manual_seed(size)
    names = {"weight": torch.randn(size, generator=draw), "mask": torch.rand(9, generator=draw) < 0.5}
    return {**names, "empty": torch.empty(0, 3), "odd": torch.arange(5, dtype=torch.int8)}


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_counts(size, tmp_path):
    file, written = tmp_path / "model.pt", with_owner(to_bytes(state_of(size)), "dattri 7")
    file.write_bytes(written)
    verify_checksums(file)
    draw = np.random.default_rng(size)
    places = [0, 2**16, 1021 * 64 * 8 - 1, 1021 * 64 * 8, len(written) // 2, *draw.integers(0, len(written) - 30, 30)]
    for place in places:
        if place < len(written) - 120:  # before the record that names the owner
            changed = bytearray(written)
            changed[place] ^= 1 << int(draw.integers(8))
            file.write_bytes(changed)
            with pytest.raises(ValueError, match=r"model.pt (is damaged|was not written by)"):
                verify_checksums(file)


@pytest.mark.parametrize("size", SIZES)
def test_loaded_tensors_are_those_saved(size, tmp_path):
    file, state = tmp_path / "model.pt", state_of(size)
    file.write_bytes(with_owner(to_bytes(state), "dattri 7"))
    loaded, by_torch = load_checkpoint(file), torch.load(file)
    assert list(loaded) == list(state)
    for name, value in state.items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype == by_torch[name].dtype
        loaded[name].fill_(1)  # memory of its own, which can be written
    assert all(torch.equal(value, state[name]) for name, value in load_checkpoint(file).items())


@pytest.mark.parametrize("size", SIZES)
def test_a_hash_of_the_whole_file_is_still_read(size, tmp_path):
    file, data = tmp_path / "model.pt", to_bytes(state_of(size))
    comment = f"dattri 7 {hashlib.sha256(data).hexdigest()}".encode()
    file.write_bytes(data[:-2] + len(comment).to_bytes(2, "little") + comment)
    assert torch.equal(load_checkpoint(file)["weight"], state_of(size)["weight"])
    assert content_id(file) == hashlib.sha256(data).hexdigest()
    file.write_bytes(file.read_bytes().replace(b"dattri 7", b"dattri 8", 1).replace(data[200:208], bytes(8), 1))
    with pytest.raises(ValueError, match="its bytes differ"):
        load_checkpoint(file)


@pytest.mark.parametrize("size", SIZES[1:])
def test_what_disks_do_is_seen(size, tmp_path):
    """Pages lost, doubled or in each other's place, wherever they are."""
    file, written = tmp_path / "model.pt", with_owner(to_bytes(state_of(size)), "dattri 7")
    draw, pages = np.random.default_rng(size), np.arange(len(written) // 4096 - 1)
    for _ in range(60):
        here, there = (slice(4096 * page, 4096 * (page + 1)) for page in draw.choice(pages, 2, replace=False))
        changed = bytearray(written)
        changed[here], changed[there] = {
            "lost": (bytes(4096), written[there]),
            "doubled": (written[there], written[there]),
            "swapped": (written[there], written[here]),
        }[str(draw.choice(["lost", "doubled", "swapped"]))]
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"model.pt (is damaged|was not written by)"):
            verify_checksums(file)


@pytest.mark.parametrize("change", ["swapped", "signs", "opposite"])
def test_two_changes_do_not_cancel(change):
    """Two words that trade places, change sign, or change by opposite amounts, at any distance."""
    words = np.random.default_rng(0).integers(2**40, 2**60, 2**15, dtype=np.uint64)
    right = with_owner(words.tobytes(), "dattri 7")[-70:]
    for distance in range(1, 2100):
        changed, places = words.copy(), [100, 100 + distance]
        if change == "swapped":
            changed[places] = changed[places[::-1]]
        else:
            changed[places] += np.array({"signs": [2**63, 2**63], "opposite": [2**64 - 8, 8]}[change], dtype=np.uint64)
        assert with_owner(changed.tobytes(), "dattri 7")[-70:] != right, distance


def test_booleans_are_true_or_false(tmp_path):
    buffer = io.BytesIO()
    torch.save({"mask": torch.ones(64, dtype=torch.bool)}, buffer)
    file = tmp_path / "mask.pt"
    file.write_bytes(with_owner(buffer.getvalue().replace(bytes([1]) * 64, bytes([2]) * 64), "dattri 7"))
    assert load_checkpoint(file)["mask"].sum() == 64


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_divergence_is_seen_in_every_dtype(dtype):
    """Also where infinities cancel, and never where finite numbers add up to infinity."""
    numbers = torch.tensor([torch.finfo(dtype).max] * 3 + [1.0], dtype=torch.float64)
    fine = {"large": numbers.to(dtype), "empty": torch.zeros(0, dtype=dtype)}
    assert nonfinite_names(fine) == []
    infinite = [[torch.inf], [torch.inf, -torch.inf]] if dtype.itemsize > 1 else []  # this float8 has no infinity
    for bad in ([torch.nan], [0.0, torch.nan], *infinite):
        assert nonfinite_names({"b": torch.tensor(bad).to(dtype), **fine}) == ["b"]


def test_infinite_buffers_are_no_divergence():
    model = nn.Module()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf, torch.inf]))
    assert nonfinite_names(model.state_dict(), model) == [] != nonfinite_names(model.state_dict())
    model.mask[0] = torch.nan
    assert nonfinite_names(model.state_dict(), model) == ["mask"]
