"""Pickles and whole modules that somebody hostile has made: refused before anything of them is done."""

import builtins
import importlib
import io
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict

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


def in_parts(archive):
    """Members, table of contents and end record of a zip archive."""
    end = archive.rfind(b"PK\5\6")
    size, start = struct.unpack_from("<2L", archive, end + 12)
    return archive[:start], archive[start : start + size], archive[end:]


def with_two_tables(shown, hidden):
    """The table of `shown` is at the end; that of `hidden`, of equal size, is where the end record says."""
    seen, table, end = in_parts(shown)
    members, other, _ = in_parts(hidden)
    moved = bytearray(table)
    for match in re.finditer(b"PK\1\2", table):
        place = match.start() + 42
        offset = struct.unpack_from("<L", table, place)[0] + len(members) - len(seen)
        struct.pack_into("<L", moved, place, offset % 2**32)
    end = end[:12] + struct.pack("<2L", len(other), len(members)) + end[20:]
    return members + other + seen + bytes(moved) + end


@pytest.mark.parametrize("owner", ["", "dattri x y"])
def test_two_tables_of_contents_are_refused(owner, tmp_path):
    """Python reads the table that ends where the end record starts, torch the one whose place it names."""
    hidden = HOSTILE["nested tuples as a key"][0]
    with zipfile.ZipFile(io.BytesIO(to_bytes({"mask": nn.Parameter(torch.ones(2))}))) as good:
        shown = good.read("archive/data.pkl")
    size = max(len(hidden), len(shown))
    both = with_two_tables(with_pickle(shown.ljust(size)), with_pickle(hidden.ljust(size)))
    file = tmp_path / "bad.pt"
    file.write_bytes(checkpoint.with_owner(both, owner) if owner else both)
    with pytest.raises(ValueError, match=r"bad\.pt is damaged \(its table of contents is not where"):
        load_checkpoint(file)


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
    "with gradient": torch.ones(2, requires_grad=True),
    "sparse": torch.eye(3).to_sparse(),
    "a set": {1, 2},
}
WHOLE = torch.arange(24.0).view(4, 6)
PLAIN = {
    "dense dtypes": {
        str(dtype): torch.arange(5).to(dtype)
        for dtype in (
            torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
            torch.float32, torch.float64, torch.complex64, torch.complex128,
        )
    },
    "views of one storage": [WHOLE, WHOLE.T, WHOLE[1:, ::2], WHOLE[2, 3], WHOLE[:0], WHOLE[0].expand(3, 6)],
    "nothing in it": [torch.zeros(0), torch.zeros(3, 0, 2), torch.tensor(7), {}, [], ()],
    "one tensor twice": {"a": WHOLE, "b": WHOLE},
    "buffers and versions": nn.Sequential(nn.LSTM(2, 3), nn.BatchNorm1d(3), nn.Embedding(4, 2)).state_dict(),
    "tied weights": nn.TransformerEncoderLayer(4, 2, 8).state_dict(keep_vars=False),
    "other keys": {0: "zero", None: 1, 2.5: True, "": -(2**70)},
    "ordered": OrderedDict(a=OrderedDict(b=torch.ones(1))),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES | PLAIN)
def test_what_torch_saves_is_loaded(name, tmp_path):
    value = (VALUES | PLAIN)[name]
    torch.save(value, tmp_path / "good.pt")
    assert to_bytes(load_checkpoint(tmp_path / "good.pt")) == to_bytes(value)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_need_no_unpickler(name, tmp_path, monkeypatch):
    """And they are what torch makes of the file, in memory of their own."""
    file = tmp_path / "good.pt"
    torch.save(PLAIN[name], file)
    expected = torch.load(file)
    monkeypatch.setattr(torch, "load", None)
    found = load_checkpoint(file)
    assert type(found) is type(expected) and getattr(found, "_metadata", 0) == getattr(expected, "_metadata", 0)
    for one, other in zip(tensors_in(found), tensors_in(expected), strict=True):
        assert (one.dtype, one.stride(), one.storage_offset()) == (other.dtype, other.stride(), other.storage_offset())
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes() and not one._is_view()
        assert one.untyped_storage().data_ptr() % 64 == 0  # products depend on it


def tensors_in(value):
    """Tensors in lists and dictionaries."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [value] if isinstance(value, torch.Tensor) else [tensor for part in parts for tensor in tensors_in(part)]


MINUS, MUCH, HALF = b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"G?\xe0\0\0\0\0\0\0"
PLACES = {"offset": b"QK\0", "size": b"K\x02\x85", "stride": b"K\x01\x85", "count": b"K\x02t", "key": b"X\x01\0\0\x000"}
OUTSIDE = [
    (place, PLACES[place].replace(PLACES[place].strip(b"Q")[:2], number))
    for place in ("offset", "size", "stride", "count")
    for number in (b"K\x63", MINUS, MUCH, HALF, b"N", b"X\x01\0\0\0a")
]


@pytest.mark.parametrize(("place", "other"), [*OUTSIDE, ("key", b"X\x01\0\0\x001")])
def test_tensors_outside_of_their_storage_are_refused(place, other, tmp_path):
    with zipfile.ZipFile(io.BytesIO(to_bytes(torch.ones(2)))) as good:
        pickled = good.read("archive/data.pkl")
    assert pickled.count(PLACES[place]) == 1
    file = tmp_path / "bad.pt"
    file.write_bytes(with_pickle(pickled.replace(PLACES[place], other)))
    with pytest.raises(ValueError, match=r"bad\.pt"):
        load_checkpoint(file)


FAR = [
    (0, (2**70,), (0,)), (0, (2**63,), (0,)), (0, (2**33, 2**33), (0, 0)), (0, (0, 2**70), (1, 1)),
    (0, (1,), (2**70,)), (2**63, (0,), (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("offset", "size", "stride"), FAR)
def test_numbers_beyond_those_of_torch_are_refused(offset, size, stride, tmp_path):
    def numbers(values):
        return b"".join(b"\x8a\x0a" + value.to_bytes(10, "little") for value in values)

    with zipfile.ZipFile(io.BytesIO(to_bytes(torch.ones(2)))) as good:
        pickled = good.read("archive/data.pkl")
    pickled = pickled.replace(PLACES["offset"], b"Q" + numbers([offset]))
    for place, values in (("size", size), ("stride", stride)):
        pickled = pickled.replace(PLACES[place], b"(" + numbers(values) + b"t")
    file = tmp_path / "bad.pt"
    file.write_bytes(with_pickle(pickled))
    with pytest.raises(ValueError, match=r"bad\.pt was not loaded"):
        load_checkpoint(file)


@pytest.mark.parametrize("value", [torch.ones(2), nn.Parameter(torch.ones(2))], ids=["tensor", "parameter"])
@pytest.mark.parametrize("count", [3, 99, 2**31 - 1])
def test_memory_beyond_a_record_is_never_read(value, count, tmp_path):
    """Some versions of torch give a storage the size that it claims, and so the tensors on it."""
    with zipfile.ZipFile(io.BytesIO(to_bytes(value))) as good:
        pickled = good.read("archive/data.pkl")
    number = b"J" + count.to_bytes(4, "little")
    for place in ("count", "size"):
        pickled = pickled.replace(PLACES[place], number + PLACES[place][2:])
    (tmp_path / "bad.pt").write_bytes(with_pickle(pickled))
    with pytest.raises(ValueError, match=r"bad\.pt is damaged \(storage '0' of"):
        load_checkpoint(tmp_path / "bad.pt")


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


@pytest.mark.parametrize("home", ["torch.nn.modules.linear torch.", "dattri.metric.inputs torch.", "__main__ torch."])
@pytest.mark.parametrize("name", ["nn.DataParallel", "nn.parallel.DataParallel", "ao.nn.quantized.Linear"])
def test_classes_that_an_allowed_module_imports_are_refused(home, name, tmp_path, monkeypatch):
    """The name of an allowed module may lead through its imports to any other one."""
    monkeypatch.setattr(sys.modules["__main__"], "torch", torch, raising=False)
    file = tmp_path / "module.pt"
    file.write_bytes(with_pickle(b"\x80\x02c" + (home + name).replace(" ", "\n").encode() + b"\n)\x81}b."))
    with pytest.raises(ValueError, match=r"module\.pt names .*neither one of torch's layers"):
        load_checkpoint(file, modules=True)


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
