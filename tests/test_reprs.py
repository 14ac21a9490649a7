"""How results show themselves: in a few lines, as text and as HTML, without changing what they are."""

import copy
import html
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_helpers import SMALL
from torch.utils.data import DataLoader

from dattri import (
    class_share,
    detection_curve,
    find_setting,
    lds,
    mislabel_detection_auc,
    retrain_lds,
    retrain_loo,
    retrieval_metrics,
    top_overlap,
)
from dattri.benchmark.load import load_setting
from dattri.metric.display import shown_path
from dattri.model_util.retrain_dir import RetrainDir

pytestmark = pytest.mark.usefixtures("one_thread", "registry")
SETTING = replace(SMALL, repo_id=None, num_subsets=12, num_runs=3)
DRAW = torch.Generator().manual_seed(0)
SCORE = torch.randn(40, 20, generator=DRAW)


def rows_of(shown):
    """Rows of a card by their name, as text; checks that HTML has the same, in ten lines at most."""
    text, page = repr(shown), shown._repr_html_()
    assert text.count("\n") < 10
    rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines() if "  " in line)
    assert page.startswith("<table>") and page.count("<tr>") == len(rows)
    for name, value in rows.items():
        assert html.escape(name) in page and html.escape(value) in page
    return rows


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return {metric: load_setting(SETTING, metric, home) for metric in ("lds", "loo")}, home


def test_a_benchmark_is_a_dict_and_a_pair_and_shows_itself_as_a_card(loaded, monkeypatch):
    pairs, home = loaded
    monkeypatch.chdir(home)
    attributes, truth = pairs["lds"]
    assert isinstance(attributes, dict) and isinstance(pairs["lds"], tuple) and len(pairs["lds"]) == 2
    assert pairs["lds"][1] is truth and {**attributes} == dict(attributes)
    rows = rows_of(pairs["lds"])
    assert rows["samples"] == f"{SETTING.train_size} training, {SETTING.test_size} test"
    assert rows["files"] == f"benchmark/{SETTING.name}"
    assert rows["checkpoints"].startswith(f"{SETTING.num_full} trained on all samples")
    assert rows["ground truth"] == repr(truth) and "lds_ceiling" in rows["ceiling"]
    shape = (SETTING.train_size, SETTING.test_size)
    assert rows["next"] == f"lds(score, ground_truth), with a score of shape {shape}"
    assert rows["parts"].split(", ") == list(attributes)
    loo = rows_of(pairs["loo"])
    assert "ceiling" not in loo and loo["next"].startswith("loo_corr(")
    assert "ground truth" not in rows_of(attributes)


def test_a_benchmark_can_be_copied_and_sent(loaded):
    attributes, _ = loaded[0]["lds"]
    for again in (copy.copy(attributes), pickle.loads(pickle.dumps(Keys(attributes))).attributes):
        assert repr(again) == repr(attributes) and list(again) == list(attributes)


class Keys:
    """Attributes without the functions, which cannot be pickled everywhere."""

    def __init__(self, attributes):
        self.attributes = copy.copy(attributes)
        for name in ("loss_func", "target_func", "train_func"):
            self.attributes[name] = None


def test_wrong_labels_are_counted(tmp_path):
    setting = replace(find_setting("lr", "digits"), model="tiny", train_size=60, test_size=10, num_full=1)
    rows = rows_of(load_setting(setting, "mislabel", tmp_path))
    assert rows["ground truth"] == "6 of 60 labels are wrong"
    assert rows["next"].endswith("of shape (60,)") and rows["checkpoints"].startswith("1 trained on all")


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_setting_says_what_it_is(name):
    setting = find_setting("lr", name)
    rows = rows_of(setting)
    assert rows["setting"] == f"{name}_lr" and f"{setting.train_size} training" in rows["data"]
    assert rows["next"] == f"load_benchmark('lr', '{name}', 'lds')"
    assert rows["files"] == ("built here on first use" if name == "digits" else f"hub data set {setting.repo_id}")
    assert "register_setting" in rows_of(replace(setting, num_runs=1))["next"]


def test_html_is_escaped():
    setting = replace(find_setting("lr", "digits"), train_func=lambda dataloader: None)
    assert "<lambda>" in repr(setting) and "&lt;lambda&gt;" in setting._repr_html_()


def train_nothing(dataloader):
    return torch.nn.Linear(1, 1)


LOADER = DataLoader(torch.zeros(8, 1))


def test_a_directory_says_what_is_done_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    retrain_lds(train_nothing, LOADER, "runs", num_subsets=3, num_runs_per_subset=2, seed=4)
    rows = rows_of(RetrainDir.open("runs", "lds"))
    assert rows["models"] == "6 of 6 found (3 subsets of 2 runs)" and "missing" not in rows
    assert rows["trained by"] == "train_nothing, 8 samples, seed 4"
    assert rows["next"] == "calculate_lds_ground_truth(target_func, 'runs', test_dataloader)"
    for file in ("1/model_weights_0.pt", "2/model_weights_1.pt"):
        (tmp_path / "runs" / file).unlink()
    rows = rows_of(RetrainDir.open(tmp_path / "runs", "lds"))
    assert rows["models"].startswith("4 of 6") and rows["missing"] == "1/model_weights_0.pt, 2/model_weights_1.pt"
    assert rows["retrained models"] == "runs"
    assert rows["next"].startswith("retrain_lds(train_nothing, dataloader, 'runs'")
    before = RetrainDir.open("runs", "lds")
    for file in sorted((tmp_path / "runs").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert rows_of(before)["models"].startswith("0 of 6")


def test_directories_of_one_left_out_and_of_other_tools(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    retrain_loo(train_nothing, LOADER, "runs", indices=[1, 5], seed=0)
    rows = rows_of(RetrainDir.open("runs", "loo"))
    assert rows["models"] == "2 of 2 found (each without one sample)" and "calculate_loo_ground_truth" in rows["next"]
    file = tmp_path / "runs" / "metadata.yml"
    file.write_text("mode: loo\ntrain_func: f\nmap_index_dir: {1: ./index_1, 9: ./index_9}\n")
    rows = rows_of(RetrainDir.open("runs", "loo"))
    assert rows["missing"] == "index_9/model_weights.pt" and "next" not in rows
    assert rows["trained by"] == "f, ? samples, another tool"


@pytest.mark.parametrize(
    "place, shown",
    [
        (Path.home() / "a" / "b", "~/a/b"), ("~/a", "~/a"), ("a/b", "a/b"), (Path.cwd() / "c", "c"), ("/x/y", "/x/y"),
    ],
)  # fmt: skip
def test_paths_are_shown_as_one_would_type_them(place, shown, monkeypatch, tmp_path):
    assert shown_path(place) == shown
    monkeypatch.chdir("/")
    assert shown_path("/x/y") == "/x/y"


RESULTS = {
    "lds": lambda: lds(SCORE, (SCORE[:10].double(), torch.arange(30).view(10, 3))),
    "retrieval": lambda: retrieval_metrics(SCORE, [[0]] * 20),
    "share": lambda: class_share(SCORE, [0, 1] * 20, [0] * 20),
    "overlap": lambda: top_overlap(SCORE, -SCORE),
    "detection": lambda: detection_curve(SCORE[:, 0], torch.arange(40) % 4 == 0),
    "roc": lambda: mislabel_detection_auc(SCORE[:, 0], torch.arange(40) % 4 == 0),
}


@pytest.mark.parametrize("name", RESULTS)
def test_long_tensors_are_shown_by_number_and_mean(name):
    result = RESULTS[name]()
    first, *_ = result
    assert "tensor" not in repr(result) and len(repr(result)) < 250
    assert repr(result).startswith(f"{type(result).__name__}(")
    assert first is result[0] and result == tuple(result)
    if isinstance(first, torch.Tensor) and name != "detection":
        assert f"{result._fields[0]}=<20 values, mean {first.double().mean():.4f}>" in repr(result)


def test_few_values_are_shown_as_they_are():
    result = lds(SCORE[:, :2], (SCORE[:10, :2].double(), torch.arange(30).view(10, 3)))
    shown = ", ".join(f"{value:.4f}" for value in result.correlation.tolist())
    assert f"correlation=[{shown}]" in repr(result)
    with pytest.warns(UserWarning, match="no relevant"):
        some = retrieval_metrics(SCORE, [[]] + [[1]] * 19)
    assert f"recall=<20 values, mean {np.nanmean(some.recall):.4f}, 1 nan>" in repr(some)
