"""Publishing a benchmark: what is uploaded, with which token, its card, and what others load from there."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark_helpers import (
    FOLDER,
    FULL,
    HALF,
    INDICES,
    LOCAL,
    SMALL,
    VALUES,
    check_whole,
    trained_for,
)
from helpers import files
from huggingface_hub import DatasetCard, constants

from dattri.benchmark.build import build_benchmark
from dattri.benchmark.hub import publish_benchmark
from dattri.benchmark.load import load_setting
from dattri.benchmark.manifest import file_hash
from dattri.benchmark.settings import register_setting
from dattri.model_util.checkpoint import to_bytes

pytestmark = pytest.mark.usefixtures("one_thread", "registry")


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_publishing_needs_the_token(built, hub, tmp_path, monkeypatch, token):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=r"(?s)points_lr was not published to me/points: .*401.*HF_TOKEN"):
        publish_benchmark(built, "me/points")
    assert hub.files("me/points") == {}


def test_publishing_what_is_not_as_it_was_built(built, hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"path: no built benchmark in {tmp_path} or its folder"):
        publish_benchmark(tmp_path, "me/points")
    for name, content in files(built).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "benchmark" / VALUES).write_bytes(to_bytes(torch.rand(4, 5)))
    with pytest.raises(ValueError, match=r"lds/target_values_lds\.pt has changed; call build_benchmark"):
        publish_benchmark(tmp_path, "me/points")
    assert hub.files("me/points") == {}


def test_somebody_else_loads_what_was_published(built, hub, tmp_path):
    commit = publish_benchmark(built, "me/points")
    published = hub.files("me/points")
    small = ["points_lr/manifest.json", INDICES, VALUES, *(name.replace("lds", "loo") for name in (INDICES, VALUES))]
    assert {*published} == {"README.md", FULL, HALF, *small}
    assert all(published[name] == (built / "benchmark" / name).read_bytes() for name in small)
    assert publish_benchmark(built, "me/points") == commit, "nothing to do again"
    hub.change(("dataset", "me/points"), {name: b"newer" for name in published})
    register_setting(replace(SMALL, repo_id="me/points", revision=commit))
    check_whole(tmp_path)
    file = tmp_path / "load" / "benchmark" / "points_lr" / "lds" / "target_values_lds.pt"
    assert file_hash(file) == file_hash(built / "benchmark" / VALUES)
    first = Path("points_lr", "models_full", "0", "model_weights_0.pt")
    loaded, state = (torch.load(place / "benchmark" / first) for place in (tmp_path / "load", built))
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_only_what_was_built_is_published(tmp_path, fresh, hub):
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    (tmp_path / FOLDER / "lds" / ".DS_Store").write_bytes(b"x")
    build_benchmark(replace(trained_for(3), metrics=("lds",), seed=7), tmp_path, overwrite=True)
    (tmp_path / FOLDER / "lds" / ".DS_Store").write_bytes(b"x")
    publish_benchmark(tmp_path, "me/points")
    assert {*hub.files("me/points")} == {"README.md"} | {f"points_lr/{name}" for name in (
        "manifest.json", "points_lr_full.zip", "points_lr_half.zip", "lds/indices_lds.pt", "lds/target_values_lds.pt",
    )}


def test_the_card(tmp_path, fresh, hub):
    """It has all benchmarks of the repository, those of earlier commits too; a card that somebody wrote stays."""
    publish_benchmark(fresh, "me/points", license="cc-by-4.0")
    build_benchmark(replace(LOCAL, model="other", metrics=("lds",)), tmp_path)
    publish_benchmark(tmp_path, "me/points", license="mit")
    card = DatasetCard(hub.files("me/points")["README.md"].decode())
    assert card.data.license == "mit" and card.data.size_categories == ["n<1K"] and "dattri" in card.data.tags
    call, checked = "load_benchmark('lr', 'points', 'lds')", "| lds: all targets are finite |"
    for text in ("## points_lr", "## points_other", call, checked):
        assert text in card.text
    hub.change(("dataset", "me/points"), {"README.md": b"# By hand", "bad/manifest.json": b"{"})
    publish_benchmark(tmp_path / "benchmark" / "points_other", "me/points")
    assert hub.files("me/points")["README.md"] == b"# By hand"


def test_the_targets_of_every_run_travel_too(hub, tmp_path):
    """A benchmark of several runs keeps them; one that was published without is loaded all the same."""
    several = replace(LOCAL, num_runs=3)
    build_benchmark(several, tmp_path / "built", metrics=["lds"])
    assert publish_benchmark(tmp_path / "built", "me/points")
    attributes, truth = load_setting(replace(several, repo_id="me/points"), "lds", tmp_path / "fetched")
    targets = attributes["targets"]
    assert targets.values.shape == (4, 3, 5) and torch.equal(targets.ground_truth().values, truth.values)
    assert torch.equal(targets.indices, truth.indices)
    name = "points_lr/lds/target_runs_lds.pt"
    hub.change(("dataset", "me/points"), {name: to_bytes(targets.values + 1)})
    with pytest.raises(ValueError, match="does not fit points_lr"):
        load_setting(replace(several, repo_id="me/points"), "lds", tmp_path / "altered")
    hub.change(("dataset", "me/points"), {"points_lr/manifest.json": None, name: None})
    attributes, _ = load_setting(replace(several, repo_id="me/points"), "lds", tmp_path / "without")
    assert attributes["targets"] is None
