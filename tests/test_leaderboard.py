"""A leaderboard over a small benchmark: what methods may be, what fails, what is written."""

import csv
import io
import json
import math
import os
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_helpers import SMALL
from rich.console import Console
from typer.testing import CliRunner

from dattri import (
    GroundTruth,
    Predictions,
    Targets,
    cli,
    compare_lds,
    evaluate,
    find_setting,
    lds,
    lds_ceiling,
    lds_interval,
    loo_interval,
    register_setting,
)  # fmt: skip
from dattri.benchmark import beside
from dattri.benchmark.baselines import trak
from dattri.benchmark.leaderboard import Leaderboard, LeaderboardRow
from dattri.benchmark.load import load_setting
from dattri.cli import app
from dattri.metric.uncertainty import compare_loo

pytestmark = pytest.mark.usefixtures("one_thread", "registry")
SETTING = replace(SMALL, repo_id=None, num_subsets=12, num_runs=3)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which the benchmark is built once."""
    folder = tmp_path_factory.mktemp("home")
    load_setting(SETTING, "lds", folder)
    load_setting(SETTING, "loo", folder)
    return folder


def matrix(seed=0):
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))


def rows_of(board, metric="lds"):
    return {row.method: row for row in board.rows if row.metric == metric}


def test_values_are_those_of_the_metrics(home):
    attributes, truth = load_setting(SETTING, "lds", home)
    board = evaluate({"a": matrix(0), "b": matrix(1)}, SETTING, download_path=home)
    rows, ceiling = rows_of(board), lds_ceiling(attributes["targets"]).mean
    for name, seed in (("a", 0), ("b", 1)):
        value = float(lds(matrix(seed), truth).correlation.double().mean())
        assert math.isclose(rows[name].value, value, rel_tol=1e-5) and rows[name].ceiling == ceiling
        assert rows[name].share == rows[name].value / ceiling
    found = [row for row in board.rows if row.metric == "lds"]
    assert [row.value for row in found] == sorted((row.value for row in found), reverse=True)
    assert {row.method for row in found} == {"a", "b", "random", "gradient dot product"}
    alone = evaluate({"a": matrix(0), "b": matrix(1)}, SETTING, metrics=["lds"], baselines=False, download_path=home)
    best, other = (matrix({"a": 0, "b": 1}[row.method]) for row in alone.rows)
    assert (alone.rows[1].difference, alone.rows[1].difference_low) == compare_lds(best, other, truth)[:2]
    assert found[0].is_best and all(row.is_best == (row.difference_low <= 0) for row in found)


def test_functions_are_called_once_for_one_lot_of_models(home):
    calls = []

    def method(attributes, metric):
        calls.append(metric)
        assert len(attributes["models_full"]) == 3
        return matrix()

    board = evaluate({"mine": method}, SETTING, baselines=False, download_path=home)
    assert calls == ["lds"] and [row.metric for row in board.rows] == ["lds", "loo"]
    assert all(row.seconds >= 0 and not row.error for row in board.rows)


def test_whatever_stands_for_scores(home, tmp_path):
    np.save(tmp_path / "a.npy", matrix().numpy())
    torch.save(matrix(), tmp_path / "a.pt")
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    _, truth = load_setting(SETTING, "lds", home)
    sums = torch.stack([matrix().double()[subset].sum(0) for subset in truth.indices])
    methods = {"tensor": matrix(), "npy": tmp_path / "a.npy", "pt": str(tmp_path / "a.pt"), "map": mapped,
               "said": Predictions(sums), "by metric": {"lds": matrix()}}  # fmt: skip
    board = evaluate(methods, SETTING, baselines=False, download_path=home)
    assert len({round(row.value, 6) for row in rows_of(board).values()}) == 1
    by_loo = rows_of(board, "loo")
    assert by_loo["said"].error == "ValueError: predictions are of subsets, which only the LDS uses"
    assert by_loo["by metric"].error == "no scores for 'loo', only for 'lds'" and not by_loo["map"].error


def test_what_fails_has_a_row_and_the_others_are_kept(home, tmp_path):
    (tmp_path / "evil.pt").write_bytes(b"cposix\nsystem\n(S'touch here'\ntR.")

    def raises(attributes, metric):
        raise ZeroDivisionError("no damping\nat all")

    methods = {"raises": raises, "transposed": matrix().T, "nan": matrix() * math.nan, "evil": tmp_path / "evil.pt",
               "absent": tmp_path / "absent.pt", "constant": torch.ones(12, 5), "good": matrix(),
               "once": lambda attributes, metric: iter(matrix().split(2, 1))}  # fmt: skip
    rows = rows_of(evaluate(methods, SETTING, download_path=home))
    assert rows["raises"].error == "ZeroDivisionError: no damping at all"
    assert "looks transposed" in rows["transposed"].error and "NaN or infinity" in rows["nan"].error
    assert "ValueError" in rows["evil"].error and "FileNotFoundError" in rows["absent"].error
    assert "read more than once, got " in rows["once"].error
    assert rows["constant"].error.startswith("undefined") and not rows["good"].error
    assert all(math.isnan(rows[name].value) for name in methods if name != "good")


def test_blocks_of_columns_are_scores(home):
    board = evaluate({"blocks": matrix().split(2, 1), "whole": matrix()}, SETTING, baselines=False, download_path=home)
    for metric in ("lds", "loo"):
        rows = rows_of(board, metric)
        assert rows["blocks"].value == rows["whole"].value and rows["blocks"].is_best and rows["whole"].is_best


def test_methods_that_share_no_test_sample_are_not_called_worse(home):
    first, last = (matrix().clone() for _ in range(2))
    first[:, 2:], last[:, :2] = 0, 0
    board = evaluate({"first": first, "last": last}, SETTING, metrics=["lds"], baselines=False, download_path=home)
    assert math.isnan(board.rows[1].difference) and board.rows[1].is_best


def test_what_a_value_leaves_out_is_said(home):
    """Scores that are constant except where they do well would otherwise lead by their best test samples."""
    picked = matrix()
    picked[:, 1:] = 0
    board = evaluate({"picked": picked, "whole": matrix()}, SETTING, baselines=False, download_path=home)
    for metric in ("lds", "loo"):
        rows = rows_of(board, metric)
        assert rows["picked"].num_undefined == 4 and rows["whole"].num_undefined == 0
    for shown in (repr(board), board._repr_html_()):
        assert shown.count("picked: undefined and left out for 4 test samples") == 2 and "whole: un" not in shown


def test_metrics_are_a_list_of_different_names(home):
    once = evaluate({"a": matrix()}, SETTING, metrics=["lds", "lds"], baselines=False, download_path=home)
    assert len(once.rows) == 1
    with pytest.raises(TypeError, match=r"metrics: expected a list of names, got a single string; pass \['lds'\]"):
        evaluate({"a": matrix()}, SETTING, metrics="lds", download_path=home)


@pytest.mark.parametrize(
    ("scores", "baselines", "message"),
    [({"random": matrix()}, True, "name of a baseline"), ([matrix()], True, "dict"), ({"": 1}, True, "names as keys"),
     ({"a": 1, 3: 1}, True, "names as keys, .* got 3"), ({"\n": 1}, True, "names as keys"),
     ({"TRAK": matrix()}, "all", "'TRAK' is the name of a baseline"),
     ({}, "some", 'baselines: expected True, False or "all", got')],
)  # fmt: skip
def test_methods_have_names(scores, baselines, message, home):
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(scores, SETTING, baselines=baselines, download_path=home)


def test_names_of_baselines_are_free_where_they_do_not_stand(home):
    board = evaluate({"TRAK": matrix(), "random": matrix()}, SETTING, baselines=False, download_path=home)
    assert {row.method for row in board.rows} == {"TRAK", "random"}


def test_a_metric_without_ground_truth(home):
    with pytest.raises(ValueError, match="metric: points_lr has no ground truth for 'mislabel'"):
        evaluate({}, SETTING, metrics=["mislabel"], download_path=home)


def test_all_baselines_stand_beside(home):
    board = evaluate({"mine": matrix()}, SETTING, baselines="all", download_path=home)
    for metric, left_out in (("lds", {"BM25"}), ("loo", {"BM25", "linear datamodel"})):
        rows = rows_of(board, metric)
        assert set(rows) == {"mine", *beside.BASELINES} - left_out
        assert [rows[name].num_checkpoints for name in ("TRAK", "TRAK, one model", "TracIn", "random", "mine")] == [
            3, 1, 3, None, None
        ]  # fmt: skip
        assert not any(row.error for row in rows.values())
        assert {row.method for row in board.rows if row.metric == metric and row.is_best}
    assert "checkpoints" in repr(board) and json.loads(board.to_json())["rows"][0]["num_checkpoints"] in (None, 1, 3)


def test_differences_are_those_of_paired_comparisons(home):
    _, truth = load_setting(SETTING, "loo", home)
    board = evaluate({"a": matrix(0), "b": matrix(1)}, SETTING, metrics=["loo"], baselines=False, download_path=home)
    best, other = (matrix({"a": 0, "b": 1}[row.method]) for row in board.rows)
    assert board.rows[1][7:10] == pytest.approx(compare_loo(best, other, truth)[:3], nan_ok=True)


def test_what_takes_too_long_is_not_begun(home, monkeypatch):
    monkeypatch.setitem(beside._MOST_WORK, "cpu", 10)
    rows = rows_of(evaluate({"mine": matrix()}, SETTING, baselines="all", download_path=home))
    for name in ("influence function", "TRAK", "TracIn", "gradient dot product"):
        assert "it would compute about" in rows[name].error and "device='cuda'" in rows[name].error
    assert not rows["random"].error and not rows["mine"].error


def test_text_is_judged_by_its_words():
    tokens, labels = torch.randint(9, (12, 6), generator=torch.Generator().manual_seed(0)), torch.zeros(12)
    data = torch.utils.data.TensorDataset(tokens, labels)
    case = beside.Case(torch.nn.Linear(6, 2), data, data, torch.nn.functional.cross_entropy, [], "lds", None)
    assert "BM25" in {name for name in ("BM25",) if beside.BASELINES[name].when(case)}
    scores = beside.BASELINES["BM25"].function(case, [])
    assert scores.shape == (12, 12) and scores.argmax(0).tolist() == list(range(12))
    assert not beside.BASELINES["BM25"].when(case._replace(test=None))
    assert not beside.BASELINES["BM25"].when(case._replace(train=[(torch.zeros(6), 0)]))


@pytest.fixture(scope="module")
def digits_board(tmp_path_factory):
    """All baselines on logistic regression of digits, with fewer models left out."""
    setting = replace(find_setting("lr", "digits"), num_removed=40)
    folder = tmp_path_factory.mktemp("digits")
    return evaluate({}, setting, baselines="all", download_path=folder), load_setting(setting, "lds", folder)


def test_what_holds_on_digits(digits_board):
    board, _ = digits_board
    lds_rows, loo_rows = rows_of(board, "lds"), rows_of(board, "loo")
    assert lds_rows["influence function"].value >= 0.85 and loo_rows["influence function"].value >= 0.88
    assert lds_rows["TRAK"].low > lds_rows["TRAK, one model"].high
    for row in board.rows:
        assert not row.error, row
        if row.metric == "lds":
            assert row.value <= row.ceiling + (row.high - row.low) / 2, row
        if row.method == "random":
            assert row.low <= (0.5 if row.metric == "mislabel" else 0) <= row.high, row
    best = [row for row in board.rows if row.metric == "lds" and row.is_best]
    assert [row.method for row in best] == ["influence function"]
    for row in rows_of(board, "mislabel").values():
        assert row.difference_low <= row.difference <= row.difference_high, row


def test_trak_grows_with_checkpoints(digits_board):
    _, (attributes, truth) = digits_board
    reached = []
    for count in (1, 3, 10):
        scores = trak(
            attributes["model"], attributes["models_full"][:count], attributes["train_dataset"],
            attributes["test_dataset"],
        )  # fmt: skip
        reached.append(float(lds(scores, truth).correlation.double().mean()))
    assert reached[0] + 0.05 < reached[1] and reached[1] + 0.05 < reached[2], reached


def test_the_picture_names_the_ceiling(digits_board):
    board = digits_board[0]
    ax = board.plot()
    (ceiling,) = {row.ceiling for row in board.rows if row.metric == "lds" and not math.isnan(row.ceiling)}
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"ceiling: {ceiling:.2f}" in names
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert {row.method for row in board.rows if row.metric == "lds"} == {label.split("\n")[0] for label in labels}


def test_mislabel_differences(digits_board):
    rows = list(rows_of(digits_board[0], "mislabel").values())
    assert rows[0].is_best and rows[0].difference == 0 and rows[-1].difference_low > 0.3


def test_tables_are_written(home, tmp_path):
    board = evaluate({"50%_a & b|c": matrix(), "<b>": matrix().T}, SETTING, download_path=home)
    for suffix in ("md", "tex", "html", "csv", "json"):
        board.save(tmp_path / f"board.{suffix}")
    assert r"50\%\_a \& b|c" in (tmp_path / "board.tex").read_text()
    assert r"50%_a &amp; b\|c" in (tmp_path / "board.md").read_text()
    assert "<b>" not in (tmp_path / "board.html").read_text() and "&lt;b&gt;" in (tmp_path / "board.html").read_text()
    written = json.loads((tmp_path / "board.json").read_text())["rows"]
    with (tmp_path / "board.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [row["method"] for row in written] == [line["method"] for line in lines] == [r.method for r in board.rows]
    assert [row["value"] for row in written if row["method"] == "<b>"] == [None, None]
    again = Leaderboard.load(tmp_path / "board.json")
    assert repr(again) == repr(board) and repr(again.rows) == repr(board.rows)


HARD = {
    "<script>x</script>": ("&lt;script&gt;x&lt;/script&gt;",
                           r"\textless{}script\textgreater{}x\textless{}/script\textgreater{}"),
    "x^2~": ("x^2~", r"x\textasciicircum{}2\textasciitilde{}"),
    "[a](b) `c` \\d": (r"[a]\(b) \`c\` \\d", r"{}[a](b) `c` \textbackslash{}d"),
    "* first": ("* first", "{}* first"),
    "two\nlines\x1b[31m": ("two lines [31m", "two lines [31m"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("error", ["", "it failed"])
def test_no_name_breaks_a_table(tmp_path, name, error):
    board = Leaderboard((LeaderboardRow(name, "lds", *[0.5] * 8, error=error),), "lr on digits")
    markdown, latex = HARD[name]
    for suffix, shown in ((".md", f"| {markdown} |"), (".tex", latex + " & ")):
        board.save(tmp_path / f"board{suffix}")
        lines = (tmp_path / f"board{suffix}").read_text().split("\n")
        assert sum(line.startswith(shown) for line in lines) == 1
    assert all(part.isprintable() for part in repr(board).split("\n")) and "\nlines" not in repr(board)
    board.save(tmp_path / "board.json")
    assert Leaderboard.load(tmp_path / "board.json").rows[0].method == name


WRONG = {
    "method": [5, None, ["a"]], "value": ["0.5", [1], {}, True, 10**400], "low": ["0"], "share": [{}], "seconds": ["s"],
    "num_undefined": [None, 0.5], "is_best": ["yes", 1], "num_checkpoints": ["3", 0.5, {}], "error": [5, None],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_fields_of_other_types_are_refused(tmp_path, field, value):
    record = {"benchmark": "b", "rows": [{"method": "a", "metric": "lds", "value": 1, field: value}]}
    (tmp_path / "board.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"board.json: expected a table written by Leaderboard.save as .json"):
        Leaderboard.load(tmp_path / "board.json")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"rows": [], "benchmark": 5}', '{"rows": []}', '{"rows": [{"method": "a"}], "benchmark": "b"}',
     '{"rows": [{"method": "a", "metric": "lds", "colour": 1}], "benchmark": "b"}',
     '{"rows": [{"method": "a", "metric": "size"}], "benchmark": "b"}'],
)  # fmt: skip
def test_files_that_are_no_tables_are_refused(tmp_path, content):
    (tmp_path / "board.json").write_text(content)
    with pytest.raises(ValueError, match=r"board.json: expected a table written by Leaderboard.save as .json"):
        Leaderboard.load(tmp_path / "board.json")


@pytest.mark.parametrize(("value", "noted"), [(0.5, False), (0.3, True), (math.nan, False)])
def test_a_value_outside_its_interval_is_explained(value, noted):
    board = Leaderboard((LeaderboardRow("mine", "lds", value, 0.4, 0.6),), "b")
    for shown in (repr(board), board._repr_html_()):
        assert ("outside its interval: mine; a correlation over few models is biased" in shown) == noted


def test_the_command_with_all_baselines(home):
    register_setting(SETTING)
    options = ["leaderboard", "--model", "lr", "--dataset", "points", "--download-path", str(home), "--baselines"]
    run = CliRunner().invoke(app, [*options, "all"])
    assert run.exit_code == 0 and "TRAK, one model" in run.output and "mean LOO correlation" in run.output
    for more in ([], ["--metric", "loo"]):  # the value may be omitted
        run = CliRunner().invoke(app, [*options, *more])
        assert run.exit_code == 0 and "TRAK, one model" in run.output
    run = CliRunner().invoke(app, [*options, "every"])
    assert run.exit_code == 1 and "--baselines: expected some, all or none, got 'every'" in run.output


def test_the_command(home, tmp_path):
    register_setting(SETTING)
    torch.save(matrix(), tmp_path / "a.pt")
    options = ["leaderboard", "--model", "lr", "--dataset", "points", "--download-path", str(home)]
    run = CliRunner().invoke(app, [*options, "--scores", f"mine={tmp_path / 'a.pt'}", "--out", str(tmp_path / "x.csv")])
    assert run.exit_code == 0 and "mine" in run.output and "random" in run.output and (tmp_path / "x.csv").exists()
    run = CliRunner().invoke(app, [*options, "--scores", f"mine={tmp_path / 'a.pt'}", "--json"])
    assert run.exit_code == 0 and {row["method"] for row in json.loads(run.stdout)["rows"]} >= {"mine", "random"}
    torch.save(matrix().T, tmp_path / "turned.pt")
    files = f"mine={tmp_path / 'a.pt'}", f"turned={tmp_path / 'turned.pt'}"
    run = CliRunner().invoke(app, [*options, "--metric", "lds", "--scores", files[0], "--scores", files[1]])
    assert run.exit_code == 1 and "it looks transposed" in run.output and "mine" in run.output
    for given, message in (
        (["mine"], "expected NAME=FILE"), (["a=b.pt"], "file not found: b.pt"),
        ([f"a={tmp_path / 'a.pt'}"] * 2, "'a' is given twice"),
    ):  # fmt: skip
        run = CliRunner().invoke(app, [*options, *(part for text in given for part in ("--scores", text))])
        assert run.exit_code == 1 and message in run.output


HALVES = torch.rand(60, 40, generator=torch.Generator().manual_seed(0)).argsort(1) < 20
EFFECTS = torch.randn(40, 9, generator=torch.Generator().manual_seed(11))
RUNS = (HALVES.float() @ -EFFECTS)[:, None] + torch.randn(60, 2, 9, generator=torch.Generator().manual_seed(12))
NEAR = EFFECTS + torch.randn(40, 9, generator=torch.Generator().manual_seed(13))
OWN = {
    "targets": (Targets(RUNS, HALVES), "lds"),
    "pair": ((-RUNS.mean(1), HALVES), "lds"),
    "loo": (GroundTruth(NEAR[:30], torch.arange(30)), "loo"),
}


@pytest.mark.parametrize("name", OWN)
def test_ground_truth_of_ones_own_takes_the_place_of_a_benchmark(name):
    truth, metric = OWN[name]
    board = evaluate({"near": NEAR, "exact": EFFECTS}, truth, baselines="all")
    rows = rows_of(board, metric)
    assert {*rows} == {"near", "exact", "random"} | ({"linear datamodel"} if metric == "lds" else set())
    pair = truth.ground_truth() if name == "targets" else truth
    interval, compare = (lds_interval, compare_lds) if metric == "lds" else (loo_interval, compare_loo)
    best, other = ("exact", "near") if metric == "lds" else ("near", "exact")
    scores = {"near": NEAR, "exact": EFFECTS}
    assert (rows[other].value, rows[other].low, rows[other].high) == tuple(interval(scores[other], pair))
    assert rows[other].difference == compare(scores[best], scores[other], pair).difference and rows[best].is_best
    ceiling = lds_ceiling(truth).mean if name == "targets" else math.nan
    assert rows["near"].ceiling == pytest.approx(ceiling, nan_ok=True)
    assert not any(row.error for row in board.rows) and abs(rows["random"].value) < 0.3


def test_a_vector_of_wrong_labels_takes_the_place_of_a_benchmark():
    is_wrong = torch.arange(40) < 8
    board = rows_of(evaluate({"mine": is_wrong + EFFECTS[:, 0]}, is_wrong), "mislabel")
    assert board["mine"].metric == "mislabel" and board["mine"].value > board["random"].value


@pytest.mark.parametrize(("truth", "options", "message"), [
    (torch.ones(3, 2), {}, r"benchmark: expected a setting, .*got shape \(3, 2\)"),
    (5, {}, "benchmark: got int"),
    (("a", "b"), {}, "there is no setting"),
    (Targets(RUNS, HALVES), {"metrics": ["loo"]}, "metric: 'loo' does not fit the ground truth"),
    ((RUNS[:5], HALVES), {}, "benchmark"),
])  # fmt: skip
def test_what_is_no_ground_truth_is_refused(truth, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate({"near": NEAR}, truth, **options)


def test_a_baseline_that_fails_on_ground_truth_of_ones_own_is_a_row():
    rows = rows_of(evaluate({"near": NEAR}, Targets(RUNS[:3], HALVES[:3]), baselines="all"))
    assert "at least 4 subsets" in rows["linear datamodel"].error and {*rows} == {"near", "random", "linear datamodel"}


def test_functions_need_a_benchmark():
    rows = rows_of(evaluate({"near": NEAR, "mine": lambda attributes, metric: NEAR}, Targets(RUNS, HALVES)))
    assert "for your own ground truth, pass its scores" in rows["mine"].error and not rows["near"].error


def test_the_command_with_ground_truth_of_ones_own(tmp_path):
    np.save(tmp_path / "near.npy", NEAR.numpy())
    Targets(RUNS, HALVES).save(tmp_path / "targets.pt")
    options = ["leaderboard", "--ground-truth", str(tmp_path / "targets.pt")]
    run = CliRunner().invoke(app, [*options, "--scores", f"near={tmp_path / 'near.npy'}", "--json"])
    found = json.loads(run.stdout)["rows"]
    expected = evaluate({"near": NEAR}, Targets(RUNS, HALVES)).rows
    assert [(row["method"], row["value"], row["ceiling"]) for row in found] == [
        (row.method, row.value, row.ceiling) for row in expected
    ]
    for others, message in (
        (["--model", "lr"], "got --ground-truth and --model"), (["--from", "you/scores"], "--from: published scores"),
        ([], "--scores: missing"),
    ):  # fmt: skip
        run = CliRunner().invoke(app, [*options, *others])
        assert run.exit_code == 1 and message in run.output
    run = CliRunner().invoke(app, ["leaderboard", "--model", "lr"])
    assert run.exit_code == 1 and "--dataset missing; pass --model and --dataset, or --ground-truth FILE" in run.output
    run = CliRunner().invoke(app, ["leaderboard"])
    assert run.exit_code == 1 and "--model and --dataset missing; pass --model and --dataset" in run.output


@pytest.mark.parametrize("place", ["folder", "", "truth.pt/a.png", "truth.pt/new/a.png"])
@pytest.mark.parametrize("option", ["--picture", "--out", "--save-truth"])
def test_files_that_cannot_be_written_are_refused_before_anything_is_done(option, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    np.save("near.npy", NEAR.numpy())
    Targets(RUNS, HALVES).save("truth.pt")
    judging = ["--ground-truth", "truth.pt", "--scores"]
    words = {
        "--picture": ["evaluate", *judging, "near.npy"], "--out": ["leaderboard", *judging, "near=near.npy"],
        "--save-truth": ["load", "--model", "lr", "--dataset", "digits", "--metric", "lds"],
    }  # fmt: skip
    run = CliRunner().invoke(app, [*words[option], option, place])
    assert run.exit_code == 1 and not run.stdout
    assert run.stderr.startswith(f"Error: {option}: expected the path of a file to write")
    assert run.stderr.count("\n") == 1
    assert {*map(str, tmp_path.iterdir())} == {str(tmp_path / name) for name in ("folder", "near.npy", "truth.pt")}


def test_what_a_method_does_reaches_no_other(home):
    def spoils(attributes, metric):
        attributes["models_full"].clear()
        for part in attributes["model"].parameters():
            part.data.zero_()
        attributes["targets"].values.zero_()
        for name in ("train_dataset", "test_dataset"):
            attributes[name].tensors[0].zero_()
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return matrix()

    ask = partial(evaluate, benchmark=SETTING, metrics=["lds"], download_path=home)
    boards = [rows_of(ask({"mine": method})) for method in (matrix(), spoils)]
    kept, found = ([board[name]._replace(seconds=0) for name in ("gradient dot product", "random")] for board in boards)
    assert kept == found
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


@pytest.mark.parametrize("metric", ["lds", "loo"])
def test_scores_have_a_row_for_each_training_sample(home, metric):
    """More rows are scores of other data, even if all positions of the ground truth exist in them."""
    longer = torch.cat([matrix(), matrix()])
    methods = {"matrix": longer, "map": longer.numpy(), "blocks": [longer[:, :2], longer[:, 2:]], "mine": matrix()}
    rows = rows_of(evaluate(methods, SETTING, metrics=[metric], download_path=home), metric)
    assert not rows["mine"].error
    for name in ("matrix", "map", "blocks"):
        assert "expected one row for each of the 12 training samples" in rows[name].error, name


@pytest.mark.parametrize("other", ["a ", "a\n", " a", "a\u200b", "\x1ba"])
def test_names_that_look_alike_are_refused(home, other):
    with pytest.raises(ValueError, match="scores: 'a' would be shown for 2 methods"):
        evaluate({"a": matrix(0), other: matrix(1)}, SETTING, download_path=home)
    with pytest.raises(ValueError, match="'random' is the name of a baseline"):
        evaluate({other.replace("a", "random"): matrix()}, SETTING, download_path=home)


def test_lists_of_numbers_are_self_attribution():
    is_wrong = torch.arange(40) < 8
    given = is_wrong + EFFECTS[:, 0]
    methods = {"tensor": given, "list": given.tolist(), "by metric": {"mislabel": given.tolist()}}
    rows = rows_of(evaluate(methods, is_wrong), "mislabel")
    assert rows["tensor"].value == rows["list"].value == rows["by metric"].value


@pytest.mark.parametrize(("benchmark", "message"), [
    ("digits", r"benchmark: expected the names of a model and a data set.*got 'digits'"),
    (("lr",), r"benchmark: expected the names of a model and a data set.*got \('lr',\)"),
])  # fmt: skip
def test_a_benchmark_has_two_names(benchmark, message):
    with pytest.raises(ValueError, match=message):
        evaluate({}, benchmark)


def test_what_load_benchmark_returns_is_for_one_metric(home):
    loaded = load_setting(SETTING, "lds", home)
    for given in (loaded, loaded[0], tuple(loaded)):
        with pytest.raises(TypeError, match="benchmark: got a result of load_benchmark, which is for one metric; pass"):
            evaluate({"mine": matrix()}, given)


def test_a_method_that_exits_is_a_row(home):
    def exits(attributes, metric):
        raise SystemExit(3)

    def stops(attributes, metric):
        raise KeyboardInterrupt

    rows = rows_of(evaluate({"exits": exits, "mine": matrix()}, SETTING, metrics=["lds"], download_path=home))
    assert rows["exits"].error == "SystemExit: 3" and not rows["mine"].error
    with pytest.raises(KeyboardInterrupt):
        evaluate({"stops": stops}, SETTING, metrics=["lds"], download_path=home)


def test_long_errors_end_in_dots(home):
    def fails(attributes, metric):
        raise ValueError("word " * 1000)

    (row,) = evaluate({"fails": fails}, SETTING, metrics=["lds"], baselines=False, download_path=home).rows
    assert len(row.error) <= 600 and row.error.endswith("word ...")


def test_global_settings_of_a_method_reach_no_other(home, tmp_path, monkeypatch):
    def zeros(*args):
        return args[2] * 0

    def spoils(attributes, metric):
        torch.set_default_device("meta")
        torch.nn.modules.module.register_module_forward_hook(zeros)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        np.seterr(all="raise")
        warnings.simplefilter("error")
        os.chdir(tmp_path)
        return matrix().cpu() if metric == "lds" else 1 / 0

    monkeypatch.chdir(home.parent)
    ask = partial(evaluate, benchmark=SETTING, metrics=["lds"], baselines="all", download_path=home.name)
    kept, found = (
        [row._replace(seconds=0) for row in ask({"mine": method}).rows if row.method != "mine"]
        for method in (matrix(), spoils)
    )
    assert repr(kept) == repr(found)
    assert torch.get_default_device() == torch.device("cpu") and torch.nn.Linear(1, 1)(torch.ones(1)).abs() > 0
    assert torch.get_float32_matmul_precision() == "highest" and not torch.are_deterministic_algorithms_enabled()
    assert np.geterr()["divide"] == "warn" and Path.cwd() == home.parent


def test_hooks_of_the_user_stay(home):
    calls = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    try:
        evaluate({"mine": lambda attributes, metric: matrix()}, SETTING, metrics=["lds"], download_path=home)
        calls.clear()
        torch.nn.Linear(1, 1)(torch.ones(1))
        assert calls == [1]
    finally:
        handle.remove()


def test_what_a_value_leaves_out_is_a_column(home):
    partly = matrix()
    partly[:, 0] = 1
    board = evaluate({"mine": partly, "whole": matrix(1)}, SETTING, metrics=["lds"], download_path=home)
    line = next(line for line in str(board).splitlines() if line.startswith("mine"))
    assert "left out" in str(board).splitlines()[2] and "1 tests" in line
    whole = evaluate({"whole": matrix(1)}, SETTING, metrics=["lds"], download_path=home)
    assert "left out" not in str(whole)


def test_notes_are_comments_in_latex(home, tmp_path):
    evaluate({"fails": lambda *_: 1 / 0}, SETTING, metrics=["lds"], download_path=home).save(tmp_path / "a.tex")
    assert "\n% fails: ZeroDivisionError: " in (tmp_path / "a.tex").read_text()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_rich_shows_all_values_and_no_markup(home, width):
    methods = {"[red]m": matrix(), "fails": lambda *_: 1 / 0}
    board = evaluate(methods, SETTING, metrics=["lds"], baselines="all", download_path=home)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(board)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "[red]m" in text and "fails: ZeroDivisionError" in text
    assert all(f"{row.value:.3f}" in text for row in board.rows if not row.error)
    assert width < 200 or all(row.method in text for row in board.rows)


def test_terminals_get_tables_of_rich_and_pipes_plain_text(monkeypatch):
    board = Leaderboard((LeaderboardRow("[red]mine", "lds", 0.5, 0.4, 0.6),), "b")
    for terminal, expected in ((True, "\u2500"), (False, str(board) + "\n")):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stdout", stream)
        cli._show(board)
        assert expected in stream.getvalue() and "[red]mine" in stream.getvalue()
