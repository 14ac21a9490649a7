"""Files that were damaged or made by somebody hostile: a clean error that names the file, or the right result.

A few hundred mutations run each time; `pytest -m campaign` runs thousands. Each may take 5 seconds and 1 GB.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import traceback
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers import files, loss, loss_of_file, make_loader, train
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from dattri.metric import GroundTruth, calculate_lds_ground_truth, calculate_loo_ground_truth
from dattri.metric.files import read_ground_truth, read_scores
from dattri.model_util.checkpoint import load_checkpoint, to_bytes
from dattri.model_util.retrain import retrain_lds, retrain_loo

CLEAN = (ValueError, TypeError, OSError)
SECONDS, BYTES = 5, 2**30
COUNTS = [pytest.param(40, id="some"), pytest.param(1500, id="many", marks=pytest.mark.campaign)]
NUMBERS = ["1000000000", "10000000000000", "-1", "0", "1.5", ".nan", ".inf", "1e400", "null", "true", "'x'", "[]", "{}"]
LINES = ["a: &a [1]", "b: *a", "<<: {a: 1}", "seed: 3", "mode: loo", "? [1, 2]", "!!python/object/apply:os.getcwd []"]


def flip(data, draw):
    """Some bytes changed."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def cut(data, draw):
    """The beginning of a file."""
    return data[: draw.randrange(len(data))]


def grow(data, draw):
    """Something repeated, or added, in the middle."""
    place, size = draw.randrange(len(data)), draw.choice([1, 4, 100])
    return data[:place] + draw.choice([draw.randbytes(size), data[place : place + size]]) + data[place:]


def end(data, draw):
    """The end changed, where an archive has its table of contents."""
    return data[:-300] + flip(data[-300:], draw)


def number(data, draw):
    """A number of a text replaced by something that it cannot be."""
    places = list(re.finditer(rb"(?<=: )\S+|\d+", data))
    chosen = draw.choice(places) if places else None
    return data[: chosen.start()] + draw.choice(NUMBERS).encode() + data[chosen.end() :] if chosen else data


def line(data, draw):
    """A line added, doubled, or left out."""
    lines = data.split(b"\n")
    place = draw.randrange(len(lines))
    new = draw.choice([[draw.choice(LINES).encode()], [lines[place]] * 2, [], [b"[" * 5000], [b"x" * 100_000]])
    return b"\n".join(lines[:place] + new + lines[place + 1 :])


BINARY, TEXT = (flip, cut, grow, end), (flip, cut, grow, number, line, number, line)


@contextmanager
def bounded():
    """At most some seconds; a hang is an error of its own kind."""

    def stop(*_):
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def content(value):
    """A result as something that can be compared."""
    if isinstance(value, nn.Module):
        return content(value.state_dict())
    return to_bytes(tuple(value) if isinstance(value, GroundTruth) else value)


def run_campaign(file, read, mutations, count, seed):
    """Mutate a file again and again; what went wrong, as texts."""
    whole, draw, failures = file.read_bytes(), random.Random(seed), []
    right, root = content(read()), file.parent
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        mutation = draw.choice(mutations)
        data = mutation(whole, draw)
        file.write_bytes(data)
        try:
            with bounded():
                wrong = content(read()) != right
            if wrong:
                failures.append(f"{mutation.__name__}: another result")
        except CLEAN as error:
            named = root.name in str(error) or file.name in str(error)
            if not named or isinstance(error, TimeoutError):
                failures.append(f"{mutation.__name__}: {type(error).__name__}: {str(error)[:200]}")
        except BaseException:
            failures.append(f"{mutation.__name__}: {traceback.format_exc()[-600:]}")
        if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) > memory + BYTES // 1024:
            failures.append(f"{mutation.__name__}: {(peak - memory) // 1024} MB")
            memory = peak
    file.write_bytes(whole)
    return failures


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Directories of both kinds, and files of scores."""
    path = tmp_path_factory.mktemp("campaign")
    retrain_lds(train, make_loader(), path / "lds", num_subsets=3, seed=0)
    retrain_loo(train, make_loader(), path / "loo", [1, 2, 3], seed=0)
    score = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    torch.save(score, path / "score.pt")
    np.save(path / "score.npy", score.numpy())
    save_file({"score": score}, path / "score.safetensors")
    (path / "bergson").mkdir()
    layout = {"names": ["score_0", "written_0"], "formats": ["float32", "bool"], "offsets": [0, 4], "itemsize": 8}
    np.array([(number, True) for number in range(6)], np.dtype(layout)).tofile(path / "bergson" / "scores.bin")
    info = {"attribute_tokens": False, "num_items": 6, "num_rows": 6, "num_scores": 1, "dtype": layout}
    (path / "bergson" / "info.json").write_text(json.dumps(info))
    GroundTruth(torch.ones(3, 4), torch.tensor([[0, 1], [1, 2], [2, 3]])).save(path / "truth.pt")
    return path


TESTS = DataLoader(make_loader().dataset, batch_size=4)
READERS = {
    "checkpoint": ("lds/0/model_weights_0.pt", BINARY, load_checkpoint),
    "subset's checkpoint": (
        "lds/1/model_weights_0.pt", BINARY, lambda f: calculate_lds_ground_truth(loss_of_file, f.parents[1], TESTS),
    ),
    "module": ("loo/model.pt", BINARY, lambda file: load_checkpoint(file, modules=True)),
    "module in use": ("loo/model.pt", BINARY, lambda file: calculate_loo_ground_truth(loss, file.parent, TESTS)),
    "LDS metadata": (
        "lds/metadata.yml", TEXT, lambda file: calculate_lds_ground_truth(loss_of_file, file.parent, TESTS),
    ),
    "LOO metadata": ("loo/metadata.yml", TEXT, lambda file: calculate_loo_ground_truth(loss, file.parent, TESTS)),
    "indices": ("lds/2/indices.txt", TEXT, lambda f: calculate_lds_ground_truth(loss_of_file, f.parents[1], TESTS)),
    "scores of torch": ("score.pt", BINARY, read_scores),
    "scores of numpy": ("score.npy", BINARY, lambda file: torch.as_tensor(np.array(read_scores(file)))),
    "scores of safetensors": ("score.safetensors", BINARY, read_scores),
    "scores of bergson": ("bergson/info.json", TEXT, lambda file: torch.as_tensor(np.array(read_scores(file)))),
    "ground truth": ("truth.pt", BINARY, read_ground_truth),
}  # fmt: skip
# what no reader can know: numbers of an array have no checksum, and who wrote a text file may write another one
UNKNOWABLE = {"scores of numpy", "scores of safetensors"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_errors_that_name_them(name, count, root):
    relative, mutations, read = READERS[name]
    file = root / relative
    before = files(root)
    failures = run_campaign(file, lambda: read(file), mutations, count, seed=name)
    if name in UNKNOWABLE:
        failures = [failure for failure in failures if not failure.endswith("another result")]
    assert not failures, json.dumps(failures[:8], indent=1)
    assert files(root) == before


@pytest.mark.parametrize("kind", ["pipe", "device", "empty", "huge", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_not_a_file_of_ours_is_refused_at_once(name, kind, root, tmp_path):
    """Opening a pipe would wait for ever, a device never ends, and a file of zeros may be larger than the memory."""
    shutil.copytree(root, tmp_path / "copy")
    relative, _, read = READERS[name]
    file = tmp_path / "copy" / relative
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 2**43 if kind == "huge" else 0)
    with bounded(), pytest.raises(CLEAN) as caught:
        read(file)
    assert "copy" in str(caught.value) and not isinstance(caught.value, TimeoutError)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_checkpoint_is_refused_or_trained_again(count, root, tmp_path):
    """Resuming ends with the model of an undisturbed run, or there is an error that says which file is damaged."""
    arguments = {"num_subsets": 3, "seed": 0}
    retrain_lds(train, make_loader(), tmp_path, **arguments)
    file, draw = tmp_path / "1" / "model_weights_0.pt", random.Random(1)
    whole, right = file.read_bytes(), content(load_checkpoint(file))
    for _ in range(count // 4):
        file.write_bytes(draw.choice((cut, end))(whole, draw))
        try:
            with bounded():
                retrain_lds(train, make_loader(), tmp_path, **arguments)
        except ValueError as error:
            assert str(file) in str(error)
        else:
            try:
                assert content(load_checkpoint(file)) == right
            except ValueError as error:  # damage that only reading the whole file shows
                assert str(file) in str(error)
        file.write_bytes(whole)
