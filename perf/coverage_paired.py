"""How often 95% intervals hold the truth: comparisons, leave-one-out, AUC, ceiling and share of the ceiling.

Run with `python perf/coverage_paired.py [repeats] [function ...]`; 400 repeats take about half an hour on two cores. As
in coverage.py, simulated values have a known truth, and test samples share nothing, half of their variance, or
everything. Cells that were measured before and are not asked for stay as they are.
"""

import json
import sys
import warnings
from functools import partial
from itertools import product

import numpy as np
import scipy.optimize
import scipy.special
import torch
from coverage import NUM_TRAIN, SHARES, SPREAD, SUBSETS, TESTS, shared_normal
from joblib import Parallel, delayed
from measure import DEVICE, RESULTS, machine

from dattri.metric.ceiling import ceiling_share, lds_ceiling
from dattri.metric.ground_truth import GroundTruth
from dattri.metric.uncertainty import compare_lds, loo_interval, mislabel_interval

POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
RUNS, RELIABILITIES = (2, 3), (0.2, 0.5, 0.9)


def expected(function, z, share):
    """Mean of a function of tanh(z + SPREAD normal), without spread where all test samples are the same."""
    return float((WEIGHTS * function(np.tanh(z + SPREAD * POINTS * (share < 1)))).sum() / WEIGHTS.sum())


def level(function, value, share):
    """The z for which the mean of a function is a value."""
    return scipy.optimize.brentq(lambda z: expected(function, z, share) - value, -3, 6)


def spearman(pearson):
    """Spearman's correlation of normal values with this one of Pearson."""
    return 6 / np.pi * np.arcsin(pearson / 2)


def orthonormal(generator, num_tests, share, number):
    """Scores of some methods, (number, train, test), that sums over random halves do not correlate."""
    columns = [shared_normal(generator, NUM_TRAIN, num_tests, share) for _ in range(number)]
    made = []
    for values in columns:
        values = values - values.mean(0)  # noqa: PLW2901  (what was taken out is not needed again)
        for other in made:
            values = values - other * (other * values).sum(0)  # noqa: PLW2901
        made.append(values / np.linalg.norm(values, axis=0))
    return made


def halves(generator, num_subsets):
    """Random halves of the training samples, a mask."""
    return generator.permuted(np.tile(np.arange(NUM_TRAIN) % 2 == 0, (num_subsets, 1)), axis=1)


def sums_of(mask, score):
    """Standard sums over the halves of columns that are centred and of length 1."""
    return (mask @ score) / (0.25 * NUM_TRAIN / (NUM_TRAIN - 1)) ** 0.5


def draw_pair(generator, num_subsets, num_tests, z, share, parts):
    """Two methods that see these parts of what can be seen, and their ground truth."""
    common, *own = orthonormal(generator, num_tests, share, 3)
    pearson = np.tanh(z + SPREAD * generator.standard_normal(num_tests) * (share < 1))
    mask = halves(generator, num_subsets)
    noise = shared_normal(generator, num_subsets, num_tests, share)
    values = pearson * sums_of(mask, common) + (1 - pearson**2) ** 0.5 * noise
    a, b = (part * common + (1 - part**2) ** 0.5 * rest for part, rest in zip(parts, own, strict=True))
    return torch.from_numpy(a), torch.from_numpy(b), (torch.from_numpy(values), torch.from_numpy(mask))


def draw_loo(generator, num_models, num_tests, z, share):
    """Scores and changes of targets whose Pearson correlation is tanh(z + SPREAD normal)."""
    pearson = np.tanh(z + SPREAD * generator.standard_normal(num_tests) * (share < 1))
    score, noise = (shared_normal(generator, num_models, num_tests, share) for _ in range(2))
    values = pearson * score + (1 - pearson**2) ** 0.5 * noise
    return torch.from_numpy(score), (torch.from_numpy(values), torch.arange(num_models))


def draw_labels(generator, num_wrong, num_clean, shift, levels):
    """Scores of mislabelled and clean samples; with levels, they are rounded and many are equal."""
    is_wrong = np.arange(num_wrong + num_clean) < num_wrong
    score = generator.standard_normal(len(is_wrong)) + shift * is_wrong
    return (np.round(score * levels) if levels else score), is_wrong


def true_auc(shift, levels):
    """Probability that a wrong one is above, half where equal."""
    if not levels:
        return float(scipy.special.ndtr(shift / 2**0.5))
    edges = (np.arange(-20 * levels, 20 * levels) + 0.5) / levels
    clean, wrong = (np.diff(scipy.special.ndtr(edges - mean)) for mean in (0, shift))
    below = np.cumsum(clean) - clean / 2
    return float((wrong * below).sum())


def draw_runs(generator, num_subsets, num_runs, num_tests, reliability, share, seen=None):
    """Targets of runs, and scores that see a part of what subsets do, where asked for."""
    signal = orthonormal(generator, num_tests, share, 2)
    mask = halves(generator, num_subsets)
    noise = np.stack([shared_normal(generator, num_subsets, num_tests, share) for _ in range(num_runs)], axis=1)
    truth = sums_of(mask, signal[0])
    values = -(reliability**0.5 * truth[:, None] + (1 - reliability) ** 0.5 * noise)
    targets = GroundTruth(torch.from_numpy(values), torch.from_numpy(mask))
    if seen is None:
        return (targets,)
    return torch.from_numpy(seen * signal[0] + (1 - seen**2) ** 0.5 * signal[1]), targets


def hits(seed, repeats, function, draw, value):
    """How many of the intervals hold the value; and the mean estimate."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    generator = np.random.default_rng(seed)
    found = [function(*draw(generator)) for _ in range(repeats)]
    middle = [getattr(one, "mean", getattr(one, "difference", None)) for one in found]
    return sum(one.low <= value <= one.high for one in found), float(np.sum(middle))


def cells():
    """Of each cell: function, setting, draw, truth, and its share of the repeats."""
    for (name, share), num_subsets, num_tests in product(SHARES.items(), SUBSETS, TESTS):
        for high, parts in ((0.3, (0.9, 0.9)), (0.6, (0.9, 0.6)), (0.9, (0.98, 0.9))):
            z = level(lambda pearson: spearman(parts[0] * pearson), min(high, 0.93 * parts[0]), share)  # noqa: B023
            truth = [expected(lambda pearson: spearman(part * pearson), z, share) for part in parts]  # noqa: B023
            draw = partial(draw_pair, num_subsets=num_subsets, num_tests=num_tests, z=z, share=share, parts=parts)
            setting = f"{name}, {num_subsets} x {num_tests}, LDS {truth[0]:.2f} and {truth[1]:.2f}"
            yield "compare_lds", compare_lds, setting, draw, truth[0] - truth[1]
    for (name, share), num_models, num_tests, value in product(SHARES.items(), (20, 100, 1000), TESTS, (0.0, 0.3, 0.9)):
        if num_models * num_tests <= 50_000:
            draw = partial(draw_loo, num_models=num_models, num_tests=num_tests, share=share)
            z = level(lambda pearson: pearson, value, share)
            setting = f"{name}, {num_models} x {num_tests}, {value}"
            yield "loo_interval", loo_interval, setting, partial(draw, z=z), value
    for num_wrong, num_clean, shift, levels in product((5, 10, 20, 100), (50, 500), (0, 0.75, 1.8, 2.5), (0, 2)):
        draw = partial(draw_labels, num_wrong=num_wrong, num_clean=num_clean, shift=shift, levels=levels)
        value = true_auc(shift, levels)
        setting = f"{num_wrong} wrong, {num_clean} clean, AUC {value:.2f}{', ties' * bool(levels)}"
        yield "mislabel_interval", mislabel_interval, setting, draw, value
    for (name, share), num_runs, num_subsets, num_tests, single in product(
        SHARES.items(), RUNS, (20, 50, 100), TESTS, RELIABILITIES
    ):
        reliability = num_runs * single / (1 + (num_runs - 1) * single)
        value = float(spearman(reliability**0.5))
        draw = partial(
            draw_runs, num_subsets=num_subsets, num_runs=num_runs, num_tests=num_tests, reliability=single, share=share
        )
        setting = f"{name}, {num_subsets} x {num_runs} x {num_tests}, reliability of a run {single}"
        yield "lds_ceiling", lds_ceiling, setting, draw, value
        truth = float(spearman(0.6 * reliability**0.5)) / value
        yield "ceiling_share", ceiling_share, setting, partial(draw, seen=0.6), truth


def main():
    """Measure, print and keep."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    wanted = sys.argv[2:] or ["compare_lds", "loo_interval", "mislabel_interval", "lds_ceiling", "ceiling_share"]
    file = RESULTS / f"coverage-paired-{DEVICE}.json"
    before = json.loads(file.read_text())["cells"] if file.exists() else []
    found = [cell for cell in before if cell["function"] not in wanted]
    with Parallel(n_jobs=-1) as pool:
        for name, function, setting, draw, value in cells():
            if name not in wanted:
                continue
            many = 4 * repeats if name == "mislabel_interval" else repeats
            parts = pool(delayed(hits)(seed, many // 4, function, draw, value) for seed in range(4))
            held, total = (sum(part) for part in zip(*parts, strict=True))
            count = many // 4 * 4
            cell = {"function": name, "setting": setting, "repeats": count, "truth": value}
            found.append({**cell, "mean": total / count, "coverage": held / count})
            print(*found[-1].values(), flush=True)
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps({"machine": machine(), "cells": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
