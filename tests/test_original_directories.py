"""Leave-one-out directories of the original library are read, however paths are written; no code of theirs is run."""

import pathlib
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
import torch
import yaml
from helpers import Evil, files, make_loader, train

from dattri.metric import calculate_loo_ground_truth
from dattri.model_util.retrain import retrain_lds, retrain_loo
from dattri.model_util.retrain_dir import RetrainDir, read_metadata

INDICES = [7, 0, 3]


def losses(model, dataloader):
    """Loss of each test sample."""
    with torch.no_grad():
        return torch.cat([(model(inputs) - labels).square().flatten() for inputs, labels in dataloader])


def write_original(home, named, *, whole):
    """What the original library leaves: a dump of `pathlib` objects, and modules or state dicts; and the models."""
    torch.manual_seed(0)
    models = {index: train(make_loader()) for index in INDICES}
    for index, model in models.items():
        (home / f"index_{index}").mkdir(parents=True)
        torch.save(model if whole else model.state_dict(), home / f"index_{index}" / "model_weights.pt")
    folders = {index: named(f"index_{index}") for index in INDICES}
    metadata = {"mode": "loo", "data_length": 12, "train_func": "train", "indices": INDICES, "map_index_dir": folders}
    (home / "metadata.yml").write_text(yaml.dump(metadata))
    return models


def expected(models):
    return torch.stack([losses(models[index], make_loader(shuffle=False)) for index in sorted(INDICES)])


def read(home, **options):
    return calculate_loo_ground_truth(losses, home, make_loader(shuffle=False), **options)


NAMED = {
    "relative to the directory": lambda home: Path,
    "absolute": lambda home: lambda name: home / name,
    "relative to where it was written": lambda home: lambda name: Path("runs/loo") / name,
    "absolute elsewhere": lambda home: lambda name: Path("/moved/since") / name,
    "pure": lambda home: lambda name: PurePosixPath("./runs") / name,
    "of Windows": lambda home: lambda name: PureWindowsPath("C:\\runs\\loo") / name,
    "text": lambda home: lambda name: f"./{name}",
}


@pytest.mark.parametrize("whole", [True, False], ids=["modules", "state dicts"])
@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
def test_original_directories_give_the_same_bits(named, whole, tmp_path):
    models = write_original(tmp_path / "loo", named(tmp_path / "loo"), whole=whole)
    before = files(tmp_path)
    values, indices = read(tmp_path / "loo", **({} if whole else {"model": train(make_loader())}))
    assert indices.tolist() == sorted(INDICES) and torch.equal(values, expected(models))
    assert files(tmp_path) == before


CLASSES = ["Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"]
WRITTEN = {
    "block": "\n  - runs\n  - index_{}",
    "flow": " [runs, index_{}]",
    "one part": " ['./index_{}']",
    "scalar": " runs/index_{}",
    "quoted scalar": ' "./index_{}"',
}


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("call", ["apply", "new"])
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_every_class_of_pathlib_in_every_python(module, name, call, written, tmp_path):
    """Python 3.13 calls its module `pathlib._local`; that the text is a path of this system is not needed."""
    models = write_original(tmp_path, Path, whole=True)
    lines = [f"  {index}: !!python/object/{call}:{module}.{name}{written.format(index)}\n" for index in INDICES]
    (tmp_path / "metadata.yml").write_text("mode: loo\nmap_index_dir:\n" + "".join(lines))
    values, _ = read(tmp_path)
    assert torch.equal(values, expected(models))


@pytest.mark.parametrize("indices", [range(12), range(0, 8, 7)], ids=str)
def test_positions_given_as_a_range(indices, tmp_path):
    """`retrain_loo(..., indices=range(50))` of the original library writes the range as a call."""
    models = write_original(tmp_path, Path, whole=True)
    metadata = yaml.unsafe_load((tmp_path / "metadata.yml").read_text()) | {"indices": indices}
    (tmp_path / "metadata.yml").write_text(yaml.dump(metadata))
    assert "builtins.range" in (tmp_path / "metadata.yml").read_text()
    values, _ = read(tmp_path)
    assert torch.equal(values, expected(models))


def test_the_classes_are_those_of_pathlib():
    """None is left out."""
    classes = {name: value for name, value in vars(pathlib).items() if isinstance(value, type)}
    assert {name for name, value in classes.items() if issubclass(value, pathlib.PurePath)} == set(CLASSES)


REFUSED = {
    "call": "!!python/object/apply:os.system ['touch {marker}']",
    "call with a path's name": "!!python/object/apply:os.path.PosixPath [index_3]",
    "call in a path": "!!python/object/apply:pathlib.PosixPath [!!python/object/apply:os.system ['touch {marker}']]",
    "name in a path": "!!python/object/apply:pathlib.PosixPath [!!python/name:os.system '']",
    "arguments by name": "!!python/object/apply:pathlib.PosixPath {{args: [index_3], state: {{a: 1}}}}",
    "list in a path": "!!python/object/apply:pathlib.PosixPath [[index_3]]",
    "other method of a path": "!!python/object/apply:pathlib.Path.touch ['{marker}']",
    "module": "!!python/module:antigravity ''",
    "name": "!!python/name:os.system ''",
    "object": "!!python/object:pathlib.PosixPath {{}}",
    "tuple": "!!python/tuple [index_3]",
    "range of a call": "!!python/object/apply:builtins.range [!!python/object/apply:os.system ['touch {marker}']]",
    "range of text": "!!python/object/apply:builtins.range [index_3]",
    "range by name": "!!python/object/apply:builtins.range {{args: [3]}}",
    "endless range": "!!python/object/apply:builtins.range [0, 3, 0]",
    "call beside a range": "!!python/object/apply:builtins.eval ['3']",
}


@pytest.mark.parametrize("place", ["map_index_dir", "other"])
@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_every_other_call_is_refused_and_nothing_is_run_or_deleted(value, place, tmp_path):
    write_original(tmp_path / "loo", Path, whole=True)
    folder = value.format(marker=tmp_path / "marker")
    lines = {"map_index_dir": "\n  3: ./index_3", "other": "1", place: f"\n  3: {folder}"}
    text = "".join(f"{key}: {value}\n" for key, value in {"mode": "loo", **lines}.items())
    (tmp_path / "loo" / "metadata.yml").write_text(text)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"metadata.yml cannot be used.*not plain YAML") as error:
        read(tmp_path / "loo")
    assert "overwrite" not in str(error.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize("outside", ["..", "../..", "/etc", "../other/index_9"])
def test_paths_outside_the_directory_are_refused(outside, tmp_path):
    write_original(tmp_path / "loo", lambda name: Path(outside), whole=True)
    with pytest.raises(ValueError, match="outside the directory"):
        read(tmp_path / "loo")


NOT_OURS = {
    "of the original library": lambda home: None,
    "cut off": lambda home: (home / "metadata.yml").write_bytes((home / "metadata.yml").read_bytes()[:60]),
    "not YAML": lambda home: (home / "metadata.yml").write_text("[}"),
    "other YAML": lambda home: (home / "metadata.yml").write_text("name: mine"),
    "of an unknown mode": lambda home: (home / "metadata.yml").write_text("mode: tracin"),
    "empty": lambda home: (home / "metadata.yml").write_text(""),
    "missing": lambda home: (home / "metadata.yml").unlink(),
    "with a strange format": lambda home: (home / "metadata.yml").write_text("mode: loo\nformat: zip"),
    "with our key and nothing else": lambda home: (home / "metadata.yml").write_text("mode: loo\nformat: 1"),
}


@pytest.mark.parametrize("verb", [retrain_loo, retrain_lds])
@pytest.mark.parametrize("change", NOT_OURS.values(), ids=NOT_OURS)
def test_nobody_is_told_to_overwrite_models_of_another_tool(change, verb, tmp_path):
    write_original(tmp_path, lambda name: tmp_path / name, whole=True)
    change(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError) as error:
        verb(train, make_loader(), tmp_path, seed=0)
    assert "overwrite" not in str(error.value) and "nother path" in str(error.value)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_metadata(tmp_path)
        RetrainDir.open(tmp_path, "lds")
    assert "overwrite" not in str(error.value)
    assert files(tmp_path) == before


def test_an_incomplete_directory_of_another_tool_names_what_is_missing(tmp_path):
    write_original(tmp_path, Path, whole=True)
    (tmp_path / "index_3" / "model_weights.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing index_3/model_weights.pt \(of 3 files\). Another tool"):
        read(tmp_path)


FORMATS = {
    "before torch 1.6": ({"_use_new_zipfile_serialization": False}, "Save it again with torch.save"),
    "another protocol": ({"pickle_protocol": 4}, "Save it again with torch.save"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_models_in_other_formats_are_to_be_saved_again_and_not_deleted(name, tmp_path):
    options, remedy = FORMATS[name]
    models = write_original(tmp_path, Path, whole=True)
    torch.save(models[3], tmp_path / "index_3" / "model_weights.pt", **options)
    with pytest.raises(ValueError, match=rf"index_3/model_weights.pt .*{remedy}") as error:
        read(tmp_path)
    assert not any(words in str(error.value) for words in ("elete", "weights_only=False", "set to `False`", "\n"))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    write_original(tmp_path / "loo", Path, whole=True)
    torch.save(Evil(tmp_path / "marker"), tmp_path / "loo" / "index_3" / "model_weights.pt")
    with pytest.raises(ValueError, match=r"index_3/model_weights.pt names"):
        read(tmp_path / "loo")
    assert not (tmp_path / "marker").exists()
