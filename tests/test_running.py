"""The bars of runs, and what is left of a run that is interrupted: its message, its workers, its files."""

import pytest
from helpers import make_loader, train
from joblib import parallel_config

from dattri.metric import calculate_lds_ground_truth
from dattri.model_util.parallel import one_bar, run_tasks
from dattri.model_util.retrain import retrain_lds


def double(number):
    return 2 * number


def end_of(text):
    """The last state of every bar that was drawn."""
    return [line.rsplit("\r", 1)[-1] for line in text.rstrip("\n").split("\n")]


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("total", [0, 3, 8])
def test_one_bar_counts_the_models_of_several_runs(n_jobs, total, capfd):
    """Three runs of 3, 1 + 2 found, and 2 found models; a total that is not known or too small grows."""
    with one_bar("all", total) as bar:
        assert sorted(run_tasks(double, [1, 2, 3], n_jobs=n_jobs, description="first")) == [2, 4, 6]
        with one_bar("inner") as same:
            list(run_tasks(double, [4], n_jobs=n_jobs, done=2, sizes=[1], description="second"))
        list(run_tasks(double, [], n_jobs=n_jobs, done=2, description="third"))
    shown = capfd.readouterr().err
    assert same is bar and (bar.n, bar.total, bar.initial) == (8, 8, 4)
    assert len(end_of(shown)) == 1 and end_of(shown)[0].startswith("all: 100%") and "8/8" in shown
    assert not any(name in shown for name in ("first", "second", "third", "inner"))
    list(run_tasks(double, [1], description="alone"))
    assert end_of(capfd.readouterr().err)[0].startswith("alone: 100%")


def test_one_bar_ends_with_its_block(capfd):
    with pytest.raises(ZeroDivisionError), one_bar("failing", 2):
        list(run_tasks(lambda number: 1 // number, [1, 0], description="inner"))
    list(run_tasks(double, [1], description="after"))
    assert [line.split(":")[0] for line in end_of(capfd.readouterr().err)] == ["failing", "after"]


def test_one_bar_over_retraining_and_evaluating(tmp_path, capfd):
    """What retraining and evaluating show otherwise, `resuming` included, is one line."""
    retrain_lds(train, make_loader(), tmp_path, num_subsets=2, total_num_subsets=4, seed=7)
    capfd.readouterr()
    with parallel_config(backend="threading", n_jobs=2), one_bar("everything", total=8):
        retrain_lds(train, make_loader(), tmp_path, num_subsets=4, seed=7)
        calculate_lds_ground_truth(lambda *_: make_loader().dataset.tensors[0][:, 0], tmp_path, make_loader())
    [line] = end_of(capfd.readouterr().err)
    assert line.startswith("everything: 100%") and "8/8" in line
