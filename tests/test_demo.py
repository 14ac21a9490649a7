"""What a user of the demo sees: a line per benchmark, and a picture in which every method is seen."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dattri import demo, lds
from dattri.benchmark import settings
from dattri.cli import app
from dattri.demo import draw, run_demo


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder for a small demo, whose few models are trained, for a few epochs, by the test that runs first."""
    setting = settings.find_setting("lr", "digits")
    setting = replace(setting, num_full=2, num_half=2, train_func=replace(setting.train_func, num_epochs=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "_REGISTRY", dict(settings._REGISTRY))
        settings.register_setting(setting, replace=True)
        yield {"path": tmp_path_factory.mktemp("demo"), "num_subsets": 3, "num_removed": 4}


def test_one_line_for_each_benchmark(small, capfd):
    run_demo(**small)
    lines = [line.rsplit("\r", 1)[-1] for line in capfd.readouterr().err.split("\n") if line]
    metrics = ("lds", "loo", "mislabel")
    assert [line.split(":")[0] for line in lines] == [f"building digits_lr for {metric}" for metric in metrics]
    assert all("100%" in line for line in lines)
    run_demo(**small)
    assert capfd.readouterr().err == "", "a second run finds everything built"


def test_every_method_is_in_each_picture(small):
    result = run_demo(**small)
    left, middle, right = draw(result).axes
    best = result.board.rows[0].method
    assert all(any(name in label.get_text() for label in left.get_yticklabels()) for name in result.scores)
    assert middle.get_title().startswith(f"{best}, test sample ")
    lines = right.get_lines()
    styles = {(line.get_color(), str(line.get_linestyle())) for line in lines}
    assert len(styles) == len(lines) == len(result.scores) + 2


def test_a_picture_that_cannot_be_written_is_an_error_in_one_line(small, tmp_path, monkeypatch):
    result = run_demo(**small)
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: result)
    (tmp_path / "demo.png").mkdir()
    run = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert run.exit_code == 1 and "cannot write the file (Is a directory)" in run.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_cannot_be_written_is_an_error_in_one_line():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-m", "dattri", "list"]
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1 and run.stderr.splitlines()[0].startswith("Error: [Errno 28]"), run.stderr


def test_each_method_is_run_once_for_each_kind_of_scores(small, monkeypatch):
    counts = Counter()

    def counting(name, method):
        def function(*arguments):
            counts[name] += 1
            return method(*arguments)

        return function

    monkeypatch.setattr(demo, "METHODS", {name: counting(name, method) for name, method in demo.METHODS.items()})
    result = run_demo(**small)
    assert counts == dict.fromkeys(result.scores, 2)
    rows = {row.method: row.value for row in result.board.rows if row.metric == "lds"}
    assert rows == {
        name: pytest.approx(float(lds(kinds["attribution"], result.truth["lds"]).correlation.nanmean()))
        for name, kinds in result.scores.items()
    }
