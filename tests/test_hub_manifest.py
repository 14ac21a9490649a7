"""What is fetched is compared with the manifest beside it: files of two builds, other numbers, another setting."""

import io
import json
import shutil
import zipfile
from dataclasses import replace

import pytest
import torch
from benchmark_helpers import (
    FULL,
    HALF,
    INDICES,
    MANIFEST,
    REPO,
    SMALL,
    VALUES,
    WHOLE,
    check_whole,
    in_place,
    load,
    points,
    with_manifest,
)
from data_files import numbered, zip_bytes

from dattri.benchmark.datasets import Datasets
from dattri.benchmark.hub import publish_benchmark
from dattri.benchmark.settings import register_setting
from dattri.model_util.checkpoint import to_bytes

pytestmark = pytest.mark.usefixtures("one_thread", "registry")


def models(content):
    """The checkpoints in a zip file, in order."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [archive.read(f"{number}/model_weights_0.pt") for number in range(len(archive.namelist()))]


def with_models(name, change):
    """Other models in a zip file."""
    return lambda files: {name: zip_bytes(numbered(change(models(files[name]))))}


def nudged(content):
    """The same weights, one of them larger by the least that float32 can tell."""
    tensor = torch.load(io.BytesIO(content))
    values = tensor if isinstance(tensor, torch.Tensor) else tensor["linear.weight"]
    values[0, 0] = torch.nextafter(values[0, 0], torch.tensor(torch.inf))
    return to_bytes(tensor)


def with_record(change):
    """A change of the manifest itself."""

    def changed(files):
        record = json.loads(files[MANIFEST])
        change(record)
        return {MANIFEST: json.dumps(record).encode()}

    return changed


HASHES = "expected the SHA-256 [0-9a-f]{64}, as listed in points_lr/manifest.json, got [0-9a-f]{64}"
OTHER = "points_lr/manifest.json is of another setting or other data"
DEVIATIONS = {
    "one model": (with_models(FULL, lambda full: full[:1]), f"{FULL}: expected 3 models.*got 1"),
    "seven models": (with_models(FULL, lambda full: (3 * full)[:7]), f"{FULL}: expected 3 models.*got 7"),
    "one half model": (with_models(HALF, lambda half: half[:1]), f"{HALF}: expected 5 models.*got 1"),
    "swapped": (lambda files: {FULL: files[HALF], HALF: files[FULL]}, f"{FULL}: expected 3 models.*got 5"),
    "half as full": (
        lambda files: {FULL: zip_bytes(numbered(models(files[HALF])[:3]))}, f"{FULL}, model 0: {HASHES}"
    ),
    "another order": (with_models(FULL, lambda full: full[::-1]), f"{FULL}, model 0: {HASHES}"),
    "one weight": (with_models(HALF, lambda half: [*half[:4], nudged(half[4])]), f"{HALF}, model 4: {HASHES}"),
    "one value": (lambda files: {VALUES: nudged(files[VALUES])}, f"{VALUES}: {HASHES}"),
    "other subsets": (
        lambda files: {INDICES: to_bytes(torch.load(io.BytesIO(files[INDICES])).flip(0))}, f"{INDICES}: {HASHES}"
    ),
    "no models listed": (with_record(lambda record: record.update(files={})), f"{FULL}: expected 0 models.*got 3"),
    "a tensor not listed": (
        with_record(lambda record: record["files"].pop("lds/target_values_lds.pt")), f"{VALUES}: expected no such file"
    ),
    "another model": (
        with_record(lambda record: record["setting"].update(model="mlp")), f"{OTHER}: model: expected lr, got mlp"
    ),
    "fewer tests": (
        with_record(lambda record: record["setting"].update(test_size="4")), f"{OTHER}: test_size: expected 5, got 4"
    ),
    "no setting": (
        with_record(lambda record: record.update(setting={}, samples={})), f"{OTHER}: model: expected lr, got None"
    ),
}
BEFORE = {HALF: WHOLE[1:3], INDICES: WHOLE[1:], VALUES: WHOLE[1:]}  # parts that come first, and are as listed
NUMBERS = {"one model": (1, 5), "seven models": (7, 5), "one half model": (3, 1), "swapped": (5, 3)}


@pytest.mark.parametrize("what", DEVIATIONS)
def test_a_repository_that_is_not_what_its_manifest_says(on_hub, hub, tmp_path, what):
    change, problem = DEVIATIONS[what]
    changed = change(on_hub)
    hub.change(("dataset", REPO), changed)
    with pytest.raises(ValueError, match=f"(?s){problem}.*redownload=True"):
        load(tmp_path)
    before = next((left for name, left in BEFORE.items() if name in problem), [])
    assert in_place(tmp_path) == before, "the part that differs is not there, in whole or in part"
    hub.change(("dataset", REPO), {name: on_hub[name] for name in changed})
    check_whole(tmp_path, redownload=bool(before))  # what is there is of the commit with the bad file


@pytest.mark.parametrize("what", DEVIATIONS)
def test_without_a_manifest_the_same_files_are_taken_as_they_are(on_hub, hub, tmp_path, what):
    """As those of the original library, whose repository has none; so the test above sees the comparison alone."""
    hub.change(("dataset", REPO), DEVIATIONS[what][0](on_hub) | {MANIFEST: None})
    attributes, _ = load(tmp_path)
    numbers = tuple(len(attributes[f"models_{kind}"]) for kind in ("full", "half"))
    assert numbers == NUMBERS.get(what, (3, 5)) and in_place(tmp_path) == WHOLE


DAMAGED = {
    "cut": lambda content: content[:-20],
    "text": lambda content: b"\xff\xfe what is this",
    "a list": lambda content: b"[]",
    "nested": lambda content: b"[" * 100_000,
    "a pickle": lambda content: to_bytes({"format": 1}),
    "no hash": lambda content: content.replace(b'.pt": "', b'.pt": "x'),
    "leads out": lambda content: content.replace(b'"lds/', b'"../lds/'),
    "newer": lambda content: content.replace(b'"format": 1', b'"format": 2'),
    "huge": lambda content: content + b" " * 2**24,
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_manifest_that_cannot_be_read(on_hub, hub, tmp_path, what):
    hub.put(REPO, MANIFEST, DAMAGED[what](on_hub[MANIFEST]))
    with pytest.raises(ValueError, match=f"(?s){MANIFEST} (is|has|names) .*redownload=True"):
        load(tmp_path)
    assert in_place(tmp_path) == []
    hub.put(REPO, MANIFEST, on_hub[MANIFEST])
    check_whole(tmp_path)


def test_samples_in_another_order(on_hub, tmp_path):
    """Positions in the ground truth then mean other samples, which no shape tells."""

    def turned(folder):
        train, test = points(folder)
        return Datasets(type(train)(*(tensor.flip(0) for tensor in train.tensors)), test)

    register_setting(replace(SMALL, create_datasets=turned), replace=True)
    with pytest.raises(ValueError, match=rf"{OTHER}: training samples: expected .*, got .*redownload=True"):
        load(tmp_path)
    assert in_place(tmp_path) == []


def test_readers_need_not_train_as_the_publisher_did(on_hub, tmp_path):
    """The card of a repository proposes a setting that may have other numbers and functions."""
    register_setting(replace(SMALL, num_full=7, seed=5, train_func=lambda dataloader: None), replace=True)
    check_whole(tmp_path)


def test_a_later_build_of_which_one_file_is_old(on_hub, hub, fresh, tmp_path):
    """Two builds of one setting fit it equally well."""
    publish_benchmark(fresh, REPO)
    assert hub.files(REPO)[FULL] != on_hub[FULL]
    hub.put(REPO, FULL, on_hub[FULL])
    with pytest.raises(ValueError, match=f"{FULL}, model 0: .*publish_benchmark"):
        load(tmp_path)
    hub.change(("dataset", REPO), with_manifest(hub.files(REPO)))
    check_whole(tmp_path)


def test_the_manifest_is_that_of_the_commit(on_hub, hub, tmp_path):
    """A metric that is loaded later is compared with what the repository said when the first was loaded."""
    check_whole(tmp_path)
    hub.put(REPO, MANIFEST, b"newer")
    shutil.rmtree(tmp_path / "hub")
    assert load(tmp_path, "loo")[1].values.shape == (12, 5)
    with pytest.raises(ValueError, match=f"{MANIFEST} is truncated or damaged"):
        load(tmp_path, redownload=True)
    assert in_place(tmp_path) == sorted([*WHOLE, "loo"]) and load(tmp_path)[1].values.shape == (4, 5)


def test_offline_without_the_manifest(on_hub, hub, tmp_path, offline):
    """A cache that was filled by other means may lack it; then, and only then, a warning is all."""
    check_whole(tmp_path)
    for removed in (tmp_path / "hub").rglob("manifest.json"):
        removed.unlink()
    shutil.rmtree(tmp_path / "load")
    offline()
    with pytest.warns(UserWarning, match=f"{MANIFEST} of {REPO} is not in the cache, and HF_HUB_OFFLINE is set"):
        check_whole(tmp_path)
