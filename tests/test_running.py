"""The bars of runs, and what is left of a run that is interrupted: its message, its workers, its files."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import joblib
import pytest
import torch
from benchmark_helpers import LOCAL
from helpers import count_models, files, make_loader, train
from joblib import parallel_config

from dattri.benchmark.build import build_benchmark
from dattri.metric import calculate_lds_ground_truth
from dattri.model_util.ensemble import EnsembleTrainer
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
        calculate_lds_ground_truth(lambda *_: torch.zeros(12), tmp_path, make_loader())
    [line] = end_of(capfd.readouterr().err)
    assert line.startswith("everything: 100%") and "8/8" in line


HANGING = """
import joblib
from functools import partial
from dattri.model_util.ensemble import EnsembleTrainer

def hang():
    '''Be busy for as long as there is the file to hang on, once two models are done.'''
    while os.path.exists(path + ".hang") and count_models(path) > 1:
        torch.ones(50, 50) @ torch.ones(50, 50)

def slow(dataloader):
    hang()
    return train(dataloader)

def slow_loss(outputs, labels):
    hang()
    return torch.nn.functional.mse_loss(outputs, labels)

sgd = partial(torch.optim.SGD, lr=0.1)
trainer = EnsembleTrainer(partial(torch.nn.Linear, 1, 1), slow_loss, optimizer=sgd, num_epochs=2, max_models=2)
train_func, backend, n_jobs = {
    "one process": (slow, "loky", None),
    "loky": (slow, "loky", 2),
    "multiprocessing": (slow, "multiprocessing", 2),
    "a trainer": (trainer, "loky", None),
    "a trainer, loky": (trainer, "loky", 2),
}[sys.argv[2]]
with joblib.parallel_config(backend=backend):
    retrain_lds(train_func, make_loader(), path, num_subsets=8, seed=7, n_jobs=n_jobs)
for path in sys.argv[3:]:
    retrain_lds(train_func, make_loader(), path, num_subsets=8, seed=7)
"""
ENGINES = ["one process", "loky", "multiprocessing", "a trainer", "a trainer, loky"]


def session_of(process):
    """Ids of the living processes in the session that a process has begun."""
    living = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = file.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:  # it has just ended
            continue
        if session == str(process.pid) and state not in "ZX":
            living.append(int(file.parent.name))
    return living


def wait_for_end(process, seconds):
    """Wait until nothing of the session is left; what is left after that time, which is ended then."""
    deadline = time.monotonic() + seconds
    while (left := session_of(process)) and time.monotonic() < deadline:
        time.sleep(0.05)
        process.poll()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def wait_until_it_hangs(process, run):
    """Wait for the models after which a run hangs, and a little longer."""
    while count_models(run) < 2:
        assert process.poll() is None, process.stderr
        time.sleep(0.02)
    time.sleep(0.5)


@pytest.fixture
def start_hanging(start_child, tmp_path):
    """Start a run that hangs after some models, in a session of its own, and wait for these."""

    def start(engine):
        (tmp_path / "run.hang").touch()
        process = start_child(HANGING, tmp_path / "run", engine, new_session=True)
        wait_until_it_hangs(process, tmp_path / "run")
        return process

    return start


@pytest.fixture
def check_resumes(run_child, tmp_path):
    """Check that the same call, not hanging any more, ends with the bytes of an undisturbed run."""

    def check(engine):
        (tmp_path / "run.hang").unlink()
        run_child(HANGING, tmp_path / "run", "a trainer" if "trainer" in engine else "one process", tmp_path / "quiet")
        assert files(tmp_path / "run") == files(tmp_path / "quiet")

    return check


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
forks_rarely = pytest.mark.skipif(  # Python ignores what a signal raises at the instant of a fork
    tuple(map(int, joblib.__version__.split(".")[:2])) < (1, 6), reason="before joblib 1.6, a Ctrl-C may be lost"
)


@forks_rarely
@needs_proc
@pytest.mark.parametrize(
    "engine,whom", [*((engine, "all, as a terminal does") for engine in ENGINES), ("loky", "the parent")]
)
def test_ctrl_c_says_what_is_kept_and_leaves_nobody_at_work(engine, whom, start_hanging, check_resumes, tmp_path):
    with start_hanging(engine) as process:
        os.kill(process.pid, signal.SIGINT) if whom == "the parent" else os.killpg(process.pid, signal.SIGINT)
        assert wait_for_end(process, 60) == []
    errors = process.stderr
    kept = [name for name in files(tmp_path / "run") if name.endswith(".pt")]
    message = f"Interrupted: {len(kept)} of 8 models are finished and kept in {tmp_path / 'run'}; "
    message += f"repeat the call to train the other {8 - len(kept)}."
    assert errors.splitlines()[-1] == f"KeyboardInterrupt: {message}"
    assert errors.count("Traceback") == 1 and "joblib" not in errors and "multiprocessing" not in errors
    assert process.returncode == -signal.SIGINT and 2 <= len(kept) < 8
    assert not any(name.endswith(".part") for name in files(tmp_path / "run"))
    check_resumes(engine)


@needs_proc
@pytest.mark.parametrize("engine", ["loky", "multiprocessing", "a trainer, loky"])
def test_workers_end_with_a_parent_that_is_killed(engine, start_hanging, check_resumes):
    """They are in the middle of a model that would take for ever."""
    with start_hanging(engine) as process:
        assert len(session_of(process)) >= 3
        process.kill()
        assert wait_for_end(process, 60) == []
    check_resumes(engine)


@needs_proc
@forks_rarely
def test_ctrl_c_while_workers_are_starting(start_child, tmp_path):
    """They import torch then, and must neither say anything nor stay."""
    for number, seconds in enumerate([0, 0.2, 0.8]):
        with start_child(HANGING, tmp_path / str(number), "loky", new_session=True) as process:
            while len(session_of(process)) < 3:  # the parent, what joblib cleans up with, and the first worker
                assert process.poll() is None
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGINT)
            assert wait_for_end(process, 60) == []
        errors = process.stderr
        told = r"KeyboardInterrupt: Interrupted(: \d of 8 models| before a model in .* was finished)"
        assert re.search(told, errors), errors
        assert errors.count("Traceback") == 1, errors


def test_ctrl_c_while_evaluating_says_how_far_it_was(tmp_path):
    retrain_lds(train, make_loader(), tmp_path, num_subsets=4, seed=7)

    def target(file, dataloader):
        if Path(file).parent.name == "2":
            raise KeyboardInterrupt
        return torch.zeros(12)

    with pytest.raises(KeyboardInterrupt, match=r"Interrupted: evaluating \(lds\): 2 of 4 models are done\."):
        calculate_lds_ground_truth(target, tmp_path, make_loader())


SLOW_SETTING = """
import os, pathlib
from dataclasses import replace
from dattri.benchmark.settings import find_setting, register_setting

def slow(dataloader, seed):
    while os.path.exists("run.hang") and len(list(pathlib.Path("run").rglob("*.pt"))) > 1: pass
    return find_setting("lr", "digits").create_model()

register_setting(replace(find_setting("lr", "digits"), model="slow", train_func=slow))
"""


@forks_rarely
@needs_proc
@pytest.mark.parametrize("n_jobs", [[], ["--n-jobs", "2"]], ids=["one process", "two workers"])
def test_ctrl_c_in_the_command_is_one_line(n_jobs, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_SETTING)
    options = ["--model", "slow", "--dataset", "digits", "--mode", "full", "--out", "run", *n_jobs]
    command = [Path(sys.executable).with_name("dattri"), "--import", "slow", "retrain", *options]
    (tmp_path / "run.hang").touch()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, cwd=tmp_path)
    wait_until_it_hangs(process, tmp_path / "run")
    os.killpg(process.pid, signal.SIGINT)
    assert wait_for_end(process, 60) == []
    errors = process.communicate()[1].decode()
    assert process.returncode == 130 and "Traceback" not in errors
    is_bar = re.compile("(model|step)/s|s/(model|step)").search
    [told] = [line for line in re.split(r"[\r\n]", errors) if line and not is_bar(line)]
    start = r"Interrupted: (.) of 10 models are finished and kept in \S+; run the command again "
    parts = re.fullmatch(rf"{start}to train the other (.)\.", told)
    assert 2 <= int(parts[1]) <= 4 and int(parts[1]) + int(parts[2]) == 10


@pytest.mark.parametrize("at_once", [1, 8])
def test_ctrl_c_before_a_model_is_finished_promises_nothing(at_once, tmp_path):
    """Models that are trained as one are finished at the end, all at once."""


    def stopped(*_):
        raise KeyboardInterrupt

    new = partial(torch.nn.Linear, 1, 1)
    train_func = stopped if at_once == 1 else EnsembleTrainer(new, stopped, optimizer=torch.optim.SGD, num_epochs=1)
    with pytest.raises(KeyboardInterrupt) as error:
        retrain_lds(train_func, make_loader(), tmp_path / "run", num_subsets=8, seed=7)
    told = f"Interrupted before a model in {tmp_path / 'run'} was finished; repeat the call to train all 8 of them."
    smaller = " 8 are trained as one: a smaller max_models= of the trainer saves some of them earlier."
    assert str(error.value) == told + smaller * (at_once > 1)


def test_a_build_knows_its_number_of_models_from_the_start(tmp_path, capfd):
    """The end of the bar does not move while groups follow each other, nor when a metric is added."""
    for metrics, expected in ((["lds"], 3 + 5 + 2 * 4), (None, None)):
        build_benchmark(LOCAL, tmp_path, metrics=metrics)
        totals = set(re.findall(r"/(\d+) \[", capfd.readouterr().err))
        assert len(totals) == 1 and expected in (None, int(*totals)), totals


def test_a_bar_without_a_total_promises_no_end(capfd):
    with one_bar("searching") as bar:
        list(run_tasks(double, [1, 2], description="first"))
        list(run_tasks(double, [3], done=2, description="second"))
    shown = end_of(capfd.readouterr().err)
    assert (bar.n, bar.total) == (5, None) and len(shown) == 1
    assert shown[0].startswith("searching: 5step") and "%" not in shown[0]
