"""What retraining costs beyond the user's own training function, what workers gain, and how fast a resume is.

Run with `python benchmarks/retraining.py`. Models are digits logistic regressions; untrained where overhead counts.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import milliseconds, seconds, show
from torch import nn

from dattri.demo import digits, loader, train_logistic
from dattri.model_util.retrain import retrain_lds


def ready_model(dataloader):
    """A training function that takes no time: what remains is overhead."""
    return nn.Linear(64, 10)


def plain(dataloader):
    """The demo's training as a plain training function, one model at a time."""
    return train_logistic(dataloader)


def ensemble(train_loader, count=100):
    """Seconds for `count` digits models one by one, and as ensembles."""
    with tempfile.TemporaryDirectory() as folder:
        names = (f"{folder}/{number}" for number in range(100))
        return seconds(*(
            lambda function=function: retrain_lds(function, train_loader, next(names), num_subsets=count, seed=0)
            for function in (plain, train_logistic)
        ), repeats=3)


def overhead(train_loader, count=200):
    """Seconds per model beyond the training function."""
    with tempfile.TemporaryDirectory() as folder:
        names = (f"{folder}/{number}" for number in range(100))
        whole, training = seconds(
            lambda: retrain_lds(ready_model, train_loader, next(names), num_subsets=count, seed=0),
            lambda: [ready_model(train_loader) for _ in range(count)], repeats=7,
        )
    return (whole - training) / count


def workers(train_loader, count=64, repeats=3):
    """Seconds for `count` models with one and with two processes, the latter already running."""
    times = {1: [], 2: []}
    for _ in range(repeats + 1):
        for n_jobs, seen in times.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "run"
                begin = time.perf_counter()
                retrain_lds(plain, train_loader, path, num_subsets=count, seed=0, n_jobs=n_jobs)
                seen.append(time.perf_counter() - begin)
    return {n_jobs: (seen[0], statistics.median(seen[1:])) for n_jobs, seen in times.items()}


def resume(train_loader, count=5000):
    """Seconds for a call that finds all of its models."""
    with tempfile.TemporaryDirectory() as folder:
        call = lambda: retrain_lds(ready_model, train_loader, folder, num_subsets=count, seed=0)  # noqa: E731
        call()
        (found,) = seconds(call, repeats=3)
    return found


def import_seconds(statement):
    """Seconds of an import beyond the start of Python."""
    def start(code):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    empty, whole = seconds(start("pass"), start(statement), repeats=7)
    return whole - empty


def main():
    """Print the table."""
    train_loader = loader(digits()[0], shuffle=True)
    gain = workers(train_loader)
    cold, warm = (f"{milliseconds(two)} ({gain[1][1] / two:.2f}x)" for two in gain[2])
    alone, together = ensemble(train_loader)
    rows = [
        ("what", "size", "measured", "goal"),
        ("overhead beyond train_func", "per model, 650 parameters", milliseconds(overhead(train_loader)), "5 ms"),
        ("n_jobs=1", "64 digits models", milliseconds(gain[1][1]), ""),
        ("n_jobs=2", "the same, workers running", warm, "1.7x"),
        ("n_jobs=2", "the same, workers started first", cold, ""),
        ("EnsembleTrainer", "100 digits models", f"{milliseconds(together)} ({alone / together:.1f}x)", "10x"),
        ("resume scan", "5,000 finished models", milliseconds(resume(train_loader)), "1 s"),
        ("import dattri", "beyond starting Python", milliseconds(import_seconds("import dattri")), "100 ms"),
    ]
    show("retraining", rows)


if __name__ == "__main__":
    main()
