"""A leaderboard over a small benchmark: what methods may be, what fails, what is written."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmark_helpers import SMALL
from typer.testing import CliRunner

from dattri import Predictions, compare_lds, evaluate, lds, lds_ceiling, register_setting
from dattri.benchmark.load import load_setting
from dattri.cli import app

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
    assert by_loo["said"].error == "ValueError: predictions are of subsets, which only the LDS is about"
    assert by_loo["by metric"].error == "no scores for this" and not by_loo["map"].error


def test_what_fails_has_a_row_and_the_others_are_kept(home, tmp_path):
    (tmp_path / "evil.pt").write_bytes(b"cposix\nsystem\n(S'touch here'\ntR.")

    def raises(attributes, metric):
        raise ZeroDivisionError("no damping\nat all")

    methods = {"raises": raises, "transposed": matrix().T, "nan": matrix() * math.nan, "evil": tmp_path / "evil.pt",
               "absent": tmp_path / "absent.pt", "constant": torch.ones(12, 5), "good": matrix()}  # fmt: skip
    rows = rows_of(evaluate(methods, SETTING, download_path=home))
    assert rows["raises"].error == "ZeroDivisionError: no damping at all"
    assert "looks transposed" in rows["transposed"].error and "NaN or infinity" in rows["nan"].error
    assert "ValueError" in rows["evil"].error and "FileNotFoundError" in rows["absent"].error
    assert rows["constant"].error.startswith("undefined") and not rows["good"].error
    assert all(math.isnan(rows[name].value) for name in methods if name != "good")


@pytest.mark.parametrize(("scores", "message"), [({"random": matrix()}, "name of a baseline"), ([matrix()], "dict")])
def test_methods_have_names(scores, message, home):
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(scores, SETTING, download_path=home)


def test_tables_are_written(home, tmp_path):
    board = evaluate({"50%_a & b|c": matrix(), "<b>": matrix().T}, SETTING, download_path=home)
    for suffix in ("md", "tex", "html", "csv", "json"):
        board.save(tmp_path / f"board.{suffix}")
    assert r"50\%\_a \& b|c" in (tmp_path / "board.tex").read_text()
    assert r"50%_a & b\|c" in (tmp_path / "board.md").read_text()
    assert "<b>" not in (tmp_path / "board.html").read_text() and "&lt;b&gt;" in (tmp_path / "board.html").read_text()
    written = json.loads((tmp_path / "board.json").read_text())["rows"]
    with (tmp_path / "board.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [row["method"] for row in written] == [line["method"] for line in lines] == [r.method for r in board.rows]
    assert [row["value"] for row in written if row["method"] == "<b>"] == [None, None]


def test_the_command(home, tmp_path):
    register_setting(SETTING)
    torch.save(matrix(), tmp_path / "a.pt")
    options = ["leaderboard", "--model", "lr", "--dataset", "points", "--download-path", str(home)]
    run = CliRunner().invoke(app, [*options, "--scores", f"mine={tmp_path / 'a.pt'}", "--out", str(tmp_path / "x.csv")])
    assert run.exit_code == 0 and "mine" in run.output and "random" in run.output and (tmp_path / "x.csv").exists()
    for given, message in (
        (["mine"], "expected NAME=FILE"), (["a=b.pt"], "there is no file b.pt"),
        ([f"a={tmp_path / 'a.pt'}"] * 2, "'a' is given twice"),
    ):  # fmt: skip
        run = CliRunner().invoke(app, [*options, *(part for text in given for part in ("--scores", text))])
        assert run.exit_code == 1 and message in run.output
