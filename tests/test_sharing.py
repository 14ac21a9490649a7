"""Scores on the hub: what is published, what a leaderboard makes of it, and what it makes of what is broken."""

import hashlib
import io
import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmark_helpers import SMALL
from helpers import files
from huggingface_hub import DatasetCard, HfApi, constants
from typer.testing import CliRunner

from dattri import build_benchmark, evaluate, publish_benchmark, register_setting
from dattri.benchmark.load import load_setting
from dattri.benchmark.sharing import SharedLeaderboard, leaderboard_from, publish_scores
from dattri.cli import app

pytestmark = pytest.mark.usefixtures("one_thread", "registry")
SETTING = replace(SMALL, repo_id=None, metrics=("lds", "loo", "mislabel"), num_subsets=12, num_runs=2)
FOLDER = "scores/points_lr"
SCORES, MANIFEST = f"{FOLDER}/scores.npy", f"{FOLDER}/manifest.json"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the benchmark is built once; nothing may be changed in it."""
    folder = tmp_path_factory.mktemp("home")
    for metric in SETTING.metrics:
        load_setting(SETTING, metric, folder)
    return folder


def matrix(seed=0):
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def on_hub(hub, home):
    """A method on the hub; its files."""
    register_setting(SETTING)
    publish(home)
    return hub.files("ann/trak")


def publish(home, repo_id="ann/trak", scores=None, **options):
    """Publish scores for the small benchmark."""
    options = {"method": "TRAK", "download_path": home} | options
    return publish_scores(matrix() if scores is None else scores, repo_id, SETTING, **options)


def board_of(home, *repo_ids, **options):
    """A leaderboard for the small benchmark, without the methods that stand beside."""
    return leaderboard_from(repo_ids, **{"benchmark": SETTING, "baselines": False, "download_path": home} | options)


def rows_of(board, metric="lds"):
    return {row.method: row for row in board.rows if row.metric == metric}


def values(board):
    """All rows as text, in which nan equals nan."""
    return [repr(row) for row in board.rows]


def test_values_are_computed_from_the_scores(hub, home):
    commit = publish(home, seconds=1.5, hardware="one H100, 16 cores/32 threads")
    assert publish(home, seconds=1.5, hardware="one H100, 16 cores/32 threads") == commit, "nothing to do again"
    board = board_of(home, "ann/trak", scores={"mine": matrix(1)})
    expected = evaluate({"TRAK": matrix(), "mine": matrix(1)}, SETTING, metrics=["lds", "loo"], baselines=False,
                        download_path=home)  # fmt: skip
    assert values(board) == values(expected) and board.rows[0].metric == "lds"
    assert all(math.isnan(row.seconds) for row in board.rows), "a claim is no measurement"
    (found,) = board.publications
    claims = found.name, found.repo_id, found.commit, found.seconds, found.hardware, found.truth, found.error
    assert claims == ("TRAK", "ann/trak", commit, 1.5, "one H100, 16 cores/32 threads", "the same", "")
    assert "published, not checked" in repr(board) and "one H100" in board._repr_html_()


def test_a_claimed_value_changes_nothing(on_hub, hub, home):
    record = json.loads(on_hub[MANIFEST])
    record["checks"] = [{"what": "lds", "found": "0.999 [0.999, 0.999]", "passed": True}]
    hub.put("ann/trak", MANIFEST, json.dumps(record).encode())
    (row,) = board_of(home, "ann/trak", metrics=["lds"]).rows
    (expected,) = evaluate({"TRAK": matrix()}, SETTING, metrics=["lds"], baselines=False, download_path=home).rows
    assert row.value == expected.value


def test_what_is_on_the_hub(on_hub, hub, home):
    assert {*on_hub} == {"README.md", MANIFEST, SCORES}
    assert np.array_equal(np.load(io.BytesIO(on_hub[SCORES]), allow_pickle=False), matrix().numpy())
    record = json.loads(on_hub[MANIFEST])
    here = json.loads((home / "benchmark" / "points_lr" / "manifest.json").read_text())
    assert record["samples"] == here["samples"] and record["setting"] == here["setting"]
    assert record["details"]["truth lds"] == here["files"]["lds/target_values_lds.pt"]
    assert record["files"] == {"scores.npy": hashlib.sha256(on_hub[SCORES]).hexdigest()}
    assert record["details"]["scores.npy"] == "float32 (12, 5)"
    before = len(hub.repos["dataset", "ann/trak"])
    publish(home, scores={"loo": matrix(1), "mislabel": torch.arange(12.0)})
    assert len(hub.repos["dataset", "ann/trak"]) == before + 1, "one commit"
    assert {*hub.files("ann/trak")} == {"README.md", MANIFEST, f"{FOLDER}/loo.npy", f"{FOLDER}/mislabel.npy"}


def test_scores_by_metric(hub, home):
    wrong = torch.arange(12.0)
    publish(home, scores={"lds": matrix(), "loo": matrix(1), "mislabel": wrong})
    publish(home, "bob/dots", method="dots")
    board = board_of(home, "ann/trak", "bob/dots")
    expected = {"lds": matrix(), "loo": matrix(1), "mislabel": wrong}
    for row in evaluate({"TRAK": expected}, SETTING, baselines=False, download_path=home).rows:
        assert rows_of(board, row.metric)["TRAK"].value == row.value
    assert rows_of(board, "mislabel")["dots"].error == "no scores for 'mislabel', only for 'lds', 'loo'"
    assert [row.metric for row in board_of(home, "bob/dots").rows] == ["lds", "loo"], "nothing else was published"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_dtypes(hub, home, dtype):
    scores = (10 * matrix()).to(dtype)
    publish(home, scores=scores)
    (row,) = board_of(home, "ann/trak", metrics=["lds"]).rows
    expected = evaluate({"TRAK": scores}, SETTING, metrics=["lds"], baselines=False, download_path=home).rows[0]
    assert math.isclose(row.value, expected.value, abs_tol=1e-3 if dtype.itemsize == 2 else 0)


@pytest.mark.parametrize("kind", ["npy", "pt", "map"])
def test_files_and_memory_maps(hub, home, tmp_path, kind):
    np.save(tmp_path / "a.npy", matrix().numpy())
    torch.save(matrix(), tmp_path / "a.pt")
    scores = np.load(tmp_path / "a.npy", mmap_mode="r") if kind == "map" else tmp_path / f"a.{kind}"
    publish(home, scores=scores)
    assert np.array_equal(np.load(io.BytesIO(hub.files("ann/trak")[SCORES])), matrix().numpy())


def listing(changed, files):
    """The manifest of a repository, changed, with the hash of each file."""
    record = json.loads(changed[MANIFEST])
    record["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return json.dumps(record).encode()


def saved(array, **options):
    """Bytes of a file of `numpy.save`."""
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


def with_fields(published, **fields):
    """The manifest with other fields."""
    record = json.loads(published[MANIFEST])
    for name, value in fields.items():
        record[name] = {**record[name], **value}
    return {MANIFEST: json.dumps(record).encode()}


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


BROKEN = {
    "no manifest": (lambda _: {MANIFEST: None}, "has no scores/points_lr/manifest.json"),
    "cut off": (lambda published: {MANIFEST: published[MANIFEST][:100]}, "truncated or damaged"),
    "no JSON object": (lambda _: {MANIFEST: b"[1, 2]"}, "damaged"),
    "too large": (lambda published: {MANIFEST: published[MANIFEST] + b" " * 2**20}, "expected at most 1,048,576"),
    "altered": (lambda _: {SCORES: saved(matrix(1).numpy())}, "expected the SHA-256"),
    "scores are gone": (lambda _: {SCORES: None}, "has no scores/points_lr/scores.npy"),
    "escapes": (lambda published: with_fields(published, files={"../../x.npy": "0" * 64}), "not inside its folder"),
    "other file": (lambda published: with_fields(published, files={"model.pt": "0" * 64}), "lists scores.npy, model"),
    "other samples": (lambda published: with_fields(published, samples={"test samples": "f" * 64}), "other data"),
    "other size": (lambda published: with_fields(published, setting={"train_size": "13"}), "other setting"),
    "no method": (lambda published: with_fields(published, details={"method": ""}), "method: expected letters"),
    "a link": (lambda published: with_fields(published, details={"method": "[a](http://b)"}), "method: expected"),
    "colours": (lambda published: with_fields(published, details={"method": "\x1b[31mred"}), "method: expected"),
    "markup": (lambda published: with_fields(published, details={"hardware": "<b>H100</b>"}), "hardware: expected"),
    "time": (lambda published: with_fields(published, details={"seconds": "-1"}), "seconds: expected a number"),
    "no time": (lambda published: with_fields(published, details={"seconds": "nan"}), "seconds: expected a number"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_has_a_row_that_says_so(on_hub, hub, home, name):
    publish(home, "bob/dots", method="dots")
    change, words = BROKEN[name]
    hub.change(("dataset", "ann/trak"), change(on_hub))
    board = board_of(home, "ann/trak", "bob/dots", metrics=["lds"])
    rows = rows_of(board)
    assert words in rows["ann/trak"].error and math.isnan(rows["ann/trak"].value)
    assert not rows["dots"].error and not math.isnan(rows["dots"].value)
    assert words in board.publications[0].error and board.publications[1].truth == "the same"


def test_scores_of_another_shape_or_kind(on_hub, hub, home, tmp_path):
    """The hash is right; what has it is not."""
    trap = saved(np.array([Trap(str(tmp_path / "ran"))], dtype=object), allow_pickle=True)
    pickled = pickle.dumps(Trap(str(tmp_path / "ran")))
    cases = {
        saved(np.ones((5, 12))): "expected shape", saved(np.full((12, 5), np.nan)): "NaN", trap: "Python objects",
        pickled: "does not start like a file of numpy.save", saved(np.array([["a"] * 5] * 12)): "",
    }  # fmt: skip
    for content, words in cases.items():
        hub.change(("dataset", "ann/trak"), {SCORES: content, MANIFEST: listing(on_hub, {"scores.npy": content})})
        (row,) = board_of(home, "ann/trak", metrics=["lds"]).rows
        assert words in row.error and row.error and row.method == "TRAK"
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_too_large_is_not_downloaded(on_hub, hub, home):
    content = saved(np.zeros((12, 5000)))
    hub.change(("dataset", "ann/trak"), {SCORES: content, MANIFEST: listing(on_hub, {"scores.npy": content})})
    hub.requests.clear()
    (row,) = board_of(home, "ann/trak", metrics=["lds"]).rows
    assert "has 480,128 bytes, expected at most" in row.error
    downloaded = [path for method, path, _ in hub.requests if method == "GET"]
    assert len(downloaded) >= 1 and f"/cdn/{hashlib.sha256(content).hexdigest()}" not in downloaded


def test_wrong_labels_of_another_draw(hub, home):
    publish(home, scores={"lds": matrix(), "mislabel": torch.arange(12.0)})
    hub.change(("dataset", "ann/trak"), with_fields(hub.files("ann/trak"), setting={"seed": "5"}))
    board = board_of(home, "ann/trak")
    assert rows_of(board, "mislabel")["TRAK"].error.endswith("for other wrong labels: seed 5 there, 0 here")
    assert not rows_of(board)["TRAK"].error


def test_another_build_of_the_benchmark(hub, home, tmp_path):
    publish(home)
    other = replace(SETTING, train_func=replace(SETTING.train_func, num_epochs=9), metrics=("lds",))
    board = leaderboard_from("ann/trak", benchmark=other, baselines=False, download_path=tmp_path / "other")
    assert board.publications[0].truth == "another build" and not board.rows[0].error


def test_methods_of_the_same_name(on_hub, hub, home):
    first = publish(home)
    publish(home, scores=matrix(3))
    publish(home, "bob/trak", scores=matrix(4))
    publish(home, "cleo/luck", scores=matrix(2), method="random")
    board = board_of(home, "ann/trak", f"ann/trak@{first}", "bob/trak", "cleo/luck", baselines=True, metrics=["lds"])
    rows = rows_of(board)
    shown = "TRAK (ann/trak)", f"TRAK (ann/trak@{first:.12})", "TRAK (bob/trak)", "random (cleo/luck)", "random"
    assert {*shown} <= {*rows} and len({rows[name].value for name in shown}) == 5
    board = board_of(home, "ann/trak", scores={"TRAK": matrix(4)}, metrics=["lds"])
    assert {*rows_of(board)} == {"TRAK", "TRAK (ann/trak)"}


@pytest.mark.parametrize("repo_ids, words", [
    ([], "expected at least one repository"), (["a/b", "c/d", "a/b"], "a/b is named twice"),
    ("trak", "expected names such as 'you/trak'"), (["../a/b"], "expected names"), ([3], "expected names"),
    (["a/b@refs/heads/x y"], "expected names"),
])  # fmt: skip
def test_names_of_repositories(home, repo_ids, words):
    with pytest.raises(ValueError, match=f"repo_ids: .*{words}"):
        leaderboard_from(repo_ids, benchmark=SETTING, download_path=home)


def test_the_benchmark_that_all_have_scores_for(on_hub, hub, home, tmp_path):
    found = leaderboard_from("ann/trak", baselines=False, download_path=home)
    assert values(found) == values(board_of(home, "ann/trak"))
    build_benchmark(other := replace(SETTING, model="other", metrics=("lds",)), tmp_path / "other")
    publish_scores(matrix(), "bob/dots", other, method="dots", download_path=tmp_path / "other")
    with pytest.raises(ValueError, match="benchmark: expected one common to all repositories, found none"):
        leaderboard_from(["ann/trak", "bob/dots"])
    with pytest.raises(ValueError, match="found points_other; pass benchmark="):
        leaderboard_from("bob/dots")  # nobody registered it
    publish_scores(matrix(), "ann/trak", other, method="TRAK", download_path=tmp_path / "other")
    register_setting(other)
    with pytest.raises(ValueError, match="found points_lr, points_other; pass benchmark="):
        leaderboard_from("ann/trak")
    board = leaderboard_from(["bob/dots", "ann/trak"], baselines=False, download_path=tmp_path / "other")
    assert board.benchmark == "other on points" and len(board.rows) == 2
    text = DatasetCard(hub.files("ann/trak")["README.md"].decode()).text
    assert "## points_lr" in text and "## points_other" in text


def test_without_a_network(on_hub, hub, home, offline):
    board = board_of(home, "ann/trak")
    hub.change(("dataset", "bob/dots"), {"x": b"x"})
    offline()
    assert values(board_of(home, "ann/trak")) == values(board), "from the cache"
    assert "could not be fetched" in rows_of(board_of(home, "ann/trak", "bob/dots"))["bob/dots"].error
    with pytest.raises(OSError, match=r"repo_ids: none of 1 could be fetched.*HF_HUB_OFFLINE"):
        board_of(home, "bob/dots")
    with pytest.raises(OSError, match=r"repo_ids: the files of ann/trak could not be listed.*pass benchmark= to skip"):
        leaderboard_from("ann/trak", download_path=home)


def test_a_download_that_fails(on_hub, hub, home):
    publish(home, "bob/dots", method="dots")
    hub.faults[SCORES] = ["wrong"]
    board = board_of(home, "ann/trak", "bob/dots", metrics=["lds"])
    assert "do not match the hub's hash" in rows_of(board)["ann/trak"].error and not rows_of(board)["dots"].error
    assert not board_of(home, "ann/trak").rows[0].error


@pytest.mark.parametrize("scores, words", [
    (torch.ones(12, 4), "cannot be judged by points_lr, lds: ValueError"), (torch.ones(12, 5), "undefined"),
    (torch.full((12, 5), torch.nan), "NaN"), (torch.ones(2, 3, 4), "expected shape"),
    ({"lds": matrix(), "auc": matrix()}, "a dict with keys among lds, loo, mislabel, got lds, auc"), ({}, "got"),
    (matrix().to(torch.complex64), "complex"),
])  # fmt: skip
def test_scores_that_are_not_published(hub, home, scores, words):
    with pytest.raises((ValueError, TypeError), match=f"(?s)scores.*{words}"):
        publish(home, scores=scores)
    assert hub.repos == {}


@pytest.mark.parametrize("scores", [torch.ones(5, 12), torch.ones(11), {"mislabel": torch.ones(13)}])
def test_nothing_is_built_for_scores_of_other_samples(hub, tmp_path, scores):
    with pytest.raises(ValueError, match="expected one row for each of the 12 training samples"):
        publish(tmp_path / "new", scores=scores)
    assert not (tmp_path / "new").exists() and hub.repos == {}


@pytest.mark.parametrize("claims, words", [
    ({"method": "a|b"}, "method: expected letters"), ({"method": ""}, "method"), ({"method": "a" * 61}, "at most 60"),
    ({"method": "a\nb"}, "method"), ({"method": " a"}, "method"), ({"method": 3}, "method"),
    ({"seconds": -1}, "seconds: expected a number"), ({"seconds": "soon"}, "seconds"), ({"seconds": True}, "seconds"),
    ({"hardware": "H100 `x`"}, "hardware: expected letters"), ({"hardware": 7}, "hardware"),
])  # fmt: skip
def test_claims_that_are_not_published(hub, home, claims, words):
    with pytest.raises(ValueError, match=words):
        publish(home, **claims)
    assert hub.repos == {}


def test_a_repository_has_one_method(on_hub, hub, home):
    with pytest.raises(ValueError, match="repo_id: ann/trak holds the scores of 'TRAK'; use one repository per"):
        publish(home, method="dots")
    assert hub.files("ann/trak") == on_hub


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_publishing_needs_the_token(hub, home, tmp_path, monkeypatch, token):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=r"(?s)TRAK on points_lr was not published to ann/trak: .*401.*HF_TOKEN"):
        publish(home)
    assert hub.repos == {}


def test_nothing_is_half_published(on_hub, hub, home, monkeypatch):
    before = files(home)

    def refused(*_, **__):
        raise ConnectionError("cut")

    monkeypatch.setattr(HfApi, "create_commit", refused)
    with pytest.raises(OSError, match="TRAK on points_lr was not published to ann/trak: ConnectionError: cut"):
        publish(home, scores=matrix(1))
    assert hub.files("ann/trak") == on_hub and files(home) == before


def test_a_card_that_somebody_wrote_stays(on_hub, hub, home):
    card = DatasetCard(on_hub["README.md"].decode())
    assert 'leaderboard_from(["ann/trak"]' in card.text and "training-data-attribution" in card.data.tags
    hub.put("ann/trak", "README.md", b"# By hand")
    publish(home, scores=matrix(1))
    assert hub.files("ann/trak")["README.md"] == b"# By hand"


def test_a_benchmark_and_scores_in_one_repository(hub, home, tmp_path):
    publish_benchmark(home, "ann/points")
    card = hub.files("ann/points")["README.md"]
    publish(home, "ann/points")
    assert hub.files("ann/points")["README.md"] == card, "it has the card of the benchmark"
    fetched = replace(SETTING, repo_id="ann/points")
    board = leaderboard_from("ann/points", benchmark=fetched, baselines=False, download_path=tmp_path / "fetched")
    assert board.publications[0].truth == "the same" and not board.rows[0].error
    publish_benchmark(home, "ann/points")
    assert {SCORES, MANIFEST} <= {*hub.files("ann/points")}


def test_nothing_is_written_but_the_cache(on_hub, home, tmp_path):
    before = files(home)
    board_of(home, "ann/trak")
    assert files(home) == before
    assert {path.name for path in tmp_path.iterdir()} == {"hub"}


def test_files_of_the_leaderboard(on_hub, home, tmp_path):
    board = board_of(home, "ann/trak", "nobody/nothing")
    for suffix in (".md", ".tex", ".html", ".csv", ".json"):
        board.save(tmp_path / f"board{suffix}")
        assert "TRAK" in (tmp_path / f"board{suffix}").read_text()
    assert "published, not checked" in (tmp_path / "board.md").read_text()
    written = json.loads((tmp_path / "board.json").read_text())
    assert [each["repo_id"] for each in written["publications"]] == ["ann/trak", "nobody/nothing"]
    assert written["publications"][0]["seconds"] is None and len(written["rows"]) == len(board.rows)
    again = SharedLeaderboard.load(tmp_path / "board.json")
    assert repr(again.publications) == repr(board.publications) and repr(again) == repr(board)
    (tmp_path / "other.json").write_text(json.dumps(written | {"publications": [{"name": 3}]}))
    with pytest.raises(ValueError, match=r"expected a table written by Leaderboard\.save"):
        SharedLeaderboard.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="path: expected a name"):
        board.save(tmp_path / "board.xls")


def test_in_a_terminal(hub, home, tmp_path):
    register_setting(SETTING)
    np.save(tmp_path / "a.npy", matrix().numpy())
    setting = "--model", "lr", "--dataset", "points", "--download-path", str(home)
    options = "--method", "TRAK", "--seconds", "2", "--hardware", "two cores", "--license", "mit"
    told = CliRunner().invoke(app, ["publish-scores", str(tmp_path / "a.npy"), "ann/trak", *setting, *options])
    place = told.output.split("--from ")[1].strip()
    card = DatasetCard(hub.files("ann/trak")["README.md"].decode())
    assert place.startswith("ann/trak@") and card.data.license == "mit"
    mine = "--scores", f"mine={tmp_path / 'a.npy'}", "--out", str(tmp_path / "board.json")
    shown = CliRunner().invoke(app, ["leaderboard", *setting, "--from", place, "--baselines", "none", *mine]).output
    assert "two cores" in shown and "mine *" in shown and "TRAK" in shown
    assert json.loads((tmp_path / "board.json").read_text())["publications"][0]["seconds"] == 2
    failed = CliRunner().invoke(app, ["leaderboard", *setting, "--from", "trak"])
    assert failed.exit_code == 1 and "Error: repo_ids: expected names" in failed.output


def test_scores_of_more_samples(on_hub, hub, home):
    longer = torch.cat([matrix(), matrix()])
    with pytest.raises(ValueError, match="expected one row for each of the 12 training samples"):
        publish(home, "bob/longer", longer)
    content = io.BytesIO()
    np.save(content, longer.numpy())
    manifest = json.loads(on_hub[MANIFEST])
    manifest["files"]["scores.npy"] = hashlib.sha256(content.getvalue()).hexdigest()
    hub.put("bob/longer", SCORES, content.getvalue())
    hub.put("bob/longer", MANIFEST, json.dumps(manifest).encode())
    assert all("expected one row for each of the 12" in row.error for row in board_of(home, "bob/longer").rows)


def test_names_that_look_alike_are_told_apart(on_hub, hub, home):
    publish(home, "bob/spaces", matrix(1), method="my  own")
    publish(home, "cid/spaces", matrix(2), method="my own")
    names = {row.method for row in board_of(home, "bob/spaces", "cid/spaces").rows}
    assert names == {"my own (bob/spaces)", "my own (cid/spaces)"}


def test_a_benchmark_has_two_names(home):
    with pytest.raises(ValueError, match=r"benchmark: expected the names of a model and a data set.*got 'digits'"):
        publish_scores(matrix(), "ann/trak", "digits", method="TRAK", download_path=home)
    with pytest.raises(ValueError, match=r"benchmark: expected the names of a model and a data set.*got 'digits'"):
        leaderboard_from("ann/trak", benchmark="digits", download_path=home)
