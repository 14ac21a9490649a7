"""What retraining costs beyond the user's own training function, what workers gain, and how fast a resume is.

Run with `python perf/retraining.py`. Models are untrained where overhead counts.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ensembles import data, digits_lr, mnist_mlp, plain, trainer_of
from measure import Row, report, seconds
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dattri.model_util.checkpoint import atomic_write, cpu_state, load_checkpoint, to_bytes
from dattri.model_util.retrain import retrain_lds, retrain_subsets


def ready_model(dataloader):
    """A training function that takes no time: what remains is overhead."""
    return digits_lr()


def overhead(dataloader, count=200):
    """Seconds per model beyond the training function."""
    with tempfile.TemporaryDirectory() as folder:
        names = (f"{folder}/{number}" for number in range(100))
        whole, training = seconds(
            lambda: retrain_lds(ready_model, dataloader, next(names), num_subsets=count, seed=0),
            lambda: [ready_model(dataloader) for _ in range(count)], repeats=7,
        )
    return (whole - training) / count


def overhead_parts(count=200):
    """Seconds per model of what saving consists of."""
    model, data = digits_lr(), b"x" * 4096
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)

        def synced(number):
            with (path / f"s{number}").open("wb") as file:
                file.write(data)
                os.fsync(file.fileno())

        calls = {
            "one fsync": lambda: [synced(number) for number in range(count)],
            "a file, whole or absent": lambda: [atomic_write(path / str(number), data) for number in range(count)],
            "state to bytes": lambda: [to_bytes(cpu_state(model)) for _ in range(count)],
        }
        return {name: time / count for name, time in zip(calls, seconds(*calls.values(), repeats=5), strict=True)}


def workers(name, model_fn, dataloader, num_epochs, count=64, repeats=3):
    """Rows for `count` models with one and with two processes: running already, and started first."""
    train = partial(plain, trainer=trainer_of(model_fn, num_epochs))
    times = {1: [], 2: []}
    for _ in range(repeats + 1):
        for n_jobs, seen in times.items():
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                retrain_lds(train, dataloader, Path(folder) / "run", num_subsets=count, seed=0, n_jobs=n_jobs)
                seen.append(time.perf_counter() - begin)
    one = statistics.median(times[1][1:])
    what, size = "n_jobs=2 against 1", f"{count} models, {name}"
    yield Row(what, size, statistics.median(times[2][1:]), one, "1.7x", None, "workers running")
    yield Row(what, size, times[2][0], one, "", None, "workers started first")
    from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415

    get_reusable_executor().shutdown()


def resume(dataloader, count=5000):
    """Seconds for a call that finds all of its models."""
    with tempfile.TemporaryDirectory() as folder:
        call = lambda: retrain_lds(ready_model, dataloader, folder, num_subsets=count, seed=0)  # noqa: E731
        call()
        (found,) = seconds(call, repeats=3)
    return found


def named_subsets(num_train=5000, count=5000):
    """Seconds to plan, and to find all models of, subsets of different sizes that the user names."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(num_train // 4, num_train, count)
    subsets = [generator.choice(num_train, size, replace=False) for size in sizes]
    loader = DataLoader(TensorDataset(torch.arange(float(num_train))), batch_size=64)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        retrain_subsets(ready_model, loader, f"{folder}/planned", subsets, seed=0, partition=(0, count))  # one model
        planning = time.perf_counter() - begin
        retrain_subsets(ready_model, loader, folder, subsets, seed=0)
        (found,) = seconds(lambda: retrain_subsets(ready_model, loader, folder, subsets, seed=0), repeats=3)
    return planning, found


def checked_loading():
    """Rows for loading checkpoints, verified byte for byte and checked, against `torch.load` alone."""
    models = {"digits LR": digits_lr(), "MNIST-size MLP": mnist_mlp(), "10 MB": nn.Sequential(*many_layers(500, 10))}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            retrain_lds(partial(_again, model=model), data(64, 2), f"{folder}/{name}", num_subsets=20, seed=0)
            files = sorted(Path(folder, name).glob("*/model_weights_0.pt"))
            ours, plain_load = seconds(
                lambda: [load_checkpoint(file) for file in files],  # noqa: B023
                lambda: [torch.load(file, map_location="cpu") for file in files],  # noqa: B023
                repeats=15,
            )
            size = f"{name}, {files[0].stat().st_size:,} bytes"
            what, note = "load of a verified checkpoint", "against torch.load alone"
            yield Row(what, size, ours / 20, plain_load / 20, "0.9x", None, note)


def many_layers(width, count):
    """Layers of equal width."""
    return [nn.Linear(width, width) for _ in range(count)]


def _again(dataloader, model):
    return model


def import_seconds(statement):
    """Seconds that a fresh process takes for an import, in its own clock."""
    code = f"import time; begin = time.perf_counter(); {statement}; print(time.perf_counter() - begin)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(9)]
    return statistics.median(float(run.stdout) for run in runs)


def main():
    """Print the table."""
    torch.manual_seed(0)
    digits, mnist = data(1297, 64), data(5000, 784)
    planning, found = named_subsets()
    rows = [
        Row("overhead beyond train_func", "per model, 650 parameters", overhead(digits), None, "3 ms"),
        *workers("digits LR", digits_lr, digits, 20),
        *workers("MNIST-size MLP", mnist_mlp, mnist, 3),
        Row("resume scan", "5,000 finished models", resume(digits), None, "0.5 s"),
        Row("plan of named subsets, and its first model", "5,000 subsets of 5,000 samples", planning, None, "1 s"),
        Row("resume of named subsets", "5,000 finished models", found, None, "1 s"),
        *checked_loading(),
        Row("import dattri", "in a fresh process", import_seconds("import dattri"), None, "10 ms"),
    ]
    report("retraining", rows, overhead=overhead_parts())


if __name__ == "__main__":
    main()
