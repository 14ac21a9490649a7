"""A benchmark is of one build: whatever was trained again, interrupted, copied or changed, two are never mixed."""

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmark_helpers import FOLDER, LOCAL, trained_for, weights
from helpers import files
from torch import nn

from dattri.benchmark import build, folders
from dattri.benchmark.build import build_benchmark
from dattri.benchmark.hub import publish_benchmark
from dattri.benchmark.load import load_setting

pytestmark = pytest.mark.usefixtures("one_thread")


def check_is(path, fresh, setting, metric):
    """What is loaded from a path is, all of it, what was built in another."""
    attributes, truth = load_setting(setting, metric, path)
    assert torch.equal(truth.values, torch.load(fresh / FOLDER / metric / f"target_values_{metric}.pt"))
    for kind in ("full", "half"):
        loaded = [torch.load(file)["linear.weight"] for file in attributes[f"models_{kind}"]]
        assert all(map(torch.equal, loaded, weights(fresh, kind)))


def test_what_was_built_again_is_loaded(tmp_path, fresh):
    load_setting(trained_for(2), "lds", tmp_path)
    changed = trained_for(9)
    build_benchmark(changed, tmp_path, overwrite=True)
    check_is(tmp_path, fresh, changed, "lds")
    check_is(tmp_path, fresh, changed, "loo")


@pytest.mark.parametrize("fatal", [1, 2, 3, 4])
def test_training_anew_is_interrupted(tmp_path, fresh, monkeypatch, fatal):
    build_benchmark(trained_for(2), tmp_path)
    changed = trained_for(9)
    retrain, calls = build._retrain, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        return retrain(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "_retrain", interrupted)
        build_benchmark(changed, tmp_path, overwrite=True)
    build_benchmark(changed, tmp_path)
    assert files(tmp_path / FOLDER) == files(fresh / FOLDER)


def never(dataloader, seed=None):
    """Nothing may be trained."""
    raise AssertionError


never.__name__ = "changed"


def test_a_build_is_enough(tmp_path, fresh):
    """The retrained models are not needed to load; a damaged file is refused, and built again when asked for."""
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / FOLDER / "retrained")
    for metric in ("loo", "lds"):
        check_is(tmp_path, fresh, replace(LOCAL, train_func=never), metric)
    damaged = tmp_path / FOLDER / "models_half" / "1" / "model_weights_0.pt"
    damaged.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{damaged} has changed.*redownload=True"):
        load_setting(trained_for(9), "lds", tmp_path)
    load_setting(trained_for(9), "lds", tmp_path, redownload=True)
    check_is(tmp_path, fresh, trained_for(9), "lds")


def test_other_tests_need_no_training(tmp_path, fresh):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    load_setting(trained_for(9), "lds", tmp_path)
    fewer = replace(LOCAL, train_func=never, test_size=4)
    with pytest.raises(ValueError, match=r"test_size: 5 there, 4 now.*replace it: build_benchmark\(setting, "):
        load_setting(fewer, "lds", tmp_path)
    build_benchmark(fewer, tmp_path)
    assert load_setting(fewer, "lds", tmp_path)[1].values.shape == (4, 4)


def as_earlier(path):
    """Let what was built at a path lie as an earlier version left it."""
    groups = {"full": "models_full", "half": "models_half", "lds": "retrained/lds", "loo": "retrained/loo"}
    for group, place in groups.items():
        shutil.copytree(path / FOLDER / place, path / "retrained" / "points_lr" / group)
    shutil.rmtree(path / FOLDER / "retrained")
    (path / FOLDER / "manifest.json").unlink()
    for part in (path / FOLDER).iterdir():
        (part / ".sha256.json").write_text("{}")


def test_models_of_an_earlier_version_are_adopted(tmp_path, fresh):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    as_earlier(tmp_path)
    setting = replace(LOCAL, train_func=never)
    for call in (partial(load_setting, setting, "lds"), partial(build_benchmark, setting)):
        with pytest.raises(ValueError, match=f"{tmp_path / FOLDER} was written by an earlier version.*redownload=True"):
            call(tmp_path)
    for metric in ("lds", "loo"):
        load_setting(setting, metric, tmp_path, redownload=True)
        check_is(tmp_path, fresh, setting, metric)
    assert files(tmp_path / FOLDER) == files(fresh / FOLDER)


BAD_MANIFESTS = {
    "cut off": (lambda text: text[:-20], "is truncated or damaged"),
    "newer": (lambda text: text.replace('"format": 1', '"format": 2'), "has format 2, written by a newer version"),
    "outside": (lambda text: text.replace("lds/indices", "../lds/indices"), "which is not inside its folder"),
    "absolute": (lambda text: text.replace("lds/indices", "/lds/indices"), "which is not inside its folder"),
    "no file": (lambda text: text.replace("lds/indices", "lds/others"), "others_lds.pt is missing"),
    "other hash": (lambda text: re.sub('(indices_lds.pt": ")....', r"\g<1>0000", text), "indices_lds.pt has changed"),
    "other seed": (lambda text: text.replace('"seed": "0"', '"seed": "8"'), "seed: 8 there, 0 now"),
}


@pytest.mark.parametrize("what", BAD_MANIFESTS)
def test_a_manifest_that_must_not_be_used(tmp_path, fresh, what):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    spoil, problem = BAD_MANIFESTS[what]
    file = tmp_path / FOLDER / "manifest.json"
    file.write_text(spoil(file.read_text()))
    with pytest.raises(ValueError, match=f"(?s)points_lr.*{problem}.*(redownload=True|build_benchmark|upgrade)"):
        load_setting(trained_for(9), "lds", tmp_path)
    load_setting(trained_for(9), "lds", tmp_path, redownload=True)
    check_is(tmp_path, fresh, trained_for(9), "lds")


def test_what_was_built_and_what_was_fetched_are_not_mixed(tmp_path, hub):
    published = replace(LOCAL, repo_id="me/points", metrics=("lds", "loo"))
    build_benchmark(published, tmp_path / "one", metrics=["lds"])
    load_setting(published, "lds", tmp_path / "one")
    with pytest.raises(ValueError, match=r"built here, without loo: build_benchmark\(setting, .*'loo'\]\) adds it"):
        load_setting(published, "loo", tmp_path / "one")
    build_benchmark(published, tmp_path / "one")
    publish_benchmark(tmp_path / "one", "me/points")
    load_setting(published, "lds", tmp_path / "two")
    with pytest.raises(ValueError, match=r"downloaded from me/points; use another path, or replace .* overwrite=True"):
        build_benchmark(published, tmp_path / "two")
    with pytest.raises(ValueError, match="repo_id: me/points there, None now"):
        load_setting(LOCAL, "lds", tmp_path / "two")
    with pytest.raises(FileNotFoundError, match="path: no built benchmark"):
        publish_benchmark(tmp_path / "two", "me/points")
    build_benchmark(published, tmp_path / "two", overwrite=True)
    assert files(tmp_path / "two" / FOLDER) == files(tmp_path / "one" / FOLDER)


def test_a_cache_for_reading_only(tmp_path, fresh, monkeypatch):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    setting = trained_for(9)
    load_setting(setting, "lds", tmp_path)
    monkeypatch.setattr(folders.os, "access", lambda *_: False)  # root may write everywhere
    lock = tmp_path / "benchmark" / ".points_lr.lock"
    lock.unlink(missing_ok=True)
    check_is(tmp_path, fresh, setting, "lds")
    assert not lock.exists()


def test_who_waits_says_so(tmp_path, fresh, start_child):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    setting = trained_for(9)
    load_setting(setting, "lds", tmp_path)
    code = """
from filelock import FileLock
with FileLock(path):
    print("locked", flush=True)
    time.sleep(4)
"""
    with start_child(code, tmp_path / "benchmark" / ".points_lr.lock") as other:
        assert other.read_line(0) == "locked"
        with pytest.warns(UserWarning, match="another process is using .*points_lr; waiting"):
            load_setting(setting, "lds", tmp_path)


@pytest.mark.parametrize("name", ["path", "download_path"])
def test_a_file_is_no_directory(tmp_path, name):
    file = tmp_path / "file"
    file.write_bytes(b"")
    call = partial(build_benchmark, LOCAL) if name == "path" else partial(load_setting, LOCAL, "lds")
    with pytest.raises(NotADirectoryError, match=f"^{name}: .*file is a file; expected a directory"):
        call(file)


def test_a_relative_path(tmp_path, fresh, monkeypatch):
    shutil.copytree(fresh, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    attributes, _ = load_setting(trained_for(9), "lds", "home")
    assert Path(attributes["models_full"][0]).is_absolute()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_within_a_mode_without_gradients(tmp_path, mode):
    with mode():
        attributes, truth = load_setting(LOCAL, "lds", tmp_path)
        assert not torch.is_grad_enabled()
    inputs, labels = attributes["train_dataset"].tensors
    (nn.Parameter(torch.ones(2)) * inputs).sum().backward()
    assert not truth.values.is_inference() and not labels.is_inference()


def test_with_a_default_device(tmp_path):
    torch.set_default_device("meta")
    try:
        attributes, truth = load_setting(LOCAL, "lds", tmp_path)
        assert torch.zeros(1).is_meta
    finally:
        torch.set_default_device(None)
    tensors = [truth.values, *attributes["train_dataset"].tensors, *attributes["model"].parameters()]
    assert not any(tensor.is_meta for tensor in tensors)


def test_a_list_of_metrics_is_refused(tmp_path):
    for metric in (["lds"], ("lds",)):
        with pytest.raises(ValueError, match="points_lr has no ground truth for"):
            load_setting(LOCAL, metric, tmp_path)


@pytest.mark.parametrize("damage", ["behind the ground truth", "a model, and the list"])
def test_damaged_files_that_no_list_names_are_built_again(tmp_path, fresh, damage):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    home = tmp_path / FOLDER
    kind = "retrained" if damage == "behind the ground truth" else "models_full"
    file = sorted((home / kind).rglob("model_weights*.pt"))[0]
    data = file.read_bytes()
    file.write_bytes(data[:80] + bytes([data[80] ^ 255]) + data[81:])
    if kind == "models_full":
        (home / "manifest.json").write_text("{")
    load_setting(trained_for(9), "lds", tmp_path, True)
    assert file.read_bytes() == data
    check_is(tmp_path, fresh, trained_for(9), "lds")
