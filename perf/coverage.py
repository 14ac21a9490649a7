"""How often a 95% interval of `lds_interval` holds the true mean LDS, over few and many subsets and test samples.

Run with `python perf/coverage.py [repeats]`; 1,000 repeats take about half an hour on two cores.
Simulated data sets have 100 training samples and random halves. On each test sample, sums of scores and targets
correlate with tanh(z + 0.3 normal), where z gives the wanted mean LDS. The digits are 1,000 logistic regressions,
trained on random halves. What all of them say about all test samples is the truth, and each repeat draws some of both.
"""

import json
import sys
import tempfile
import warnings
from functools import partial
from itertools import product

import numpy as np
import scipy.optimize
import torch
from joblib import Parallel, delayed
from measure import DEVICE, RESULTS, machine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dattri.benchmark.datasets import digits
from dattri.demo import METHODS
from dattri.metric import calculate_lds_ground_truth, lds, lds_interval
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.retrain import retrain_lds
from dattri.model_util.target import EnsembleTarget

NUM_TRAIN, SPREAD = 100, 0.3
SUBSETS, TESTS, VALUES = (10, 20, 50, 100), (5, 50, 500), (0.0, 0.3, 0.9)
SHARES = {"independent": 0.0, "half shared": 0.5, "equal": 1.0}


def mean_lds(z, share):
    """Mean over test samples of Spearman's correlation of normal values."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    pearson = np.tanh(z + SPREAD * points * (share < 1))
    return float((weights * 6 / np.pi * np.arcsin(pearson / 2)).sum() / weights.sum())


def shared_normal(generator, rows, columns, share):
    """Normal values whose columns have this share of their variance in common."""
    common, own = generator.standard_normal((rows, 1)), generator.standard_normal((rows, columns))
    return share**0.5 * common + (1 - share) ** 0.5 * own


def simulate(generator, num_subsets, num_tests, z, share):
    """Scores and a ground truth for which the true mean LDS is `mean_lds(z, share)`."""
    pearson = np.tanh(z + SPREAD * generator.standard_normal(num_tests) * (share < 1))
    score = shared_normal(generator, NUM_TRAIN, num_tests, share)
    mask = generator.permuted(np.tile(np.arange(NUM_TRAIN) % 2 == 0, (num_subsets, 1)), axis=1)
    spread = score.std(0) * (NUM_TRAIN * 0.25 * NUM_TRAIN / (NUM_TRAIN - 1)) ** 0.5
    predicted = (mask @ score - NUM_TRAIN / 2 * score.mean(0)) / spread
    noise = shared_normal(generator, num_subsets, num_tests, share)
    return torch.from_numpy(score), (torch.from_numpy(pearson * predicted + (1 - pearson**2) ** 0.5 * noise), mask)


def hits(seed, repeats, draw, value):
    """How many of the intervals of some draws hold the value."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(seed)
    intervals = [lds_interval(*draw(generator)) for _ in range(repeats)]
    return sum(interval.low <= value <= interval.high for interval in intervals)


def coverage(draw, value, repeats, pieces=4):
    """Share of the intervals that hold the value."""
    jobs = (delayed(hits)(seed, repeats // pieces, draw, value) for seed in range(pieces))
    return sum(Parallel(n_jobs=-1)(jobs)) / (repeats // pieces * pieces)


def digits_population(num_subsets=1000):
    """Scores of three methods, and targets of models trained on random halves of the digits."""
    train, test = digits()
    each = partial(nn.functional.cross_entropy, reduction="none")
    model_fn = partial(nn.Linear, 64, 10)
    trainer = EnsembleTrainer(
        model_fn, nn.functional.cross_entropy, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), num_epochs=50
    )
    loader = DataLoader(train, batch_size=64, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        retrain_lds(trainer, loader, folder, num_subsets=num_subsets, seed=0)
        truth = calculate_lds_ground_truth(EnsembleTarget(model_fn, each), folder, DataLoader(test, batch_size=500))
    model, data = trainer(loader, seed=1), (TensorDataset(*train.tensors), TensorDataset(*test.tensors))
    return {name: method(model, *data) for name, method in METHODS.items()}, truth


def draw_digits(generator, score, truth, num_subsets, num_tests):
    """Some of the subsets and test samples, with replacement."""
    rows = generator.integers(len(truth.values), size=num_subsets)
    columns = generator.integers(score.shape[1], size=num_tests)
    return score[:, columns], (truth.values[rows][:, columns], truth.indices[rows])


def main():
    """Print the table and keep it."""
    warnings.simplefilter("ignore")  # a draw may hold a constant column
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    cells, real = [], []
    for (name, share), num_subsets, num_tests, value in product(SHARES.items(), SUBSETS, TESTS, VALUES):
        z = scipy.optimize.brentq(lambda z: mean_lds(z, share) - value, -1, 5)  # noqa: B023  (called at once)
        draw = partial(simulate, num_subsets=num_subsets, num_tests=num_tests, z=z, share=share)
        found = coverage(draw, value, repeats)
        sizes = {"num_subsets": num_subsets, "num_tests": num_tests}
        cells.append({"tests": name, **sizes, "lds": value, "coverage": found})
        print(*cells[-1].values(), flush=True)
    scores, truth = digits_population()
    for (name, score), num_subsets, num_tests in product(scores.items(), SUBSETS, TESTS):
        value = float(lds(score, truth).correlation.double().mean())
        draw = partial(draw_digits, score=score, truth=truth, num_subsets=num_subsets, num_tests=num_tests)
        found = coverage(draw, value, repeats)
        sizes = {"num_subsets": num_subsets, "num_tests": num_tests}
        real.append({"method": name, **sizes, "lds": value, "coverage": found})
        print(*real[-1].values(), flush=True)
    record = {"machine": machine(), "repeats": repeats, "cells": cells, "digits": real}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"coverage-{DEVICE}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
