"""Pickles and whole modules that somebody hostile has made: refused before anything of them is done."""

import builtins
import importlib
import io
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from data_files import zip_bytes
from torch import nn

from dattri.benchmark.music import generated_pieces
from dattri.metric.files import read_ground_truth, read_scores
from dattri.model_util import checkpoint
from dattri.model_util.checkpoint import load_checkpoint, to_bytes
from dattri.model_util.pickles import check_pickle


def nested(kind, depth):
    """Pairs of pairs of pairs: a few bytes for each level, and 2**depth parts."""
    value = kind(())
    for _ in range(depth):
        value = kind((value, value))
    return value


def with_pickle(pickled, name="archive/data.pkl"):
    """A file as torch writes it, with another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(to_bytes(torch.ones(2)))) as good, zipfile.ZipFile(file, "w") as bad:
        for member in good.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            bad.writestr(name if is_pickle else member, pickled if is_pickle else good.read(member))
    return file.getvalue()


def key_of(value):
    """A dictionary with a key that takes forever to be hashed, as bytes: nobody could make it as an object."""
    return b"\x80\x02}" + pickle.dumps(value, 2)[2:-1] + b"K\x01s."


HOSTILE = {
    "nested tuples as a key": (key_of(nested(tuple, 60)), "it has a tuple as a key"),
    "nested tuples": (pickle.dumps(nested(tuple, 60), 2), "expand too far"),
    "nested lists": (pickle.dumps(nested(list, 60), 2), "expand too far"),
    "a deep list": (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "nested too deeply"),
    "a list that contains itself": (b"\x80\x02]q\x00h\x00a.", "contains itself"),
    "bytearray": (pickle.dumps(bytearray(8), 2), r"names (__builtin__|builtins)\.bytearray"),
    "much memory": (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", r"names builtins\.bytearray"),
    "a set of tuples": (b"\x80\x02c__builtin__\nset\n](K\x01K\x02\x86e\x85R.", "it has a tuple as a key"),
    "many places": (b"\x80\x02]r\xff\xff\xff\x7f.", "memo slots"),
    "nothing": (b"\x80\x02.", "does not end with one value"),
    "no stack": (b"\x80\x02\x85.", "empty stack"),
    "a call": (b"\x80\x02cos\ngetcwd\n)R.", r"names os\.getcwd"),
    "an extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "no pickle": (b"what is this", "not a pickle"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_at_once(name, tmp_path):
    pickled, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message):
        check_pickle(pickled)
    file = tmp_path / "bad.pt"
    file.write_bytes(with_pickle(pickled))
    for read in (load_checkpoint, read_scores, read_ground_truth):
        with pytest.raises(ValueError, match=r"bad\.pt"):
            read(file)
    pieces = tmp_path / "pieces.zip"
    pieces.write_bytes(zip_bytes({"piece_0": pickled}))
    with pytest.raises(ValueError, match="piece_0: expected a pickled list of tokens"):
        generated_pieces(pieces)


@pytest.mark.parametrize("name", ["archive/DATA.PKL", "archive/data.PKL", "data.pkl", "other/data.pkl"])
def test_a_pickle_under_another_name_is_not_read(name, tmp_path):
    (tmp_path / "bad.pt").write_bytes(with_pickle(HOSTILE["a call"][0], name))
    with pytest.raises(ValueError, match=r"bad\.pt is damaged"):
        load_checkpoint(tmp_path / "bad.pt")


def test_a_small_file_does_not_swell(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**24)
    with pytest.raises(ValueError, match=r"bomb\.pt is damaged .*would expand to 16,777,216"):
        load_checkpoint(tmp_path / "bomb.pt")
    torch.save(torch.zeros(1).expand(2**40, 2), tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"wide\.pt .*a tensor of shape .* needs more than the file.s .* bytes"):
        read_scores(tmp_path / "wide.pt")


VALUES = {
    "tensors of all dtypes": [torch.ones(2, dtype=dtype) for dtype in (torch.bool, torch.uint16, torch.bfloat16)],
    "state": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict(),
    "optimizer": torch.optim.Adam(nn.Linear(2, 1).parameters()).state_dict(),
    "plain values": {"a": [1, 2.5, None, True, "text", (1, 2)], 3: {"b": {"c": 2**40}}},
    "parameter": nn.Parameter(torch.ones(2)),
    "shared": [nested(tuple, 3), [torch.ones(1)] * 5],
    "size and dtype": (torch.Size([1, 2]), torch.float32),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_torch_saves_is_loaded(name, tmp_path):
    torch.save(VALUES[name], tmp_path / "good.pt")
    assert to_bytes(load_checkpoint(tmp_path / "good.pt")) == to_bytes(VALUES[name])


def interpreter():
    """A module of torch's export that interprets its attributes; they name a function of the process."""
    from torch.export.unflatten import InterpreterModule  # noqa: PLC0415

    module = InterpreterModule.__new__(InterpreterModule)
    nn.Module.__init__(module)
    module.graph = nn.Identity()
    return module


@pytest.mark.parametrize(
    "make", [interpreter, lambda: torch.fx.symbolic_trace(nn.ReLU()), lambda: nn.Sequential(interpreter())]
)
def test_modules_that_interpret_their_attributes_are_refused(make, tmp_path):
    before = dict(vars(builtins))
    torch.save(make(), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"module\.pt names torch\.(export|fx)\."):
        load_checkpoint(tmp_path / "module.pt", modules=True)
    assert dict(vars(builtins)) == before


def test_classes_of_installed_packages_need_a_word_of_the_user(tmp_path):
    from transformers.activations import NewGELUActivation  # noqa: PLC0415  (an nn.Module of another package)

    torch.save(nn.Sequential(nn.Linear(1, 1), NewGELUActivation()), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"names transformers.*add_safe_globals"):
        load_checkpoint(tmp_path / "module.pt", modules=True)
    with torch.serialization.safe_globals([NewGELUActivation]):
        assert isinstance(load_checkpoint(tmp_path / "module.pt", modules=True)[1], NewGELUActivation)


@pytest.mark.parametrize("place", ["mine", "lib/site-packages", "lib/dist-packages", "target"])
def test_packages_of_other_environments_are_installed_too(place, tmp_path, monkeypatch):
    """A virtual environment may see those of the system or the user, and PYTHONPATH any others."""
    package = tmp_path / place / "elsewhere"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text("from torch.nn import Identity\nclass Layer(Identity): pass\n")
    if place == "target":
        (tmp_path / place / "elsewhere-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path / place)
    try:
        torch.save(importlib.import_module("elsewhere.layers").Layer(), tmp_path / "module.pt")
        if place == "mine":
            assert type(load_checkpoint(tmp_path / "module.pt", modules=True)).__name__ == "Layer"
        else:
            with pytest.raises(ValueError, match=r"module\.pt names elsewhere\.layers\.Layer"):
                load_checkpoint(tmp_path / "module.pt", modules=True)
    finally:
        del sys.modules["elsewhere.layers"], sys.modules["elsewhere"]


def test_torch_may_be_installed_anywhere(tmp_path, monkeypatch):
    torch.save(interpreter(), tmp_path / "module.pt")
    monkeypatch.setattr(checkpoint, "_is_installed", lambda module, file: False)
    with pytest.raises(ValueError, match=r"module\.pt names torch\.export\."):
        load_checkpoint(tmp_path / "module.pt", modules=True)


def test_headers_of_arrays_are_bounded(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 2), }\n"
    (tmp_path / "wide.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16))
    with pytest.raises(ValueError, match=r"wide\.npy could not be read"):
        read_scores(tmp_path / "wide.npy")
    np.save(tmp_path / "objects.npy", np.array([[1, None]]), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects"):
        read_scores(tmp_path / "objects.npy")
