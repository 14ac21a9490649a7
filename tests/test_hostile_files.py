"""Archives and checkpoints on a hub that would run code, leave their folder, fill the memory, or do not fit."""

import io
import os
import stat
import zipfile

import pytest
import torch
from benchmark_helpers import FULL, HALF, INDICES, REPO, VALUES, WHOLE, check_whole, in_place, load
from data_files import numbered, zip_bytes
from helpers import Evil

from dattri.benchmark.models.linear import LogisticRegression
from dattri.model_util.checkpoint import load_checkpoint, to_bytes

pytestmark = pytest.mark.usefixtures("one_thread", "registry")


def evil(path):
    """A checkpoint that would run code."""
    return to_bytes({"linear.weight": torch.zeros(3, 2), "linear.bias": Evil(path / "ran")})


def swelling(content):
    """The same checkpoint, compressed, as torch never writes it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return zip_bytes({member: archive.read(member) for member in archive.namelist()})


def with_flag(members, offset, value):
    """A zip archive with another number in the directory entry of the first member."""
    content = bytearray(zip_bytes(members))
    place = content.index(b"PK\1\2") + offset
    content[place : place + len(value)] = value
    return bytes(content)


def special(name, kind):
    """A member that is not a plain file."""
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


def broken_inside(members):
    """A zip archive whose first member cannot be decompressed."""
    content = bytearray(zip_bytes(members))
    content[60:90] = bytes(30)
    return bytes(content)


def with_first(models, content):
    """A zip archive of models, the first of which is another one."""
    return zip_bytes(models | numbered([content]))


UNUSABLE = "model 0 cannot be used: .*"
NAN = torch.full((3, 2), torch.nan)
BAD_ZIPS = {
    "leads out": (lambda good, path: zip_bytes(good | {"../../evil": b"x"}), "'../../evil' leads out of the folder"),
    "absolute": (lambda good, path: zip_bytes({str(path / "evil"): b"x"} | good), "evil' leads out of the folder"),
    "drive": (lambda good, path: zip_bytes(good | {"C:evil": b"x"}), "'C:evil' leads out of the folder"),
    "symlink": (lambda good, path: zip_bytes({special("3", stat.S_IFLNK): str(path)} | good), "is not a regular file"),
    "device": (lambda good, path: zip_bytes(good | {special("3", stat.S_IFCHR): b""}), "is not a regular file"),
    "bomb": (lambda good, path: zip_bytes(good | {"zeros": bytes(2**26)}), r"bytes would expand to 67,\d+,\d+"),
    "large": (lambda good, path: zip_bytes({"0/model_weights_0.pt": os.urandom(2**21)}), "is too large"),
    "lies": (lambda good, path: with_flag(good, 24, b"\1\0\0\0"), "is damaged"),
    "encrypted": (lambda good, path: with_flag(good, 8, b"\1"), "is encrypted"),
    "lzma": (lambda good, path: zip_bytes(good, zipfile.ZIP_LZMA), "is compressed in an unusual way"),
    "missing numbers": (lambda good, path: zip_bytes({name: good[name] for name in sorted(good)[::2]}), r"got \[0, 2"),
    "empty": (lambda good, path: zip_bytes({}), r"got \[\]"),
    "cut": (lambda good, path: zip_bytes(good)[:-30], "is damaged"),
    "broken inside": (lambda good, path: broken_inside(good), "is damaged"),
    "no zip": (lambda good, path: b"no zip", "is damaged"),
    "code": (lambda good, path: with_first(good, evil(path)), UNUSABLE + "names .*getattr"),
    "bomb inside": (
        lambda good, path: with_first(good, swelling(to_bytes({"a": torch.zeros(2**22)}))), UNUSABLE + "expand to 16,"
    ),
    "bytes": (lambda good, path: with_first(good, to_bytes(bytearray(8))), UNUSABLE + "names __builtin__.bytearray"),
    "nan": (
        lambda good, path: with_first(good, to_bytes({"linear.weight": NAN, "linear.bias": torch.ones(3)})),
        "model 0 has NaN or infinity in linear.weight",
    ),
    "cut inside": (lambda good, path: with_first(good, b"PK"), UNUSABLE + "is damaged"),
    "a list": (lambda good, path: with_first(good, to_bytes([1])), UNUSABLE + "holds list"),
    "other model": (
        lambda good, path: with_first(good, to_bytes(LogisticRegression(3, 3).state_dict())),
        "model 0 does not fit LogisticRegression",
    ),
    "a missing name": (
        lambda good, path: with_first(good, to_bytes({"linear.weight": torch.zeros(3, 2)})),
        "model 0 does not fit LogisticRegression",
    ),
}


@pytest.mark.parametrize("what, name", [*((what, HALF) for what in BAD_ZIPS), ("symlink", FULL), ("code", FULL)])
def test_a_zip_that_must_not_be_used(on_hub, hub, tmp_path, what, name):
    before = WHOLE[1:3] if name == HALF else []
    spoil, problem = BAD_ZIPS[what]
    with zipfile.ZipFile(io.BytesIO(on_hub[name])) as archive:
        models = {member: archive.read(member) for member in archive.namelist()}
    hub.put(REPO, name, spoil(models, tmp_path))
    with pytest.raises(ValueError, match=f"(?s){name}.*{problem}.*redownload=True"):
        load(tmp_path)
    assert in_place(tmp_path) == before
    hub.put(REPO, name, on_hub[name])
    check_whole(tmp_path, redownload=bool(before))  # what is there is of the commit with the bad file


NO_FIT = "ground truth does not fit points_lr"
ROWS = torch.arange(24).view(4, 6) % 12
BAD_TENSORS = {
    "code": (INDICES, evil, "names .*getattr"),
    "dict": (VALUES, lambda _: to_bytes({"values": torch.rand(4, 5)}), "expected a tensor, got dict"),
    "sparse": (VALUES, lambda _: to_bytes(torch.rand(4, 5).to_sparse()), "which has the layout torch.sparse_coo"),
    "bytes": (VALUES, lambda _: to_bytes({"values": bytearray(8)}), "names __builtin__.bytearray"),
    "cut": (VALUES, lambda _: to_bytes(torch.rand(4, 5))[:-10], "is damaged"),
    "text": (INDICES, lambda _: b"what is this", "was not written by torch.save"),
    "empty": (INDICES, lambda _: b"", "is empty"),
    "a zip": (VALUES, lambda _: zip_bytes({"a": b"b"}), "is damaged .it is compressed"),
    "bomb": (VALUES, lambda _: swelling(to_bytes(torch.zeros(2**22))), r"would expand to 16,\d+,\d+"),
    "expanded": (VALUES, lambda _: to_bytes(torch.zeros(1).expand(2**30, 2**30)), "needs more than the file.s .* byte"),
    "models": (VALUES, lambda _: to_bytes(torch.rand(3, 5)), NO_FIT),
    "tests": (VALUES, lambda _: to_bytes(torch.rand(4, 6)), NO_FIT),
    "one axis": (VALUES, lambda _: to_bytes(torch.rand(5)), NO_FIT),
    "nan": (VALUES, lambda _: to_bytes(torch.full((4, 5), torch.nan)), NO_FIT),
    "number": (INDICES, lambda _: to_bytes(torch.tensor(3)), NO_FIT),
    "nothing": (INDICES, lambda _: to_bytes(torch.zeros(4, 0, dtype=torch.int64)), NO_FIT),
    "too large": (INDICES, lambda _: to_bytes(ROWS + 1), NO_FIT),
    "negative": (INDICES, lambda _: to_bytes(ROWS - 1), NO_FIT),
    "twice": (INDICES, lambda _: to_bytes(ROWS // 2), NO_FIT),
    "no whole numbers": (INDICES, lambda _: to_bytes(ROWS.double() * torch.inf), NO_FIT),
    "bool": (INDICES, lambda _: to_bytes(ROWS[:, :2] > 0), NO_FIT),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_a_ground_truth_that_must_not_be_used(on_hub, hub, tmp_path, what):
    name, spoil, problem = BAD_TENSORS[what]
    hub.put(REPO, name, spoil(tmp_path))
    place = "points_lr/lds" if problem == NO_FIT else name
    with pytest.raises(ValueError, match=f"(?s){place}.*{problem}.*redownload=True"):
        load(tmp_path)
    assert in_place(tmp_path) == WHOLE[1:]
    hub.put(REPO, name, on_hub[name])
    check_whole(tmp_path, redownload=True)


def test_two_members_of_one_name(tmp_path):
    """A reader may take either."""
    pickles = []
    for content in (bytearray(8), torch.ones(1)):
        with zipfile.ZipFile(io.BytesIO(to_bytes(content))) as archive:
            pickles.append(archive.read("archive/data.pkl"))
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as both, pytest.warns(UserWarning, match="Duplicate name"):
        for pickled in pickles:
            both.writestr("archive/data.pkl", pickled)
    with pytest.raises(ValueError, match="two records share a name"):
        load_checkpoint(tmp_path / "a.pt")


LIES = [("X-Linked-Etag", '"../../../../../evil"'), ("X-Repo-Commit", "../../../evil"), ("X-Repo-Commit", "abc")]


@pytest.mark.parametrize("header, value", LIES)
def test_a_hub_that_names_paths(on_hub, hub, tmp_path, header, value):
    """The client makes paths of what the hub says; nothing is written outside of its cache, or at all."""
    hub.lies[FULL] = {header: value}
    with pytest.raises(OSError, match=r"could not be fetched: ValueError: .*expected hexadecimal digits"):
        load(tmp_path)
    assert not [*tmp_path.parent.rglob("*evil*")]
    assert in_place(tmp_path) == []
    hub.lies.clear()
    check_whole(tmp_path)


def test_the_code_would_have_run(tmp_path):
    torch.load(io.BytesIO(evil(tmp_path)), weights_only=False)
    assert (tmp_path / "ran").exists()
